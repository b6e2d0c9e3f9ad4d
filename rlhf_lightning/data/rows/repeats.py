"""Rows that repeat, contradict each other, or stand in training and validation; 8 bytes of memory for each."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.rows.fields import as_label
from rlhf_lightning.data.rows.shared_prompt import split_shared_prompt
from rlhf_lightning.data.rows.types import ROW_TYPES, StageKind, row_type

if TYPE_CHECKING:
    import numpy as np

    from rlhf_lightning.types import Row

_PIECE = 2**18  # values that are compared at a time


class Repeats:
    """What rows were seen, by 64 bit hashes.

    Args:
        kind: what the stage takes.
        leaks: whether these rows will be compared with others by `leaked`.
    """

    def __init__(self, kind: StageKind, leaks: bool = False) -> None:
        self.kind, self._leaks = kind, leaks
        self._rows, self._prompts, self._claims = array("q"), array("q"), array("q")

    def add(self, row: Row, name: str, values: Sequence[Any]) -> None:
        """Another row, which is sound, its type, and the values of the columns of its type."""
        try:
            self._rows.append(hash(tuple(values)))
        except TypeError:  # conversations and lists
            self._rows.append(hash(tuple(map(_key, values))))
        if self._leaks:
            whole = self.kind == "demonstrations"  # one prompt with many answers is how small sets are written
            self._prompts.append(self._rows[-1] if whole else hash(_key(_prompt(row, name))))
        if self.kind in ("comparisons", "feedback"):
            self._claims.extend(_claims(row, name))

    def duplicates(self) -> int:
        """How many rows repeat an earlier one in the columns of their type."""
        return len(self._rows) - _distinct(self._rows)

    def contradictions(self) -> int:
        """How many answers are called good and bad, or better and worse than the same other one."""
        found = _sorted(self._claims)
        return sum(int(((one != two) & (one >> 1 == two >> 1)).sum()) for one, two in _neighbours(found))

    def leaked(self, held_out: Repeats) -> int:
        """How many held-out rows have a prompt that is here; of demonstrations, are here themselves."""
        if not len(held_out._prompts) or not len(self._prompts):
            return 0
        import numpy as np

        return int(np.isin(_sorted(held_out._prompts), _sorted(self._prompts)).sum())


def count_repeats(kind: StageKind, train: Sequence[Row], validation: Sequence[Row]) -> dict[str, int]:
    """Duplicates and contradictions among the training rows, and how many validation rows leak from them."""
    seen, held_out = Repeats(kind, leaks=bool(validation)), Repeats(kind, leaks=True)
    for rows, repeats in ((train, seen), (validation, held_out)):
        for row in rows:
            name = str(row_type(row, kind))
            repeats.add(row, name, [row[column] for column in ROW_TYPES[name]])
    leaks = seen.leaked(held_out)
    return {"duplicates": seen.duplicates(), "contradictions": seen.contradictions(), "leaks": leaks}


def identity(row: Row, kind: StageKind) -> str:
    """Equal for rows that train the same thing: the columns of the row type, without the unknown ones."""
    return canonical({column: row[column] for column in ROW_TYPES[str(row_type(row, kind))]})


def prompt_identity(row: Row, kind: StageKind) -> str:
    """Equal for rows with the same prompt, also one that stands in chosen and rejected; the whole row without any."""
    return canonical(_prompt(row, str(row_type(row, kind))))


def canonical(value: Any) -> str:
    """Equal text for equal values, whatever the order of keys."""
    return json.dumps(value, sort_keys=True, default=str)


def _prompt(row: Row, name: str) -> Any:
    if row.get("prompt") is not None:
        return row["prompt"]
    if name == "chosen+rejected":
        return split_shared_prompt(row["chosen"], row["rejected"])[0]
    return {column: row[column] for column in ROW_TYPES[name]}


def _claims(row: Row, name: str) -> list[int]:
    """What a row says of an answer, or of two: equal but for the last bit where rows say the opposite."""
    if name == "prompt+completion+label":
        return [hash((_key(row["prompt"]), _key(row["completion"]))) & ~1 | bool(as_label(row["label"]))]
    prompt = _key(row.get("prompt"))
    if "ranks" not in name:
        return [_pair(prompt, _key(row["chosen"]), _key(row["rejected"]))]
    answers = list(zip(map(_key, row["completions"]), row["ranks"], strict=True))
    return [_pair(prompt, one, two) for one, a in answers for two, b in answers if a < b and one != two]


def _pair(prompt: Any, better: Any, worse: Any) -> int:
    one, two = hash(better), hash(worse)
    return hash((prompt, min(one, two), max(one, two))) & ~1 | (one < two)


def _key(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, type(None))) else canonical(value)


def _sorted(values: array[int]) -> np.ndarray:
    """The values in order, in the memory where they are."""
    import numpy as np

    found = np.frombuffer(values, dtype=np.int64) if len(values) else np.empty(0, np.int64)
    found.sort()
    return found


def _distinct(values: array[int]) -> int:
    found = _sorted(values)
    return bool(len(found)) + sum(int((one != two).sum()) for one, two in _neighbours(found))


def _neighbours(found: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each value and the one after it, a piece at a time."""
    for start in range(0, len(found) - 1, _PIECE):
        yield found[start : start + _PIECE][: len(found) - 1 - start], found[start + 1 : start + 1 + _PIECE]


def pair_of(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected answer of a pair, whose prompt may stand in the answers."""
    if row.get("prompt") is not None:
        return row["prompt"], row["chosen"], row["rejected"]
    return split_shared_prompt(row["chosen"], row["rejected"])
