"""TRL's trainers of given answers: SFT, reward model and DPO."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from benchmarks.clock import Clock, Phase
from benchmarks.peer_laps import Laps, common

SAMPLERS = {"shuffled": "random", "grouped": "group_by_length"}


def train(job: dict[str, Any], clock: Clock) -> None:
    """Build the trainer of the job and run it under the clock."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rows = datasets.load_dataset("json", data_files=job["rows"], split="train", cache_dir=job["folder"] + "/cache")
    trainer = {"sft": sft, "reward": reward, "dpo": dpo}[job["learner"]](job, tokenizer, rows)
    count_learning(trainer, clock)
    trainer.add_callback(Laps(clock))
    trainer.train()


def sft(job: dict[str, Any], tokenizer: Any, rows: Any) -> SFTTrainer:
    """All of TRL's ways to make batches: padded in the given order, shuffled, grouped, without padding, and packed."""
    arguments, variant = common(job), job["variant"]
    arguments |= {"max_length": job["max_length"], "train_sampling_strategy": SAMPLERS.get(variant, "sequential")}
    if variant == "padding_free":
        arguments |= {"padding_free": True, "max_length": None}
    if variant == "packed":
        # As many full sequences in a step as hold its rows.
        full = max(round(job["batch"] * job["mean_length"] / job["max_length"]), 1)
        arguments |= {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": full}
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    return SFTTrainer(model=model, args=SFTConfig(**arguments), train_dataset=rows, processing_class=tokenizer)


def reward(job: dict[str, Any], tokenizer: Any, rows: Any) -> RewardTrainer:
    """Pairs; a ranking has come as all its pairs."""
    pairs = job["pairs_per_row"]
    arguments = common(job) | {"max_length": job["max_length"], "train_sampling_strategy": "sequential"}
    arguments["gradient_accumulation_steps"] = job["batch"] * pairs // job["micro"]
    model = AutoModelForSequenceClassification.from_pretrained(
        job["reward_model"], num_labels=1, dtype=getattr(torch, job["dtype"])
    )
    return RewardTrainer(model=model, args=RewardConfig(**arguments), train_dataset=rows, processing_class=tokenizer)


def dpo(job: dict[str, Any], tokenizer: Any, rows: Any) -> DPOTrainer:
    """With a frozen copy of the policy as the reference, forwarded in every step as on our side."""
    arguments = common(job) | {"max_length": job["max_length"], "train_sampling_strategy": "sequential", "beta": 0.1}
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    reference = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    return DPOTrainer(
        model=model, ref_model=reference, args=DPOConfig(**arguments), train_dataset=rows, processing_class=tokenizer
    )


def count_learning(trainer: Any, clock: Clock) -> None:
    """Count what reaches the loss, and charge forward and backward."""
    forward = trainer.compute_loss

    def compute_loss(
        model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:  # the signature of transformers.Trainer
        labels = inputs.get("labels")
        clock.count_batch(inputs["input_ids"], inputs.get("attention_mask"), None if labels is None else labels != -100)
        with Phase(clock, "forward"):
            return forward(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)

    trainer.compute_loss = compute_loss
    clock.time_method(trainer.accelerator, "backward", "backward")
