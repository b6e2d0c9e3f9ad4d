"""Runs of a few seconds on a model of a few thousand weights, in this process or as the command."""

import os
import subprocess
import sys
from pathlib import Path

from rlhf_lightning.checkpoint.provenance import sha256
from rlhf_lightning.config.compose import compose
from rlhf_lightning.stages.pipeline import run
from tests.gates.gate_sources import ROOT
from tests.support import small_pipeline

TWO_RANKS = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]


def prepare(folder):
    """Write data and model; returns the overrides that all runs on them share."""
    return [
        *small_pipeline.inputs(folder), "stages=[ppo]", "scorer=function",
        "scorer.function=tests.support.hostile_rewards.tells_and_waits", "scorer.isolate=false",
        "ppo.policy=${model.path}", "ppo.critic=policy", "ppo.monitor=false", "ppo.rollouts=4",
        "sft.data.batch_size=4", "sft.data.micro_batch_size=2", "sft.data.validation_fraction=0.25",
        "sft.policy=${model.path}",
        "trusted_targets=[tests]",
    ]  # fmt: skip


def misbehave(how, rank=0, step=1):
    """The override that adds `tests.support.misbehaviour.Misbehaviour`."""
    fields = f"how: {how}, rank: {rank}, step: {step}"
    return f"+callbacks.bad={{_target_: tests.support.misbehaviour.Misbehaviour, {fields}}}"


def go(words, run_dir, *more):
    """Run in this process; returns the checksum of the policy of the last stage."""
    config = compose([*words, *more, f"run_dir={run_dir}"])
    run(config)
    return sha256(Path(run_dir) / config["stages"][-1] / "model.safetensors")


def start(words, *more, sweep=False, **environment):
    """The command as a process; Ctrl-C works in it, which background jobs of a shell would ignore."""
    restore = (
        "import signal, os, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, str(ROOT / "train.py"), *(["-m"] if sweep else []), *words, *more]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", restore, *command], cwd=ROOT, env=variables, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
