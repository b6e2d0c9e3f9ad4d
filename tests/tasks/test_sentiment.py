from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from rlhf_lightning.tasks.sentiment import ReviewGold, fit_gold, terms_of, vader

TEXTS = [
    "a great great film",
    "Great fun, I'd see it",
    "dull film",
    "such a dull, dull thing",
    "fun film",
    "sad thing it is",
]
LABELS = [1, 1, 0, 0, 1, 0]
UNSEEN = ["great great great", "GREAT film; dull thing!", "x", "", "a dull film with great fun in caf\u00e9 it is"]


@pytest.fixture
def gold(tmp_path):
    fit_gold(TEXTS, LABELS, tmp_path, min_df=1)
    return ReviewGold.unsealed(tmp_path)


def test_the_gold_equals_scikit_learns_decision_function(gold):
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=4.0, max_iter=1000).fit(tfidf.fit_transform(TEXTS), LABELS)
    expected = model.decision_function(tfidf.transform(TEXTS + UNSEEN))
    np.testing.assert_allclose([gold.logit(t) for t in TEXTS + UNSEEN], expected, rtol=1e-12, atol=1e-12)


def test_prompt_and_completion_are_judged_as_one_text(gold):
    assert gold(["a great"], [" great film"], sentiment=["positive"]) == [gold.logit("a great great film")]
    with pytest.raises(ValueError, match="shorter"):
        gold(["a", "b"], ["c"])


def test_a_text_without_known_words_is_judged_by_the_prior(gold):
    assert gold.logit("zzz") == gold.logit("")


def test_words_and_neighbouring_pairs_are_counted():
    assert terms_of("To be, to BE a") == Counter({"to": 2, "be": 2, "to be": 2, "be to": 1})


def test_vader_knows_good_from_bad_and_reads_the_negation():
    good, bad, negated = vader(["The film was"] * 3, [" wonderful.", " horrible.", " not wonderful."], other=[1, 2, 3])
    assert good > 0 > bad
    assert negated < 0 < good <= 1
    assert vader([], []) == []
