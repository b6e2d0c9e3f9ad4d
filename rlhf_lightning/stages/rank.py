"""Stage `rank`: a policy's answers to ranking rows, by a judge or by people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.data.readers.files import LocatedRow, read_rows
from rlhf_lightning.data.rows.shape import AS_IT_IS
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.labelling.ranking import answers_table, candidate_rows, ranking_rows, write_rows
from rlhf_lightning.people.agreement import text_of
from rlhf_lightning.people.exports import is_export, read_export
from rlhf_lightning.people.merging import METHODS
from rlhf_lightning.people.training import PEOPLE, FromPeople, from_people, is_record, read_record
from rlhf_lightning.rules.stages import CANDIDATES, RANKINGS
from rlhf_lightning.scoring.llm_judge import LLMJudge
from rlhf_lightning.stages.parents import Parents
from rlhf_lightning.stages.run import Run

log = logging.getLogger(__name__)


def run_rank(run: Run) -> dict[str, float]:
    """Write `rankings.jsonl`, or `candidates.jsonl` where there is no judge and people are to rank; returns counts.

    Raises:
        DataError: ``human_ranks`` cannot be read, has rows that cannot be learned from, or no ranking.
    """
    section = run.section("rank")
    prompts = None if section["human_ranks"] else section["data"]["train"]
    parents = run.parents({"policy": section["policy"], "human_ranks": section["human_ranks"], "data": prompts})
    if section["human_ranks"]:
        return _of_people(run, section, parents)
    scorers = [run.build(run.config["judge"])] if run.config["judge"] else []
    records = run.sample(section, section["policy"], scorers, section["samples_per_prompt"], title=run.title("rank"))
    if not scorers:
        return _write(run, CANDIDATES, candidate_rows(records), parents)
    run.loggers.table("rank", "samples", *answers_table(records, [scorers[0].name]))
    ranked = ranking_rows(records, scorers[0].name, noise=section["noise"], seed=section["seed"])
    if isinstance(scorers[0], LLMJudge):
        ranked = [_marked(row, scorers[0], noisy=bool(section["noise"])) for row in ranked]
        log.info(scorers[0].sentence())
    return _write(run, RANKINGS, ranked, parents, judge=getattr(scorers[0], "report", dict)())


def check_rank(run: Run) -> None:
    """Look at how people are to be merged."""
    if (merge := run.section("rank")["merge"]) not in METHODS:
        raise ConfigError(f"rank.merge={merge}: must be one of {', '.join(METHODS)}")


def _of_people(run: Run, section: Mapping[str, Any], parents: Parents) -> dict[str, float]:
    """Rows that people ranked: of a record of judgements or its export, or as they stand in a file of rankings."""
    file = section["human_ranks"]
    rows = [] if is_record(file) else read_rows(file)
    if rows and not is_export(rows[0].row):
        shape = run.build(section["data"].get("shape")) or AS_IT_IS
        found = validate_rows(rows, "comparisons", shape=shape)
        return _write(run, RANKINGS, [dict(located.row) for located in found], parents)
    people = from_people(*read_export(file), section["merge"]) if rows else read_record(file, section["merge"])
    if not people.merged.rows:
        raise DataError(f"{file}: nobody has ranked an item yet; go on with `rlhf-lightning label`")
    validate_rows([LocatedRow(row, file, 0) for row in people.merged.rows], "comparisons")
    if run.is_first:
        log.info(people.sentence())
    return _write(run, RANKINGS, people.merged.rows, parents, people)


def _marked(row: dict[str, Any], judge: LLMJudge, noisy: bool) -> dict[str, Any]:
    """The row with the share of its pairs of which the judge is not sure, and its scores where they are the ranks."""
    answers = [text_of(answer) for answer in row["completions"]]
    scores = {} if noisy else {"scores": judge.shares(row["prompt"], answers)}
    return {**row, **scores, "unsure": judge.unsure(row["prompt"], answers)}


def _write(
    run: Run,
    name: str,
    rows: list[Any],
    parents: Parents,
    people: FromPeople | None = None,
    judge: Mapping[str, float] | None = None,
) -> dict[str, float]:
    section = run.section("rank")
    counts = {"rank/prompts": float(len(rows)), "rank/answers": float(sum(len(row["completions"]) for row in rows))}
    if people is not None:
        measured = {"people_agree": people.agreement.ceiling.mean, "alpha": people.agreement.alpha}
        counts |= {f"rank/{name}": value for name, value in measured.items() if value is not None}
    counts |= {f"rank/judge_{name}": value for name, value in (judge or {}).items() if value == value}
    if run.is_first:
        provenance = run.provenance("rank", counts, parents)
        provenance |= {PEOPLE: people.summary()} if people is not None else {}
        write_folder(Path(section["output"]), lambda folder: write_rows(folder / name, rows), provenance)
    run.wait()
    return counts
