"""Who gets in, and which requests are taken for those of somebody else."""

import hashlib

import pytest

from rlhf_lightning.people.access import LOOPBACK, Access, from_here, is_loopback
from rlhf_lightning.people.queue import Plan
from rlhf_lightning.people.record import Record
from tests.people.serving import a_server, items_of

ROWS = [(f"prompt {n}", ["a", "b"]) for n in range(3)]
FILE = Plan("file", overlap=1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """On this machine, without links."""
    with a_server(tmp_path_factory.mktemp("alone"), ROWS, FILE) as started:
        yield started


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """With links for ann, bob and who leads."""
    with a_server(tmp_path_factory.mktemp("shared"), ROWS, FILE, ["ann", "bob"]) as started:
        yield started
        assert started.record.entries() == []


@pytest.fixture
def record(tmp_path):
    with Record(tmp_path / "labels.db", items_of(ROWS)) as made:
        yield made


def test_a_link_makes_its_person_and_shows_the_page(shared):
    ann = shared.person(token=shared.links["ann"])
    assert (ann.status, ann.session["annotator"], ann.session["named"]) == (303, "ann", False)
    assert ann.next()["id"] == 1
    ann.ask("GET", f"/enter/{shared.links['ann']}")
    assert ann.headers["location"] == "/"


@pytest.mark.parametrize(
    "token", ["nobody", "", "%00", "a/b", "ann", "x" * 5000, "%ff", "' OR 1=1 --".replace(" ", "+")]
)
def test_a_wrong_token_opens_nothing(shared, token):
    person = shared.person(token=token)
    assert person.status in (403, 404)
    assert "set-cookie" not in person.headers
    assert person.session["annotator"] is None
    assert person.ask("GET", "/api/next")[0] == 401


def test_a_token_in_its_hashed_form_opens_nothing(shared):
    assert shared.person(token=hashlib.sha256(shared.links["ann"].encode()).hexdigest()).status == 403


def test_no_link_opens_where_people_say_who_they_are(record):
    (_, token), *_ = Access(record, links=True).new_links(["ann"]).items()
    assert Access(record, links=True).enter(token) is not None
    assert Access(record, links=False).enter(token) is None


def test_with_links_nobody_says_who_they_are(shared):
    person = shared.person()
    status, answer = person.ask("POST", "/api/session", {"name": "ann"})
    assert (status, answer["error"]) == (403, "open the link that you were given")


def test_only_who_leads_sees_the_page_for_the_lead(shared):
    lead = shared.person(token=shared.links[""])
    assert lead.ask("GET", "/lead")[0] == lead.ask("GET", "/api/lead")[0] == 200
    assert lead.session["annotator"] is None
    assert lead.ask("GET", "/api/next")[0] == 401  # and ranks nothing
    lead.ask("GET", f"/enter/{shared.links['']}")
    assert lead.headers["location"] == "/lead"
    for person in (shared.person(token=shared.links["ann"]), shared.person()):
        # The page itself tells nothing, and a link from another site opens it: a cookie does not come along with that.
        assert person.ask("GET", "/lead")[0] == 200
        status, answer = person.ask("GET", "/api/lead")
        assert status == 403 and answer["error"].startswith("this page is for who leads")


def test_new_links_end_the_old_ones_and_the_sessions_that_they_opened(record):
    access = Access(record, links=True)
    old = access.new_links(["ann", "bob"])
    cookies = {name: access.enter(token) for name, token in old.items()}
    assert access.new_links(["ann", "bob"]) == {}
    assert set(access.new_links(["ann", "bob", "cat"])) == {"cat"}
    new = access.new_links(["ann"], renew=True)
    assert set(new) == {"ann", ""}
    assert [access.enter(old["ann"]), access.enter(old[""])] == [None, None]
    assert access.visitor(cookies["ann"]).annotator is None
    assert not access.visitor(cookies[""]).leads
    assert access.visitor(access.enter(new["ann"])).annotator == "ann"
    assert access.visitor(access.enter(new[""])).leads


def test_the_link_of_who_is_left_out_ends_and_their_work_stays(record):
    access = Access(record, links=True)
    old = access.new_links(["ann", "bob"])
    cookie = access.enter(old["bob"])
    assert access.new_links(["ann"]) == {}
    assert access.enter(old["bob"]) is None and access.visitor(cookie).annotator is None
    assert access.visitor(access.enter(old["ann"])).annotator == "ann"
    assert set(access.new_links(["ann", "bob"])) == {"bob"}


def test_who_only_said_a_name_is_nobody_once_there_are_links(record):
    cookie = Access(record, links=False).name("carl")
    assert Access(record, links=False).visitor(cookie).annotator == "carl"
    access = Access(record, links=True)
    for _ in range(2):
        assert access.visitor(cookie).annotator is None
        assert not access.visitor(cookie).leads
        access.new_links(["ann"])


def test_tokens_and_cookies_are_not_in_the_file_in_clear(record):
    access = Access(record, links=True)
    secrets = access.new_links(["ann", "bob"])
    secrets |= {f"cookie of {name}": access.enter(token) for name, token in list(secrets.items())}
    files = b"".join(path.read_bytes() for path in record.path.parent.iterdir() if path.name.startswith("labels.db"))
    for secret in secrets.values():
        assert len(secret) >= 32
        assert secret.encode() not in files
        assert hashlib.sha256(secret.encode()).hexdigest().encode() in files


def test_no_two_secrets_are_the_same(record):
    access = Access(record, links=True)
    made = list(access.new_links([f"person {n}" for n in range(20)]).values())
    made += [access.enter(token) for token in list(made)]
    assert len(set(made)) == len(made) == 42


@pytest.mark.parametrize("given", ["shared", "alone"])
def test_scripts_and_other_sites_cannot_have_the_cookie(given, shared, alone):
    person = shared.person(token=shared.links["ann"]) if given == "shared" else alone.person()
    if given == "shared":
        person.ask("GET", f"/enter/{shared.links['ann']}")
    else:
        person.ask("POST", "/api/session", {"name": "ann"})
    pair, *settings = person.headers["set-cookie"].lower().split("; ")
    assert pair.startswith("rlhf_label_")
    assert {"httponly", "samesite=strict", "path=/"} <= set(settings)
    assert not any(setting.startswith("domain") for setting in settings)


WRITES = [
    ("/api/judgements", {"key": "key-0001", "item": 1}),
    ("/api/undo", {"key": "key-0002"}),
    ("/api/session", {"name": "eve"}),
]


@pytest.mark.parametrize(("path", "body"), WRITES)
@pytest.mark.parametrize(
    "headers",
    [
        {"X-Label-Token": ""}, {"X-Label-Token": "0" * 64}, {"X-Label-Token": "é"}, {"Origin": "http://evil.example"},
        {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "http://["}, {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"}, {"Origin": "HOST.evil.example"}, {"Cookie": ""},
    ],
    ids=str,
)  # fmt: skip
def test_what_another_page_sends_writes_nothing(shared, path, body, headers):
    ann = shared.person(token=shared.links["ann"])
    headers = {name: value.replace("HOST", f"http://{shared.host}") for name, value in headers.items()}
    status, answer = ann.ask("POST", path, body, **headers)
    assert status == 403 and answer["error"] == "this does not come from the page; load it again"


def test_the_word_against_other_pages_is_another_one_for_each_session(shared):
    ann, bob = (shared.person(token=shared.links[name]) for name in ("ann", "bob"))
    again = shared.person(token=shared.links["ann"])
    assert len({person.csrf for person in (ann, bob, again, shared.person())}) == 4
    assert bob.undo(**{"X-Label-Token": ann.csrf})[0] == 403
    assert bob.undo()[0] == 409


@pytest.mark.parametrize("headers", [{"Origin": "HOST"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}])
def test_what_our_page_sends_is_taken(shared, headers):
    ann = shared.person(token=shared.links["ann"])
    headers = {name: value.replace("HOST", f"http://{shared.host}") for name, value in headers.items()}
    assert ann.undo(**headers)[0] == 409  # nothing to take back


@pytest.mark.parametrize("path", ["/", "/lead", "/static/label.js", "/api/session", "/api/next", "/nothing"])
@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.0.2.1", "[", ""]
)
def test_a_name_that_was_made_to_point_here_gets_nothing(alone, path, host):
    status, answer = alone.person().ask("GET", path, Host=host)
    assert (status, answer) == (403, {"error": "open the address that the command printed"})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8321"])
def test_names_of_this_machine_are_taken(alone, host):
    assert alone.person().ask("GET", "/api/session", Host=host)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py", "/static/..", "/static/%2e%2e/server.py", "/static/%2e%2e%2fserver.py",
        "/static/..%2f..%2frecord.py", "/static/..%5cserver.py", "/static/page/../../server.py", "/static//server.py",
        "/static/label.js%00", "/static/%2fetc%2fpasswd", "/static/%252e%252e%252fserver.py", "/static/",
        "/static/label.js/../../server.py", "/../server.py", "/static/./label.js", "/static/LABEL.JS",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_files_of_the_pages(alone, path):
    status, answer = alone.person().ask("GET", path)
    assert (status, set(answer)) == (404, {"error"})


@pytest.mark.parametrize(
    ("origin", "site", "ours"),
    [
        (None, None, True), ("http://me:1", "same-origin", True), ("HTTP://ME:1", None, True), ("", None, False),
        ("http://me:2", None, False), ("http://[", None, False), ("http://me", None, False),
        ("http://me:1", "cross-site", False),
    ],
)  # fmt: skip
def test_a_request_is_ours_by_its_origin_and_its_site(origin, site, ours):
    assert from_here("me:1", origin, site) is ours


def test_loopback_is_this_machine_only():
    assert all(is_loopback(f"[{host}]:1" if ":" in host else f"{host}:1") for host in LOOPBACK)
    assert not any(map(is_loopback, ["", "me", "0.0.0.0", "127.0.0.1.me", "me:127", "[", "[::2]:1"]))
