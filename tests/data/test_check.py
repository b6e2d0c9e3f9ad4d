"""`rlhf-lightning data check`."""

import subprocess
import sys

import pytest

from rlhf_lightning.config.locations import CONF_DIR
from rlhf_lightning.data.check import STAGES, check
from rlhf_lightning.errors import DataError

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
