"""A tiny model with its rows, and what transformers alone says about them: one row at a time, no padding, no mask."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from benchmarks.families_tiny import VISION, VOCABULARY
from rlhf_lightning.functional.sequences import left_pad, right_pad
from rlhf_lightning.models import Pretrained
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.packing import adjacent_groups
from rlhf_lightning.types import PromptBatch

TOLERANCE = 1e-4  # nats, units of a score, or a share of the norm of the gradient
LENGTHS = [(24, 16), (24, 5), (4, 14), (4, 9), (13, 8), (13, 12)]  # of prompts and answers; neighbours share a prompt


class Wrong(Exception):
    """Other numbers than plain transformers."""


def close(found: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> str:
    """How far two tensors are apart. Raises: Wrong: further than ``tolerance``, or not finite."""
    gap = float((found.detach().double() - expected.detach().double()).abs().max())
    if not gap <= tolerance:
        raise Wrong(f"{what} {gap:.2g}")
    return f"{gap:.0e}"


class World:
    """A folder with a tiny model, its rows, and what plain transformers says about them."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder / "model"
        self.scratch = folder
        source = torch.Generator().manual_seed(5)
        prompts: dict[int, list[int]] = {}
        self.rows: list[tuple[list[int], list[int]]] = []
        for prompt, answer in LENGTHS:
            if prompt not in prompts:
                prompts[prompt] = torch.randint(3, VOCABULARY, (prompt,), generator=source).tolist()
            drawn = torch.randint(3, VOCABULARY, (answer,), generator=source).tolist()
            self.rows.append((prompts[prompt], drawn))
        left, left_mask = left_pad([row[0] for row in self.rows], 0)
        right, right_mask = right_pad([row[1] for row in self.rows], 0)
        self.ids, self.attention = torch.cat([left, right], 1), torch.cat([left_mask, right_mask], 1)
        self.mask = torch.cat([torch.zeros_like(left_mask), right_mask], 1)
        self.prompts = PromptBatch(left, left_mask, tuple({"prompt": ""} for _ in self.rows))
        self.groups = adjacent_groups(left, left_mask)

    def load(self, folder: Path | None = None) -> PreTrainedModel:
        """Plain transformers on a folder."""
        auto: Any = AutoModelForImageTextToText if self.kind.split("/")[0] in VISION else AutoModelForCausalLM
        return auto.from_pretrained(folder or self.folder, dtype=torch.float32).eval()

    @cached_property
    def plain(self) -> PreTrainedModel:
        """The model without this library."""
        return self.load()

    @cached_property
    def logprobs(self) -> Tensor:
        """Of the answers' tokens, row by row, [N]."""
        with torch.no_grad():
            return self.of_rows(self.plain)

    def of_rows(self, model: PreTrainedModel) -> Tensor:
        """Log-probabilities of the answers under a model, one row at a time, [N]."""
        return torch.cat([of_row(model, prompt, answer) for prompt, answer in self.rows])

    @cached_property
    def gradients(self) -> list[Tensor | None]:
        """Of the mean log-probability, for each weight."""
        model = self.load()
        self.of_rows(model).mean().backward()
        return [weight.grad for weight in model.parameters()]

    @cached_property
    def states(self) -> Tensor:
        """Final hidden states at the last token of each row, [B, D]."""
        with torch.no_grad():
            return torch.stack([last_state(self.plain, prompt + answer) for prompt, answer in self.rows])

    @property
    def recipe(self) -> Pretrained:
        """The folder with the default settings."""
        return Pretrained(str(self.folder))

    def scores(self, policy: PreTrainedModel, groups: Tensor | None = None) -> Tensor:
        """This library's log-probabilities of the answers, all rows at once, [N]."""
        return token_scores(policy, self.ids, self.attention, self.mask, groups=groups).logprobs

    @property
    def columns(self) -> list[tuple[Tensor, Tensor]]:
        """The rows padded on the left, and on the right."""
        whole = [prompt + answer for prompt, answer in self.rows]
        return [left_pad(whole, 0), right_pad(whole, 0)]


def of_row(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    """Log-probabilities of an answer under plain transformers, [T]."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def last_state(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """What the part below the head gives for the last token, [D]."""
    stack: Any = next(part for part in model.children() if isinstance(part, PreTrainedModel))
    return stack(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
