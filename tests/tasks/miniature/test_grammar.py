import random

import pytest

from rlhf_lightning.tasks.miniature.grammar import (
    DEMONSTRATIONS,
    TEXTS,
    Style,
    all_prompts,
    answer,
    heldout_prompts,
    topic_of,
    train_prompts,
)
from rlhf_lightning.tasks.miniature.words import WORDS

PERFECT = Style(mood=(1e6, 1.0), neutral=0.0, off_topic=0.0, stutter=0.0, no_stop=0.0, ramble=0.0)


def write(style, count=1500, seed=0):
    rng = random.Random(seed)
    prompts = [rng.choice(all_prompts()) for _ in range(count)]
    return prompts, [answer(rng, prompt, style) for prompt in prompts]


@pytest.mark.parametrize("style", [TEXTS, DEMONSTRATIONS])
def test_every_word_is_in_the_vocabulary(style):
    _, answers = write(style)
    assert {word for text in (*answers, *all_prompts()) for word in text.split()} <= set(WORDS)


def test_every_word_of_the_vocabulary_is_used():
    _, answers = write(TEXTS, 4000)
    assert {word for text in (*answers, *all_prompts()) for word in text.split()} == set(WORDS)


def test_the_vocabulary_is_small_lower_case_and_without_repeats():
    assert 80 <= len(WORDS) <= 150
    assert len(set(WORDS)) == len(WORDS)
    assert all(word.isalpha() and word.islower() for word in WORDS if word not in (".", ",", ":"))


def test_a_seed_decides_every_word_and_another_seed_writes_something_else():
    assert write(TEXTS, 50) == write(TEXTS, 50)
    assert write(TEXTS, 50) != write(TEXTS, 50, seed=1)


def test_training_and_held_out_prompts_are_disjoint_and_together_all_prompts():
    train, held_out = set(train_prompts()), set(heldout_prompts())
    assert not train & held_out
    assert train | held_out == set(all_prompts())
    assert len(all_prompts()) == len(train | held_out) == len(train_prompts()) + len(heldout_prompts())
    assert len(train) >= 2000
    assert len(held_out) >= 256


def test_prompts_are_four_to_nine_words_and_every_topic_is_among_the_held_out_ones():
    assert all(4 <= len(prompt.split()) <= 9 for prompt in all_prompts())
    assert {topic_of(prompt) for prompt in heldout_prompts()} == {"food", "film", "phone", "hotel"}


def test_most_answers_are_of_the_length_that_24_new_tokens_hold():
    _, answers = write(DEMONSTRATIONS)
    lengths = sorted(len(text.split()) + 1 for text in answers)  # the end token counts
    assert lengths[len(lengths) // 20] >= 6
    assert lengths[len(lengths) * 9 // 10] <= 24


def test_a_perfect_style_never_complains_strays_or_forgets_the_full_stop():
    from rlhf_lightning.tasks.miniature.words import NEGATIVE, TOPIC_OF

    for prompt, text in zip(*write(PERFECT, 400), strict=True):
        words = text.split()
        assert words[-1] == "."
        assert not set(words) & set(NEGATIVE)
        assert {TOPIC_OF[word] for word in words if word in TOPIC_OF} <= {topic_of(prompt)}


def test_an_article_agrees_with_the_adjective_that_follows():
    _, answers = write(DEMONSTRATIONS)
    pairs = {pair for text in answers for pair in zip(text.split(), text.split()[1:], strict=False)}
    assert ("an", "excellent") in pairs
    assert not {(article, word) for article, word in pairs if article == "a" and word[0] in "aeio"}


def test_a_prompt_without_a_known_noun_is_refused_with_advice():
    with pytest.raises(ValueError, match="all_prompts"):
        answer(random.Random(0), "the weather was", TEXTS)
