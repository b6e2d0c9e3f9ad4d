"""One teacher-forced forward of a policy, only where the response is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.functional.sequences import position_ids
from rlhf_lightning.models.trunk import run_upper


class ResponseForward(NamedTuple):
    """What a policy says about each response token."""

    logits: Tensor  # [B, T, V], position t scores response token t
    states: Tensor | None  # [B, T, D], final hidden state before response token t, if asked for


@contextmanager
def contiguous_head(policy: nn.Module) -> Iterator[None]:
    """Let the output embedding see its hidden states in one piece.

    `logits_to_keep` hands it a slice. Without gradients torch multiplies such a slice [B, t, D] as B separate products
    and copies the whole embedding [V, D] for each of them: seconds and gigabytes for one token.
    """
    head = policy.get_output_embeddings() if isinstance(policy, PreTrainedModel) else None
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def response_forward(
    policy: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    response_length: int,
    *,
    hidden: Tensor | None = None,
    freeze_below: int = 0,
    with_states: bool = False,
) -> ResponseForward:
    """Logits for the last ``response_length`` tokens of each row; logits[t] come from the state before token t.

    Args:
        policy: a causal language model; its root module is called, as sharding needs.
        input_ids: prompt and response, long [B, S].
        attention_mask: bool [B, S].
        response_length: T.
        hidden: output of the frozen lower ``freeze_below`` layers [B, S, D], if it was computed before.
        freeze_below: see `Pretrained`.
        with_states: also return the final hidden states, for a value head on the same trunk.
    """
    if hidden is not None:
        states = run_upper(policy, freeze_below, hidden, attention_mask)[:, -response_length - 1 : -1]
        return ResponseForward(policy.get_output_embeddings()(states.contiguous()), states)
    with contiguous_head(policy):
        out = policy(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            position_ids=position_ids(attention_mask),
            use_cache=False,
            logits_to_keep=response_length + 1,
            output_hidden_states=with_states,
        )
    last = out.hidden_states[-1][:, -response_length - 1 : -1] if with_states else None
    return ResponseForward(out.logits[:, :-1], last)
