"""A checkpoint as files that cannot run code: tensors as safetensors, everything around them as JSON.

Tensors are written one after the other, so that saving needs memory for one of them and not for all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlhf_lightning.errors import CheckpointError

TENSORS, TREE = "tensors.safetensors", "state.json"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_TAGS = ("tensor", "tuple", "pairs", "number", "shared")


def state_size(state: Mapping[str, Any]) -> int:
    """Bytes that the tensors of a state take; nothing is written.

    Raises:
        CheckpointError: `write_state` could not store it.
    """
    tensors: dict[str, Tensor] = {}
    _encode(state, "", tensors, {})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, text and None as `TENSORS` and `TREE`.

    Tensors that are one object, or views of all of one storage, are stored once.

    Raises:
        CheckpointError: something else is in there; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors, {})
    (folder / TREE).write_text(json.dumps(tree, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    _write_tensors(folder / TENSORS, tensors)


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, tensors on the CPU.

    Raises:
        CheckpointError: a file is missing or not in this format.
    """
    try:
        tree = json.loads((folder / TREE).read_text(encoding="utf-8"))
        with safe_open(folder / TENSORS, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return _decode(tree, tensors)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not readable as a checkpoint of this library ({error})") from error


def _encode(value: Any, where: str, tensors: dict[str, Tensor], seen: dict[Any, str]) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": _name(value.detach(), where, tensors, seen)}
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"number": repr(value)}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{where}.{index}", tensors, seen) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        named = {key: _encode(item, f"{where}.{key}".lstrip("."), tensors, seen) for key, item in value.items()}
        if all(isinstance(key, str) for key in named) and not (len(named) == 1 and set(named) <= set(_TAGS)):
            return named
        return {"pairs": [[_encode(key, f"{where} (key)", tensors, seen), item] for key, item in named.items()]}
    raise CheckpointError(
        f"{where.lstrip('.') or 'the state'} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint "
        "holds tensors, numbers, text, None, lists, tuples and dicts: convert it in state_dict or on_save_checkpoint"
    )


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1:
        (tag, content), *_ = node.items()
        if tag == "tensor":
            return tensors[content]
        if tag == "number":
            return float(content)
        if tag == "tuple":
            return tuple(_decode(item, tensors) for item in content)
        if tag == "pairs":
            return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    return {key: _decode(item, tensors) for key, item in node.items()}


def _name(tensor: Tensor, where: str, tensors: dict[str, Tensor], seen: dict[Any, str]) -> str:
    """The name a tensor is stored under; tied weights are stored once."""
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        raise CheckpointError(f"{where}: a tensor of {tensor.dtype}, {tensor.layout} cannot be stored; convert it")
    place: Any = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
    if not tensor.numel():  # has no place in memory
        place = len(tensors)
    if place not in seen:
        while where in tensors:  # {"a.b": ..., "a": {"b": ...}}
            where += "'"
        seen[place] = where
        tensors[where] = tensor
    return seen[place]


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """The safetensors format: length of the header, header, and the bytes of all tensors in its order."""
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            flat: Any = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy() if tensor.numel() else b""
            stream.write(flat)
