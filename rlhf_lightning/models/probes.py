"""A model is tried on a short row when it is loaded, instead of asking which of two hundred kinds it is.

What batches rely on is measured: that no token sees those behind it, that a padded row is computed as it would be
alone, that nothing is drawn at random. A model that fails is refused before anything is learned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.models.configs import noise
from rlhf_lightning.models.trunk import agree, plain_inputs, probe_ids, states_of

CUT = 3  # columns at either end


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
    model.eval()
    try:
        alone = _alone(model, ids)
    except (RuntimeError, ValueError, TypeError, ImportError, AttributeError, AssertionError):
        return
    finally:
        model.train(was_training)
    if not alone.isfinite().all():  # broken weights are another check's
        return
    try:
        model.eval()
        if not agree(_alone(model, ids[:, :-CUT]), alone[:, :-CUT]):
            raise CheckpointError(
                f"{path}: a token of this {kind} model sees the tokens behind it, so that it cannot write; give a "
                f"decoder-only language model{_is_decoder(model)}"
            )
        padded = torch.cat([ids[:, :CUT], ids[:, :-CUT], ids[:, :CUT]], dim=1).expand(2, -1).clone()
        padded[1, :-CUT] = ids
        mask = torch.ones_like(padded, dtype=torch.bool)
        mask[0, :CUT] = mask[:, -CUT:] = False
        found = states_of(model, plain_inputs(padded, mask))
        if not (agree(found[:1, CUT:-CUT], alone[:, :-CUT]) and agree(found[1:, :-CUT], alone)):
            raise CheckpointError(
                f"{path}: in a batch, padded, a row of this {kind} model gets other numbers than alone; transformers' "
                "code for it does not heed masks and positions. Give another model"
            )
        model.train()
        if not agree(_alone(model, ids), alone):
            keys = ", ".join(noise(model.config))
            raise CheckpointError(
                f"{path}: this {kind} model computes otherwise in training than in evaluation (noise, or the like); "
                + (f"set {keys} to 0 in its config.json, or give another model" if keys else "give another model")
            )
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, IndexError, KeyError) as error:
        why = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: this {kind} model cannot be run on a batch of padded rows ({type(error).__name__}: {why}); give "
            "another model"
        ) from error
    finally:
        model.train(was_training)


def _alone(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The row without mask, positions and company, as transformers' own examples call a model."""
    return states_of(model, {"input_ids": ids, "use_cache": False})


def _is_decoder(model: PreTrainedModel) -> Any:
    return " (its config.json says is_decoder: false)" if getattr(model.config, "is_decoder", None) is False else ""
