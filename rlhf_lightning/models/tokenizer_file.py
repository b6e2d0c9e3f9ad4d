"""Whether a tokenizer cuts texts as its ``tokenizer.json`` says."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf_lightning.console.display import plain

log = logging.getLogger(__name__)
# What pre-tokenizers and normalizers treat in different ways.
_TEXTS = (
    "hello world", " Two  spaces", "It's 650841823 or 3.14, isn't it?", "a\n\n\tb\n", "x_1 = f(y)[0] != 'z'  # note",
    "Ünïcödé Straße ﬁne", "日本語のテキスト 你好", "🙂 Привет мир", "CamelCase ALLCAPS",
)  # fmt: skip


def as_file_says(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer, or one that follows ``tokenizer.json`` to the letter where this one does not.

    For some model types, and for the class that ``tokenizer_config.json`` names, transformers 5 builds normalizer,
    pre-tokenizer and decoder anew from what the class is used to, and takes from the file only vocabulary and merges
    (https://github.com/huggingface/transformers/issues/45488, /issues/45920). A model trained with other parts then
    reads other tokens, and no message says so.
    """
    file = Path(path) / "tokenizer.json"
    if type(tokenizer) is PreTrainedTokenizerFast or not tokenizer.is_fast or not file.is_file():
        return tokenizer
    written = Tokenizer.from_file(str(file))
    expected = [encoding.ids for encoding in written.encode_batch(list(_TEXTS), add_special_tokens=False)]

    def agrees(other: PreTrainedTokenizerBase) -> bool:
        return other(list(_TEXTS), add_special_tokens=False, verbose=False)["input_ids"] == expected

    if agrees(tokenizer):
        return tokenizer
    plainly = PreTrainedTokenizerFast.from_pretrained(str(path))
    if not agrees(plainly):
        return tokenizer  # tokenizer_config.json changes it, as it may: add_prefix_space
    _tell(str(path), type(tokenizer).__name__)
    return plainly


@cache
def _tell(path: str, name: str) -> None:
    log.warning(
        "%s: %s of transformers does not cut texts as tokenizer.json says; tokenizer.json is followed",
        plain(path),
        name,
    )
