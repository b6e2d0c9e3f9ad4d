"""A model is tried on a short row when it is loaded, instead of asking which of two hundred kinds it is.

What batches rely on is measured: that no token sees those behind it, that a padded row is computed as it would be
alone, that nothing is drawn at random. A model that fails is refused before anything is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.models.memory import is_out_of_memory
from rlhf_lightning.models.trunk import agree, plain_inputs, probe_ids, states_of

CUT = 3  # columns at either end
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, IndexError, KeyError, ImportError)


@torch.no_grad()
def check_rows(model: PreTrainedModel, path: str) -> None:
    """Whether batches of padded rows give what each row alone does, and training what evaluation does.

    Where the model cannot be run at all on the device on which it was loaded (a kernel for GPUs), nothing is checked.

    Args:
        model: a language model or a scalar one, in its own dtype.
        path: of the folder, for messages.

    Raises:
        CheckpointError: names the kind of the model and what it does.
    """
    kind, ids = model.config.model_type, probe_ids(model)
    was_training = model.training
    try:
        with _few_keys(model):
            fault = _fault(model, ids)
    finally:
        model.train(was_training)
    if fault:
        raise CheckpointError(f"{path}: {fault.format(kind=kind)}; give another model{_is_decoder(model)}")


def _fault(model: PreTrainedModel, ids: Tensor) -> str:
    """What is wrong with a model, in words; empty where nothing is, or where it cannot be run here at all."""
    model.eval()
    try:
        alone = _alone(model, ids)
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        return ""
    if not alone.isfinite().all():  # broken weights are another check's
        return ""
    padded = torch.cat([ids[:, :CUT], ids[:, :-CUT], ids[:, :CUT]], dim=1).expand(2, -1).clone()
    padded[1, :-CUT] = ids
    mask = torch.ones_like(padded, dtype=torch.bool)
    mask[0, :CUT] = mask[:, -CUT:] = False
    try:
        if not agree(_alone(model, ids[:, :-CUT]), alone[:, :-CUT]):
            return "a token of this {kind} model sees the tokens behind it, so that it cannot write"
        found = states_of(model, plain_inputs(padded, mask))
        if not (agree(found[:1, CUT:-CUT], alone[:, :-CUT]) and agree(found[1:, :-CUT], alone)):
            return (
                "in a batch, padded, a row of this {kind} model gets other numbers than alone: transformers' code for "
                "it does not heed masks and positions"
            )
        model.train()
        if not agree(_alone(model, ids), alone):
            return "this {kind} model computes otherwise in training than in evaluation (noise, or the like)"
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:160].replace("{", "(").replace("}", ")")
        return f"this {{kind}} model cannot be run on a batch of padded rows ({type(error).__name__}: {why})"
    return ""


@contextmanager
def _few_keys(model: PreTrainedModel) -> Iterator[None]:
    """Let layers that attend to the keys an indexer picks, often 2048, do so on a short row, of which they see all."""
    parts: list[Any] = list(model.modules())
    wide = [(part, part.index_topk) for part in parts if isinstance(getattr(part, "index_topk", None), int)]
    for part, _ in wide:
        part.index_topk = CUT + 1
    try:
        yield
    finally:
        for part, count in wide:
            part.index_topk = count


def _alone(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The row without mask, positions and company, as transformers' own examples call a model."""
    return states_of(model, {"input_ids": ids, "use_cache": False})


def _is_decoder(model: PreTrainedModel) -> Any:
    return " (its config.json says is_decoder: false)" if getattr(model.config, "is_decoder", None) is False else ""
