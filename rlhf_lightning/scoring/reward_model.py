"""A trained reward model as a scorer; by ids where it shares the policy's tokenizer, by text where it has its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedTokenizerBase

from rlhf_lightning import signals
from rlhf_lightning.checkpoint import read_provenance
from rlhf_lightning.checkpoint.nonfinite import first_nonfinite
from rlhf_lightning.checkpoint.processes import everyone
from rlhf_lightning.errors import CheckpointError, NumericalError
from rlhf_lightning.functional.lengths import cut
from rlhf_lightning.functional.sequences import right_pad
from rlhf_lightning.models import Pretrained, ScalarModel
from rlhf_lightning.models.frozen import fingerprint
from rlhf_lightning.models.memory import halved
from rlhf_lightning.models.resting import Resting
from rlhf_lightning.models.sharding import shard
from rlhf_lightning.models.templates import render
from rlhf_lightning.models.tokens import encode, same_ids, through_eos
from rlhf_lightning.models.unread import fill, unread_of
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.rules.rows import template_arguments
from rlhf_lightning.scoring.returned_scores import error_policy
from rlhf_lightning.scoring.scorer import completion_texts
from rlhf_lightning.types import Rollout, Row

log = logging.getLogger(__name__)


class RewardModelScorer:
    """Score with a sequence-classification folder.

    Args:
        model: where the reward model is.
        name: how the source is called in logs.
        normalise: standardise with the mean and standard deviation stored in the folder's provenance, so that held-out
            reference answers score 0 on average with standard deviation 1 (Ziegler et al. 2019, section 2.2). A
            folder from another tool has none: scores stay raw.
        micro_batch_size: responses scored at once, those of similar length together; halved for good when memory runs
            out.
        on_error: what happens when a score is NaN or infinite. ``raise`` lets training skip the rollout and end after
            several; ``abstain`` leaves those answers unjudged (NaN); a number is their score.

    Raises:
        ConfigError: ``on_error`` is none of these.
    """

    learned = True
    _resting: Resting | None = None
    _fingerprint: str | None = None
    _shared = False  # whether ranks hold a part of the weights each, and score together

    def __init__(
        self,
        model: Pretrained,
        name: str = "reward_model",
        normalise: bool = True,
        micro_batch_size: int = 16,
        on_error: str | float = "raise",
    ) -> None:
        require("micro_batch_size", micro_batch_size, at_least=1, whole=True)
        self.name = name
        self.path = model.path
        self.model = ScalarModel(model.reward_model()).eval().requires_grad_(False)
        self.tokenizer = model.tokenizer()
        self.mean, self.std = (statistics(model.path) or (0.0, 1.0)) if normalise else (0.0, 1.0)
        self.micro_batch_size, self.on_error = micro_batch_size, error_policy(on_error)
        self._same_ids: bool | None = None
        if unread_of(self.model.model) is None:
            self._fingerprint = fingerprint(self.model)
        self._resting = Resting(self.model) if model.offload else None
        for doubt in stored_doubts(model.path):
            log.warning("%s: %s", model.path, doubt)

    def state_dict(self) -> dict[str, str]:
        """What tells this reward model from another one; its weights stay in their folder."""
        return {"fingerprint": self._told()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Go on with the same reward model.

        Raises:
            CheckpointError: it is another one.
        """
        if state.get("fingerprint", self._told()) != self._told():
            raise CheckpointError(
                f"scorer {self.name}: {self.path} has other weights than when this checkpoint was written; give the "
                "reward model that the run began with, unchanged, or start a new run"
            )

    def to(self, device: torch.device | str) -> RewardModelScorer:
        """Where the model is to be; one with ``offload`` is there while it scores."""
        fill(self.model)  # nothing, where it is read
        if self._resting is None:
            self.model.to(device)
        else:
            self._resting.to(device)
        return self

    def shard(self, mesh: DeviceMesh, compute: torch.dtype | None) -> None:
        """Keep a part of the weights on each rank, see `rlhf_lightning.models.sharding.shard`.

        From now on all ranks score at the same time, and memory that runs out on one of them is an error.
        """
        shard(self.model, mesh, compute)
        fill(self.model)
        self._shared = True

    def score(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Standardised scores at the last token of each answer, float32 [B].

        Raises:
            NumericalError: a score is not finite and ``on_error`` is ``raise``.
            OutOfMemory: not even one answer fits.
        """
        return self._scores(*pads_last(*self._encode(rollout, tokenizer))).to(rollout.response_ids.device)

    def score_texts(self, prompts: Sequence[Any], completions: Sequence[Any], rows: Sequence[Row]) -> list[float]:
        """The same for prompts and answers as text or messages; ``rows`` give what the chat template reads besides.

        Equal to `score` of the rollout that the answers come from, unless its prompts were shortened, or this tokenizer
        makes other tokens of an answer than the policy wrote.

        Raises:
            NumericalError, OutOfMemory: as `score`.
        """
        given = map(template_arguments, rows)
        ids = [self._ids(*exchange) for exchange in zip(prompts, completions, given, strict=True)]
        return self._scores(*right_pad(ids, self.tokenizer.pad_token_id)).tolist() if ids else []

    def _scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Standardised scores of rows whose tokens stand in front of all pads, [B] on the CPU."""
        size, what = min(self.micro_batch_size, len(ids)), f"scorer {self.name}"
        with nullcontext() if self._resting is None else self._resting.awake():
            advice = "use a smaller reward model"
            smallest = size if self._shared else 1
            scores, fitted = halved(partial(self._score, ids, mask), size, what, advice, smallest)
        if fitted < size:
            self.micro_batch_size = fitted
        return self._judged((scores - self.mean) / self.std)

    def _score(self, ids: Tensor, mask: Tensor, micro_batch_size: int) -> Tensor:
        device, lengths = next(self.model.parameters()).device, mask.sum(1)
        groups = [torch.tensor(rows) for rows in cut(lengths, -(-len(ids) // micro_batch_size))]
        scores = []
        with torch.no_grad():
            for rows in groups + [groups[-1][:1]] * (self._rounds(len(groups)) - len(groups)):
                if not self._shared:
                    signals.poll()
                width = int(lengths[rows].max())
                scores.append(self.model.score(ids[rows, :width].to(device), mask[rows, :width].to(device)))
        return torch.cat(scores[: len(groups)]).cpu()[torch.cat(groups).argsort()]

    def _rounds(self, groups: int) -> int:
        """How often ranks that share the weights gather them: as often as the one with the most groups."""
        return max(everyone().gather(groups)) if self._shared else groups

    def _told(self) -> str:
        """Fingerprint of the weights as they were read. Collective the first time, where they are sharded."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    def _judged(self, scores: Tensor) -> Tensor:
        broken = ~scores.isfinite()
        if not broken.any():
            return scores
        says = f"scorer {self.name}: {int(broken.sum())} of {len(scores)} scores are NaN or infinite"
        if self.on_error == "raise":
            weight = first_nonfinite(self.model.named_parameters())
            why = f"as is its weight {weight}" if weight else "though its weights are not; try model.dtype=float32"
            raise NumericalError(f"{says}, {why}. scorer.on_error=abstain learns nothing from such answers")
        log.warning("%s; on_error=%s for them", says, self.on_error)
        return scores.masked_fill(broken, self.on_error if isinstance(self.on_error, float) else torch.nan)

    def _encode(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
        if self._same_ids is None:
            self._same_ids = same_ids(tokenizer, self.tokenizer)
        if self._same_ids:
            return close(rollout, self.tokenizer.eos_token_id)
        texts = completion_texts(rollout, tokenizer)
        rows = [
            self._ids(r["prompt"], text, template_arguments(r)) for r, text in zip(rollout.rows, texts, strict=True)
        ]
        return right_pad(rows, self.tokenizer.pad_token_id)

    def _ids(self, prompt: Any, answer: Any, given: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of one exchange in this model's own format, ending with its EOS."""
        eos: Any = self.tokenizer.eos_token_id
        if isinstance(prompt, str):
            ids = encode(self.tokenizer, [prompt], special=True)[0] + encode(self.tokenizer, [answer])[0]
        else:
            turns = [*prompt, *([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)]
            ids = encode(self.tokenizer, [render(self.tokenizer, turns, given=given or {})])[0]
            ids = ids[: through_eos(self.tokenizer, ids, eos)]
        return ids if ids[-1] == eos else [*ids, eos]


def pads_last(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows with their tokens in front of all pads, so that a group of rows is as wide as its longest.

    >>> pads_last(torch.tensor([[0, 7, 0, 8]]), torch.tensor([[False, True, False, True]]))[0]
    tensor([[7, 8, 0, 0]])
    """
    order = mask.int().argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def close(rollout: Rollout, eos_token_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, S + 1] in which answers without EOS, truncated or ended by a stop string, end with it as well.

    The reward model has learned from answers that all end with EOS, and the score is read there; anywhere else it would
    be read where none was ever trained.
    """
    ids = torch.cat([rollout.input_ids, torch.full_like(rollout.input_ids[:, :1], eos_token_id)], dim=1)
    mask = torch.cat([rollout.attention_mask, torch.zeros_like(rollout.attention_mask[:, :1])], dim=1)
    end = (rollout.prompt_ids.shape[1] + rollout.attended.sum(1))[:, None]
    open_ended = ~rollout.finished[:, None] | (ids.gather(1, end - 1) != eos_token_id)
    ids = ids.scatter(1, end, torch.where(open_ended, eos_token_id, ids.gather(1, end)))
    return ids, mask.scatter(1, end, open_ended)


def statistics(folder: str | Path) -> tuple[float, float] | None:
    """Mean and standard deviation of the held-out scores of a reward model's folder; None where it says nothing."""
    metrics = _stored(folder)
    if "score_mean" not in metrics:
        return None
    return float(metrics["score_mean"]), max(float(metrics.get("score_std", 1.0)), 1e-6)


def stored_doubts(folder: str | Path) -> list[str]:
    """Reasons not to use a reward model that its training found; see `rlhf_lightning.evaluation.trust`."""
    doubts = _stored(folder).get("doubts")
    return [str(doubt) for doubt in doubts] if isinstance(doubts, list) else []


def _stored(folder: str | Path) -> Mapping[str, Any]:
    """The metrics in the provenance of a folder; none where it says nothing."""
    provenance = read_provenance(Path(folder)) if Path(folder).is_dir() else None
    return (provenance or {}).get("metrics", {})
