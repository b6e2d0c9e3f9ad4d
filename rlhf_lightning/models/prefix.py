"""Answers to one prompt in one row, [prompt | answer 1 | ... | answer K], so that the prompt is computed once.

Positions restart behind the prompt for every answer, and attention is cut so that an answer sees the prompt and itself.
The result is that of plain rows up to rounding; only the work differs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.functional.sequences import position_ids
from rlhf_lightning.models.trunk import decoder, hidden_states

WORTHWHILE = 0.9  # share only where it costs at most this part of plain rows


class SharedRows(NamedTuple):
    """M rows of up to W tokens that hold N sequences; ``row[n], column[n, t]`` is where token t of sequence n went."""

    input_ids: Tensor  # long [M, W]
    attention: Tensor  # bool [M, 1, W, W], True where a token (third axis) sees another (last axis)
    positions: Tensor  # long [M, W]
    row: Tensor  # long [N]
    column: Tensor  # long [N, S], 0 at pads


def share_prefixes(input_ids: Tensor, attention_mask: Tensor, groups: Tensor) -> SharedRows:
    """Put the sequences of each group into one row behind the tokens with which they all begin.

    Args:
        input_ids: long [N, S], padded on either side.
        attention_mask: bool [N, S], True at real tokens.
        groups: group of each sequence, 0 .. M - 1 in ascending order, long [N].

    >>> ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
    >>> share_prefixes(ids, torch.ones(2, 3, dtype=torch.bool), torch.tensor([0, 0])).input_ids
    tensor([[5, 6, 7, 8]])
    """
    device = input_ids.device
    real, place = attention_mask, position_ids(attention_mask)
    lengths, counts = real.sum(1), torch.bincount(groups)
    prefix = _common_prefix(input_ids, real, place, groups, counts)  # [M]
    tails = lengths - prefix[groups]
    before = tails.cumsum(0) - tails
    first = counts.cumsum(0) - counts  # first sequence of each group
    offset = before - before[first][groups]  # of a tail among the tails of its row
    shift = torch.where(place < prefix[groups, None], 0, offset[:, None])
    column = torch.where(real, place + shift, 0)
    width = int((prefix + torch.zeros_like(prefix).index_add_(0, groups, tails)).max())
    row = groups[:, None].expand_as(column)[real], column[real]
    ids, positions = (torch.zeros(len(counts), width, dtype=torch.long, device=device) for _ in range(2))
    owner = torch.full((len(counts), width), -1, device=device)  # -1 pad, 0 prefix, n + 1 tail of sequence n
    ids[row], positions[row] = input_ids[real], place[real]
    number = torch.arange(1, len(lengths) + 1, device=device)[:, None]
    owner[row] = torch.where(place < prefix[groups, None], 0, number)[real]
    sees = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    sees &= torch.ones(width, width, dtype=torch.bool, device=device).tril()
    return SharedRows(ids, sees[:, None], positions, groups, column)


def _common_prefix(input_ids: Tensor, real: Tensor, place: Tensor, groups: Tensor, counts: Tensor) -> Tensor:
    """How many tokens all sequences of a group begin with, long [M]."""
    aligned = torch.full_like(input_ids, -1)
    rows = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(place)
    aligned[rows[real], place[real]] = input_ids[real]
    first = counts.cumsum(0) - counts
    same = (aligned == aligned[first][groups]) & (aligned >= 0)
    shared = same.long().cumprod(1).sum(1)
    return torch.full_like(counts, input_ids.shape[1]).scatter_reduce_(0, groups, shared, "amin")


def worthwhile_rows(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, groups: Tensor | None
) -> SharedRows | None:
    """Shared rows as in `share_prefixes`; None where plain ones cost about as little, or the model does not share.

    A model shares if `Pretrained` says so and `can_share` found that it can.
    """
    if groups is None or not getattr(model, "share_prefix", False) or len(groups) == int(groups[-1]) + 1:
        return None
    shared = share_prefixes(input_ids, attention_mask, groups)
    config: Any = model.config
    return shared if is_worthwhile(shared, config.get_text_config().hidden_size) else None


def adjacent_groups(prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
    """Groups of neighbouring rows with the same prompt, for `share_prefixes`; long [B].

    Args:
        prompt_ids: long [B, P], padded on the left.
        prompt_mask: bool [B, P].

    >>> adjacent_groups(torch.tensor([[5, 6], [5, 6], [5, 7]]), torch.ones(3, 2, dtype=torch.bool))
    tensor([0, 0, 1])
    """
    ids = torch.where(prompt_mask, prompt_ids, -1)
    differs = (ids[1:] != ids[:-1]).any(1)
    return torch.cat([differs.new_zeros(1), differs]).long().cumsum(0)


def is_worthwhile(shared: SharedRows, hidden_size: int) -> bool:
    """Whether shared rows cost clearly less than plain ones.

    A token costs about 24 D^2 multiplications in the linear maps of a layer and 4 D W in attention over W columns,
    masked or not.
    """
    new, plain = (t.numel() * (6 * hidden_size + t.shape[1]) for t in (shared.input_ids, shared.column))
    return new <= WORTHWHILE * plain


def shared_inputs(model: PreTrainedModel, shared: SharedRows) -> dict[str, Any]:
    """What a model or its decoder is called with for shared rows."""
    mask = shared.attention
    if model.config._attn_implementation == "eager":  # adds its mask
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(model.dtype).min
        )
    return {
        "input_ids": shared.input_ids, "attention_mask": mask, "position_ids": shared.positions, "use_cache": False
    }  # fmt: skip


def shared_states(model: PreTrainedModel, shared: SharedRows) -> Tensor:
    """Final hidden states [M, W, D] of shared rows."""
    return decoder(model)(**shared_inputs(model, shared)).last_hidden_state


@torch.no_grad()
def can_share(model: PreTrainedModel) -> bool:
    """Whether a model takes positions and attention as given: tried on a few tokens, before it is sharded.

    Sliding windows and attention kernels without masks say no, and so does whatever gives other numbers.
    """
    config = model.config
    windowed = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    if config._attn_implementation not in ("sdpa", "eager") or windowed or getattr(config, "sliding_window", None):
        return False
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 4, 5], [0, 1, 2, 0]], device=model.device)
    real = torch.tensor([[True] * 4, [True] * 4, [True] * 3 + [False]], device=model.device)
    shared = share_prefixes(ids, real, torch.zeros(3, dtype=torch.long, device=model.device))
    was_training = model.training
    model.eval()
    try:
        plain = hidden_states(model, ids, real)
        found = shared_states(model, shared)[shared.row[:, None], shared.column]
    except (RuntimeError, ValueError, TypeError):
        return False
    finally:
        model.train(was_training)
    return torch.allclose(plain[real], found[real], atol=1e-4, rtol=1e-3)
