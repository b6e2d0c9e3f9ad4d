"""Going on where a run stopped: which stages are done, which checkpoint is next, and whether the config is the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from rlhf_lightning.checkpoint import read_provenance, verify_folder
from rlhf_lightning.checkpoint.folders import probe
from rlhf_lightning.checkpoint.io import END, checkpoints, is_checkpoint, newest_checkpoint
from rlhf_lightning.checkpoint.places import lock, sweep, write_file
from rlhf_lightning.checkpoint.processes import together
from rlhf_lightning.checkpoint.provenance import SCHEMA, sealed
from rlhf_lightning.config.compose import config_text
from rlhf_lightning.config.tree import walk
from rlhf_lightning.errors import CheckpointError, ConfigError, DiskError
from rlhf_lightning.rules.stages import names
from rlhf_lightning.stages.begun import Begun, may_go_on
from rlhf_lightning.stages.changes import changes, differences, first_config, is_length, listed, longer, plain
from rlhf_lightning.stages.parents import changed_parents
from rlhf_lightning.stages.places import CHECKPOINTS, CONFIG, RECORD, check_entries, check_places, outputs
from rlhf_lightning.stages.room import check_owner, clear_away, make_room, put_back, record_of, stages_in

log = logging.getLogger(__name__)


class RunFolder:
    """What an earlier run may have left in ``run_dir``, and what of it this run uses.

    ``resume=none`` starts from the beginning, ``resume=auto`` goes on where the folder stopped, and a path is a
    checkpoint for a single stage. ``overwrite=true`` replaces what an earlier run has finished.

    Args:
        config: the resolved config.

    Raises:
        ConfigError: another config than that of the run which is to go on; or a place is in the way of something else.
        CheckpointError: there is nothing to go on from, or something of the user's is where the run would write.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.path = Path(config["run_dir"])
        self.resume = str(config["resume"])
        self.stages = names(config["stages"])
        self._config = config
        self._changed: list[str] = []
        self._longer: dict[str, str] = {}  # stages that go on after their end, and how far
        self._writes = False  # whether config and record are those of this run
        self._outputs = [Path(output) for stage in self.stages for output in outputs(config.get(stage) or {})]
        if not rank_zero_only.rank:  # type: ignore[attr-defined]
            check_places(config)
            check_entries(self.path)
            put_back(self.path)
        self._begun = Begun(self.path, config)
        if self.resume == "auto":
            self._check_config()
        elif self.resume != "none":
            self._check_path(config)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder and of the places outside of it, once they are known to be free.

        Raises:
            DiskError: the run could not write its files, which is better known before the first step than after.
            CheckpointError: another process uses a place, or the folder is not one of a run.
            ConfigError: an earlier run has finished there.
        """
        with ExitStack() as locks:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DiskError(f"{self.path}: cannot write here ({error}); choose another run_dir") from error
            locks.enter_context(lock(self.path, inside=True))
            for place in (self.path, self.path / CHECKPOINTS, *(output.parent for output in self._outputs)):
                probe(place)
            for output in self._outputs:
                if not self._is_inside(output):
                    output.parent.mkdir(parents=True, exist_ok=True)
                    locks.enter_context(lock(output))
            check_owner(self.path)
            for folder in (self.path / CHECKPOINTS).glob("*"):
                sweep(folder)
            replaced = make_room(self._config)
            if self.resume == "none" or not record_of(self.path):
                self.begin()  # what is resumed keeps its record until it is seen that this run can go on from there
            state = "failed"
            try:
                yield
                state = "finished"
                self.begin()
            except SystemExit:
                state = "stopped"
                raise
            finally:
                if self._writes:
                    self._record(state)
            if replaced is not None:
                clear_away(replaced)

    def begin(self, stage: str | None = None) -> None:
        """Write the config and the record of this run; before, the folder is that of the run that is resumed.

        Args:
            stage: which begins, so that the record says what it reads.
        """
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return
        if not self._writes:
            write_file(self.path / CONFIG, config_text(self._config))
        if stage is not None:
            self._begun.add(stage)
        self._writes = True
        self._record("running")

    def _is_inside(self, output: str | Path) -> bool:
        return Path(output).absolute().is_relative_to(self.path.absolute())

    def _record(self, state: str) -> None:
        """Write `RECORD`: whose folder this is, how far the run is, and what each stage here ran with."""
        before, there = record_of(self.path), set[str]().union(*stages_in(self.path))
        inside = [output.absolute() for output in self._outputs if self._is_inside(output)]
        found = {output.relative_to(self.path.absolute()).as_posix() for output in inside}
        found |= {name for name in before.get("outputs", ()) if (self.path / name).is_dir()}
        stages = [stage for stage in before.get("stages", ()) if stage in there]
        stages += [stage for stage in self.stages if stage not in stages]
        record = {"schema": SCHEMA, "kind": "run", "stages": stages, "outputs": sorted(found), "state": state}
        write_file(self.path / RECORD, sealed(record | {"changed": self._changed, "ran": self._begun.record()}))

    def finished(self, stage: str, output: str | Path | None) -> dict[str, Any] | None:
        """The metrics of a stage that is done, once its folder is verified; None if it is to run, or has no folder.

        Raises:
            CheckpointError: a file of the folder is missing or was changed.
            ConfigError: a run in another folder made it, with other settings; or it was made from other rows or models.
        """
        if self.resume != "auto" or output is None or (read_provenance(output) or {}).get("stage") != stage:
            return None
        if stage in self._longer:
            return None
        record = verify_folder(output, expect_stage=stage)
        now = plain(self._config)[stage]
        judged = self._is_inside(output) and self._begun.knows(stage)  # when this run began
        found = [] if judged else differences(self._begun.as_here(record.get("config")), now, stage)
        changed = [line for line in found if not may_go_on(line, stage, now)]
        if changed and self._config.get("overwrite"):
            return None
        if changed:
            raise ConfigError(
                f"resume=auto: {output} was made with other settings ({listed(changed)}); use the old values, another "
                f"{stage}.output, or overwrite=true to replace it once the new one is complete"
            )
        self._check_parents(stage)
        log.info(f"stage {stage}: done before, {output} verified")
        return dict(record["metrics"])

    def _check_parents(self, stage: str) -> None:
        """Refuse what a stage has finished, if what it was made from is not any more what it was."""
        named = {entry.value for entry in walk(self._config[stage]) if isinstance(entry.value, str)}
        for output in outputs(self._config[stage]):
            changed = changed_parents((read_provenance(output) or {}).get("parents") or {}, named)
            if changed:
                raise ConfigError(
                    f"resume=auto: {output} is finished, but {', '.join(changed)} changed after {stage} had read it. "
                    "Choose one of\n"
                    f"  overwrite=true instead of resume=auto   to do {', '.join(self.stages)} again; what is "
                    "there stays until that is complete\n"
                    "  run_dir=ANOTHER                         to do it beside\n"
                    "  what was there before, put back         to go on"
                )

    def checkpoint(self, stage: str) -> Path | None:
        """Where training of a stage goes on; None starts it from scratch."""
        if self.resume == "none":
            return None
        if self.resume != "auto":
            return Path(self.resume)
        folder = self.path / CHECKPOINTS / stage
        if stage in self._longer and is_checkpoint(folder / END):
            log.info(f"stage {stage}: goes on from its end, {self._longer[stage]}")
            return folder / END
        found = newest_checkpoint(folder, rank_zero_warn, together())
        log.info(f"stage {stage}: " + (f"goes on from {found}" if found else "no checkpoint, starting new"))
        return found

    def resume_hint(self) -> str:
        """What to tell the user of a run that was stopped."""
        saved = [found[0] for stage in self.stages if (found := checkpoints(self.path / CHECKPOINTS / stage))]
        newest = max(saved, key=lambda path: path.stat().st_mtime, default=None)
        kept = "no step was saved" if newest is None else f"saved up to {newest}"
        done = [output.name for output in self._outputs if read_provenance(output)]
        if done and newest is None:
            kept = f"{kept}, but {', '.join(done)} {'is' if len(done) == 1 else 'are'} complete"
        sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        folder = f"hydra.sweep.dir={self.path.parent}" if sweep else f"run_dir={self.path}"
        return f"{kept}. Go on with the same command and resume=auto {folder}"

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
        path = Path(self.resume).absolute()
        saved = first_config(path / CONFIG, path.parents[2] / CONFIG)
        changed = [line for line in changes(saved, plain(config)) if line.startswith(f"{self.stages[0]}.")]
        if changed:
            rank_zero_warn(f"resume={self.resume}: that run was made with another config ({listed(changed)})")

    def _check_config(self) -> None:
        """Refuse to go on if a stage of this run has begun here with another config.

        What is read only by stages that have not begun, or that this run leaves out, may change. `evaluate` has nothing
        to go on with, and is done anew.
        """
        told, refused = set[str](), set[str]()
        for stage in self.stages:
            changed = self._begun.changes(stage)
            self._longer |= longer(changed)
            for line in changed:
                goes_on = may_go_on(line, stage, self._config[stage]) or (is_length(line) and stage in self._longer)
                (told if goes_on else refused).add(line)
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return  # the first rank looks for all of them
        for stage in self._longer:
            self._check_longer(stage)
        if refused:
            raise ConfigError(
                f"resume=auto: {self.path} was made with another config ({listed(sorted(refused))}); use the old "
                "values, or another run_dir. What is read only by stages that have not begun may change"
            )
        self._changed = sorted(told)
        if self._changed:
            log.warning(f"resumed with other settings: {listed(self._changed)}")

    def _check_longer(self, stage: str) -> None:
        """Refuse to make a stage longer that has finished where that is not possible any more."""
        if not any(read_provenance(place) for place in outputs(self._config[stage])):
            return  # it was stopped before
        if later := self._begun.readers(stage):
            raise ConfigError(
                f"resume=auto: {stage} ({self._longer[stage]}) cannot become longer, for {', '.join(later)} went on "
                "from what it made; use another run_dir"
            )
        folder = self.path / CHECKPOINTS / stage
        if not is_checkpoint(folder / END) and not checkpoints(folder):
            raise CheckpointError(
                f"resume=auto: {stage} ({self._longer[stage]}) cannot become longer, since no checkpoint of it is left "
                "(checkpoint.at_end keeps one, unless a callback ended the stage early); use another run_dir"
            )
