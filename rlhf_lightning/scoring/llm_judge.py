"""A language model as the judge: which of two answers is better, asked in both orders."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from threading import Event
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.network.in_threads import in_threads
from rlhf_lightning.network.json_client import Unreadable
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.scoring.chat_client import ChatClient
from rlhf_lightning.scoring.scorer import Remembers, completion_texts
from rlhf_lightning.types import Rollout

WORDS = {"a": 1.0, "b": 0.0, "tie": 0.5}  # the answers, and the share of the pair that goes to what was shown as A
_PARTS = ("{prompt}", "{first}", "{second}")


class _Verdict(NamedTuple):
    """On two answers, by their text in sorted order."""

    shown_first: float | None  # share of the first when it was shown as A; None: unreadable
    shown_second: float | None  # share of the first when it was shown as B

    @property
    def share(self) -> float | None:
        """Of the first, the mean of both orders; None where neither was readable."""
        known = [share for share in self if share is not None]
        return sum(known) / len(known) if known else None

    @property
    def sure(self) -> bool:
        """Whether both orders say the same."""
        return self.shown_first is not None and self.shown_first == self.shown_second


class LLMJudge(Remembers):
    """Scores each answer by the share of the other answers to the same prompt that it beats, from 0 to 1.

    Each two answers are asked about twice, once in each order; a tie, or orders that disagree, give each a half. An
    answer without another one to the same prompt, or of whose pairs no reply could be read, is not judged (NaN). So
    the scores order answers to one prompt, as the stage ``rank`` needs it, and do not compare policies.

    The key of the server is that in the environment variable ``RLHF_LIGHTNING_JUDGE_KEY``, if there is one. Replies
    other than A, B or tie are asked for again, and counted if they stay so.

    Args:
        base_url: of the server, up to and with ``/v1``.
        model: as the server calls it.
        template: of the question, with ``{prompt}``, ``{first}`` and ``{second}``; must ask for A, B or tie alone.
        name: how the scorer is called in logs.
        temperature: see `ChatClient`, as for the next four.
        max_tokens: of a reply.
        timeout: seconds.
        retries: of a request, and of a reply that cannot be read.
        cache_dir: folder of the replies.
        concurrency: requests at the same time.

    Raises:
        ConfigError: an argument out of range, or a template without one of its parts.
    """

    learned = True
    relative = True  # scores compare answers to one prompt only

    def __init__(
        self,
        base_url: str,
        model: str,
        template: str,
        name: str = "llm",
        temperature: float = 0.0,
        max_tokens: int = 16,
        timeout: float = 60.0,
        retries: int = 4,
        cache_dir: str | None = None,
        concurrency: int = 4,
    ) -> None:
        super().__init__()
        if missing := [part for part in _PARTS if part not in template]:
            raise ConfigError(f"judge.template: has no {missing[0]}; it needs {', '.join(_PARTS)}")
        require("concurrency", concurrency, at_least=1, whole=True)
        self.client = ChatClient(base_url, model, temperature, max_tokens, timeout, retries, cache_dir)
        self.template, self.name, self.concurrency = template, name, concurrency
        self._verdicts: dict[tuple[str, str, str], _Verdict] = {}

    def to(self, device: torch.device | str) -> LLMJudge:
        """Nothing to move."""
        return self

    def score(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Shares of pairs won, float32 [B]; NaN where nothing could be compared.

        Raises:
            RewardFunctionError: the server gives no answer, or refuses.
        """
        texts = completion_texts(rollout, tokenizer)
        groups: dict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(rollout.rows):
            groups[_key(row["prompt"])].append(number)
        prompts = {_key(row["prompt"]): row["prompt"] for row in rollout.rows}
        self.compare([(prompts[key], sorted({texts[i] for i in rows})) for key, rows in groups.items()])
        scores, unsure = [math.nan] * len(texts), [math.nan] * len(texts)
        for key, rows in groups.items():
            answers = [texts[i] for i in rows]
            for i, share in zip(rows, self.shares(prompts[key], answers), strict=True):
                scores[i], unsure[i] = share, self.unsure(prompts[key], answers)
        device = rollout.mask.device
        self._kept.append((rollout, {"unsure": torch.tensor(unsure, device=device)}))
        return torch.tensor(scores, device=device)

    def compare(self, groups: Sequence[tuple[Any, Sequence[str]]]) -> None:
        """Ask about each two answers of each prompt, several at a time; what was asked before is known."""
        pairs = [
            (prompt, first, second)
            for prompt, answers in groups
            for first, second in combinations(sorted(set(answers)), 2)
            if (_key(prompt), first, second) not in self._verdicts
        ]
        shown = [(p, *pair) for p, one, two in pairs for pair in ((one, two), (two, one))]
        over = Event()
        replies = in_threads(lambda pair: self._reply(pair, over), shown, self.concurrency, over)
        for (prompt, first, second), one, other in zip(pairs, replies[::2], replies[1::2], strict=True):
            self._verdicts[_key(prompt), first, second] = _Verdict(one, None if other is None else 1 - other)

    def shares(self, prompt: Any, answers: Sequence[str]) -> list[float]:
        """The share of the other answers that each one beats; NaN where it was compared with none."""
        found = []
        for own in answers:
            won = [
                share if own < other else 1 - share
                for other in sorted(set(answers) - {own})
                if (share := self._of(prompt, own, other).share) is not None
            ]
            found.append(sum(won) / len(won) if won else math.nan)
        return found

    def unsure(self, prompt: Any, answers: Sequence[str]) -> float:
        """Share of the pairs of answers on which the two orders disagree or cannot be read; NaN without a pair."""
        pairs = list(combinations(sorted(set(answers)), 2))
        doubtful = sum(not self._of(prompt, one, other).sure for one, other in pairs)
        return doubtful / len(pairs) if pairs else math.nan

    def report(self) -> dict[str, float]:
        """What is known of the judge: pairs, replies that could not be read, and what the order changed.

        ``position_bias`` is the share that goes to the answer shown first, less 1/2: 0 without a bias, 1/2 where it
        always wins. ``unsure`` is the share of pairs whose two orders disagree.
        """
        verdicts = list(self._verdicts.values())
        as_first = [s for v in verdicts for s in (v.shown_first, _opposite(v.shown_second)) if s is not None]
        return {
            "pairs": float(len(verdicts)),
            "requests": float(self.client.http.asked),
            "unreadable": float(sum(share is None for verdict in verdicts for share in verdict)),
            "position_bias": sum(as_first) / len(as_first) - 0.5 if as_first else math.nan,
            "unsure": sum(not v.sure for v in verdicts) / len(verdicts) if verdicts else math.nan,
        }

    def sentence(self) -> str:
        """`report` in one line for the screen."""
        told = self.report()
        return (
            f"{self.name} compared {told['pairs']:.0f} pairs in both orders with {told['requests']:.0f} requests; it "
            f"prefers what it is shown first by {100 * told['position_bias']:+.0f} percentage points, and is not sure "
            f"of {100 * told['unsure']:.0f} % of the pairs; {told['unreadable']:.0f} replies could not be read"
        )

    def _of(self, prompt: Any, one: str, other: str) -> _Verdict:
        return self._verdicts.get((_key(prompt), *sorted((one, other))), _Verdict(None, None))  # type: ignore[arg-type]

    def _reply(self, shown: tuple[Any, str, str], over: Event) -> float | None:
        prompt, first, second = shown
        parts = dict(zip(_PARTS, (_text(prompt), first, second), strict=True))
        try:
            return WORDS[self.client.answer(_filled(self.template, parts), frozenset(WORDS), over)]
        except Unreadable:
            return None


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with its parts put in at once, so that a part that stands in an answer stays as it is."""
    found, rest = "", template
    while rest:
        name = next((part for part in parts if rest.startswith(part)), "")
        found, rest = found + (parts[name] if name else rest[0]), rest[len(name) or 1 :]
    return found


def _opposite(share: float | None) -> float | None:
    return None if share is None else 1 - share


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"[{turn['role']}] {turn['content']}" for turn in prompt)
