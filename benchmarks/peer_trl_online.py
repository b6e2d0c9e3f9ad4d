"""TRL's trainers of sampled groups: GRPO and RLOO."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks.clock import Clock
from benchmarks.peer_laps import Laps, common
from benchmarks.rewards import brevity


def train(job: dict[str, Any], clock: Clock) -> None:
    """Run the trainer of the job under the clock; one rollout is one optimizer step."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    rows = datasets.load_dataset("json", data_files=job["rows"], split="train", cache_dir=job["folder"] + "/cache")
    arguments = common(job) | {
        "num_generations": job["group_size"],
        "max_completion_length": job["max_new_tokens"],
        "beta": job["kl_coef"],
        "num_iterations": job["epochs"],
        "temperature": 1.0,
        "top_k": 0,
        "shuffle_dataset": False,
    }
    grpo = job["learner"] == "grpo"
    trainer_class, config = (GRPOTrainer, GRPOConfig) if grpo else (RLOOTrainer, RLOOConfig)
    arguments |= {"loss_type": "grpo"} if grpo else {}  # the mean over sequences of token means, as ours
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    trainer = trainer_class(
        model=model, reward_funcs=brevity, args=config(**arguments), train_dataset=rows, processing_class=tokenizer
    )
    count_answers(trainer, clock)
    trainer.add_callback(Laps(clock))
    trainer.train()


def count_answers(trainer: Any, clock: Clock) -> None:
    """Charge sampling, scoring and the other forwards of a rollout to their phases, and keep the lengths."""
    clock.time_method(trainer, "_generate", "generate")
    clock.time_method(trainer, "_calculate_rewards", "score")
    clock.time_method(trainer, "_generate_and_score_completions", "evaluate")
    clock.time_method(trainer, "training_step", "learn")
    rollout = trainer._generate_and_score_completions

    def counted(inputs: Any) -> Any:
        out = rollout(inputs)
        clock.count_answers(out["prompt_mask"], out["completion_mask"])
        return out

    trainer._generate_and_score_completions = counted
