"""The global random streams of a process as plain data."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the global generators of Python, NumPy, torch and, if it is one, of the CUDA device."""
    numpy: Any = np.random.get_state()
    name, keys, *rest = numpy
    state = {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest], "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators where `random_state` found them."""
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_after(state: Mapping[str, Any], rank: int, size: int) -> int:
    """A seed, below 2^63, for process ``rank`` of ``size`` that goes on where another number of processes stopped.

    Args:
        state: `random_state` of the first of those.
        rank: of this process.
        size: how many there are now.
    """
    text = f"process {rank} of {size}".encode()
    return int.from_bytes(hashlib.sha256(state["torch"].numpy().tobytes() + text).digest()[:8], "little") >> 1


def seed_random_state(seed: int) -> None:
    """Seed the generators that `random_state` looks at."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
