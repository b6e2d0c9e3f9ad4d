"""Stage `kto`: answers called good or bad to a policy."""

from __future__ import annotations

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.unpaired import try_loss
from rlhf_lightning.stages.offline import train_offline
from rlhf_lightning.stages.run import Run


def run_kto(run: Run) -> dict[str, float]:
    """Learn from single answers and export the policy; returns the last metrics."""
    return train_offline(run, "kto", run.build(run.section("kto")["loss"]))


def check_kto(run: Run) -> None:
    """Refuse what cannot work before any stage runs.

    Raises:
        ConfigError: no data, a loss with impossible numbers, or a batch of one answer.
    """
    run.check("kto")
    section = run.section("kto")
    data = section["data"]
    if data["batch_size"] < 2:
        raise ConfigError(
            f"kto.data.batch_size={data['batch_size']}: the reference point is measured on the answers of other "
            "prompts in the batch; take 2 or more"
        )
    try_loss(run.build(section["loss"]))
