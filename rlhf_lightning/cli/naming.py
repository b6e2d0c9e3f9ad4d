"""Short names for folders that stand side by side. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def names_of(folders: Sequence[str]) -> list[str]:
    """The last part of each path, or as many as tell them apart.

    >>> names_of(["runs/a/ppo", "runs/a/sft"]), names_of(["runs/a/ppo", "runs/b/ppo"])
    (['ppo', 'sft'], ['a/ppo', 'b/ppo'])
    """
    parts = [Path(folder).absolute().parts for folder in folders]
    longest = max(map(len, parts))
    depth = next(n for n in range(1, longest + 1) if len({p[-n:] for p in parts}) == len(parts) or n == longest)
    return ["/".join(part[-depth:]) for part in parts]
