"""Phase 2: learn from rankings what people prefer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.functional.reward import kwise_logistic_loss, kwise_pairs
from rlhf_lightning.metrics.reward_model import RewardModelEvaluation, WrongPair
from rlhf_lightning.metrics.shown import REWARD
from rlhf_lightning.models import Pretrained, ScalarModel
from rlhf_lightning.models.kinds import LABEL
from rlhf_lightning.models.recipes import depth_of
from rlhf_lightning.modules.automatic import AutomaticModule
from rlhf_lightning.modules.base import OptimizerFactory, SchedulerFactory
from rlhf_lightning.modules.formulas import check_ranking_loss
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import ComparisonBatch

RankingLoss = Callable[..., Tensor]


class RewardModule(AutomaticModule):
    """Fit R(x, y) to rankings with -log sigmoid(R(x, y_w) - R(x, y_l)), all pairs of a prompt in one batch element.

    Args:
        model: a loading recipe (the SFT folder: backbone kept, new head) or a sequence-classification model.
        tokenizer: of the model.
        optimizer: see `RLHFModule`.
        scheduler: see `RLHFModule`.
        ranking_loss: ``f(scores [N], ranks [N], prompt_index [N], *, margins, denominator) -> Tensor []``, for example
            `kwise_logistic_loss` or `plackett_luce_loss` from `rlhf_lightning.functional.reward`.
        init_head: draw a new head; False continues a reward model.
        head_std: see `Pretrained.reward_model`.
        num_layers: see `Pretrained.reward_model`.
        max_grad_norm: see `RLHFModule`.
        max_skipped_steps: see `RLHFModule`.

    Attributes:
        held_out: statistics of the last validation, for the provenance.
        most_wrong: held-out pairs of it that the scores put furthest the wrong way round.

    Raises:
        ConfigError: the ranking loss cannot be called so, see `rlhf_lightning.modules.formulas`.
    """

    stage, trains, shown = "reward", "model", REWARD
    counts: ClassVar = {"": "num_pairs", "loss": "num_prompts"}

    def __init__(
        self,
        model: Pretrained | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        ranking_loss: RankingLoss = kwise_logistic_loss,
        init_head: bool = True,
        head_std: float | None = None,
        num_layers: int | None = None,
        max_grad_norm: float = 1.0,
        max_skipped_steps: int = 3,
    ) -> None:
        check_ranking_loss(ranking_loss)
        super().__init__(tokenizer, optimizer, scheduler, max_grad_norm, max_skipped_steps)
        self._source = (model,)  # a tuple: Lightning would register a bare model
        self.ranking_loss = ranking_loss
        require("head_std", head_std, at_least=0)
        require("num_layers", num_layers, at_least=1)
        self.init_head, self.head_std, self.num_layers = init_head, head_std, num_layers
        self.model: ScalarModel | None = None
        self._seen = RewardModelEvaluation()
        self.held_out: dict[str, Any] = {}
        self.most_wrong: list[WrongPair] = []

    def build(self) -> None:
        """Load the model and give it a scalar head."""
        source = self._source[0]
        inner = self._load(source) if isinstance(source, Pretrained) else source
        self.model = ScalarModel(inner, depth_of(source))

    def _load(self, source: Pretrained) -> PreTrainedModel:
        model = source.reward_model(init_head=self.init_head, head_std=self.head_std, num_layers=self.num_layers)
        return source.adapted(model)

    def export_model(self) -> PreTrainedModel:
        """The sequence-classification model that any other tool reads; its one label is called ``reward``."""
        assert self.model is not None
        self.model.model.config.update({"id2label": {0: LABEL}, "label2id": {LABEL: 0}})
        return self.model.model

    def score(self, batch: ComparisonBatch) -> Tensor:
        """Override to change how an answer is scored; float32 [N]."""
        assert self.model is not None
        return self.model.score(batch.input_ids, batch.attention_mask, batch.prompt_index)

    def loss(self, scores: Tensor, batch: ComparisonBatch) -> Tensor:
        """Override to change the objective; [], its mean over micro-batches and ranks is the mean over all prompts."""
        return self.ranking_loss(
            scores, batch.ranks, batch.prompt_index, margins=batch.margins, denominator=batch.denominator
        )

    def training_loss(self, batch: ComparisonBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of whole rankings."""
        scores = self.score(batch)
        loss = self.loss(scores, batch)
        return loss, self._sums(loss, scores, batch)

    def validate(self, batch: ComparisonBatch) -> None:
        """Add one batch to the means and keep its scores for what needs them all."""
        scores = self.score(batch)
        self.val_means.update(self._sums(self.loss(scores, batch), scores, batch))
        self._seen.add(scores, batch)

    def on_validation_epoch_start(self) -> None:
        """Start from zero."""
        super().on_validation_epoch_start()
        self._seen = RewardModelEvaluation()

    def on_validation_epoch_end(self) -> None:
        """Also log what only all held-out answers together tell, and keep the statistics that `export` stores."""
        super().on_validation_epoch_end()
        found = self._seen.findings(self.ranks)
        if found is not None:
            self.held_out, self.most_wrong = found.stored, found.most_wrong
            self.log_dict({f"val/{name}": value for name, value in found.logged.items()})

    def _sums(self, loss: Tensor, scores: Tensor, batch: ComparisonBatch) -> dict[str, Tensor]:
        better, worse, _ = kwise_pairs(batch.ranks, batch.prompt_index)
        margin = (scores[better] - scores[worse]).detach()
        return {
            "num_pairs": torch.tensor(len(margin)),
            "num_prompts": torch.tensor(batch.num_prompts),
            "loss": loss.detach() * batch.denominator,
            "accuracy": (margin > 0).sum(),
            "tie_rate": (margin == 0).sum(),
            "margin": margin.sum(),
        }
