"""Does the reward model find a known reward behind noisy labels, is it honest, and do rankings beat pairs?

    python -m benchmarks.reward_recovery --seeds 4

The gold reward of an answer is a sum of hidden weights of its words. Answers are ranked by gold reward plus Gumbel
noise (Plackett-Luce; for two answers Bradley-Terry), so the best possible accuracy on these labels is known. For each
seed a tiny Llama is trained from scratch with the library's reward phase, once on pairs and once on rankings of four,
on equally many ranked answers and in equally many steps. Prints two rows per seed and what was not reached; exit status
1 if anything was not.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from benchmarks.conclusion import conclude
from rlhf_lightning.data import ComparisonData
from rlhf_lightning.functional.diagnostics import calibration
from rlhf_lightning.modules import RewardModule
from rlhf_lightning.optim.schedules import linear
from rlhf_lightning.tasks.miniature.tokenizer import SPECIAL, build_tokenizer
from rlhf_lightning.tasks.miniature.words import WORDS
from rlhf_lightning.types import ComparisonBatch

VOCABULARY = WORDS[:12]
SPREAD = 0.6  # standard deviation of the hidden weights
PROMPT, SHORTEST, LONGEST = 3, 3, 8  # words


class Task(NamedTuple):
    """Sizes of the experiment."""

    answers: int = 5120  # ranked for training, in pairs or in fours
    held_out: int = 1024  # pairs that the temperature is fitted on
    test: int = 4096  # fresh pairs that everything is measured on
    epochs: int = 6
    answers_per_step: int = 64
    lr: float = 3e-3


class Fit(NamedTuple):
    """One reward model on the test pairs."""

    accuracy: float  # on the noisy labels
    true_accuracy: float  # on the order of the gold rewards
    nll: float  # nats per pair, of the noisy labels, after the stored temperature
    ece: float  # after the stored temperature
    temperature: float


class Outcome(NamedTuple):
    """What one seed showed, on the same test pairs for both models."""

    seed: int
    bayes: float  # accuracy of the gold reward on the noisy labels
    bayes_nll: float  # its NLL
    pairs: Fit
    fours: Fit
    seconds: float

    def faults(self) -> list[str]:
        """What this seed did not reach."""
        both = {"pairs": self.pairs, "rankings": self.fours}
        checks = {f"{n}: accuracy at least 97 % of Bayes": f.accuracy >= 0.97 * self.bayes for n, f in both.items()}
        checks |= {f"{n}: ECE below 0.05": f.ece < 0.05 for n, f in both.items()}
        lead = self.fours.true_accuracy - self.pairs.true_accuracy
        checks["rankings beat pairs in accuracy on the gold order"] = lead > 0
        checks["rankings beat pairs in NLL"] = self.fours.nll < self.pairs.nll
        return [name for name, holds in checks.items() if not holds]


class Gold:
    """The hidden reward: a weight for each word."""

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        weights = torch.randn(len(VOCABULARY), generator=self._random)
        self.weights = SPREAD * weights / weights.std()  # so that labels are about equally noisy for every seed

    def rows(self, prompts: int, answers: int) -> list[dict[str, object]]:
        """Prompts with ``answers`` answers each, ranked once by a noisy judge."""
        return [self._row(answers) for _ in range(prompts)]

    def _row(self, answers: int) -> dict[str, object]:
        words = [self._words(self._draw(SHORTEST, LONGEST + 1)) for _ in range(answers)]
        gumbel = -torch.rand(answers, generator=self._random).log().neg().log()
        noisy = torch.stack([self.weights[w].sum() for w in words]) + gumbel
        ranks = (noisy.argsort(descending=True).argsort() + 1).tolist()
        return {"prompt": _text(self._words(PROMPT)), "completions": [f" {_text(w)}" for w in words], "ranks": ranks}

    def _draw(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=self._random))

    def _words(self, count: int) -> Tensor:
        return torch.randint(len(VOCABULARY), (count,), generator=self._random)

    def score(self, batch: ComparisonBatch) -> Tensor:
        """The true rewards of a batch, [N]."""
        table = torch.zeros(len(SPECIAL) + len(WORDS))
        table[len(SPECIAL) : len(SPECIAL) + len(VOCABULARY)] = self.weights
        position = batch.attention_mask.flip(1).cumsum(1).flip(1)  # counted from the end
        answer = batch.attention_mask & (position <= batch.lengths[:, None])
        return torch.where(answer, table[batch.input_ids], 0).sum(1)


def _text(words: Tensor) -> str:
    return " ".join(VOCABULARY[i] for i in words.tolist())


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def backbone(seed: int) -> LlamaForSequenceClassification:
    """A random Llama of two layers with a scalar head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, num_labels=1,
    )  # fmt: skip
    return LlamaForSequenceClassification(config).train()


def train(file: Path, held_out: Path, answers: int, task: Task, seed: int) -> RewardModule:
    """A reward model from a file with ``answers`` answers to each prompt, by the library's own phase."""
    data = ComparisonData(
        file, held_out, build_tokenizer(), batch_size=task.answers_per_step // answers, max_length=32, seed=seed
    )
    module = RewardModule(
        backbone(seed),
        build_tokenizer(),
        partial(torch.optim.AdamW, lr=task.lr, eps=1e-5, weight_decay=0.0),
        partial(linear, warmup_ratio=0.05),
    )
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=task.epochs, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        check_val_every_n_epoch=task.epochs,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


@torch.no_grad()
def measure(module: RewardModule, test: Path, gold: Gold) -> tuple[Fit, float, float]:
    """The model on the test pairs, and the accuracy and NLL of the gold reward on their labels."""
    data = ComparisonData(test, test, build_tokenizer(), batch_size=256, max_length=32)
    data.setup("validate")
    columns = []
    for batch in data.val_dataloader():
        scores, truth = module.score(batch), gold.score(batch)
        columns.append(torch.stack([x[batch.ranks == rank] for x in (scores, truth) for rank in (1, 2)]))
    better, worse, true_better, true_worse = torch.cat(columns, dim=1)
    temperature = module.held_out["temperature"]
    fit, bayes = calibration(better / temperature, worse / temperature), calibration(true_better, true_worse)
    agrees = ((better > worse) == (true_better > true_worse)).float().mean()
    found = Fit(*(float(x) for x in (fit.accuracy, agrees, fit.nll, fit.ece, temperature)))
    return found, float(bayes.accuracy), float(bayes.nll)


def run_seed(seed: int, task: Task) -> Outcome:
    """Both reward models of one seed."""
    start, gold = time.process_time(), Gold(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {k: write(folder / f"{k}.jsonl", gold.rows(task.answers // k, k)) for k in (2, 4)}
        held_out = write(folder / "held_out.jsonl", gold.rows(task.held_out, 2))
        test = write(folder / "test.jsonl", gold.rows(task.test, 2))
        found = [measure(train(files[k], held_out, k, task, seed), test, gold) for k in (2, 4)]
    (pairs, bayes, bayes_nll), (fours, _, _) = found
    return Outcome(seed, bayes, bayes_nll, pairs, fours, time.process_time() - start)


def table(outcomes: list[Outcome]) -> str:
    """Two rows per seed, then the worst of everything that is asked for."""
    names = ("seed", "trained on", "accuracy", "Bayes", "share", "gold order", "NLL", "Bayes NLL", "ECE", "temperature")
    lines = ["".join(f"{name:>12}" for name in names)]
    fits = [(o, name, fit) for o in outcomes for name, fit in (("pairs", o.pairs), ("rankings", o.fours))]
    for o, name, fit in fits:
        numbers = (fit.accuracy, o.bayes, fit.accuracy / o.bayes, fit.true_accuracy, fit.nll, o.bayes_nll, *fit[3:])
        lines.append(f"{o.seed:>12}{name:>12}" + "".join(f"{x:>12.4f}" for x in numbers))
    share, ece = min(fit.accuracy / o.bayes for o, _, fit in fits), max(fit.ece for _, _, fit in fits)
    lead = min(o.fours.true_accuracy - o.pairs.true_accuracy for o in outcomes)
    nats = min(o.pairs.nll - o.fours.nll for o in outcomes)
    lines.append(f"worst: {share:.4f} of the Bayes accuracy, ECE {ece:.4f}")
    lines.append(f"smallest lead of rankings over pairs: {lead:+.4f} on the gold order, {nats:+.4f} nats of NLL")
    lines.append(f"{sum(o.seconds for o in outcomes):.0f} CPU seconds")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    outcomes = [run_seed(seed, Task()) for seed in range(options.first, options.first + options.seeds)]
    print(table(outcomes))
    conclude(outcomes)


if __name__ == "__main__":
    main()
