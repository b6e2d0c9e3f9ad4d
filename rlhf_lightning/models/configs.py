"""What a transformers config says, at any depth: composite models keep the one of their text model inside."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import PretrainedConfig

_RANDOM = ("dropout", "pdrop", "layerdrop")  # in names of what is drawn at random while a model trains
_NOISE = "jitter"  # the same, but some routers need the number in evaluation as well
_WINDOWS = ("window", "chunk")  # in names of sizes beyond which a token is not seen
_OTHER = {"max_window_layers"}  # a number of layers


def nested(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """A config and all configs inside it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig):
            yield from nested(value)


def switch_off_randomness(config: PretrainedConfig) -> None:
    """Set dropout and dropped layers to 0, in place and at any depth.

    A policy that draws at random would give other log-probabilities each time it is asked.
    """
    for part in nested(config):
        for name, value in list(vars(part).items()):
            if (
                any(word in name for word in _RANDOM)
                and isinstance(value, (int, float))
                and not isinstance(value, bool)
            ):
                setattr(part, name, type(value)(0))


def noise(config: PretrainedConfig) -> dict[str, float]:
    """What a config says about noise that a model adds while it trains, at any depth."""
    return {name: value for part in nested(config) for name, value in vars(part).items() if _NOISE in name and value}


def is_windowed(config: PretrainedConfig) -> bool:
    """Whether some layer of the text model sees a part of the tokens before one, or keeps a state instead of them."""
    text = config.get_text_config()
    if set(getattr(text, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return True
    return bool(_windows(text))


def cut_to_layers(config: PretrainedConfig, kept: Sequence[int]) -> PretrainedConfig:
    """A copy of a text config that speaks of some of its layers: the count, and whatever is listed for each layer.

    Args:
        config: of the text model alone.
        kept: numbers of the layers that stay.
    """
    shorter, count = copy.copy(config), config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, (list, tuple)) and len(value) == count:
            vars(shorter)[name] = type(value)(value[number] for number in kept)
    vars(shorter)["num_hidden_layers"] = len(kept)
    return shorter


@contextmanager
def narrowed(config: PretrainedConfig, width: int) -> Iterator[None]:
    """Narrow the windows of a text config to ``width`` tokens inside the block, so that a short row is longer.

    Masks are made from the config at each call, except by kernels that take the window from the layer.
    """
    wide = {name: value for name, value in _windows(config).items() if value > width}
    vars(config).update(dict.fromkeys(wide, width))
    try:
        yield
    finally:
        vars(config).update(wide)


def _windows(config: PretrainedConfig) -> dict[str, int]:
    """The sizes of windows that one config names."""
    named = {n: v for n, v in vars(config).items() if any(word in n for word in _WINDOWS) and n not in _OTHER}
    return {n: v for n, v in named.items() if isinstance(v, int) and not isinstance(v, bool) and v > 0}
