"""The command ``rlhf-lightning`` and ``train.py``: compose with Hydra, judge the config, and only then import torch.

Little is imported before `main` runs, so that a signal is answered from the first hundredth of a second on.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning import __version__, signals
from rlhf_lightning.cli.commands import COMMANDS, command
from rlhf_lightning.errors import ConfigError, DiskError, RankError, RLHFError, nearest
from rlhf_lightning.rules.started import adopt_mpirun, check_folder, number

if TYPE_CHECKING:
    from omegaconf import DictConfig

_STARTED = time.time()


def main(config_dir: str = "") -> None:
    """Entry point. Ends the process with the exit code of ``errors.py``; 128 + signal when one stopped it.

    Args:
        config_dir: a folder with more config files, as ``--config-dir`` names one; for a project's own command.
    """
    with signals.watched(tells=number() == 0, at_once=True):
        from rlhf_lightning.console.streams import say, unbreakable

        unbreakable()
        arguments = sys.argv[1:]
        if {"--help", "-h"} & set(arguments) and arguments[0] not in COMMANDS:
            from rlhf_lightning.config.key_help import page

            stage = next((word.partition("=")[2] for word in arguments if word.startswith("stage=")), "")
            say(page(stage).rstrip())
        elif arguments == ["--version"]:
            say(__version__)
        else:
            sys.exit(_guard(arguments, config_dir))


def _guard(arguments: list[str], config_dir: str) -> int:
    try:
        _dispatch(arguments, config_dir)
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except signals.Stopped as stop:
        _complain(str(stop))
        return int(stop.code or 0)
    except RLHFError as error:
        if _wants_traceback():
            _complain_traceback()
        _complain(_told(error))
        return error.exit_code
    return 0


def _dispatch(arguments: list[str], config_dir: str) -> None:
    from rlhf_lightning.config.plain_values import check_whole

    check_whole(arguments)
    more = ["--config-dir", config_dir] if config_dir and not {"--config-dir", "-cd"} & set(arguments) else []
    if arguments[:1] and arguments[0] in COMMANDS:
        if words := command(arguments[0])([*arguments[1:], *(more if arguments[0] == "slurm" else [])]):
            _compose_and_run([*more, *words])
    else:
        _check_first(arguments[:1])
        _check_flags(arguments)
        _compose_and_run([*more, *arguments])


def _check_first(words: list[str]) -> None:
    """Say what to type where a command line begins with a stage, or with a word that is almost a command."""
    from rlhf_lightning.rules.stages import STAGES

    for word in words:
        if word in (*STAGES, "pipeline"):
            raise ConfigError(f"{word}: is a stage; write stage={word}, and `stage={word} --help` shows its keys")
        if word.isidentifier():
            raise ConfigError(f"{word}: is no command.{nearest(word, COMMANDS)}\nCommands: {', '.join(COMMANDS)}")


def _compose_and_run(arguments: list[str]) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from rlhf_lightning.config.hydra_loader import JudgedLoader, composing
    from rlhf_lightning.config.locations import CONF_DIR
    from rlhf_lightning.config.messages import explain
    from rlhf_lightning.config.plain_values import readable
    from rlhf_lightning.config.sweeps import common_failure, write_table
    from rlhf_lightning.config.typed import Typed
    from rlhf_lightning.console.streams import say

    arguments = [word for a in arguments for word in ([a] if a.startswith("-") else readable([a]))]
    sys.argv[1:] = arguments
    Typed([argument for argument in arguments if not argument.startswith("-")])  # nobody repeats its secrets
    adopt_mpirun()
    check_folder(arguments)
    shown, started = _wants_traceback(), False

    def task(cfg: DictConfig) -> Any:
        nonlocal started
        started = True
        return _job(cfg, shown)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and leaving with code 1
    gc.disable()  # nothing becomes garbage in the half second until torch is imported, and looking for it costs a tenth
    try:
        with composing():
            hydra.main(version_base=None, config_path=str(CONF_DIR), config_name="train")(task)()
    except YAMLError as error:
        raise ConfigError(f"a config file is not readable as YAML: {error}") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if shown or (started and isinstance(error, ValueError)):
            if not shown and (failure := common_failure(JudgedLoader.sweep)):
                raise failure from None
            raise
        raise ConfigError(explain(error, [a for a in arguments if "=" in a and not a.startswith("-")])) from None
    except OSError as error:
        if started:
            raise
        raise DiskError(f"cannot write the run's folder ({error}); choose another run_dir or free the disk") from error
    finally:
        gc.freeze()  # all of this stays to the end, where the interpreter would look through it once more
        gc.enable()
        if not shown:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        if JudgedLoader.sweep is not None and (table := write_table(JudgedLoader.sweep)):
            say(table)


def _check_flags(arguments: list[str]) -> None:
    """Settings with dashes, as other tools want them; Hydra would answer with its usage."""
    from rlhf_lightning.private_api.hydra import flags

    known = flags()
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.startswith("--") and not any(flag.startswith(name) for flag in known):
            value = value if equals else next(iter(arguments[place + 1 :]), "VALUE")
            key = name[2:].replace("-", "_")
            raise ConfigError(f"{name}: settings have no dashes here: write {key}={value}")


def _job(cfg: DictConfig, shown: bool) -> Any:
    """One Hydra job. A single run leaves through SystemExit, which keeps Hydra's frames out of the traceback."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    folder = HydraConfig.get().runtime.output_dir
    if _is_new(folder):
        signals.would_leave(folder)
    from rlhf_lightning.config import sweeps
    from rlhf_lightning.config.compose import load_config
    from rlhf_lightning.config.judging import judged

    swept = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        signals.poll()
        config = judged(load_config(cfg))
        from rlhf_lightning.cli.launch import count, launch
        from rlhf_lightning.cli.rank import train

        if swept:
            sweeps.check_objective(config, HydraConfig.get().sweeper["_target_"])
        processes = count(config.get("trainer") or {})
        logging = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
        metrics = train(config) if processes == 1 else launch(config, processes, logging)
        if not swept:
            return metrics
        _keep(folder, {"state": "finished", "metrics": metrics})
        objective = sweeps.objective_of(config, metrics)
        if objective is not metrics:
            _keep(folder, {"state": "finished", "metrics": metrics, "objective": objective})
        return objective
    except signals.Stopped as stop:
        if swept:
            _keep(folder, {"state": "stopped", "error": str(stop)})
        _remove_empty(folder)
        if not swept:
            stop.note = "; ".join(filter(None, (stop.note, _requeued(stop.signum, cfg))))
        raise
    except Exception as error:
        if swept:
            _keep(folder, {"state": "failed", "error": f"{type(error).__name__}: {error}"})
            raise  # the sweeper decides what a failed job means
        if shown or not isinstance(error, RLHFError):
            _complain_traceback()
        if isinstance(error, RLHFError):
            _complain(_told(error))
        _remove_empty(folder)
        raise SystemExit(getattr(error, "exit_code", 1)) from None


def _requeued(signum: int, cfg: DictConfig) -> str:
    from hydra.core.hydra_config import HydraConfig

    from rlhf_lightning.cli.requeue import requeue

    typed = HydraConfig.get().overrides
    return requeue(signum, str(cfg.resume), [*typed.task, *typed.hydra])


def _keep(folder: str, outcome: dict[str, Any]) -> None:
    from hydra.core.hydra_config import HydraConfig

    from rlhf_lightning.config.sweeps import keep

    this = HydraConfig.get()
    keep(Path(this.sweep.dir), this.job.num, this.overrides.task, folder, outcome)


def _is_new(folder: str) -> bool:
    """Whether this command has made a folder; an empty one of the user's stays."""
    return os.path.isdir(folder) and os.stat(folder).st_mtime >= _STARTED


def _remove_empty(folder: str) -> None:
    with suppress(OSError):
        if _is_new(folder):
            os.rmdir(folder)


def _told(error: RLHFError) -> str:
    from rlhf_lightning.console.redaction import redact_text

    told = redact_text(str(error) if isinstance(error, RankError) else f"{type(error).__name__}: {error}")
    return _one_screen(told) if isinstance(error, ConfigError) else told


def _wants_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _complain(message: str) -> None:
    from rlhf_lightning.console.streams import say

    say(message, sys.stderr)


def _complain_traceback() -> None:
    import traceback

    _complain(traceback.format_exc().rstrip())


def _one_screen(message: str) -> str:
    """Lines of at most 120 characters, at most 24 of them."""
    import textwrap

    lines = [
        part
        for line in message.splitlines()
        for part in textwrap.wrap(line, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    ]
    return "\n".join(lines if len(lines) <= 24 else [*lines[:23], "..."])
