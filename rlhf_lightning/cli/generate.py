"""``rlhf-lightning generate``: answers of a policy to a file of prompts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint import read_json
from rlhf_lightning.cli.arguments import add_machine, check_new, device_of, parser
from rlhf_lightning.cli.resumed import resumed_rows
from rlhf_lightning.console.streams import quiet, say
from rlhf_lightning.errors import ConfigError

LONGEST = 256  # tokens of an answer, where nothing says so


def add_sampling(words: argparse.ArgumentParser) -> None:
    """Options that stand above the folder's ``generation_config.json``."""
    words.add_argument("--temperature", type=float, help="sample at this temperature instead")
    words.add_argument("--top-p", type=float, help="the smallest set of tokens with this probability instead")
    words.add_argument("--max-new-tokens", type=int, metavar="N", help="the longest answer instead")
    words.add_argument("--seed", type=int, default=0, help="of the sampling (0)")


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """What `add_sampling` was told, by fields of the generation config."""
    return {name: getattr(given, name) for name in ("temperature", "top_p", "max_new_tokens")}


def agreed_sampling(folders: Sequence[str]) -> dict[str, Any]:
    """What the generation configs of several folders say alike of `Sampling`, and the longest of their lengths."""
    every = [read_json(Path(folder) / "generation_config.json") for folder in folders]
    said = {name: every[0].get(name) for name in ("temperature", "top_k", "top_p")}
    said = {
        name: value for name, value in said.items() if value is not None and all(c.get(name) == value for c in every)
    }
    longest = max((int(config["max_new_tokens"]) for config in every if config.get("max_new_tokens")), default=0)
    return said | ({"max_new_tokens": longest} if longest else {})


def shared_sampling(folders: Sequence[str]) -> dict[str, Any]:
    """How policies sample that are to sample alike: `agreed_sampling`, with a length that fits all of them."""
    said, room = agreed_sampling(folders), positions(folders)
    return said | {"max_new_tokens": min(said.get("max_new_tokens", LONGEST), room // 2 or LONGEST)}


def positions(folders: Sequence[str]) -> int:
    """For how many tokens all models have places, 0 where none says so."""
    found = [read_json(Path(folder) / "config.json").get("max_position_embeddings") for folder in folders]
    return min((int(number) for number in found if number), default=0)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    words = parser(
        "generate",
        "Answer prompts with a policy, as its generation_config.json says. Each answer is a row of prompt, completion "
        "and finished (false where it was cut at the longest length), beside the other columns of its prompt; all "
        "later stages and `score` read such rows.",
        "rlhf-lightning generate runs/mine/ppo prompts.jsonl --out answers.jsonl",
    )
    words.add_argument("folder", metavar="FOLDER", help="of a policy")
    words.add_argument(
        "prompts", metavar="PROMPTS", help="a file with a column prompt, in any format that training reads"
    )
    words.add_argument("--out", metavar="FILE", help="a new file; without it rows go to standard output. What was "
                       "interrupted goes on with the same command")  # fmt: skip
    words.add_argument("-n", "--samples", type=int, default=1, metavar="N", help="answers to each prompt (1)")
    words.add_argument("--batch-size", type=int, default=16, metavar="N", help="prompts at once (16)")
    add_sampling(words)
    add_machine(words)
    return words


def run(words: Sequence[str]) -> None:
    """Answer the prompts of a file.

    Raises:
        DataError: a row without a prompt, or that cannot be encoded; names file and line.
        ConfigError: the new file is there already, or the settings cannot work.
        CheckpointError: no policy is there.
    """
    given = arguments().parse_args(words)
    for option in ("samples", "batch_size"):
        if getattr(given, option) < 1:
            raise ConfigError(f"--{option.replace('_', '-')} {getattr(given, option)}: must be at least 1")
    check_new("--out", given.out)
    quiet()
    from rlhf_lightning.data.readers.files import read_rows
    from rlhf_lightning.data.rows.types import ROW_TYPES
    from rlhf_lightning.data.rows.validate import validate_rows

    rows = validate_rows(read_rows(given.prompts), "prompts")  # before torch, whose import takes seconds
    from rlhf_lightning.labelling.inference import Responder
    from rlhf_lightning.rollout.engine import stream_seed
    from rlhf_lightning.scoring.scorer import like_prompt

    device = device_of(given)
    policy = Responder(given.folder, device, given.dtype, settings_of(given))
    own = {column for columns in ROW_TYPES.values() for column in columns} - {"prompt"}
    say(f"{given.folder}: {policy}", sys.stderr)
    with resumed_rows(given, ("folder", "prompts"), device, given.batch_size * given.samples) as (done, write):
        cut = sum(not row["finished"] for row in done)
        for at in range(len(done) // given.samples, len(rows), given.batch_size):
            part = rows[at : at + given.batch_size]
            answers = policy.answers(part, given.samples, stream_seed(given.seed, at))
            for located, found in zip(part, answers, strict=True):
                kept = {name: value for name, value in located.row.items() if name not in own}
                for answer in found:
                    cut += not answer.finished
                    text = like_prompt(kept["prompt"], answer.text)
                    write({**kept, "completion": text, "finished": answer.finished})
    say(f"{len(rows) * given.samples} answers to {len(rows)} prompts, {cut} of them cut", sys.stderr)
