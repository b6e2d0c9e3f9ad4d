"""How a benchmark that asks something of every seed ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol


class Outcome(Protocol):
    """What one seed showed."""

    @property
    def seed(self) -> int:
        """Its number."""

    def faults(self) -> list[str]:
        """What it did not reach."""


def conclude(outcomes: Sequence[Outcome]) -> NoReturn:
    """Print what was not reached on which seed; exit status 1 if there is anything."""
    faults = [f"seed {outcome.seed}: not reached: {fault}" for outcome in outcomes for fault in outcome.faults()]
    print(
        "\n".join(faults)
        or f"all {len({outcome.seed for outcome in outcomes})} seeds reached everything that was asked for"
    )
    sys.exit(bool(faults))
