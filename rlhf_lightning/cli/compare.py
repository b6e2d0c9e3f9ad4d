"""``rlhf-lightning compare``: two policies on the same prompts, as a run of the evaluate stage."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.cli.arguments import parser
from rlhf_lightning.cli.generate import agreed_sampling, positions
from rlhf_lightning.cli.naming import names_of
from rlhf_lightning.console.streams import say
from rlhf_lightning.errors import ConfigError

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
    words.add_argument("--votes", metavar="FILE", help="what people voted in the arena: they are the judge")
    words.add_argument("--samples", type=int, default=1, metavar="N", help="answers to each prompt (1)")
    return words


def run(words: Sequence[str]) -> list[str]:
    """The command of the stage that compares; it is to be run next.

    Raises:
        ConfigError: nothing judges, or both folders are the same.
    """
    own = [word for word in words if not re.match(r"[+~]{0,2}[\w./@]+=", word)]
    given = arguments().parse_args(own)
    if not (given.judge or given.reward or given.votes):
        raise ConfigError("compare: nothing judges; add --judge my_project.rewards.quality or --reward FOLDER")
    if given.judge and given.votes:
        raise ConfigError("compare: --judge and --votes both judge; leave one out")
    if len({Path(folder).absolute() for folder in given.folders}) < 2:
        raise ConfigError("compare: both folders are the same")
    names = [re.sub(r"\W", "_", name) for name in names_of(given.folders)]
    made = ["stage=evaluate", "task=custom", f"model.path={given.folders[0]}", "~evaluate.policies.base"]
    made += [f"+evaluate.policies.{name}={folder}" for name, folder in zip(names, given.folders, strict=True)]
    made += [f"evaluate.baseline={names[0]}", f"data.prompts_validation={given.prompts}"]
    made += [f"evaluate.samples_per_prompt={given.samples}"]
    if given.judge or given.votes:
        people = ["judge=people", f"judge.votes={given.votes}"]
        made += ["judge=function", f"judge.function={given.judge}"] if given.judge else people
        made += [f"evaluate.proxy={given.reward}"] if given.reward else []
    else:
        made += ["judge=reward_model", f"judge.model.path={given.reward}"]
    chosen = [word for word in words if word not in own]
    keys = {word.lstrip("+~").partition("=")[0] for word in chosen}
    made += [word for word in _shared_sampling(given.folders) if word.partition("=")[0] not in keys]
    say(f"rlhf-lightning {shlex.join([*made, *chosen])}")
    return [*made, *chosen]


def _shared_sampling(folders: Sequence[str]) -> list[str]:
    """How both policies answer by their generation configs, the longer of two lengths, and prompts that fit."""
    said = agreed_sampling(folders)
    words = [f"sampling.{name}={value}" for name, value in said.items()]
    room = positions(folders) - said.get("max_new_tokens", ANSWER_LENGTH)
    return [*words, f"evaluate.data.max_prompt_length={room}"] if 0 < room < PROMPT_LENGTH else words
