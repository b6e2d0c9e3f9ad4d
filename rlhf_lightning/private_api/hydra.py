"""What Hydra does not promise to keep: its config loader, and where it stood when it failed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from hydra._internal import hydra as internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig


class ConfigLoader(ConfigLoaderImpl):
    """Hydra's loader, with a public name for what a subclass may do and ask. Hydra has no hook before it composes."""

    adds_mode = False  # whether the last override is the mode, which Hydra adds to a command that names none
    _composed: tuple[Any, Any] = ((), None)  # defaults list and repository of what was composed last

    def check_files(self, config_name: str | None, repo: Any) -> None:
        """Called with the repository of config files before Hydra adds the places that a file names."""

    def files(self, group: str = "") -> list[Any]:
        """The files of what was composed last, each where the tree has it; read again, for composing changes them.

        Args:
            group: only those of this group, as ``stage/``.
        """
        defaults, repo = self._composed
        wanted = [default for default in defaults if default.config_path.startswith(group)]
        return [self._load_single_config(default, repo.delegate).config for default in wanted]

    def _compose_config_from_defaults_list(self, defaults: Any, repo: Any) -> DictConfig:
        self._composed = defaults, repo
        return super()._compose_config_from_defaults_list(defaults, repo)

    def _process_config_searchpath(self, config_name: str | None, parsed_overrides: Any, repo: Any) -> None:
        self.check_files(config_name, repo)
        super()._process_config_searchpath(config_name, parsed_overrides, repo)


def flags() -> list[str]:
    """Words with dashes that Hydra's command line takes."""
    return [flag for action in get_args_parser()._actions for flag in action.option_strings]


@contextmanager
def composing_with(loader: type[ConfigLoader]) -> Iterator[None]:
    """Inside, Hydra composes with ``loader``, and only once: ``hydra.mode`` is what the command line says.

    Relies on the name by which it finds its own loader, and on the method that composes all to ask for the mode.
    """
    patched: Any = internal
    before = patched.ConfigLoaderImpl, patched.Hydra.get_mode
    patched.ConfigLoaderImpl, patched.Hydra.get_mode = loader, _typed_mode
    try:
        yield
    finally:
        patched.ConfigLoaderImpl, patched.Hydra.get_mode = before
        ConfigLoader.adds_mode = False


def _typed_mode(self: Any, config_name: str | None, overrides: list[str]) -> RunMode | None:
    typed = [value for key, _, value in (override.partition("=") for override in overrides) if key == "hydra.mode"]
    ConfigLoader.adds_mode = not typed
    return RunMode.__members__.get(typed[-1]) if typed else None


def file_of(source: Any, config_path: str) -> str:
    """The file that a source of configs reads for a name. Relies on how it completes the name."""
    return os.path.join(source.path, source._normalize_file_name(config_path))


def config_at_failure(error: BaseException) -> Any:
    """The config that Hydra had composed when it met an override it cannot apply, or None.

    It lies in the frame that raised; the error has only a text.
    """
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_apply_overrides_to_config":
            return frame.f_locals.get("cfg")
    return None
