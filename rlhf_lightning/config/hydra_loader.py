"""Hydra's config loader with three changes: it judges ``hydra.*``, stops where a config grows without end, and removes
what swapped parts leave behind.

Hydra acts upon its own part of the config (log handlers, callbacks, launchers, environment variables, folders) before
the task function sees anything, so that part is judged while it is composed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning import signals
from rlhf_lightning.config import resolving
from rlhf_lightning.config.bounds import LARGEST_FILE, LOADING, MOST_LOADED, check_brackets, check_text
from rlhf_lightning.config.locations import CONF_DIR
from rlhf_lightning.config.messages import of_a_list
from rlhf_lightning.config.rights import check_places
from rlhf_lightning.config.swaps import drop_leftovers, keep_typed_stage
from rlhf_lightning.config.tree import at, dotted, walk
from rlhf_lightning.config.typed import Typed
from rlhf_lightning.console.redaction import is_secret, redact_text
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.private_api.hydra import ConfigLoader, composing_with, file_of
from rlhf_lightning.private_api.omegaconf import parsed_once, read_by_libyaml
from rlhf_lightning.rules.stages import STAGES

# What Hydra may call: its own and its plug-ins' launchers and sweepers, and handlers that write where we say.
_PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.", "optuna.samplers.")
_HANDLERS = (
    "logging.StreamHandler", "logging.FileHandler", "logging.NullHandler",
    "rlhf_lightning.console.streams.LogFile", "rlhf_lightning.console.streams.Formatter",
)  # fmt: skip
SWEEP, _SWEEP_BEGINS = "multirun.yaml", b"hydra:\n  run:\n"  # what Hydra writes into the folder of a sweep
_NUMBERS = re.compile(r"(tag\(\w+, ?)?(interval|range|choice)?\(?[\d.,e +-]+\)?\)?")  # of a sweep
_LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"
_REFERENCE = re.compile(r"(ext|cfg)://(?!sys\.std(out|err)$)")  # how the settings of logging name an object
# Settings by which Hydra writes files, changes the environment or calls what it finds, and what they are without ours.
_ACTS: dict[str, Any] = {
    "hydra.run.dir": None, "hydra.sweep.dir": None, "hydra.sweep.subdir": None, "hydra.job.name": None,
    "hydra.job.chdir": None, "hydra.job.env_set": {}, "hydra.job.env_copy": [], "hydra.callbacks": {},
    "hydra.mode": None, "hydra.sweeper.params": None, "hydra.sweeper.search_space": None,
    "hydra.sweeper.custom_search_space": None, "hydra.sweeper.storage": None,
}  # fmt: skip


@contextmanager
def composing() -> Iterator[None]:
    """Inside, Hydra composes with `JudgedLoader` and reads YAML with libyaml, where that is installed.

    Raises:
        ConfigError: logging cannot be set up as ``hydra.job_logging`` says.

    What it began with `rlhf_lightning.config.resolving.begin` ends with it, if `load_config` has not ended it before.
    """
    try:
        with composing_with(JudgedLoader), read_by_libyaml(), parsed_once():
            yield
    except ValueError as error:
        if not str(error).startswith("Unable to configure"):
            raise
        raise ConfigError(f"hydra.job_logging: {error}: {error.__cause__}") from error
    finally:
        resolving.end()


class JudgedLoader(ConfigLoader):
    """See the module."""

    sweep: Path | None = None  # the folder of the sweep that was composed last

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """As in Hydra.

        Raises:
            ConfigError: a file sets what of ``hydra.*`` only a command line may set.
        """
        for override in overrides:
            check_brackets(override, override.partition("=")[0])
        typed = resolving.begin(overrides)
        try:
            added = overrides[-1:] if self.adds_mode and overrides[-1:] == [f"hydra.mode={run_mode.name}"] else []
            given = overrides[: len(overrides) - len(added)]  # so that a mode that a file sets is seen
            cfg = super().load_configuration(config_name, given, run_mode, from_shell, validate_sweep_overrides)
            if config_name is not None:  # `--hydra-help` composes no config of ours, and runs nothing
                check_hydra(cfg.hydra, given)
            if added:
                cfg.hydra.mode = run_mode
                cfg.hydra.overrides.hydra += added
            self._check_places(cfg, typed)
            drop_leftovers(cfg, self._layers, typed)
            keep_typed_stage(cfg, partial(self._layers, "stage/"), typed)
            if run_mode == RunMode.MULTIRUN:
                check_sweep(Path(cfg.hydra.sweep.dir), overrides)
                JudgedLoader.sweep = Path(cfg.hydra.sweep.dir)
                if (launcher := str(cfg.hydra.runtime.choices.get("hydra/launcher"))) != "basic":
                    signals.leave_jobs_to(f"hydra/launcher={launcher}")
        except (HydraException, OmegaConfBaseException, RecursionError) as error:
            if (known := resolving.ours(error)) is not None:
                raise known from None
            if resolving.too_deep(error):
                raise ConfigError("a config file leads to itself, by its defaults list or an interpolation") from error
            raise
        except TypeError as error:
            if message := of_a_list(overrides):
                raise ConfigError(message) from error
            raise
        return cfg

    @staticmethod
    def _check_places(cfg: DictConfig, typed: Typed) -> None:
        """The folders that Hydra makes before the task function begins."""
        raw = OmegaConf.to_container(cfg, resolve=False) if typed.local else None
        names = [name for name in ("output_root", "run_dir") if name in cfg and not OmegaConf.is_missing(cfg, name)]
        check_places({name: cfg[name] for name in names}, raw, typed)
        if "run_dir" in names and not os.path.lexists(str(cfg.run_dir)):
            signals.would_leave(str(cfg.run_dir))

    def _layers(self, group: str = "") -> list[Any]:
        return [OmegaConf.to_container(config, resolve=False) for config in self.files(group)]

    def check_files(self, config_name: str | None, repo: Any) -> None:
        """A file cannot name more places to read from: one on a ``pkg://`` is imported."""
        bound_loading(repo)
        loaded = repo.load_config(config_path=config_name) if config_name is not None else None
        if loaded is not None and OmegaConf.select(loaded.config, "hydra.searchpath") is not None:
            raise _from_file("hydra.searchpath", OmegaConf.select(loaded.config, "hydra.searchpath"))


def bound_loading(repo: Any) -> None:
    """Let a repository of config files load none that are too large, nor go on where files lead to each other.

    Hydra keeps what it has loaded, so that a defaults list without end costs no more reading.
    """
    load, sizes, loaded = repo.load_config, dict[str, int](), 0

    def load_within_bounds(config_path: str) -> Any:
        nonlocal loaded
        if config_path not in sizes:
            source = next((one for one in repo.get_sources() if one.is_config(config_path)), None)
            on_disk = source is not None and source.scheme() == "file"
            sizes[config_path] = _check_file(file_of(source, config_path)) if on_disk else 0
        loaded += sizes[config_path] + LOADING
        if loaded > MOST_LOADED:
            raise ConfigError(
                f"{config_path}: too many files lead to this one, they are too large, or it leads to itself"
            )
        try:
            return load(config_path)
        except (ValueError, TypeError, AttributeError) as error:  # what its tags and numbers cannot be made of
            raise ConfigError(
                f"{config_path}: cannot be read as a config: {str(error).splitlines()[0][:300]}"
            ) from error

    repo.load_config = load_within_bounds


def check_sweep(folder: Path, overrides: Sequence[str] = ()) -> None:
    """Refuse a sweep that would replace what the user has, or write down a secret: Hydra asks nobody.

    Args:
        folder: of the sweep; Hydra writes `SWEEP` there.
        overrides: the command line, which Hydra prints and writes down.

    Raises:
        ConfigError: names the file or the key.
    """
    file = folder / SWEEP
    ours = file.is_file() and file.read_bytes()[: len(_SWEEP_BEGINS)] == _SWEEP_BEGINS
    if os.path.islink(folder) or (os.path.lexists(file) and (file.is_symlink() or not ours)):
        raise ConfigError(
            f"hydra.sweep.dir={folder}: {SWEEP if os.path.lexists(file) else 'it'} is a link or not a sweep's; a sweep "
            "would replace it. Choose another folder"
        )
    for override in overrides:
        if override.lstrip("+").startswith("run_dir="):
            raise ConfigError(
                "run_dir: the jobs of a sweep have folders of their own; give hydra.sweep.dir=FOLDER instead"
            )
    refuse_secrets(overrides, "a sweep prints and saves its command line")


def refuse_secrets(overrides: Sequence[str], why: str) -> None:
    """Refuse a command line that is written down somewhere and holds a secret.

    Args:
        overrides: the command line.
        why: what becomes of it.

    Raises:
        ConfigError: names the key, and says where the secret is to be.
    """
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if redact_text(override) != override or (is_secret(key) and value and "${" not in value):
            raise ConfigError(
                f"{key}: {why}; write {key}='${{oc.env:NAME}}' and put the secret into an environment variable"
            )


def _check_file(path: str) -> int:
    with open(path, "rb") as file:
        content = file.read(LARGEST_FILE + 1)
    try:
        return check_text(content.decode(), path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from error


def check_hydra(node: DictConfig, overrides: list[str]) -> None:
    """Judge the composed ``hydra`` node before Hydra acts upon it.

    Args:
        node: not resolved.
        overrides: the command line, which may set all but ``hydra.output_subdir``.

    Raises:
        ConfigError: another value than ours that did not come from the command line.
    """
    tree: Any = {"hydra": OmegaConf.to_container(node, resolve=False)}
    own: Any = yaml.safe_load((CONF_DIR / "base.yaml").read_text(encoding="utf-8"))
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if tree["hydra"].get("output_subdir") is not None:
        raise ConfigError(
            "hydra.output_subdir: passwords and tokens would be written to its files as they are; leave it null, the "
            "config of a run is in run_dir/config.yaml"
        )
    told = [*(_at(tree, "hydra.overrides.hydra") or []), *(_at(tree, "hydra.overrides.task") or [])]
    if sorted(told) != sorted(overrides):
        raise _from_file("hydra.overrides", [line for line in told if line not in overrides])
    for name, formatter in (_at(tree, "hydra.job_logging.formatters") or {}).items():
        if _at(formatter, "style") not in (None, "%") and not any(key.startswith("hydra.job_logging") for key in given):
            raise _from_file(f"hydra.job_logging.formatters.{name}.style", formatter["style"])
    expected = [(key, _at(tree, key), _at(own, key) or default) for key, default in _ACTS.items()]
    for section in ("job_logging", "hydra_logging"):
        handlers = _at(tree, f"hydra.{section}.handlers") or {}
        expected += [
            (f"hydra.{section}.handlers.{name}.filename", handler["filename"], _LOG_FILE)
            for name, handler in handlers.items()
            if "filename" in handler
        ]
    for key, value, ours in expected:
        by_hand = any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in given)
        if key == "hydra.sweeper.params" and all(_sweeps_numbers(name, text) for name, text in (value or {}).items()):
            continue
        if (value or None) != (ours or None) and not by_hand:
            raise _from_file(key, value)
    for key, name in _called(tree):
        if not str(name).startswith(_PLUGINS) and name not in _HANDLERS and key not in given:
            raise _from_file(key, name)


def _sweeps_numbers(key: Any, value: Any) -> bool:
    """Whether an entry of ``hydra.sweeper.params`` in a file, which acts as if it were typed, only tries numbers."""
    section, _, rest = str(key).partition(".")
    return section in {*STAGES, "kl", "sampling", "seed"} and bool(
        re.fullmatch(r"([a-z]\w*\.?)*", rest) and _NUMBERS.fullmatch(str(value))
    )


def _from_file(key: str, value: Any) -> ConfigError:
    return ConfigError(
        f"{key}={value}: set by a config file; what Hydra itself does is taken from the command line only.\n"
        f"Remove it from the file, or add {key}=VALUE to the command if you trust it."
    )


def _at(tree: Any, key: str) -> Any:
    found = at(tree, tuple(key.split(".")))
    return None if found is ... else found


def _called(tree: Any) -> Iterator[tuple[str, Any]]:
    """(key, name) of all that names something to be called."""
    for path, value, holder, _ in walk(tree):
        named = value is not None and path[-1:] in (("_target_",), ("()",), ("class",))
        refers = isinstance(holder, dict) and isinstance(value, str) and _REFERENCE.match(value)
        if named or refers:
            yield dotted(path), value
