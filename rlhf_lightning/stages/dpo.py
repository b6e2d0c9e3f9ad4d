"""Stage `dpo`: comparisons to a policy, with the loss of the group `loss`."""

from __future__ import annotations

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.dpo import needs_reference
from rlhf_lightning.stages.offline import train_offline
from rlhf_lightning.stages.run import Run


def run_dpo(run: Run) -> dict[str, float]:
    """Learn from comparisons and export the policy; returns the last metrics."""
    return train_offline(run, "dpo", run.build(run.config["loss"]))


def check_dpo(run: Run) -> None:
    """Refuse what cannot work before any stage runs.

    Raises:
        ConfigError: a loss with impossible numbers, or a reference that the loss would not look at.
    """
    section = run.section("dpo")
    name = run.config["loss"]["_target_"].rpartition(".")[2]
    if not needs_reference(run.build(run.config["loss"])) and section["reference"]:
        raise ConfigError(f"dpo.reference is set, but {name} compares answers without a reference; set it to null")
