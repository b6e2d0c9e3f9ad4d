"""Adam: torch's own, fused where that is possible, and that of TensorFlow 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from rlhf_lightning.errors import ConfigError


def build_optimizer(
    make: Callable[[Iterable[Any]], Optimizer], groups: Sequence[dict[str, Any]], *, scaled: bool = False
) -> Optimizer:
    """An optimizer of some parameter groups: torch's Adam and AdamW with their fused kernel where that is possible.

    It moves all parameters of a device in one pass over them, and holds no list of intermediate results. Whoever says
    ``fused`` or ``foreach`` decides himself.

    Args:
        make: called with the groups.
        groups: each with ``params``.
        scaled: whether a loss scaler (fp16) waits for the gradients, which a fused kernel would unscale inside of its
            step: too late to clip them.
    """
    kind: Any
    kind, given = (make.func, make.keywords) if isinstance(make, partial) and not make.args else (make, {})
    chosen = {"fused", "foreach", "differentiable"} & given.keys()
    parameters = [parameter for group in groups for parameter in group["params"]]
    if kind in (torch.optim.Adam, torch.optim.AdamW) and not (scaled or chosen) and _fusible(parameters):
        return kind(groups, **given, fused=True)
    return make(groups)


def _fusible(parameters: Sequence[Tensor]) -> bool:
    return bool(parameters) and all(p.device.type == "cuda" and p.is_floating_point() for p in parameters)


class TF1Adam(Optimizer):
    """Adam as TensorFlow 1 computed it, which the published curves of early RLHF were made with.

        p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

    ``torch.optim.Adam`` adds eps to ``sqrt(v / (1 - b2^t))`` instead. Here eps therefore weighs ``1 / sqrt(1 - b2^t)``
    times more: about 32 times in the first step with b2 = 0.999, so parameters with tiny gradients start more slowly.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the mean of gradients and of the mean of their squares.
        eps: added to the root of the mean of squares, before its bias is corrected.

    Sources: Kingma and Ba 2014, arXiv:1412.6980, end of section 2; Huang et al. 2024, arXiv:2403.17031.

    Raises:
        ConfigError: lr or eps is negative, or a beta outside [0, 1).

    >>> weight = torch.nn.Parameter(torch.tensor(1.0))
    >>> weight.grad = torch.tensor(2.0)
    >>> TF1Adam([weight], lr=0.5, eps=0.0).step()  # the first step is lr, whatever the size of the gradient
    >>> weight.detach()
    tensor(0.5000)
    """

    def __init__(
        self, params: ParamsT, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        if lr < 0 or eps < 0:
            raise ConfigError(f"lr={lr}, eps={eps}: must be at least 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas={tuple(betas)}: each must be at least 0 and below 1")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient; returns what ``closure`` returns, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["betas"], group["eps"])
        return loss

    def _move(self, parameter: Tensor, grad: Tensor, lr: float, betas: tuple[float, float], eps: float) -> None:
        (beta1, beta2), state = betas, self.state[parameter]
        if not state:
            # a tensor, as in torch's own optimizers: sharded checkpoints store tensors
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        step = int(state["step"])
        mean = state["exp_avg"].lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        size = float(lr) * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        parameter.addcdiv_(mean, square.sqrt().add_(eps), value=-size)
