import pytest

from rlhf_lightning.data import FeedbackData
from rlhf_lightning.data.feedback import next_prompt
from rlhf_lightning.errors import ConfigError, DataError
from tests.data.test_modules import place, ready

USER = {"role": "user", "content": "hi"}
ROWS = [{"prompt": f"{c}:", "completion": c * (i + 1), "label": i % 2 == 0} for i, c in enumerate("abcdef")]


def feedback(tokenizer, train, validation=None, **options):
    return FeedbackData(train, validation, tokenizer, **{"batch_size": 2, "validation_fraction": 0.0} | options)


def texts(tokenizer, batch):
    return [tokenizer.decode(ids[m]) for ids, m in zip(batch.input_ids, batch.attention_mask, strict=True)]


@pytest.mark.parametrize(
    ("labels", "name"),
    [([True, False], "rows.jsonl"), ([1, 0], "rows.jsonl"), ([1.0, 0.0], "rows.jsonl"), (["True", "0"], "rows.csv")],
)
def test_labels_are_bools_or_one_and_zero(tokenizer, write, labels, name):
    rows = [{"prompt": "p", "completion": c, "label": y} for c, y in zip("ab", labels, strict=True)]
    if name.endswith("csv"):
        rows = "prompt,completion,label\n" + "".join(f"p,{r['completion']},{r['label']}\n" for r in rows)
    data = ready(feedback(tokenizer, write(rows, name)))
    assert [item.desirable for item in data.train_items] == [True, False]
    batch = next(iter(data.train_dataloader()))
    assert sorted(texts(tokenizer, batch)) == ["pa</s>", "pb</s>"]
    assert batch.lengths.tolist() == [2, 2] and batch.denominator == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completion": "c", "label": "good"}, "label: is 'good'; write true"),
        ({"prompt": "p", "completion": "c", "label": 2}, "label: is 2"),
        ({"prompt": "p", "completion": "c", "label": None}, "label: is null"),
        ({"prompt": "p", "completion": "", "label": True}, "completion: is empty"),
        ({"prompt": 3, "completion": "c", "label": True}, "prompt: "),
        ({"prompt": "p", "completion": "c"}, r"found a prompt\+completion row, .* KTO \(feedback\) takes prompt\+comp"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "rejected: is the same as chosen"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tokenizer, write, row, message):
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {message}"):
        ready(feedback(tokenizer, write([ROWS[0], row])))


def test_conversations_go_through_the_chat_template(chatml, write):
    rows = [
        {"prompt": [USER], "completion": [{"role": "assistant", "content": c}], "label": y}
        for c, y in (("yes", True), ("no", False))
    ]
    batch = next(iter(ready(feedback(chatml, write(rows))).train_dataloader()))
    assert all(
        t.endswith(f"assistant\n{c}<|im_end|>")
        for t, c in zip(sorted(texts(chatml, batch)), ("no", "yes"), strict=True)
    )


def test_comparisons_become_good_and_bad_answers(tokenizer, write):
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"chosen": "q: c", "rejected": "q: d"},
        {"prompt": "r", "completions": ["e", "f", "g"], "ranks": [2, 1, 3]},
        {"prompt": "s", "completions": ["h", "i", "j", "k"], "ranks": [1, 2, 2, 2]},
        {"prompt": "t", "completions": ["l", "m"], "ranks": [2, 2]},
        {"prompt": "u", "completions": ["n", "o", "v", "w"], "ranks": [3, 1, 4, 2]},
    ]
    data = ready(feedback(tokenizer, write(rows)))
    found = {tokenizer.decode(item.example.input_ids)[:-4]: item.desirable for item in data.train_items}
    assert found == {
        "pa": True, "pb": False, "q: c": True, "q: d": False, "rf": True, "rg": False,
        "sh": True, "si": False, "sj": False, "sk": False,
        "un": False, "uo": True, "uv": False, "uw": True,
    }  # fmt: skip
    assert data.report["undecided"] == 3


def test_one_label_only_is_refused(tokenizer, write):
    with pytest.raises(DataError, match="every label is true; KTO learns from good and bad answers"):
        ready(feedback(tokenizer, write([ROWS[0], ROWS[2]])))


def test_a_batch_of_one_is_refused(tokenizer, write):
    with pytest.raises(ConfigError, match="batch_size=1: must be at least 2: KTO measures"):
        feedback(tokenizer, write(ROWS), batch_size=1)


def mismatches(tokenizer, batch):
    return [] if batch.mismatched is None else texts(tokenizer, batch.mismatched)


def test_every_split_of_a_batch_sees_the_same_mismatched_answers_once(tokenizer, write):
    path = write(ROWS)
    per_split = []
    for world_size, micro in ((1, 6), (1, 2), (1, 1), (2, 1), (3, 2), (2, 3)):
        seen, own = [], []
        for rank in range(world_size):
            data = ready(place(feedback(tokenizer, path, batch_size=6, micro_batch_size=micro), rank, world_size))
            batches = list(data.train_dataloader())
            assert all(batch.mismatched is None for batch in batches[1:])
            seen += mismatches(tokenizer, batches[0])
            own += [text for batch in batches for text in texts(tokenizer, batch)]
            assert len(batches[0].mismatched.lengths) == 6 // world_size
        per_split.append((sorted(seen), sorted(own)))
    assert all(split == per_split[0] for split in per_split)
    assert not set(per_split[0][0]) & set(per_split[0][1])


def test_the_rows_left_at_the_end_of_an_epoch_have_mismatched_answers_on_every_rank(tokenizer, write):
    for batch_size, world_size, expected in ((5, 1, 1), (4, 2, 1), (4, 4, 1), (4, 1, 2)):  # of 6 rows 1 or 2 are left
        for rank in range(world_size):
            data = ready(place(feedback(tokenizer, write(ROWS), batch_size=batch_size), rank, world_size))
            last = list(data.train_dataloader())[-1]
            assert len(last.mismatched.lengths) == expected and (last.mismatched.lengths > 0).all()
            assert not set(mismatches(tokenizer, last)) & set(texts(tokenizer, last))


def test_the_mismatched_answers_of_a_batch_come_from_that_batch(tokenizer, write):
    for batch in ready(feedback(tokenizer, write(ROWS), batch_size=2)).train_dataloader():
        own, strange = texts(tokenizer, batch), texts(tokenizer, batch.mismatched)
        prompts, answers = zip(*(text.split(":") for text in own), strict=True)
        assert strange == [f"{p}:{a}" for p, a in zip(prompts, reversed(answers), strict=True)]


def test_a_prompt_gets_the_answer_of_the_next_other_prompt(tokenizer, write):
    rows = [{"prompt": p, "completion": c, "label": y} for p, c, y in (("a", "1", 1), ("a", "2", 0), ("b", "3", 1))]
    data = ready(feedback(tokenizer, write(rows)))
    items = data.train_items
    assert [tokenizer.decode(next_prompt(items, i).example.completion_ids) for i in range(3)] == [
        "3</s>",
        "3</s>",
        "1</s>",
    ]
    assert next_prompt(items[:2], 0) is items[1] and next_prompt(items[:1], 0) is items[0]
    assert mismatches_of(tokenizer, data) == ["a3</s>", "a3</s>", "b1</s>"]


def mismatches_of(tokenizer, data):
    return texts(tokenizer, data.mismatched(data.train_items, range(len(data.train_items))))


def test_mismatched_answers_fit_the_length_by_losing_the_head_of_the_prompt(tokenizer, write):
    rows = [
        {"prompt": "abcd", "completion": "x", "label": True},
        {"prompt": "e", "completion": "vwyz", "label": False},
    ]
    data = ready(feedback(tokenizer, write(rows), max_length=6))
    assert mismatches_of(tokenizer, data) == ["dvwyz</s>", "ex</s>"]
    assert data.mismatched(data.train_items, [0]).lengths.tolist() == [5]


def test_long_answers_are_dropped_or_cut(tokenizer, write):
    rows = [*ROWS, {"prompt": "abcdef", "completion": "ghi", "label": True}]
    cut = ready(feedback(tokenizer, write(rows), max_length=9))
    assert tokenizer.decode(cut.train_items[-1].example.input_ids) == "bcdefghi</s>"
    assert ready(feedback(tokenizer, write(rows), max_length=9, on_long="drop")).report["dropped"] == 1


def test_a_rank_without_rows_still_takes_part_in_validation(tokenizer, write):
    for rank, length in ((0, 2), (1, 0)):
        data = feedback(tokenizer, write(ROWS), write(ROWS[:1], "v.jsonl"), batch_size=2)
        (batch,) = ready(place(data, rank, 2)).val_dataloader()
        assert batch.lengths.tolist() == [length] and batch.mismatched.lengths.tolist() == [length]
        assert batch.attention_mask.any() and batch.mismatched.attention_mask.any()


def test_a_resumed_loader_goes_on_with_the_same_batches(tokenizer, write):
    path = write(ROWS)
    whole = ready(feedback(tokenizer, path, batch_size=2, micro_batch_size=1)).train_dataloader()
    expected = [batch for _ in range(2) for batch in whole]
    data = ready(feedback(tokenizer, path, batch_size=2, micro_batch_size=1))
    first = data.train_dataloader()
    next(iter(first)), next(iter(first))
    again = ready(feedback(tokenizer, path, batch_size=2, micro_batch_size=1))
    again.load_state_dict(data.state_dict())
    got = next(iter(again.train_dataloader()))
    assert texts(tokenizer, got) == texts(tokenizer, expected[2])
    assert mismatches(tokenizer, got) == mismatches(tokenizer, expected[2]) != []
