"""What a vLLM server is asked for one row, and what has to be true of its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_lightning.rollout.engine import Sampling

ABOVE_ZERO = 1e-4  # a log-probability may be above 0 by rounding


class Answer(NamedTuple):
    """One response."""

    ids: list[int]  # T token ids, with the token that ended it
    logprobs: list[float]  # T
    finished: bool  # whether it ended by itself


def request(prompt: Sequence[int], sampling: Sampling, eos: Sequence[int], seed: int) -> dict[str, Any]:
    """The body of a completion, see `read`.

    Whatever a server takes from the model's generation config where a request says nothing is said here, and the only
    tokens that end an answer are ``eos``.

    Args:
        prompt: token ids.
        sampling: how to draw.
        eos: token ids that end an answer.
        seed: of this row alone; at least 0 and below 2**63.
    """
    return {
        "request_id": f"rl-{seed:016x}",  # comes back with the answer
        "prompt": list(prompt),
        "n": 1,
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "ignore_eos": True,
        "stop_token_ids": list(eos),
        "stop": list(sampling.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
    }


def read(answer: Any, asked: Mapping[str, Any]) -> Answer:
    """The response in what a server said.

    Args:
        answer: decoded JSON.
        asked: the body it answers, see `request`.

    Raises:
        ValueError: it is not the answer to that body; says what is wrong.
    """
    try:
        name, choices = answer["id"], answer["choices"]
        (choice,) = choices
        prompt, ids, reason = choice["prompt_token_ids"], choice["token_ids"], choice["finish_reason"]
        logprobs, stop = choice["logprobs"]["token_logprobs"], choice["stop_reason"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"an answer without one choice with its token ids, log-probabilities and reasons ({type(error).__name__}: "
            f"{error})"
        ) from error
    if not str(name).endswith(asked["request_id"]):
        raise ValueError(f"the answer to another request ({str(name)[:60]})")
    if prompt != asked["prompt"]:
        raise ValueError("an answer to another prompt")
    if not isinstance(ids, list) or not ids or not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError("an answer without token ids")
    if not isinstance(logprobs, list) or len(logprobs) != len(ids):
        raise ValueError(f"an answer of {len(ids)} tokens that does not have as many log-probabilities")
    if not all(type(p) in (int, float) and math.isfinite(p) and p <= ABOVE_ZERO for p in logprobs):
        raise ValueError("an answer with a log-probability that is no finite number of at most 0")
    _check_end(ids, reason, stop, asked)
    return Answer(ids, [float(p) for p in logprobs], reason == "stop")


def _check_end(ids: Sequence[int], reason: Any, stop: Any, asked: Mapping[str, Any]) -> None:
    """Raises: ValueError: an answer does not end where it has to."""
    ends, longest = asked["stop_token_ids"], asked["max_tokens"]
    if len(ids) > longest:
        raise ValueError(f"an answer of {len(ids)} tokens where {longest} were allowed")
    if any(token in ends for token in ids[:-1]):
        raise ValueError("an answer that goes on after a token that ends it")
    if reason == "stop":
        if ids[-1] not in ends and stop not in asked["stop"]:
            raise ValueError("an answer that is said to have stopped, at no token or text that stops it")
    elif reason == "length":
        if len(ids) != longest or ids[-1] in ends:
            raise ValueError(f"an answer that is said to be truncated after {len(ids)} of {longest} tokens")
    else:
        raise ValueError(f"an answer that ended for the reason {str(reason)[:60]!r}")
