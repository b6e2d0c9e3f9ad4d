"""Sample and score answers with `Trainer.predict`, so that devices, precision and ranks are Lightning's business here
too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kl import totals
from rlhf_lightning.functional.masking import spread
from rlhf_lightning.models import FrozenModels, Pretrained, eos_token_ids
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.rollout import LoopEngine, RolloutEngine, Sampling, rank_seed
from rlhf_lightning.rollout.engine import close
from rlhf_lightning.rollout.hf import warn_of_unused_fields
from rlhf_lightning.scoring import Scorer, completion_texts
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.types import PromptBatch, Rollout

Record = dict[str, Any]


class SamplingModule(lightning.LightningModule):
    """Answer every prompt of a predict loader some times. `records` holds the answers of all ranks afterwards.

    A record has ``prompt``, ``row``, ``completion``, ``scores`` (by scorer name), ``length`` (tokens, EOS included),
    ``finished``, and with a reference ``kl`` (log pi - log ref summed over the answer, nats) and ``nll_ref`` (nats
    per token).

    Args:
        policy: who answers.
        scorers: who judges.
        reference: compared with, if given.
        engine: samples; `LoopEngine` by default.
        sampling: length and temperature.
        samples_per_prompt: answers to each prompt.
        seed: of the sampling.

    Raises:
        ConfigError: two scorers have the same name.
    """

    def __init__(
        self,
        policy: Pretrained,
        scorers: Sequence[Scorer] = (),
        reference: Pretrained | None = None,
        engine: RolloutEngine | None = None,
        sampling: Sampling | None = None,
        samples_per_prompt: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer: PreTrainedTokenizerBase = policy.tokenizer()
        self.scorers = list(scorers)
        names = [scorer.name for scorer in scorers]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(
                f"two scorers are called {twice}, so that one would take the place of the other; give "
                "one of them another, for example judge.name=other"
            )
        self.engine: RolloutEngine = engine or LoopEngine()
        self.sampling = sampling or Sampling()
        self.samples_per_prompt = samples_per_prompt
        self.seed = seed
        self.records: list[Record] = []
        self.frozen = FrozenModels()
        self.frozen.add("policy", policy.causal_lm())
        if reference is not None:
            self.frozen.add("reference", reference.causal_lm(), offload=reference.offload)

    def configure_model(self) -> None:
        """Shard nothing: every rank holds the models whole, as PPO does while it samples. FSDP2 asks for this hook."""

    def on_predict_start(self) -> None:
        """Move the models and give every rank its own random stream."""
        self.frozen.to(self.device)
        for scorer in self.scorers:
            scorer.to(self.device)
        self.engine.seed(rank_seed(self.seed, self.global_rank))
        policy = self._model("policy")
        ends = eos_token_ids(policy, self.tokenizer)
        warn_of_unused_fields(policy, self.sampling)
        self.engine.sync(policy, ends, self.tokenizer.pad_token_id, version=0)
        self.records = []

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Answer one batch; rows without a token are padding rows of the loader."""
        real = batch.attention_mask.any(1).nonzero().squeeze(1)
        if not len(real):
            return
        prompts = batch.select(real).repeat_interleave(self.samples_per_prompt)
        rollout = self.engine.generate(prompts, self.sampling, self.tokenizer)
        self.records += self._records(rollout)

    def on_predict_epoch_end(self) -> None:
        """Collect the answers of all ranks, in the order of the prompts."""
        ranks = Ranks(self.trainer.strategy, self.device).gather_objects(self.records)
        self.records = [record for part in ranks for record in part]

    def teardown(self, stage: str) -> None:
        """Let the engine go."""
        close(self.engine)

    def configure_optimizers(self) -> None:
        """Nothing is trained here."""

    def _records(self, rollout: Rollout) -> list[Record]:
        judged = {scorer.name: scorer.score(rollout, self.tokenizer) for scorer in self.scorers}
        scores = {name: totals(values, rollout.mask).tolist() for name, values in judged.items()}
        gaps = self._gaps(rollout) if "reference" in self.frozen else None
        return [
            {
                "prompt": rollout.rows[i]["prompt"],
                "row": dict(rollout.rows[i]),
                "completion": text,
                "scores": {name: values[i] for name, values in scores.items()},
                "length": int(rollout.lengths[i]),
                "finished": bool(rollout.finished[i]),
                "kl": None if gaps is None else float(gaps[0][i]),
                "nll_ref": None if gaps is None else float(gaps[1][i]),
            }
            for i, text in enumerate(completion_texts(rollout, self.tokenizer))
        ]

    def _gaps(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """KL of each answer and mean reference NLL of its tokens, [B] each."""
        own = self._logprobs("policy", rollout)
        with self.frozen.awake("reference"):
            reference = self._logprobs("reference", rollout)
        kl = torch.where(rollout.mask, own - reference, 0).sum(1)
        nll = -torch.where(rollout.mask, reference, 0).sum(1) / rollout.lengths
        return kl, nll

    def _logprobs(self, name: str, rollout: Rollout) -> Tensor:
        ids, attention, mask = rollout.input_ids, rollout.attention_mask, rollout.sampled
        scored = token_scores(self._model(name), ids, attention, mask, temperature=self.sampling.temperature)
        return spread(scored.logprobs, rollout.mask)

    def _model(self, name: str) -> PreTrainedModel:
        return self.frozen[name]  # type: ignore[return-value]
