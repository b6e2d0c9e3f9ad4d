"""A reward service over HTTP of which a test says how well it is."""

import threading
import time
from contextlib import contextmanager

from tests.support.http_answers import answering


def brevity(prompts, completions, **columns):
    return [-float(len(str(text))) for text in completions]


class Service:
    """Its address, the bodies of all requests, and what is wrong with it.

    ``faults`` meet the next requests, one each: an HTTP state or a pair of one and its headers, ``closed`` (no answer),
    ``slow`` (after a second), or bytes that are said instead. ``down_until`` is a time on `time.monotonic`: until then
    all are ``closed``. ``seconds`` is how long each answer takes.
    """

    def __init__(self, function):
        self.function, self.bodies, self.headers, self.faults = function, [], [], []
        self.down_until, self.seconds, self.most, self.address = 0.0, 0.0, 0, ""
        self.times = []  # of the requests, time.monotonic
        self._open, self._guard = 0, threading.Lock()

    @property
    def asked(self):
        """Each answer of each request, as often as it was asked for."""
        return [(p, c) for body in self.bodies for p, c in zip(body["prompts"], body["completions"], strict=True)]

    def answer(self, path, body, headers):
        """See `http_server`."""
        with self._guard:
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.headers.append(dict(headers))
            fault = self.faults.pop(0) if self.faults else None
            self._open += 1
            self.most = max(self.most, self._open)
        time.sleep(self.seconds + (1.0 if fault == "slow" else 0.0))
        with self._guard:
            self._open -= 1
        if fault == "closed" or time.monotonic() < self.down_until:
            return None
        if isinstance(fault, (int, tuple)):
            state, more = fault if isinstance(fault, tuple) else (fault, {})
            return state, more, b"{}"
        return 200, {}, fault if isinstance(fault, bytes) else {"scores": self.function(**body)}


@contextmanager
def reward_service(function=brevity):
    """A `Service` on a free port of this machine."""
    service = Service(function)
    with answering(service.answer) as address:
        service.address = f"{address}/score"
        yield service
