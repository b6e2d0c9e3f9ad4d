"""Which rank of a run talks to servers, and how all of them learn what came of it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from rlhf_lightning.errors import RLHFError, RolloutError

T = TypeVar("T")


class Place(NamedTuple):
    """Of a process in its run."""

    rank: int  # the first is 0
    first_here: int  # the first rank on this machine


def everyone(value: Any) -> list[Any]:
    """The picklable values of all ranks. Collective."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def place() -> Place:
    """Of this process. Collective."""
    hosts = everyone(socket.gethostname())
    rank = torch.distributed.get_rank() if len(hosts) > 1 else 0
    return Place(rank, hosts.index(hosts[rank]))


def on_every_rank(work: Callable[[], T]) -> list[T]:
    """What ``work`` returned on each rank. Collective.

    Raises:
        RLHFError: its own error where it failed, and a `RolloutError` with the same words on every other rank.
    """
    result, failure = None, None
    try:
        result = work()
    except RLHFError as error:
        failure = error
    found = everyone((result, failure and str(failure)))
    if failure is not None:
        raise failure
    if said := next((text for _, text in found if text), None):
        raise RolloutError(said)
    return [result for result, _ in found]
