"""Formulas written out in plain torch, to compare with."""

from rlhf_lightning.functional import masking


def gather_logprobs(logits, ids, temperature=1.0):
    """Log-probability of ids[..., t] under logits[..., t], in float32 at least."""
    wide = logits.double() if logits.dtype.itemsize == 8 else logits.float()
    return (wide / temperature).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def variance(x, mask, ddof):
    count, _, var = masking.masked_moments(x, mask)
    return var * count / (count - ddof).clamp(min=1)


def whitened(x, mask, ddof=0, **options):
    return masking.whiten_with(x, mask, masking.masked_moments(x, mask).mean, variance(x, mask, ddof), **options)
