import logging
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning.data import ComparisonData, DemonstrationData, FeedbackData, PromptData
from rlhf_lightning.errors import ConfigError, DataError

USER = {"role": "user", "content": "hi"}


def demonstrations(tokenizer, train, validation=None, **options):
    return DemonstrationData(train, validation, tokenizer, **{"batch_size": 2, "validation_fraction": 0.0} | options)


def comparisons(tokenizer, train, validation=None, **options):
    return ComparisonData(train, validation, tokenizer, **{"batch_size": 1, "validation_fraction": 0.0} | options)


def prompts(tokenizer, train, validation=None, **options):
    return PromptData(train, validation, tokenizer, **{"batch_size": 2, "validation_fraction": 0.0} | options)


def ready(data):
    data.setup("fit")
    return data


def place(data, rank, world_size):
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, overfit_batches=0)
    return data


# -------------------------------------------------------------------------------------------------- demonstrations


def test_only_completion_and_eos_are_learned(tokenizer, write):
    path = write([{"prompt": "abc", "completion": "de"}, {"prompt": "a", "completion": "b"}])
    data = ready(demonstrations(tokenizer, path))
    (batch,) = data.train_dataloader()
    texts = sorted(tokenizer.decode(ids[m]) for ids, m in zip(batch.input_ids, batch.mask, strict=True))
    assert texts == ["b</s>", "de</s>"]
    assert batch.denominator == batch.mask.sum() == 5
    assert sorted(batch.attention_mask.sum(1).tolist()) == [3, 6]
    assert data.report["supervised_tokens"] == 5
    assert data.num_train_rows == 2


@pytest.mark.parametrize("row", [{"text": "abc"}, {"prompt": "a", "completion": "bc"}])
def test_all_but_the_first_token_is_learned_where_the_whole_row_is(tokenizer, write, row):
    data = ready(demonstrations(tokenizer, write([row, row]), completion_only=False))
    batch = next(iter(data.train_dataloader()))
    assert batch.mask.tolist() == [[False, True, True, True]] * 2


def test_pads_are_never_learned_even_where_pad_is_eos(chatml, write):
    path = write([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "bcdef"}])
    batch = next(iter(ready(demonstrations(chatml, path)).train_dataloader()))
    short = batch.mask.sum(1).argmin()
    assert batch.mask[short].tolist() == [False, True, True, False, False, False, False]
    assert batch.attention_mask[short].sum() == 3
    assert batch.input_ids[short, 3:].eq(chatml.eos_token_id).all()


def test_long_rows_are_dropped_and_counted_by_default(tokenizer, write, caplog):
    path = write([{"prompt": "ab ", "completion": "de"}] + [{"prompt": c, "completion": " b"} for c in "xyz"])
    with caplog.at_level(logging.WARNING):
        data = ready(demonstrations(tokenizer, path, max_length=5))
    assert (data.report["rows"], data.report["train_rows"], data.report["dropped"]) == (4, 3, 1)
    assert [record.message for record in caplog.records] == [f"{path}: 1 dropped"]
    data.setup("fit")
    assert len(caplog.records) == 1


def test_truncation_keeps_eos_by_cutting_the_prompt_and_counts_where_it_cannot(tokenizer, write):
    path = write([{"prompt": "abcdef", "completion": "gh"}, {"prompt": "abc", "completion": "defghi"}])
    data = ready(demonstrations(tokenizer, path, max_length=5, on_long="truncate"))
    assert [tokenizer.decode(item.input_ids) for item in data.train_items] == ["efgh</s>", "cdefg"]
    assert (data.report["truncated"], data.report["truncated_without_eos"], data.report["dropped"]) == (2, 1, 0)


def test_a_row_with_nothing_to_predict_is_dropped_not_trained(tokenizer, write):
    path = write([{"text": "ab"}, {"text": "cd"}, {"text": "</s>"}])
    data = ready(demonstrations(tokenizer, path))
    assert (data.num_train_rows, data.report["dropped"]) == (2, 1)


def test_a_filler_of_validation_has_no_mask(tokenizer, write):
    data = demonstrations(tokenizer, write([{"text": "abc"}] * 4), write([{"text": "abcd"}], "v.jsonl"))
    place(data, 1, 2).setup("fit")
    (batch,) = data.val_dataloader()
    assert not batch.mask.any() and batch.attention_mask.all()
    assert data.val_items[0].padding_row().weight == 0
    assert batch.denominator == 4 / 2


# ----------------------------------------------------------------------------------------------------- comparisons


def test_pairs_become_two_ranks_and_answers_of_a_prompt_stay_together(tokenizer, write):
    path = write(
        [
            {"prompt": "p", "chosen": "good", "rejected": "b", "margin": 0.5},
            {"prompt": "qq", "completions": ["x", "yy", "z"], "ranks": [1.5, 3, 1.5]},
        ]
    )
    data = ready(comparisons(tokenizer, path, batch_size=2))
    loader = data.train_dataloader()
    loader.shuffle = False
    (batch,) = loader
    texts = [tokenizer.decode(ids[m]) for ids, m in zip(batch.input_ids, batch.attention_mask, strict=True)]
    assert texts == ["pgood</s>", "pb</s>", "qqx</s>", "qqyy</s>", "qqz</s>"]
    assert batch.prompt_index.tolist() == [0, 0, 1, 1, 1]
    assert batch.ranks.tolist() == [1, 2, 1, 2, 1]
    assert batch.lengths.tolist() == [5, 2, 2, 3, 2]
    assert batch.margins.tolist() == [0.5, 0.5, 0, 0, 0]
    assert (batch.num_prompts, batch.denominator) == (2, 2.0)
    assert data.report["pairs"] == 1 + 2


def test_implicit_prompts_and_conversations_are_split(chatml, write):
    user, yes, no = (USER, {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no!!"})
    path = write([{"chosen": [user, yes], "rejected": [user, no]}, {"chosen": "why? a b", "rejected": "why? a c"}])
    conversation, text = ready(comparisons(chatml, path)).train_items
    assert [chatml.decode(ids[-n:]) for ids, n in zip(conversation.sequences, conversation.lengths, strict=True)] == [
        "yes<|im_end|>",
        "no!!<|im_end|>",
    ]
    assert [chatml.decode(ids) for ids in text.sequences] == ["why? a b<|im_end|>", "why? a c<|im_end|>"]
    assert text.lengths == [3, 3]


def test_all_tied_rows_are_dropped_and_counted(tokenizer, write):
    rows = [{"prompt": "p", "completions": ["a", "b"], "ranks": r} for r in ([1, 1], [1, 2])]
    data = ready(comparisons(tokenizer, write(rows)))
    assert (data.num_train_rows, data.report["tied"], data.report["dropped"]) == (1, 1, 1)


def test_answers_of_a_long_prompt_share_its_tail(tokenizer, write):
    path = write([{"prompt": "abcdef", "chosen": "x", "rejected": "yyy"}])
    (item,) = ready(comparisons(tokenizer, path, max_length=6)).train_items
    assert [tokenizer.decode(ids) for ids in item.sequences] == ["efx</s>", "efyyy</s>"]


def test_a_comparison_whose_difference_is_cut_away_is_dropped_and_counted(tokenizer, write):
    rows = [
        {"prompt": "abc", "chosen": "same1", "rejected": "same2"},
        {"prompt": "abc", "completions": ["same2", "diff", "same1"], "ranks": [3, 2, 1]},
    ]
    data = ready(comparisons(tokenizer, write(rows), max_length=5))
    (item,) = data.train_items
    assert [tokenizer.decode(ids) for ids in item.sequences] == ["csame", "cdiff"]
    assert item.ranks == [1, 2]
    assert (data.report["indistinct"], data.report["dropped"]) == (1, 1)
    assert (data.report["truncated"], data.report["truncated_without_eos"]) == (2, 2)
    assert (
        ready(
            comparisons(
                tokenizer, write([*rows, {**rows[0], "chosen": "a", "rejected": "b"}]), max_length=5, on_long="drop"
            )
        ).report["too_long"]
        == 2
    )


def test_a_filler_comparison_has_no_pair_and_no_prompt(tokenizer, write):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    data = comparisons(tokenizer, write(rows * 2), write(rows, "v.jsonl"), batch_size=2)
    place(data, 1, 2).setup("fit")
    (batch,) = data.val_dataloader()
    assert batch.num_prompts == 0 and batch.ranks.unique().tolist() == [1]


# --------------------------------------------------------------------------------------------------------- prompts


def test_prompts_are_padded_on_the_left_and_keep_their_rows(tokenizer, write):
    rows = [{"prompt": "abcdef", "answer": 4}, {"prompt": "ab", "completion": "unused"}]
    data = ready(prompts(tokenizer, write(rows), max_prompt_length=3))
    loader = data.train_dataloader()
    loader.shuffle = False
    (batch,) = loader
    assert batch.attention_mask.tolist() == [[True] * 3, [False, True, True]]
    texts = [tokenizer.decode(ids[m]) for ids, m in zip(batch.input_ids, batch.attention_mask, strict=True)]
    assert texts == ["def", "ab"]
    assert batch.rows == tuple(rows)
    assert data.report["truncated"] == 1
    assert [len(b) for b in data.predict_dataloader()] == [2]


def test_long_prompts_can_be_dropped(tokenizer, write):
    rows = [{"prompt": "abcdef"}, {"prompt": "ab"}, {"prompt": "abc"}]
    data = ready(prompts(tokenizer, write(rows), max_prompt_length=3, on_long="drop"))
    assert (data.num_train_rows, data.report["dropped"]) == (2, 1)


def test_a_batch_holds_one_prompt_per_group(tokenizer, write):
    rows = [{"prompt": "abc"}, {"prompt": "ab"}, {"prompt": "a"}]
    data = ready(prompts(tokenizer, write(rows), batch_size=6, group_size=3))
    (batch,) = data.train_dataloader()
    assert len(batch) == 2
    with pytest.raises(ConfigError, match="batch_size is 6 responses; group_size=4 does not divide it"):
        prompts(tokenizer, write(rows), batch_size=6, group_size=4)


def test_a_filler_prompt_is_masked_out(tokenizer, write):
    data = prompts(tokenizer, write([{"prompt": "ab"}] * 2), write([{"prompt": "cd"}], "v.jsonl"))
    place(data, 1, 2).setup("fit")
    (batch,) = data.val_dataloader()
    assert not batch.attention_mask.any() and len(batch) == 1


# ---------------------------------------------------------------------------------------------- what they all share


@pytest.mark.parametrize("implicit", [False, True])
def test_the_held_out_part_depends_on_the_seed_alone_and_never_shares_a_prompt(tokenizer, write, implicit):
    rows = [{"prompt": f"p{i % 10}", "chosen": f"a{i}", "rejected": "b"} for i in range(40)]
    if implicit:
        rows = [{name: f"p{i % 10}\n{same}{name[0]}{i}" for name in ("chosen", "rejected")} for i in range(40)
                for same in ["ab c "[: i // 10 * 2]]]  # fmt: skip
    path = write(rows)

    def held(seed):
        data = ready(comparisons(tokenizer, path, validation_fraction=0.2, seed=seed))
        assert data.report["train_rows"] == 32 and data.report["leaks"] == 0
        first = [
            {tokenizer.decode(item.sequences[0][:2]) for item in part} for part in (data.train_items, data.val_items)
        ]
        assert not first[0] & first[1]
        return [item.sequences for item in data.val_items]

    assert len(held(0)) == 8
    assert held(0) == held(0) != held(1)


def test_few_distinct_rows_are_still_split(tokenizer, write):
    data = ready(prompts(tokenizer, write([{"prompt": "p"}] * 40), validation_fraction=0.05))
    assert (data.report["train_rows"], data.report["validation_rows"], data.report["leaks"]) == (38, 2, 2)


def test_no_validation_means_no_loader(tokenizer, write):
    data = ready(prompts(tokenizer, write([{"prompt": "p"}, {"prompt": "q"}])))
    assert data.val_dataloader() == [] and data.report["validation_rows"] == 0


def test_duplicates_and_leaks_are_counted_and_told(tokenizer, write, caplog):
    train = write([{"text": t} for t in ("a a", "b b", "a a")])
    with caplog.at_level(logging.WARNING):
        data = ready(demonstrations(tokenizer, [train], write([{"text": "b b"}, {"text": "c c"}], "v.jsonl")))
    assert (data.report["duplicates"], data.report["leaks"]) == (1, 1)
    assert "1 duplicates, 1 leaks" in caplog.text


@pytest.mark.parametrize(("rank", "told"), [(0, True), (1, False)])
def test_one_rank_tells_for_all(tokenizer, write, caplog, rank, told):
    data = demonstrations(tokenizer, [write([{"text": "a a"}, {"text": "a a"}])])
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
    data.setup("validate")
    assert ("1 duplicates" in caplog.text) is told


def test_rows_held_out_are_named_where_too_few_are_left(tokenizer, write):
    path = write([{"prompt": c} for c in "abcd"])
    with pytest.raises(
        DataError, match=r"2 training prompts are left of 4 rows .*\(2 prompts held out\).*batch_size asks for 3"
    ):
        prompts(tokenizer, path, batch_size=3, validation_fraction=0.5).setup("fit")


def test_answers_of_rankings_are_called_answers_and_the_key_is_named(tokenizer, write):
    data = FeedbackData(
        write([{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}]), None, tokenizer, batch_size=3
    )
    data.key = "kto.data."
    says = (
        r"2 training answers are left of 1 rows .*kto\.data\.batch_size asks for 3 answers.*lower kto\.data\.batch_size"
    )
    with pytest.raises(DataError, match=says):
        data.setup("fit")


def test_several_files_are_one_data_set(tokenizer, write):
    paths = [str(write([{"prompt": c}], f"{c}.jsonl")) for c in "abc"]
    assert ready(prompts(tokenizer, paths)).report["rows"] == 3


def test_too_little_data_says_the_numbers_before_training(tokenizer, write):
    path = write([{"text": "abcdefgh"}, {"text": "ab"}])
    with pytest.raises(
        DataError, match=r"1 training rows are left of 2 .*1 dropped.*batch_size asks for 2 rows: the first batch"
    ):
        demonstrations(tokenizer, path, max_length=4).setup("fit")
    with pytest.raises(DataError, match=r"none of the 2 training rows of .*rows\.jsonl is left \(2 dropped\)"):
        demonstrations(tokenizer, path, max_length=2).setup("fit")
    demonstrations(tokenizer, path, max_length=4).setup("validate")


def test_options_that_cannot_work_are_refused(tokenizer):
    for make, options in (
        (demonstrations, {"on_long": "cut"}),
        (demonstrations, {"max_length": 1}),
        (demonstrations, {"validation_fraction": 1.0}),
        (demonstrations, {"max_bad_rows": -1}),
        (comparisons, {"on_long": "truncate_left"}),
        (comparisons, {"max_length": 1}),
        (prompts, {"on_long": "truncate"}),
        (prompts, {"max_prompt_length": 0}),
    ):
        with pytest.raises(ConfigError, match=str(next(iter(options)))):
            make(tokenizer, "none.jsonl", **options)


def test_accumulation_follows_from_the_sizes(tokenizer, write):
    data = demonstrations(tokenizer, write([{"text": "p"}]), batch_size=8, micro_batch_size=2)
    assert [data.accumulate_for(n) for n in (1, 2, 4)] == [4, 2, 1]
    assert place(data, 0, 2).accumulate == 2
    with pytest.raises(ConfigError, match=r"batch_size 8 .* 3 processes"):
        data.accumulate_for(3)


def test_ranks_of_the_trainer_share_every_batch(tokenizer, write):
    path = write([{"prompt": c} for c in "abcdefgh"])
    seen = []
    for rank in (0, 1):
        data = ready(place(prompts(tokenizer, path, batch_size=4), rank, 2))
        seen.append([{row["prompt"] for row in batch.rows} for batch in data.train_dataloader()])
    assert set().union(*seen[0], *seen[1]) == set("abcdefgh")
    assert all(not a & b for a in seen[0] for b in seen[1])


def test_batches_hold_the_dtypes_of_the_contract(tokenizer, write):
    data = ready(comparisons(tokenizer, write([{"prompt": "p", "chosen": "a", "rejected": "b"}])))
    batch = next(iter(data.train_dataloader()))
    for name in ("input_ids", "prompt_index", "ranks", "lengths"):
        assert getattr(batch, name).dtype == torch.long
    assert batch.attention_mask.dtype == torch.bool and batch.margins.dtype == torch.float
