"""Dynamic sampling: groups that teach nothing give way to answers to other prompts.

Source: Yu et al. 2025, arXiv:2503.14476, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kl import totals
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout.groups import put, replaced, undecided
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.types import PromptBatch, Rollout


class Judged(NamedTuple):
    """Answers with their scores."""

    rollout: Rollout
    scores: Tensor  # [B], or [B, T] where tokens are judged; NaN where nobody judged
    details: Mapping[str, Tensor]  # what the scorer tells beside the score, columns [B]

    def replaced(self, rows: Tensor, fresh: Judged, pad_token_id: int) -> Judged:
        """The same with ``rows`` (long [n]) taken from ``fresh`` (n answers)."""
        there = {name: column for name, column in self.details.items() if name in fresh.details}
        return Judged(
            replaced(self.rollout, rows, fresh.rollout, pad_token_id),
            put(self.scores, rows, fresh.scores),
            {name: put(column, rows, fresh.details[name]) for name, column in there.items()},
        )


def with_other_prompts(
    judged: Judged,
    answered: Callable[[PromptBatch], Judged],
    draw: Callable[[], PromptBatch],
    ranks: Ranks,
    settings: PPOSettings,
    pad_token_id: int,
) -> Judged:
    """Replace groups in which all answers score the same, and judge nothing but the new answers. Collective.

    A rank without such a group samples one along with the others and does not keep it. Prompts that were drawn and not
    needed wait for the next attempt; after the last one they are left out of this pass through the data.

    Args:
        judged: the first answers, B rows of whole groups.
        answered: samples and judges one answer per row.
        draw: the next prompts of the stream, one for each group of B rows, the same moment on every rank.
        ranks: that sample together.
        settings: tries ``max_resamples`` times at most; groups that still agree then stay.
        pad_token_id: of the tokenizer.
    """
    group_size = settings.group_size
    waiting: PromptBatch | None = None
    for _ in range(settings.max_resamples):
        rows = undecided(totals(judged.scores, judged.rollout.mask), group_size)
        if not ranks.sum(len(rows))[0]:
            break
        wanted = max(len(rows) // group_size, 1)
        if ranks.first_fault({"too few": waiting is None or len(waiting) < wanted}):
            waiting = draw()
        assert waiting is not None
        taken, waiting = (waiting.select(part) for part in torch.arange(len(waiting)).tensor_split([wanted]))
        fresh = answered(taken.repeat_interleave(group_size))
        if len(rows):
            judged = judged.replaced(rows, fresh, pad_token_id)
    return judged


def check_draws(loader: Any, attempts: int) -> None:
    """Raise ConfigError where groups are to be replaced and the ``loader`` of prompts cannot be asked for others."""
    if attempts and not hasattr(loader, "draw"):
        raise ConfigError(
            f"ppo.settings.max_resamples={attempts} draws other prompts, and {type(loader).__name__} has no draw(); "
            "take the prompts from a PromptData, or set it to 0"
        )
