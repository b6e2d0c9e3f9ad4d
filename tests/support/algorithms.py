"""The algorithms of `conf/algorithm/`, as the command line composes them."""

from functools import cache
from typing import Any

from rlhf_lightning.config.compose import compose, safe_instantiate
from tests.gates.gate_sources import CONF

NAMES = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))


def composed(name: str) -> dict[str, Any]:
    """Critic, advantage, policy loss and settings of ``stage=ppo algorithm=NAME``, in one minibatch."""
    section = _section(name)
    settings = {key: value for key, value in section["settings"].items() if key != "_target_"}
    advantage, loss = (safe_instantiate(section[part]) for part in ("advantage", "loss"))
    return {"critic": section["critic"], "advantage": advantage, "policy_loss": loss, **settings}


@cache
def _section(name: str) -> dict[str, Any]:
    return compose(["stage=ppo", f"algorithm={name}", "ppo.settings.num_minibatches=1"])["ppo"]
