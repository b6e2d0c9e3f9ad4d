"""What a logit that is not finite while sampling says: which token, and what in the model is broken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import LogitsProcessor, PreTrainedModel

from rlhf_lightning.checkpoint.nonfinite import first_nonfinite
from rlhf_lightning.errors import NumericalError


def broken_logits(policy: PreTrainedModel, input_ids: Tensor, attention: Tensor, bad: Tensor) -> NumericalError:
    """The error to raise.

    Args:
        policy: that sampled.
        input_ids: prompts, long [B, P].
        attention: bool [B, P].
        bad: True at tokens drawn from logits that are not finite, bool [B, T].
    """
    rows, step = int(bad.any(1).sum()), int(bad.any(0).nonzero()[0]) + 1
    where = f"the logits of token {step} are not finite in {rows} of {len(bad)} answers"
    name = first_nonfinite(policy.named_parameters())
    if name is not None:
        return NumericalError(f"sampling: {where}, nor is the weight {name}")
    worst = bad.any(1)
    if any(
        isinstance(weight, DTensor) for weight in policy.parameters()
    ):  # a forward of one rank would wait for others
        return NumericalError(f"sampling: {where}, and the weights on this rank are finite")
    layer = first_broken_layer(policy, input_ids[worst], attention[worst])
    found = f"the first such output is that of {layer}" if layer else "the prompt alone still gives finite ones"
    return NumericalError(
        f"sampling: {where}; all weights are finite and {found}. Numbers grow too large there: use "
        "model.dtype=float32, rollout.dtype=null, or a smaller learning rate"
    )


@torch.no_grad()
def first_broken_layer(policy: PreTrainedModel, input_ids: Tensor, attention: Tensor) -> str | None:
    """Name of the first submodule whose output for the prompts is not finite; None if all are."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in policy.named_modules() if name]
    try:
        policy(input_ids=input_ids, attention_mask=attention.long(), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


class FiniteLogits(LogitsProcessor):
    """Stops transformers' `generate` at logits that are NaN or plus infinity; minus infinity only forbids a token.

    Args:
        policy: that samples.
        input_ids: prompts, long [B, P].
        attention: bool [B, P].
    """

    def __init__(self, policy: PreTrainedModel, input_ids: Tensor, attention: Tensor) -> None:
        self._prompt = (policy, input_ids, attention)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        """The scores [B, V] as they are.

        Raises:
            NumericalError: one of them is not finite.
        """
        broken = (scores.isnan() | scores.isposinf()).any(1)
        if broken.any():
            bad = torch.zeros_like(input_ids[:, self._prompt[1].shape[1] - 1 :], dtype=torch.bool)
            bad[:, -1] = broken
            raise broken_logits(*self._prompt, bad)
        return scores
