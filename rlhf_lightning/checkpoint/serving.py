"""How another program serves an exported folder. No torch import here."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_lightning.errors import CheckpointError

RAW = {"use_activation": False}  # the output of a reward model as it is, and not a probability


BACKEND = "rlhf_lightning"  # as `server_plugin/` calls itself to vLLM
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
TRAINING_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # the routes that replace weights
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


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
        program: vLLM's own command, or the ``python`` of its environment, whose module is run then.

    Raises:
        CheckpointError: there is no model.
    """
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    serve = module if Path(program).name.startswith("python") else ["serve"]
    words = [program, *serve, str(folder), "--served-model-name", name, "--host", host, "--port", str(port)]
    if is_classifier(folder):
        words += ["--runner", "pooling", "--convert", "classify", "--pooler-config", json.dumps(RAW)]
    return words


def training_words(dtype: str | None = None, lora_rank: int | None = None) -> list[str]:
    """The words to add for a server that samples in training, to run with `TRAINING_ENVIRONMENT`.

    It says the log-probabilities of the tempered distribution it draws from, keeps nothing of old weights, takes no
    sampling from the folder, and takes new weights.

    Args:
        dtype: in which training computes with the weights; None leaves it to vLLM.
        lora_rank: of the adapters, if the policy has any.
    """
    words = ["--logprobs-mode", "processed_logprobs", "--no-enable-prefix-caching", "--generation-config", "vllm"]
    words += ["--seed", "0", "--weight-transfer-config", json.dumps({"backend": BACKEND})]
    words += [] if dtype is None else ["--dtype", dtype]
    if lora_rank is None:
        return words
    room = next((rank for rank in LORA_RANKS if rank >= lora_rank), lora_rank)
    return [*words, "--enable-lora", "--max-lora-rank", str(room)]
