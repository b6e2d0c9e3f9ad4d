"""The backend itself, in each worker of a vLLM server."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rlhf_lightning_vllm.files import weights


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed on."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """What to read: ``path`` and ``sha256`` of each file, in at most so many seconds."""

    files: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 600.0


class FileEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Reads whole weights under the names of the Hugging Face model."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Note which weights have to come."""
        self._missing = {_plain(name) for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load all weights of the files.

        Raises:
            ValueError: a file is not what it was said to be, or holds a weight that the model does not have.
            TimeoutError, OSError: a file cannot be read in time.
        """
        loaded = self.model.load_weights(weights(update_info.files, time.monotonic() + update_info.seconds))
        self._missing = set() if loaded is None else self._missing - {_plain(name) for name in loaded}

    def finish_weight_update(self) -> None:
        """Let the layers process what they got.

        Raises:
            ValueError: a weight of the model did not come.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        self._pack_head()
        if self._missing:
            some = ", ".join(sorted(self._missing)[:5])
            raise ValueError(f"{len(self._missing)} weights of the model were not among the files, for example {some}")

    def shutdown(self) -> None:
        """Nothing to release."""

    def _pack_head(self) -> None:
        """On a CPU the head keeps a packed copy of the embedding that it shares: nothing else renews it."""
        head: Any = getattr(self.model, "lm_head", None)
        head = getattr(head, "base_layer", head)
        if self.device.type == "cpu" and getattr(self.model.config, "tie_word_embeddings", False) and head is not None:
            head.quant_method.process_weights_after_loading(head)


def _plain(name: str) -> str:
    """Without the wrapper that adapters put around a layer."""
    return name.replace(".base_layer.", ".")
