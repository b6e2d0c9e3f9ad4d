"""Work that waits for others, such as requests, done by several threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from rlhf_lightning import signals

T = TypeVar("T")
R = TypeVar("R")
_LOOK_SECONDS = 0.1  # between two looks whether the run was asked to stop


def in_threads(work: Callable[[T], R], items: Sequence[T], threads: int, over: threading.Event) -> list[R]:
    """What ``work`` returns for each item, in their order; a place to stop.

    Once a call raises, ``over`` is set and no other is begun; when those under way have ended, its error is raised. A
    run that is asked to stop sets ``over`` and waits for none.

    >>> in_threads(abs, [-1, 2], 2, threading.Event())
    [1, 2]
    """
    results: dict[int, R] = {}
    errors: list[BaseException] = []
    waiting = deque(enumerate(items))

    def run() -> None:
        while not over.is_set():
            try:
                place, item = waiting.popleft()
            except IndexError:
                return
            try:
                results[place] = work(item)
            except BaseException as error:
                errors.append(error)
                over.set()

    crew = [threading.Thread(target=run, daemon=True) for _ in range(min(threads, len(items)))]
    try:
        for thread in crew:
            thread.start()
        for thread in crew:
            while thread.is_alive():
                thread.join(_LOOK_SECONDS)
                signals.poll()
    except BaseException:
        over.set()
        raise
    if errors:
        raise errors[0]
    return [results[place] for place in range(len(items))]
