"""Every phase on a few rows, with a hook in which a test breaks the numbers of a chosen step."""

import json
import warnings
from functools import partial

import lightning
import torch

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO
from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.feedback import FeedbackData
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.models import ScalarModel
from rlhf_lightning.modules import DPOModule, KTOModule, PPOModule, RewardModule, SFTModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.schedules import linear
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer
from tests.support import phases, tiny

OPTIMIZER = partial(torch.optim.AdamW, lr=1e-2)
STAGES = ("sft", "reward", "dpo", "kto", "ppo")


def module_of(stage, cls=None, max_skipped_steps=3, **settings):
    """A module of a phase with tiny models; ``settings`` are those of PPO."""
    tok, common = tiny.tokenizer(), {"scheduler": linear, "max_skipped_steps": max_skipped_steps}
    if stage == "sft":
        return (cls or SFTModule)(tiny.policy(), tok, OPTIMIZER, **common)
    if stage == "reward":
        torch.manual_seed(1)
        model = ScalarModel.from_policy(tiny.policy()).model
        torch.nn.init.normal_(model.score.weight)
        return (cls or RewardModule)(model, tok, OPTIMIZER, **common)
    if stage in ("dpo", "kto"):
        kind = DPOModule if stage == "dpo" else KTOModule
        return (cls or kind)(tiny.policy(scale=0.3), tok, OPTIMIZER, **common)
    given = {"ppo_epochs": 2, "num_minibatches": 2, "micro_batch_size": 2, "max_approx_kl": None, **settings}
    return (cls or PPOModule)(
        tiny.policy(scale=0.3), FunctionScorer(phases.praise), tok, OPTIMIZER, linear, sampling=Sampling(8),
        settings=PPOSettings(max_skipped_steps=max_skipped_steps, **given),
    )  # fmt: skip


def write(folder):
    """The data files of all phases; returns the folder."""
    phases.write(folder)
    rows = [{"prompt": p, "completion": c, "label": i % 2 == 0} for i, (p, c) in enumerate(phases.DEMONSTRATIONS)]
    (folder / "feedback.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def data_of(stage, folder, micro=2, batch=4):
    """Rows that last for many steps: every pass over them is one or two."""
    tok, common = tiny.tokenizer(), {"batch_size": batch, "micro_batch_size": micro, "validation_fraction": 0.0}
    if stage == "sft":
        return DemonstrationData(folder / "demonstrations.jsonl", None, tok, **common)
    if stage in ("reward", "dpo"):
        return ComparisonData(folder / "rankings.jsonl", None, tok, **common)
    if stage == "kto":
        return FeedbackData(folder / "feedback.jsonl", None, tok, **common)
    return PromptData(folder / "prompts.jsonl", None, tok, batch_size=8, rollouts=8, validation_fraction=0.0)


def trainer_of(stage, folder, data, steps, callbacks=(), devices=1, plugins=(), **options):
    """A trainer that saves every step to ``folder/checkpoints``."""
    save = DurableCheckpoint(folder / "checkpoints", every_n_steps=1, every_n_minutes=None, keep=100)
    limits = (
        {"max_epochs": 1, "limit_train_batches": steps} if stage == "ppo" else {"max_epochs": 99, "max_steps": steps}
    )
    return lightning.Trainer(
        **limits, callbacks=[*callbacks, save], plugins=[DurableCheckpointIO(), *plugins], default_root_dir=folder,
        accumulate_grad_batches=getattr(data, "accumulate_for", lambda n: 1)(devices), accelerator="cpu",
        devices=devices, logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, **options,
    )  # fmt: skip


def fit(stage, folder, steps, module=None, callbacks=(), micro=2, resume=None, data=None, batch=4, **options):
    """Train ``steps`` steps; returns module and trainer."""
    module = module or module_of(stage)
    data = data_of(stage, data or folder, micro, batch)
    trainer = trainer_of(stage, folder, data, steps, callbacks, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed in a `val_dataloader`|.*that end the run")
        trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module, trainer


class Break(lightning.Callback):
    """Breaks a number in the steps (counted from 1) that ``when`` names.

    ``where``: ``loss``, ``grad``, ``weight`` or, in PPO, ``score``, ``logits`` and ``advantage``.
    """

    def __init__(self, where, when, value=float("nan"), rank=0):
        self.where, self.when, self.value, self.rank = where, set(when), float(value), rank

    def due(self, module):
        return module.step_number in self.when and module.global_rank == self.rank

    def setup(self, trainer, module, stage):
        for name, (owner, method) in {
            "loss": (module, "loss" if hasattr(module, "engine") else "training_loss"),
            "score": (module, "score"),
            "advantage": (module, "compute_advantages"),
        }.items():
            if self.where == name:
                setattr(owner, method, self._broken(module, getattr(owner, method)))

    def _broken(self, module, original):
        def broken(*args):
            result = original(*args)
            if not self.due(module):
                return result
            if isinstance(result, tuple):
                return (result[0] * self.value, *result[1:])
            return result + self.value if self.value != self.value else torch.full_like(result, self.value)

        return broken

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.module = module
        if self.due(module) and self.where == "weight":
            with torch.no_grad():
                next(iter(module.trained.parameters())).view(-1)[3] = self.value
        if self.where == "logits":
            self.hook = module.policy.lm_head.register_forward_hook(self._logits)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.where == "logits":
            self.hook.remove()

    def _logits(self, layer, args, output):
        return output + self.value if self.due(self.module) else output

    def on_after_backward(self, trainer, module):
        if self.due(module) and self.where == "grad":
            [p for p in module.trained.parameters() if p.grad is not None][-1].grad.view(-1)[0] = self.value


class Watch(lightning.Callback):
    """Weights, optimizer state and learning rate after every step."""

    def __init__(self):
        self.weights, self.moments, self.rates, self.logged = [], [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        optimizer = trainer.optimizers[0]
        if module.automatic_optimization and trainer.fit_loop._should_accumulate():
            return
        self.weights.append(phases.flat(module.trained))
        self.moments.append([float(sum(t.sum() for t in s.values())) for s in optimizer.state.values()])
        self.rates.append(optimizer.param_groups[0]["lr"])
