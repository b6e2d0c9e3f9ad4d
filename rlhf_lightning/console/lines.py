"""Pieces of a line that shows how far something is. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence


def clock(seconds: float) -> str:
    """A time as people read it on a stopwatch.

    >>> clock(7.4), clock(84), clock(3723)
    ('0:07', '1:24', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def short(value: float) -> str:
    """A large number with a letter for its thousands.

    >>> short(12_345), short(85)
    ('12.3k', '85')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def bar(share: float, width: int = 10) -> str:
    """A share from 0 to 1 as a bar of ``width`` characters.

    >>> bar(0.65)
    '━━━━━━╸───'
    """
    halves = round(2 * width * min(max(share, 0.0), 1.0))
    return ("━" * (halves // 2) + "╸" * (halves % 2)).ljust(width, "─")


def fitted(parts: Sequence[str], width: int | None = None) -> str:
    """The parts in one line, two spaces apart, without the last ones that do not fit; the first always stands.

    Args:
        parts: what matters most comes first; empty ones are left out.
        width: characters of the line; None is no limit.

    >>> fitted(["ppo", "reward 2.44", "learn 0.3s"], 20)
    'ppo  reward 2.44'
    """
    line = ""
    for part in filter(None, parts):
        longer = f"{line}  {part}" if line else part
        if line and width is not None and len(longer) > width:
            break
        line = longer
    return line
