"""A toy whose true score is known exactly: bigram models of short sequences, and scores linear in their features."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.types import PromptBatch, Rollout

SYMBOLS, LENGTH = 12, 10
COMPARISONS, SHARPNESS = 50, 2.0  # how many, and how sure their labeller is: sigmoid(2 * difference of gold)
PRIOR = 1.0  # standard deviation of a proxy's weights before it has seen a comparison
REPEAT_PENALTY = 0.3  # that gold takes for each pair of equal symbols


class Bigram(nn.Module):
    """A policy: logits of the first symbol, and of each next one given the last."""

    def __init__(self, first: Tensor, after: Tensor) -> None:
        super().__init__()
        self.first, self.after = nn.Parameter(first.clone()), nn.Parameter(after.clone())
        self.config = SimpleNamespace(max_position_embeddings=LENGTH + 1)

    def forward(self, input_ids: Tensor, position_ids: Tensor, logits_to_keep: int, **columns: Any) -> Any:
        """Logits as a transformers model returns them."""
        first = self.first.expand(*input_ids.shape, -1)
        logits = torch.where((position_ids == 0)[..., None], first, self.after[input_ids])
        return SimpleNamespace(logits=logits[:, -logits_to_keep:], hidden_states=None)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words s0, s1, ... for the symbols; padding and end have ids that the policy cannot say."""
    vocabulary = {f"s{i}": i for i in range(SYMBOLS)} | {"<pad>": SYMBOLS, "<end>": SYMBOLS + 1}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


class Prompts:
    """The same prompt for every response, ``steps`` times."""

    def __init__(self, responses: int, steps: int) -> None:
        ids = torch.zeros(responses, 1, dtype=torch.long)
        self.batch = PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), ({"prompt": "s0"},) * responses)
        self.steps, self.batch_size = steps, responses

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Any:
        return iter([self.batch] * self.steps)


class Linear:
    """A scorer that weighs features; the first half of the weights is for symbols, the second for pairs of equals."""

    def __init__(self, name: str, weights: Tensor, seen: Tensor) -> None:
        self.name, scores = name, seen @ weights
        self.weights, self.shift = weights / scores.std(), scores.mean() / scores.std()  # as reward models are

    def to(self, device: Any) -> Linear:
        """Nothing to move."""
        return self

    def score(self, rollout: Rollout, tokenizer: Any) -> Tensor:
        """Scores, float32 [B]."""
        return self.of(rollout.response_ids).float()

    def of(self, ids: Tensor) -> Tensor:
        """Scores of sequences [B, LENGTH], float64 [B]."""
        return features(ids) @ self.weights - self.shift


def features(ids: Tensor) -> Tensor:
    """How often each symbol occurs, and how many pairs of it there are, float64 [B, 2 * SYMBOLS]."""
    counts = torch.zeros(len(ids), SYMBOLS, dtype=torch.float64).scatter_add_(1, ids, torch.ones(ids.shape).double())
    return torch.cat([counts, counts * (counts - 1) / 2], dim=1)


class Toy:
    """One draw of the base model, of gold and of the comparisons."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.first, self.after = 0.5 * self.normal(SYMBOLS), 0.5 * self.normal(SYMBOLS, SYMBOLS)
        truth = torch.cat([0.5 * self.normal(SYMBOLS), torch.full((SYMBOLS,), -REPEAT_PENALTY).double()])
        self.seen = features(self.sample(20_000))
        self.gold = Linear("gold", truth, self.seen)
        left, right = self.sample(COMPARISONS), self.sample(COMPARISONS)
        gap = self.gold.of(left) - self.gold.of(right)
        better = torch.rand(COMPARISONS, generator=self.random) < (SHARPNESS * gap).sigmoid()
        self.comparisons = (features(left) - features(right)) * torch.where(better, 1, -1)[:, None]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float64."""
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def sample(self, count: int) -> Tensor:
        """Sequences of the base model, long [count, LENGTH]."""
        first, after = self.first.softmax(-1).cumsum(-1), self.after.softmax(-1).cumsum(-1)
        tokens = [self.draw(first.expand(count, -1))]
        for _ in range(LENGTH - 1):
            tokens.append(self.draw(after[tokens[-1]]))
        return torch.stack(tokens, dim=1)

    def draw(self, cumulative: Tensor) -> Tensor:
        """One symbol for each row of cumulative probabilities, long [count]."""
        uniform = torch.rand(len(cumulative), 1, generator=self.random, dtype=torch.float64)
        return (uniform > cumulative[:, :-1]).sum(1)

    def proxy(self, name: str) -> Linear:
        """A reward model, another at each call: random first weights, fitted to a bootstrap of the comparisons."""
        rows = torch.randint(COMPARISONS, (COMPARISONS,), generator=self.random)
        return Linear(name, fit(self.comparisons[rows], PRIOR * self.normal(2 * SYMBOLS)), self.seen)

    def exact(self, first: Tensor, after: Tensor) -> tuple[float, float]:
        """Expected gold of a bigram model, and its KL from the base in nats per sequence, both without sampling."""
        now, step = first.double().softmax(-1), after.double().softmax(-1)
        gap = step.log() - self.after.log_softmax(-1)
        kl = (now * (now.log() - self.first.log_softmax(-1))).sum()
        counts, pairs, places = now.clone(), torch.zeros_like(now), torch.diag(now)
        for _ in range(LENGTH - 1):
            kl = kl + (now[:, None] * step * gap).sum()
            now = now @ step
            places = places @ step  # [k, j]: expected number of k so far, with j at the present place
            pairs, counts = pairs + places.diagonal(), counts + now
            places = places + torch.diag(now)
        gold = torch.cat([counts, pairs]) @ self.gold.weights - self.gold.shift
        return float(gold), float(kl)


def fit(differences: Tensor, start: Tensor) -> Tensor:
    """Weights that minimise the Bradley-Terry loss of better minus worse [N, F], with the prior N(start, PRIOR^2)."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        prior = (weights - start).square().sum() / (2 * PRIOR**2)
        total = (softplus(-differences @ weights).sum() + prior) / len(differences)
        total.backward()
        return total

    optimizer.step(loss)
    return weights.detach()
