"""``rlhf-lightning slurm``: the batch script with which Slurm runs a command on several GPUs and machines."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.places import write_file
from rlhf_lightning.cli.arguments import check_new, parser
from rlhf_lightning.console.streams import say
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.rules.started import names_folder

NOTICE_SECONDS = 300


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    take = parser(
        "slurm",
        "Write a batch script for Slurm: the same command under srun, with as many machines and processes as "
        "trainer.num_nodes and trainer.devices say, saved and put back into the queue when its time is nearly over. "
        "Without --output it is printed, for `| sbatch`.",
        "rlhf-lightning slurm stage=ppo trainer=fsdp2 trainer.devices=8 trainer.num_nodes=2 run_dir=runs/mine "
        "--time 24:00:00 --output job.sh",
    )
    take.add_argument("words", metavar="KEY=VALUE", nargs="*", help="the command line of the run")
    take.add_argument("--config-dir", "-cd", metavar="DIR", help="a folder with more config files, as for the run")
    take.add_argument("--output", metavar="FILE", help="a new file for the script")
    for option, value, what in (
        ("--partition", "NAME", "queue of the cluster"),
        ("--account", "NAME", "whose time it is"),
        ("--time", "TIME", "limit of a job, such as 24:00:00; the run goes on in the next one"),
        ("--cpus-per-task", "N", "processors of each process"),
    ):
        take.add_argument(option, metavar=value, help=what)
    take.add_argument(
        "--notice", metavar="SECONDS", type=int, default=NOTICE_SECONDS,
        help=f"before the limit in which the run ends its step and saves ({NOTICE_SECONDS})",
    )  # fmt: skip
    take.add_argument(
        "--line", metavar="TEXT", action="append", default=[],
        help="one more line, such as '#SBATCH --constraint=a100' or 'module load cuda'; may be given again",
    )  # fmt: skip
    return take


def run(words: Sequence[str]) -> None:
    """Print or write the script.

    Raises:
        ConfigError: the run's config, a number of devices that only the machine knows, a secret among the words, or a
            file that is there already.
        DiskError: the file cannot be written.
    """
    given = arguments().parse_intermixed_args(words)
    require("--notice", given.notice, at_least=1)
    check_new("--output", given.output)
    text = script(given, _composed(given))
    if given.output is None:
        say(text.rstrip())
        return
    write_file(Path(given.output), text)
    say(f"{given.output}: submit with sbatch {shlex.quote(given.output)}")


def script(given: argparse.Namespace, config: dict[str, Any]) -> str:
    """The batch script.

    Args:
        given: see `arguments`.
        config: of the run.
    """
    trainer, folder = config["trainer"], Path(config["run_dir"])
    devices = trainer.get("devices", 1)
    if not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"trainer.devices={devices}: set the number of GPUs of each machine, trainer.devices=8")
    wanted = {
        "job-name": folder.name,
        "nodes": trainer.get("num_nodes", 1),
        "ntasks-per-node": devices,
        "gpus-per-node": None if trainer.get("accelerator") == "cpu" else devices,
        "cpus-per-task": given.cpus_per_task,
        "partition": given.partition,
        "account": given.account,
        "time": given.time,
        "signal": f"USR1@{given.notice}",
        "open-mode": "append",
        "chdir": Path.cwd(),
    }
    head = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in wanted.items() if value is not None]
    typed = [*(["--config-dir", given.config_dir] if given.config_dir else []), *_resumed(given.words, folder)]
    processors = [f"--cpus-per-task={given.cpus_per_task}"] if given.cpus_per_task else []
    return "\n".join(
        [
            "#!/bin/bash",
            *head,
            "#SBATCH --requeue",
            *(line for line in given.line if line.startswith("#SBATCH")),
            f"# USR1 goes to the processes of srun (B:USR1 would go to this shell), {given.notice} seconds before the",
            "# limit: they save, and the first asks for the job to be put back into the queue. A process that has",
            "# saved ends with a code, at which srun is not to end those that have not.",
            *(line for line in given.line if not line.startswith("#SBATCH")),
            shlex.join(["srun", "--kill-on-bad-exit=0", *processors, sys.executable, *_program(), *typed]),
            "",
        ]
    )


def _composed(given: argparse.Namespace) -> dict[str, Any]:
    """The config of the run, judged as the run would judge it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from rlhf_lightning.config.compose import compose
    from rlhf_lightning.config.hydra_loader import refuse_secrets
    from rlhf_lightning.config.judging import judged
    from rlhf_lightning.config.messages import explain
    from rlhf_lightning.config.typed import Typed

    Typed(given.words)  # nobody repeats its secrets
    refuse_secrets(given.words, "others can read a batch script")
    more = [f"hydra.searchpath=[file://{Path(given.config_dir).absolute()}]"] if given.config_dir else []
    try:
        return judged(compose([*given.words, *more]))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, given.words)) from None


def _resumed(words: Sequence[str], folder: Path) -> list[str]:
    """A command line that a job can begin with and go on with."""
    named = [] if names_folder(words) else [f"run_dir={folder}"]
    resumed = [] if any(word.startswith("resume=") for word in words) else ["resume=auto"]
    return [*words, *named, *resumed]


def _program() -> list[str]:
    """What this process was started with, without its words."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name] if spec else [str(Path(sys.argv[0]).absolute())]
