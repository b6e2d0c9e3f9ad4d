"""A generator of short reviews of cafes, films, phones and hotels, with the quality of the text under control.

Everything is drawn from the `random.Random` that is passed in, so a seed decides every word. Pure Python.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass

from rlhf_lightning.tasks.miniature.words import (
    ADJECTIVES_NEGATIVE,
    ADJECTIVES_POSITIVE,
    ADVERBS,
    AFTER_AN,
    NEUTRAL,
    PEOPLE,
    PLACES,
    TOPIC_OF,
    TOPICS,
    VERBS_NEGATIVE,
    VERBS_NEUTRAL,
    VERBS_POSITIVE,
)

_HELD_OUT_SHARE = 8  # one prompt in eight is never trained on


@dataclass(frozen=True)
class Style:
    """How well a review is written. Each field is a probability unless it says otherwise."""

    mood: tuple[float, float]  # (a, b) of the Beta law that a review draws its chance of a kind clause from
    neutral: float  # a clause neither praises nor complains
    off_topic: float  # a noun comes from another topic
    stutter: float  # a word is said again at once, per clause
    no_stop: float  # the review does not end with a full stop
    ramble: float  # the review goes on for two more clauses


TEXTS = Style(mood=(0.8, 1.4), neutral=0.3, off_topic=0.15, stutter=0.08, no_stop=0.2, ramble=0.12)
"""What the base model reads: anything that people write."""

DEMONSTRATIONS = Style(mood=(1.0, 1.0), neutral=0.35, off_topic=0.06, stutter=0.02, no_stop=0.04, ramble=0.04)
"""What labelers write: tidier and a little kinder, and still of mixed quality."""


@functools.cache
def all_prompts() -> tuple[str, ...]:
    """Every opening the grammar knows, 4 to 9 words, in an order that only looks random."""
    openings = [*_statements(), *_headings()]
    random.Random(0).shuffle(openings)
    return tuple(openings)


@functools.cache
def train_prompts() -> tuple[str, ...]:
    """The openings that may be trained on."""
    return tuple(p for i, p in enumerate(all_prompts()) if i % _HELD_OUT_SHARE)


@functools.cache
def heldout_prompts() -> tuple[str, ...]:
    """The openings that are only ever evaluated on; none of them is in `train_prompts`."""
    return all_prompts()[::_HELD_OUT_SHARE]


def _statements() -> list[str]:
    """Openings that wait for an adjective: "last night the soup at this cafe was"."""
    spots = _spots(("this", "that", "our"))
    whens = ("", "last night ", "today ", "this time ", "again ")
    return [
        f"{when}the {spot} {verb}" for when, spot, verb in itertools.product(whens, spots, ("was", "seemed", "felt"))
    ]


def _headings() -> list[str]:
    """Openings that wait for a sentence: "review of the soup at this cafe :"."""
    spots = [*_spots(("this", "that")), *(f"{thing} here" for places in PLACES.values() for _, thing in places)]
    return [
        f"{kind} the {spot} :" for kind, spot in itertools.product(("review of", "notes on", "a word about"), spots)
    ]


def _spots(determiners: tuple[str, ...]) -> list[str]:
    return [
        f"{noun} {preposition} {determiner} {thing}"
        for topic, nouns in TOPICS.items()
        for noun, (preposition, thing), determiner in itertools.product(nouns, PLACES[topic], determiners)
    ]


def topic_of(prompt: str) -> str | None:
    """The topic of the first noun of ``prompt`` that has one, or None."""
    return next((TOPIC_OF[word] for word in prompt.split() if word in TOPIC_OF), None)


def answer(rng: random.Random, prompt: str, style: Style) -> str:
    """A continuation of ``prompt``: one to three clauses, mostly 8 to 22 words.

    Args:
        rng: source of every choice.
        prompt: an opening of `all_prompts`; its noun sets the topic.
        style: how well to write.

    Returns:
        words and punctuation with one space between them.

    Raises:
        ValueError: the prompt names nothing the grammar knows.
    """
    topic = topic_of(prompt)
    if topic is None:
        raise ValueError(f"prompt {prompt!r}: no noun of a known topic; take prompts from all_prompts()")
    return _Writer(rng, topic, style).review(opened=not prompt.endswith(":"))


class _Writer:
    """Writes one review: the mood is drawn once, the nouns are not said twice while there are others."""

    def __init__(self, rng: random.Random, topic: str, style: Style) -> None:
        self.rng = rng
        self.topic = topic
        self.style = style
        self.kindness = rng.betavariate(*style.mood)
        self.said: set[str] = set()

    def review(self, opened: bool) -> str:
        rng = self.rng
        clauses = [self._adjectives() if opened else self._clause()]
        extra = rng.choices((1, 2), (0.65, 0.35))[0] if opened else rng.choices((1, 2), (0.8, 0.2))[0]
        extra += 2 if rng.random() < self.style.ramble else 0
        clauses += [self._clause() for _ in range(extra)]
        text = clauses[0]
        for clause in clauses[1:]:
            text += rng.choice((" and ", " , and ", " , ", " but ")) + clause
        return text if rng.random() < self.style.no_stop else f"{text} ."

    def _clause(self) -> str:
        shape = self.rng.choices(
            (self._state, self._feeling, self._recommendation, self._sighting, self._aside),
            (0.4, 0.2, 0.12, 0.16, 0.12),
        )[0]
        return self._stuttered(shape())

    def _state(self) -> str:
        return f"the {self._noun()} {self.rng.choice(('was', 'seemed', 'felt', 'looked'))} {self._adjectives()}"

    def _feeling(self) -> str:
        verb = self._fresh(self._by_mood(VERBS_POSITIVE, VERBS_NEUTRAL, VERBS_NEGATIVE))
        return f"{self.rng.choice(PEOPLE)} {verb} the {self._noun()}"

    def _recommendation(self) -> str:
        recommendations = self._by_mood(("recommend it",), ("come back",), ("avoid it",))
        return f"{self.rng.choice(PEOPLE)} would {self.rng.choice(recommendations)}"

    def _sighting(self) -> str:
        verb = self.rng.choice(("there was", "we had", "it had"))
        adjective = self._adjective()
        article = "an" if adjective in AFTER_AN else "a"
        return f"{verb} {article} {adjective} {self._noun()}"

    def _aside(self) -> str:
        ending = self.rng.choice(("for the price", "for the money", "for the day", "for everyone", "before"))
        return f"it was {self._adjectives()} {ending}"

    def _adjectives(self) -> str:
        form = self.rng.random()
        if form < 0.45:
            return self._adjective()
        if form < 0.8:
            return f"{self.rng.choice(ADVERBS)} {self._adjective()}"
        return f"{self._adjective()} and {self._adjective()}"

    def _adjective(self) -> str:
        return self._fresh(self._by_mood(ADJECTIVES_POSITIVE, NEUTRAL, ADJECTIVES_NEGATIVE))

    def _noun(self) -> str:
        topic = self.topic
        if self.rng.random() < self.style.off_topic:
            topic = self.rng.choice([other for other in TOPICS if other != topic])
        return self._fresh(TOPICS[topic])

    def _by_mood(self, kind: tuple[str, ...], neutral: tuple[str, ...], unkind: tuple[str, ...]) -> tuple[str, ...]:
        if self.rng.random() < self.style.neutral:
            return neutral
        return kind if self.rng.random() < self.kindness else unkind

    def _fresh(self, words: tuple[str, ...]) -> str:
        """A word of ``words`` not said yet, or any of them once all have been said."""
        word = self.rng.choice([w for w in words if w not in self.said] or words)
        self.said.add(word)
        return word

    def _stuttered(self, clause: str) -> str:
        if self.rng.random() >= self.style.stutter:
            return clause
        words = clause.split()
        spot = self.rng.randrange(len(words))
        repeats = self.rng.randint(1, 3)
        return " ".join([*words[:spot], *([words[spot]] * repeats), *words[spot:]])
