"""Low-rank adapters (LoRA): small trained matrices beside the linear layers of a model, whose own weights stay.

    y = W x + lora_alpha / r * B A x,  A [r, in], B [out, r], B = 0 at the start

They are put into the model in place by the library peft, so that it stays the transformers class that it was.
Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.quantized import whole_weights
from rlhf_lightning.models.trunk import decoder, layers, probe_ids, states_of
from rlhf_lightning.models.unread import run_on_zeros
from rlhf_lightning.rules.ranges import require

ALL_LINEAR = "all-linear"
log = logging.getLogger(__name__)
NAME = "default"  # peft's own name for the only adapter of a model


@dataclass(frozen=True)
class Lora:
    """What adapters a model gets; the names are those of ``peft.LoraConfig``.

    Args:
        r: rank of the matrices.
        lora_alpha: an adapter's product is multiplied by ``lora_alpha / r``.
        lora_dropout: probability of dropping an input of an adapter in training; PPO takes 0 only.
        target_modules: names of linear layers of the decoder, for example ``[q_proj, v_proj]``, or ``all-linear``.

    Raises:
        ConfigError: a number out of range, no list of names, or peft is not installed.
    """

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: str | Sequence[str] = ALL_LINEAR

    def __post_init__(self) -> None:
        require("model.lora.r", self.r, at_least=1)
        require("model.lora.lora_alpha", self.lora_alpha, above=0)
        require("model.lora.lora_dropout", self.lora_dropout, at_least=0, below=1)
        _peft()
        if self.target_modules != ALL_LINEAR and (isinstance(self.target_modules, str) or not self.target_modules):
            raise ConfigError(
                f"model.lora.target_modules={self.target_modules!r}: give {ALL_LINEAR} or a list of names, for example "
                "[q_proj,v_proj]"
            )

    def put_into(self, model: PreTrainedModel, freeze_below: int = 0) -> None:
        """Give a model its adapters, in place; they and the head of a scalar model are all that trains from now on.

        The numbers of the model do not change: B is 0. Beside weights in half precision the adapters are float32.

        Args:
            model: a causal language model, or a scalar one with the head ``score``.
            freeze_below: number of lowest decoder layers that get none.

        Raises:
            ConfigError: the decoder has no linear layer of such a name.
        """
        with run_on_zeros(model):
            self._inject(_peft(), model, freeze_below)
        model.lora = self  # type: ignore[assignment]

    def _inject(self, peft: Any, model: PreTrainedModel, freeze_below: int) -> None:
        targets = self._targets(model, freeze_below)
        head = getattr(model, "score", None)
        config = peft.LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=list(targets),
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in targets.values()),
            task_type="CAUSAL_LM" if head is None else "SEQ_CLS",
            base_model_name_or_path=model.name_or_path,
        )
        try:
            peft.inject_adapter_in_model(config, model)
        except ValueError as error:
            raise ConfigError(f"model.lora.target_modules={self.target_modules}: peft refuses them: {error}") from error
        if head is not None:
            head.requires_grad_(True)
        if model.dtype.itemsize < 4:
            for name in targets:
                layer: Any = model.get_submodule(name)
                layer.lora_A.float()
                layer.lora_B.float()

    def _targets(self, model: PreTrainedModel, freeze_below: int) -> dict[str, nn.Module]:
        inside = set(decoder(model).modules())
        linear = {
            name: layer for name, layer in model.named_modules()
            if layer in inside and isinstance(layer, (nn.Linear, Conv1D))
        }  # fmt: skip
        names = _usable(model, linear)
        if self.target_modules == ALL_LINEAR and (others := {_last(name) for name in linear} - names):
            log.warning("model.lora: no adapters on %s, where they would have no effect", ", ".join(sorted(others)))
        wanted = names if self.target_modules == ALL_LINEAR else set(self.target_modules)
        if not wanted or wanted - names:
            raise ConfigError(
                f"model.lora.target_modules: the decoder of {type(model).__name__} has no linear layer called "
                f"{', '.join(sorted(wanted - names)) or 'anything'}; it has "
                f"{', '.join(sorted(names)) or 'none at all'}"
            )
        frozen = set(layers(model)[:freeze_below].modules()) if freeze_below else set()
        return {n: part for n, part in linear.items() if _last(n) in wanted and part not in frozen}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


@torch.no_grad()
def _usable(model: PreTrainedModel, linear: Mapping[str, nn.Module]) -> set[str]:
    """Last names of the linear layers that an adapter changes something in: those that are called on a short row (some
    models read the weight instead) and give a tensor (some routers give more), and that peft takes for linear layers.
    """
    from rlhf_lightning.private_api.peft import takes_adapter  # an optional library

    called: set[str] = set()

    def look(name: str) -> Any:
        def hook(layer: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                called.add(_last(name))

        return hook

    hooks = [layer.register_forward_hook(look(name)) for name, layer in linear.items()]
    try:
        states_of(model, {"input_ids": probe_ids(model), "use_cache": False})
    except (RuntimeError, ValueError, ImportError):  # a kernel for GPUs only
        called = {_last(name) for name in linear}
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name in called if takes_adapter(model, name)}


def lora(given: Lora | Mapping[str, Any] | None) -> Lora | None:
    """What a config says under ``model.lora``.

    Raises:
        ConfigError: an unknown key, or no mapping.
    """
    if given is None or isinstance(given, Lora):
        return given
    known = [field.name for field in fields(Lora)]
    if not isinstance(given, Mapping) or set(given) - set(known):
        raise ConfigError(f"model.lora={given!r}: give null or a mapping with some of the keys {', '.join(known)}")
    return Lora(**given)


def lora_of(model: nn.Module) -> Lora | None:
    """The adapters that a model was given, or None."""
    return getattr(model, "lora", None)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The linear layers with adapters (``peft.tuners.lora.LoraLayer``) by name; empty without adapters."""
    if lora_of(model) is None:
        return {}
    kind = _peft().tuners.lora.LoraLayer
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kind)}


def learned_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module; where it, or a model in it, has adapters, without the weights below them."""
    frozen: set[str] = set()
    if any(lora_of(part) is not None for part in module.modules()):
        frozen |= {n for n, w in module.named_parameters(remove_duplicate=False) if not w.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


@torch.no_grad()
def merged(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the same model without adapters that computes the same: ``W + lora_alpha / r * B A``, all in floating
    point.

    Args:
        model: with or without adapters.
        weights: its state dict, or the part of some layers, whole; not changed.
    """
    adapted = adapted_layers(model)
    if not adapted:
        return weights
    there = whole_weights(model, weights)
    plain = {name.replace(".base_layer.", "."): w for name, w in there.items() if ".lora_" not in name}
    for name, layer in adapted.items():
        if f"{name}.weight" not in plain:
            continue
        weight = plain[f"{name}.weight"]
        low, high = (weights[f"{name}.lora_{part}.{NAME}.weight"].float() for part in "AB")
        product = layer.scaling[NAME] * (high @ low)
        change = product.T if layer.fan_in_fan_out else product
        plain[f"{name}.weight"] = (weight.float() + change).to(weight.dtype)
    return plain


def save_adapter(model: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the adapters alone, and a trained head, as ``PeftModel.from_pretrained(base, folder)`` reads them.

    Does nothing for a model without adapters.

    Args:
        model: with or without adapters.
        weights: its state dict, whole.
        folder: where to.
    """
    if lora_of(model) is None:
        return
    given: Any = model.peft_config
    config = copy.copy(given[NAME])
    config.target_modules = sorted(config.target_modules)  # a set: the file would differ from run to run
    config.modules_to_save = ["score"] if config.task_type == "SEQ_CLS" else None
    config.inference_mode = True
    config.save_pretrained(str(folder))
    trained = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": weights[name].cpu().contiguous()
        for name, weight in model.named_parameters() if weight.requires_grad
    }  # fmt: skip
    save_file(trained, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _peft() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "model.lora needs the library peft: pip install 'rlhf_lightning[lora]', or set model.lora=null"
        ) from error
    return peft
