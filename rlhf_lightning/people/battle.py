"""Two answers that are written at the same time, in threads, until they are whole, late, or nobody waits for them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

Line = Mapping[str, Any]
FAILED = "One of the two models could not answer. The messages of the server say why."
LATE = "The answers were not finished within {:g} seconds. Ask for less, or ask again."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """What policies are asked."""

    text: Any  # a text, or messages
    typed: bool = False  # by a person in the page, and so a message to a policy that chats


class Written(Protocol):
    """An answer."""

    @property
    def text(self) -> str:
        """All of it."""

    @property
    def finished(self) -> bool:
        """Whether it ended by itself, and was not cut."""


class Policy(Protocol):
    """What can answer. Threads may share it."""

    name: str
    weights: str  # SHA-256

    @property
    def is_chat(self) -> bool:
        """Whether it is asked in messages."""

    def check(self, prompt: Any) -> None:
        """Look at a prompt: a text, or messages.

        Raises:
            DataError: it cannot be answered; says why.
        """

    def answer(self, prompt: Any, seed: int, write: Callable[[str], None]) -> Written:
        """Answer, and hand on each piece at once; ``write`` is called for each token, also without a text.

        It is called while another answer is waited for as well. What it raises ends the answer.
        """


class Ended(Exception):
    """Nobody waits for an answer any longer."""


class Battle:
    """Two answers to one prompt.

    Args:
        sides: who answers, left and right.
        prompts: what each is asked.
        shown: the prompt as the page shows it.
        seeds: of the sampling.
        seconds: that both may take, waiting included.
        keep: is given both answers once they are whole, and gives the last line.
    """

    def __init__(
        self, sides: Sequence[Policy], prompts: Sequence[Any], shown: Any, seeds: Sequence[int], seconds: float,
        keep: Callable[[Sequence[Written]], Line],
    ) -> None:  # fmt: skip
        self._sides, self._prompts, self._shown = sides, prompts, shown
        self._seeds, self._seconds, self._keep = seeds, seconds, keep
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, tell: Callable[[Line | None], None]) -> None:
        """Begin to write.

        Args:
            tell: is called, in other threads, with ``{"prompt": ...}``; with each piece, ``{"place": 0 or 1,
                "text": ...}``, and each answer as a whole, ``{"place": ..., "all": ..., "finished": ...}``; with what
                ``keep`` gives, or with ``{"error": ...}``; and at the end with None.
        """
        self._thread = threading.Thread(target=self._run, args=(tell,))
        self._thread.start()

    def stop(self) -> None:
        """Write no further; returns at once."""
        self._over.set()

    def join(self) -> None:
        """Wait until nothing is written any more."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, tell: Callable[[Line | None], None]) -> None:
        until = time.monotonic() + self._seconds
        tell({"prompt": self._shown})
        with ThreadPoolExecutor(len(self._sides)) as threads:
            answers = [threads.submit(self._write, place, until, tell) for place in range(len(self._sides))]
        errors = [error for answer in answers if (error := answer.exception()) is not None]
        worse = next((error for error in errors if not isinstance(error, Ended)), None)
        try:
            if worse is not None:
                log.error("an answer failed: %s: %s", type(worse).__name__, worse)
                tell({"error": FAILED})
            elif errors and not self._over.is_set():
                tell({"error": LATE.format(self._seconds)})
            elif not self._over.is_set():
                tell(self._keep([answer.result() for answer in answers]))
        except Exception as error:  # the disk, for example: the person is told, and nothing counts
            log.error("two answers are lost: %s: %s", type(error).__name__, error)
            tell({"error": f"Not saved: the record cannot be written ({type(error).__name__})."})
        finally:
            tell(None)

    def _write(self, place: int, until: float, tell: Callable[[Line], None]) -> Written:
        def write(piece: str) -> None:
            if self._over.is_set() or time.monotonic() > until:
                raise Ended
            if piece:
                tell({"place": place, "text": piece})

        try:
            written = self._sides[place].answer(self._prompts[place], self._seeds[place], write)
        except Ended:
            raise
        except BaseException:
            self._over.set()  # the other answer is of no use alone
            raise
        tell({"place": place, "all": written.text, "finished": written.finished})
        return written


def asked(policy: Policy, prompt: Prompt) -> Any:
    """What a policy is asked: a prompt that was typed is a message to a policy that chats, and a text to another."""
    if prompt.typed and policy.is_chat:
        return [{"role": "user", "content": prompt.text}]
    return prompt.text
