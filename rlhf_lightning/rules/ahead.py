"""What can be sampled while the policy learns, judged without torch: by the command line at once, and by the parts."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.errors import ConfigError

KEY = "ppo.settings.sample_ahead=true"
_ENGINES = (
    "rlhf_lightning.rollout.loop.LoopEngine",
    "rlhf_lightning.rollout.server.engine.ServerEngine",
    "rlhf_lightning.rollout.recorded.ReplayEngine",  # of a run that sampled ahead
)


def check_ahead(settings: Any) -> None:
    """Refuse settings that need a policy that stays as it was when a rollout was sampled.

    Args:
        settings: `PPOSettings`, or an object with the same numbers.

    Raises:
        ConfigError: there is no correction, or the iteration samples more than one rollout.
    """
    if not settings.sample_ahead:
        return
    if settings.correction is None:
        raise ConfigError(
            f"{KEY} without ppo.settings.correction: each rollout was drawn from the policy of one rollout before, and "
            "the loss must weigh its tokens for that; set ppo.settings.correction=token_truncate"
        )
    if settings.baseline == "greedy":
        raise ConfigError(
            f"{KEY} and ppo.settings.baseline=greedy: its greedy answers would be those of a newer policy than the "
            "answers they are compared with; take another algorithm, such as rloo, or set sample_ahead=false"
        )
    if settings.max_resamples:
        raise ConfigError(
            f"{KEY} and ppo.settings.max_resamples={settings.max_resamples}: the prompts of the next rollout are drawn "
            "before it is known which groups give way; set one of them to 0 or false"
        )


def check_ahead_engine(name: str, *, fit: bool) -> None:
    """Refuse an engine that cannot sample in a thread.

    Args:
        name: for the message.
        fit: whether it can, see `rlhf_lightning.rollout.engine.RolloutEngine`.

    Raises:
        ConfigError: it cannot.
    """
    if not fit:
        raise ConfigError(
            f"{KEY}: {name} cannot sample in a thread beside learning; use rollout=server, or rollout=loop with "
            "rollout.gather=model"
        )


def check_ahead_node(node: Any, *, shards: bool) -> None:
    """Refuse a node ``rollout`` whose engine cannot sample ahead; user-defined ones are asked when they are built.

    Args:
        node: of the config.
        shards: whether each process holds a part of the weights.

    Raises:
        ConfigError: see `check_ahead_engine`; or the engine would need a copy of sharded weights.
    """
    target = str(node.get("_target_"))
    own = target.startswith("rlhf_lightning.")
    check_ahead_engine(f"rollout._target_={target}", fit=not own or target in _ENGINES)
    check_ahead_engine("rollout.gather=layer", fit=node.get("gather") != "layer")
    if shards and target == _ENGINES[0]:
        raise ConfigError(
            f"{KEY}: rollout=loop samples from a copy of the weights, and sharded ones (trainer=fsdp2) cannot be "
            "copied; use rollout=server"
        )


def check_peek(name: str, *, fit: bool) -> None:
    """Refuse a loader that cannot say what it will hand out next.

    Args:
        name: of its class.
        fit: whether it has ``peek()``.

    Raises:
        ConfigError: it has not.
    """
    if not fit:
        raise ConfigError(
            f"{KEY} samples answers to the next prompts, and {name} has no peek(); take the prompts from a PromptData"
        )
