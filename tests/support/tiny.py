"""Small models, tokenizers and prompts that several tests share. Built on the spot, nothing is downloaded."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lightning.functional.sequences import left_pad
from rlhf_lightning.models.adapters import Lora
from rlhf_lightning.types import PromptBatch

WORDS = ["the", "food", "was", "good", "bad", "very", "and", "service", "slow", "kind", "we", "left", "happy", "."]


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, ids: pad 0, eos 1, unk 2, then `WORDS`."""
    vocab = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def policy(seed: int = 0, layers: int = 2, scale: float = 1.0, positions: int = 64) -> LlamaForCausalLM:
    """A random Llama over the vocabulary of `tokenizer`; a larger ``scale`` makes it more certain."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=3 + len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).train()
    with torch.no_grad():
        model.lm_head.weight.mul_(20 * scale)
    return model


def prompts(*texts: str, repeats: int = 1) -> PromptBatch:
    """A batch of prompts, padded on the left."""
    tok = tokenizer()
    texts = tuple(text for text in texts for _ in range(repeats))
    ids, mask = left_pad([tok(text).input_ids for text in texts], tok.pad_token_id)
    return PromptBatch(ids, mask, tuple({"prompt": text} for text in texts))


class Prompts:
    """A loader of the same prompts, ``steps`` times."""

    def __init__(self, batch: PromptBatch, steps: int) -> None:
        self.batch, self.steps, self.batch_size = batch, steps, len(batch)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        return iter([self.batch] * self.steps)

    def draw(self) -> PromptBatch:
        """The same prompts again."""
        return self.batch


def adapted(model, wanted=True):
    """The model with adapters, the same ones each time, or as it is."""
    if wanted:
        torch.manual_seed(0)
        Lora().put_into(model)
    return model
