"""``rlhf-lightning compare``: two policies on the same prompts, as a run of the evaluate stage."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.arguments import parser
from rlhf_lightning.cli.naming import names_of
from rlhf_lightning.console.streams import say
from rlhf_lightning.errors import ConfigError

_SAMPLING = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
)  # fields that a generation config shares with `sampling`

PROMPT_LENGTH, ANSWER_LENGTH = 256, 64  # of the stage, tokens


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    words = parser(
        "compare",
        "Let two policies answer the same prompts and say which one a judge prefers, how often and how sure that is. "
        "Runs stage=evaluate, so that words such as evaluate.max_prompts=64 or trainer=cpu may follow.",
        "rlhf-lightning compare runs/mine/sft runs/mine/ppo --prompts held_out.jsonl --reward runs/mine/reward",
    )
    words.add_argument("folders", metavar="FOLDER", nargs=2, help="of a policy; KL is measured to the first one")
    words.add_argument("--prompts", metavar="FILE", required=True, help="rows with a prompt")
    words.add_argument("--judge", metavar="FUNCTION", help="a reward function, as an import path")
    words.add_argument("--reward", metavar="FOLDER", help="a reward model: the judge, or reported beside it")
    words.add_argument("--samples", type=int, default=1, metavar="N", help="answers to each prompt (1)")
    return words


def run(words: Sequence[str]) -> list[str]:
    """The command of the stage that compares; it is to be run next.

    Raises:
        ConfigError: nothing judges, or both folders are the same.
    """
    own = [word for word in words if not re.match(r"[+~]{0,2}[\w./@]+=", word)]
    given = arguments().parse_args(own)
    if not (given.judge or given.reward):
        raise ConfigError("compare: nothing judges; add --judge my_project.rewards.quality or --reward FOLDER")
    if len({Path(folder).absolute() for folder in given.folders}) < 2:
        raise ConfigError("compare: both folders are the same")
    names = [re.sub(r"\W", "_", name) for name in names_of(given.folders)]
    made = ["stage=evaluate", "task=custom", f"model.path={given.folders[0]}", "~evaluate.policies.base"]
    made += [f"+evaluate.policies.{name}={folder}" for name, folder in zip(names, given.folders, strict=True)]
    made += [f"evaluate.baseline={names[0]}", f"data.prompts_validation={given.prompts}"]
    made += [f"evaluate.samples_per_prompt={given.samples}"]
    if given.judge:
        made += ["judge=function", f"judge.function={given.judge}"]
        made += [f"evaluate.proxy={given.reward}"] if given.reward else []
    else:
        made += ["judge=reward_model", f"judge.model.path={given.reward}"]
    chosen = [word for word in words if word not in own]
    made += [word for word in _shared_sampling(given.folders) if word.partition("=")[0] not in " ".join(chosen)]
    say(f"rlhf-lightning {shlex.join([*made, *chosen])}")
    return [*made, *chosen]


def _shared_sampling(folders: Sequence[str]) -> list[str]:
    """How both policies answer by their generation configs, the longer of two lengths, and prompts that fit."""
    one, other = (_json(Path(folder) / "generation_config.json") for folder in folders)
    said = {name: one[name] for name in _SAMPLING if one.get(name) is not None and one[name] == other.get(name)}
    longest = max((int(config["max_new_tokens"]) for config in (one, other) if config.get("max_new_tokens")), default=0)
    said |= {"max_new_tokens": longest} if longest else {}
    words = [f"sampling.{name}={value}" for name, value in said.items()]
    positions = [_json(Path(folder) / "config.json").get("max_position_embeddings") for folder in folders]
    room = min((int(number) for number in positions if number), default=0) - (longest or ANSWER_LENGTH)
    return [*words, f"evaluate.data.max_prompt_length={room}"] if 0 < room < PROMPT_LENGTH else words


def _json(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
