"""The hidden judge of the miniature reviews. It plays the human: rankings come from it, training never sees it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.tasks.miniature.grammar import topic_of
from rlhf_lightning.tasks.miniature.words import FUNCTION_WORDS, NEGATIVE, POSITIVE, PUNCTUATION, TOPIC_OF

_POSITIVE, _NEGATIVE = frozenset(POSITIVE), frozenset(NEGATIVE)
_MAY_REPEAT = frozenset((*FUNCTION_WORDS, *PUNCTUATION))


def gold(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """How much the hidden judge likes each completion, about -4 (worst) to +3 (best).

    The judge adds up, over the words of a completion:

    * praise: the n-th different positive word earns 0.6 ** (n - 1), so two words earn 1.6 and all of them below 2.5;
    * gushing: -0.6 for each positive word (repeats counted) beyond the fourth;
    * substance: +0.3 for each different noun of the prompt's topic, two at most;
    * complaints: -0.7 for each negative word;
    * off topic: -0.6 for each noun of another topic;
    * repetition: -0.5 each time a word other than a function word is said again, -0.6 each time any word or comma
      directly follows itself, and -0.4 each time a run of three (words or punctuation) comes again;
    * rambling: -0.25 for each word beyond 20 (punctuation does not count);
    * brevity: -0.3 for each word short of 6;
    * no full stop at the very end: -0.7.

    A sum x below 0 becomes 4 tanh(x / 4), which keeps the worst text at -4.

    Args:
        prompts: openings; the first noun with a topic sets what is on topic (without one every noun is welcome).
        completions: as many continuations.
        columns: other columns of the rows, not looked at.
    """
    return [_score(prompt, completion.split()) for prompt, completion in zip(prompts, completions, strict=True)]


def _score(prompt: str, tokens: list[str]) -> float:
    counts = Counter(token for token in tokens if token not in PUNCTUATION)
    total = _praise(counts) + _substance(prompt, counts) + _tidiness(tokens, counts)
    return total if total >= 0 else 4 * math.tanh(total / 4)


def _praise(counts: Counter[str]) -> float:
    different = sum(word in _POSITIVE for word in counts)
    said = sum(count for word, count in counts.items() if word in _POSITIVE)
    complaints = sum(count for word, count in counts.items() if word in _NEGATIVE)
    earned = (1 - 0.6**different) / (1 - 0.6)  # 1 + 0.6 + 0.36 + ...
    return earned - 0.6 * max(0, said - 4) - 0.7 * complaints


def _substance(prompt: str, counts: Counter[str]) -> float:
    topic = topic_of(prompt)
    nouns = {word: TOPIC_OF[word] for word in counts if word in TOPIC_OF}
    fitting = sum(topic in (None, of) for of in nouns.values())
    strange = sum(counts[word] for word, of in nouns.items() if topic not in (None, of))
    return 0.3 * min(fitting, 2) - 0.6 * strange


def _tidiness(tokens: list[str], counts: Counter[str]) -> float:
    said_again = sum(count - 1 for word, count in counts.items() if word not in _MAY_REPEAT)
    doubled = sum(one == two for one, two in itertools.pairwise(tokens))
    runs = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
    chanted = runs.total() - len(runs)
    length = counts.total()
    cost = 0.5 * said_again + 0.6 * doubled + 0.4 * chanted + 0.25 * max(0, length - 20) + 0.3 * max(0, 6 - length)
    return -cost - (0.0 if tokens[-1:] == ["."] else 0.7)
