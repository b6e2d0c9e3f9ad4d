"""Linear layers whose weights take 4 bits each, for models that learn by adapters alone (QLoRA).

Weights are cut into blocks of 64; a block keeps its largest magnitude in float32, and for each weight the nearest of 16
numbers that are the quantiles of a normal distribution (NF4): 4.5 bits for each. They are made whole again for every
product, forward and backward. The library bitsandbytes does both.
Source: Dettmers et al. 2023, arXiv:2305.14314, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.trunk import layers

BLOCK, KIND = 64, "nf4"


class Linear4bit(nn.Linear):
    """A linear layer with frozen 4-bit weights, made of one with weights [out, in] in floating point.

    Attributes:
        weight: two weights in a byte, uint8 [out * in / 2, 1], rounded up.
        absmax: of each block, [out * in / 64], rounded up; float32 in the bits of int32, which no dtype changes.
    """

    absmax: nn.Parameter

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        packed, state = _library().quantize_4bit(
            layer.weight.detach(), blocksize=BLOCK, quant_type=KIND, compress_statistics=False
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.absmax = nn.Parameter(state.absmax.view(torch.int32), requires_grad=False)
        self.bias = layer.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """``input`` [..., in] times the weights in its own dtype, or that of autocast, [..., out]."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        product: Tensor = _Product.apply(input, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weights in floating point, [out, in]."""
        return whole(self.weight, self.absmax, (self.out_features, self.in_features), dtype)


class _Product(torch.autograd.Function):
    """A product that keeps no whole weights for its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Linear4bit) -> Tensor:
        ctx.layer = layer
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, layer.whole(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.whole(gradient.dtype), None


def whole(packed: Tensor, absmax: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Weights [out, in] of ``shape`` from what `Linear4bit` keeps of them."""
    library = _library()
    code = library.get_4bit_type(KIND, device=packed.device)
    state = library.QuantState(
        absmax=absmax.detach().view(torch.float32),
        shape=torch.Size(shape),
        code=code,
        blocksize=BLOCK,
        quant_type=KIND,
        dtype=dtype,
    )
    return library.dequantize_4bit(packed.detach(), state)


def quantize(model: PreTrainedModel) -> None:
    """Let the linear layers inside of all decoder layers keep 4 bits of each weight, in place.

    Embeddings, heads and norms stay as they are, as do experts whose weights are no linear layers.

    Raises:
        ConfigError: there is none, or bitsandbytes is not installed.
    """
    found = [
        (part, name, child)
        for layer in layers(model)
        for part in layer.modules()
        for name, child in part.named_children()
        if type(child) is nn.Linear
    ]
    if not found:
        raise ConfigError(
            f"model.load_in_4bit: the layers of {type(model).__name__} have no torch.nn.Linear to quantize; set it to "
            "false"
        )
    for part, name, child in found:
        setattr(part, name, Linear4bit(child))


def quantized_layers(model: nn.Module) -> dict[str, Linear4bit]:
    """The layers with 4-bit weights by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}


def whole_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the model with the weights of all layers in floating point.

    Args:
        model: with or without 4-bit layers.
        weights: its state dict, or a part of it; not changed.
    """
    found = dict(weights)
    for name, layer in quantized_layers(model).items():
        if f"{name}.weight" not in found:
            continue
        shape, dtype = (layer.out_features, layer.in_features), _dtype_of(model)
        found[f"{name}.weight"] = whole(found[f"{name}.weight"], found.pop(f"{name}.absmax"), shape, dtype)
    return found


def check_library() -> None:
    """Raises: ConfigError: bitsandbytes is not installed."""
    _library()


def _dtype_of(model: nn.Module) -> torch.dtype:
    """That of the weights which stayed, adapters left out."""
    return model.dtype if isinstance(model, PreTrainedModel) else torch.float32


def _library() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ConfigError(
            "model.load_in_4bit needs the library bitsandbytes: pip install 'rlhf_lightning[qlora]', or set it to false"
        ) from error
    return functional
