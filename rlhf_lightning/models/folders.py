"""What a model folder holds, judged by its files before anything is loaded; each refusal says what to give instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint import read_json, read_provenance, verify_folder
from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.models.configs import noise

_POINTER = b"version https://git-lfs.github.com"
_QUANTISED = "quantization_config"
_ENDINGS = (".safetensors", ".json", ".model", ".jinja", ".txt", ".bin", ".gguf", ".pth")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")
_INSTEAD = {  # of model.safetensors, as patterns, and what to do
    "*.incomplete": "a download that did not end; fetch the files again",
    ".cache/huggingface/download/*.incomplete": "a download that did not end; fetch the files again",
    "*.gguf": "a GGUF file, whose weights are for serving; give the folder of the model it was made from",
    "consolidated*": "weights as their authors publish them; give the folder in the format of transformers",
    "*-of-*.safetensors": "shards without their model.safetensors.index.json; fetch it as well",
    "global_step*": "a checkpoint of DeepSpeed; run its zero_to_fp32.py with --safe_serialization first",
    "*.distcp": "a sharded checkpoint; merge it first (accelerate merge-weights)",
    "*/*.distcp": "a sharded checkpoint; merge it first (accelerate merge-weights)",
    "*.bin": "a pickle, which is a program and is never opened; write it again by save_pretrained of transformers",
    "*.pt*": "a pickle, which is a program and is never opened; write it again by save_pretrained of transformers",
    "**/*.onnx": "ONNX, which is for serving; give the folder of the model it was made from",
}


def check_files(folder: Path) -> None:
    """Refuse a folder that is no whole, plain model.

    Raises:
        CheckpointError: an adapter, pointers instead of files, or the same said twice.
    """
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(_adapter(folder))
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        if file.suffix in _ENDINGS and file.is_file() and _starts_with(file, _POINTER):
            raise CheckpointError(
                f"{file}: is a pointer of Git LFS, not the file itself; fetch the files (git lfs pull in that folder)"
            )
    _check_twice(folder)


def check_folder(path: str) -> None:
    """The same, and verify a folder of this library by its checksums.

    Raises:
        CheckpointError: as `check_files`, or an index that leads elsewhere, or damage.
    """
    folder = Path(path)
    check_files(folder)
    for index in folder.glob("*.safetensors.index.json"):
        _check_shards(index)
    _check_weights(folder)
    if folder.is_dir() and read_provenance(folder) is not None:
        verify_folder(folder)


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer.

    Raises:
        CheckpointError: says what to copy.
    """
    if (folder / "config.json").is_file() and not any((folder / name).is_file() for name in _TOKENIZER):
        raise CheckpointError(
            f"{folder}: holds no tokenizer; copy tokenizer.json and tokenizer_config.json of the model it was made from"
        )


def _check_weights(folder: Path) -> None:
    """Refuse a file, and a folder without weights that can be read, by what is there instead."""
    if folder.is_file():
        raise CheckpointError(
            f"{folder}: is a file; give the folder of a model, with config.json and model.safetensors"
        )
    if not folder.is_dir():
        return  # a name on the hub
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        for pattern, what in _INSTEAD.items():
            if found := next(folder.glob(pattern), None):
                raise CheckpointError(f"{folder}: no model.safetensors there, but {found.name}: {what}")
        if (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no model.safetensors there; fetch the weights")


def check_kind(config: Any, path: str) -> None:
    """Refuse models that cannot be trained here, by what their config says.

    Raises:
        CheckpointError: weights are quantised, there is an encoder, or noise in training.
    """
    quantised = getattr(config, _QUANTISED, None) or getattr(config.get_text_config(), _QUANTISED, None)
    if not quantised and isinstance(mlx := getattr(config, "quantization", None), dict):
        quantised = {"quant_method": "mlx"} | mlx
    if quantised:
        method = (
            quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", "")
        )
        raise CheckpointError(
            f"{path}: config.json: {_QUANTISED}: the weights are quantised ({getattr(method, 'value', method)}), and "
            "training needs plain ones; give the folder of the model they were made from (bfloat16 or float32)"
        )
    for key, value in noise(config).items():
        raise CheckpointError(
            f"{path}: config.json: {key}={value}: experts are drawn at random in training, so that an answer gets "
            "other log-probabilities each time; set it to 0 there, or give another model"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{path}: config.json: a {config.model_type} model has an encoder and a decoder; give a decoder-only "
            "language model"
        )


def check_labels(folder: str) -> None:
    """Refuse a classifier with several outputs where a reward model, which has one, belongs.

    Raises:
        CheckpointError: names their number.
    """
    said = read_json(Path(folder) / "config.json")
    labels = said.get("num_labels") or len(said.get("id2label") or "12")  # a config leaves out two
    if any("SequenceClassification" in str(name) for name in said.get("architectures") or ()) and labels != 1:
        raise CheckpointError(
            f"{folder}: config.json: the classifier has {labels} outputs, and a reward model has one (num_labels: 1); "
            "train one with stage=reward, or score with a function of your own (scorer=function)"
        )


def _adapter(folder: Path) -> str:
    base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
    whole = folder.parent if folder.name == "adapter" and (folder.parent / "config.json").is_file() else None
    if whole is not None:
        return f"{folder}: adapter_config.json: this is the adapter alone; give {whole}, which holds the merged model"
    return (
        f"{folder}: adapter_config.json: the folder holds an adapter of {str(base)[:200]!r}, not a model; merge "
        "the two (merge_and_unload() of peft) and give the folder of the merged model"
    )


def _check_twice(folder: Path) -> None:
    """Whether the folder says two things about the same: transformers would read one without a word."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() and index.is_file():
        raise CheckpointError(
            f"{folder}: holds weights twice, {whole.name} and those that {index.name} names; delete the ones not meant"
        )
    template, said = folder / "chat_template.jinja", read_json(folder / "tokenizer_config.json").get("chat_template")
    if template.is_file() and isinstance(said, str) and said.strip() != _text(template).strip():
        raise CheckpointError(
            f"{folder}: chat_template.jinja and the chat_template of tokenizer_config.json differ; delete the one not "
            "meant"
        )


def _check_shards(index: Path) -> None:
    """An index names files of its own folder, and nothing else on the disk."""
    try:
        shards = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{index}: not readable as an index of shards ({why})") from error
    for name in sorted(shards):
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: names {name!r}; a shard is a .safetensors file beside it")
    missing = sorted(name for name in shards if not (index.parent / name).is_file())
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of its {len(shards)} shards are not there ({missing[0]}); fetch the files again"
        )


def _starts_with(file: Path, beginning: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(beginning)) == beginning


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
