"""Log-probabilities of tokens straight from hidden states and output embedding, without the logits of all positions.

Logits [N, V] are by far the largest tensors of a step. Here they exist for a few rows at a time; the backward pass
computes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.functional.logprobs import entropy_of, log_softmax

CHUNK = 512  # rows


class TokenScores(NamedTuple):
    """What a model says about ``N`` tokens; None where it was not asked for."""

    logprobs: Tensor  # float [N], nats, of the tokens themselves; float32, or float64 for float64 states
    entropy: Tensor | None = None  # float [N], nats, of the distribution each token was one of
    correct: Tensor | None = None  # bool [N], the token is the most likely one
    states: Tensor | None = None  # [N, D], final hidden state before each token


class _Job(NamedTuple):
    """The arguments of `linear_logprobs` that are no tensors."""

    scale: float
    soft_cap: float | None
    temperature: float
    entropy: bool
    entropy_grad: bool
    correct: bool
    eager: bool
    chunk: int


def linear_logprobs(
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    entropy_grad: bool = False,
    correct: bool = False,
    summed: bool = False,
    chunk: int = CHUNK,
) -> TokenScores:
    """Log-probability of ``targets`` under a linear layer and a softmax, both computed ``chunk`` rows at a time.

        logits = cap(scale * (states @ weight.T + bias)) / temperature,  cap(x) = soft_cap * tanh(x / soft_cap)
        logprobs[n] = log softmax(logits[n])[targets[n]]

    The softmax is computed in float32 at least. Under autocast the product has autocast's dtype, as `nn.Linear` has.

    Args:
        states: ``[N, D]``, N may be 0.
        weight: output embedding, ``[V, D]``.
        targets: long ``[N]``.
        bias: ``[V]``.
        scale: factor of the logits.
        soft_cap: bound of the logits; None leaves them as they are.
        temperature: the one the tokens were sampled at.
        entropy: also return the entropy.
        entropy_grad: let it carry a gradient.
        correct: also return whether each target is the most likely token.
        summed: the log-probabilities will only be summed, as in a likelihood. The forward pass then computes their
            gradient at once, which saves computing the logits again; should the gradients of the rows turn out to
            differ after all, they are computed again.
        chunk: rows of logits that exist at a time; changes memory, and the result by rounding at most.

    Raises:
        ValueError: ``temperature`` or ``chunk`` is not above 0.

    Source: fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989, section 3.2 (that is ``summed``);
    ``dH / dlogits[v] = -p[v] (log p[v] + H)``.

    >>> weight = torch.tensor([[1.0, 1.0], [3.0, 1.0]]).log()
    >>> linear_logprobs(torch.eye(2), weight, torch.tensor([1, 0])).logprobs.exp()
    tensor([0.7500, 0.5000])
    """
    if temperature <= 0 or chunk <= 0:
        raise ValueError(f"temperature={temperature} and chunk={chunk} must be above 0")
    device = states.device.type
    if torch.is_autocast_enabled(device) and states.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        states, weight = states.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    eager = summed and not entropy_grad and soft_cap is None and torch.is_grad_enabled()
    job = _Job(scale, soft_cap, temperature, entropy, entropy_grad, correct, eager, chunk)
    with torch.autocast(device, enabled=False):
        return TokenScores(*_LinearLogprobs.apply(states, weight, bias, targets, job))


def score_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    entropy_grad: bool = False,
    correct: bool = False,
) -> TokenScores:
    """The same from logits ``[N, V]`` that are there already; see `linear_logprobs`.

    >>> score_logits(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([1]), correct=True).correct
    tensor([True])
    """
    log_probs = log_softmax(logits, temperature=temperature)
    return TokenScores(
        log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        entropy_of(log_probs if entropy_grad else log_probs.detach()) if entropy else None,
        log_probs.argmax(-1) == targets if correct else None,
    )


class _LinearLogprobs(torch.autograd.Function):
    """Keeps the log-normaliser and the entropy of each row, nothing of the size of the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, job: _Job
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        tiles = _Tiles(states, weight, bias, job)
        logprobs, norms = (states.new_empty(len(states), dtype=tiles.dtype) for _ in range(2))
        entropies = torch.empty_like(norms) if job.entropy else None
        correct = torch.empty_like(targets, dtype=torch.bool) if job.correct else None
        grads = _Gradients(states, weight, bias, ctx.needs_input_grad) if job.eager else None
        ones = states.new_ones(min(job.chunk, len(states)), 1, dtype=tiles.dtype)
        for rows in tiles.rows:
            logits, wanted = tiles.logits(rows), targets[rows]
            chosen = logits.gather(1, wanted[:, None]).squeeze(1)
            if correct is None:
                highest = logits.amax(1, keepdim=True)
            else:
                best = logits.argmax(1, keepdim=True)
                correct[rows], highest = best.squeeze(1) == wanted, logits.gather(1, best)
            logits.sub_(highest)
            powers = logits.exp_() if entropies is None else torch.exp(logits, out=tiles.buffer(1, len(wanted)))
            total = powers.sum(1)
            norms[rows] = total.log() + highest.squeeze(1)
            logprobs[rows] = chosen - norms[rows]
            if entropies is not None:
                entropies[rows] = total.log() - logits.mul_(powers).sum(1) / total
            if grads is not None:
                slope = powers.div_(total[:, None]).scatter_add_(1, wanted[:, None], -ones[: len(wanted)])
                grads.add(rows, slope, ones[: len(wanted)])
        ctx.save_for_backward(states, weight, bias, targets, norms, entropies if job.entropy_grad else None)
        ctx.job, ctx.grads = job, grads
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for t in (None if job.entropy_grad else entropies, correct) if t is not None))
        return logprobs, entropies, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, entropy_grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, norms, entropies = ctx.saved_tensors
        job: _Job = ctx.job
        grad = torch.zeros_like(norms) if grad is None else grad
        grads, ctx.grads = ctx.grads, None  # they are changed in place
        if grads is not None and (grad == grad[:1]).all():
            return grads.times(grad[:1] * (-job.scale / job.temperature))
        with torch.autocast(states.device.type, enabled=False):
            tiles = _Tiles(states, weight, bias, job)
            grads = _Gradients(states, weight, bias, ctx.needs_input_grad)
            for rows in tiles.rows:
                dual = None if entropy_grad is None else (entropies[rows], entropy_grad[rows])
                grads.add(rows, *tiles.slope(rows, targets[rows], norms[rows], grad[rows], dual))
        return grads.times(None)


class _Gradients:
    """Sums over the tiles, in float32 at least."""

    def __init__(self, states: Tensor, weight: Tensor, bias: Tensor | None, needed: Sequence[bool]) -> None:
        self.states, self.weight = states, weight
        self.dtype = torch.promote_types(states.dtype, torch.float32)
        self.totals = [
            None if t is None or not wanted else torch.zeros_like(t, dtype=self.dtype)
            for t, wanted in zip((states, weight, bias), needed, strict=False)
        ]

    def add(self, rows: slice, slope: Tensor, factor: Tensor) -> None:
        """Add one tile.

        Args:
            rows: its rows.
            slope: gradient of the product of states and embedding, [rows, V].
            factor: what is still to be multiplied with it, [rows, 1].
        """
        narrow = slope.to(self.weight.dtype)
        to_states, to_weight, to_bias = self.totals
        if to_states is not None:
            to_states[rows] = torch.mm(narrow, self.weight) * factor
        if to_weight is not None:
            states = (self.states[rows] * factor).to(narrow.dtype)
            if to_weight.dtype == narrow.dtype:
                to_weight.addmm_(narrow.t(), states)
            else:
                to_weight.add_(torch.mm(narrow.t(), states))
        if to_bias is not None:
            to_bias.addmv_(slope.t(), factor.squeeze(1))

    def times(self, factor: Tensor | None) -> tuple[Tensor | None, ...]:
        """What `backward` returns: the sums, times ``factor`` [1], in the dtype of the inputs."""
        if factor is not None and len(factor):
            self.totals = [None if total is None else total.mul_(factor) for total in self.totals]
        return *(None if total is None else total.to(self.states.dtype) for total in self.totals), None, None


class _Tiles:
    """Logits of a few rows at a time, always in the same memory."""

    def __init__(self, states: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> None:
        self.states, self.weight, self.bias, self.job = states, weight, bias, job
        self.dtype = torch.promote_types(states.dtype, torch.float32)
        self.rows = [slice(start, start + job.chunk) for start in range(0, len(states), job.chunk)]
        self._size = (min(job.chunk, len(states)), len(weight))
        self._buffers: list[Tensor] = []

    def buffer(self, number: int, rows: int) -> Tensor:
        """Uninitialised memory [rows, V]."""
        while len(self._buffers) <= number:
            self._buffers.append(self.states.new_empty(self._size, dtype=self.dtype))
        return self._buffers[number][:rows]

    def logits(self, rows: slice) -> Tensor:
        """The argument of the softmax, [rows, V]."""
        states, job = self.states[rows], self.job
        out = self.buffer(0, len(states))
        narrow = out if states.dtype == self.dtype else None
        if self.bias is None:
            product = torch.mm(states, self.weight.t(), out=narrow)
        else:
            product = torch.addmm(self.bias, states, self.weight.t(), out=narrow)
        if narrow is None:
            out.copy_(product)
        if job.scale != 1:
            out.mul_(job.scale)
        if job.soft_cap is not None:
            out.div_(job.soft_cap).tanh_().mul_(job.soft_cap)
        return out if job.temperature == 1 else out.div_(job.temperature)

    def slope(
        self, rows: slice, targets: Tensor, norms: Tensor, grad: Tensor, dual: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the product [rows, V], and a factor [rows, 1] that is still to be multiplied with it.

        Args:
            rows: which rows.
            targets: of these rows, as the rest is.
            norms: log-normalisers.
            grad: of the log-probabilities.
            dual: entropies and their gradients, if there are any.
        """
        job, slope = self.job, self.logits(rows)
        bent = None
        if job.soft_cap is not None:  # 1 - tanh^2
            bent = torch.mul(slope, job.temperature / job.soft_cap, out=self.buffer(1, len(slope)))
            bent.square_().neg_().add_(1)
        slope.sub_(norms[:, None])
        factor = grad[:, None] * (-job.scale / job.temperature)
        if dual is None:  # p - onehot
            slope.exp_().scatter_add_(1, targets[:, None], -torch.ones_like(factor))
        else:  # p (grad + grad_entropy (log p + H)) - grad onehot
            powers = torch.exp(slope, out=self.buffer(2, len(slope)))
            entropy, entropy_grad = dual
            slope.add_(entropy[:, None]).mul_(entropy_grad[:, None]).add_(grad[:, None]).mul_(powers)
            slope.scatter_add_(1, targets[:, None], -grad[:, None])
            factor = torch.full_like(factor, -job.scale / job.temperature)
        return slope if bent is None else slope.mul_(bent), factor
