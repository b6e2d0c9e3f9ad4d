"""Every formula that can be swapped is called on a few numbers before a model is loaded.

An advantage, a policy loss, a loss of pairs, of single answers or of rankings may come from a config or from the user.
What it cannot be called with, or what it returns that nothing can be learned from, is known here and not hours later.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.aggregate import Aggregation, token_mean
from rlhf_lightning.functional.ppo import PolicyLoss
from rlhf_lightning.rules.partials import called

Formula = Callable[..., Any]
_TOKEN_MEAN = Aggregation(token_mean, lambda mask: mask.sum())


class Slot(NamedTuple):
    """Where a formula is set and how it is called; both stand in messages."""

    key: str
    signature: str
    on: str


ADVANTAGE = Slot("ppo.advantage", "f(rewards, values, mask)", "answers of three tokens")
POLICY_LOSS = Slot(
    "ppo.loss",
    "f(logprobs, old_logprobs, advantages, mask, *, weights, denominator, aggregate)",
    "two answers of three tokens",
)
PAIR_LOSS = Slot(
    "dpo.loss",
    "f(chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths, *, weights, denominator)",
    "two pairs",
)
ANSWER_LOSS = Slot(
    "kto.loss",
    "f(logprobs, ref_logprobs, desirable, reference_point, *, denominator)",
    "two answers, a good one and a bad one",
)
RANKING_LOSS = Slot("reward.loss", "f(scores, ranks, prompt_index, *, margins, denominator)", "two pairs")


def check_advantage(formula: Formula, group_size: int = 1) -> None:
    """Call an advantage on two groups of answers to a prompt.

    Raises:
        ConfigError: it cannot be called so, or does not return two finite tensors [B, T].
    """
    rows = 2 * group_size
    mask = torch.ones(rows, 3, dtype=torch.bool)
    mask[-1, 1:] = False
    rewards = torch.where(mask, torch.linspace(-1.0, 1.0, rows)[:, None].expand(rows, 3), 0)
    found = _call(ADVANTAGE, formula, (rewards, torch.full_like(rewards, 0.1), mask), {})
    if not isinstance(found, tuple) or len(found) != 2:
        raise _wrong(ADVANTAGE, formula, found, "(advantages, returns)")
    for name, tensor in zip(("advantages", "returns"), found, strict=True):
        _require_shape(ADVANTAGE, formula, name, tensor, mask.shape)
        _require_finite(ADVANTAGE, formula, name, tensor[mask])


def check_policy_loss(
    formula: Formula, aggregation: Aggregation = _TOKEN_MEAN, correction: Callable[..., Tensor] | None = None
) -> None:
    """Call a policy loss where the policy is still the one that sampled, with the weights of ``correction``, if any.

    Raises:
        ConfigError: it cannot be called so, lacks a field of `PolicyLoss`, its loss is not a differentiable number, or
            it learns from tokens outside of the mask.
    """
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logprobs = torch.tensor([[-1.0, -2.0, -1.5], [-0.5, -1.0, 0.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 0.5], [0.5, 2.0, 2.0]])
    weights = None if correction is None else correction(logprobs.detach(), logprobs.detach(), mask)
    named = {"weights": weights, "denominator": aggregation.count(mask), "aggregate": aggregation.aggregate}
    found = _call(POLICY_LOSS, formula, (logprobs, logprobs.detach().clone(), advantages, mask), named)
    _require_fields(POLICY_LOSS, formula, found, PolicyLoss._fields, "PolicyLoss")
    gradient = _require_learnable(POLICY_LOSS, formula, found.loss, logprobs)
    if gradient[~mask].any():
        raise ConfigError(
            f"{POLICY_LOSS.key}: {called(formula)} learns from tokens outside of the mask; it must be 0 there, as "
            "torch.where(mask, x, 0) is"
        )
    _require_shape(POLICY_LOSS, formula, "per_token", found.per_token, mask.shape)


def check_pair_loss(formula: Formula) -> bool:
    """Call a loss of pairs, with a reference and then without.

    Returns:
        whether it needs the reference's log-probabilities: False if it also works with None in their place.

    Raises:
        ConfigError: it cannot be called so, or its loss is not a differentiable number.
    """
    chosen = torch.tensor([-2.0, -3.0], requires_grad=True)
    rejected, lengths = torch.tensor([-2.5, -2.75]), torch.tensor([2, 2])
    last = {"weights": torch.ones(2), "denominator": 2.0}
    reference = (chosen.detach().clone(), rejected.clone())
    found = _call(PAIR_LOSS, formula, (chosen, rejected, *reference, lengths, lengths), last)
    _require_fields(PAIR_LOSS, formula, found, ("loss", "chosen_rewards", "rejected_rewards"), "PreferenceLoss")
    _require_learnable(PAIR_LOSS, formula, found.loss, chosen)
    for name in ("chosen_rewards", "rejected_rewards"):
        _require_shape(PAIR_LOSS, formula, name, getattr(found, name), (2,))
    try:
        _call(PAIR_LOSS, formula, (chosen, rejected, None, None, lengths, lengths), last)
    except ConfigError:
        return True
    return False


def check_answer_loss(formula: Formula) -> None:
    """Call a loss of single answers.

    Raises:
        ConfigError: it cannot be called so, or its loss is not a differentiable number.
    """
    logprobs = torch.tensor([-2.0, -3.0], requires_grad=True)
    good = torch.tensor([True, False])
    given = (logprobs, torch.tensor([-2.5, -2.5]), good, torch.zeros(()))
    found = _call(ANSWER_LOSS, formula, given, {"denominator": 2.0})
    _require_fields(ANSWER_LOSS, formula, found, ("loss", "rewards"), "KTOLoss")
    _require_learnable(ANSWER_LOSS, formula, found.loss, logprobs)
    _require_shape(ANSWER_LOSS, formula, "rewards", found.rewards, (2,))


def check_ranking_loss(formula: Formula) -> None:
    """Call a loss of rankings on two prompts with two answers each.

    Raises:
        ConfigError: it cannot be called so, or does not return a differentiable number.
    """
    scores = torch.tensor([0.5, 0.0, 0.25, 0.5], requires_grad=True)
    ranks, prompts = torch.tensor([1, 2, 1, 2]), torch.tensor([0, 0, 1, 1])
    loss = _call(RANKING_LOSS, formula, (scores, ranks, prompts), {"margins": torch.zeros(4), "denominator": 2.0})
    _require_learnable(RANKING_LOSS, formula, loss, scores)


def _call(slot: Slot, formula: Formula, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Call a copy, so that a formula with a memory does not remember it; random numbers are as before."""
    with suppress(Exception):
        formula = copy.deepcopy(formula)
    try:
        with torch.random.fork_rng(devices=[]):
            return formula(*given, **named)
    except ConfigError as error:  # it refuses its own numbers
        raise ConfigError(f"{slot.key}: {error}") from error
    except Exception as error:
        raise ConfigError(
            f"{slot.key}: {called(formula)} cannot be called as {slot.signature} on {slot.on}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _wrong(slot: Slot, formula: Formula, found: Any, wanted: str) -> ConfigError:
    told = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    return ConfigError(
        f"{slot.key}: {called(formula)}, called as {slot.signature} on {slot.on}, returned {told}; wanted: {wanted}"
    )


def _require_fields(slot: Slot, formula: Formula, found: Any, names: Sequence[str], wanted: str) -> None:
    missing = [name for name in names if not isinstance(getattr(found, name, None), Tensor)]
    if missing:
        raise _wrong(slot, formula, found, f"a {wanted} with the tensors {', '.join(missing)}")


def _require_shape(slot: Slot, formula: Formula, name: str, found: Any, shape: Sequence[int]) -> None:
    if not isinstance(found, Tensor) or found.shape != tuple(shape):
        raise _wrong(slot, formula, found, f"{name} of shape {list(shape)}")


def _require_finite(slot: Slot, formula: Formula, name: str, found: Tensor) -> None:
    if not found.isfinite().all():
        raise ConfigError(
            f"{slot.key}: {called(formula)}, called as {slot.signature} on {slot.on}: {name} is not finite"
        )


def _require_learnable(slot: Slot, formula: Formula, loss: Any, leaf: Tensor) -> Tensor:
    """A finite number that depends on ``leaf`` with finite gradients, which are returned."""
    _require_shape(slot, formula, "the loss", loss, ())
    _require_finite(slot, formula, "the loss", loss)
    gradient = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise ConfigError(
            f"{slot.key}: {called(formula)}, called as {slot.signature} on {slot.on}: the loss has no gradient, so "
            "nothing would be learned; is it detached?"
        )
    _require_finite(slot, formula, "the gradient", gradient)
    return gradient
