"""What learning from given answers has in common: a policy, perhaps a frozen reference, and log-probabilities of whole
answers under both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.data.loader import ShardedLoader
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.masking import spread
from rlhf_lightning.metrics.shown import PREFERENCE
from rlhf_lightning.models import FrozenModels, Pretrained
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.packing import lower_states
from rlhf_lightning.models.recipes import depth_of, load_reference, load_trained, offloads
from rlhf_lightning.modules.automatic import AutomaticModule
from rlhf_lightning.modules.base import OptimizerFactory, SchedulerFactory
from rlhf_lightning.rules.combinations import NOTHING_TO_CACHE
from rlhf_lightning.rules.placement import FSDP2_LAYOUT, OFFLOAD_OFFLINE
from rlhf_lightning.training.reference_logprobs import ReferenceLogprobs, answer_keys
from rlhf_lightning.types import AnswerBatch, ComparisonBatch

FOLDER = "reference_logprobs"


class AnswerLogprobs(NamedTuple):
    """Log-probability of each answer given its prompt, summed over the tokens the model is to write, EOS included."""

    policy: Tensor  # float32 [N], nats
    reference: Tensor | None  # float32 [N], nats, no grad; None without a reference


class OfflineModule(AutomaticModule):
    """Base of `DPOModule` and `KTOModule`.

    Args:
        policy: a loading recipe or a causal language model.
        tokenizer: of the policy.
        optimizer: see `RLHFModule`.
        scheduler: see `RLHFModule`.
        reference: see `load_reference`.
        has_reference: False loads no reference at all.
        cache_reference: ask the reference about all answers before the first step, keep what it said in the folder of
            the run (``default_root_dir``), and let its model go: less memory, and less time with several epochs. In the
            first epoch the numbers are those of the reference itself to the last bit, later up to rounding.
        max_grad_norm: see `RLHFModule`.
        max_skipped_steps: see `RLHFModule`.
    """

    trains, shown = "policy", PREFERENCE

    def __init__(
        self,
        policy: Pretrained | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        reference: Pretrained | PreTrainedModel | None,
        has_reference: bool,
        cache_reference: bool,
        max_grad_norm: float,
        max_skipped_steps: int,
    ) -> None:
        super().__init__(tokenizer, optimizer, scheduler, max_grad_norm, max_skipped_steps)
        if cache_reference and not has_reference:
            raise ConfigError(NOTHING_TO_CACHE.format(self.stage))
        if has_reference and offloads(policy) and not cache_reference:
            raise ConfigError(OFFLOAD_OFFLINE.format(self.stage))
        self.cache_reference = cache_reference
        self._cached: ReferenceLogprobs | None = None
        self._sources = (policy, reference)  # a tuple: Lightning would register bare models
        self.has_reference = has_reference
        self.freeze_below = depth_of(policy)
        self.policy: PreTrainedModel | None = None
        self.frozen = FrozenModels()

    def build(self) -> None:
        """Load the policy, and its reference if the loss looks at one."""
        source, reference = self._sources
        policy = load_trained(source)
        if self.has_reference:
            self.frozen.add("reference", load_reference(reference, policy))
        self.policy = policy

    def sharded_modules(self) -> list[nn.Module]:
        """Policy and reference."""
        if self.freeze_below:
            raise ConfigError(FSDP2_LAYOUT)
        return [self.policy, *([self.frozen["reference"]] if self.has_reference else [])]  # type: ignore[list-item]

    def on_fit_start(self) -> None:
        """Move what Lightning does not see."""
        self.frozen.to(self.device)

    def on_train_start(self) -> None:
        """See `RLHFModule`; before, ask the reference about all answers, if that is wanted."""
        if self.cache_reference and self._cached is None:
            self._cache_reference()
        super().on_train_start()

    def logprobs(self, answers: ComparisonBatch | AnswerBatch) -> AnswerLogprobs:
        """Override to change how an answer is scored; under both models, the reference without gradient.

        With ``cache_reference`` only this method knows what the reference says: an override has to call it.
        """
        assert self.policy is not None
        mask = scored(answers)
        hidden = self._lower(answers) if self._shares_lower() else None
        now = self._sums(self.policy, answers, mask, hidden)
        if not self.has_reference:
            return AnswerLogprobs(now, None)
        if self._cached is not None:
            return AnswerLogprobs(now, self._cached.of(_keys(answers), now.device))
        with torch.no_grad():
            return AnswerLogprobs(now, self._sums(self.frozen["reference"], answers, mask, hidden))

    def answers_of(self, batch: Any, *, training: bool) -> Iterator[ComparisonBatch | AnswerBatch]:
        """All that `logprobs` is called with for a batch."""
        yield batch

    def passes(self) -> int:
        """In how many passes over the training rows there are answers that those before did not have."""
        return 1

    @torch.no_grad()
    def _cache_reference(self) -> None:
        """Ask the reference about all answers to come that no earlier run has asked about, and let it go."""
        trainer, loader = self.trainer, self.trainer.train_dataloader
        if not isinstance(loader, ShardedLoader):
            raise ConfigError(
                f"{self.stage}.cache_reference=true needs a data module of this library; the rows of a "
                f"{type(loader).__name__} can be others in each epoch"
            )
        reference: Any = self.frozen["reference"]
        settings = {
            "reference": self.frozen.fingerprints["reference"],
            "dtype": str(reference.dtype),
            "precision": str(trainer.precision),
        }
        cached = ReferenceLogprobs(Path(trainer.default_root_dir) / FOLDER / self.stage, settings, self.ranks)
        cached.read()
        few = int(trainer.fast_dev_run) or None  # type: ignore[attr-defined]
        with trainer.precision_plugin.train_step_context():
            for number in range(self.passes()):
                self._ask(cached, loader.look_through(number, few), training=True)
            held_out = islice(trainer.val_dataloaders or (), few)
            self._ask(cached, held_out, training=False)
        self._cached = cached
        self.frozen.drop("reference")

    def _ask(self, cached: ReferenceLogprobs, batches: Iterable[Any], *, training: bool) -> None:
        """Add what the reference says about the answers of some batches."""

        def add(answers: Any) -> None:
            hidden = self._lower(answers) if self._shares_lower() else None
            cached.add(_keys(answers), self._sums(self.frozen["reference"], answers, scored(answers), hidden))

        for batch in batches:
            for answers in self.answers_of(batch.to(self.device), training=training):
                if cached.lacks(_keys(answers)):
                    self.splitting.validate(answers, add, self.ranks)
        cached.share()

    def _sums(self, model: Any, answers: ComparisonBatch | AnswerBatch, mask: Tensor, hidden: Tensor | None) -> Tensor:
        """Log-probabilities summed over the mask, [N]."""
        ids, attention = answers.input_ids, answers.attention_mask
        scored = token_scores(
            model, ids, attention, mask, hidden=hidden, freeze_below=self.freeze_below, groups=_groups(answers)
        )
        return spread(scored.logprobs, mask).sum(1)

    def _shares_lower(self) -> bool:
        """Whether frozen lower layers give policy and reference the same hidden states."""
        return bool(self.freeze_below) and (not self.has_reference or self._sources[1] is None)

    def _lower(self, answers: ComparisonBatch | AnswerBatch) -> Tensor:
        assert self.policy is not None
        ids, attention = answers.input_ids, answers.attention_mask
        return lower_states(self.policy, self.freeze_below, ids, attention, _groups(answers))


def _groups(answers: ComparisonBatch | AnswerBatch) -> Tensor | None:
    """Neighbours that answer the same prompt, long [N]; None where each answers another."""
    return answers.prompt_index if isinstance(answers, ComparisonBatch) else None


def scored(answers: ComparisonBatch | AnswerBatch) -> Tensor:
    """True at the tokens whose log-probabilities are summed, bool [N, S]."""
    mask = answer_mask(answers.attention_mask, answers.lengths)
    return mask if answers.written is None else mask & answers.written


def _keys(answers: ComparisonBatch | AnswerBatch) -> list[bytes]:
    return answer_keys(answers.input_ids, answers.attention_mask, scored(answers))


def answer_mask(attention_mask: Tensor, lengths: Tensor) -> Tensor:
    """True at the last ``lengths`` real tokens of each row but never at its first, which nothing predicts; bool [B, S].

    Pads may stand on either side.

    Args:
        attention_mask: True at real tokens, bool [B, S].
        lengths: tokens of each answer, long [B].

    >>> answer_mask(torch.tensor([[True, True, True, False]]), torch.tensor([2]))
    tensor([[False,  True,  True, False]])
    """
    real = attention_mask.long()
    from_the_end = real.flip(1).cumsum(1).flip(1)
    return attention_mask & (from_the_end <= lengths.unsqueeze(1)) & (real.cumsum(1) > 1)
