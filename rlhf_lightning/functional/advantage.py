"""How much better than expected each token was.

Every advantage function is called as ``f(rewards, values, mask)`` with three ``[B, T]`` tensors and returns
``(advantages, returns)``, both ``[B, T]`` and 0 outside the mask. Critic-free ones ignore ``values``. Nothing is
whitened here: whitening needs the moments of all ranks (see `masking.masked_moments`). Tokens outside the mask are
skipped, also between tokens that count (tool output): time does not pass there. A row without any token in the mask is
an answer that does not count, because nobody judged it, for example: it is left out of the baseline of its group too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional.kl import totals
from rlhf_lightning.rules.ranges import require


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    lam_critic: float | None = None,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   returns = A + V

    With a constant ``values`` and ``lam=1`` this is reward-to-go minus a baseline.

    Args:
        rewards: ``[B, T]``.
        values: of the state *before* each response token, ``[B, T]``.
        mask: bool ``[B, T]``.
        gamma: discount per token.
        lam: 0 trusts the critic alone, 1 the sampled rewards alone.
        lam_critic: lambda of the returns the critic learns from, if another one (Yuan et al. 2025, arXiv:2503.01491,
            use 1 so that a late score reaches the first token undiluted).
        bootstrap: value after the last token that counts, ``[B]``; None means 0 (the response ended there).

    Source: Schulman et al. 2015, arXiv:1506.02438, eq. 16.

    >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    >>> gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), lam=1.0)
    (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """
    require("gamma", gamma, at_least=0, at_most=1)
    require("lam", lam, at_least=0, at_most=1)
    require("lam_critic", lam_critic, at_least=0, at_most=1)
    advantages = _gae(rewards, values, mask, gamma, lam, bootstrap)
    other = lam_critic is not None and lam_critic != lam
    towards = _gae(rewards, values, mask, gamma, lam_critic, bootstrap) if other else advantages  # type: ignore[arg-type]
    return advantages, torch.where(mask, towards + values, 0)


def _gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, bootstrap: Tensor | None) -> Tensor:
    next_value = values.new_zeros(len(values)) if bootstrap is None else bootstrap.to(values)
    next_advantage = torch.zeros_like(next_value)
    columns = []
    for t in reversed(range(rewards.shape[1])):
        counts = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(counts, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(counts, values[:, t], next_value)
        columns.append(next_advantage)
    return torch.where(mask, torch.stack(columns[::-1], dim=1), 0) if columns else torch.zeros_like(rewards)


def reward_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Discounted sum of the rewards from each token on, ``[B, T]``.

    >>> reward_to_go(torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool), gamma=0.5)
    tensor([[2., 2.]])
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]


def returns_only(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """Reward-to-go as the advantage, without any baseline; whitened over the global batch this is REINFORCE++.

    Source: Hu 2025, arXiv:2501.03262.

    >>> ones = torch.ones(1, 2)
    >>> returns_only(ones, ones, ones.bool())[0]
    tensor([[2., 1.]])
    """
    returns = reward_to_go(rewards, mask, gamma=gamma)
    return returns, returns


def group_index(num_sequences: int, group_size: int, device: torch.device | None = None) -> Tensor:
    """Group of each row when the ``group_size`` responses to one prompt stand together, long ``[B]``.

    >>> group_index(4, 2)
    tensor([0, 0, 1, 1])
    """
    if group_size < 1 or num_sequences % group_size:
        raise ValueError(f"{num_sequences} responses do not split into groups of {group_size}")
    return torch.arange(num_sequences, device=device) // group_size


def center_by_group(totals: Tensor, groups: Tensor, counted: Tensor | None = None) -> Tensor:
    """Totals ``[B]`` minus the mean of their group (Dr. GRPO). Alone in a group: 0.

    Args:
        totals: summed rewards, ``[B]``.
        groups: long ``[B]``, in any order.
        counted: bool ``[B]``, the answers that the mean is taken over; all by default. The others get 0.

    Source: Liu et al. 2025, arXiv:2503.20783.

    >>> center_by_group(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([-1.,  1.,  0.])
    """
    same, counted = _same_group(groups, counted)
    kept = torch.where(counted, totals, 0)
    return torch.where(counted, totals - (same.to(totals.dtype) @ kept) / same.sum(1).clamp(min=1), 0)


def leave_one_out(totals: Tensor, groups: Tensor, counted: Tensor | None = None) -> Tensor:
    """Totals ``[B]`` minus the mean of the *others* of their group (RLOO). Alone in a group: 0.

    Arguments as in `center_by_group`. Source: Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740.

    >>> leave_one_out(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([-2.,  2.,  0.])
    """
    size = _same_group(groups, counted)[0].sum(1)
    return center_by_group(totals, groups, counted) * size / (size - 1).clamp(min=1)


def standardize_by_group(
    totals: Tensor, groups: Tensor, counted: Tensor | None = None, *, ddof: int = 1, eps: float = 1e-6
) -> Tensor:
    """Totals ``[B]`` minus the mean of their group, over its standard deviation + eps (GRPO). Alone in a group: 0.

    Dividing by the deviation gives prompts that are nearly always or never solved more weight; `center_by_group` does
    not. Arguments as there. Source: Shao et al. 2024, arXiv:2402.03300.

    >>> standardize_by_group(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), ddof=0, eps=0.0)
    tensor([-1.,  1.])
    """
    same = _same_group(groups, counted)[0]
    centered = center_by_group(totals, groups, counted)
    var = (same.to(totals.dtype) @ centered.square()) / (same.sum(1) - ddof).clamp(min=1)
    return centered / (var.sqrt() + eps)


def standardize_by_batch(
    totals: Tensor, groups: Tensor, counted: Tensor | None = None, *, ddof: int = 1, eps: float = 1e-6
) -> Tensor:
    """Totals ``[B]`` minus the mean of their group, over the standard deviation of all totals that count + eps.

    >>> standardize_by_batch(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), ddof=0, eps=0.0)
    tensor([-1.,  1.])
    """
    kept = totals if counted is None else totals[counted]
    var = (kept - kept.mean()).square().sum() / max(len(kept) - ddof, 1)
    return center_by_group(totals, groups, counted) / (var.sqrt() + eps)


def _same_group(groups: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which answers count for each answer, bool ``[B, B]``, and which count at all, bool ``[B]``."""
    counted = torch.ones_like(groups, dtype=torch.bool) if counted is None else counted
    return (groups.unsqueeze(0) == groups.unsqueeze(1)) & counted, counted


def _on_tokens(per_sequence: Tensor, rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(mask, per_sequence.unsqueeze(1), 0), reward_to_go(rewards, mask)


def rloo(rewards: Tensor, values: Tensor, mask: Tensor, *, group_size: int) -> tuple[Tensor, Tensor]:
    """`leave_one_out` of the summed rewards, on every token; rows of one prompt stand together.

    >>> ones = torch.ones(2, 1)
    >>> rloo(torch.tensor([[1.0], [3.0]]), ones, ones.bool(), group_size=2)[0]
    tensor([[-2.],
            [ 2.]])
    """
    groups = group_index(len(rewards), group_size, rewards.device)
    return _on_tokens(leave_one_out(totals(rewards, mask), groups, mask.any(1)), rewards, mask)


def dr_grpo(rewards: Tensor, values: Tensor, mask: Tensor, *, group_size: int) -> tuple[Tensor, Tensor]:
    """`center_by_group` of the summed rewards, on every token; rows of one prompt stand together.

    >>> ones = torch.ones(2, 1)
    >>> dr_grpo(torch.tensor([[1.0], [3.0]]), ones, ones.bool(), group_size=2)[0]
    tensor([[-1.],
            [ 1.]])
    """
    groups = group_index(len(rewards), group_size, rewards.device)
    return _on_tokens(center_by_group(totals(rewards, mask), groups, mask.any(1)), rewards, mask)


def grpo(rewards: Tensor, values: Tensor, mask: Tensor, *, group_size: int, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
    """`standardize_by_group` of the summed rewards, on every token; rows of one prompt stand together.

    ``eps`` is large enough that the rounding of a KL penalty does not decide between answers with the same score.

    >>> ones = torch.ones(2, 1)
    >>> grpo(torch.tensor([[0.0], [2.0]]), ones, ones.bool(), group_size=2)[0]
    tensor([[-0.7071],
            [ 0.7071]])
    """
    groups = group_index(len(rewards), group_size, rewards.device)
    return _on_tokens(standardize_by_group(totals(rewards, mask), groups, mask.any(1), eps=eps), rewards, mask)
