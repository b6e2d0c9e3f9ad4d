"""Win rates of annotation files in the format of AlpacaEval, as they are and at equal length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rlhf_lightning.data.rows.parts import number_or_text
from rlhf_lightning.errors import DataError
from rlhf_lightning.functional.diagnostics import WinRate, clustered_interval
from rlhf_lightning.functional.length_control import length_controlled_win_rate

if TYPE_CHECKING:
    from rlhf_lightning.data.readers.files import LocatedRow

_TEXTS = ("instruction", "output_1", "output_2")
_NAMES = ("generator_2", "generator_1", "annotator")


class Annotated(NamedTuple):
    """What the annotations of one policy against another say."""

    policy: str
    against: str
    annotator: str
    pairs: int
    missing: int  # annotations without a preference, which count nowhere
    longer: float  # characters of the policy's answer less those of the other, mean
    raw: WinRate
    equal: WinRate | None  # at equal length; None where lengths alone tell wins from losses


def annotated(rows: Sequence[LocatedRow]) -> list[Annotated]:
    """The win rates of each policy, opponent and annotator of a file, in the order in which they come.

    A row holds ``instruction``, ``output_1``, ``output_2`` and ``preference``: 1 says that the first output is better,
    2 the second, a number between them how likely that is, 0 and 1.5 that they are equal, null that nobody knows. The
    win rate is that of ``generator_2``, the mean of ``preference - 1``. Lengths are in characters, and the interval of
    the raw rate is Wilson's for as many pairs as vary like these, over instructions.

    Source of the format: github.com/tatsu-lab/alpaca_eval; of the rate at equal length, see
    `rlhf_lightning.functional.length_control`.

    Args:
        rows: as `rlhf_lightning.data.readers.files.read_rows` gives them.

    Raises:
        DataError: a row that is no such annotation, or a policy without any preference; names file, line and key.
    """
    groups: dict[tuple[str, str, str], list[LocatedRow]] = {}
    for row in rows:
        policy, against, annotator = (str(row.row.get(name) or "-") for name in _NAMES)
        groups.setdefault((policy, against, annotator), []).append(row)
    return [_annotated(names, group) for names, group in groups.items()]


def _annotated(names: tuple[str, str, str], rows: Sequence[LocatedRow]) -> Annotated:
    shares = [_share(row) for row in rows]
    said = [(row.row, share) for row, share in zip(rows, shares, strict=True) if share is not None]
    if not said:
        raise DataError(f"{rows[0].where}: preference: none of the {len(rows)} annotations of {names[0]} has one")
    numbers: dict[str, int] = {}
    cluster = torch.tensor([numbers.setdefault(row["instruction"], len(numbers)) for row, _ in said])
    outcomes = torch.tensor([share for _, share in said], dtype=torch.float64)
    longer = torch.tensor([_longer(row) for row, _ in said], dtype=torch.float64)
    equal = length_controlled_win_rate(outcomes, longer, cluster)
    missing, raw = len(rows) - len(said), clustered_interval(outcomes, cluster)
    return Annotated(*names, len(said), missing, longer.mean().item(), raw, equal)


def _longer(row: Mapping[str, Any]) -> int:
    return len(row["output_2"]) - len(row["output_1"])


def _share(row: LocatedRow) -> float | None:
    """The share of a win that a preference is to the second output; None where there is no preference."""
    for name in _TEXTS:
        if not isinstance(row.row.get(name), str):
            raise DataError(
                f"{row.where}: {name}: is no text; an annotation has instruction, output_1, output_2 and preference"
            )
    value = row.row.get("preference")
    if isinstance(value, str):
        value = number_or_text(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value == 0 or 1 <= value <= 2):
        raise DataError(
            f"{row.where}: preference: is {value!r:.40}; write 1 where output_1 is better, 2 where output_2 is, "
            "a number between them, or null"
        )
    return 0.5 if value == 0 else float(value) - 1
