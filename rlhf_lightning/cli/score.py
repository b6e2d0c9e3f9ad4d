"""``rlhf-lightning score``: rows in, rows with the score of a reward model out."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.cli.arguments import add_machine, check_new, device_of, parser, rows_to
from rlhf_lightning.console.streams import quiet, say
from rlhf_lightning.data.rows.bench import check_bench, is_bench
from rlhf_lightning.errors import DataError

if TYPE_CHECKING:
    from rlhf_lightning.data.readers.files import LocatedRow

AT_ONCE = 256  # rows between two writes
_ANSWERS = ("completion", "completions", "chosen", "rejected")
ADDED = ("score", "scores", "score_chosen", "score_rejected")
Exchanges = dict[str, tuple[Any, Any]]  # a prompt and an answer, by the column that gets the score


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
    words.add_argument("--out", metavar="FILE", help="a new file; without it rows go to standard output")
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
    check_new("--out", given.out)
    quiet()
    from rlhf_lightning.data.readers.files import read_rows

    rows = [(row, _exchanges(row)) for row in read_rows(given.rows)]  # before torch, whose import takes seconds
    from rlhf_lightning.evaluation.reward_bench import Judged, figures, judged_row
    from rlhf_lightning.models import Pretrained
    from rlhf_lightning.scoring.reward_model import RewardModelScorer, statistics

    source = Pretrained(given.reward, dtype=given.dtype)
    scorer = RewardModelScorer(source, normalise=not given.raw, micro_batch_size=given.batch_size)
    scorer.to(device_of(given))
    seen: list[float] = []
    judged: list[Judged] = []
    with rows_to(given.out) as write:
        for at in range(0, len(rows), AT_ONCE):
            part = rows[at : at + AT_ONCE]
            pairs = [(pair, row.row) for row, exchanges in part for pair in exchanges.values()]
            if scorer.tokenizer.chat_template:
                pairs = [(_asked(pair) if is_bench(row) else pair, row) for pair, row in pairs]
            found = scorer.score_texts(
                [p for (p, _), _ in pairs], [a for (_, a), _ in pairs], [row for _, row in pairs]
            )
            seen += found
            scores = iter(found)
            for row, exchanges in part:
                columns = _columns({name: next(scores) for name in exchanges})
                judged += [judged_row(row.row, columns["scores"])] if is_bench(row.row) else []
                write({**row.row, **columns})
    mean = math.fsum(seen) / len(seen)
    spread = math.sqrt(math.fsum((score - mean) ** 2 for score in seen) / len(seen))
    stored = statistics(given.reward)
    unit = "as the model gives them" if given.raw or stored is None else "held-out answers of its training: 0 ± 1"
    say(f"{len(seen)} answers: {mean:.3f} ± {spread:.3f} (mean and standard deviation; {unit})", sys.stderr)
    if judged:
        say("RewardBench 2: " + ", ".join(f"{name} {100 * n:.1f}" for name, n in figures(judged).items()), sys.stderr)


def _exchanges(row: LocatedRow) -> Exchanges:
    """What there is to score in a row.

    Raises:
        DataError: nothing, or it is not sound; names file and line.
    """
    from rlhf_lightning.data.rows.shared_prompt import split_shared_prompt
    from rlhf_lightning.data.rows.validate import validate_rows

    if there := [name for name in ADDED if name in row.row]:
        raise DataError(f"{row.where}: {there[0]}: is there already; rename the column or take it out")
    given = dict(row.row)
    if is_bench(given):
        try:
            check_bench(given)
        except ValueError as error:
            raise DataError(f"{row.where}: {error}") from error
        given["completions"] = [*given.pop("chosen"), *given.pop("rejected")]
    asked = dict(given)
    if isinstance(answers := asked.get("completions"), list) and answers:
        asked |= {"completions": [_filled(answer) for answer in answers], "ranks": list(range(len(answers)))}
    asked |= {name: _filled(asked[name]) for name in ("completion", "chosen", "rejected") if name in asked}
    ranked = {"chosen", "rejected", "completions"} & asked.keys()
    (found,) = validate_rows([row._replace(row=asked)], "comparisons" if ranked else "demonstrations")
    sound: Mapping[str, Any] = {**found.row, **{name: given[name] for name in _ANSWERS if name in given}}
    if "completions" in sound:
        return {str(place): (sound["prompt"], answer) for place, answer in enumerate(sound["completions"])}
    if "chosen" in sound:
        parts = (sound.get("prompt"), sound["chosen"], sound["rejected"])
        prompt, chosen, rejected = split_shared_prompt(*parts[1:]) if parts[0] is None else parts
        return {"score_chosen": (prompt, chosen), "score_rejected": (prompt, rejected)}
    if "completion" in sound:
        return {"score": (sound["prompt"], sound["completion"])}
    if "messages" not in sound or sound["messages"][-1]["role"] != "assistant":
        raise DataError(
            f"{row.where}: has no answer to score; write prompt and completion, or messages that end with one"
        )
    return {"score": (sound["messages"][:-1], sound["messages"][-1:])}


def _filled(answer: Any) -> Any:
    """An answer that says something: training refuses an empty one, and PPO scores it like any other."""
    if isinstance(answer, str):
        return answer if answer.strip() else "-"
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict) and answer[-1].get("content") == "":
        return [*answer[:-1], {**answer[-1], "content": "-"}]
    return answer


def _asked(exchange: tuple[Any, Any]) -> tuple[Any, Any]:
    """An exchange whose prompt is a user's message."""
    prompt, answer = exchange
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, answer


def _columns(scores: Mapping[str, float]) -> dict[str, Any]:
    """The columns to add: scores of numbered answers are one list."""
    return {"scores": list(scores.values())} if "0" in scores else dict(scores)
