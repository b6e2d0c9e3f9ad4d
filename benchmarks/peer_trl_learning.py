"""The peer's side of a comparison of what is learned, run by an interpreter that has TRL and not this library.

    PEER/bin/python -m benchmarks.peer_trl_learning JOB.json

The reward model is read and asked here by transformers alone. Writes ``track.jsonl``, a line per rollout with all its
prompts, answers, scores and log-ratios to the reference, and a folder per snapshot of the policy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks.clock import read_job
from benchmarks.peer_laps import common


class Proxy:
    """A reward function of TRL that asks a reward model for the score at the EOS, in standard deviations."""

    __name__ = "proxy"

    def __init__(self, folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        stored = json.loads((Path(folder) / "provenance.json").read_text(encoding="utf-8"))["metrics"]
        self.mean, self.std = stored["score_mean"], stored["score_std"]
        self.tokenizer = tokenizer
        self.scores: list[float] = []  # of the last rollout

    @torch.no_grad()
    def __call__(self, prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        """One score for each answer, which gets an EOS where it was truncated."""
        end = self.tokenizer.eos_token_id
        answers = [ids if ids[-1] == end else [*ids, end] for ids in completion_ids]
        rows = [torch.tensor(self.tokenizer(p).input_ids + ids) for p, ids in zip(prompts, answers, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        scores = self.model(input_ids=ids, attention_mask=mask.long()).logits[:, 0]
        self.scores = ((scores - self.mean) / self.std).tolist()
        return self.scores


class Snapshots(TrainerCallback):
    """The policy after some rollouts, in folders called by their number."""

    def __init__(self, job: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.job, self.model, self.tokenizer = job, model, tokenizer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save, where all updates of such a rollout are done."""
        rollout, left = divmod(state.global_step, self.job["updates"])
        if not left and rollout in self.job["snapshots"]:
            folder = f"{self.job['folder']}/{rollout}"
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


@torch.no_grad()
def log_ratios(trainer: Any, rollout: dict[str, Tensor]) -> list[float]:
    """``log pi(answer) - log pi_ref(answer)`` of each answer, nats."""
    prompts, answers, mask = rollout["prompt_ids"], rollout["completion_ids"], rollout["completion_mask"]
    ids, attention = torch.cat([prompts, answers], 1), torch.cat([rollout["prompt_mask"], mask], 1)
    places = (attention.cumsum(1) - 1).clamp(min=0)
    found = []
    for model in (trainer.model, trainer.ref_model):
        logits = model(input_ids=ids, attention_mask=attention, position_ids=places).logits
        logprobs = logits[:, prompts.shape[1] - 1 : -1].log_softmax(-1).gather(2, answers[..., None])[..., 0]
        found.append((logprobs * mask).sum(1))
    ratios: list[float] = (found[0] - found[1]).tolist()
    return ratios


def watch(trainer: Any, proxy: Proxy, tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Write every rollout down, before its updates."""
    sample = trainer._generate_and_score_completions

    def watched(inputs: Any) -> Any:
        out = sample(inputs)
        ends = (out["completion_ids"] * out["completion_mask"] == tokenizer.eos_token_id).any(1)
        texts = tokenizer.batch_decode(out["completion_ids"], skip_special_tokens=True)
        row = {"prompts": [each["prompt"] for each in inputs], "completions": texts, "finished": ends.tolist()}
        row |= {"scores": proxy.scores, "log_ratios": log_ratios(trainer, out)}
        with file.open("a", encoding="utf-8") as track:
            track.write(json.dumps(row) + "\n")
        return out

    trainer._generate_and_score_completions = watched


def main() -> None:
    """Run the job in the file named on the command line: one policy, GRPO or RLOO."""
    job = read_job(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    rows = datasets.load_dataset("json", data_files=job["rows"], split="train", cache_dir=job["folder"] + "/cache")
    arguments = common(job) | job["arguments"] | {"seed": job["seed"], "top_k": 0}
    trainer_class, config = (GRPOTrainer, GRPOConfig) if job["learner"] == "grpo" else (RLOOTrainer, RLOOConfig)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    proxy = Proxy(job["reward_model"], tokenizer)
    trainer = trainer_class(
        model=model, reward_funcs=proxy, args=config(**arguments), train_dataset=rows, processing_class=tokenizer
    )
    trainer.add_callback(Snapshots(job, model, tokenizer))
    watch(trainer, proxy, tokenizer, Path(job["folder"]) / "track.jsonl")
    trainer.train()


if __name__ == "__main__":
    main()
