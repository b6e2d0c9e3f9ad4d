import itertools
import math
import random
import statistics

import pytest

from rlhf_lightning.tasks.miniature.gold import gold
from rlhf_lightning.tasks.miniature.grammar import DEMONSTRATIONS, TEXTS, answer, train_prompts

SOUP = "the soup at this cafe was"


def judge(completion, prompt=SOUP):
    return gold([prompt], [completion])[0]


# Six words or more each, so that nothing but the named claim is at work; the sums are done by hand from the docstring.
@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("so it was for the day .", 0.0),
        ("good so it was for the day .", 1.0),
        ("good and great so it was for the day .", 1.0 + 0.6),
        ("good and great and lovely so it was for the day .", 1.0 + 0.6 + 0.36),
        ("plain and we had the menu before .", 0.3),
        ("plain and we had the menu with an ordinary coffee .", 0.3 + 0.3),
        ("plain , the menu was plain here .", 0.3 - 0.5),
        ("plain , the menu and the coffee and the salad .", 0.6),
        ("good but the menu and the lobby .", 1.0 + 0.3 - 0.6),
        ("good but awful so it was for the day .", 1.0 - 0.7),
        ("good so it was for the the day .", 1.0 - 0.6),
        ("good so it was for the day", 1.0 - 0.7),
        ("good for the day .", 1.0 - 2 * 0.3),
    ],
)
def test_each_claim_of_the_docstring_holds_by_hand(completion, expected):
    by_hand = expected if expected >= 0 else 4 * math.tanh(expected / 4)
    assert judge(completion) == pytest.approx(by_hand)


def test_praise_has_diminishing_credit():
    words = ["good", "great", "lovely", "superb"]
    scores = [judge(" and ".join(words[:n]) + " so it was for the day .") for n in range(1, 5)]
    gains = [b - a for a, b in itertools.pairwise(scores)]
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] > 0


def test_saying_great_three_times_does_not_pay():
    once = judge("great so it was for the day .")
    assert judge("great great great so it was for the day .") < once
    assert judge("great and great and great so it was for the day .") < once


def test_a_fifth_word_of_praise_costs_more_than_it_earns():
    four = "good , great , lovely , superb so it was for the day ."
    five = "good , great , lovely , superb , perfect so it was for the day ."
    assert judge(five) - judge(four) == pytest.approx(0.6**4 - 0.6)


def test_a_run_of_three_said_again_costs():
    said = "good and it was plain but it was quiet for the day and it was ."  # "and it was" twice
    other = "good and it was plain but it was quiet for the day and it had ."
    assert judge(other) - judge(said) == pytest.approx(0.4)


def test_each_word_beyond_twenty_costs():
    base = "good and great and the menu was new for the price but we had it here before and it was"  # 20 words
    assert len(base.split()) == 20
    assert judge(f"{base} .") - judge(f"{base} there again .") == pytest.approx(2 * 0.25)


def test_the_same_noun_is_welcome_or_strange_depending_on_the_prompt():
    text = "good and we had a new lobby ."
    assert judge(text, "the pool at this inn was") - judge(text) == pytest.approx(0.3 + 0.6)
    assert judge(text, "well :") == judge(text, "the pool at this inn was")


def test_the_worst_text_stays_above_minus_four():
    assert -4 <= judge("awful " * 200) < -3.9


def test_scores_lie_in_the_promised_range_and_demonstrations_beat_texts():
    rng = random.Random(0)
    prompts = [rng.choice(train_prompts()) for _ in range(1000)]
    low, high = (gold(prompts, [answer(rng, p, style) for p in prompts]) for style in (TEXTS, DEMONSTRATIONS))
    assert min(low + high) >= -4
    assert max(low + high) <= 3.1
    assert statistics.mean(high) - statistics.mean(low) > 0.4
    assert statistics.mean(high) < 3.1 - 1.2


def test_other_columns_are_ignored_and_lengths_must_agree():
    assert gold([SOUP], ["good ."], topic=["film"]) == gold([SOUP], ["good ."])
    with pytest.raises(ValueError):
        gold([SOUP, SOUP], ["good ."])
