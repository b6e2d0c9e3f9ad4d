"""The loggers of a run: each stage has its own, which begin with the config and end with the last metrics."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.config.compose import config_text, redact
from rlhf_lightning.config.loggers import logger_nodes
from rlhf_lightning.config.typed import choices
from rlhf_lightning.errors import ConfigError, RLHFError
from rlhf_lightning.loggers import records
from rlhf_lightning.loggers.files import lasting
from rlhf_lightning.rules.partials import takes, unwrapped
from rlhf_lightning.rules.stages import STAGES, names

log = logging.getLogger(__name__)


class StageLoggers:
    """The loggers of one stage after the other.

    Args:
        config: of the run.
        build: makes an object of a node.
    """

    def __init__(self, config: Mapping[str, Any], build: Callable[..., Any]) -> None:
        self._config, self._build = config, build
        self._stage, self._loggers = "", list[Logger]()
        self.curves: set[str] = set()  # tags whose last value the loggers know, of the stage that has ended last

    def of(self, stage: str) -> list[Logger]:
        """Those of a stage, on every rank. They are made when they are first asked for, and given the config then.

        Raises:
            ConfigError: a logger does not take what its node gives, or cannot begin.
        """
        if self._stage != stage:
            self._stage, self._loggers = stage, build_loggers(self._config, stage, self._build)
            config = stage_config(self._config, stage)
            self._each(lambda logger: records.log_config(logger, redact(config), config_text(config)))
        return self._loggers

    def table(self, stage: str, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """A table, see `rlhf_lightning.loggers.records.log_table`."""
        self.of(stage)
        self._each(lambda logger: records.log_table(logger, key, columns, rows, step))

    def end(self, stage: str, metrics: Mapping[str, Any], figures: Sequence[Path] = ()) -> None:
        """Log what a stage ended with, and close its loggers."""
        found = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
        options = choices(getattr(self._config, "overrides", ()))
        self.of(stage)
        for figure in figures:
            self._each(partial(records.log_figure, key=f"report/{figure.stem}", image=figure, step=0))
        self._each(lambda logger: records.log_end(logger, found, self.curves, options))
        self.close()

    def close(self, failed: bool = False) -> None:
        """End what the loggers have begun."""
        self._each(lambda logger: records.close(logger, failed))
        self._stage, self._loggers, self.curves = "", [], set()

    @rank_zero_only
    def _each(self, act: Callable[[Logger], None]) -> None:
        """What a logger cannot do is no reason to lose a stage that is trained."""
        for logger in self._loggers:
            try:
                act(logger)
            except RLHFError:
                raise
            except Exception as error:
                log.warning(f"{type(logger).__name__}: {type(error).__name__}: {error}; the run goes on")


def stage_config(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The config without the sections of other stages."""
    others = {*STAGES, *names(config["stages"])} - {stage}
    return {key: value for key, value in config.items() if key not in others}


def build_loggers(config: Mapping[str, Any], stage: str, build: Callable[..., Any]) -> list[Logger]:
    """The loggers of the config group ``logger``.

    Args:
        config: of the run.
        stage: its name. A logger that takes ``name`` or ``run_name`` is called so, unless the node names it.
        build: makes an object of a node.

    Raises:
        ConfigError: a logger's package is not installed, it does not take what the node gives, or it cannot begin.
    """
    folder, built = Path(config["run_dir"]), list[Logger]()
    for key, node in logger_nodes(config.get("logger")).items():
        factory = build({**node, "_partial_": True}, key)
        try:
            offered = _offered(unwrapped(factory)[0], takes(factory), stage, folder, node)
            logger = lasting(factory(**{name: value for name, value in offered.items() if node.get(name) is None}))
            getattr(logger, "experiment", None)  # begins, on the first rank
        except ImportError as error:
            raise ConfigError(f"{key}: {error}") from error
        except TypeError as error:
            raise ConfigError(f"{key}: {node['_target_']}: {error}") from error
        except Exception as error:  # no key, no server, no right to write: whatever its package raises
            raise ConfigError(f"{key}: cannot begin ({type(error).__name__}: {error})") from error
        built += [logger] if logger else []
    return built


def _offered(target: Any, taken: frozenset[str], stage: str, folder: Path, node: Mapping[str, Any]) -> dict[str, Any]:
    """What a logger may be given. TensorBoard's folder has no version: files of a resumed run stand beside the first.

    Others would replace their file there, or take the version for the id of the run.
    """
    run = f"{folder.parent.name}/{folder.name}"
    kinds: dict[type, dict[str, Any]] = {
        TensorBoardLogger: {"name": stage, "version": "", "default_hp_metric": False},
        WandbLogger: {"name": stage, "group": run},
        CometLogger: {"name": stage, "tags": [run]},
        MLFlowLogger: {"run_name": stage, "tags": {"run": run}},
    }
    for kind, offered in kinds.items():
        if isinstance(target, type) and issubclass(target, kind):
            return offered | (_database(node) if kind is MLFlowLogger else {})
    return {name: value for name, value in (("name", stage), ("run_name", stage), ("group", run)) if name in taken}


def _database(node: Mapping[str, Any]) -> dict[str, str]:
    """Where MLflow keeps its runs if no server is named: a file below ``save_dir``. It no longer writes plain files."""
    server = inspect.signature(MLFlowLogger).parameters["tracking_uri"].default  # of the environment, at the beginning
    if server or node.get("tracking_uri") or not node.get("save_dir"):
        return {}
    folder = Path(node["save_dir"]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "artifact_location": f"file:{folder}/artifacts"}
