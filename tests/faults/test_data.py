"""Broken, hostile and useless data, case by case: numbers are those of the comments, messages name file and line."""

import hashlib
import json
import logging
import random
import tracemalloc

import pytest
from lightning.pytorch import Trainer

from rlhf_lightning.checkpoint import verify_folder
from rlhf_lightning.config.compose import compose
from rlhf_lightning.data import ComparisonData, DemonstrationData, FeedbackData, PromptData
from rlhf_lightning.data.readers.files import iter_rows, read_rows
from rlhf_lightning.data.readers.lines import MAX_LINE_BYTES
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.data.rows.validate import load_rows, validate_rows
from rlhf_lightning.errors import DataError
from rlhf_lightning.stages.pipeline import run
from tests.support import tiny

PAIR = {"prompt": "the food", "chosen": "was good", "rejected": "was bad"}
DEMONSTRATION = {"prompt": "the food", "completion": "was good"}
MODULES = {
    "demonstrations": (DemonstrationData, DEMONSTRATION),
    "comparisons": (ComparisonData, PAIR),
    "feedback": (FeedbackData, DEMONSTRATION | {"label": True}),
    "prompts": (PromptData, {"prompt": "the food"}),
}


@pytest.fixture
def write(tmp_path):
    def write_file(rows, name="rows.jsonl"):
        """Rows as JSON, bytes and text as they are, one a line."""
        lines = [row if isinstance(row, (bytes, str)) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
        return path

    return write_file


def module(kind, train, validation=None, **options):
    return MODULES[kind][0](
        train, validation, tiny.tokenizer(), **{"batch_size": 2, "validation_fraction": 0.0} | options
    )


# What is wrong with a line, and where it is wrong
BROKEN = {
    "truncated": (b'{"prompt": "a', "{where}:12: broken JSON"),
    "trailing comma": (b'{"prompt": "a",}', "{where}:16: broken JSON: trailing comma"),
    "two objects": (b'{"prompt": "a"} {"prompt": "b"}', "{where}:17: more than one value"),
}
NOT_TEXT = {
    "invalid UTF-8": (b'{"prompt": "\xff"}', "{where}:13: byte 0xff is not UTF-8"),
    "NUL": (b'{"prompt": "\x00"}', "{where}:13: NUL character"),
    "escaped NUL": (b'{"prompt": "\\u0000"}', "{where}:13: NUL character"),
    "lone surrogate": (b'{"prompt": "\\udc00"}', "{where}:13: lone surrogate"),
}
NOT_A_ROW = {
    "a key twice": (b'{"prompt": "a", "prompt": "b"}', "{where}: prompt: is there more than once"),
    "missing field": (b'{"answer": "a"}', "{where}: columns answer are no known row type"),
    "null": (b'{"prompt": null}', "{where}: prompt: is null"),
    "wrong type": (b'{"prompt": 7}', "{where}: prompt: is a int"),
    "NaN": (b'{"prompt": "a", "x": NaN}', "{where}:22: NaN is not JSON"),
    "huge integer": (b'{"prompt": "a", "x": ' + b"9" * 10_000 + b"}", "{where}:22: Exceeds the limit"),
    "nesting bomb": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "{where}:1: lists or objects are nested"),
    "small nesting bomb": (b'{"prompt": ' + b"[" * 90 + b"]" * 90 + b"}", "{where}:1: lists or objects are nested"),
    "empty": (b'{"prompt": ""}', "{where}: prompt: is empty"),
}


def check_bad_line(write, caplog, line, says):
    """The third line is refused with its place, or left out within the budget and counted."""
    path = write([{"prompt": "the food"}, {"prompt": "was"}, line, {"prompt": "good"}])
    says = says.format(where=f"{path}:3")
    with pytest.raises(DataError) as refused:
        module("prompts", path).setup("fit")
    assert str(refused.value).startswith(says) and len(str(refused.value)) < 400
    assert refused.value.exit_code == 3
    data = module("prompts", path, max_bad_rows=1)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert [item.row["prompt"] for item in data.train_items] == ["the food", "was", "good"]
    assert (data.report["rows"], data.report["train_rows"], data.report["bad_rows"]) == (4, 3, 1)
    assert f"1 rows are left out (max_bad_rows is 1):\n{says}" in caplog.text


@pytest.mark.parametrize("fault", BROKEN)
def test_case_30_a_broken_line_is_an_error_or_left_out_within_the_budget(write, caplog, fault):
    check_bad_line(write, caplog, *BROKEN[fault])


@pytest.mark.parametrize("fault", NOT_TEXT)
def test_case_31_a_line_that_is_not_text_is_an_error_or_left_out_within_the_budget(write, caplog, fault):
    check_bad_line(write, caplog, *NOT_TEXT[fault])


@pytest.mark.parametrize("fault", NOT_A_ROW)
def test_case_32_a_line_that_is_not_a_row_is_an_error_or_left_out_within_the_budget(write, caplog, fault):
    check_bad_line(write, caplog, *NOT_A_ROW[fault])


def test_case_30_more_bad_rows_than_the_budget_are_counted_and_the_first_ones_named(write):
    path = write([{"prompt": "a"}, *["{"] * 4, {"prompt": ""}, {"prompt": 1}, *["{"] * 3, {"prompt": "b"}])
    with pytest.raises(DataError) as refused:
        load_rows([path], "prompts", 8)
    lines = str(refused.value).splitlines()
    assert [line.split(":")[1] for line in lines[:5]] == ["2", "3", "4", "5", "6"]  # in the order of the file
    assert lines[5:] == ["... and 4 more", "9 of 11 rows cannot be used (max_bad_rows is 8)."]
    assert len(load_rows([path], "prompts", 9)[0]) == 2


def test_case_30_the_budget_is_one_for_all_files_and_never_covers_all_rows(write):
    paths = [write(["{", {"prompt": "a"}], "a.jsonl"), write(["{", "{"], "b.jsonl")]
    with pytest.raises(DataError, match=r"3 of 4 rows cannot be used \(max_bad_rows is 2\)"):
        load_rows(paths, "prompts", 2)
    assert load_rows(paths, "prompts", 3)[1] == 3
    with pytest.raises(DataError, match=r"2 of 2 rows cannot be used"):
        load_rows(paths[1:], "prompts", 100)


def test_bad_validation_rows_have_a_budget_of_their_own(write):
    train, validation = write([{"prompt": "a"}, {"prompt": "b"}, "{"]), write(["{", {"prompt": "a"}], "v.jsonl")
    data = module("prompts", train, validation, max_bad_rows=1)
    data.setup("fit")
    assert (data.report["bad_rows"], data.report["validation_bad_rows"]) == (1, 1)


def test_case_31_byte_order_mark_and_crlf_are_accepted(write):
    rows = read_rows(write([b'\xef\xbb\xbf{"prompt": "a"}\r', b"\r", b'{"prompt": "b"}\r']))
    assert [(row.line, row.row) for row in rows] == [(1, {"prompt": "a"}), (3, {"prompt": "b"})]


@pytest.mark.parametrize(
    ("kind", "field", "value", "reason"),
    [
        ("demonstrations", "prompt", "", "is empty"),
        ("demonstrations", "completion", " \n", "is empty"),
        ("comparisons", "chosen", "", "is empty"),
        ("comparisons", "rejected", "\t", "is empty"),
        ("comparisons", "margin", 10**400, "is 1000"),
        ("comparisons", "margin", 1e39, r"is 1e\+39"),  # infinite as a 32 bit float
        ("feedback", "label", {"a": "b" * 1000}, "is {'a': 'bbb"),
    ],
)
def test_case_33_a_field_that_teaches_nothing_is_refused_or_left_out_and_counted(write, kind, field, value, reason):
    row = MODULES[kind][1]
    other = {"label": False} if kind == "feedback" else {}
    path = write([row, row | other, row | {field: value}])
    with pytest.raises(DataError, match=f"rows.jsonl:3: {field}: {reason}") as refused:
        module(kind, path).setup("fit")
    assert len(str(refused.value)) < 300
    data = module(kind, path, max_bad_rows=1)
    data.setup("fit")
    assert (data.num_train_rows, data.report["bad_rows"]) == (2, 1)


def test_case_34_an_answer_that_is_preferred_to_itself_is_refused_or_left_out_and_counted(write):
    path = write([PAIR, PAIR, PAIR | {"rejected": PAIR["chosen"]}])
    with pytest.raises(DataError, match=r"rows.jsonl:3: rejected: is the same as chosen, so nothing is preferred"):
        module("comparisons", path).setup("fit")
    data = module("comparisons", path, max_bad_rows=1)
    data.setup("fit")
    assert (data.num_train_rows, data.report["bad_rows"]) == (2, 1)


def test_a_pair_without_a_shared_beginning_is_refused_before_anything_is_encoded(write):
    path = write([{"chosen": "so it was", "rejected": "no it was"}, {"chosen": "it was", "rejected": "it is"}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: chosen and rejected do not begin alike"):
        load_rows([path], "comparisons", 0)
    assert [row.line for row in load_rows([path], "comparisons", 1)[0]] == [2]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_case_35_a_row_of_100_megabytes_is_refused_in_bounded_memory_and_the_next_one_read(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"text\n" if name.endswith("csv") else b'{"text": "first"}\n')
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b"\nlast\n" if name.endswith("csv") else b'\n{"text": "last"}\n')
    problems = Problems()
    tracemalloc.start()
    rows = validate_rows(iter_rows(path, problems), "demonstrations", problems)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows[-1].row == {"text": "last"} and rows[-1].line == 3
    assert problems.first == [f"{path}:2: the line is longer than {MAX_LINE_BYTES} bytes; split or shorten the row."]
    assert peak < 4 * MAX_LINE_BYTES


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n"])
@pytest.mark.parametrize("kind", MODULES)
def test_case_35_a_file_without_rows_is_an_error_whatever_the_budget(tmp_path, content, kind):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"rows.jsonl: the file has no rows \({len(content)} bytes\)"):
        module(kind, path, max_bad_rows=5).setup("fit")


@pytest.mark.parametrize("on_long", ["drop", "truncate"])
def test_case_36_no_length_limit_ever_leaves_an_empty_response(write, on_long):
    draw = random.Random(0)

    def words(most):
        return " ".join(draw.choices(tiny.WORDS, k=draw.randint(1, most)))

    rows = [{"prompt": words(7), "chosen": words(7), "rejected": words(7) + " slow slow"} for _ in range(300)]
    rows = [row for row in rows if row["chosen"] != row["rejected"]]
    answers = [{**row, "completion": row["chosen"], "label": i % 2 == 0} for i, row in enumerate(rows)]
    answers = [{k: row[k] for k in ("prompt", "completion", "label")} for row in answers]
    pairs, single = write(rows), write(answers, "single.jsonl")
    learned = write([{k: row[k] for k in ("prompt", "completion")} for row in answers], "learned.jsonl")
    for limit in (5, 9):
        found = {}
        for kind, path in (("comparisons", pairs), ("demonstrations", learned), ("feedback", single)):
            found[kind] = data = module(kind, path, max_length=limit, on_long=on_long)
            data.setup("validate")
            assert data.report["rows"] == data.report["train_rows"] + data.report["dropped"]
            assert data.report["dropped" if on_long == "drop" else "truncated"] > 10
        for item in found["comparisons"].train_items:
            assert all(0 < n < len(s) <= limit for n, s in zip(item.lengths, item.sequences, strict=True))
            assert len({tuple(sequence) for sequence in item.sequences}) == len(item.sequences) >= 2
        for item in found["demonstrations"].train_items:
            assert any(item.mask) and not item.mask[0] and len(item.input_ids) <= limit
        for item in found["feedback"].train_items:
            assert item.example.completion_ids and item.example.prompt_ids and len(item.example) <= limit
    for policy, kept in (("truncate_left", len(answers)), ("drop", None)):
        data = module("prompts", single, max_prompt_length=4, on_long=policy)
        data.setup("fit")
        assert kept in (None, data.num_train_rows) and all(1 <= len(item.ids) <= 4 for item in data.train_items)
        assert data.report["dropped" if policy == "drop" else "truncated"] > 50


def test_case_37_a_difference_that_the_limit_cuts_away_is_dropped_and_counted(write):
    same = "was good and very kind and"
    path = write([{"prompt": "the food", "chosen": f"{same} happy", "rejected": f"{same} slow"}, PAIR, PAIR])
    data = module("comparisons", path, max_length=6)
    data.setup("fit")
    assert (data.num_train_rows, data.report["indistinct"], data.report["dropped"]) == (2, 1, 1)


@pytest.mark.parametrize("kind", MODULES)
def test_case_38_less_than_a_batch_is_an_error_before_training(write, kind):
    path = write([MODULES[kind][1]] * 2)
    with pytest.raises(
        DataError,
        match=r"2 training \w+ are left of 2 rows .*batch_size asks for 3 \w+: the first batch would not be full",
    ):
        module(kind, path, batch_size=3).setup("fit")


@pytest.mark.parametrize("kind", ["demonstrations", "comparisons", "prompts"])
def test_case_39_repeated_and_leaked_rows_are_counted_and_told(write, caplog, kind):
    row = MODULES[kind][1]
    other = row | {"prompt": "we left"}
    data = module(kind, write([row, row | {"id": 1}, other]), write([other, row | {"prompt": "happy"}], "v.jsonl"))
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "1 duplicates, 1 leaks" in caplog.text


@pytest.mark.parametrize("kind", MODULES)
def test_case_40_every_wrong_file_for_a_stage_says_what_it_is_and_who_takes_it(write, kind):
    rows = {
        "demonstrations": ({"text": "a"}, "found a text row, which is for supervised fine-tuning"),
        "comparisons": ({"chosen": "a b", "rejected": "a c"}, "found a chosen+rejected row, which is for the reward"),
        "prompts": ({"prompt": "a"}, "found a prompt row, which is for sampling and PPO"),
        "feedback": ({"prompt": "a", "completion": "b", "label": 1}, "found a prompt+completion+label row"),
    }
    for owner, (row, says) in rows.items():
        if owner == kind or (owner, kind) in (
            ("comparisons", "feedback"),  # comparisons are taken as feedback
            ("feedback", "demonstrations"),  # and whatever holds the columns that a stage needs
            ("feedback", "prompts"),
            ("comparisons", "prompts"),  # whose prompt is what both answers begin with
        ):
            assert load_rows([write([row])], kind, 0)
            continue
        with pytest.raises(DataError, match=rf"rows.jsonl:1: {says}.* takes ".replace("+", r"\+")):
            load_rows([write([row])], kind, 0)


def test_case_41_rankings_skip_ties_and_need_two_answers(write):
    base = {"prompt": "the food"}
    good = [base | {"completions": ["good", "bad", "slow"], "ranks": ranks} for ranks in ([1, 2, 2], [1, 1, 1])]
    bad = [base | {"completions": ["good"][:k], "ranks": [1][:k]} for k in (0, 1)]
    data = module("comparisons", write([*good, *bad]), batch_size=1, max_bad_rows=2)
    data.setup("fit")
    assert [data.report[name] for name in ("pairs", "tied", "bad_rows", "train_rows")] == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("demonstrations", {"completion": "was slow"}),
        ("demonstrations", {"prompt": "the", "completion": "food was good"}),  # the same tokens, others to learn
        ("comparisons", {"margin": 0.5}),
        ("prompts", {"reference": "good"}),  # a column that a reward function may read
    ],
)
def test_case_42_a_file_that_changed_since_the_checkpoint_is_refused_by_its_hash(write, kind, change):
    def state(rows):
        data = module(kind, write(rows))
        data.setup("fit")
        data.trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
        data.train_dataloader()
        return data, data.state_dict()

    row = MODULES[kind][1]
    _, saved = state([row, row])
    same, _ = state([dict(reversed(row.items())), row])
    same.load_state_dict(saved)
    changed, now = state([row, row | change])
    then, later = saved["data"][:12], now["data"][:12]
    says = rf"rows.jsonl: the training rows are not those of the checkpoint \(SHA-256 {then} then, {later} now\)"
    with pytest.raises(DataError, match=says):
        changed.load_state_dict(saved)


# The whole stage: exit code 3, the row left out, the hash in the exported folder
def test_case_32_a_stage_ends_with_code_3_or_trains_without_the_bad_row_and_records_the_hash(write, tmp_path):
    tiny.policy().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    path = write([DEMONSTRATION, DEMONSTRATION, DEMONSTRATION | {"completion": ""}])
    words = [
        "stage=sft", "task=custom", f"model.path={tmp_path / 'model'}", f"data.demonstrations={path}", "trainer=cpu",
        "logger=none", "sft.data.batch_size=2", "sft.data.validation_fraction=0.0", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with pytest.raises(DataError) as error:
        run(compose(words))
    assert error.value.exit_code == 3
    assert str(error.value) == f"{path}:3: completion: is empty; fill it or delete the row."
    run(compose([*words, "sft.data.max_bad_rows=1"]))
    record = verify_folder(tmp_path / "run" / "sft")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["parents"]["data"] == {"path": str(path), "sha256": digest}
