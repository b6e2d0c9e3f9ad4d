"""Settings that were typed and that nothing would read: refused, since whoever typed them expects an effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_lightning.config.messages import shown
from rlhf_lightning.config.stage_checks import shards_weights
from rlhf_lightning.config.tree import at, dotted
from rlhf_lightning.config.typed import Typed
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rules.stages import STAGES, stage_of

_OF_THE_CRITIC = ("value_coef", "value_clip_range", "critic_lr")
_FIXED = "rlhf_lightning.optim.kl_controllers.FixedKL"


def check_ignored(config: Mapping[str, Any], typed: Typed) -> None:
    """Refuse typed settings of a part that this run does not have.

    Args:
        config: resolved, with what was typed in its place.
        typed: the command line. What stands in files may be meant for another algorithm, and is left alone.

    Raises:
        ConfigError: names the key, why nothing reads it, and what to do.
    """
    for key, why in _without_effect(config):
        if at(config, key) is not ... and typed.has(key):
            raise ConfigError(f"{dotted(key)}={shown(dotted(key), at(config, key))} would have no effect: {why}")


def _without_effect(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    stages = [stage_of(str(entry)) for entry in config.get("stages", [])]
    if all(stage.name in STAGES and not (stage.reference or stage.asks) for stage in stages):
        yield ("model", "offload"), "no stage of this run holds a frozen model. Leave it out"
    if not shards_weights(config):
        why = "this run shards no weights. Leave it out, or choose trainer=fsdp2"
        yield ("rollout", "gather"), why
    ppo = config.get("ppo") if "ppo" in config.get("stages", []) else None
    if not isinstance(ppo, Mapping) or not isinstance(settings := ppo.get("settings"), Mapping):
        return
    if settings.get("baseline") != "critic":
        why = (
            f"ppo.settings.baseline={settings.get('baseline')} trains no critic. Leave it out, or choose an algorithm "
            "with a critic, such as algorithm=ppo"
        )
        yield ("ppo", "critic"), why
        yield from ((("ppo", "settings", name), why) for name in _OF_THE_CRITIC)
    kl = config.get("kl") or {}
    if kl.get("_target_") == _FIXED and kl.get("coef") == 0:
        why = "there is no KL penalty (kl.coef=0). Leave it out, or choose kl=adaptive or kl=fixed"
        yield from ((("ppo", "settings", name), why) for name in ("kl_placement", "kl_estimator"))
