"""``rlhf-lightning label``: a page on which people rank answers, and what they said as a file."""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.checkpoint.provenance import sha256
from rlhf_lightning.cli.arguments import check_new, parser, rows_to
from rlhf_lightning.cli.pages import add_page, people_of, serve
from rlhf_lightning.console.display import plain
from rlhf_lightning.console.streams import say
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.people.access import Access
from rlhf_lightning.people.candidates import candidates_file, read_candidates
from rlhf_lightning.people.exchange import exported, import_into
from rlhf_lightning.people.form import Form
from rlhf_lightning.people.judgements import Item
from rlhf_lightning.people.queue import Plan
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.training import read_record

if TYPE_CHECKING:
    from rlhf_lightning.people.server import App

RECORD = "labels.db"
_DEMO = 40  # prompts


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    words = parser(
        "label",
        "Open a page on which people rank answers. `label export RECORD --out FILE` writes what they said, "
        "`label import RECORD FILE` takes such a file in; both have their own --help.",
        "rlhf-lightning label runs/mine/rankings",
    )
    words.add_argument("candidates", metavar="CANDIDATES", nargs="?",
                       help="file of rows with prompt and completions, or the folder of a rank stage")  # fmt: skip
    words.add_argument("--demo", action="store_true", help="candidates of the miniature task, to try the page")
    words.add_argument("--record", metavar="FILE", help="where judgements are kept (labels.db beside the candidates)")
    add_page(words)
    words.add_argument("--overlap", type=int, default=5, metavar="M", help="every M-th item goes to everybody (5), the "
                       "others to one person; 1: all; 0: none")  # fmt: skip
    words.add_argument("--repeats", type=float, default=0.0, metavar="SHARE", help="of items shown again to the same "
                       "person (0)")  # fmt: skip
    words.add_argument("--order", default="random", help="random, file, uncertain (scores of the rows) or disagreement")
    words.add_argument("--question", default="Which answer is better?", help="above each item")
    words.add_argument("--rating", metavar="1-7", help="grade each answer, too")
    words.add_argument("--flag", action="append", default=[], metavar="NAME", help="can be ticked at each answer; may "
                       "be given more than once")  # fmt: skip
    words.add_argument("--seed", type=int, help="of the order of items and answers")
    return words


def run(words: Sequence[str]) -> None:
    """Serve the page until it is stopped, or export, or import.

    Raises:
        ConfigError: a word that does not fit, an address that is taken, or the extra `label` is missing.
        DataError: candidates or record are not what they should be.
        CheckpointError: another server has the record.
    """
    if words and words[0] in ("export", "import"):
        return (_export if words[0] == "export" else _import)(words[1:])
    given = arguments().parse_args(words)
    logging.basicConfig(format="%(message)s")
    form = Form(given.question, _rating(given.rating), flags=tuple(dict.fromkeys(given.flag)))
    plan = Plan(given.order, given.overlap, given.repeats)
    people_of(given)  # before there is a record
    with _record(given) as record:
        serve("label", given, record, partial(_app, record, form, plan))
    ranks = f"rank.human_ranks={plain(str(record.path))}"
    say(f"next: rlhf-lightning stages=[rank,reward] {ranks} (task and model as before), or `label` again to go on")
    return None


def _app(record: Record, form: Form, plan: Plan, access: Access) -> App:
    from rlhf_lightning.people.server import App
    from rlhf_lightning.people.service import Service

    return App(Service(record, form, plan), access)


def _record(given: argparse.Namespace) -> Record:
    if given.demo == (given.candidates is not None):
        raise ConfigError("rlhf-lightning label: name candidates (a file or a folder), or write --demo")
    if given.demo:
        return Record(given.record or f"runs/label_demo/{RECORD}", demo_items, given.seed)
    file = candidates_file(given.candidates).absolute()
    folder = file.parent.parent if (file.parent / "provenance.json").exists() else file.parent  # which is verified
    source = sha256(file) if file.is_file() else ""
    return Record(given.record or folder / RECORD, lambda: read_candidates(file), given.seed, source)


def demo_items() -> list[Item]:
    """Prompts of the miniature task with four answers each, of mixed quality."""
    from rlhf_lightning.tasks.miniature.grammar import DEMONSTRATIONS, TEXTS, answer, heldout_prompts

    draw = random.Random(0)
    items = []
    for number, prompt in enumerate(heldout_prompts()[:_DEMO], 1):
        answers = dict.fromkeys(answer(draw, prompt, style) for style in (TEXTS, TEXTS, DEMONSTRATIONS, DEMONSTRATIONS))
        if len(answers) > 1:
            items.append(Item(number, prompt, tuple(answers), {"prompt": prompt, "completions": list(answers)}))
    return items


def _rating(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, _, high = text.partition("-")
    if not (low.isdigit() and high.isdigit() and 0 <= int(low) < int(high) <= 10):
        raise ConfigError(f"--rating {text}: write the lowest and the highest grade, 1-7")
    return int(low), int(high)


def export_arguments() -> argparse.ArgumentParser:
    """What ``label export`` takes."""
    take = parser("label export", "Write a record as JSON lines: each judgement with its item, or merged rankings for "
                  "training.", "rlhf-lightning label export labels.db --out labels.jsonl")  # fmt: skip
    take.add_argument("record", metavar="RECORD")
    take.add_argument("--rankings", choices=("weighted", "majority"), help="one ranking per item instead, people by "
                      "weight, or by majority")  # fmt: skip
    take.add_argument("--out", metavar="FILE", help="a new file; without it rows go to standard output")
    return take


def import_arguments() -> argparse.ArgumentParser:
    """What ``label import`` takes."""
    take = parser("label import", "Add what `label export` wrote to a record of the same candidates. What is there "
                  "already is left as it is.", "rlhf-lightning label import labels.db bobs_labels.jsonl")  # fmt: skip
    take.add_argument("record", metavar="RECORD")
    take.add_argument("rows", metavar="FILE")
    return take


def _export(words: Sequence[str]) -> None:
    given = export_arguments().parse_args(words)
    check_new("--out", given.out)
    rows = read_record(given.record, given.rankings).merged.rows if given.rankings else exported(given.record)
    with rows_to(given.out) as write:
        for row in rows:
            write(row)


def _import(words: Sequence[str]) -> None:
    given = import_arguments().parse_args(words)
    if not Path(given.record).exists():
        raise DataError(f"{given.record}: no such record; `rlhf-lightning label CANDIDATES --record FILE` makes one")
    with Record(given.record) as record:
        added, known = import_into(record, given.rows)
    say(f"{added} lines are new, {known} were there already")
