"""What all of the peer's trainers are measured with: laps of a clock, and the arguments they have in common."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from benchmarks.clock import Clock


class Laps(TrainerCallback):
    """Laps of a clock from the callbacks of the transformers Trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer is there: charge its steps."""
        if kwargs.get("optimizer") is not None:
            self.clock.time_method(kwargs["optimizer"], "step", "optimizer")
        self.clock.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An optimizer step, or in PPO a whole rollout, has ended."""
        self.clock.lap()


def common(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments of every TRL config: `micro` rows at once, as many of them as a step of `batch` rows takes."""
    return {
        "output_dir": job["folder"] + "/trl",
        "per_device_train_batch_size": job["micro"],
        "gradient_accumulation_steps": job["batch"] // job["micro"],
        "max_steps": job["warm_up"] + job["steps"],
        "learning_rate": 1e-5,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": job["dtype"] == "bfloat16",
        "use_cpu": job["device"] == "cpu",
        "dataloader_pin_memory": job["device"] == "cuda",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 0,
    }
