"""Whether the parts of each stage go together: sizes that divide, layouts that exist, an algorithm that can learn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlhf_lightning.config.messages import shown
from rlhf_lightning.config.signatures import Signature, signature
from rlhf_lightning.errors import ConfigError, nearest
from rlhf_lightning.rules import combinations, placement
from rlhf_lightning.rules.ahead import check_ahead, check_ahead_node
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.rules.stages import STAGES, stage_of

_TRANSLATED = {
    "gradient_clip_val": "max_grad_norm of the stage (for PPO ppo.max_grad_norm)",
    "accumulate_grad_batches": "micro_batch_size of the stage's data (for PPO ppo.settings.micro_batch_size)",
}
_NO_MODEL_YET = "looks for layers before a stage has loaded its model; "
_REFUSED = {
    "GradientAccumulationScheduler": f"would change the loss; set {_TRANSLATED['accumulate_grad_batches']} instead",
    "BatchSizeFinder": "would change what is learned; where memory runs out, the pieces of a batch get smaller",
    "LearningRateFinder": "finds a rate that the schedule takes back; try some in a sweep, -m STAGE.optimizer.lr=A,B",
    **dict.fromkeys(
        ("BaseFinetuning", "BackboneFinetuning"),
        f"{_NO_MODEL_YET}set model.freeze_below=N for the lowest ones, which then do not learn",
    ),
    "ModelPruning": f"{_NO_MODEL_YET}prune the model that the stage leaves",
}  # callbacks of Lightning, by what it calls them
_REFERENCE_FREE = "rlhf_lightning.functional.reference_free."
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")  # of Lightning


def lora(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What stands under ``model.lora``, as a node."""
    given = (config.get("model") or {}).get("lora")
    return {"_target_": "rlhf_lightning.models.adapters.Lora", **given} if isinstance(given, Mapping) else None


def _completed(node: Mapping[str, Any]) -> SimpleNamespace | None:
    """The arguments of a node with the defaults of those it leaves out; None for parts that are not ours."""
    takes: Signature | None = signature(str(node.get("_target_")))
    if takes is None:
        return None
    return SimpleNamespace(**{name: p.default for name, p in takes.parameters.items()} | dict(node))


def check_trainer(trainer: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Refuse arguments that mean another thing here, and devices that cannot be."""
    for key, instead in _TRANSLATED.items():
        if key in trainer:
            raise ConfigError(
                f"trainer.{key}: set {instead} instead, which keeps the loss exact for every split of the batch"
            )
    if trainer.get("fast_dev_run") and len(stages) > 1:
        raise ConfigError(
            f"trainer.fast_dev_run: tries a step and exports no model, so that nothing after {stages[0]} could run; "
            f"try one stage, stages=[{stages[0]}]"
        )
    if str(trainer.get("strategy")).startswith("fsdp"):
        raise ConfigError(placement.FSDP1_REFUSED)
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    if not (isinstance(devices, list) or re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)+", str(devices))):
        raise ConfigError(f"trainer.devices={devices}: must be a number above 0, a list of them, -1 (all), or auto")
    strategy = trainer.get("strategy")
    if isinstance(strategy, Mapping) and str(devices).isdigit():
        placement.check_replicas(strategy.get("replicate_size") or 1, world_size(trainer))
    if isinstance(accelerator, str) and accelerator not in _ACCELERATORS:
        hint = nearest(accelerator, _ACCELERATORS)
        raise ConfigError(f"trainer.accelerator={accelerator}: must be one of {', '.join(_ACCELERATORS)}.{hint}")


def check_callbacks(callbacks: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Refuse callbacks of Lightning that would do something else here than what they are for."""
    targets = {name: str((node or {}).get("_target_")) for name, node in callbacks.items()}
    line = next((name for name, target in targets.items() if target.endswith(".ProgressLine")), None)
    for name, target in targets.items():
        kind = target.rpartition(".")[2] if target.startswith("lightning.pytorch.callbacks.") else ""
        if kind == "EarlyStopping" and "ppo" in stages:
            raise ConfigError(
                f"callbacks.{name}: Lightning's EarlyStopping looks after each epoch, and stage ppo is one epoch. Set "
                f"callbacks.{name}._target_=rlhf_lightning.callbacks.StopEarly, which looks after each rollout, and "
                "after each validation of the other stages"
            )
        check_callback(f"callbacks.{name}", [kind])
        if kind.endswith("ProgressBar") and line is not None:
            raise ConfigError(f"callbacks.{name}: {kind} beside callbacks.{line}; add '~callbacks.{line}'")


def check_callback(key: str, kinds: Iterable[str]) -> None:
    """Refuse a callback that is of one of these classes of Lightning."""
    for kind in kinds:
        if kind in _REFUSED:
            raise ConfigError(f"{key}: {kind} {_REFUSED[kind]}")


def world_size(trainer: Mapping[str, Any]) -> int:
    """Processes, as far as the config tells; 1 where the machine decides."""
    devices: Any = trainer.get("devices")
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    return max(count, 1) * int(trainer.get("num_nodes", 1))


def shards_weights(config: Mapping[str, Any]) -> bool:
    """Whether each process is to hold a part of the weights."""
    return "ModelParallelStrategy" in str((config.get("trainer") or {}).get("strategy"))


def _check_score(section: Mapping[str, Any], world_size: int) -> None:
    require("score.micro_batch_size", section.get("micro_batch_size"), at_least=1)
    if world_size > 1:
        raise ConfigError(
            f"score: computes in one process, and this run has {world_size}; run stage=score alone, with "
            "trainer.devices=1"
        )


def check_stage(config: Mapping[str, Any], stage: str, world_size: int) -> None:
    """Refuse a stage whose parts do not go together, on so many processes."""
    section = config.get(stage) or {}
    if stage == "score":
        _check_score(section, world_size)
    data = _completed(section.get("data") or {})
    if data is not None:
        if hasattr(data, "micro_batch_size") and data.batch_size is not ...:
            by_length = bool(data.length_window)
            combinations.check_batch(data.batch_size, data.micro_batch_size, world_size, by_length, f"{stage}.data.")
        if hasattr(data, "max_prompt_length") and section.get("sampling"):
            _check_context(config, stage, data.max_prompt_length)
    shards = shards_weights(config)
    frozen = (config.get("model") or {}).get("freeze_below")
    record = STAGES.get(stage, stage_of(stage))
    if shards and record.reference and frozen:
        raise ConfigError(placement.FSDP2_LAYOUT)
    offload = (config.get("model") or {}).get("offload")
    if offload and shards:
        raise ConfigError(placement.FSDP2_OFFLOAD)
    adapters = lora(config)
    if (config.get("model") or {}).get("load_in_4bit"):
        if shards:
            raise ConfigError(placement.FSDP2_4BIT)
        if adapters is None and "optimizer" in {**(section.get("sft") or {}), **section}:
            raise ConfigError(placement.FOUR_BIT_LEARNS)
    if adapters is not None and stage == "ppo":
        placement.check_adapter_dropout(adapters.get("lora_dropout", 0.0))
    if stage == "ppo":
        _check_online(section, world_size)
        if (section.get("settings") or {}).get("sample_ahead"):
            check_ahead_node(config.get("rollout") or {}, shards=shards)
    engine = _completed(config.get("rollout") or {})
    if engine is not None and hasattr(engine, "urls") and section.get("sampling"):
        combinations.check_servers(engine.urls, engine.start)
        if engine.weights == "lora" and (stage != "ppo" or adapters is None):
            raise ConfigError(placement.NO_ADAPTERS.format(f"the policy of stage {stage}"))
    loss = str((section.get("loss") or {}).get("_target_"))
    if offload and not (section.get("cache_reference", True) or loss.startswith(_REFERENCE_FREE)):
        raise ConfigError(placement.OFFLOAD_OFFLINE.format(stage))
    if stage == "dpo" and loss.startswith(_REFERENCE_FREE):
        if section.get("reference"):
            raise ConfigError(
                f"dpo.reference={section['reference']}: {loss.rpartition('.')[2]} compares answers "
                "without a reference; set it to null"
            )
        if section.get("cache_reference"):
            raise ConfigError(combinations.NOTHING_TO_CACHE.format(stage))


def _check_online(section: Mapping[str, Any], world_size: int) -> None:
    settings = _completed(section.get("settings") or {})
    sampling = _completed(section.get("sampling") or {})
    data, critic = _completed(section.get("data") or {}), section.get("critic")
    if sampling is not None:
        combinations.check_sampling(sampling.top_k, sampling.top_p, sampling.min_new_tokens)
    if settings is not None:
        check_ahead(settings)
        advantage, loss = (section.get(part) or {} for part in ("advantage", "loss"))
        targets = str(advantage.get("_target_")), str(loss.get("_target_"))
        combinations.check_algorithm(settings, targets[0], advantage, targets[1], critic)
        if data is not None:
            combinations.check_schedule(settings, data.batch_size, world_size)
    names = ["policy", "shared_trunk"]
    if (isinstance(critic, dict) and "_target_" in critic) or "critic" not in section:
        return
    if not isinstance(critic, str) or not (critic in names or "/" in critic or Path(critic).exists()):
        raise ConfigError(combinations.WHICH_CRITIC.format(shown("ppo.critic", critic)) + nearest(str(critic), names))


def _check_context(config: Mapping[str, Any], stage: str, prompt_length: int) -> None:
    """The longest prompt and answer against the positions of the policy, or of the model it will be trained from."""
    section = config[stage]
    folders = [section.get("policy"), (config.get("model") or {}).get("path")]
    file = next((path for folder in folders if folder and (path := Path(folder) / "config.json").is_file()), None)
    try:
        model = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except ValueError:
        return  # loading the folder tells what is wrong with it
    positions = model.get("max_position_embeddings", model.get("n_positions")) if isinstance(model, dict) else None
    sampling = _completed(section["sampling"])
    if isinstance(positions, int) and sampling is not None:
        combinations.check_context(prompt_length, sampling.max_new_tokens, positions, f"{stage}.")
