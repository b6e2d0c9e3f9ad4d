"""Does it matter where the zero of a score lies, and what its unit is?

    python -m benchmarks.score_units --seeds 4

The score is the number of times a word stands in an answer. A tiny Llama learns to say it from that number, from the
number plus 20, minus 20, plus and minus 100, and from a hundred times the number, without a KL penalty: PPO with
lambda 0.95 and a critic from zero, from the policy and from a reward model whose head is five times too large, RLOO and
REINFORCE++. Prints the words per answer at the end of each run, and what ended further than 10 % from the run without
an offset; exit status 1 if anything did.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import lightning
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.conclusion import conclude
from rlhf_lightning.functional.advantage import gae, returns_only, rloo
from rlhf_lightning.functional.policy import reinforce_loss
from rlhf_lightning.functional.ppo import clipped_policy_loss
from rlhf_lightning.models import ScalarModel
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer
from rlhf_lightning.tasks.miniature.tokenizer import build_tokenizer
from rlhf_lightning.tasks.miniature.words import WORDS
from rlhf_lightning.types import PromptBatch

ANSWERS, TOKENS, ROLLOUTS, WINDOW = 64, 16, 20, 3
WORD = "good"
OFFSETS, FACTOR, SLACK = (20.0, -20.0, 100.0, -100.0), 100.0, 0.1


class Outcome(NamedTuple):
    """Words per answer at the end of one run."""

    seed: int
    algorithm: str
    variant: str
    words: float
    plain: float  # of the run whose score is the number of words

    def faults(self) -> list[str]:
        """What it did not reach."""
        near = abs(self.words - self.plain) <= SLACK * self.plain
        return [] if near else [f"{self.algorithm}, {self.variant}: {self.words:.2f} words and not {self.plain:.2f}"]


def scaled_reward_model(policy: LlamaForCausalLM) -> ScalarModel:
    """A critic with a head that answers in a unit of its own."""
    critic = ScalarModel.from_policy(policy)
    torch.nn.init.normal_(critic.model.score.weight, std=5 / policy.config.hidden_size**0.5)
    return critic


ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo, head on the policy": {"critic": "shared_trunk", "advantage": gae},
    "ppo, copy of the policy": {"critic": "policy", "advantage": gae},
    "ppo, reward model": {"critic": scaled_reward_model, "advantage": gae},
    "rloo": {"advantage": partial(rloo, group_size=4), "policy_loss": reinforce_loss},
    "reinforce_pp": {"advantage": returns_only},
}


def words(completions: list[str]) -> list[float]:
    """How often the word stands in each answer."""
    return [float(completion.split().count(WORD)) for completion in completions]


def settings(algorithm: str, seed: int) -> PPOSettings:
    """The numbers of an algorithm."""
    if algorithm == "rloo":
        return PPOSettings(group_size=4, baseline="none", ppo_epochs=1, whiten_advantages=False, seed=seed)
    baseline = "critic" if algorithm.startswith("ppo") else "none"
    return PPOSettings(baseline=baseline, ppo_epochs=2, num_minibatches=2, value_coef=1.0, seed=seed)  # type: ignore[arg-type]


def run(algorithm: str, seed: int, score: Callable[[float], float]) -> float:
    """Words per answer, mean of the last rollouts."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    said: list[float] = []

    def scorer(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        counts = words(completions)
        said.append(sum(counts) / len(counts))
        return [score(count) for count in counts]

    given = {"policy_loss": clipped_policy_loss, "critic": "policy"} | ALGORITHMS[algorithm]
    module = PPOModule(
        LlamaForCausalLM(config), FunctionScorer(scorer), tokenizer, sampling=Sampling(max_new_tokens=TOKENS),
        optimizer=partial(torch.optim.AdamW, lr=1e-3), kl_controller=FixedKL(0.0),
        settings=settings(algorithm, seed), **given,
    )  # fmt: skip
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batch = prompts(tokenizer, ANSWERS // module.settings.group_size)
    trainer.fit(module, Batches(batch))
    return sum(said[-WINDOW:]) / WINDOW


class Batches:
    """The same prompts again and again."""

    def __init__(self, batch: PromptBatch) -> None:
        self.batch, self.batch_size = batch, len(batch)

    def __len__(self) -> int:
        return ROLLOUTS

    def __iter__(self) -> Iterator[PromptBatch]:
        return iter([self.batch] * ROLLOUTS)


def prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> PromptBatch:
    """Prompts of one word."""
    texts = [WORDS[1 + number % (len(WORDS) - 1)] for number in range(count)]
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:1] for text in texts])
    return PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), tuple({"prompt": text} for text in texts))


def main() -> None:
    """Parse the command line, run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    variants = {f"score {offset:+g}": (lambda count, offset=offset: count + offset) for offset in OFFSETS}
    variants |= {f"score x {FACTOR:g}": lambda count: count * FACTOR}
    outcomes = []
    for algorithm in ALGORITHMS:
        for seed in range(options.seeds):
            plain = run(algorithm, seed, lambda count: count)
            found = {name: run(algorithm, seed, score) for name, score in variants.items()}
            outcomes += [Outcome(seed, algorithm, name, value, plain) for name, value in found.items()]
            shown = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
            print(f"{algorithm:26} seed {seed}  words {plain:.2f}  {shown}", flush=True)
    conclude(outcomes)


if __name__ == "__main__":
    main()
