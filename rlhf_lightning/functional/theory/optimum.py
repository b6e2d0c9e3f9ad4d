"""The policy that every KL-regularised method must end at, in closed form, where all answers can be listed.

``E_pi[r] - beta KL(pi || ref)`` is highest for ``pi ~ ref exp(r / beta)``, and its highest value is ``beta log Z``. For
answers of two tokens the same holds from the end: ``beta log Z`` of the second token is the reward of the first. Use
them to check training end to end: log-probabilities, masks, sign and unit of the KL, and credit assignment.

Sources: Ziebart 2010, "Modeling purposeful adaptive behavior with the principle of maximum causal entropy"; Korbak
et al. 2022, arXiv:2205.11275.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kl import full_kl, k2
from rlhf_lightning.functional.logprobs import log_softmax


class BanditOptimum(NamedTuple):
    """The best distribution over ``V`` answers, and what it is worth."""

    logprobs: Tensor  # [..., V]
    expected_reward: Tensor  # [...]
    kl: Tensor  # [...], nats
    objective: Tensor  # [...], expected_reward - beta * kl
    soft_value: Tensor  # [...], beta log Z: the objective by another road


class TreeOptimum(NamedTuple):
    """The best policy over answers of two tokens, and what it is worth."""

    first: Tensor  # [V], log-probabilities of the first token
    second: Tensor  # [V, W], of the second token given the first
    soft_values: Tensor  # [V], the objective still to come after each first token
    expected_reward: Tensor  # []
    kl: Tensor  # [], nats per answer
    objective: Tensor  # []


def bandit_optimum(ref_logits: Tensor, rewards: Tensor, *, beta: float) -> BanditOptimum:
    """The maximum of ``E[r] - beta KL(pi || ref)`` over distributions on one choice.

        pi = ref exp(r / beta) / Z

    Args:
        ref_logits: of the reference, ``[..., V]``.
        rewards: ``[..., V]``.
        beta: coefficient of the KL penalty, reward per nat.

    Raises:
        ConfigError: beta is not above 0.

    >>> best = bandit_optimum(torch.zeros(2), torch.tensor([3.0, 1.0]).log(), beta=1.0)
    >>> best.logprobs.exp(), best.objective.exp()  # 3 : 1, and the mean of 3 and 1
    (tensor([0.7500, 0.2500]), tensor(2.))
    """
    if not beta > 0:
        raise ConfigError(f"beta={beta}: must be above 0; without a KL penalty the best answer alone is the optimum")
    tilted = log_softmax(ref_logits) + rewards / beta
    logprobs = log_softmax(tilted)
    kl = full_kl(logprobs, ref_logits)
    expected = (logprobs.exp() * rewards).sum(-1)
    return BanditOptimum(logprobs, expected, kl, expected - beta * kl, beta * tilted.logsumexp(-1))


def tree_optimum(first_logits: Tensor, second_logits: Tensor, rewards: Tensor, *, beta: float) -> TreeOptimum:
    """The maximum of ``E[r] - beta KL(pi || ref)`` over policies that write two tokens; the reward comes at the end.

    Args:
        first_logits: of the reference for the first token, ``[V]``.
        second_logits: of the reference for the second token given the first, ``[V, W]``.
        rewards: of each answer, ``[V, W]``.
        beta: coefficient of the KL penalty, reward per nat.

    Raises:
        ConfigError: beta is not above 0.

    >>> best = tree_optimum(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[5.0, 1.0], [1.0, 1.0]]).log(), beta=1.0)
    >>> best.first.exp(), best.objective.exp()  # 5 + 1 : 1 + 1, and the mean of 5, 1, 1 and 1
    (tensor([0.7500, 0.2500]), tensor(2.))
    """
    after = bandit_optimum(second_logits, rewards, beta=beta)
    before = bandit_optimum(first_logits, after.soft_value, beta=beta)
    chances = before.logprobs.exp()
    expected = (chances * after.expected_reward).sum()
    kl = before.kl + (chances * after.kl).sum()
    return TreeOptimum(before.logprobs, after.logprobs, after.soft_value, expected, kl, expected - beta * kl)


def tree_kl(first_logits: Tensor, second_logits: Tensor, ref_first: Tensor, ref_second: Tensor) -> Tensor:
    """Exact KL(policy || reference) over answers of two tokens, nats per answer, ``[]``, differentiable.

        KL = KL(first) + sum_a pi(a) KL(second given a)

    Log-probabilities are logits too, so this is also how far a trained policy is from a `TreeOptimum`.

    Args:
        first_logits: of the policy for the first token, ``[V]``.
        second_logits: of the policy for the second token given the first, ``[V, W]``.
        ref_first: the same of the reference, ``[V]``.
        ref_second: the same of the reference, ``[V, W]``.

    >>> sure = torch.tensor([9.0, -99.0])  # of one answer in four, by a reference that knows nothing
    >>> tree_kl(sure, sure.repeat(2, 1), torch.zeros(2), torch.zeros(2, 2)).exp()
    tensor(4.)
    """
    later = full_kl(second_logits, ref_second)
    return full_kl(first_logits, ref_first) + (log_softmax(first_logits).exp() * later).sum()


def tree_token_loss(
    first_logits: Tensor,
    second_logits: Tensor,
    ref_first: Tensor,
    ref_second: Tensor,
    *,
    estimator: Callable[[Tensor, Tensor], Tensor] = k2,
) -> Tensor:
    """A per-token KL loss summed over both tokens, averaged over all answers the policy may write; ``[]``.

    Its gradient is the expected gradient of that loss on sampled answers: chances are constants in it. It differs from
    the gradient of `tree_kl` at the first token, which no per-token loss holds to account for the KL of the second.

    Args:
        first_logits: as `tree_kl`, as are the three that follow.
        second_logits: ``[V, W]``.
        ref_first: ``[V]``.
        ref_second: ``[V, W]``.
        estimator: of `functional.kl`, called with log-probabilities of policy and reference.

    >>> none = torch.zeros(2), torch.zeros(2, 2)
    >>> tree_token_loss(torch.tensor([3.0, 1.0]).log(), none[1], *none)  # 3/4 log(3/2)^2 / 2 + 1/4 log(2)^2 / 2
    tensor(0.1217)
    """
    first, later = log_softmax(first_logits), log_softmax(second_logits)
    reach = first.exp().detach()
    own = _expected(first, log_softmax(ref_first), reach, estimator)
    return own + _expected(later, log_softmax(ref_second), reach.unsqueeze(1) * later.exp().detach(), estimator)


def _expected(
    logprobs: Tensor, ref_logprobs: Tensor, chances: Tensor, estimator: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    possible = chances > 0
    values = estimator(torch.where(possible, logprobs, 0), torch.where(possible, ref_logprobs, 0))
    return (chances * values).sum()
