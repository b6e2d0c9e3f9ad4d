"""``rlhf-lightning arena``: a page on which people compare policies without knowing which is which."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.cli.arguments import add_machine, device_of, parser
from rlhf_lightning.cli.generate import add_sampling, settings_of, shared_sampling
from rlhf_lightning.cli.naming import names_of
from rlhf_lightning.cli.pages import add_page, people_of, serve
from rlhf_lightning.cli.tables import show_table
from rlhf_lightning.console.display import plain
from rlhf_lightning.console.streams import quiet, say
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.people.battle import Prompt
from rlhf_lightning.people.ratings import ELO
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.votes import Pair, Standings, policies_of, read_votes, standings, weights_by_name

if TYPE_CHECKING:
    from rlhf_lightning.labelling.side_by_side import Side
    from rlhf_lightning.people.access import Access
    from rlhf_lightning.people.arena import Arena
    from rlhf_lightning.people.arena_server import ArenaApp
    from rlhf_lightning.rollout.engine import Sampling

RECORD = "votes.db"
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    words = parser(
        "arena",
        "Open a page on which two policies answer a prompt side by side, and people who are not told which is which "
        "vote. `arena results RECORD` shows win rates and ratings; it has its own --help.",
        "rlhf-lightning arena sft=runs/mine/sft ppo=runs/mine/ppo --prompts held_out.jsonl",
    )
    words.add_argument("policies", metavar="NAME=FOLDER", nargs="+", help="of a policy; without NAME= it is called by "
                       "the end of its path")  # fmt: skip
    words.add_argument("--prompts", metavar="FILE", help="rows with a prompt, for people who think of none")
    words.add_argument("--record", metavar="FILE", help="where votes are kept (votes.db beside the last folder)")
    words.add_argument("--reveal", action="store_true", help="tell the names of both policies after each vote")
    words.add_argument("--seconds", type=float, default=120.0, metavar="N", help="two answers that take longer are "
                       "given up (120)")  # fmt: skip
    add_page(words)
    add_sampling(words)
    words.set_defaults(seed=None)  # that of the record, 0 for a new one
    add_machine(words)
    return words


def run(words: Sequence[str]) -> None:
    """Serve the page until it is stopped, or show what people said.

    Raises:
        ConfigError: a word that does not fit, an address that is taken, or the extra `label` is missing.
        DataError: prompts or record are not what they should be, or two policies have the same weights.
        CheckpointError: a folder is not that of a policy, or another server has the record.
    """
    if words[:1] == ["results"]:
        return _results(words[1:])
    given = arguments().parse_args(words)
    people_of(given)  # before there is a record
    folders = _folders(given.policies)
    if not given.seconds > 0:
        raise ConfigError(f"--seconds {given.seconds:g}: must be above 0")
    quiet()
    logging.basicConfig(format="%(message)s")
    prompts = _rows(given.prompts)
    place = Path(given.record or Path(list(folders.values())[-1]).absolute().parent / RECORD)
    weights = _weights(folders, place)  # before models are loaded
    sampling, sides = _loaded(given, folders, weights)
    _check_prompts(prompts, sides)
    with Record(place, None if place.exists() else [], given.seed) as record:
        from rlhf_lightning.people.arena import Arena

        arena = Arena(record, sides, [prompt for _, prompt in prompts], asdict(sampling), given.seconds, given.reveal)
        try:
            serve("arena", given, record, partial(_app, arena), kept="votes")
        finally:
            arena.close()
    say(f"next: rlhf-lightning arena results {plain(str(record.path))}")
    return None


def _app(arena: Arena, access: Access) -> ArenaApp:
    from rlhf_lightning.people.arena_server import ArenaApp

    return ArenaApp(arena, access)


def _folders(words: Sequence[str]) -> dict[str, str]:
    """Folders by the names of their policies."""
    pairs = [word.rpartition("=")[::2] if not Path(word).exists() else ("", word) for word in words]
    unnamed = [folder for name, folder in pairs if not name]
    ends = iter(names_of(unnamed) if unnamed else [])
    named = [(name or next(ends), folder) for name, folder in pairs]
    found = dict(named)
    if len(named) < 2:
        raise ConfigError("rlhf-lightning arena: name two policies at least, sft=runs/mine/sft ppo=runs/mine/ppo")
    if len(found) < len(named):
        raise ConfigError("rlhf-lightning arena: two policies have the same name; write NAME=FOLDER")
    for name, folder in named:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name}: a name is of letters, digits, '_', '-' and '.'")
        if not Path(folder).is_dir():
            raise ConfigError(f"{name}={folder}: is no folder of a policy")
    return found


def _rows(path: str | None) -> list[tuple[str, Prompt]]:
    """Where each given prompt stands, and the prompt."""
    if path is None:
        return []
    from rlhf_lightning.data.readers.files import read_rows
    from rlhf_lightning.data.rows.validate import validate_rows

    return [(row.where, Prompt(row.row["prompt"])) for row in validate_rows(read_rows(path), "prompts")]


def _weights(folders: Mapping[str, str], place: Path) -> dict[str, str]:
    """SHA-256 of the weights of each policy; all differ, and a name that the record knows stands for the same ones."""
    from rlhf_lightning.checkpoint.provenance import weights_sha256

    known = policies_of(read_votes(place)[0], place) if place.exists() else {}
    weights = {name: weights_sha256(folder) for name, folder in folders.items()}
    weights_by_name(known, weights, place)
    return weights


def _loaded(
    given: argparse.Namespace, folders: Mapping[str, str], weights: Mapping[str, str]
) -> tuple[Sampling, list[Side]]:
    """All policies, and how they all sample."""
    from rlhf_lightning.labelling.inference import Responder
    from rlhf_lightning.labelling.side_by_side import Side, Turns
    from rlhf_lightning.rollout.engine import Sampling
    from rlhf_lightning.rules.ranges import require

    told = {name: value for name, value in settings_of(given).items() if value is not None}
    require("--temperature", told.get("temperature"), above=0)
    require("--top-p", told.get("top_p"), above=0, at_most=1)
    require("--max-new-tokens", told.get("max_new_tokens"), at_least=1)
    sampling = Sampling(**shared_sampling(list(folders.values())) | told)
    device, turns, sides = device_of(given), Turns(), []
    for name, folder in folders.items():
        responder = Responder(folder, device, given.dtype, sampling=sampling)
        sides.append(Side(name, weights[name], responder, turns))
    say(f"{', '.join(folders)}: all {responder}", sys.stderr)
    return sampling, sides


def _check_prompts(prompts: Sequence[tuple[str, Prompt]], sides: Sequence[Side]) -> None:
    for where, prompt in prompts:
        for side in sides:
            try:
                side.check(prompt.text)
            except DataError as error:
                raise DataError(f"{where}: {side.name}: {error}") from error


def results_arguments() -> argparse.ArgumentParser:
    """What ``arena results`` takes."""
    words = parser("arena results", "Win rates and ratings of the policies that people compared.",
                   "rlhf-lightning arena results runs/mine/votes.db")  # fmt: skip
    words.add_argument("record", metavar="RECORD")
    words.add_argument("--json", action="store_true", help="as JSON, with ratings in log-odds")
    return words


def _results(words: Sequence[str]) -> None:
    given = results_arguments().parse_args(words)
    quiet()
    found = standings(*read_votes(given.record))
    if given.json:
        say(json.dumps(found.summary()))
        return
    say(_sentence(found))
    if not found.votes:
        return
    show_table(["policies", "wins", "losses", "both good", "both bad", "win rate"], list(map(_row, found.pairs)))
    ratings = [
        [one.policy, f"{ELO * one.rating:+z.0f}", f"[{ELO * one.low:+z.0f}, {ELO * one.high:+z.0f}]", str(one.votes)]
        for one in found.ratings
    ]
    show_table(["policy", "rating", "95 % interval", "votes"], ratings)
    if found.prior:
        say("so far a policy has won or lost all, so that each rating is drawn to 0 by one tied vote")


def _sentence(found: Standings) -> str:
    if not found.votes:
        return "nobody has voted yet"
    share, low, high = (100 * part for part in found.left)
    told = f"votes: {found.votes}; people: {found.people}; skipped: {found.skipped}"
    return f"{told}; the answer at the left wins {share:.0f} % [{low:.0f}, {high:.0f}]"


def _row(pair: Pair) -> list[Any]:
    share, low, high = (100 * part for part in pair.win_rate)
    counts = [str(count) for count in (pair.wins, pair.losses, pair.both_good, pair.both_bad)]
    return [f"{pair.first} vs {pair.second}", *counts, f"{share:.0f} % [{low:.0f}, {high:.0f}]"]
