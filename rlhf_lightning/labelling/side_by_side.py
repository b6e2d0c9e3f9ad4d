"""Policies that write at the same time in one process, a token in turns, each from a random stream of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.errors import DataError
from rlhf_lightning.labelling.inference import Answer, Responder

_WAIT = 0.1  # seconds between two looks whether an answer is still waited for


class Turns:
    """One thread at a time computes, in the order in which they asked; torch's random stream is that of the process."""

    def __init__(self) -> None:
        self._queue: deque[object] = deque()  # the first one computes
        self._moved = threading.Condition()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While it is this thread's turn."""
        self._take()
        try:
            yield
        finally:
            self._pass_on()

    def let_others(self, device: torch.device) -> None:
        """Whoever waits computes first; the random stream is where it was afterwards. Call while it is one's turn."""
        on_card = device.type == "cuda"
        state, card = torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_card else None
        self._pass_on()
        self._take()
        torch.set_rng_state(state)
        if card is not None:
            torch.cuda.set_rng_state(card, device)

    def _take(self) -> None:
        me = object()
        with self._moved:
            self._queue.append(me)
            self._moved.wait_for(lambda: self._queue[0] is me)

    def _pass_on(self) -> None:
        with self._moved:
            self._queue.popleft()
            self._moved.notify_all()


class Side:
    """A policy beside others: answers one prompt at a time, and lets others go on after each token.

    Args:
        name: of the policy.
        weights: SHA-256 of its weights.
        responder: the policy.
        turns: that all policies of the process share.
    """

    def __init__(self, name: str, weights: str, responder: Responder, turns: Turns) -> None:
        self.name, self.weights, self._responder, self._turns = name, weights, responder, turns
        self._one = threading.Lock()  # answers of one model after each other

    @property
    def is_chat(self) -> bool:
        """Whether it has a chat template."""
        return self._responder.is_chat

    def check(self, prompt: Any) -> None:
        """Look at a prompt.

        Raises:
            DataError: prompt and answer do not fit the model, or the prompt cannot be encoded.
        """
        with self._turns.held():  # a tokenizer is for one thread at a time
            if not self._responder.room(_row(prompt)):
                raise DataError(f"prompt and answer do not fit the model ({self._responder})")

    def answer(self, prompt: Any, seed: int, write: Callable[[str], None]) -> Answer:
        """One answer; the same seed gives the same one, whoever writes beside it.

        Args:
            prompt: a text, or messages.
            seed: of the sampling.
            write: is given each piece, called for each token and while another answer of this policy is waited for;
                what it raises ends the answer.

        Raises:
            ConfigError, DataError: as `Responder.answers`.
        """
        device = self._responder.model.device

        def step(piece: str) -> None:
            write(piece)
            self._turns.let_others(device)

        while not self._one.acquire(timeout=_WAIT):
            write("")
        try:
            with self._turns.held():
                return self._responder.stream(_row(prompt), step, seed)
        finally:
            self._one.release()


def _row(prompt: Any) -> LocatedRow:
    return LocatedRow({"prompt": prompt}, "prompt", 1)
