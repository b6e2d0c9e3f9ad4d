"""What there is to know about each stage, in one place; no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_PROMPTS = "add data.prompts=FILE with rows that have a prompt"
_COMPARISONS = "add data.comparisons=FILE with rows of prompt+chosen+rejected or prompt+completions+ranks"
Rows = Literal["demonstrations", "comparisons", "prompts", "feedback"]


@dataclass(frozen=True)
class Stage:
    """One stage of a run. A stage of your own needs ``name`` and ``run``, and ``check`` if it has something to check.

    Args:
        name: of its section in the config, its checkpoints, its history and its provenance.
        run: function from the `Run` to the metrics it ends with, or the import path of one.
        check: function of the `Run`, or the import path of one, called before any stage begins: tries the swappable
            formulas and raises ConfigError.
        rows: format of the rows in ``data.train``; None where there are none.
        needs: what to add to a command that gives it no rows.
        makes: what later stages take from it, and the key of the folder in its section. The last one is written last.
            Of a stage of your own the section says it, since that is read before anything of yours is imported.
        asks: groups of the config that give its scores.
        reads: further groups that it reads and not every stage does.
        trains: whether it has an optimizer.
        reference: whether it holds a second, frozen policy while it trains.
    """

    name: str
    run: str | Callable[[Any], dict[str, float]]
    check: str | Callable[[Any], None] | None = None
    rows: Rows | None = "prompts"
    needs: str = "it has no rows"
    makes: Mapping[str, str] = field(default_factory=lambda: {"policy": "output"})
    asks: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    trains: bool = True
    reference: bool = False


_SFT = "add data.demonstrations=FILE with rows of prompt+completion or messages"
_DPO = f"{_COMPARISONS}, for example a rankings.jsonl of the rank stage"
_KTO = "add data.feedback=FILE with rows of prompt+completion+label, or data.comparisons=FILE with comparisons"
_AT = "rlhf_lightning.stages"
_RECORDS = (
    Stage("sft", f"{_AT}.sft.run_sft", rows="demonstrations", needs=_SFT),
    Stage("rank", f"{_AT}.rank.run_rank", f"{_AT}.rank.check_rank", needs=f"{_PROMPTS}, or rank.human_ranks=FILE",
          makes={"comparisons": "output"}, asks=("judge",), reads=("rollout",), trains=False),
    Stage("reward", f"{_AT}.reward.run_reward", f"{_AT}.reward.check_reward", "comparisons", _COMPARISONS,
          makes={"reward_model": "output"}),
    Stage("ppo", f"{_AT}.ppo.run_ppo", f"{_AT}.ppo.check_ppo", "prompts", _PROMPTS,
          asks=("judge", "scorer"), reads=("rollout", "kl"), reference=True),
    Stage("dpo", f"{_AT}.dpo.run_dpo", f"{_AT}.dpo.check_dpo", "comparisons", _DPO, reference=True),
    Stage("kto", f"{_AT}.kto.run_kto", f"{_AT}.kto.check_kto", "feedback", _KTO, reference=True),
    Stage("best_of_n", f"{_AT}.best_of_n.run_best_of_n", needs=_PROMPTS,
          makes={"comparisons": "output", "policy": "sft.output"}, asks=("scorer",), reads=("rollout",)),
    Stage("evaluate", f"{_AT}.evaluate.run_evaluate", needs="add data.prompts_validation=FILE with held-out prompts",
          makes={}, asks=("judge",), reads=("rollout",), trains=False),
    Stage("score", f"{_AT}.score.run_score", rows=None, makes={"scores": "output"}, trains=False,
          needs="add score.rows=FILE with answers: rows of prompt+completion, messages or prompt+chosen+rejected"),
)  # fmt: skip
STAGES = {stage.name: stage for stage in _RECORDS}
RANKINGS = "rankings.jsonl"
CANDIDATES = "candidates.jsonl"
"""What the rank stage writes in the place of rankings where nobody judges."""
MAKES = ("policy", "reward_model", "comparisons", "nothing")
"""What the key ``makes`` in the section of a user-defined stage may be."""
KEPT = "demonstrations.jsonl"
SCORED = "scored.jsonl"
_FILES = {"comparisons": RANKINGS, "scores": SCORED}  # what is not a folder of its own


def stage_of(entry: str) -> Stage:
    """The record of an entry of ``stages``: one of `STAGES`, or a stage at an import path, named by its last part.

    >>> stage_of("my_project.stages.distil").name
    'distil'
    """
    return STAGES.get(entry) or Stage(entry.rpartition(".")[2], entry)


def names(entries: Iterable[str]) -> list[str]:
    """The names of the stages that entries of ``stages`` stand for, which are those of their sections."""
    return [stage_of(str(entry)).name for entry in entries]


def product(entry: str, kind: str, sections: Mapping[str, Any]) -> str | None:
    """Where a stage writes what it makes of a kind; None if it makes none or its section is not there.

    Args:
        entry: of ``stages``. What a user-defined stage writes to its ``output`` is a policy, or what ``makes`` in its
            section says.
        kind: ``policy``, ``reward_model`` or ``comparisons``.
        sections: the config.
    """
    stage = stage_of(entry)
    section = sections.get(stage.name)
    if not isinstance(section, Mapping):
        return None
    makes = stage.makes if entry in STAGES else {section.get("makes", "policy"): "output"}
    folder: Any = section if kind in makes else None
    for name in makes.get(kind, "").split("."):
        folder = folder.get(name) if isinstance(folder, Mapping) else None
    return file_of(kind, folder) if folder else None


def file_of(kind: str, folder: str) -> str:
    """What a later stage reads in the folder of one that made something of a kind."""
    return f"{folder}/{_FILES[kind]}" if kind in _FILES else str(folder)


def before(reader: str, entries: Sequence[str]) -> list[str]:
    """The entries of ``stages`` that run before the section ``reader``; all of them if it is of no stage."""
    sections = names(entries)
    return list(entries[: sections.index(reader)] if reader in sections else entries)
