"""PPO of TRL 1.12.0, the last release that has it."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.clock import Clock, Phase
from benchmarks.peer_laps import Laps, common


def train(job: dict[str, Any], clock: Clock) -> None:
    """Run PPO under the clock: policy, reference, a critic with a trunk of its own, and the reward model."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    rows = datasets.load_dataset("json", data_files=job["rows"], split="train", cache_dir=job["folder"] + "/cache")
    prompts = rows.map(lambda row: {"input_ids": tokenizer(row["prompt"]).input_ids}, remove_columns=rows.column_names)
    arguments = common(job)
    del arguments["max_steps"]
    config = PPOConfig(
        **arguments,
        total_episodes=job["batch"] * (job["warm_up"] + job["steps"]),
        num_ppo_epochs=job["epochs"],
        num_mini_batches=1,
        response_length=job["max_new_tokens"],
        temperature=1.0,
        stop_token="eos",
        missing_eos_penalty=1.0,
        kl_coef=job["kl_coef"],
        num_sample_generations=0,
    )
    dtype = getattr(torch, job["dtype"])
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype) for _ in range(2))
    judge, critic = (
        AutoModelForSequenceClassification.from_pretrained(job["reward_model"], num_labels=1, dtype=dtype)
        for _ in range(2)
    )
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=judge,
        value_model=critic, train_dataset=prompts,
    )  # fmt: skip
    # Its own loader shuffles; the order of rows is to be the same on both sides.
    trainer.dataloader = trainer.accelerator.prepare(
        DataLoader(prompts, batch_size=job["batch"], collate_fn=DataCollatorWithPadding(tokenizer), drop_last=True)
    )
    count_answers(clock, tokenizer.pad_token_id, tokenizer.eos_token_id)
    clock.time_method(trainer.accelerator, "backward", "learn")
    trainer.add_callback(Laps(clock))
    with Phase(clock, "other"):
        trainer.train()


def count_answers(clock: Clock, pad: int, eos: int) -> None:
    """Charge sampling and learning, and keep the lengths of answers up to their EOS."""
    sample, forward = ppo_trainer.batch_generation, ppo_trainer.forward

    def batch_generation(
        model: Any, queries: Any, local_rollout_forward_batch_size: int, pad_token_id: int, generation_config: Any
    ) -> Any:
        with Phase(clock, "generate"):
            out = sample(model, queries, local_rollout_forward_batch_size, pad_token_id, generation_config)
        answers = out[0][:, queries.shape[1] :]
        ended = (answers == eos).long().cumsum(1)
        clock.count_answers(queries != pad, (ended == 0) | ((ended == 1) & (answers == eos)))
        return out

    def learning(model: Any, query_responses: Any, pad_token_id: int) -> Any:
        with Phase(clock, "learn" if torch.is_grad_enabled() else "evaluate"):
            return forward(model, query_responses, pad_token_id)

    ppo_trainer.batch_generation, ppo_trainer.forward = batch_generation, learning
