"""What the bug museum is played with: a PPO module on a few prompts, and one fit of it."""

from functools import partial

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer
from tests.support import phases, tiny

TEXTS = ("the food was", "we left", "very slow service and bad food .", "good")


def ppo(policy=None, scorer=phases.praise, tokenizer=None, kl=0.0, sampling=None, lr=1e-3, parts=None, **settings):
    return PPOModule(
        policy or tiny.policy(scale=0.3),
        FunctionScorer(scorer),
        tokenizer or tiny.tokenizer(),
        optimizer=partial(torch.optim.SGD, lr=lr),
        sampling=sampling or Sampling(max_new_tokens=10),
        kl_controller=FixedKL(kl),
        settings=PPOSettings(**{"max_approx_kl": None, "ppo_epochs": 1, **settings}),
        **(parts or {}),
    )


def fit(module, steps=1, callbacks=(), texts=TEXTS, repeats=4, **options):
    run = phases.trainer(callbacks=callbacks, **options)
    run.fit(module, tiny.Prompts(tiny.prompts(*texts, repeats=repeats), steps))
    return module, {name: float(value) for name, value in run.callback_metrics.items()}


def train(module, data, callbacks=(), epochs=1, resume=None):
    """A fit in which Lightning's own checkpoint callback may take part."""
    run = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        accumulate_grad_batches=1 if isinstance(module, PPOModule) else data.accumulate_for(1),
        use_distributed_sampler=False, num_sanity_val_steps=0, callbacks=list(callbacks),
    )  # fmt: skip
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module, run
