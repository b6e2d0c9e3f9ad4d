"""What the server refuses, and how it says so; its files and its headers."""

import socket

import pytest

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.people.queue import Plan
from rlhf_lightning.people.server import FILES, HEADERS, LARGEST, TYPES, listen
from tests.people.serving import a_server

ROWS = [(f"prompt {n}", [f"answer {n}.{a}" for a in range(3)]) for n in range(8)]
FILE = Plan("file", overlap=1)


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """A server that tests share since they leave nothing in its record."""
    with a_server(tmp_path_factory.mktemp("standing"), ROWS, FILE) as started:
        yield started
        assert started.record.entries() == []


@pytest.fixture(scope="module")
def ann(standing):
    return standing.person("ann")


@pytest.mark.parametrize("number", [0, 99, -1, 10**30, None, "2", 2.0, True, [2], {"2": 2}])
def test_an_item_that_is_not_there_is_refused(ann, number):
    status, answer = ann.send(ann.next() | {"id": number}, [1, 2, 3])
    assert status == 400 and answer["error"].startswith("item: is not the one that was shown")


@pytest.mark.parametrize(
    "more",
    [{"key": "\ud800" * 8}, {"\ud800": 1}, {"note": "\ud800"}, {"seconds": 10**400}, {"order": [0]}, {"strength": 1}],
)
def test_a_judgement_that_is_none_is_the_senders_fault_and_leaves_nothing(ann, more):
    status, answer = ann.send(ann.next(), [1, 2, 3], **more)
    assert status == 400 and answer["error"]


@pytest.mark.parametrize("name", ["", "x" * 101, "a\u202eb", "\ud800", 3, None])
def test_a_name_that_is_none_is_refused(ann, name):
    status, answer = ann.ask("POST", "/api/session", {"name": name})
    assert status == 400 and answer["error"].startswith("name: ")


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/next"), ("POST", "/api/judgements"), ("POST", "/api/undo")])
def test_who_has_no_name_is_asked_for_it(standing, method, path):
    status, answer = standing.person().ask(method, path, {} if method == "POST" else None)
    assert status == 401 and "say who you are first" in answer["error"]


@pytest.mark.parametrize("path", ["/api/judgements", "/api/undo", "/api/session"])
@pytest.mark.parametrize(
    ("body", "kind", "status", "says"),
    [
        (b"{", "application/json", 400, "is not JSON"),
        (b"\xff\xfe", "application/json", 400, "is not JSON"),
        (b"", "application/json", 400, "is not JSON"),
        (b"[" * 100_000, "application/json", 400, "is not JSON"),
        (b"[1]", "application/json", 400, "is no JSON object"),
        (b'"key"', "application/json; charset=utf-8", 400, "is no JSON object"),
        (b"{}", "text/plain", 415, "send application/json"),
        (b"key=1", "application/x-www-form-urlencoded", 415, "send application/json"),
        (b"{}", "", 415, "send application/json"),
        (b" " * (LARGEST + 1), "application/json", 413, f"more than {LARGEST} bytes"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_body_that_is_no_json_object_is_refused(ann, path, body, kind, status, says):
    answered, answer = ann.ask("POST", path, body, **{"Content-Type": kind})
    assert (answered, says in answer["error"]) == (status, True), answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/api/nothing", 404), ("GET", "/static/nothing.js", 404),
        ("POST", "/api/nothing", 404), ("DELETE", "/api/judgements", 405), ("GET", "/api/judgements", 405),
        ("POST", "/api/next", 405), ("POST", "/", 405),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_as_json(ann, method, path, status):
    answered, answer = ann.ask(method, path, {} if method == "POST" else None)
    assert (answered, set(answer)) == (status, {"error"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200), ("GET", "/lead", 200), ("GET", "/static/label.js", 200), ("GET", "/api/session", 200),
        ("GET", "/api/next", 200), ("GET", "/api/lead", 200), ("GET", "/enter/nobody", 403), ("GET", "/nothing", 404),
        ("POST", "/api/next", 405), ("POST", "/api/judgements", 400), ("POST", "/api/undo", 400),
    ],
)  # fmt: skip
def test_every_answer_has_the_headers_that_keep_other_pages_out(ann, method, path, status):
    assert ann.ask(method, path, {} if method == "POST" else None)[0] == status
    assert {name: ann.headers.get(name.lower()) for name in HEADERS} == HEADERS
    policy = dict(part.split(" ", 1) for part in ann.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
    assert "server" not in ann.headers


@pytest.mark.parametrize("name", sorted(FILES))
def test_each_file_of_the_pages_is_served_with_its_type(ann, name):
    status, text = ann.ask("GET", f"/static/{name}")
    assert (status, text) == (200, FILES[name].read_text())
    assert ann.headers["content-type"].partition(";")[0] == TYPES[FILES[name].suffix]


def test_an_error_of_the_server_itself_is_said_as_one(standing, monkeypatch):
    def broken(annotator):
        raise RuntimeError("a bug")

    ann = standing.person("ann")
    monkeypatch.setattr(standing.service, "next", broken)
    status, answer = ann.ask("GET", "/api/next")
    assert (status, answer) == (500, {"error": "the server failed; see its messages"})


def test_the_end_of_an_answer_does_not_wait_for_its_beginning_to_be_acknowledged():
    with listen("127.0.0.1", 0) as heard, socket.create_connection(heard.getsockname()):
        accepted, _ = heard.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", None), ("192.0.2.1", 0), ("127.0.0.1", 70_000)])
def test_an_address_that_cannot_be_had_is_said(host, port):
    with listen("127.0.0.1", 0) as other:
        port = other.getsockname()[1] if port is None else port
        with pytest.raises(ConfigError, match=f"--host {host} --port {port}: .*choose another, or --port 0"):
            listen(host, port)
