"""Draw tokens from logits with uniforms that were drawn before."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.rollout.engine import Sampling

BLOCK = 128  # tokens whose probabilities are summed up before any of them is looked at
AT_ONCE = 1 << 19  # numbers on the CPU: fit its cache, and are not new memory in each operation as 50 MB are


def sample(
    logits: Tensor, uniform: Tensor, sampling: Sampling, forbidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution.

    Args:
        logits: [B, V]; the softmax is computed in float32.
        uniform: numbers in [0, 1), [B].
        sampling: temperature and truncation.
        forbidden: token ids that may not be drawn.

    Returns:
        token ids, long [B], and their log-probabilities under the tempered, untruncated distribution, float [B].
    """
    rows = max(AT_ONCE // logits.shape[1], 1) if logits.device.type == "cpu" else len(logits)
    parts = zip(logits.split(rows), uniform.split(rows), strict=True)
    tokens, logprobs = zip(*(_sample(*part, sampling, forbidden) for part in parts), strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample(
    logits: Tensor, uniform: Tensor, sampling: Sampling, forbidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    tempered = logits.float() if sampling.temperature == 1 else logits.float() / sampling.temperature
    probs = tempered.softmax(-1)
    weights = probs
    if forbidden is not None or sampling.top_k > 0 or sampling.top_p < 1:
        weights = truncate(probs.log(), sampling, forbidden).exp()
    token = invert(weights, uniform)
    return token, probs.gather(1, token[:, None]).squeeze(1).log()


def invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index at which the cumulative sum of a row first exceeds ``uniform`` times its total, long [B].

    First the block of `BLOCK` columns is found from the sums of blocks, then the column in it: a cumulative sum of a
    whole row in float64 takes twice the time of all else here.

    Args:
        weights: float [B, V], not negative.
        uniform: numbers in [0, 1), [B].

    >>> invert(torch.tensor([[0.5, 0.0, 1.5]]), torch.tensor([0.25]))
    tensor([2])
    """
    blocks = pad(weights, (0, -weights.shape[1] % BLOCK)).view(len(weights), -1, BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)
    target = uniform[:, None].to(ends) * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[1] - 1)
    begin = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0)
    inner = blocks[torch.arange(len(blocks), device=block.device), block.squeeze(1)].double().cumsum(-1)
    share = (target - begin) / (ends.gather(1, block) - begin)  # of the block; sums of float32 differ in rounding
    column = torch.searchsorted(inner, share * inner[:, -1:], right=True)
    return (block * BLOCK + column).squeeze(1).clamp(max=weights.shape[1] - 1)


def truncate(logprobs: Tensor, sampling: Sampling, forbidden: Tensor | None = None) -> Tensor:
    """Log-probabilities [B, V] with what may not be drawn at minus infinity (not renormalised)."""
    if forbidden is not None:
        logprobs = logprobs.index_fill(-1, forbidden, float("-inf"))
    if sampling.top_k > 0:
        limit = logprobs.topk(min(sampling.top_k, logprobs.shape[-1])).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < limit, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logprobs.sort(descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        outside = (before >= sampling.top_p * ordered.exp().sum(-1, keepdim=True)).gather(1, order.argsort())
        logprobs = logprobs.masked_fill(outside, float("-inf"))
    return logprobs
