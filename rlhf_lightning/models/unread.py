"""Models whose weights are read once they are sharded, so that no process ever holds one whole.

Inside of `weights_later` a recipe builds the model without weights and notes where they are. When it is sharded, `fill`
reads from the files the rows that this process keeps. What a loaded model is tried on is tried on one of few layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PretrainedConfig, PreTrainedModel

from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.models.checks import check_unused, layer_of
from rlhf_lightning.models.configs import cut_to_layers
from rlhf_lightning.models.kinds import body_of
from rlhf_lightning.models.reading import tell
from rlhf_lightning.private_api.transformers import attention_of, changes_weights, from_config

PROBED = 2  # layers of the model that is loaded whole, and tried
_later: ContextVar[bool] = ContextVar("weights_later", default=False)


class Place(NamedTuple):
    """Where the tensor of a weight is."""

    file: Path
    key: str


@dataclass(frozen=True)
class Unread:
    """What `fill` reads a model from.

    Args:
        places: of weights, by their names in the model; tied ones under one name at least.
        given: weights that no file holds, or that were drawn.
    """

    places: Mapping[str, Place]
    given: Mapping[str, Tensor]


@contextmanager
def weights_later() -> Iterator[None]:
    """Inside, recipes build models without weights where they can; `fill` has to follow."""
    before = _later.set(True)
    try:
        yield
    finally:
        _later.reset(before)


def unread_of(model: nn.Module) -> Unread | None:
    """Where the weights of a model are; None where it has them."""
    return vars(model).get("unread")


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, weights of new models take no memory (device ``meta``), while their buffers are computed as always."""

    def drop(module: nn.Module, name: str, weight: nn.Parameter | None) -> nn.Parameter | None:
        if weight is None or weight.is_meta:
            return None  # as it is
        return nn.Parameter(weight.to("meta"), requires_grad=weight.requires_grad)

    hook = register_module_parameter_registration_hook(drop)  # type: ignore[arg-type]  # what it returns is taken
    try:
        yield
    finally:
        hook.remove()


def loaded_or_unread(
    load: Callable[[PretrainedConfig, int | None], PreTrainedModel],
    kind: Callable[[PretrainedConfig], Any],
    config: PretrainedConfig,
    folder: str,
) -> PreTrainedModel:
    """A loaded model, or inside of `weights_later` one without weights where its files can be read row by row.

    Args:
        load: loads a model of a config; its second argument is the number of lowest layers that the config was cut to,
            if it was.
        kind: gives the class, see `rlhf_lightning.models.kinds`.
        config: of the whole model.
        folder: with the files.

    Raises:
        CheckpointError: see ``load``.
    """
    if not _later.get():
        return load(config, None)
    if config.get_text_config() is not config or not Path(folder).is_dir():
        return _whole(load, config, folder)
    drawn = torch.get_rng_state()
    probe = load(cut_to_layers(config, range(min(PROBED, config.num_hidden_layers))), PROBED)
    with without_weights():
        model = from_config(kind(config), config, probe.dtype, attention_of(probe.config))
    unread = _unread(model, probe, Path(folder))
    if unread is None:
        torch.set_rng_state(drawn)  # what the probe drew is drawn again
        return _whole(load, config, folder)
    for name in {"generation_config", "head_chunk", "pack_rows"} & {*vars(probe)}:
        setattr(model, name, getattr(probe, name))
    model.unread = unread
    model.config.pad_token_id = probe.config.pad_token_id
    return model.train(probe.training)


def _whole(load: Callable[..., PreTrainedModel], config: PretrainedConfig, folder: str) -> PreTrainedModel:
    tell(
        f"{folder}: every process reads this {config.model_type} model whole before it is sharded, since its files "
        "hold other tensors than the model, or are no folder"
    )
    return load(config, None)


def _unread(model: PreTrainedModel, probe: PreTrainedModel, folder: Path) -> Unread | None:
    """Where the weights of a model are; None where a file does not hold one as it is."""
    if changes_weights(model):
        return None
    files = sorted(folder.glob("*.safetensors"))
    places: dict[str, Place] = {}
    shapes: dict[str, list[int]] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118  (no dict)
                places[key], shapes[key] = Place(file, key), opened.get_slice(key).get_shape()
    prefix = f"{model.base_model_prefix}."
    found: dict[str, Place] = {}
    given: dict[str, Tensor] = {}
    tied: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(weight), []).append(name)
        key = name if name in places else name.removeprefix(prefix)
        if name.startswith("score."):
            given[name] = probe.get_parameter(name).detach()
        elif key in places:
            if shapes[key] != list(weight.shape):
                return None
            found[name] = places[key]
    used = {place.key for place in found.values()}
    try:  # of the layers that the probe has not
        check_unused([key for key in places.keys() - used if layer_of(key) >= PROBED], str(folder))
    except CheckpointError:
        return None
    whole = all(any(name in found or name in given for name in names) for names in tied.values())
    return Unread(found, given) if whole else None


def trunk_unread(model: PreTrainedModel, source: PreTrainedModel, given: Mapping[str, Tensor]) -> Unread:
    """For a model whose body is that of another one, which is not read either; ``given`` is the rest."""
    mine, theirs = body_of(model)[0], body_of(source)[0]
    unread = unread_of(source)
    assert unread is not None
    inside = {name.removeprefix(theirs): place for name, place in unread.places.items() if name.startswith(theirs)}
    return Unread({f"{mine}{rest}": place for rest, place in inside.items()}, given)


@contextmanager
def run_on_zeros(model: nn.Module) -> Iterator[None]:
    """Inside, a model that is not read yet has zeros for weights, which take no memory, so that it runs.

    Weights that are put in beside them are noted as given, and layers may move. Does nothing for a model that is read.
    """
    if (unread := unread_of(model)) is None:
        yield
        return
    named = dict(model.named_parameters(remove_duplicate=False))
    zeros = {weight: nn.Parameter(weight.new_zeros((), device="cpu").expand(weight.shape)) for weight in named.values()}
    names: dict[nn.Parameter, list[str]] = {}
    for name, weight in named.items():
        _put(model, name, zeros[weight])
        names.setdefault(weight, []).append(name)
    weights = {zero: weight for weight, zero in zeros.items()}
    yield
    places: dict[str, Place] = {}
    given: dict[str, Tensor] = {}
    for name, there in list(model.named_parameters(remove_duplicate=False)):
        if there not in weights:
            given[name] = there.detach()
            _put(model, name, nn.Parameter(there.to("meta"), requires_grad=there.requires_grad))
            continue
        weight = weights[there]
        weight.requires_grad_(there.requires_grad)
        _put(model, name, weight)
        for before in names[weight]:
            if before in unread.places:
                places[name] = unread.places[before]
            elif before in unread.given:
                given[name] = unread.given[before]
    model.unread = Unread(places, given)  # type: ignore[assignment]


def _put(model: nn.Module, name: str, weight: nn.Parameter) -> None:
    inside, _, last = name.rpartition(".")
    setattr(model.get_submodule(inside), last, weight)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Read the weights of all models inside of a module that are not read yet: sharded ones by rows, others whole.

    Those that are neither in a file nor given are another model's, see `rlhf_lightning.models.sharding.kept_shared`.
    """
    for model in list(module.modules()):
        if (unread := vars(model).pop("unread", None)) is None:
            continue
        weights: dict[int, nn.Parameter] = {}
        filled: dict[str, nn.Parameter] = {}
        with ExitStack() as stack:
            reader = _Reader(unread, stack)
            names = dict(model.named_parameters(remove_duplicate=False))
            for name in sorted(names, key=lambda name: not reader.has(name)):  # tied ones may have one name in the file
                weight = names[name]
                if id(weight) not in weights and not reader.has(name):
                    continue
                if id(weight) not in weights:
                    weights[id(weight)] = nn.Parameter(reader.read(name, weight), requires_grad=weight.requires_grad)
                filled[name] = weights[id(weight)]
        model.load_state_dict(filled, strict=False, assign=True)


class _Reader:
    """Reads rows of weights; every file is opened once."""

    def __init__(self, unread: Unread, stack: ExitStack) -> None:
        self.unread, self.stack = unread, stack
        self.opened: dict[Path, Any] = {}

    def has(self, name: str) -> bool:
        """Whether there is something to read under this name."""
        return name in self.unread.places or name in self.unread.given

    def read(self, name: str, weight: Tensor) -> Tensor:
        """The tensor that belongs in the place of ``weight``, which may be sharded by rows."""
        if not isinstance(weight, DTensor):
            return self._rows(name, slice(None)).to(weight.dtype)
        mesh, across = weight.device_mesh, weight.placements.index(Shard(0))
        assert all(place.is_replicate() for place in weight.placements if place != Shard(0))
        local = weight.to_local()
        each = -(-weight.shape[0] // mesh.size(across))  # as `torch.chunk` cuts
        start = min(each * mesh.get_local_rank(across), weight.shape[0])
        rows = self._rows(name, slice(start, start + len(local))).to(local.dtype)
        return DTensor.from_local(rows, mesh, weight.placements, shape=weight.shape, stride=weight.stride())

    def _rows(self, name: str, rows: slice) -> Tensor:
        if name in self.unread.given:
            return self.unread.given[name][rows].clone()
        file, key = self.unread.places[name]
        if file not in self.opened:
            self.opened[file] = self.stack.enter_context(safe_open(file, "pt"))
        return self.opened[file].get_slice(key)[rows].contiguous()
