"""A weight transfer backend of vLLM that reads safetensors files; vLLM calls `register` in each of its processes."""

from __future__ import annotations

from contextlib import suppress

NAME = "rlhf_lightning"


def register() -> None:
    """Make the backend known: ``--weight-transfer-config '{"backend": "rlhf_lightning"}'``."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    with suppress(ValueError):  # known already: vLLM loads plugins more than once in some processes
        WeightTransferEngineFactory.register_engine(NAME, "rlhf_lightning_vllm.engine", "FileEngine")
