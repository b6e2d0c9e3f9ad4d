"""Questions to a language model behind an OpenAI-compatible ``/v1/chat/completions``; its answers are kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.places import write_file
from rlhf_lightning.console.redaction import redact_text
from rlhf_lightning.errors import ConfigError, RewardFunctionError
from rlhf_lightning.rules.ranges import require

KEY = "RLHF_LIGHTNING_JUDGE_KEY"  # environment variable; not a knob, so that no file chooses which secret is sent
LONGEST_WAIT = 60.0  # seconds between two tries
_MOST = 1 << 20  # bytes of an answer that are read
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP states after which another try may help
log = logging.getLogger(__name__)


class Unreadable(Exception):
    """The model's answer is not one of those it was asked for."""


class ChatClient:
    """Asks with one user message and returns what the model says; safe to be called from several threads.

    Args:
        base_url: of the server, up to and with ``/v1``.
        model: as the server calls it.
        temperature: of its sampling.
        max_tokens: of its answer.
        timeout: seconds that one try may take.
        retries: tries after the first, each after a longer wait: 1, 2, 4, ... seconds, or what the server asks for.
        cache_dir: folder in which answers are kept, so that the same question is asked once; None keeps none.

    Raises:
        ConfigError: an argument out of range, or an address that is not http or https.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        temperature: float = 0.0,
        max_tokens: int = 16,
        timeout: float = 60.0,
        retries: int = 4,
        cache_dir: str | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"judge.base_url={base_url}: must begin with http:// or https://, up to and with /v1")
        require("temperature", temperature, at_least=0)
        require("max_tokens", max_tokens, at_least=1)
        require("timeout", timeout, above=0, at_most=1e9, why="seconds")
        require("retries", retries, at_least=0)
        self.url, self.model = f"{base_url.rstrip('/')}/chat/completions", model
        self.temperature, self.max_tokens = temperature, max_tokens
        self.timeout, self.retries = timeout, retries
        self.cache = None if cache_dir is None else Path(cache_dir)
        self.pause = 1.0  # seconds before the second try
        self.asked = 0  # requests sent
        self._opener = urllib.request.build_opener(_NoRedirect())

    def answer(self, question: str, known: frozenset[str]) -> str:
        """What the model says to a question, in lower case: one of ``known``.

        Raises:
            Unreadable: no try brought one of them.
            RewardFunctionError: no try brought an answer at all, or the server refuses the request.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        place = self._place(body)
        if place is not None and (kept := _kept(place)) in known:
            return kept
        for tried in range(self.retries + 1):
            try:
                said = self._ask(body)
            except _Failed as failure:
                if tried == self.retries:
                    raise RewardFunctionError(
                        f"judge: {self.url} gave no answer after {tried + 1} tries: {failure}. See whether the server "
                        "is well, raise judge.retries or judge.timeout, or lower judge.concurrency"
                    ) from failure
                self._wait(tried, failure.seconds)
                continue
            word = said.strip().rstrip(".").strip("*\"' ").lower()
            if word in known:
                if place is not None:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    write_file(place, json.dumps({"request": body, "answer": word}, ensure_ascii=False) + "\n")
                return word
        raise Unreadable(said[:200])

    def _ask(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY, ""):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        self.asked += 1
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                said = json.loads(answer.read(_MOST))["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            told = redact_text(error.read(_MOST).decode(errors="replace"))[:300]
            if error.code in _AGAIN:
                raise _Failed(f"HTTP {error.code} {told}", error.headers.get("Retry-After")) from error
            hint = f"; the key is that of {KEY}" if error.code in (401, 403) else ""
            raise RewardFunctionError(
                f"judge: {self.url} refuses the request: HTTP {error.code} {told}{hint}"
            ) from error
        except (OSError, HTTPException) as error:
            raise _Failed(str(error) or type(error).__name__) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _Failed(f"an answer without choices[0].message.content ({error})") from error
        return said if isinstance(said, str) else ""

    def _wait(self, tried: int, seconds: float | None) -> None:
        longest = min(self.pause * 2**tried, LONGEST_WAIT)
        time.sleep(min(seconds, LONGEST_WAIT) if seconds is not None else longest * random.uniform(0.5, 1))

    def _place(self, body: dict[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        digest = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        return self.cache / digest[:2] / f"{digest}.json"


class _Failed(Exception):
    """One try without an answer; ``seconds`` that the server asks to wait, if it says so."""

    def __init__(self, says: str, wait: str | None = None) -> None:
        super().__init__(says)
        self.seconds = float(wait) if wait and wait.isdigit() else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the address that was typed, and nowhere else."""

    def redirect_request(self, *given: Any) -> None:
        """Follow none: the answer then is an HTTP error."""


def _kept(place: Path) -> str:
    """The answer in a file of the cache; nothing where there is none or it cannot be read."""
    try:
        return str(json.loads(place.read_text(encoding="utf-8"))["answer"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s: is damaged, so the question is asked again", place)
        return ""
