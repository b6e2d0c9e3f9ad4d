"""Word-level tokenizer over the closed vocabulary of the miniature reviews."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_lightning.tasks.miniature.words import WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, split at white space; ids 0 to 3 are pad, bos, eos and unk, words follow in their fixed order.

    No special token is added when encoding. Decoding puts one space between words, so it undoes encoding exactly.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, bos, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
