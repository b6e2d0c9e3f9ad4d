"""The commands beside training, by their first word; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

COMMANDS = ("chat", "generate", "score", "compare", "runs", "card", "serve", "new", "data", "prepare")
Command = Callable[[Sequence[str]], None]


def command(name: str) -> Command:
    """What answers the words behind ``name``, one of `COMMANDS`."""
    match name:
        case "chat":
            from rlhf_lightning.cli.chat import run
        case "generate":
            from rlhf_lightning.cli.generate import run
        case "score":
            from rlhf_lightning.cli.score import run
        case "data":
            from rlhf_lightning.cli.data import run
        case "prepare":
            from rlhf_lightning.cli.prepare import run
        case _:
            raise KeyError(name)
    return run
