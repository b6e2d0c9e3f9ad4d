"""The command that opens the arena, and the one that shows what people said."""

import json
import re
import signal

import pytest

from rlhf_lightning.people import arena as arenas
from rlhf_lightning.people import record as records
from rlhf_lightning.people import server as servers
from rlhf_lightning.people.entries import Entry
from rlhf_lightning.people.record import Record
from tests.support import commands, tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two policies, the second of which has a generation config that differs."""
    root = tmp_path_factory.mktemp("policies")
    for seed, name in enumerate(("sft", "ppo")):
        model = tiny.policy(seed, layers=1, scale=0.3)
        model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.5 + seed / 4, max_new_tokens=4 + seed)
        model.save_pretrained(root / name)
        tiny.tokenizer().save_pretrained(root / name)
    (root / "empty").mkdir()
    (root / "prompts.jsonl").write_text('{"prompt": "the food was"}\n{"prompt": "we left"}\n')
    (root / "long.jsonl").write_text(
        json.dumps({"prompt": "food"}) + "\n" + json.dumps({"prompt": "food " * 63}) + "\n"
    )
    return root


@pytest.fixture
def opened(monkeypatch, root, tmp_path):
    """Run the command with a server that ends at once; what it printed, and the arena it made."""

    class Ended:
        handle_exit = None

        def run(self, sockets):
            pass

    def call(*words):
        made = []
        with monkeypatch.context() as patch:
            patch.chdir(root)
            patch.setattr(servers, "web_server", lambda app: Ended())
            patch.setattr(signal, "signal", lambda kind, handler: None)
            kind = arenas.Arena
            patch.setattr(arenas, "Arena", lambda *given: made.append(kind(*given)) or made[-1])
            page = ["--record", str(tmp_path / "votes.db"), "--port", "0", "--no-browser"]
            done = commands.answer(["arena", *words, *page])
        return done, *made

    return call


@pytest.mark.parametrize("words", [["arena"], ["arena", "results"]])
def test_each_command_tells_its_words(words):
    done = commands.answer([*words, "--help"])
    assert done["code"] == 0 and done["out"].startswith(f"usage: rlhf-lightning {' '.join(words)}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sft"], "name two policies at least"),
        (["a=sft", "a=ppo"], "two policies have the same name; write NAME=FOLDER"),
        (["a b=sft", "ppo"], "a b: a name is of letters, digits"),
        (["sft", "ppo=nowhere"], "ppo=nowhere: is no folder of a policy"),
        (["sft", "empty"], "empty"),
        (["sft", "again=sft"], "have the same weights; there is nothing to compare"),
        (["sft", "ppo", "--prompts", "nothing.jsonl"], "nothing.jsonl: no such file"),
        (["sft", "ppo", "--prompts", "long.jsonl"], "long.jsonl:2: sft: prompt and answer do not fit the model"),
        (["sft", "ppo", "--record", "prompts.jsonl"], "is not a record of judgements and is left as it is"),
        (["sft", "ppo", "--seconds", "0"], "--seconds 0: must be above 0"),
        (["sft", "ppo", "--temperature", "0"], "--temperature=0.0: must be above 0"),
        (["sft", "ppo", "--max-new-tokens", "0"], "--max-new-tokens=0: must be at least 1"),
        (["sft", "ppo", "--host", "0.0.0.0"], "--host 0.0.0.0: others could write as anybody"),
        (["results", "nothing.db"], "nothing.db: no such file"),
        (["results", "prompts.jsonl"], "is not a record of judgements"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_work_is_said_in_one_sentence(root, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(root)
    page = [] if words[0] == "results" else ["--port", "0", "--no-browser"]
    page += [] if words[0] == "results" or "--record" in words else ["--record", str(tmp_path / "votes.db")]
    done = commands.answer(["arena", *words, *page])
    assert says in " ".join(done["err"].split())
    assert done["code"] in (2, 3, 5) and "Traceback" not in done["err"]
    assert not (tmp_path / "votes.db").exists()


def test_all_policies_sample_as_their_folders_agree_or_as_it_is_said(opened):
    done, arena = opened("sft", "p=ppo", "--prompts", "prompts.jsonl")
    assert "sft, p: all sampled at temperature 0.7, at most 5 tokens" in done["err"]
    assert [policy.name for policy in arena._policies] == ["sft", "p"] and arena.given == 2
    assert (arena.seconds, arena.reveal) == (120.0, False)
    more = ["--temperature", "2", "--top-p", "0.5", "--max-new-tokens", "3"]
    done, arena = opened("sft", "p=ppo", *more, "--seconds", "9", "--reveal")
    assert "all sampled at temperature 2, top_p 0.5, at most 3 tokens" in done["err"]
    assert arena._settings | {"stop": []} == {
        "temperature": 2.0, "top_p": 0.5, "top_k": 0, "max_new_tokens": 3, "min_new_tokens": 0, "stop": []}  # fmt: skip
    assert (arena.seconds, arena.reveal, arena.given) == (9.0, True, 0)


def test_where_folders_say_nothing_an_answer_takes_at_most_half_the_room(opened, root):
    for name in ("sft", "ppo"):
        (root / name / "generation_config.json").rename(root / name / "kept.json")
    try:
        assert "all sampled at temperature 1, at most 32 tokens" in opened("sft", "ppo")[0]["err"]
    finally:
        for name in ("sft", "ppo"):
            (root / name / "kept.json").rename(root / name / "generation_config.json")


def test_the_address_the_record_and_what_comes_next_are_told(opened, tmp_path):
    done, _ = opened("sft", "ppo", "--seed", "3")
    address, following = done["out"].splitlines()
    assert re.match(r"http://127\.0\.0\.1:\d+/   votes are kept in .*votes\.db; Ctrl-C ends$", address)
    assert re.match(r"next: rlhf-lightning arena results .*votes\.db$", following) and done["code"] == 0
    refused, *_ = opened("sft", "ppo", "--seed", "4")
    assert "was begun with seed 3; leave --seed out" in refused["err"]
    assert opened("sft", "ppo")[0]["code"] == 0
    Record(tmp_path / "votes.db").close()  # the lock is free


def test_without_a_name_the_record_lies_beside_the_last_policy(root, monkeypatch):
    monkeypatch.setattr(servers, "web_server", lambda app: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        commands.answer(["arena", str(root / "sft"), str(root / "ppo"), "--port", "0", "--no-browser"])
    assert records.items(root / "votes.db") == []


def test_a_real_policy_answers_and_the_vote_is_in_the_record(opened, tmp_path):
    from tests.people.arena_world import fought, vote

    _, arena = opened("sft", "ppo")
    with Record(tmp_path / "votes.db") as arena.record:
        *_, last = fought(arena, "ann", "the food was")
        arena.judge("ann", vote(last["item"], "left"))
    (item,) = records.items(tmp_path / "votes.db")
    assert sorted(item.row["policies"]) == ["ppo", "sft"] and all(item.completions)
    assert item.row["sampling"]["max_new_tokens"] == 5


def votes(path, ranks):
    with Record(path, []) as record:
        for number, said in enumerate(ranks):
            item = record.add_item(f"p{number}", ["a", "b"], {"policies": ["ppo", "sft"], "weights": ["1", "2"],
                                                             "asked_by": "ann"})  # fmt: skip
            kind = "skip" if said is None else "ranking"
            record.add(Entry(f"the-key-{number}", kind, item.number, "ann", said, (0, 1), 1.0))
    return str(path)


def test_results_show_win_rates_and_ratings_as_tables_and_as_json(tmp_path):
    path = votes(tmp_path / "votes.db", [(1, 2)] * 6 + [(2, 1)] * 2 + [(1, 1)] * 2 + [None])
    done = commands.answer(["arena", "results", path])
    lines = [" ".join(line.replace("│", " ").split()) for line in done["out"].splitlines()]
    assert lines[0] == "votes: 10; people: 1; skipped: 1; the answer at the left wins 70 % [40, 89]"
    assert "ppo vs sft 6 2 2 0 70 % [40, 89]" in lines
    # log(7 / 3) between both, in points of chess 147, half above and half below 0.
    assert any(line.startswith("ppo +74 [") for line in lines) and any(line.startswith("sft -74 [") for line in lines)
    told = json.loads(commands.answer(["arena", "results", path, "--json"])["out"])
    assert (told["votes"], told["pairs"][0]["wins"], told["ratings"][0]["policy"]) == (10, 6, "ppo")


def test_results_say_where_nobody_has_voted_and_where_a_rating_is_held_back(tmp_path):
    assert commands.answer(["arena", "results", votes(tmp_path / "a.db", [])])["out"] == "nobody has voted yet\n"
    done = commands.answer(["arena", "results", votes(tmp_path / "b.db", [(1, 2)] * 3)])
    assert "so far a policy has won or lost all, so that each rating is drawn to 0 by one tied vote" in done["out"]
