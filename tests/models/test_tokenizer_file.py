"""transformers builds some tokenizers anew; the file in the folder is what the model was trained with."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from rlhf_lightning.models.loading import load_tokenizer
from rlhf_lightning.models.tokenizer_file import _tell

TEXT = "hello 650841823 world"


def folder(tmp_path, model_type, tokenizer_class, inner, **config):
    written = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    written.save_pretrained(tmp_path)
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": tokenizer_class} | config))
    return tmp_path


def words():
    names = ["<pad>", "<eos>", "<unk>", "hello", "world", "650841823"]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return inner


def bytes_with_own_digits():
    """Byte-level BPE that cuts numbers into three digits, where GPT-2's pattern does not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<eos>", "<unk>", *alphabet, "65", "650", "84", "841", "82", "823", "6508"]
    merges = [("6", "5"), ("65", "0"), ("8", "4"), ("84", "1"), ("8", "2"), ("82", "3"), ("650", "8")]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token="<unk>"))
    split = pre_tokenizers.Split(Regex(r"\d{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    inner.decoder = decoders.ByteLevel()
    return inner


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class", "inner"),
    [
        ("qwen2", "TokenizersBackend", words),
        ("qwen3_5_moe_text", "TokenizersBackend", words),
        ("llama", "LlamaTokenizerFast", bytes_with_own_digits),
        ("gpt2", "GPT2TokenizerFast", bytes_with_own_digits),
        ("olmo2", "GPT2Tokenizer", bytes_with_own_digits),
        ("qwen2", "Qwen2Tokenizer", bytes_with_own_digits),
    ],
)
def test_a_text_is_cut_as_the_file_says(tmp_path, caplog, model_type, tokenizer_class, inner):
    path = folder(tmp_path, model_type, tokenizer_class, inner())
    expected = Tokenizer.from_file(str(path / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    _tell.cache_clear()
    differs = AutoTokenizer.from_pretrained(path)(TEXT, add_special_tokens=False)["input_ids"] != expected
    loaded = load_tokenizer(path)
    assert loaded(TEXT, add_special_tokens=False)["input_ids"] == expected
    assert loaded.decode(expected) == TEXT
    assert (loaded.eos_token, loaded.pad_token) == ("<eos>", "<pad>")
    assert ("tokenizer.json is followed" in caplog.text) is differs
    loaded.save_pretrained(tmp_path / "exported")
    AutoConfig.for_model(model_type).save_pretrained(tmp_path / "exported")
    again = load_tokenizer(tmp_path / "exported")
    assert again(TEXT, add_special_tokens=False)["input_ids"] == expected


def test_a_tokenizer_that_follows_its_file_is_left_alone(tmp_path, caplog):
    inner = Tokenizer(models.BPE({"<pad>": 0, "<eos>": 1, "<unk>": 2, "a": 3, "Ġ": 4}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    _tell.cache_clear()
    assert type(load_tokenizer(folder(tmp_path, "gpt2", "GPT2TokenizerFast", inner))).__name__ == "GPT2Tokenizer"
    assert "followed" not in caplog.text
