"""Stage `rank`: a policy's answers to ranking rows, by a judge or by people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.data.readers.files import read_rows
from rlhf_lightning.data.rows.shape import AS_IT_IS
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.labelling.ranking import answers_table, candidate_rows, ranking_rows, write_rows
from rlhf_lightning.rules.stages import RANKINGS
from rlhf_lightning.stages.parents import Parents
from rlhf_lightning.stages.run import Run

CANDIDATES = "candidates.jsonl"


def run_rank(run: Run) -> dict[str, float]:
    """Write `rankings.jsonl`, or `candidates.jsonl` where there is no judge and people are to rank; returns counts."""
    section = run.section("rank")
    parents = run.parents({"policy": section["policy"], "human_ranks": section["human_ranks"]})
    if section["human_ranks"]:
        shape = run.build(section["data"].get("shape")) or AS_IT_IS
        found = validate_rows(read_rows(section["human_ranks"]), "comparisons", shape=shape)
        rows: list[Any] = [dict(located.row) for located in found]
        return _write(run, RANKINGS, rows, parents)
    scorers = [run.build(run.config["judge"])] if run.config["judge"] else []
    records = run.sample(section, section["policy"], scorers, section["samples_per_prompt"], title=run.title("rank"))
    if not scorers:
        return _write(run, CANDIDATES, candidate_rows(records), parents)
    run.loggers.table("rank", "samples", *answers_table(records, [scorers[0].name]))
    ranked = ranking_rows(records, scorers[0].name, noise=section["noise"], seed=section["seed"])
    return _write(run, RANKINGS, ranked, parents)


def _write(run: Run, name: str, rows: list[Any], parents: Parents) -> dict[str, float]:
    section = run.section("rank")
    counts = {"rank/prompts": float(len(rows)), "rank/answers": float(sum(len(row["completions"]) for row in rows))}
    if run.is_first:
        provenance = run.provenance("rank", counts, parents)
        write_folder(Path(section["output"]), lambda folder: write_rows(folder / name, rows), provenance)
    run.wait()
    return counts
