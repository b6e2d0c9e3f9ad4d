"""The closed vocabulary of the miniature reviews: 144 entries, each known to the tokenizer and to the gold scorer."""

from __future__ import annotations

from types import MappingProxyType

TOPICS = MappingProxyType(
    {
        "food": ("soup", "sandwich", "coffee", "salad", "cake", "menu", "waiter"),
        "film": ("plot", "scene", "ending", "script", "hero", "story", "cast"),
        "phone": ("screen", "battery", "camera", "speaker", "keyboard", "charger", "signal"),
        "hotel": ("room", "bed", "pool", "shower", "lobby", "garden", "lift"),
    }
)
"""Topic -> the things a review on that topic may speak of."""

PLACES = MappingProxyType(
    {
        "food": (("at", "cafe"), ("at", "bakery")),
        "film": (("in", "film"), ("in", "movie")),
        "phone": (("on", "phone"), ("on", "tablet")),
        "hotel": (("at", "hotel"), ("at", "inn")),
    }
)
"""Topic -> (preposition, what is reviewed)."""

POSITIVE = (
    *("great", "good", "lovely", "wonderful", "excellent", "perfect", "pleasant", "charming", "bright", "superb"),
    *("loved", "enjoyed", "recommend"),
)
NEGATIVE = (
    *("bad", "awful", "boring", "poor", "terrible", "slow", "dull", "ugly", "dirty", "broken"),
    *("hated", "regretted", "avoid"),
)
NEUTRAL = ("ordinary", "plain", "average", "usual", "simple", "small", "new", "quiet")
AFTER_AN = frozenset(("excellent", "awful", "ugly", "ordinary", "average"))
ADVERBS = ("very", "really", "quite", "rather", "so", "truly")
VERBS_POSITIVE = ("loved", "enjoyed")
VERBS_NEGATIVE = ("hated", "regretted")
VERBS_NEUTRAL = ("noticed", "remember", "expected")
ADJECTIVES_POSITIVE = tuple(w for w in POSITIVE if w not in (*VERBS_POSITIVE, "recommend"))
ADJECTIVES_NEGATIVE = tuple(w for w in NEGATIVE if w not in (*VERBS_NEGATIVE, "avoid"))
PEOPLE = ("i", "we", "my friends", "the children")

FUNCTION_WORDS = (
    *("the", "a", "an", "this", "that", "our", "my", "i", "we", "it"),
    *("and", "but", "was", "seemed", "felt", "looked", "would", "there", "had"),
    *("at", "in", "on", "of", "for", "again", "come", "back", "everyone"),
)
"""Words that may be said twice in a review without being a repetition."""

OTHER = (
    *("friends", "children", "review", "notes", "word", "about", "last"),
    *("night", "time", "today", "price", "day", "money", "here", "before"),
)

PUNCTUATION = (".", ",", ":")

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *PUNCTUATION,
            *FUNCTION_WORDS,
            *OTHER,
            *POSITIVE,
            *NEGATIVE,
            *NEUTRAL,
            *ADVERBS,
            *VERBS_NEUTRAL,
            *(noun for nouns in TOPICS.values() for noun in nouns),
            *(thing for places in PLACES.values() for _, thing in places),
        ]
    )
)
"""Every word once, in a fixed order: the tokenizer's ids follow it."""

TOPIC_OF = MappingProxyType(
    {
        **{noun: topic for topic, nouns in TOPICS.items() for noun in nouns},
        **{thing: topic for topic, places in PLACES.items() for _, thing in places},
    }
)
"""Noun -> the topic it belongs to; words that fit every topic are absent."""
