"""``rlhf-lightning score``: rows in, rows with the score of a reward model out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rlhf_lightning.cli.arguments import add_machine, check_new, device_of, parser
from rlhf_lightning.cli.resumed import resumed_rows
from rlhf_lightning.console.streams import quiet, say
from rlhf_lightning.data.exchanges import read_exchanges
from rlhf_lightning.rules.ranges import require


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    words = parser(
        "score",
        "Score answers with a reward model as PPO does: read at the EOS token, normalised with the mean and standard "
        "deviation that its folder stores. Rows with prompt+completion or messages get a column score, "
        "prompt+chosen+rejected two, prompt+completions a list. Rows in the format of RewardBench 2, whose chosen and "
        "rejected are lists, get a list too, and the figures of that benchmark are told.",
        "rlhf-lightning score runs/mine/reward answers.jsonl --out scored.jsonl",
    )
    words.add_argument("reward", metavar="REWARD", help="folder of a reward model")
    words.add_argument("rows", metavar="ROWS", help="a file, in any format that training reads")
    words.add_argument("--out", metavar="FILE", help="a new file; without it rows go to standard output. What was "
                       "interrupted goes on with the same command")  # fmt: skip
    words.add_argument("--raw", action="store_true", help="the output of the model, not normalised")
    words.add_argument("--batch-size", type=int, default=16, metavar="N", help="answers at once (16)")
    add_machine(words)
    return words


def run(words: Sequence[str]) -> None:
    """Score the rows of a file.

    Raises:
        DataError: a row without an answer, or that has a score already; names file and line.
        ConfigError: the new file is there already.
        CheckpointError: no reward model is there.
    """
    given = arguments().parse_args(words)
    require("--batch-size", given.batch_size, at_least=1)
    check_new("--out", given.out)
    quiet()
    rows = read_exchanges(given.rows)  # before torch, whose import takes seconds
    from rlhf_lightning.evaluation.scored import AT_ONCE, scored, sentences, summary
    from rlhf_lightning.models import Pretrained
    from rlhf_lightning.scoring.reward_model import RewardModelScorer, statistics

    source = Pretrained(given.reward, dtype=given.dtype)
    scorer = RewardModelScorer(source, normalise=not given.raw, micro_batch_size=given.batch_size)
    scorer.to(device := device_of(given))
    with resumed_rows(given, ("reward", "rows"), device, AT_ONCE) as (done, write):
        for row in scored(rows[len(done) :], scorer):
            write(row)
            done.append(row)
    for sentence in sentences(summary(done), not given.raw and statistics(given.reward) is not None):
        say(sentence, sys.stderr)
