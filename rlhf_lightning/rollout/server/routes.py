"""What is said to one vLLM server over HTTP: requests, and the routes that give it other weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from threading import Event
from typing import Any, Literal

from rlhf_lightning.errors import RolloutError
from rlhf_lightning.network.json_client import JsonClient
from rlhf_lightning.rollout.server.answers import Answer, read
from rlhf_lightning.rollout.server.weights import ADAPTER, Written

KEY = "RLHF_LIGHTNING_ROLLOUT_KEY"
Weights = Literal["files", "reload", "lora"]
_SOON = 5.0  # seconds for one that is there to say so
_STARTED = "It has to be started as `rlhf-lightning serve FOLDER --training` says (docs/server.md)"
_HALF = f"It may hold half of the new weights: start it again. {_STARTED}"


class VLLMServer:
    """One server. Safe to be asked from several threads.

    The value of the environment variable ``RLHF_LIGHTNING_ROLLOUT_KEY`` is sent as a bearer token.

    Args:
        url: http or https, without a path.
        timeout: seconds that one try of a request may take.
        retries: of a request; what changes the server is said once.
        deadline: seconds for each step of an update.

    Raises:
        ConfigError: an argument out of range, or an address that is not http or https.
    """

    def __init__(self, url: str, timeout: float, retries: int, deadline: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._asks = JsonClient(self.url, "rollout", KEY, timeout, retries, error=RolloutError)
        self._tells = JsonClient(self.url, "rollout", KEY, deadline, 0, error=RolloutError)
        self._ready = False  # to take weights from files

    def complete(self, body: Mapping[str, Any], until: float, over: Event) -> Answer:
        """The answer to a row, see `rlhf_lightning.rollout.server.answers`. The same body brings the same answer.

        Raises:
            RolloutError: no try brought one by ``until``, a time on `time.monotonic`.
        """
        return self._asks.ask(body, lambda answer: read(answer, body), until, over, "/v1/completions", _STARTED)

    def version(self, until: float) -> str:
        """Of the weights, as the server says.

        Raises:
            RolloutError: it does not say.
        """
        return self._asks.ask(
            None, lambda answer: _text(answer, "weight_version"), until, None, "/weight_info", _STARTED
        )

    def adapter(self, until: float) -> str:
        """Folder of the adapter that it has loaded.

        Raises:
            RolloutError: it does not say, or has none.
        """
        return self._asks.ask(None, _adapter, until, None, "/v1/models", _STARTED)

    def answers(self) -> bool:
        """Whether it is there; one try."""
        try:
            soon = time.monotonic() + _SOON
            return self._tells.ask(None, lambda answer: isinstance(answer, dict), soon, path="/v1/models")
        except RolloutError:
            return False

    def update(self, weights: Weights, written: Written, until: float) -> None:
        """Give it the weights that were written, once it has answered all it was asked.

        Args:
            weights: how.
            written: what lies where.
            until: time on `time.monotonic` by which it has to be done.

        Raises:
            RolloutError: it does not take them in time, or says afterwards that it has others.
        """
        self._say("/pause?mode=wait", {}, until, _STARTED)
        if weights == "lora":
            adapter = {"lora_name": ADAPTER, "lora_path": str(written.folder), "load_inplace": True}
            self._say("/v1/load_lora_adapter", adapter, until)
        elif weights == "reload":
            arguments = {"weights_path": str(written.folder)}
            self._say("/collective_rpc", {"method": "reload_weights", "kwargs": arguments}, until)
            self._say("/update_weight_version", {"new_version": written.version}, until)
        else:
            if not self._ready:
                self._say("/init_weight_transfer_engine", {"init_info": {}}, until, _STARTED)
            self._ready = True
            self._say("/start_weight_update", {}, until)
            told = {"files": written.files, "seconds": max(until - time.monotonic(), 0.0)}
            self._say("/update_weights", {"update_info": told}, until)
            self._say("/finish_weight_update", {"weight_version": written.version}, until)
        self.require(weights, written, until)
        self._say("/resume", {}, until)

    def require(self, weights: Weights, written: Written, until: float) -> None:
        """Ask which weights it has.

        Raises:
            RolloutError: not those that it was given.
        """
        wanted = str(written.folder) if weights == "lora" else written.version
        said = self.adapter(until) if weights == "lora" else self.version(until)
        if said != wanted:
            raise RolloutError(
                f"rollout: {self.url} says that it has the weights {said[:100]!r}, and it was given {wanted!r}: "
                "somebody else changes them, or it was started again. Give each run a server of its own"
            )

    def _say(self, path: str, body: Mapping[str, Any], until: float, advice: str = _HALF) -> None:
        self._tells.ask(body, lambda text: None, until, None, path, advice, plain=True)


def _text(answer: Any, name: str) -> str:
    if not isinstance(answer, dict) or name not in answer:
        raise ValueError(f"an answer without {name}")
    return str(answer[name])


def _adapter(answer: Any) -> str:
    try:
        return str(next(model["root"] for model in answer["data"] if model["id"] == ADAPTER))
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"a list of models without {ADAPTER}") from error
