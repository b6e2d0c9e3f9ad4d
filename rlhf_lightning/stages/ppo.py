"""Stage `ppo`: policy and scorer to a better policy."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rlhf_lightning.callbacks import ScoreMonitor
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.ppo_rules import check_combination
from rlhf_lightning.rules.partials import called
from rlhf_lightning.stages.run import Run
from rlhf_lightning.stages.train import Metrics, train

PARTS = ("settings", "sampling", "advantage", "loss")


def run_ppo(run: Run) -> Metrics:
    """Train, keep the best policy within the KL limit, and export it; returns the last metrics."""
    section, judge = run.section("ppo"), run.config["judge"]
    settings, sampling, advantage, policy_loss = (run.build(section[part]) for part in PARTS)
    parts = {
        "settings": settings,
        "sampling": sampling,
        "advantage": advantage,
        "policy_loss": policy_loss,
        "scorer": run.scorer(run.config["scorer"]),
        "critic": _critic(run, section["critic"]),
        "engine": run.build(run.config["rollout"]),
        "kl_controller": run.build(run.config["kl"]),
    }
    best = run.build(section["best_policy"])
    monitors = [ScoreMonitor(run.scorer(judge))] if section["monitor"] and judge else []
    mix, texts = _pretraining(run, section)

    def found(module: Any) -> dict[str, float]:
        kept = (best.best if best is not None else None) or {}
        return {f"best/{name}": float(value) for name, value in kept.items()}

    callbacks = [*monitors, *mix, *([best] if best is not None else [])]
    return train(run, "ppo", parts, callbacks=callbacks, rows=texts, found=found)


def _pretraining(run: Run, section: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The callback that mixes texts in, and their files; nothing where the coefficient is 0."""
    node = section["pretraining"]
    if not node or not node["coef"]:
        return [], {}
    tokenizer = run.model(section["policy"]).tokenizer()
    data = run.build(node["data"], tokenizer=tokenizer)
    data.key = "ppo.pretraining.data."
    rest = {name: value for name, value in node.items() if name != "data"}
    return [run.build(rest, "ppo.pretraining", data=data)], {"pretraining": node["data"]["train"]}


def _critic(run: Run, given: Any) -> Any:
    if isinstance(given, Mapping):
        return run.build(given)
    return given if given in ("policy", "shared_trunk") else run.model(given)


def check_ppo(run: Run) -> None:
    """Call advantage and policy loss, and judge what only makes sense together.

    Raises:
        ConfigError: see `check_combination`; rows to mix in without a coefficient, or one without rows; or a critic
            that is made of the policy and whose node does not say so.
    """
    section = run.section("ppo")
    mix = section["pretraining"]
    if mix and bool(mix["coef"]) != bool(mix["data"]["train"]):
        raise ConfigError(
            f"ppo.pretraining.coef={mix['coef']} and ppo.pretraining.data.train={mix['data']['train']}: rows are mixed "
            "in with a coefficient above 0; set both, or neither"
        )
    settings, sampling, advantage, policy_loss = (run.build(section[part]) for part in PARTS)
    node = section["critic"]
    critic = run.build({**node, "_partial_": True}, "ppo.critic") if isinstance(node, Mapping) else node
    if isinstance(node, Mapping) and not node.get("_partial_"):
        try:
            inspect.signature(critic).bind()
        except TypeError as error:
            raise ConfigError(
                f"ppo.critic: {called(critic)}: {error}; if it is called with the policy, add _partial_: true"
            ) from error
    check_combination(settings, sampling, advantage, policy_loss, critic)
