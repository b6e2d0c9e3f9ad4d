"""The three phases on a few rows, to be run under any strategy, in this process or in several."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning
import torch

from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.functional.advantage import dr_grpo, gae
from rlhf_lightning.models import ScalarModel
from rlhf_lightning.models.trunk import checkpoint_activations
from rlhf_lightning.modules import PPOModule, RewardModule, SFTModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import LogSpaceKL
from rlhf_lightning.optim.schedules import linear
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer
from tests.support import tiny

DEMONSTRATIONS = [
    ("the food was", " very good ."),
    ("we left", " happy"),
    ("the service was", " slow and bad and bad ."),
    ("good food", " and kind service ."),
    ("we", " left ."),
    ("very", " good food and very good service ."),
    ("bad", " ."),
    ("the", " food was good ."),
]
RANKINGS = [
    ("the food was", [" very good .", " bad", " slow ."], [1, 3, 2]),
    ("we left", [" happy", " slow", " ."], [1, 2, 2]),
    ("the service was", [" kind .", " bad .", " slow and bad ."], [1, 2, 3]),
    ("good food", [" and", " ."], [2, 1]),
]
PROMPTS = ["the food was", "we left", "very slow service and bad food .", "good", "we", "bad and slow", "kind", "the"]


def write(folder: Path) -> Path:
    """The data files of all phases."""
    rows = {
        "demonstrations": [{"prompt": p, "completion": c} for p, c in DEMONSTRATIONS],
        "rankings": [{"prompt": p, "completions": c, "ranks": r} for p, c, r in RANKINGS],
        "prompts": [{"prompt": p} for p in PROMPTS],
    }
    for name, entries in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in entries))
    return folder


def trainer(accumulate=1, epochs=1, callbacks=(), checkpointing=False, **options):
    options = {"accelerator": "cpu", "devices": 1, **options}
    return lightning.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=checkpointing, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=accumulate, use_distributed_sampler=False,
        num_sanity_val_steps=0, callbacks=list(callbacks), **options,
    )  # fmt: skip


def flat(model):
    """All weights as one vector, gathered if they are sharded."""
    parts = [p.detach() for p in model.parameters()]
    return torch.cat([(p.full_tensor() if hasattr(p, "full_tensor") else p).flatten().clone() for p in parts])


def sgd(lr):
    return partial(torch.optim.SGD, lr=lr, momentum=0.9)


def sft(folder, world_size=1, epochs=2, micro=2, resume=None, callbacks=(), lora=False, **options):
    data = DemonstrationData(
        folder / "demonstrations.jsonl", None, tiny.tokenizer(), batch_size=4, micro_batch_size=micro,
        validation_fraction=0.0,
    )  # fmt: skip
    module = SFTModule(tiny.adapted(tiny.policy(), lora), tiny.tokenizer(), sgd(0.1), linear)
    run = trainer(data.accumulate_for(world_size), epochs, callbacks, **options)
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module, run


def reward_model():
    torch.manual_seed(1)
    model = ScalarModel.from_policy(tiny.policy())
    torch.nn.init.normal_(model.model.score.weight)
    return model


def reward(folder, world_size=1, resume=None, lora=False, **options):
    data = ComparisonData(
        folder / "rankings.jsonl", folder / "rankings.jsonl", tiny.tokenizer(), batch_size=4, micro_batch_size=1
    )
    module = RewardModule(tiny.adapted(reward_model().model, lora), tiny.tokenizer(), sgd(0.1))
    run = trainer(data.accumulate_for(world_size), 3, **options)
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module, run


def praise(prompts, completions, **columns):
    return [float(completion.split().count("good")) for completion in completions]


def ppo_module(
    cls=PPOModule, optimizer=None, advantage=gae, lora=False, critic="policy", checkpoint_every=0, policy=None,
    **settings
):  # fmt: skip
    given = {"ppo_epochs": 2, "num_minibatches": 2, "micro_batch_size": 1, "max_approx_kl": None, **settings}
    policy = policy or tiny.adapted(tiny.policy(scale=0.3), lora)
    if checkpoint_every:
        checkpoint_activations(policy, checkpoint_every)
    return cls(
        policy,
        FunctionScorer(praise),
        tiny.tokenizer(),
        optimizer=optimizer or sgd(0.1),
        scheduler=linear,
        critic=critic,
        sampling=Sampling(max_new_tokens=8),
        kl_controller=LogSpaceKL(init_coef=0.1, target=0.5),
        advantage=advantage,
        settings=PPOSettings(**given),
    )


def ppo(folder, module=None, rollouts=2, batch=8, resume=None, callbacks=(), **options):
    module = module or ppo_module()
    data = PromptData(
        folder / "prompts.jsonl", None, tiny.tokenizer(), batch_size=batch, rollouts=rollouts, validation_fraction=0.0
    )
    run = trainer(callbacks=callbacks, **options)
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module, run


class SaveAt(lightning.Callback):
    """One checkpoint after so many batches, counted over epochs."""

    def __init__(self, batches, path):
        self.left, self.path = batches, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)


class Replay(PPOModule):
    """Learns from this rank's share of a stored experience instead of sampling."""

    stored: Path

    def build(self):
        """Adapters of the critic are drawn alike whatever was drawn before."""
        super().build()
        generator = torch.Generator().manual_seed(0)
        for name, weight in self.critic.named_parameters() if self.critic is not None else ():
            if "lora_A" in name:
                torch.nn.init.normal_(weight, std=0.1, generator=generator)

    def evaluate(self, rollout, scores):
        whole = torch.load(self.stored, weights_only=False)
        if self.settings.group_size > 1:  # some responses do not count, more of them on the second rank
            whole = replace(whole, counted=torch.tensor([1, 1, 1, 0, 1, 0, 0, 1]).bool())
        return whole.select(torch.arange(len(whole.rollout)).chunk(self.ranks.size)[self.ranks.index])


GROUPED = {
    "group_size": 2, "baseline": "none", "aggregation": "seq_mean_token_mean", "kl_placement": "loss",
    "kl_estimator": "k3", "entropy_coef": 0.1, "whiten_advantages": False,
}  # fmt: skip


def replay(folder, grouped=False, lora=False, critic="policy", checkpoint_every=0, **options):
    """One optimizer step of plain gradient descent on ``experience.pt``, with a critic or as groups."""
    settings = {"ppo_epochs": 1, "num_minibatches": 1, "micro_batch_size": 2, "max_grad_norm": 0}
    advantage = partial(dr_grpo, group_size=2) if grouped else gae
    given = settings | (GROUPED if grouped else {})
    optimizer = partial(torch.optim.SGD, lr=1.0)
    module = ppo_module(Replay, optimizer, advantage, lora, critic, checkpoint_every, **given)
    module.stored = folder / "experience.pt"
    module._scheduler = None
    return ppo(folder, module, rollouts=1, **options)
