"""A known reward is found again behind noisy labels: the small version of `benchmarks.reward_recovery`, whose own bars
(four seeds: 97 % of the Bayes accuracy, ECE below 0.05, rankings above pairs on every one) take two minutes."""

import pytest
import torch

from benchmarks.reward_recovery import VOCABULARY, Fit, Gold, Outcome, Task, build_tokenizer, run_seed, table, write
from rlhf_lightning.data import ComparisonData

SMALL = Task(answers=2048, held_out=256, test=1024, epochs=5, lr=5e-3)


def gold_scores(gold, row):
    return torch.stack([sum(gold.weights[VOCABULARY.index(w)] for w in text.split()) for text in row["completions"]])


def test_labels_are_as_noisy_as_bradley_terry_and_plackett_luce_say():
    gold = Gold(0)
    won, expected = torch.zeros(2, 3000), torch.zeros(2, 3000)
    for kind, answers in enumerate((2, 4)):
        for number, row in enumerate(gold.rows(3000, answers)):
            scores = gold_scores(gold, row)
            won[kind, number] = row["ranks"][int(scores.argmax())] == 1
            expected[kind, number] = scores.softmax(0).max()
    error = (expected * (1 - expected)).mean(1).div(3000).sqrt()
    assert ((won - expected).mean(1).abs() < 3 * error).all()
    assert 0.7 < expected[0].mean() < 0.85  # there is noise to see through


def test_the_gold_reward_counts_the_words_of_the_answer_alone(tmp_path):
    gold = Gold(1)
    rows = gold.rows(20, 4)
    data = ComparisonData(
        write(tmp_path / "rows.jsonl", rows), None, build_tokenizer(), batch_size=20, validation_fraction=0.0
    )
    data.setup("fit")
    batch = data.collate(data.train_items, 20.0)
    torch.testing.assert_close(gold.score(batch), torch.cat([gold_scores(gold, row) for row in rows]))


def test_a_known_reward_is_recovered_and_rankings_teach_more_than_pairs():
    outcome = run_seed(0, SMALL)
    for fit in (outcome.pairs, outcome.fours):
        # a third of the data and a quarter of the test pairs of the benchmark: lower bars than there, with its reasons
        assert fit.accuracy >= 0.95 * outcome.bayes
        assert fit.ece < 0.06
        assert outcome.bayes_nll < fit.nll < 0.6
    assert outcome.fours.true_accuracy > outcome.pairs.true_accuracy


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"accuracy": 0.77}, "rankings: accuracy at least 97 % of Bayes"),
        ({"ece": 0.05}, "rankings: ECE below 0.05"),
        ({"true_accuracy": 0.9}, "rankings beat pairs in accuracy on the gold order"),
        ({"nll": 0.5}, "rankings beat pairs in NLL"),
    ],
)
def test_each_bar_of_the_benchmark_is_seen_to_be_missed(change, fault):
    pairs = Fit(accuracy=0.78, true_accuracy=0.9, nll=0.5, ece=0.04, temperature=1.0)
    fours = Fit(**{"accuracy": 0.79, "true_accuracy": 0.92, "nll": 0.49, "ece": 0.03, "temperature": 1.0} | change)
    outcome = Outcome(0, bayes=0.8, bayes_nll=0.45, pairs=pairs, fours=fours, seconds=1.0)
    assert outcome.faults() == ([fault] if fault else [])
    assert len(table([outcome]).splitlines()) == 6
