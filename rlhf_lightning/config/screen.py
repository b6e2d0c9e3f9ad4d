"""What a run says at its beginning and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.console.lines import clock
from rlhf_lightning.rules.stages import CANDIDATES, STAGES, product, stage_of


def closing(config: Mapping[str, Any], metrics: Mapping[str, float], seconds: float) -> str:
    """How long it took, where everything is, and what to do next; one line each.

    Args:
        config: of the run.
        metrics: the last ones of all stages.
        seconds: since the run began.
    """
    folder = Path(config["run_dir"])
    lines = {"took": clock(seconds)}
    if "best/rollout" in metrics:
        last = config["ppo"]["rollouts"]
        lines["policy"] = (
            f"of rollout {metrics['best/rollout']:.0f} of {last}, the best within the KL limit "
            f"(score {metrics['best/score']:z.2f} at {metrics['best/kl']:z.1f} nats)"
        )
    made = {stage_of(entry).name: _made(entry, config) for entry in config["stages"]}
    lines |= {name: made_in for name, made_in in made.items() if made_in}
    if (folder / "report.md").is_file():
        lines["report"] = str(folder / "report.md")
    if (folder / "tensorboard").is_dir():
        lines["watch"] = f"tensorboard --logdir {folder}"
    lines |= _ways_on(config)
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items())


def _ways_on(config: Mapping[str, Any]) -> dict[str, str]:
    """Commands to try what the run has made."""
    policies, rewards = (
        list(dict.fromkeys(place for entry in config["stages"] if (place := product(entry, kind, config))))
        for kind in ("policy", "reward_model")
    )
    policies, rewards = ([place for place in places if Path(place).exists()] for places in (policies, rewards))
    ways = {}
    if policies:
        beside = [f"--compare {policies[0]}"] * (len(policies) > 1) + [f"--reward {place}" for place in rewards[-1:]]
        ways["talk to it"] = " ".join([f"rlhf-lightning chat {policies[-1]}", *beside])
    elif rewards:
        ways["score with it"] = f"rlhf-lightning score {rewards[-1]} ROWS"
    if "rank" in config["stages"] and Path(config["rank"]["output"], CANDIDATES).is_file():
        ways["rank them"] = f"rlhf-lightning label {config['rank']['output']}"
    return ways


def opening(config: Mapping[str, Any], version: str) -> str:
    """Which stages, on what, and where to."""
    trainer = config.get("trainer") or {}
    stages = ", ".join(stage_of(entry).name for entry in config.get("stages", ()))
    device = f"{trainer.get('accelerator', 'auto')} x {trainer.get('devices', 'auto')}"
    precision = trainer.get("precision") or ("32-true" if trainer.get("accelerator") == "cpu" else "auto precision")
    numbers = f"{precision}, seed {config['seed']}"
    return f"rlhf-lightning {version} | {stages} | {device}, {numbers} | {config['run_dir']}"


def _made(entry: str, config: Mapping[str, Any]) -> str | None:
    """The folder or file that a stage has left for others, the last of its kinds."""
    kinds = reversed(list(STAGES[entry].makes)) if entry in STAGES else ("policy", "reward_model", "comparisons")
    found = (product(entry, kind, config) for kind in kinds)
    return next((place for place in found if place and Path(place).exists()), None)
