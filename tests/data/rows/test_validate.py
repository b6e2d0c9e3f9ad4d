import pytest

from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.data.rows.repeats import count_repeats
from rlhf_lightning.data.rows.types import row_type
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.errors import DataError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
RANKING = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def count_repeated(train, held_out, kind):
    found = count_repeats(kind, train, held_out)
    return found["duplicates"], found["leaks"]


def located(*rows):
    return [LocatedRow(row, "f.jsonl", index) for index, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("demonstrations", {"prompt": "p", "completion": "c", "source": None}),
        ("demonstrations", {"prompt": [USER], "completion": [ASSISTANT]}),
        ("demonstrations", {"messages": [{"role": "system", "content": ""}, USER, ASSISTANT, USER]}),
        ("demonstrations", {"text": "t", "prompt": None, "completion": None}),
        ("comparisons", PAIR),
        ("comparisons", PAIR | {"margin": 2}),
        ("comparisons", {"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "no"}]}),
        ("comparisons", RANKING),
        ("comparisons", RANKING | {"ranks": [1.5, 1.5]}),
        ("prompts", {"prompt": "p"}),
        ("prompts", PAIR),
        ("prompts", {"prompt": [USER]}),
    ],
)
def test_rows_of_the_stage_pass_unchanged(kind, row):
    rows = located(row)
    assert validate_rows(rows, kind) == rows


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("demonstrations", {"prompt": "p", "completion": ""}, "completion: is empty"),
        ("demonstrations", {"prompt": " \n", "completion": "c"}, "prompt: is empty"),
        ("demonstrations", {"prompt": "p", "completion": None}, "completion: is null"),
        ("demonstrations", {"prompt": "p", "completion": 3}, "completion: is a int"),
        ("demonstrations", {"prompt": [ASSISTANT], "completion": [ASSISTANT]}, "prompt: .* must not be from"),
        ("demonstrations", {"prompt": [USER], "completion": [USER]}, "completion: .* must be from the assistant"),
        ("demonstrations", {"prompt": [], "completion": [USER]}, "prompt: has no messages"),
        ("demonstrations", {"messages": [USER]}, "messages: no message is from the assistant"),
        ("demonstrations", {"messages": "hi"}, "messages: is a str"),
        ("demonstrations", {"messages": [{"role": "user"}]}, r"messages\[0\].content: is null"),
        ("demonstrations", {"messages": [USER, {"role": 1, "content": "x"}]}, r"messages\[1\].role: is a int"),
        ("demonstrations", {"messages": [USER, {**ASSISTANT, "content": ""}]}, r"messages\[1\].content: is empty"),
        ("demonstrations", {"messages": ["hi"]}, r"messages\[0\]: is a str"),
        ("demonstrations", {"text": ["t"]}, "text: is a list"),
        ("comparisons", PAIR | {"chosen": "b"}, "rejected: is the same as chosen"),
        ("comparisons", PAIR | {"rejected": ""}, "rejected: is empty"),
        ("comparisons", PAIR | {"prompt": ""}, "prompt: is empty"),
        ("comparisons", PAIR | {"margin": "big"}, "margin: is 'big'"),
        ("comparisons", PAIR | {"margin": float("nan")}, "margin: is nan"),
        ("comparisons", PAIR | {"chosen": [ASSISTANT]}, "chosen: a list of messages beside text"),
        ("comparisons", RANKING | {"completions": [], "ranks": []}, "completions: has 0 answers"),
        ("comparisons", RANKING | {"completions": ["a"], "ranks": [1]}, "completions: has 1 answers"),
        ("comparisons", RANKING | {"ranks": [1]}, "ranks: has 1 numbers for 2"),
        ("comparisons", RANKING | {"ranks": [1, True]}, "ranks: holds True"),
        ("comparisons", RANKING | {"ranks": [1, None]}, "ranks: holds null"),
        ("comparisons", RANKING | {"ranks": [1, float("inf")]}, "ranks: holds inf"),
        ("comparisons", RANKING | {"ranks": "one, two"}, "ranks: is a list that was written as text"),
        ("comparisons", RANKING | {"completions": ["a", ""]}, r"completions\[1\]: is empty"),
        ("prompts", {"prompt": ""}, "prompt: is empty"),
        ("prompts", {"prompt": 5}, "prompt: is a int"),
    ],
)
def test_a_bad_field_is_named_with_file_line_and_reason(kind, row, message):
    good = {"prompt": "p", "completion": "c"} if kind == "demonstrations" else RANKING
    with pytest.raises(DataError, match=rf"f\.jsonl:2: {message}"):
        validate_rows(located(good, row), kind)


@pytest.mark.parametrize(
    ("kind", "row", "found", "owner", "takes"),
    [
        ("demonstrations", PAIR, "prompt+chosen+rejected", "the reward model", "prompt+completion or messages or text"),
        ("demonstrations", RANKING, "prompt+completions+ranks", "the reward model", "messages"),
        ("demonstrations", {"prompt": "p"}, "prompt", "sampling and PPO", "messages"),
        ("comparisons", {"prompt": "p", "completion": "c"}, "prompt+completion", "supervised", "chosen+rejected"),
        (
            "prompts",
            {"messages": [USER, ASSISTANT]},
            "messages",
            "supervised fine-tuning",
            "PPO (prompts) takes prompt",
        ),
    ],
)
def test_the_wrong_file_for_a_stage_says_what_was_found_and_which_stage_takes_it(kind, row, found, owner, takes):
    with pytest.raises(DataError) as caught:
        validate_rows(located(row), kind)
    assert f"found a {found} row, which is for {owner}" in str(caught.value)
    assert takes in str(caught.value)


def test_unknown_columns_alone_are_listed():
    with pytest.raises(DataError, match="columns answer, question are no known row type"):
        validate_rows(located({"question": "q", "answer": "a"}), "demonstrations")


def test_the_type_a_stage_takes_wins_over_extra_columns():
    row = {"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b"}
    assert row_type(row, "demonstrations") == "prompt+completion"
    assert row_type(row, "comparisons") == "prompt+chosen+rejected"
    assert row_type(row, "prompts") == "prompt"


def test_repeats_and_leaks_are_counted_by_what_trains_and_not_by_extra_columns():
    def rows(*texts):
        return [{"text": text, "id": index} for index, text in enumerate(texts)]

    assert count_repeated(rows("a", "b", "a", "a"), rows("c", "b", "b"), "demonstrations") == (2, 2)


def test_a_comparison_leaks_by_its_prompt_wherever_that_stands():
    def pair(prompt, a, b):
        return {
            "chosen": f"\n\nHuman: {prompt}\n\nAssistant: {a}",
            "rejected": f"\n\nHuman: {prompt}\n\nAssistant: {b}",
        }

    train = [pair("why", "so it is", "so it was"), {"prompt": "how", "chosen": "a", "rejected": "b"}]
    held_out = [pair("why", "so what", "no"), pair("who", "so it is", "so it was"), train[1] | {"chosen": "c"}]
    assert count_repeated(train, held_out, "comparisons") == (0, 2)


@pytest.mark.parametrize(
    ("kind", "rows", "count"),
    [
        ("comparisons", [PAIR, PAIR, {**PAIR, "chosen": "b", "rejected": "a"}], 1),
        ("comparisons", [PAIR, {**PAIR, "prompt": "q", "chosen": "b", "rejected": "a"}], 0),
        ("comparisons", [RANKING, {"prompt": "p", "completions": ["b", "a", "c"], "ranks": [1, 2, 2]}], 1),
        ("comparisons", [{"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "no"}]}] * 2, 0),
        ("feedback", [{"prompt": "p", "completion": "c", "label": label} for label in (True, "false", True)], 1),
        ("feedback", [PAIR, {**PAIR, "chosen": "b", "rejected": "a"}], 1),
        ("demonstrations", [{"text": "a"}, {"text": "b"}], 0),
    ],
)
def test_contradictions_are_counted(kind, rows, count):
    assert count_repeats(kind, rows, [])["contradictions"] == count
