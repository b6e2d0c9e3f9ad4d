"""Tiny modules that log what the stages log, for callbacks to look at."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from rlhf_lightning.metrics.shown import ONLINE
from rlhf_lightning.types import Experience, Rollout


class Tokenizer:
    """Ids are positions in a word list; 0 is EOS."""

    words = ("<eos>", "good", "bad|", "film", "<i>so</i>")

    def batch_decode(self, rows, skip_special_tokens=True):
        return [" ".join(self.words[i] for i in ids if i or not skip_special_tokens) for ids in rows]


def experience():
    """Three responses; log-ratios to the reference 0.5 + 0.25, 0 and 1 at tokens that count."""
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    rollout = Rollout(
        prompt_ids=torch.tensor([[0, 3], [4, 3], [0, 1]]),
        prompt_mask=torch.tensor([[False, True], [True, True], [False, True]]),
        response_ids=torch.tensor([[1, 0], [2, 0], [4, 3]]),
        mask=mask,
        finished=torch.tensor([True, True, False]),
        rollout_logprobs=None,
        weight_version=torch.zeros(3).long(),
        rows=({}, {}, {}),
    )
    logprobs = torch.tensor([[-1.0, -1.0], [-2.0, float("nan")], [-1.0, 7.0]])
    ref_logprobs = torch.tensor([[-1.5, -1.25], [-2.0, 9.0], [-2.0, 0.0]])
    zeros = torch.zeros(3, 2)
    scores = torch.tensor([0.5, -1.0, 2.0])
    return Experience(rollout, scores, logprobs, ref_logprobs, zeros, zeros, zeros + 3, zeros)


class Supervised(pl.LightningModule):
    """Automatic optimisation; logs a step before callbacks look, as the stages do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def optimizer_step(self, *given):
        super().optimizer_step(*given)
        self.log_dict({"train/loss": self.trainer.global_step + 1.0, "train/perplexity": 7.0})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Validated(Supervised):
    """The same with a validation loss."""

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", 10.0 + self.trainer.global_step)


class Refinement(pl.LightningModule):
    """Manual optimisation, several optimizer steps per rollout; rollout i logs the i-th score and KL.

    Each counts three episodes of 4 tokens, the next one 8 more than the one before.
    """

    shown = ONLINE

    def __init__(self, scores, kl, target=4.0):
        super().__init__()
        self.automatic_optimization = False
        self.policy = nn.Linear(1, 1, bias=False)
        self.tokenizer = Tokenizer()
        self.last_experience = None
        self.curves = list(zip(scores, kl, strict=True))
        self.target = target
        self.rollouts = self.episodes = self.tokens = 0
        self.restored = (0, 0, 0)
        self.exported = []

    def training_step(self, batch, batch_idx):
        for _ in range(3):
            self.optimizers().step()
        score, kl = self.curves[self.rollouts]
        self.rollouts += 1
        self.episodes += 3
        self.tokens += 8 * self.rollouts - 4
        with torch.no_grad():
            self.policy.weight.fill_(float(self.rollouts))
        self.last_experience = experience()
        self.log_dict({"objective/scores": score, "objective/kl": kl, "objective/kl_coef": 0.1, "val/ratio": 1.0})
        self.log_dict({"policy/clipfrac_avg": 0.125, "completions/mean_length": 4.0, "perf/seconds_learn": 0.5})
        if self.target is not None:
            self.log("objective/kl_target", self.target)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["counters"] = self.rollouts, self.episodes, self.tokens

    def on_load_checkpoint(self, checkpoint):
        self.restored = checkpoint["counters"]

    def on_train_start(self):  # as late as modules do
        self.rollouts, self.episodes, self.tokens = self.restored

    def export(self, folder, provenance):
        self.exported.append((folder, self.policy.weight.item(), provenance))


class SaveAt(pl.Callback):
    """Writes one checkpoint when a rollout ends."""

    def __init__(self, rollout, path):
        self.rollout = rollout
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.rollouts == self.rollout:
            trainer.save_checkpoint(self.path)


def loader(batches):
    return DataLoader(torch.ones(batches, 1), batch_size=1)


def trainer(callbacks, tmp_path, **options):
    return pl.Trainer(  # the caller's options win
        **{
            "callbacks": callbacks,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "default_root_dir": tmp_path,
            "max_epochs": 1,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            **options,
        }
    )
