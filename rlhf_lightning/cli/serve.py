"""``rlhf-lightning serve``: the command that serves a folder with vLLM, printed or run."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.checkpoint.provenance import read_provenance, verify_folder
from rlhf_lightning.checkpoint.serving import TRAINING_ENVIRONMENT, is_classifier, training_words, vllm_command
from rlhf_lightning.cli.arguments import parser
from rlhf_lightning.console.streams import say
from rlhf_lightning.errors import ConfigError


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    words = parser(
        "serve",
        "Print the vLLM command that serves a policy or a reward model, and a request to try it with; --run starts it. "
        "vLLM needs other versions than training, so give it an environment of its own and name its program.",
        "rlhf-lightning serve runs/mine/ppo --run --vllm ../vllm_env/bin/vllm",
    )
    words.add_argument("folder", metavar="FOLDER", help="of a policy or a reward model")
    words.add_argument("--run", action="store_true", help="start it in place of this process")
    words.add_argument("--vllm", metavar="PROGRAM", default="vllm", help="vLLM's command (vllm)")
    words.add_argument("--training", action="store_true", help="serve a policy to PPO, which gives it other weights")
    words.add_argument("--dtype", help="with --training: of the weights in training, such as float32 or bfloat16")
    words.add_argument("--lora-rank", type=int, help="with --training: model.lora.r, if the policy learns adapters")
    words.add_argument("--host", default="127.0.0.1", help="where to listen (127.0.0.1: this machine only)")
    words.add_argument("--port", type=int, default=8000, help="where to listen (8000)")
    return words


def run(words: Sequence[str]) -> None:
    """Print the command, or become it.

    Raises:
        CheckpointError: there is no model, or it is damaged.
        ConfigError: vLLM is to be run and not installed, or a reward model is to be trained, or something that belongs
            to ``--training`` is given without it.
    """
    given = arguments().parse_args(words)
    folder = Path(given.folder)
    name = folder.absolute().name
    command = vllm_command(folder, name, given.host, given.port, given.vllm)
    variables = _for_training(given, folder, command) if given.training else {}
    if not given.training and (given.dtype, given.lora_rank) != (None, None):
        raise ConfigError("--dtype and --lora-rank are for a server in training: add --training")
    if read_provenance(folder) is not None:
        verify_folder(folder)
    if given.run:
        if shutil.which(given.vllm) is None:
            raise ConfigError(
                f"--run: there is no program {given.vllm}; install vLLM into an environment of its own and name its "
                "program with --vllm PROGRAM"
            )
        os.execvpe(given.vllm, command, {**os.environ, **variables})
    say(" ".join([*(f"{name}={value}" for name, value in variables.items()), shlex.join(command)]))
    address = f"http://{given.host}:{given.port}"
    say("\n" + (f"rollout=server 'rollout.urls=[{address}]'" if given.training else _request(folder, name, address)))


def _for_training(given: argparse.Namespace, folder: Path, command: list[str]) -> dict[str, str]:
    """Add the words of a server in training to a command; returns the variables to run it with."""
    if is_classifier(folder):
        raise ConfigError(f"--training: {folder} is a reward model; give a policy, which PPO samples from")
    command += training_words(given.dtype, given.lora_rank)
    return TRAINING_ENVIRONMENT


def _request(folder: Path, name: str, address: str) -> str:
    """A line that asks the server for an answer, or for a score and how to normalise it."""
    if is_classifier(folder):
        body = json.dumps({"model": name, "input": "PROMPT AND ANSWER, THEN THE EOS TOKEN"})
        metrics = (read_provenance(folder) or {}).get("metrics", {})
        mean, std = metrics.get("score_mean", 0.0), metrics.get("score_std", 1.0)
        note = f"\nthe score that PPO sees is (probs[0] - {mean}) / {std}"
        return f"curl {address}/classify -H 'Content-Type: application/json' -d {shlex.quote(body)}{note}"
    chat = (folder / "chat_template.jinja").is_file()
    asked = {"messages": [{"role": "user", "content": "..."}]} if chat else {"prompt": "..."}
    path = "chat/completions" if chat else "completions"
    body = json.dumps({"model": name, **asked})
    return f"curl {address}/v1/{path} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
