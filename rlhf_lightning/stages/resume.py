"""Going on where a run stopped: which stages are done, which checkpoint is next, and whether the config is the same."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from omegaconf import OmegaConf

from rlhf_lightning.checkpoint import read_provenance, verify_folder
from rlhf_lightning.checkpoint.handover import probe, sweep
from rlhf_lightning.checkpoint.io import checkpoints, is_checkpoint, newest_checkpoint
from rlhf_lightning.config import redact
from rlhf_lightning.errors import CheckpointError, ConfigError, DiskError

log = logging.getLogger(__name__)
FREE = (
    "resume",
    "run_dir",
    "output_root",
    "threads",
    "trainer",
    "callbacks",
    "checkpoint",
    "logger",
    "trusted_targets",
)
CONFIG, LOCK, CHECKPOINTS = "config.yaml", ".lock", "checkpoints"


class RunFolder:
    """What an earlier run may have left in ``run_dir``, and what of it this run uses.

    ``resume=none`` begins anew, ``resume=auto`` goes on where the folder stopped, and a path is a checkpoint for a
    single stage.

    Args:
        config: the resolved config.

    Raises:
        ConfigError: another config than that of the run which is to go on.
        CheckpointError: the folder cannot be written to, another process uses it, or there is nothing to go on from.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.path = Path(config["run_dir"])
        self.resume = str(config["resume"])
        self.stages = list(config["stages"])
        self._outputs = [Path(output) for stage in self.stages for output in outputs(config.get(stage) or {})]
        if self.resume == "auto":
            self._check_config(config)
        elif self.resume != "none":
            self._check_path(config)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes out; the system frees the lock with this process, however that ends.

        Raises:
            DiskError: the run could not write its files, which is better known before the first step than after.
            CheckpointError: another process uses the folder.
            ConfigError: the run is to begin anew on top of the checkpoints of an earlier one.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = (self.path / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise DiskError(f"{self.path}: cannot write here ({error}); choose another run_dir") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                stream.seek(0)
                owner = stream.read().strip() or "another process"
                raise CheckpointError(
                    f"{self.path}: in use by {owner}; wait for it or choose another run_dir"
                ) from None
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}\n")
            stream.flush()
            for place in (self.path, self.path / CHECKPOINTS, *(output.parent for output in self._outputs)):
                probe(place)
            for folder in (self.path / CHECKPOINTS).glob("*"):
                sweep(folder)
            if self.resume == "none":
                self._check_unused()
            yield

    def finished(self, stage: str, output: str | Path | None) -> dict[str, Any] | None:
        """The metrics of a stage that is done, once its folder is verified; None if it is to run, or has no folder.

        Raises:
            CheckpointError: a file of the folder is missing or was changed.
        """
        if self.resume != "auto" or output is None or (read_provenance(output) or {}).get("stage") != stage:
            return None
        record = verify_folder(output, expect_stage=stage)
        log.info(f"stage {stage}: done before, {output} verified")
        return dict(record["metrics"])

    def checkpoint(self, stage: str) -> Path | None:
        """Where training of a stage goes on; None starts it anew."""
        if self.resume == "none":
            return None
        if self.resume != "auto":
            return Path(self.resume)
        found = newest_checkpoint(self.path / CHECKPOINTS / stage, rank_zero_warn)
        log.info(f"stage {stage}: " + (f"goes on from {found}" if found else "no checkpoint, starting new"))
        return found

    def how_to_go_on(self) -> str:
        """What to tell the user of a run that was stopped."""
        saved = [found[0] for stage in self.stages if (found := checkpoints(self.path / CHECKPOINTS / stage))]
        newest = max(saved, key=lambda path: path.stat().st_mtime, default=None)
        kept = "no step was saved" if newest is None else f"saved up to {newest}"
        done = [output.name for output in self._outputs if read_provenance(output)]
        if done and newest is None:
            kept = f"{kept}, but {', '.join(done)} {'is' if len(done) == 1 else 'are'} complete"
        return f"{kept}. Go on with the same command and resume=auto run_dir={self.path}"

    def _check_unused(self) -> None:
        left = [path for folder in (self.path / CHECKPOINTS).glob("*") for path in checkpoints(folder)[:1]]
        if left:
            raise ConfigError(
                f"resume=none: {self.path} holds checkpoints of an earlier run ({left[0]}); go on from there with "
                f"resume=auto, choose another run_dir, or remove {self.path / CHECKPOINTS}"
            )

    def _check_path(self, config: Mapping[str, Any]) -> None:
        if not is_checkpoint(self.resume):
            raise CheckpointError(
                f"resume={self.resume}: not a checkpoint folder of this library; give "
                "run_dir/checkpoints/STAGE/step-N, auto, or none"
            )
        if len(self.stages) != 1:
            raise ConfigError(
                f"resume={self.resume} belongs to one stage, but {', '.join(self.stages)} are to run; use resume=auto "
                "with the run_dir of that run"
            )
        file = Path(self.resume).absolute().parents[2] / CONFIG
        changed = [line for line in _changes(file, config) if line.startswith(f"{self.stages[0]}.")]
        if changed:
            rank_zero_warn(f"resume={self.resume}: that run was made with another config ({_listed(changed)})")

    def _check_config(self, config: Mapping[str, Any]) -> None:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return  # the first rank looks for all of them, and writes the file anew
        changed = [
            line
            for line in _changes(self.path / CONFIG, config)
            if line.partition(".")[0].partition(":")[0] not in FREE
        ]
        if changed:
            raise ConfigError(
                f"resume=auto: {self.path} was made with another config ({_listed(changed)}); use the old values, or "
                "another run_dir"
            )


def outputs(section: Mapping[str, Any]) -> list[str]:
    """The folders that a stage writes, the last one when it is done: `best_of_n` also fine-tunes on what it wrote."""
    found = (section.get("output"), (section.get("sft") or {}).get("output"))
    return [output for output in found if output]


def _changes(file: Path, config: Mapping[str, Any]) -> list[str]:
    """What differs from the config that an earlier run saved, besides its folder; nothing where it saved none."""
    if not file.is_file():
        return []
    saved = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
    assert isinstance(saved, dict)
    before = _moved(saved, str(saved["run_dir"]), str(config["run_dir"]))
    now = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(redact(dict(config))))))
    return list(differences(before, now))


def _moved(tree: Any, old: str, new: str) -> Any:
    """The same with all paths in the folder ``old`` in the folder ``new``."""
    if isinstance(tree, dict):
        return {key: _moved(value, old, new) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_moved(value, old, new) for value in tree]
    if isinstance(tree, str) and tree.startswith(old.rstrip("/") + "/") and tree != old:
        return new.rstrip("/") + tree[len(old.rstrip("/")) :]
    return new if tree == old else tree


def _listed(changed: list[str]) -> str:
    return "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")


def differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """``key: old -> new`` of every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}, key=str):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif before != now:
        yield f"{key}: {json.dumps(before, default=str)} -> {json.dumps(now, default=str)}"
