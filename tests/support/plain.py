"""Formulas written out in plain torch, to compare with."""


def gather_logprobs(logits, ids, temperature=1.0):
    """Log-probability of ids[..., t] under logits[..., t], in float32 at least."""
    wide = logits.double() if logits.dtype.itemsize == 8 else logits.float()
    return (wide / temperature).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
