"""``rlhf-lightning data check``: what a stage would make of files, without a model and without torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.preview import previews
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.data.rows.shape import Shape
from rlhf_lightning.data.rows.types import StageKind
from rlhf_lightning.data.rows.validate import rows_of, without_garbage_collection
from rlhf_lightning.data.survey import Survey
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.rules.stages import STAGES

if TYPE_CHECKING:
    from rlhf_lightning.data.readers.files import LocatedRow

SHOWN = 20  # problems that are spelled out
READERS = {name: stage.rows for name, stage in STAGES.items() if stage.rows}
_SHAPE = ("columns", "prompt_template", "roles")


def check(words: Sequence[str]) -> str:
    """The report on the files that a command line names; wrong words end the process with code 2.

    Raises:
        DataError: more bad rows than ``--max-bad-rows``, or a file that cannot be read; the message is the report.
        ConfigError: a ``data.`` key that is none, or cannot be read.
    """
    given = parser().parse_args([word for word in words if not word.startswith("data.")])
    shape = _shape([word for word in words if word.startswith("data.")])
    kind, problems = READERS[given.stage], Problems(SHOWN)
    samples: list[LocatedRow] = []
    train = _survey(given.files, kind, problems, shape, bool(given.validation), (samples, given.show))
    held_out = _survey(given.validation, kind, problems, shape, True, ([], 0))
    good = train.rows + held_out.rows
    leaks = train.repeats.leaked(held_out.repeats)
    encoded = _encoded(given, kind, shape) if given.model and problems.count <= given.max_bad_rows and good else None
    if given.json:
        facts = _facts(given.stage, train, held_out, problems, leaks, encoded)
        text = json.dumps(facts, ensure_ascii=False)
        if problems.count > given.max_bad_rows or not good:
            raise DataError(text)
        return text
    lines = _counts(given.stage, kind, train, held_out, leaks)
    try:
        problems.raise_above(given.max_bad_rows, good)
    except DataError as error:
        raise DataError("\n".join([str(error), *lines])) from None
    lines += [f"{problems.count} rows are left out:", str(problems)] if problems.count else []
    lines += problems.notes() + train.bias()
    lines += encoded.lines() if encoded else train.lengths.lines("characters")
    return "\n".join([*lines, *previews(samples, kind, encoded.tokenizer if encoded else None)])


def parser() -> argparse.ArgumentParser:
    """What the command line takes, besides ``data.columns``, ``data.prompt_template`` and ``data.roles``."""
    words = argparse.ArgumentParser("rlhf-lightning data check", allow_abbrev=False)
    words.add_argument("files", nargs="+", metavar="FILE")
    words.add_argument("--stage", required=True, choices=READERS)
    words.add_argument("--validation", nargs="+", metavar="FILE", default=[])
    words.add_argument("--max-bad-rows", type=int, default=0)
    words.add_argument("--model", metavar="FOLDER", help="whose tokenizer encodes the rows, as the stage does")
    words.add_argument("--max-length", type=int, metavar="TOKENS", help="of the stage; with --model")
    words.add_argument("--show", type=int, default=0, metavar="ROWS", help="the first rows, what is learned marked")
    words.add_argument("--json", action="store_true", help="one object for scripts")
    return words


def _survey(
    files: Sequence[str], kind: StageKind, problems: Problems, shape: Shape, leaks: bool, kept: tuple[list[Any], int]
) -> Survey:
    """The rows of the files, of which the first few are kept."""
    samples, most = kept
    found = Survey(kind, leaks)
    with without_garbage_collection():
        for file in files:
            for name, row in rows_of(Path(file).expanduser(), kind, problems, shape=shape):
                found.add(row.row, name)
                if len(samples) < most:
                    samples.append(row)
    return found


def _counts(stage: str, kind: str, train: Survey, held_out: Survey, leaks: int) -> list[str]:
    types = train.types + held_out.types
    good = train.rows + held_out.rows
    lines = [f"{good} rows for {stage}" + "".join(f", {count} {name}" for name, count in types.most_common())]
    if duplicates := train.repeats.duplicates():
        lines.append(f"{duplicates} of them repeat an earlier one")
    if contradictions := train.repeats.contradictions():
        lines.append(f"{contradictions} times one row says the opposite of another")
    if leaks:
        what = "are" if kind == "demonstrations" else "have prompts that are"
        lines.append(f"{leaks} validation rows {what} also in training")
    unused = {"tied": "rows are tied and left out", "undecided": "answers are as good as bad and left out"}
    lines += [f"{train.unused[name]} {text}" for name, text in unused.items() if train.unused[name]]
    if others := sorted(train.other):
        what = "reward functions get" if kind == "prompts" else "training does not read"
        lines.append(f"columns that {what}: {', '.join(name[:40] for name in others[:20])}")
    return lines


def _facts(
    stage: str, train: Survey, held_out: Survey, problems: Problems, leaks: int, encoded: _Encoded | None
) -> dict[str, Any]:
    facts = {"stage": stage, **train.facts(), "bad_rows": problems.count, "problems": problems.first}
    facts |= {"notes": problems.notes(), "leaks": leaks}
    if held_out.rows:
        facts["validation"] = held_out.facts()
    return facts | ({"encoded": encoded.report, "tokens": encoded.lengths.facts()} if encoded else {})


def _shape(words: Sequence[str]) -> Shape:
    """The shape that ``data.KEY=VALUE`` words give, values as YAML."""
    import yaml

    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.removeprefix("data.").partition("=")
        if key not in _SHAPE:
            raise ConfigError(f"{word}: write data.{', data.'.join(_SHAPE)}; files stand without a key")
        try:
            found[key] = value if key == "prompt_template" else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{word}: cannot be read; write data.{key}={{prompt: question}}") from error
        if key != "prompt_template" and not isinstance(found[key], dict):
            raise ConfigError(f"{word}: write names in braces, for example data.{key}={{prompt: question}}")
    return Shape(**found)


class _Encoded:
    """What the data module of the stage makes of the files."""

    def __init__(self, data: Any, tokenizer: Any) -> None:
        from rlhf_lightning.data.survey import Histogram

        self.tokenizer, self.report, self.lengths = tokenizer, dict(data.report), Histogram()
        for item in [*data.train_items, *data.val_items]:
            for width in item.widths:
                self.lengths.add(width)

    def lines(self) -> list[str]:
        """The counts of the stage, and the lengths of what is left after its limits."""
        counts = ", ".join(f"{count} {name}" for name, count in self.report.items() if count)
        return [f"encoded: {counts}", *self.lengths.lines("tokens, after the limits")]


def _encoded(given: argparse.Namespace, kind: StageKind, shape: Shape) -> _Encoded:
    from rlhf_lightning.console.streams import quiet

    quiet()
    from rlhf_lightning.data import ComparisonData, DemonstrationData, FeedbackData, PromptData
    from rlhf_lightning.models.loading import load_tokenizer

    modules = {
        "demonstrations": DemonstrationData, "comparisons": ComparisonData, "feedback": FeedbackData,
        "prompts": PromptData,
    }  # fmt: skip
    tokenizer = load_tokenizer(given.model)
    limit = {"max_prompt_length" if kind == "prompts" else "max_length": given.max_length} if given.max_length else {}
    options: dict[str, Any] = {"batch_size": 2, "validation_fraction": 0.0, "max_bad_rows": given.max_bad_rows} | limit
    make: Any = modules[kind]
    data = make(given.files, given.validation or None, tokenizer, shape=shape, **options)
    data.setup("validate")
    return _Encoded(data, tokenizer)
