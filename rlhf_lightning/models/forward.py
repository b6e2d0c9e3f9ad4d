"""One teacher-forced forward of a policy, only where tokens are scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.functional.linear_logprobs import CHUNK, TokenScores, linear_logprobs, score_logits
from rlhf_lightning.models.output import call_with_states, is_linear, output_of
from rlhf_lightning.models.packing import PackedRows, inputs_of, worthwhile_rows
from rlhf_lightning.models.trunk import plain_inputs, run_upper


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
        states = run_upper(policy, freeze_below, hidden, plain_inputs(input_ids, attention_mask))
        states = states[:, -response_length - 1 : -1]
        return ResponseForward(output_of(policy).logits(states), states)
    with contiguous_head(policy):
        out = policy(
            **plain_inputs(input_ids, attention_mask),
            logits_to_keep=response_length + 1,
            output_hidden_states=with_states,
        )
    last = out.hidden_states[-1][:, -response_length - 1 : -1] if with_states else None
    return ResponseForward(out.logits[:, :-1], last)


def packs_rows(policy: PreTrainedModel) -> bool:
    """Whether `token_scores` may put several sequences of this policy into one row."""
    return getattr(policy, "pack_rows", False) and bool(getattr(policy, "head_chunk", CHUNK)) and is_linear(policy)


def token_scores(
    policy: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    entropy_grad: bool = False,
    correct: bool = False,
    summed: bool = False,
    hidden: Tensor | None = None,
    freeze_below: int = 0,
    with_states: bool = False,
    groups: Tensor | None = None,
) -> TokenScores:
    """Log-probabilities of the tokens under ``mask``, given the tokens before them; no logits outlive a few rows.

    `Pretrained.head_chunk` says how many; without it, or where the output of the model is not a plain linear layer, the
    logits from the first to the last token of the mask are computed at once.

    Args:
        policy: a causal language model; its root module is called, as sharding needs.
        input_ids: long [B, S].
        attention_mask: bool [B, S].
        mask: tokens to be scored, bool [B, S]; the first column is never looked at, since nothing predicts it.
        temperature: the one the tokens were sampled at.
        entropy: also return the entropy.
        entropy_grad: let it carry a gradient.
        correct: also return whether each token is the most likely one.
        summed: the log-probabilities will only be summed; saves a part of the work, see `linear_logprobs`.
        hidden: output of the frozen lower ``freeze_below`` layers [B, S, D], if it was computed before.
        freeze_below: see `Pretrained`.
        with_states: also return the final hidden states, for a value head on the same trunk.
        groups: neighbours of one group begin alike, long [B]; what they begin with is computed once. Rows are packed
            where that pays, see `rlhf_lightning.models.packing`, but not without ``head_chunk``.

    Returns:
        One number per token of the mask, [N], row by row.
    """
    targets = input_ids[:, 1:][mask[:, 1:]]
    asked: Any = {"temperature": temperature, "entropy": entropy, "entropy_grad": entropy_grad, "correct": correct}
    chunk = getattr(policy, "head_chunk", CHUNK)
    if not chunk or not is_linear(policy):
        counted = mask[:, _first_scored(mask) :]
        out = response_forward(
            policy, input_ids, attention_mask, counted.shape[1],
            hidden=hidden, freeze_below=freeze_below, with_states=with_states,
        )  # fmt: skip
        scores = score_logits(out.logits[counted], targets, **asked)
        return scores if out.states is None else scores._replace(states=out.states[counted])
    output = output_of(policy)
    packed = worthwhile_rows(policy, input_ids, attention_mask, groups)

    def compute(states: Tensor) -> TokenScores:
        chosen = states[:, :-1][mask[:, 1:]] if packed is None else _before(states, packed, mask)
        linear = output.linear
        scores = linear_logprobs(
            chosen, linear.weight, targets,
            bias=linear.bias, scale=output.scale, soft_cap=output.soft_cap, summed=summed, chunk=chunk, **asked,
        )  # fmt: skip
        return scores._replace(states=chosen) if with_states else scores

    inputs = inputs_of(policy, input_ids, attention_mask, packed)
    if hidden is not None:
        hidden = hidden if packed is None else packed.put(hidden, attention_mask)
        return compute(run_upper(policy, freeze_below, hidden, inputs))
    return call_with_states(policy, output.linear, compute, inputs)


def _before(states: Tensor, packed: PackedRows, mask: Tensor) -> Tensor:
    """The states [N, D] before each token of ``mask`` [B, S], out of those of packed rows."""
    sequence, place = mask[:, 1:].nonzero(as_tuple=True)
    return states[packed.row[sequence], packed.column[sequence, place]]


def _first_scored(mask: Tensor) -> int:
    """The first column of ``mask`` [B, S] with a token to be scored; at least 1."""
    used = mask[:, 1:].any(0).nonzero()
    return 1 + int(used[0]) if len(used) else mask.shape[1]
