"""Values that were written as text on their way to a file: JSON, or what Python or NumPy print."""

from __future__ import annotations

import ast
import re
from typing import Any

from rlhf_lightning.data.readers.jsonl import check_depth, parse_json
from rlhf_lightning.data.readers.problems import BadRow

# A list of objects, or an object, whose first key is one of messages
_CONVERSATION = re.compile(r"""\s*\[?\s*(?:array\(\s*\[\s*)?\{\s*\\?["'](?:role|content|from|value)\\?["']\s*:""")
_BETWEEN = re.compile(r"\}\s+\{")  # what NumPy prints between the elements of an array


def as_conversation(name: str, text: str) -> Any:
    """The messages that a text is; the text itself if it is none.

    Raises:
        BadRow: it begins like messages and cannot be read.
    """
    if not _CONVERSATION.match(text):
        return text
    return as_value(name, text, "a conversation that was written as text")


def as_value(name: str, text: str, what: str = "a list that was written as text") -> Any:
    """The list or object that a text is.

    Raises:
        BadRow: it cannot be read.

    >>> as_value("ranks", "[1, 2.5]"), as_value("ranks", "['a', None]")
    ([1, 2.5], ['a', None])
    """
    stripped = text.strip()
    try:
        return parse_json(stripped)
    except BadRow as bad:
        reason = bad
    try:
        value = ast.literal_eval(_BETWEEN.sub("}, {", stripped) if len(stripped) < 2**20 else stripped)
        check_depth(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError, BadRow):
        raise BadRow(f"{name}: is {what}, and cannot be read ({reason}); write JSON such as [...]") from reason
    return list(value) if isinstance(value, tuple) else value


def rows_of_columns(value: dict[str, Any]) -> list[Any] | None:
    """Messages that were stored column by column, as some table formats do; None if it is none of these.

    >>> rows_of_columns({"role": ["user"], "content": ["hi"]})
    [{'role': 'user', 'content': 'hi'}]
    """
    lists = list(value.values())
    if not lists or not all(isinstance(column, list) for column in lists):
        return None
    if not {"role", "from"} & set(value) or len({len(column) for column in lists}) > 1:
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]
