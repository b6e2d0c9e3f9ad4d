"""What do two options of PPO change: texts mixed in (PPO-ptx), and a value in the place of a truncated answer's score?

    python -m benchmarks.ppo_options --seeds 4

For each seed of the miniature, PPO starts again and again from the same SFT policy and reward model.
``ppo.pretraining`` takes the texts that the base model was trained on; what the policy forgot is its loss on texts of
the same kind that no model has seen. For ``ppo.settings.bootstrap_truncated`` answers are cut after 8 tokens in
training, and judged at 24. Prints one row per run. Exit status 1 if on any seed texts do not make the policy forget
less.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from benchmarks.conclusion import conclude
from benchmarks.runs import columns, common, evaluation, hand_over, train
from rlhf_lightning.tasks.miniature import grammar

MIXED = ["ppo.pretraining.data.train=${task.root}/texts.jsonl"]
TEXTS = {
    "no texts": list[str](),
    "texts, coef 0.1": [*MIXED, "ppo.pretraining.coef=0.1"],
    "texts, coef 0.5": [*MIXED, "ppo.pretraining.coef=0.5"],
}
CUT = ["ppo.sampling.max_new_tokens=8"]
TRUNCATED = {
    "cut, penalty": CUT,
    "cut, no penalty": [*CUT, "ppo.settings.missing_eos_penalty=0"],
    "cut, bootstrapped": [*CUT, "ppo.settings.bootstrap_truncated=true"],
}
HELD_OUT = 512  # texts


class Outcome(NamedTuple):
    """What one run showed; gold, KL and length on held-out prompts with answers of up to 24 tokens."""

    seed: int
    run: str
    gold: float
    kl: float  # nats per response
    length: float  # tokens
    eos: float  # share of the rollouts' answers that ended by themselves, at the end of training
    nll: float  # of held-out texts, nats per token
    sft_nll: float
    plain_nll: float  # of the run without texts

    def faults(self) -> list[str]:
        """What it did not reach."""
        mixed = self.run in TEXTS and self.run != "no texts"
        return ["texts did not make it forget less"] if mixed and self.nll >= self.plain_nll else []


def held_out_texts(seed: int) -> list[str]:
    """Texts of the kind that the base model was trained on, about films that it never read of."""
    rng = random.Random(f"{seed}/held-out texts")
    prompts = [rng.choice(grammar.heldout_prompts()) for _ in range(HELD_OUT)]
    return [f"{prompt} {grammar.answer(rng, prompt, grammar.TEXTS)}" for prompt in prompts]


@torch.inference_mode()
def nll(folder: Path, texts: Sequence[str]) -> float:
    """Mean negative log-likelihood of the texts, EOS included, nats per token."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "right"
    rows = tokenizer([text + tokenizer.eos_token for text in texts], return_tensors="pt", padding=True)
    labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
    return float(model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=labels).loss)


def run_seed(seed: int, root: Path, overrides: Sequence[str]) -> list[Outcome]:
    """All runs of one seed."""
    made, shared, texts = root / f"seed{seed}", [*common(seed, root), *overrides], held_out_texts(seed)
    train(made, ["stages=[sft,rank,reward]", *shared])
    start = ["stages=[ppo,evaluate]", *hand_over(made), *shared]
    sft_nll, outcomes = nll(made / "sft", texts), list[Outcome]()
    for number, (name, chosen) in enumerate((TEXTS | TRUNCATED).items()):
        folder = root / f"seed{seed}-{number}"
        train(folder, [*start, *chosen])
        found = evaluation(folder)["policies"]["ppo"]["summary"]
        forgot = nll(folder / "ppo", texts)
        outcome = Outcome(
            seed,
            name,
            gold=found["scores"]["gold"]["mean"],
            kl=found["kl"]["mean"],
            length=found["length"]["mean"],
            eos=columns(folder)["completions/eos_rate"][-1],
            nll=forgot,
            sft_nll=sft_nll,
            plain_nll=outcomes[0].nll if outcomes else forgot,
        )
        outcomes.append(outcome)
        print(f"{seed:>4}  {name:<20}" + "".join(f"{value:>10.3f}" for value in outcome[2:]), flush=True)
    return outcomes


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--root", type=Path, default=Path("runs/ppo_options"), help="where the runs are written")
    parser.add_argument("overrides", nargs="*", help="further overrides, for example ppo.rollouts=40")
    options = parser.parse_args()
    disable_progress_bar()
    print(f"{'seed':>4}  {'run':<20}" + "".join(f"{name:>10}" for name in Outcome._fields[2:]))
    seeds = range(options.first, options.first + options.seeds)
    conclude([outcome for seed in seeds for outcome in run_seed(seed, options.root, options.overrides)])


if __name__ == "__main__":
    main()
