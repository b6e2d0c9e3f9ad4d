"""Two judges of sentiment that do not know of each other: a classifier fitted on reviews, and a lexicon.

Both are reward functions of the usual form ``f(prompts, completions, **columns) -> list[float]`` and read the whole
text, prompt and completion together, as in the sentiment experiments of Ziegler et al. 2019 (arXiv:1909.08593).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.provenance import verify_folder

REVIEWS_STAGE = "reviews"
TERMS_FILE = "gold.terms.json"
WEIGHTS_FILE = "gold.safetensors"
_WORD = re.compile(r"(?u)\b\w\w+\b")  # scikit-learn's default token pattern


def terms_of(text: str) -> Counter[str]:
    """How often each lower-case word and each pair of neighbouring words occurs in ``text``."""
    words = _WORD.findall(text.lower())
    return Counter(words + [f"{left} {right}" for left, right in pairwise(words)])


def fit_gold(
    texts: Sequence[str], labels: Sequence[int], folder: Path, *, min_df: int = 5, inverse_l2: float = 4.0
) -> None:
    """Fit TF-IDF over words and word pairs with a logistic regression, and write both to ``folder`` without pickle.

    Args:
        texts: N reviews.
        labels: N labels, 1 positive and 0 negative.
        folder: receives the terms (JSON) and their idf and weights (safetensors, float64).
        min_df: a term that fewer reviews hold is ignored.
        inverse_l2: inverse strength of the regularisation, scikit-learn's ``C``. With 4 the log-odds of held-out
            review openings are calibrated (the best factor on them is 1.05); accuracy hardly depends on it.
    """
    import numpy as np
    from safetensors.numpy import save_file
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    tfidf = TfidfVectorizer(ngram_range=(1, 2), min_df=min_df, sublinear_tf=True)
    model = LogisticRegression(C=inverse_l2, max_iter=1000).fit(tfidf.fit_transform(texts), labels)
    terms = tfidf.get_feature_names_out().tolist()
    (folder / TERMS_FILE).write_text(json.dumps(terms, ensure_ascii=False), encoding="utf-8")
    save_file(
        {"idf": tfidf.idf_, "weight": np.ascontiguousarray(model.coef_[0]), "intercept": model.intercept_},
        folder / WEIGHTS_FILE,
    )


class ReviewGold:
    """The hidden judge: log-odds that prompt and completion together read like a positive review.

    With tf = 1 + ln(count) and unit length per text (TF-IDF as in scikit-learn, ``sublinear_tf=True``):

        score = b + sum_i w_i tf_i idf_i / sqrt(sum_i (tf_i idf_i)^2)

    It can be hacked ("great great great" scores high), so judge the result with `vader` as well.

    Args:
        root: a folder that `prepare_reviews` wrote; it is verified first.

    Raises:
        CheckpointError: the folder is missing, damaged or of another kind.
    """

    def __init__(self, root: str | Path) -> None:
        verify_folder(root, expect_stage=REVIEWS_STAGE)
        self._load(Path(root))

    @classmethod
    def unsealed(cls, folder: Path) -> ReviewGold:
        """The judge of a folder that is still being written and has no checksums yet."""
        gold = cls.__new__(cls)
        gold._load(folder)
        return gold

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One log-odds per text; 0 is neutral. Texts are joined as they are, the completion brings its own space."""
        return [self.logit(p + c) for p, c in zip(prompts, completions, strict=True)]

    def logit(self, text: str) -> float:
        """Log-odds that ``text`` is positive. A text without any known term gets the intercept."""
        dot = norm = 0.0
        for term, count in terms_of(text).items():
            if (known := self._terms.get(term)) is not None:
                idf, weight = known
                value = (1 + math.log(count)) * idf
                dot += weight * value
                norm += value * value
        return self._intercept + (dot / math.sqrt(norm) if norm else 0.0)

    def _load(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        terms = json.loads((folder / TERMS_FILE).read_text(encoding="utf-8"))
        arrays = load_file(folder / WEIGHTS_FILE)
        pairs = zip(arrays["idf"].tolist(), arrays["weight"].tolist(), strict=True)
        self._terms: dict[str, tuple[float, float]] = dict(zip(terms, pairs, strict=True))
        self._intercept = float(arrays["intercept"][0])


def vader(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """VADER's compound sentiment of prompt and completion, from -1 (negative) to 1 (positive).

    Source: Hutto & Gilbert 2014, a lexicon with rules; it shares neither data nor features with `ReviewGold`.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    texts = [p + c for p, c in zip(prompts, completions, strict=True)]
    return [float(analyzer.polarity_scores(text)["compound"]) for text in texts]
