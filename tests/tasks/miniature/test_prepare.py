import json

import pytest
import torch

from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.tasks.miniature.gold import gold
from rlhf_lightning.tasks.miniature.grammar import heldout_prompts, train_prompts
from rlhf_lightning.tasks.miniature.prepare import prepare_miniature, untrained_model, write_files
from rlhf_lightning.tasks.miniature.tokenizer import build_tokenizer
from rlhf_lightning.tasks.miniature.words import WORDS

SIZES = {"demonstrations": 40, "texts": 50, "prompts": 30, "heldout_prompts": 10}


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def contents(root):
    return {file.name: file.read_bytes() for file in root.glob("*.jsonl")}


class Trainer:
    """Stands in for the real training of the base: counts calls and moves one weight."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model, tokenizer, texts):
        self.calls += 1
        assert len(rows(texts)) >= 50
        with torch.no_grad():
            model.lm_head.weight[5, 5] = 42.0


def test_encoding_and_decoding_undo_each_other_without_unknown_words():
    tokenizer = build_tokenizer()
    text = "last night the soup at this cafe was great , and we had a new menu ."
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.split())
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_special_tokens_are_distinct_and_the_vocabulary_is_closed():
    tokenizer = build_tokenizer()
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert special == [0, 1, 2, 3]
    assert len(tokenizer) == 4 + len(WORDS)
    assert tokenizer("spaceship")["input_ids"] == [3]


def test_the_files_hold_the_asked_for_rows_and_held_out_prompts_stay_out_of_training(tmp_path):
    write_files(tmp_path, **SIZES)
    demonstrations, prompts = rows(tmp_path / "demonstrations.jsonl"), rows(tmp_path / "prompts.jsonl")
    assert (len(rows(tmp_path / "texts.jsonl")), len(demonstrations), len(prompts)) == (50, 40, 30)
    assert {row["prompt"] for row in (*demonstrations, *prompts)} <= set(train_prompts())
    assert len({row["prompt"] for row in prompts}) == 30
    for name in ("demonstrations.validation.jsonl", "prompts.validation.jsonl"):
        held_out = {row["prompt"] for row in rows(tmp_path / name)}
        assert len(held_out) == 10
        assert held_out <= set(heldout_prompts())
    seen = [row["text"] for row in rows(tmp_path / "texts.jsonl")]
    assert not any(text.startswith(f"{prompt} ") for text in seen for prompt in heldout_prompts())


def test_the_size_of_one_file_does_not_change_the_words_of_another(tmp_path):
    write_files(tmp_path / "a", **SIZES)
    write_files(tmp_path / "b", **{**SIZES, "texts": 20, "demonstrations": 45})
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert a["prompts.jsonl"] == b["prompts.jsonl"]
    assert b["texts.jsonl"] == b"".join(a["texts.jsonl"].splitlines(keepends=True)[:20])
    assert b["demonstrations.jsonl"].startswith(a["demonstrations.jsonl"])


def test_a_seed_decides_every_byte(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_files(tmp_path / name, seed=seed, **SIZES)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in ("texts.jsonl", "demonstrations.jsonl", "prompts.jsonl"))


def test_more_prompts_than_there_are_is_a_config_error_that_names_the_limit(tmp_path):
    with pytest.raises(ConfigError, match=rf"prompts=9999.*{len(train_prompts())}"):
        write_files(tmp_path, **{**SIZES, "prompts": 9999})


def test_the_first_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, two, three = untrained_model(0), untrained_model(0), untrained_model(1)
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.model.embed_tokens.weight, three.model.embed_tokens.weight)
    assert 0.3e6 < sum(p.numel() for p in one.parameters()) < 0.5e6


def test_the_trained_base_loads_from_its_folder_with_its_tokenizer(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert prepare_miniature(tmp_path, Trainer(), **SIZES) == tmp_path
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert model.get_output_embeddings().weight[5, 5] == 42.0
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert tokenizer.decode(tokenizer("the soup , and")["input_ids"]) == "the soup , and"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)


def test_the_base_is_trained_once_and_again_only_when_its_texts_change(tmp_path):
    train = Trainer()
    prepare_miniature(tmp_path, train, **SIZES)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    prepare_miniature(tmp_path, train, **SIZES)
    assert train.calls == 1
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    prepare_miniature(tmp_path, train, **{**SIZES, "prompts": 20})
    assert train.calls == 1 and len(rows(tmp_path / "prompts.jsonl")) == 20
    prepare_miniature(tmp_path, train, **{**SIZES, "texts": 60})
    assert train.calls == 2


def test_a_damaged_folder_and_one_with_files_of_the_user_are_named_and_left(tmp_path):
    prepare_miniature(tmp_path, Trainer(), **SIZES)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds notes\.txt, which this library has not written"):
        prepare_miniature(tmp_path, Trainer(), **SIZES)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 7 bytes, expected"):
        prepare_miniature(tmp_path, Trainer(), **SIZES)


def test_a_crash_while_training_leaves_no_base_behind(tmp_path):
    def crash(model, tokenizer, texts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_miniature(tmp_path, crash, **SIZES)
    assert not (tmp_path / "base").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_gold_judge_reads_completions_with_their_leading_space(tmp_path):
    write_files(tmp_path, **SIZES)
    for row in rows(tmp_path / "demonstrations.jsonl"):
        assert row["completion"].startswith(" ")
        assert gold([row["prompt"]], [row["completion"]]) == gold([row["prompt"]], [row["completion"].strip()])
