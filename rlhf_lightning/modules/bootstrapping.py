"""Responses that were truncated are not over: the critic says what they would still earn.

Source: Pardo et al. 2018, arXiv:1712.00378, partial-episode bootstrapping.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlhf_lightning.functional.sequences import last_index
from rlhf_lightning.types import Rollout


def one_token_longer(rollout: Rollout) -> Rollout:
    """The same responses with one more token each, so that a critic is asked about the state after the last one.

    Which token it is does not matter: nothing is predicted from it.
    """
    ids, mask = (torch.cat([column, column[:, -1:]], dim=1) for column in (rollout.response_ids, rollout.mask))
    mask[:, -1] = False
    context = rollout.context
    if context is not None:
        context = torch.cat([context, torch.zeros_like(context[:, -1:])], dim=1)
    longer = mask.scatter(1, _behind(rollout), True)
    return replace(rollout, response_ids=ids, mask=longer, context=context, rollout_logprobs=None)


def values_after(rollout: Rollout, values: Tensor) -> Tensor:
    """Value of the state after each truncated response, 0 for those that ended, [B].

    Args:
        rollout: B responses of T tokens.
        values: before each token of `one_token_longer` of it, [B, T + 1].

    >>> three = torch.ones(2, 3, dtype=torch.bool)
    >>> ids, ends = torch.zeros(2, 3, dtype=torch.long), torch.tensor([True, False])
    >>> rollout = Rollout(ids, three, ids, three, ends, None, torch.zeros(2).long(), ({}, {}))
    >>> values_after(rollout, torch.tensor([[1.0, 1.0, 1.0, 9.0], [1.0, 1.0, 1.0, 9.0]]))
    tensor([0., 9.])
    """
    return values.gather(1, _behind(rollout)).squeeze(1).masked_fill(rollout.finished, 0.0)


def _behind(rollout: Rollout) -> Tensor:
    """The column behind the last token of each response, whoever wrote it, long [B, 1]."""
    return last_index(rollout.attended).unsqueeze(1) + 1
