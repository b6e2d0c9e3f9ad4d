"""Strings that end an answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.tokens import decode


class StopStrings:
    """Whether the last token of a response has completed a stop string.

    Only the tail is decoded. A string of n bytes never takes more than n tokens that add text; one token more gives the
    first of them its leading space, which some tokenizers drop at the start of a text.

    Args:
        stop: the strings; none of them ends nothing.
        tokenizer: decodes the responses.

    Raises:
        ConfigError: there are strings, but no tokenizer.
    """

    def __init__(self, stop: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> None:
        if stop and tokenizer is None:
            raise ConfigError("sampling.stop needs the tokenizer: engine.generate(prompts, sampling, tokenizer)")
        self.stop, self.tokenizer = tuple(stop), tokenizer
        self.tail = 1 + max((len(string.encode()) for string in stop), default=0)

    def __bool__(self) -> bool:
        return bool(self.stop)

    def __call__(self, response_ids: Tensor) -> Tensor:
        """Rows whose text now contains a stop string, bool [B]; response_ids long [B, T], without padding."""
        if self.tokenizer is None or not self.stop:
            return torch.zeros(len(response_ids), dtype=torch.bool, device=response_ids.device)
        texts = decode(self.tokenizer, response_ids[:, -self.tail :])
        found = [any(string in text for string in self.stop) for text in texts]
        return torch.tensor(found, dtype=torch.bool, device=response_ids.device)
