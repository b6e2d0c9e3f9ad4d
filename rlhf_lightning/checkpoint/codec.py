"""A checkpoint as files that cannot run code: tensors as safetensors, everything around them as JSON.

Every process writes one file of tensors, and the first one the tree: it says what each tensor that several processes
share is as a whole, and which rows of it each file holds. A process on its own writes the same with one file. Tensors
are written one after the other, so that saving needs memory for one of them and not for all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlhf_lightning.checkpoint.tensors import DTYPES, Rows, Stored, file_of, rows_of, write_tensors
from rlhf_lightning.errors import CheckpointError

TREE = "state.json"
TENSORS = file_of(0)
Files = dict[str, dict[str, Any]]  # ``sha256`` and ``bytes`` by name, as in ``provenance.json``
_TAGS = ("tensor", "tuple", "pairs", "number", "shared")


@dataclass
class Encoded:
    """A state as what its files are going to hold."""

    tree: Any = None
    tensors: dict[str, Tensor] = field(default_factory=dict)  # whole ones, once each
    rows: dict[str, Rows] = field(default_factory=dict)  # of all others, tied or not
    shared: dict[str, dict[str, Any]] = field(default_factory=dict)  # nodes in the tree of those, once each
    seen: dict[Any, str] = field(default_factory=dict)  # names by place in memory

    @property
    def starts(self) -> dict[str, int]:
        """Index of the first row that this process has, by name."""
        return {name: rows.start for name, rows in self.rows.items()}

    @property
    def size(self) -> int:
        """Bytes of all tensors, those of other processes included."""
        shared = (math.prod(n["shape"]) * self.rows[name].local.element_size() for name, n in self.shared.items())
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values()) + sum(shared)

    def own_rows(self, names: Iterable[str]) -> dict[str, Tensor]:
        """What this process writes of tensors that it shares; nothing of those of which it has no row."""
        return {name: self.rows[name].local for name in names if len(self.rows[name].local)}

    def tell(self, starts: Sequence[Mapping[str, int]]) -> None:
        """Write into the tree which rows each process has, from the `starts` of all."""
        for name, node in self.shared.items():
            node["rows"] = [*(own[name] for own in starts), node["shape"][0]]


def encode(state: Mapping[str, Any]) -> Encoded:
    """What the files of a state hold; nothing is written or copied.

    Raises:
        CheckpointError: it holds something that cannot be stored; the message says where.
    """
    encoded = Encoded()
    encoded.tree = _encode(state, "", encoded)
    return encoded


def write_first(folder: Path, encoded: Encoded) -> Files:
    """Write the file of the first process."""
    return {TENSORS: write_tensors(folder / TENSORS, encoded.tensors | encoded.own_rows(encoded.shared))}


def write_tree(folder: Path, encoded: Encoded) -> None:
    """Write the file `TREE`."""
    text = json.dumps(encoded.tree, separators=(",", ":"), allow_nan=False)
    (folder / TREE).write_text(text + "\n", encoding="utf-8")


def write_state(folder: Path, state: Mapping[str, Any]) -> Files:
    """Write nested dicts, lists and tuples of tensors, numbers, text and None, all from this process.

    Tensors that are one object, or views of all of one storage, are stored once.

    Returns:
        checksum and size of the file of tensors.

    Raises:
        CheckpointError: something else is in there; the message says where.
    """
    encoded = encode(state)
    encoded.tell([encoded.starts])
    write_tree(folder, encoded)
    return write_first(folder, encoded)


def read_tree(folder: Path) -> dict[str, Any]:
    """What was written, with a `Stored` in the place of each tensor.

    Raises:
        CheckpointError: a file is missing or not in this format.
    """
    try:
        return _decode(json.loads((folder / TREE).read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(folder, error) from error


def read_tensors(tree: Any, read: Callable[[Stored], Tensor] = Stored.read) -> Any:
    """The tree with every `Stored` read, whole if nothing else is said; what is stored once is read once.

    Raises:
        CheckpointError: a file is missing or not in this format.
    """
    return _read(tree, read, {})


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state`, or several processes, wrote: whole tensors on the CPU.

    Raises:
        CheckpointError: a file is missing or not in this format.
    """
    state: dict[str, Any] = read_tensors(read_tree(folder))
    return state


def _read(node: Any, read: Callable[[Stored], Tensor], done: dict[str, Tensor]) -> Any:
    if isinstance(node, Stored):
        if node.name not in done:
            try:
                done[node.name] = read(node)
            except (OSError, ValueError, SafetensorError) as error:
                raise _unreadable(node.folder, error) from error
        return done[node.name]
    if isinstance(node, dict):
        return {key: _read(item, read, done) for key, item in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_read(item, read, done) for item in node)
    return node


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder}: not readable as a checkpoint of this library ({error})")


def _encode(value: Any, where: str, into: Encoded) -> Any:
    if isinstance(value, DTensor) and value.numel():
        value = rows_of(value)
    if isinstance(value, Rows):
        return {"tensor": _shared(value, where, into)}
    if isinstance(value, Tensor):
        return {"tensor": _name(value.detach(), where, into)}
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"number": repr(value)}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{where}.{index}", into) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        named = {key: _encode(item, f"{where}.{key}".lstrip("."), into) for key, item in value.items()}
        if all(isinstance(key, str) for key in named) and not (len(named) == 1 and set(named) <= set(_TAGS)):
            return named
        return {"pairs": [[_encode(key, f"{where} (key)", into), item] for key, item in named.items()]}
    raise CheckpointError(
        f"{where.lstrip('.') or 'the state'} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint "
        "holds tensors, numbers, text, None, lists, tuples and dicts: convert it in state_dict or on_save_checkpoint"
    )


def _decode(node: Any, folder: Path) -> Any:
    if isinstance(node, list):
        return [_decode(item, folder) for item in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1:
        (tag, content), *_ = node.items()
        if tag == "tensor":
            return _stored(content, folder)
        if tag == "number":
            return float(content)
        if tag == "tuple":
            return tuple(_decode(item, folder) for item in content)
        if tag == "pairs":
            return {_decode(key, folder): _decode(item, folder) for key, item in content}
    return {key: _decode(item, folder) for key, item in node.items()}


def _stored(content: Any, folder: Path) -> Stored:
    if isinstance(content, str):
        return Stored(folder, content)
    return Stored(folder, content["name"], tuple(content["rows"]), tuple(content["shape"]))


def _shared(rows: Rows, where: str, into: Encoded) -> dict[str, Any]:
    """What the tree says of a tensor that several processes share. The first one, which has rows of all, knows the tied
    ones; elsewhere a part of one may be a copy."""
    place, where = _place(rows.local, where), _free(where, into)
    into.rows[where] = rows
    name = into.seen.setdefault(place, where) if rows.local.numel() else where
    node = {"name": name, "dtype": DTYPES[rows.local.dtype], "shape": list(rows.shape), "rows": []}
    return into.shared.setdefault(name, node)


def _name(tensor: Tensor, where: str, into: Encoded) -> str:
    """The name a tensor is stored under; tied weights are stored once."""
    place = _place(tensor, where)
    if not tensor.numel() or place not in into.seen:  # an empty one has no place in memory
        where = _free(where, into)
        into.seen[place] = where
        into.tensors[where] = tensor
    return into.seen[place]


def _free(where: str, into: Encoded) -> str:
    while where in into.tensors or where in into.rows:  # {"a.b": ..., "a": {"b": ...}}
        where += "'"
    return where


def _place(tensor: Tensor, where: str) -> Any:
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        raise CheckpointError(f"{where}: a tensor of {tensor.dtype}, {tensor.layout} cannot be stored; convert it")
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device
