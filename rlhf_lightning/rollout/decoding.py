"""Whether an engine samples from the model that is trained: tried on two short rows before the first rollout."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.configs import narrowed
from rlhf_lightning.models.memory import is_out_of_memory
from rlhf_lightning.models.trunk import agree, probe_ids
from rlhf_lightning.private_api.transformers import attention_of

Decode = Callable[[Tensor, Tensor], Sequence[Tensor]]


def cache_argument(policy: PreTrainedModel) -> str:
    """How the forward of a model calls what it keeps of earlier tokens; state-space models have a name of their own."""
    names = inspect.signature(policy.forward).parameters
    return "cache_params" if "cache_params" in names and "past_key_values" not in names else "past_key_values"


def check_decoding(policy: PreTrainedModel, decode: Decode, engine: str) -> None:
    """Compare the likeliest tokens and their logits with those of the model without a cache, a row at a time.

    Windows are narrowed meanwhile, so that the rows are longer.

    Args:
        policy: in eval mode.
        decode: called with ids and mask [2, P], padded on the left; gives for each row the logits [n, V] of its first
            few tokens, always the likeliest.
        engine: its name in configs, ``loop`` or ``hf``.

    Raises:
        ConfigError: they differ by more than rounding, or the engine cannot decode this kind of model.
    """
    row = probe_ids(policy)[0, :12]
    ids, mask = torch.stack([row, row.flip(0)]), torch.ones(2, len(row), dtype=torch.bool, device=row.device)
    mask[1, :4] = False
    by_mask = attention_of(policy.config) in ("sdpa", "eager")
    way_out = f"use rollout={'hf' if engine == 'loop' else 'loop'}, or another model"
    try:
        with narrowed(policy.config.get_text_config(), 5) if by_mask else nullcontext():
            rows = decode(ids, mask)
            plain = []
            for prompt, real, logits in zip(ids, mask, rows, strict=True):
                alone = torch.cat([prompt[real], logits.argmax(-1)])
                plain.append(policy(input_ids=alone[None], use_cache=False).logits[0, -len(logits) - 1 : -1])
    except Exception as error:  # a model's own code fails in any way
        if is_out_of_memory(error):
            return  # nor will sampling fit, which knows what to do about it
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"rollout={engine} cannot decode {policy.config.model_type} models ({type(error).__name__}: {why}); "
            f"{way_out}"
        ) from error
    found, wanted = torch.cat(list(rows)), torch.cat(plain)
    if not (found.isfinite().all() and wanted.isfinite().all()):
        return  # a broken model, which sampling names, and not the cache
    if not agree(found, wanted):
        raise ConfigError(
            f"rollout={engine}: decoded with a cache, {policy.config.model_type} models give other logits than without "
            f"one, and would sample from another model than the one that learns; {way_out}"
        )
