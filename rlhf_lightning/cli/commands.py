"""The commands beside training, by their first word; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

COMMANDS = ("chat", "generate", "score", "compare", "label", "runs", "card", "serve", "new", "data", "prepare")
Command = Callable[[Sequence[str]], Sequence[str] | None]
"""Called with the words behind its name; what it returns are the words of a run that is to follow."""


def command(name: str) -> Command:
    """What answers the words behind ``name``, one of `COMMANDS`."""
    match name:
        case "chat":
            from rlhf_lightning.cli import chat

            return chat.run
        case "generate":
            from rlhf_lightning.cli import generate

            return generate.run
        case "score":
            from rlhf_lightning.cli import score

            return score.run
        case "compare":
            from rlhf_lightning.cli import compare

            return compare.run
        case "label":
            from rlhf_lightning.cli import label

            return label.run
        case "runs":
            from rlhf_lightning.cli import runs

            return runs.run
        case "card":
            from rlhf_lightning.cli import card

            return card.run
        case "serve":
            from rlhf_lightning.cli import serve

            return serve.run
        case "new":
            from rlhf_lightning.cli import new

            return new.run
        case "data":
            from rlhf_lightning.cli import data

            return data.run
        case "prepare":
            from rlhf_lightning.cli import prepare

            return prepare.run
    raise KeyError(name)
