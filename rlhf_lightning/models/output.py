"""The way from final hidden states to logits: a linear layer, and what some architectures do to its product."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

ResultT = TypeVar("ResultT")

log = logging.getLogger(__name__)
_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # models that were tried, and whether they agreed


class Output(NamedTuple):
    """``logits = cap(scale * linear(states))`` with ``cap(x) = soft_cap * tanh(x / soft_cap)``."""

    linear: nn.Linear
    scale: float
    soft_cap: float | None

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., V] of states [..., D]."""
        return self.finish(self.linear(states.contiguous()))

    def finish(self, product: Tensor) -> Tensor:
        """Logits from the product of the states with the linear layer, both [..., V]."""
        scaled = product if self.scale == 1 else product * self.scale
        return scaled if self.soft_cap is None else (scaled / self.soft_cap).tanh() * self.soft_cap


def output_of(policy: nn.Module) -> Output:
    """The output of a causal language model, by the names that transformers uses.

    Known are Gemma's ``final_logit_softcapping``, Cohere's ``logit_scale`` and Granite's ``logits_scaling``.
    """
    config: Any = getattr(policy, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    linear: Any = policy.get_output_embeddings()  # type: ignore[operator]
    return Output(linear, float(scale), getattr(config, "final_logit_softcapping", None))


def is_linear(policy: nn.Module) -> bool:
    """Whether the logits are those of `output_of`, from a plain `nn.Linear`; if not, warns once.

    The first call for a model tries it out; under a sharding strategy all ranks have to make it.
    """
    if policy not in _known:
        _known[policy] = _has_plain_head(policy) and _agrees(policy, output_of(policy))
        if not _known[policy]:
            log.warning(
                "%s: its logits are not those of a plain linear layer, so they are computed all at once; this takes "
                "more memory (model.head_chunk=null does so without this warning)", type(policy).__name__,
            )  # fmt: skip
    return _known[policy] and _has_plain_head(policy)


def call_with_states(
    policy: nn.Module, linear: nn.Module, compute: Callable[[Tensor], ResultT], inputs: Mapping[str, Any]
) -> ResultT:
    """Run a language model, but let ``compute(states [B, S, D])`` take the place of its output embedding.

    It runs inside the root module, where weights are whole under FSDP2, and what it returns is what the root module
    returns, so that FSDP2 finds the tensors whose gradients it waits for.
    """
    found: list[ResultT] = []

    def instead(states: Tensor) -> Tensor:
        found.append(compute(states))
        return states[..., :1].detach()  # the model may scale it as it likes

    handle = policy.register_forward_hook(lambda *_: found[0], prepend=True)  # before the hook of FSDP2
    try:
        with replaced(linear, instead):
            return policy(**inputs)
    finally:
        handle.remove()


@contextmanager
def replaced(linear: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a layer compute ``forward`` instead; its hooks run, so that its weights are whole under FSDP2."""
    linear.forward = forward
    try:
        yield
    finally:
        del linear.forward


def _has_plain_head(policy: nn.Module) -> bool:
    linear: Any = getattr(policy, "get_output_embeddings", lambda: None)()
    return type(linear) is nn.Linear and "forward" not in vars(linear)


@torch.no_grad()
def _agrees(policy: nn.Module, output: Output) -> bool:
    """Hand the model a product that was made up, and see whether it becomes the logits that are expected."""
    linear = output.linear
    ids = torch.arange(8, device=linear.weight.device).view(2, 4) % linear.out_features
    product = torch.linspace(-100, 100, 8 * linear.out_features, device=ids.device).view(2, 4, -1)
    seen: list[torch.Size] = []

    def made_up(states: Tensor) -> Tensor:
        seen.append(states.shape)
        return product.clone()

    was_training = policy.training
    policy.eval()
    with replaced(linear, made_up):
        logits = policy(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    policy.train(was_training)
    expected = output.finish(product)
    same = logits.shape == expected.shape and torch.allclose(logits.float(), expected, atol=1e-3, rtol=1e-3)
    return same and seen == [(2, 4, linear.in_features)]
