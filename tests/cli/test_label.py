"""The command that serves the page, exports and imports."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from rlhf_lightning.people import record as records
from rlhf_lightning.people import server as servers
from rlhf_lightning.people.entries import Entry
from rlhf_lightning.people.record import Record
from tests.people.serving import Person, a_server, items_of
from tests.support import commands

ROWS = [{"prompt": f"prompt {n}", "completions": ["a", "b"], "scores": [0.0, n / 4]} for n in range(1, 5)]
# The command, and what it has imported when it ends.
WATCHED = """
import sys
from rlhf_lightning.cli import main
try:
    main.main()
finally:
    print("heavy:", *sorted({"torch", "lightning", "transformers"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def candidates(tmp_path):
    path = tmp_path / "candidates.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def labels(tmp_path):
    """A record with a ranking, a skip, and one that was taken back."""
    path = tmp_path / "labels.db"
    with Record(path, items_of([(row["prompt"], row["completions"]) for row in ROWS])) as record:
        record.add(Entry("key-0001", "ranking", 1, "ann", (2, 1), (0, 1), 1.0))
        record.add(Entry("key-0002", "skip", 2, "ann", None, (0, 1), 1.0))
        record.add(Entry("key-0003", "ranking", 3, "ann", (1, 2), (0, 1), 1.0))
        record.add(Entry("key-0004", "undo", 3, "ann", None, (0, 1), 0.0, takes_back=3))
    return path


@pytest.fixture
def served(monkeypatch, candidates):
    """Run the command with a server that ends at once; its words, and what the command printed."""

    class Ended:
        handle_exit = None

        def run(self, sockets):
            pass

    def call(*words):
        monkeypatch.setattr(servers, "web_server", lambda app: Ended())
        monkeypatch.setattr(signal, "signal", lambda kind, handler: None)
        done = commands.answer(["label", str(candidates), "--port", "0", "--no-browser", *words])
        monkeypatch.undo()
        return done

    return call


@pytest.mark.parametrize("words", [["label"], ["label", "export"], ["label", "import"]])
def test_each_command_tells_its_words(words):
    done = commands.answer([*words, "--help"])
    assert done["code"] == 0
    assert done["out"].startswith(f"usage: rlhf-lightning {' '.join(words)}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name candidates (a file or a folder), or write --demo"),
        (["{candidates}", "--demo"], "name candidates (a file or a folder), or write --demo"),
        (["no_file.jsonl"], "no_file.jsonl: no such file"),
        (["{folder}/none"], "none: no such file"),
        (["{folder}"], "has no candidates.jsonl; stage=rank judge=none writes it"),
        (["{candidates}", "--order", "best"], "--order best: choose one of random, file, uncertain, disagreement"),
        (["{candidates}", "--overlap", "-1"], "--overlap=-1: must be at least 0"),
        (["{candidates}", "--repeats", "0.9"], "--repeats=0.9: must be at least 0 and at most 0.5"),
        (["{candidates}", "--rating", "7"], "--rating 7: write the lowest and the highest grade, 1-7"),
        (["{candidates}", "--rating", "7-1"], "--rating 7-1: write the lowest"),
        (["{candidates}", "--host", "0.0.0.0"], "--host 0.0.0.0: others could write as anybody; name who may"),
        (["{candidates}", "--host", "::", "--annotators", " , "], "--host ::: others could write as anybody"),
        (["{candidates}", "--host", "192.0.2.1", "--annotators", "ann"], "--host 192.0.2.1 --port 8321: "),
        (["{candidates}", "--port", "70000"], "--port 70000: "),
        (["{candidates}", "--annotators", "a\x1bb"], "name: write 1 to 100 characters"),
        (["{candidates}", "--record", "{candidates}"], "is not a record of judgements and is left as it is"),
        (["export", "no_record.db"], "no_record.db: no such file; `rlhf-lightning label CANDIDATES --record FILE`"),
        (["export", "{candidates}"], "is not a record of judgements and is left as it is"),
        (["export", "no_record.db", "--out", "{candidates}"], "--out"),
        (["import", "no_record.db", "{candidates}"], "no_record.db: no such record"),
        (["import", "{candidates}", "{candidates}"], "is not a record of judgements and is left as it is"),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_in_one_sentence(tmp_path, candidates, words, says):
    (tmp_path / "empty").mkdir()
    before = candidates.read_bytes()
    words = [word.format(candidates=candidates, folder=tmp_path / "empty") for word in words]
    done = commands.answer(["label", *words])
    assert says in " ".join(done["err"].split())
    assert done["code"] in (2, 3) and "Traceback" not in done["err"] and len(done["err"].splitlines()) <= 4
    assert candidates.read_bytes() == before


def test_where_links_are_needed_nothing_is_written_before_that_is_said(tmp_path, candidates):
    commands.answer(["label", str(candidates), "--host", "0.0.0.0"])
    assert [path.name for path in tmp_path.iterdir()] == ["candidates.jsonl"]


def test_a_port_that_is_taken_is_said_and_the_record_is_free_again(candidates, tmp_path):
    with servers.listen("127.0.0.1", 0) as other:
        port = str(other.getsockname()[1])
        done = commands.answer(["label", str(candidates), "--port", port, "--no-browser"])
    assert done["code"] == 2 and f"--port {port}: " in done["err"] and "or --port 0 for a free one" in done["err"]
    Record(tmp_path / "labels.db").close()


def test_a_record_that_another_server_has_is_refused(candidates, tmp_path):
    with a_server(tmp_path, [(row["prompt"], row["completions"]) for row in ROWS]):
        done = commands.answer(["label", str(candidates), "--port", "0", "--no-browser"])
    assert done["code"] == 5 and "labels.db: in use by process" in done["err"]


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_package_that_is_not_there_is_named_with_what_installs_it(candidates, monkeypatch, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "rlhf_lightning.people.server")
    monkeypatch.delattr("rlhf_lightning.people.server")
    done = commands.answer(["label", str(candidates), "--port", "0"])
    assert done["code"] == 2
    assert f"rlhf-lightning label needs {package}: pip install 'rlhf_lightning[label]'" in " ".join(done["err"].split())


def links(done):
    return dict(re.findall(r"^(.+): http://\S+/enter/(\S+)$", done["out"], re.MULTILINE))


def test_each_person_and_who_leads_get_a_link_once(served, tmp_path):
    first = served("--annotators", "ann, bob,ann", "--host", "0.0.0.0")
    assert first["code"] == 0 and set(links(first)) == {"ann", "bob", "who leads"}
    again = served("--annotators", "ann,cat")
    assert set(links(again)) == {"cat"} and "links of before: ann (--new-links makes new ones)" in again["out"]
    renewed = links(served("--annotators", "ann,cat", "--new-links"))
    assert set(renewed) == {"ann", "cat", "who leads"}
    assert len({*links(first).values(), *links(again).values(), *renewed.values()}) == 7


def test_the_record_lies_beside_the_candidates_and_what_comes_next_is_told(served, tmp_path):
    done = served()
    assert done["code"] == 0 and links(done) == {}
    assert [item.prompt for item in records.items(tmp_path / "labels.db")] == [row["prompt"] for row in ROWS]
    address, following = done["out"].splitlines()
    assert re.match(r"http://127\.0\.0\.1:\d+/   judgements are kept in .*labels\.db; Ctrl-C ends$", address)
    assert following.startswith("next: rlhf-lightning stages=[rank,reward] rank.human_ranks=")
    assert following.endswith("labels.db (task and model as before), or `label` again to go on")


def test_the_words_of_the_page_reach_it(served, monkeypatch):
    seen = []
    app = servers.App
    monkeypatch.setattr(servers, "App", lambda service, access: seen.append(service) or app(service, access))
    words = ["--question", "Why?", "--rating", "0-4", "--flag", "rude", "--flag", "wrong", "--flag", "rude"]
    served(*words, "--order", "uncertain", "--overlap", "1", "--seed", "3")
    (service,) = seen
    assert service.form.public() == {
        "question": "Why?", "rating": {"low": 0, "high": 4, "label": "overall quality"}, "flags": ["rude", "wrong"],
        "note": True,
    }  # fmt: skip
    assert [service._queue._sequence, service.record.seed] == [[1, 2, 3, 4], 3]


def test_a_record_is_exported_whole_and_imported_once(labels, tmp_path):
    out = tmp_path / "labels.jsonl"
    assert commands.answer(["label", "export", str(labels), "--out", str(out)])["code"] == 0
    assert [json.loads(line)["kind"] for line in out.read_text().splitlines()] == ["ranking", "skip", "ranking", "undo"]
    assert commands.answer(["label", "export", str(labels)])["out"] == out.read_text()
    done = commands.answer(["label", "import", str(labels), str(out)])
    assert (done["code"], done["out"]) == (0, "0 lines are new, 4 were there already\n")
    assert commands.answer(["label", "export", str(labels), "--out", str(out)])["code"] == 2
    assert len(out.read_text().splitlines()) == 4


@pytest.mark.parametrize("method", ["weighted", "majority"])
def test_merged_rankings_pass_the_check_of_the_stage_that_trains_on_them(labels, tmp_path, method):
    out = tmp_path / "rankings.jsonl"
    done = commands.answer(["label", "export", str(labels), "--rankings", method, "--out", str(out)])
    assert done["code"] == 0
    assert [json.loads(line)["ranks"] for line in out.read_text().splitlines()] == [[2, 1]]
    checked = commands.answer(["data", "check", str(out), "--stage", "reward"])
    assert checked["code"] == 0, checked["err"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_page_is_there_until_the_command_is_stopped_and_then_all_is_in_the_record(tmp_path, stop):
    path = tmp_path / "labels.db"
    words = ["label", "--demo", "--no-browser", "--port", "0", "--record", str(path)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = subprocess.Popen([sys.executable, "-c", WATCHED, *words], env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    ends = threading.Timer(60, command.kill)
    ends.start()
    try:
        host = re.match(r"http://(127\.0\.0\.1:\d+)/ ", command.stdout.readline()).group(1)
        ann = Person(host, "ann")
        status, page = ann.ask("GET", "/")
        item = ann.next()
        sent = ann.send(item, list(range(1, 1 + len(item["answers"]))))
        command.send_signal(stop)
        out, err = command.communicate()
        ann.wire.close()
    finally:
        ends.cancel()
        command.kill()
        command.wait()
    assert (status, page.startswith("<!doctype html>")) == (200, True)
    assert (sent[0], sent[1]["judgement"]) == (200, 1)
    assert command.returncode == 0
    assert re.search(r"(?m)^next: rlhf-lightning stages=\[rank,reward\] rank\.human_ranks=\S*labels\.db ", out)
    assert err == "heavy:\n"
    (said,) = records.judgements(path)
    assert (said.annotator, said.item, said.order) == ("ann", item["id"], tuple(item["order"]))
    assert records.check(path) == 1
    Record(path).close()  # the lock is free
