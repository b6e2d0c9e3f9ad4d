"""Whether a stage will fit on the devices, said before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from rlhf_lightning.models.footprint import Setup, on_device, shape_of

log = logging.getLogger(__name__)
GB = 1e9
COUNTED = ("sft", "reward", "dpo", "kto", "ppo")


def device_memory(trainer: Mapping[str, Any]) -> int | None:
    """Bytes of the smallest CUDA device of a run; None where it runs elsewhere."""
    if trainer.get("accelerator", "auto") not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count()))


def setup_of(config: Mapping[str, Any], stage: str) -> Setup:
    """How a stage that trains lies on the devices.

    Args:
        config: resolved.
        stage: one of `COUNTED`.
    """
    trainer, model, section, ppo = config["trainer"], config["model"], config[stage], stage == "ppo"
    strategy, devices = trainer.get("strategy"), trainer.get("devices")
    strategy = strategy if isinstance(strategy, Mapping) else {}
    sharded = "ModelParallel" in str(strategy.get("_target_"))
    named = len(devices) if isinstance(devices, list) else devices  # auto and -1: all there are
    here = named if isinstance(named, int) and named > 0 else max(torch.cuda.device_count(), 1)
    ranks = here * (trainer.get("num_nodes") or 1)
    data, sampling = section["data"], section.get("sampling") or {}
    context = (data.get("max_prompt_length") or 0) + sampling.get("max_new_tokens", 0) if ppo else 0
    context = context or data.get("max_length") or 512
    rows = (section["settings"] if ppo else data).get("micro_batch_size") or data["batch_size"]
    scorer = config.get("scorer") if ppo else None
    judged = (scorer or {}).get("model")
    every = model.get("activation_checkpointing") or 0
    adapters = model.get("lora") or {}
    critic = section.get("critic") if ppo else "none"
    return Setup(
        ranks=ranks, sharded=sharded, mixed="mixed" in str(trainer.get("precision")),
        critic="none" if critic in (None, "none") else "shared_trunk" if critic == "shared_trunk" else "own",
        reference=ppo or (stage in ("dpo", "kto") and not section.get("cache_reference")),
        reward_bytes=0 if not judged else 4 if judged.get("dtype") == "float32" else 2,
        offload=bool(model.get("offload")), adapters=adapters.get("r", 8) if adapters else 0,
        checkpointed=1 / int(every) if every else 0.0, tokens=rows * context * (2 if stage in ("dpo", "reward") else 1),
        sampled=-(-data["batch_size"] // ranks) if ppo else 0, context=context,
        head_chunk=model.get("head_chunk") or 512, gather=(config.get("rollout") or {}).get("gather", "model"),
        weight_bytes=4 if model.get("dtype") == "float32" else 2, four_bits=bool(model.get("load_in_4bit")),
        replicas=strategy.get("replicate_size") or 1,
    )  # fmt: skip


def warn_of_size(config: Mapping[str, Any], stage: str) -> None:
    """Say so where a stage needs more of each device than there is, by `rlhf_lightning.models.footprint`."""
    memory = device_memory(config["trainer"])
    path = str(config[stage]["policy"]) if memory is not None and stage in COUNTED else ""
    if memory is None or not (Path(path) / "config.json").is_file():  # of a hub id nothing is fetched for this
        return
    try:
        needed = on_device(shape_of(AutoConfig.from_pretrained(path)), setup_of(config, stage))
    except Exception as error:  # what cannot be counted may run all the same: parts and models may be user-defined
        log.info(f"{stage}: how much memory it takes is not known ({type(error).__name__}: {error})")
        return
    worst = max(needed, key=lambda phase: needed[phase])
    if needed[worst] > memory:
        log.warning(
            f"{stage}: needs about {needed[worst] / GB:.0f} GB of each device in the phase {worst}, and the smallest "
            f"has {memory / GB:.0f} GB. What helps: a smaller micro_batch_size, model.activation_checkpointing=true, "
            "trainer=fsdp2 with more devices, rollout.gather=layer with it, model.offload=true, model.lora={r: 16}; "
            "`python -m benchmarks.memory` counts what each of them saves"
        )
