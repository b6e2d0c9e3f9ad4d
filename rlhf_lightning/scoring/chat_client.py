"""Questions to a language model behind an OpenAI-compatible ``/v1/chat/completions``."""

from __future__ import annotations

from threading import Event
from typing import Any

from rlhf_lightning.network.json_client import JsonClient, Unreadable
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.scoring.kept_answers import KeptAnswers

KEY = "RLHF_LIGHTNING_JUDGE_KEY"


class ChatClient:
    """Asks with one user message and returns what the model says; safe to be called from several threads.

    Args:
        base_url: of the server, up to and with ``/v1``.
        model: as the server calls it.
        temperature: of its sampling.
        max_tokens: of its answer.
        timeout: see `JsonClient`, as ``retries``.
        cache_dir: folder in which answers are kept, see `KeptAnswers`.

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
        require("temperature", temperature, at_least=0)
        require("max_tokens", max_tokens, at_least=1, whole=True)
        self.http = JsonClient(f"{base_url.rstrip('/')}/chat/completions", "judge", KEY, timeout, retries)
        self.model, self.temperature, self.max_tokens = model, temperature, max_tokens
        self.kept = KeptAnswers(cache_dir)

    def answer(self, question: str, known: frozenset[str], over: Event | None = None) -> str:
        """What the model says to a question, in lower case: one of ``known``; not tried again once ``over`` is set.

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
        asked = [self.http.url, body]
        if (kept := self.kept.get(asked)) in known:
            return str(kept)
        word = self.http.ask(body, lambda answer: _word(answer, known), over=over)
        self.kept.put(asked, word)
        return word


def _word(answer: Any, known: frozenset[str]) -> str:
    try:
        said = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"an answer without choices[0].message.content ({error})") from error
    word = said.strip().rstrip(".").strip("*\"' ").lower() if isinstance(said, str) else ""
    if word not in known:
        raise Unreadable(str(said)[:200])
    return word
