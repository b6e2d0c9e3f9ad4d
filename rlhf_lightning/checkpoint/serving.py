"""How another program serves an exported folder. No torch import here."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_lightning.errors import CheckpointError

RAW = {"use_activation": False}  # the output of a reward model as it is, and not a probability


def is_classifier(folder: Path) -> bool:
    """Whether a folder holds a reward model rather than a language model, by the class that its config names.

    Raises:
        CheckpointError: there is no config of a model.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = [str(name) for name in config["architectures"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder}: no config.json that names a model ({error}); give an exported folder"
        ) from error
    return any(name.endswith(("ForSequenceClassification", "RewardModel")) for name in names)


def vllm_command(
    folder: Path, name: str, host: str = "127.0.0.1", port: int = 8000, program: str = "vllm"
) -> list[str]:
    """The words that serve a folder with vLLM: a policy that samples as its generation config says, or a reward model
    that answers with its raw output.

    Args:
        folder: of a policy or a reward model.
        name: by which requests call it.
        host: where to listen.
        port: where to listen.
        program: vLLM's own command.

    Raises:
        CheckpointError: there is no model.
    """
    words = [program, "serve", str(folder), "--served-model-name", name, "--host", host, "--port", str(port)]
    if is_classifier(folder):
        words += ["--runner", "pooling", "--convert", "classify", "--pooler-config", json.dumps(RAW)]
    return words
