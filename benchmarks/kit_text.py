"""Text for the benchmarks' assets: the standard library of the running interpreter, cut to heavy-tailed lengths."""

from __future__ import annotations

import ast
import inspect
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "__pycache__",
    "ensurepip",
    "turtledemo",
    "pydoc_data",
}


class Lengths(NamedTuple):
    """Tokens of a text: log-normal around ``median``, clipped to ``low`` and ``high``."""

    median: float
    sigma: float
    low: int
    high: int

    def draw(self, source: random.Random) -> int:
        """One length."""
        return min(max(round(self.median * source.lognormvariate(0.0, self.sigma)), self.low), self.high)


def documents(limit: int | None = None) -> list[str]:
    """Docstrings of the standard library, in the order of files and lines; the same for the same Python.

    Args:
        limit: at most so many.
    """
    found: list[str] = []
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if LEFT_OUT & set(path.relative_to(root).parts):
            continue
        found += _docstrings(path)
        if limit is not None and len(found) >= limit:
            return found[:limit]
    return found


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            if len(text.split()) > 3:
                yield text


class Passages:
    """Consecutive passages of one long text, each of a drawn number of tokens; starts again at the end.

    Args:
        texts: joined in this order.
        tokenizer: counts.
        source: random numbers of the lengths.
    """

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerBase, source: random.Random) -> None:
        self._ids = tokenizer("\n".join(texts), add_special_tokens=False).input_ids
        self._tokenizer = tokenizer
        self._source = source
        self._at = 0

    def take(self, lengths: Lengths) -> str:
        """The next passage; its length may differ by a token or two once it is encoded again."""
        wanted = lengths.draw(self._source)
        if self._at + wanted > len(self._ids):
            self._at = 0
        ids = self._ids[self._at : self._at + wanted]
        self._at += wanted
        return self._tokenizer.decode(ids).strip() or "None."
