"""Code in Markdown: which blocks there are, which are not run and why, and which overrides a command line has."""

import re
import shlex
from typing import NamedTuple

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
_NO_RUN = re.compile(r"<!--\s*no-run:\s*(?P<reason>[^>]+?)\s*-->\s*$")
_PROGRAM = re.compile(r"^(\.venv/bin/)?(python3? train\.py|rlhf-lightning)(?=\s|$)")


class Block(NamedTuple):
    """One fenced block."""

    language: str
    body: str
    line: int
    no_run: str | None  # the reason given in a comment above


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a Markdown file."""
    found = []
    for match in _FENCE.finditer(text):
        above = _NO_RUN.search(text[: match.start()].rstrip())
        indent = match["indent"]
        body = "\n".join(line.removeprefix(indent) for line in match["body"].splitlines())
        line = text[: match.start()].count("\n") + 2
        found.append(Block(match["language"], body, line, above["reason"] if above else None))
    return found


def commands(body: str) -> list[list[str]]:
    """The arguments of every call of our program in a shell block, and of the lines of ``--help``."""
    lines = body.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        stripped = re.sub(r"^\$ |^([A-Z_]+=\S+ )+", "", line.strip())
        if match := _PROGRAM.match(stripped):
            found.append(shlex.split(stripped[match.end() :], comments=True))
    return found


def overrides(arguments: list[str]) -> list[str]:
    """The Hydra overrides among ``arguments``; of a sweep the first value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from rlhf_lightning.config.plain_values import readable

    words, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("-"):
            skip = not skip and argument in {
                "--cfg",
                "--package",
                "--info",
                "--config-dir",
                "--config-name",
                "-cn",
                "-cd",
            }
        else:
            words.append(argument)
    words = readable(words)
    parsed = OverridesParser.create().parse_overrides(words)
    chosen = []
    for word, override in zip(words, parsed, strict=True):
        sweep = override.is_sweep_override()
        chosen.append(f"{word.partition('=')[0]}={next(override.sweep_string_iterator())}" if sweep else word)
    return chosen
