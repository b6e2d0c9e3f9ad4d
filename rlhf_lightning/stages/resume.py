"""Going on where a run stopped: which stages are done, which checkpoint is next, and whether the config is the same."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from omegaconf import OmegaConf

from rlhf_lightning.checkpoint import read_provenance, verify_folder
from rlhf_lightning.checkpoint.io import checkpoints, is_checkpoint, newest_checkpoint
from rlhf_lightning.config import redact
from rlhf_lightning.errors import CheckpointError, ConfigError

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
        if self.resume == "auto":
            self._check_config(config)
        elif self.resume != "none":
            self._check_path()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes out; the system frees the lock with this process, however that ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = (self.path / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot write here ({error}); choose another run_dir") from error
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
            yield

    def finished(self, stage: str, output: str | Path | None) -> dict[str, Any] | None:
        """The metrics of a stage that is done, once its folder is verified; None if it is to run, or has no folder.

        Raises:
            CheckpointError: a file of the folder is missing or was changed.
        """
        if self.resume != "auto" or output is None or (read_provenance(output) or {}).get("stage") != stage:
            return None
        record = verify_folder(output, expect_stage=stage)
        rank_zero_info(f"stage {stage}: done before, {output} verified")
        return dict(record["metrics"])

    def checkpoint(self, stage: str) -> Path | None:
        """Where training of a stage goes on; None starts it anew."""
        if self.resume == "none":
            return None
        if self.resume != "auto":
            return Path(self.resume)
        found = newest_checkpoint(self.path / CHECKPOINTS / stage, rank_zero_warn)
        rank_zero_info(f"stage {stage}: " + (f"goes on from {found}" if found else "no checkpoint, starting new"))
        return found

    def how_to_go_on(self) -> str:
        """What to tell the user of a run that was stopped."""
        saved = [found[0] for stage in self.stages if (found := checkpoints(self.path / CHECKPOINTS / stage))]
        newest = max(saved, key=lambda path: path.stat().st_mtime, default=None)
        kept = "no step was saved" if newest is None else f"saved up to {newest}"
        return f"{kept}. Go on with the same command and resume=auto run_dir={self.path}"

    def _check_path(self) -> None:
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

    def _check_config(self, config: Mapping[str, Any]) -> None:
        file = self.path / CONFIG
        if rank_zero_only.rank or not file.is_file():  # type: ignore[attr-defined]
            return  # the first rank looks for all of them, and writes the file anew
        before = OmegaConf.to_container(OmegaConf.load(file))
        now = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(redact(dict(config))))))
        changed = [line for line in differences(before, now) if line.partition(".")[0].partition(":")[0] not in FREE]
        if changed:
            more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise ConfigError(
                f"resume=auto: {self.path} was made with another config ({'; '.join(changed[:5])}{more}); use the old "
                "values, or another run_dir"
            )


def differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """``key: old -> new`` of every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}, key=str):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif before != now:
        yield f"{key}: {json.dumps(before, default=str)} -> {json.dumps(now, default=str)}"
