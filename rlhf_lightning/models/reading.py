"""The weights of a folder as a model of transformers; what it will not load is told in sentences of this library."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, __version__

from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.models.memory import is_out_of_memory
from rlhf_lightning.models.trunk import decoder

log = logging.getLogger(__name__)
_told: set[str] = set()  # what was logged, since a run loads the same kind of model several times


def read_weights(
    kind: Callable[[PretrainedConfig], Any],
    path: str,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    attention: str,
    source: Mapping[str, Any],
) -> tuple[PreTrainedModel, set[str], set[str]]:
    """Load a model.

    Args:
        kind: gives the class to load, see `kinds`.
        path: a folder or hub id.
        config: of the model, with whatever was changed in it.
        dtype: of the weights.
        attention: see `Pretrained`.
        source: revision and whether code beside the weights may run.

    Returns:
        the model, its weights that the folder does not hold, and those of the folder that it does not have.

    Raises:
        CheckpointError: transformers cannot load it.
        ConfigError: the architecture has no such attention kernel.
    """
    chosen: Any = "sdpa" if attention == "auto" else attention
    try:
        model, report = kind(config).from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=chosen,
            output_loading_info=True,
            use_safetensors=True,  # never a pickle
            **source,
        )
        return model, set(report["missing_keys"]), set(report["unexpected_keys"])
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, MemoryError):
            raise
        if not (isinstance(error, (ValueError, ImportError)) and "attention implementation" in str(error)):
            raise CheckpointError(f"{path}: cannot load the weights ({_reason(error, config)})") from error
        if attention != "auto":
            raise ConfigError(
                f"model.attn_implementation={chosen}: {config.model_type} models ({path}) do not have it; use "
                "model.attn_implementation=auto"
            ) from error
    tell(f"{config.model_type} models have no sdpa attention: taking eager, which needs more memory")
    return read_weights(kind, path, config, dtype=dtype, attention="eager", source=source)


def leave_other_parts(model: PreTrainedModel, config: PretrainedConfig, path: str) -> None:
    """Say what becomes of the parts for images and sound, and stop training them.

    Args:
        model: the language model that was loaded.
        config: of the folder.
        path: of the folder, for messages.
    """
    others = [key for key, part in vars(config).items() if isinstance(part, PretrainedConfig) and key != "text_config"]
    if config.get_text_config() is config or not others:
        return
    kept = any(hasattr(model.config, key) for key in others)
    becomes = "trained on text alone; exported as they are" if kept else "loaded and exported without"
    tell(f"{path}: a {config.model_type} model, {becomes}: {', '.join(others)}")
    head: Any = model.get_output_embeddings()
    learns = {id(weight) for part in (decoder(model), head) for weight in part.parameters()}
    for weight in model.parameters():
        weight.requires_grad_(not kept or id(weight) in learns)


def tell(text: str) -> None:
    """Log a warning, the first time only."""
    if text not in _told:
        _told.add(text)
        log.warning(text)


def nothing_there(path: str | Path, what: str, error: BaseException) -> CheckpointError:
    """The error to raise where a folder or hub id holds no ``what`` (a model, a tokenizer)."""
    why = _reason(error)
    if Path(path).exists():
        inside = max(Path(path).glob("**/config.json"), key=lambda file: file.stat().st_mtime, default=None)
        hint = f"; did you mean {inside.parent}?" if inside is not None and inside.parent != Path(path) else ""
        return CheckpointError(f"{path}: no {what} to load there ({why}){hint}")
    return CheckpointError(
        f"{path}: no such folder (relative paths start at {Path.cwd()}), and no {what} of that name to load from the "
        f"hub ({why})"
    )


def _reason(error: BaseException, config: PretrainedConfig | None = None) -> str:
    if "custom code" in str(error):
        return (
            "it brings code of its own, which would run; read it, and set model.trust_remote_code=true "
            "model.revision=COMMIT"
        )
    if "ignore_mismatched_sizes" in str(error):
        return "their sizes are not those of config.json"
    if config is not None and "Unrecognized configuration class" in str(error):
        return f"transformers {__version__} has no language model of type {config.model_type}, which config.json says"
    lines = " ".join(str(error).split())
    whole = lines if len(lines) <= 400 else lines[:400].rpartition(". ")[0] or f"{lines[:400]} .."
    return whole or type(error).__name__
