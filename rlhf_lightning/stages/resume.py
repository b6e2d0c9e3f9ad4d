"""Going on where a run stopped: which stages are done, which checkpoint is next, and whether the config is the same."""

from __future__ import annotations

import json
import logging
import re
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
from rlhf_lightning.config.compose import config_text, redact
from rlhf_lightning.config.tree import walk
from rlhf_lightning.errors import CheckpointError, ConfigError, DiskError
from rlhf_lightning.rules.stages import STAGES, names
from rlhf_lightning.stages.changes import (
    changes,
    differences,
    first_config,
    is_length,
    listed,
    longer,
    part,
    saved_config,
)
from rlhf_lightning.stages.parents import changed_parents, row_digests
from rlhf_lightning.stages.places import CHECKPOINTS, CONFIG, HISTORY, RECORD, check_entries, check_places, outputs
from rlhf_lightning.stages.room import (
    EVALUATED,
    check_owner,
    clear_away,
    in_the_way,
    make_room,
    put_back,
    record_of,
)

log = logging.getLogger(__name__)
UNSEEN = {"resume", "overwrite", "run_dir", "output_root", "logger", "objective", "trusted_targets"}
UNSEEN |= {"sampling", "exact_shortcuts"}  # each section has it all
FREE = UNSEEN | {"stages", "threads", "trainer", "callbacks", "checkpoint"}
"""Keys with which a run may go on that was made with others; those that are not in `UNSEEN` are told and recorded."""
DECIDES_BITS = ("trainer.precision:",)  # except these
HARMLESS = re.compile(
    r"rollout\.(engine\.)?(urls|start|program|ram_disk|concurrency|timeout|retries|deadline): "
    r"|(\w+\.)+micro_batch_size: "
)
"""More that may change: where servers are and how long they are waited for, since their answers depend on seeds alone,
and how many rows are computed at once, since the gradients stay the same up to rounding."""


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
        self._rows: dict[str, str] = {}  # checksums of the files that the run reads
        self._begun = False
        self._outputs = [Path(output) for stage in self.stages for output in outputs(config.get(stage) or {})]
        if not rank_zero_only.rank:  # type: ignore[attr-defined]
            check_places(config)
            check_entries(self.path)
            put_back(self.path)
        if self.resume == "auto":
            self._check_config(config)
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
                if self._begun:
                    self._record(state)
            if replaced is not None:
                clear_away(replaced)

    def begin(self) -> None:
        """Write the config and the record of this run; before, the folder is that of the run that is resumed."""
        if not self._begun and not rank_zero_only.rank:  # type: ignore[attr-defined]
            self._begun, self._rows = True, row_digests(self._config)
            write_file(self.path / CONFIG, config_text(self._config))
            self._record("running")

    def _is_inside(self, output: str | Path) -> bool:
        return Path(output).absolute().is_relative_to(self.path.absolute())

    def _record(self, state: str) -> None:
        """Write `RECORD`: whose folder this is, and how far the run is."""
        inside = [output.absolute() for output in self._outputs if self._is_inside(output)]
        names = {output.relative_to(self.path.absolute()).as_posix() for output in inside}
        names |= {name for name in record_of(self.path).get("outputs", ()) if (self.path / name).is_dir()}
        record = {"schema": SCHEMA, "kind": "run", "stages": self.stages, "outputs": sorted(names), "state": state}
        write_file(self.path / RECORD, sealed(record | {"changed": self._changed, "rows": self._rows}))

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
        now = json.loads(json.dumps(redact(dict(self._config))[stage], default=str))
        changed = [] if self._is_inside(output) else list(differences(record.get("config"), now, stage))
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
        text = first_config(path / CONFIG, path.parents[2] / CONFIG)
        changed = [line for line in changes(text, config) if line.startswith(f"{self.stages[0]}.")]
        if changed:
            rank_zero_warn(f"resume={self.resume}: that run was made with another config ({listed(changed)})")

    def _check_config(self, config: Mapping[str, Any]) -> None:
        if not in_the_way(self.path, self.stages):
            return  # nothing was made with the config before
        changed = changes(saved_config(self.path), config)
        self._longer = longer(changed)
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return  # the first rank looks for all of them, and writes the file again
        for stage in self._longer:
            self._check_longer(stage)
        moved = dict(row_digests(config).items() & (record_of(self.path).get("rows") or {}).items())  # the same bytes
        changed = [line for line in changed if line.partition(": ")[0] not in moved]
        kept = [line for line in changed if not self._may_change(line.partition(": ")[0])]
        kept = [line for line in kept if not (is_length(line) and part(line) in self._longer)]
        refused = [line for line in kept if not _is_free(line)]
        if refused:
            raise ConfigError(
                f"resume=auto: {self.path} was made with another config ({listed(refused)}); use the old values, or "
                "another run_dir. Sections of stages that have not begun may change"
            )
        self._changed = [line for line in changed if part(line) not in UNSEEN]
        if self._changed:
            log.warning(f"resumed with other settings: {listed(self._changed)}")

    def _check_longer(self, stage: str) -> None:
        """Refuse to make a stage longer that has finished where that is not possible any more."""
        places = outputs(self._config.get(stage) or {})
        if not any(read_provenance(place) for place in places):
            return  # it was stopped before
        made = names(record_of(self.path).get("stages") or self.stages)
        later = [s for s in made[made.index(stage) + 1 :] if s != "evaluate" and not self._may_change(f"{s}.any")]
        if later:
            raise ConfigError(
                f"resume=auto: {stage} ({self._longer[stage]}) cannot become longer, for {', '.join(later)} went on "
                "from what it made; use another run_dir"
            )
        if not is_checkpoint(self.path / CHECKPOINTS / stage / END) and not checkpoints(
            self.path / CHECKPOINTS / stage
        ):
            raise CheckpointError(
                f"resume=auto: {stage} ({self._longer[stage]}) cannot become longer, since no checkpoint of it is left "
                "(checkpoint.at_end keeps one, unless a callback ended the stage early); use another run_dir"
            )

    def _may_change(self, key: str) -> bool:
        """Whether a key belongs to a stage that has left nothing: no row, no checkpoint, no output."""
        stage, _, rest = key.partition(".")
        section = self._config.get(stage)
        if stage not in (*STAGES, *self.stages) or not isinstance(section, Mapping) or rest.endswith("output"):
            return False
        places = [Path(output) for output in outputs(section["sft"] if rest.startswith("sft.") else section)]
        places += [self.path / name for name in EVALUATED] if stage == "evaluate" else []
        left = (self.path / CHECKPOINTS / stage, self.path / HISTORY / f"{stage}.csv")
        return bool(places) and not any(place.exists() for place in (*places, *left))


def _is_free(line: str) -> bool:
    return (part(line) in FREE and not line.startswith(DECIDES_BITS)) or bool(HARMLESS.match(line))
