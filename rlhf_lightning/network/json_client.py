"""JSON over HTTP to a service that may be busy, slow or away for a while."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from rlhf_lightning.console.redaction import is_secret, redact_text
from rlhf_lightning.errors import ConfigError, RewardFunctionError, RLHFError
from rlhf_lightning.rules.ranges import require

T = TypeVar("T")
LONGEST_WAIT = 60.0  # seconds between two tries
_MOST = 1 << 24  # bytes of an answer that are read
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP states after which another try may help


class Unreadable(Exception):
    """An answer of the form asked for that says nothing; for the caller to decide what follows from it."""


class JsonClient:
    """Sends JSON to one service and tries again where that may help; safe to be called from several threads.

    Where the service asks all to wait (``Retry-After``), all threads do.

    Args:
        url: http or https; a redirection is not followed.
        owner: the config node it works for, such as ``judge`` or ``scorer``, for messages.
        key: environment variable whose value is sent as a bearer token, if it is set; not a knob, so that no file
            chooses which secret is sent.
        timeout: seconds that one try may take.
        retries: tries after the first, each after a longer wait: 1, 2, 4, ... seconds, or what the service asks for.
        per_second: requests that may begin in a second; None for any number.
        error: raised where a request fails.

    Raises:
        ConfigError: an argument out of range, or an address that is none of http or https.
    """

    def __init__(
        self,
        url: str,
        owner: str,
        key: str,
        timeout: float = 60.0,
        retries: int = 4,
        per_second: float | None = None,
        error: type[RLHFError] = RewardFunctionError,
    ) -> None:
        _check_address(url, owner, key)
        require("timeout", timeout, above=0, at_most=1e9, why="seconds")
        require("retries", retries, at_least=0, whole=True)
        require("per_second", per_second, above=0)
        self.url, self.owner, self.key, self.timeout, self.retries = url, owner, key, timeout, retries
        self.error = error
        self.pause = 1.0  # seconds before the second try
        self.asked = 0  # requests sent
        self._apart = 0.0 if per_second is None else 1 / per_second
        self._turn, self._free = threading.Lock(), 0.0  # when the next request may begin
        self._opener = urllib.request.build_opener(_NoRedirect())

    def ask(
        self,
        body: Mapping[str, Any] | None,
        read: Callable[[Any], T],
        until: float | None = None,
        over: threading.Event | None = None,
        path: str = "",
        advice: str = "",
        plain: bool = False,
    ) -> T:
        """What ``read`` makes of the answer to ``body``.

        Args:
            body: plain data to post; None only gets what is there.
            read: raises ValueError where the answer has not the form asked for, or `Unreadable`; it is asked again.
            until: time on `time.monotonic` after which nothing is tried again.
            over: nothing is tried again once it is set.
            path: behind the address.
            advice: what to do where no try brings an answer, if it is not the usual.
            plain: ``read`` gets the answer as text, which need not be JSON.

        Raises:
            Unreadable: no try brought an answer that can be read.
            RLHFError: `error`, where no try brought an answer at all, or the service refuses the request.
        """
        over = over or threading.Event()
        for tried in range(self.retries + 1):
            try:
                over.wait(self._begin(until))
                text = self._ask(body, until, path, advice)
                try:
                    return read(text if plain else _decoded(text))
                except ValueError as error:
                    raise _Failed(str(error)) from error
            except (_Failed, Unreadable) as failure:
                wait = self._wait(tried, failure.seconds) if isinstance(failure, _Failed) else 0.0
                late = until is not None and time.monotonic() + wait >= until
                if tried < self.retries and not late and not over.wait(wait):
                    continue
                if isinstance(failure, Unreadable):
                    raise
                who = self.owner
                knobs = f"raise {who}.deadline" if late else f"raise {who}.retries or {who}.timeout"
                usual = f"See whether the server is well, {knobs}, or lower {who}.concurrency"
                raise self.error(
                    f"{who}: {self.url}{path} gave no answer after {tried + 1} "
                    f"{'tries' if tried else 'try'}: {failure}. {advice or usual}"
                ) from failure
        raise AssertionError("unreachable")

    def _ask(self, body: Mapping[str, Any] | None, until: float | None, path: str, advice: str) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key, ""):
            headers["Authorization"] = f"Bearer {key}"
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, headers)
        left = self.timeout if until is None else min(self.timeout, max(until - time.monotonic(), 0.01))
        try:
            with self._opener.open(request, timeout=left) as answer:
                return _whole(answer, time.monotonic() + left).decode()
        except urllib.error.HTTPError as error:
            told = _reason(error)
            if error.code in _AGAIN:
                raise _Failed(f"HTTP {error.code} {told}", error.headers.get("Retry-After")) from error
            hint = f"; the key is that of {self.key}" if error.code in (401, 403) else ""
            if 300 <= error.code < 400:
                hint = f"; redirections are not followed: give the address itself, {error.headers.get('Location')}"
            raise self.error(
                f"{self.owner}: {self.url}{path} refuses the request: HTTP {error.code} {told}{hint}"
                f"{f'. {advice}' if advice else ''}"
            ) from error
        except (OSError, HTTPException, UnicodeDecodeError) as error:
            raise _Failed(str(error) or type(error).__name__) from error

    def _begin(self, until: float | None) -> float:
        """Take a place in the row of requests; returns the seconds until it is there.

        Raises:
            _Failed: it is not there before ``until``.
        """
        with self._turn:
            now = time.monotonic()
            begin = max(self._free, now)
            if until is not None and begin >= until:
                raise _Failed(f"its place in the row is {begin - now:.0f} s away")
            self._free = begin + self._apart
            self.asked += 1
        return begin - now

    def _wait(self, tried: int, seconds: float | None) -> float:
        """Seconds until the next try; what the service asks for holds for everybody."""
        if seconds is None:
            return min(self.pause * 2**tried, LONGEST_WAIT) * random.uniform(0.5, 1)
        wait = min(seconds, LONGEST_WAIT)
        with self._turn:
            self._free = max(self._free, time.monotonic() + wait)
        return wait


def _check_address(url: str, owner: str, key: str) -> None:
    """Refuse what no request can be sent to, before anything waits for it.

    Raises:
        ConfigError: says why.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # raise where they are none
        url.encode("ascii")
        (host or "").encode("idna")
    except ValueError as error:
        raise ConfigError(f"{owner}: the address {url} is none: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{owner}: the address {url} must begin with http:// or https:// and a host")
    if re.search(r"[\x00-\x20\x7f]", url):
        raise ConfigError(f"{owner}: the address {url} holds a space or control character; write %20 for a space")
    if parts.username is not None:
        raise ConfigError(f"{owner}: the address holds a name or password, which is not sent; set {key} instead")
    if secret := next((name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if is_secret(name)), None):
        raise ConfigError(
            f"{owner}: the address holds {secret}=..., which would stand in the config of the run; set {key} instead"
        )


def _decoded(text: str) -> Any:
    """Raises: ValueError: it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"an answer that is not JSON ({error})") from error


def _whole(answer: Any, end: float) -> bytes:
    """The bytes of an answer. A server that sends a few at a time is not waited for beyond ``end``, `time.monotonic`.

    Raises:
        TimeoutError: not all had come by then.
    """
    parts, size = [], 0
    while size < _MOST and (part := answer.read1(1 << 16)):
        parts.append(part)
        size += len(part)
        if time.monotonic() > end:
            raise TimeoutError("timed out while the answer was read")
    return b"".join(parts)


def _reason(error: urllib.error.HTTPError) -> str:
    """What a service says beside the state of its answer, as far as it comes."""
    try:
        return redact_text(error.read(_MOST).decode(errors="replace"))[:300]
    except (OSError, HTTPException) as broken:
        return f"({type(broken).__name__} while it was read)"


class _Failed(Exception):
    """One try without an answer; ``seconds`` that the service asks to wait, if it says so."""

    def __init__(self, says: str, wait: str | None = None) -> None:
        super().__init__(says)
        self.seconds = float(wait) if wait and wait.isdigit() else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the address that was typed, and nowhere else."""

    def redirect_request(self, *given: Any) -> None:
        """Follow none: the answer then is an HTTP error."""
