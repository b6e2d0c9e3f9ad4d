"""What the stages that have begun in a run's folder ran with, and what of that a new config has otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.config.tree import walk
from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.rules.stages import STAGES
from rlhf_lightning.stages.changes import changes, first_config, part, plain, relocated
from rlhf_lightning.stages.parents import row_digests
from rlhf_lightning.stages.places import CONFIG, RECORD, outputs
from rlhf_lightning.stages.room import begun_in, record_of, stages_in

FREE = ("threads", "trainer", "callbacks", "checkpoint")
"""Keys with which a stage may go on that began with others; they are told and recorded."""
DECIDES_BITS = ("trainer.precision:",)  # except these
HARMLESS = re.compile(
    r"rollout\.(engine\.)?(urls|start|program|ram_disk|concurrency|timeout|retries|deadline): "
    r"|(\w+\.)+micro_batch_size: "
)
"""More that may change: where servers are and how long they are waited for, since their answers depend on seeds alone,
and how many rows are computed at once, since the gradients stay the same up to rounding."""
_SHARED = ("seed", "matmul_precision", "model", "task", *FREE)
_GROUPS = ("judge", "scorer", "rollout", "kl", "sampling")


class Begun:
    """The stages that have begun in a run's folder, and what each of them has read of the config it ran with.

    `RECORD` keeps that by stage, whatever the commands before and after it named. A stage of the new config that has
    not begun may read anything, and what it does not read is no business of one that has.

    Args:
        folder: of the run.
        config: the resolved config of this command.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._now = folder, plain(config)
        record = record_of(folder)
        self._was = str(first_config(folder / CONFIG).get("run_dir", folder))
        self._ran: dict[str, Any] = dict(record["ran"]) if "ran" in record else _of_one_config(folder, record)

    def add(self, stage: str) -> None:
        """A stage begins, with the config of this command."""
        read = read_by(stage, self._now)
        self._ran[stage] = {"config": read, "rows": row_digests(read)}

    def record(self) -> dict[str, Any]:
        """By stage what it has read, for `RECORD`."""
        return dict(self._ran)

    def knows(self, stage: str) -> bool:
        """Whether it is recorded what a stage ran with."""
        return stage in self._ran

    def as_here(self, section: Any) -> Any:
        """A section as if the folder had been where it is now when the last command wrote its config."""
        return relocated(section, self._was, self._now["run_dir"])

    def changes(self, stage: str) -> list[str]:
        """What this config has otherwise than the one with which a stage has begun here; nothing if none has.

        Files of rows that were moved are the same files.

        Raises:
            CheckpointError: it has rows or checkpoints here, and nothing says what it ran with.
        """
        if stage not in self._ran:
            if stage in stages_in(self._folder)[1]:
                raise CheckpointError(
                    f"{self._folder / RECORD}: does not say what {stage} ran with, which has begun there, so that "
                    "nobody can tell whether it would go on with the same; restore the file or choose another run_dir"
                )
            return []
        before, now, section = self._ran[stage], read_by(stage, self._now), self._read(stage)[stage]
        if not self._has_left(stage, section):
            return []
        if found := changes(before["config"], now):
            moved = dict(row_digests(now).items() & before["rows"].items())  # the same bytes; large files take a while
            found = [line for line in found if line.partition(": ")[0] not in moved]
        trained = section.get("sft") or {}
        if outputs(trained) and not self._has_left(stage, trained):  # `best_of_n` has only kept answers yet
            found = [line for line in found if not line.startswith(f"{stage}.sft.")]
        return found

    def readers(self, stage: str) -> list[str]:
        """The stages that have begun with something that a stage has made, besides `evaluate`, which is done anew."""
        made = [Path(output).absolute() for output in outputs(self._now[stage])]
        others = {other: self._read(other) for other in self._ran if other not in (stage, "evaluate")}
        return [
            other
            for other, read in others.items()
            if self._has_left(other, read[other])
            and any(Path(text).absolute().is_relative_to(place) for text in _texts(read) for place in made)
        ]

    def _read(self, stage: str) -> dict[str, Any]:
        """What a stage has read, as if the folder had been where it is now."""
        read: dict[str, Any] = self._ran[stage]["config"]
        return relocated(read, read["run_dir"], self._now["run_dir"])

    def _has_left(self, stage: str, section: Mapping[str, Any]) -> bool:
        """Whether a stage has left something to go on with or to skip: a row, a checkpoint or an output."""
        return stage in begun_in(self._folder) or any(Path(output).exists() for output in outputs(section))


def _of_one_config(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """What stages that were stopped ran with, by the record of version 0.1.0, where all had the config of the run."""
    saved, rows = plain(first_config(folder / CONFIG)), record.get("rows") or {}
    stopped = [stage for stage in stages_in(folder)[1] if isinstance(saved.get(stage), dict)]
    return {stage: {"config": read_by(stage, saved), "rows": rows} for stage in stopped}


def read_by(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that a stage reads, and the folder of the run, by which paths in it are known again.

    Of the shipped stages it is known which groups they read, and that their sections name the model; a user-defined
    stage may read all of them. Where people have ranked, `rank` samples and asks nothing.
    """
    known = STAGES.get(stage)
    groups = _GROUPS if known is None else (*known.asks, *known.reads)
    read: dict[str, Any] = {key: config.get(key) for key in ("run_dir", *_SHARED, *groups, stage)}
    if known is not None:
        read["model"] = {key: value for key, value in (read["model"] or {}).items() if key != "path"}
    if stage == "rank" and (section := read[stage])["human_ranks"]:
        read[stage] = {key: section[key] for key in ("output", "human_ranks", "merge")}
        read[stage]["data"] = {"shape": section["data"].get("shape")}
        read = {key: value for key, value in read.items() if key not in groups}
    return read


def may_go_on(line: str, stage: str, section: Mapping[str, Any]) -> bool:
    """Whether a stage that has begun may go on with a difference.

    Args:
        line: of `Begun.changes`.
        stage: its name.
        section: its part of the config.
    """
    key = part(line)
    if key == "judge" and stage == "ppo":  # which logs the scores; they may choose the policy that is kept
        return not str((section["best_policy"] or {}).get("monitor")).startswith(("judge", "monitor"))
    return (key in FREE and not line.startswith(DECIDES_BITS)) or bool(HARMLESS.match(line))


def _texts(tree: Any) -> list[str]:
    return [entry.value for entry in walk(tree) if isinstance(entry.value, str)]
