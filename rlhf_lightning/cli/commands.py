"""The commands beside training, by their first word; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

COMMANDS = (
    "chat",
    "generate",
    "score",
    "compare",
    "winrate",
    "label",
    "arena",
    "runs",
    "card",
    "serve",
    "new",
    "data",
    "prepare",
    "slurm",
    "rollouts",
)
Command = Callable[[Sequence[str]], Sequence[str] | None]
"""Called with the words behind its name; what it returns are the words of a run that is to follow."""


def command(name: str) -> Command:
    """What answers the words behind ``name``, one of `COMMANDS`."""
    match name:
        case "chat":
            from rlhf_lightning.cli.chat import run
        case "generate":
            from rlhf_lightning.cli.generate import run
        case "score":
            from rlhf_lightning.cli.score import run
        case "compare":
            from rlhf_lightning.cli.compare import run as compared

            return compared
        case "winrate":
            from rlhf_lightning.cli.winrate import run
        case "label":
            from rlhf_lightning.cli.label import run
        case "arena":
            from rlhf_lightning.cli.arena import run
        case "runs":
            from rlhf_lightning.cli.runs import run
        case "rollouts":
            from rlhf_lightning.cli.rollouts import run
        case "card":
            from rlhf_lightning.cli.card import run
        case "serve":
            from rlhf_lightning.cli.serve import run
        case "new":
            from rlhf_lightning.cli.new import run
        case "data":
            from rlhf_lightning.cli.data import run
        case "prepare":
            from rlhf_lightning.cli.prepare import run
        case "slurm":
            from rlhf_lightning.cli.slurm import run
        case _:
            raise KeyError(name)
    return run
