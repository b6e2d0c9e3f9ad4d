"""`rlhf-lightning data check`."""

import json
import re
import subprocess
import sys
import tracemalloc

import pytest

from rlhf_lightning.config.locations import CONF_DIR
from rlhf_lightning.console.display import LEARNED_END, LEARNED_START
from rlhf_lightning.data import DemonstrationData
from rlhf_lightning.data.check import STAGES, check
from rlhf_lightning.errors import ConfigError, DataError
from tests.support import tiny

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
RANKING = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}


def test_every_stage_that_reads_rows_can_be_checked():
    assert set(STAGES) == {path.stem for path in (CONF_DIR / "stage").glob("*.yaml")} - {"pipeline"}


def test_rows_are_counted_by_type_with_repeats_and_leaks(write):
    path, held_out = write([PAIR, RANKING, PAIR, PAIR | {"prompt": "q"}]), write([RANKING], "v.jsonl")
    assert check([str(path), "--stage", "reward", "--validation", str(held_out)]).splitlines()[:3] == [
        "5 rows for reward, 3 prompt+chosen+rejected, 2 prompt+completions+ranks",
        "1 of them repeat an earlier one",
        "1 validation rows have prompts that are also in training",
    ]


def test_bad_rows_are_listed_within_the_budget_and_an_error_above_it(write):
    path = write([PAIR, PAIR | {"chosen": ""}, {"text": "t"}])
    problems = [
        f"{path}:2: chosen: is empty; fill it or delete the row.",
        f"{path}:3: found a text row, which is for supervised fine-tuning (demonstrations); the reward model or DPO"
        " (comparisons) takes prompt+completions+ranks or prompt+chosen+rejected or chosen+rejected.",
    ]
    counts = "1 rows for dpo, 1 prompt+chosen+rejected"
    words = [str(path), "--stage", "dpo", "--max-bad-rows"]
    assert check([*words, "2"]).splitlines()[:4] == [counts, "2 rows are left out:", *problems]
    with pytest.raises(DataError) as refused:
        check([*words, "1"])
    assert str(refused.value).splitlines() == [*problems, "2 of 3 rows cannot be used (max_bad_rows is 1).", counts]


def test_one_fault_of_all_rows_is_spelled_out_for_the_first_of_them(write):
    path = write([{"prompt": ""}] * 30 + [{"text": "t"}] + [{"prompt": 1}])
    with pytest.raises(DataError) as refused:
        check([str(path), "--stage", "ppo"])
    lines = str(refused.value).splitlines()
    assert [line.split(":")[1] for line in lines[:7]] == ["1", "2", "3", "4", "5", "31", "32"]
    assert lines[7:9] == ["... and 25 more", "32 of 32 rows cannot be used."]


def command(*words):
    code = (
        "import sys; from rlhf_lightning.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'lightning', 'transformers', 'hydra', 'omegaconf'} & set(sys.modules)"
    )
    line = [sys.executable, "-c", code, "data", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=CONF_DIR.parent, timeout=60)


def test_the_command_ends_with_0_2_or_3_and_imports_nothing_heavy(write):
    good, bad = write([PAIR]), write([{"prompt": ""}], "bad.jsonl")
    done = command("check", good, "--stage", "reward")
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, "1 rows for reward, 1 prompt+chosen+rejected")
    done = command("check", good, bad, "--stage", "ppo")
    assert done.returncode == 3 and f"DataError: {bad}:1: prompt: is empty" in done.stderr, done.stderr
    for words in (["check", good], ["check", good, "--stage", "rewrad"], ["chek", good], ["check", "--stage", "ppo"]):
        assert command(*words).returncode == 2, words


def test_what_is_odd_is_told_once_with_its_count(write):
    rows = [
        PAIR,
        PAIR | {"chosen": "b", "rejected": "a"},
        RANKING | {"ranks": [1, 1], "source": "x"},
        PAIR | {"chosen": "ccc"},
    ]
    path = write(rows)
    assert check([str(path), "--stage", "reward"]).splitlines()[1:6] == [
        "1 times one row says the opposite of another",
        "1 rows are tied and left out",
        "columns that training does not read: source",
        f"{path}:1: there is no white space between prompt and answer, which are learned as '...pa...' (4 rows)",
        "the better answer is the longer one in 100% of 1 pairs",
    ]
    labelled = [{"prompt": "p ", "completion": c, "label": y} for c, y in (("long enough", True), ("no", False))]
    assert "good answers have 11 characters and bad ones 2 on average (1 and 1 answers)" in check(
        [str(write(labelled, "l.jsonl")), "--stage", "kto"]
    )


def test_facts_for_scripts_are_one_object(write):
    path = write([PAIR, PAIR, {"text": "t"}])
    words = [str(path), "--stage", "dpo", "--json", "--max-bad-rows"]
    facts = json.loads(check([*words, "1"]))
    assert [facts[name] for name in ("rows", "used", "duplicates", "bad_rows")] == [2, 2, 1, 1]
    assert facts["characters"] == {"mean": 3.0, "longest": 3, "rows_up_to": {"3": 2}}
    with pytest.raises(DataError) as refused:
        check([*words, "0"])
    assert json.loads(str(refused.value))["problems"][0].startswith(f"{path}:3: found a text row")


def test_rows_are_shown_with_what_is_learned(write):
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    for stage, row, text in (
        ("sft", {"messages": turns}, "user: Q\nassistant: [A]"),
        ("sft", {"text": "T"}, "[T]"),
        ("dpo", {"prompt": "Q ", "chosen": "A", "rejected": "B"}, "Q [A]\n--- PATH:1 (rejected)\nQ [B]"),
        ("kto", {"prompt": "Q ", "completion": "A", "label": True}, "Q [A]"),
        ("ppo", {"prompt": "Q"}, "Q"),
    ):
        path = write([row, row])
        shown = (
            check([str(path), "--stage", stage, "--show", "1"]).replace(LEARNED_START, "[").replace(LEARNED_END, "]")
        )
        label = {"dpo": " (chosen)", "kto": " (label True)"}.get(stage, "")
        assert shown.endswith(f"--- {path}:1{label}\n{text}".replace("PATH", str(path)))


def test_the_words_of_a_run_say_what_the_columns_are(write):
    path = write([{"question": "Q ", "answer": "A"}])
    assert "1 rows for sft" in check(
        [str(path), "--stage", "sft", "data.columns={prompt: question, completion: answer}"]
    )
    words = [
        "data.prompt_template=Q: {question}",
        "data.columns={completion: answer}",
        str(path),
        "--stage",
        "sft",
        "--show",
        "1",
    ]
    assert f"Q: Q {LEARNED_START}A" in check(words)
    for word in ("data.colums={a: b}", "data.columns={a", "data.columns=a"):
        with pytest.raises(ConfigError, match=re.escape(word)):
            check([str(path), "--stage", "sft", word])


def test_with_a_tokenizer_the_counts_are_those_of_the_stage(write, tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    rows = [
        {"prompt": "the food ", "completion": text} for text in ("was good", "was", "was good and very kind", "was")
    ]
    path = write(rows)
    facts = json.loads(
        check([str(path), "--stage", "sft", "--model", str(tmp_path / "model"), "--max-length", "6", "--json"])
    )
    data = DemonstrationData(path, None, tiny.tokenizer(), batch_size=2, validation_fraction=0.0, max_length=6)
    data.setup("fit")
    assert facts["encoded"] == data.report and data.report["dropped"] == 1
    assert facts["tokens"]["longest"] == 5
    shown = check([str(path), "--stage", "sft", "--model", str(tmp_path / "model"), "--show", "1"])
    assert shown.endswith(f"the food{LEARNED_START}was good <eos>{LEARNED_END}"), shown


def test_a_large_file_takes_little_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = json.dumps({"prompt": "Q" * 200 + " ", "completion": "A" * 300}) + "\n"
    with path.open("w") as file:
        for i in range(25_000):
            file.write(line.replace("Q", str(i % 10)))
    tracemalloc.start()
    check([str(path), "--stage", "sft"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6 < 1.2e7 < path.stat().st_size
