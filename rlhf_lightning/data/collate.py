"""The id that fills padding."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any valid id; masks decide what counts, so EOS serves where there is no pad token."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
