"""The report of a run: what changed, by how much, how sure that is, and what to look at.

Read from a run folder (every part is optional but ``evaluation.json``):

* ``history/<stage>.csv``: what the `History` callback wrote, for ``sft``, ``reward`` and ``ppo``.
* ``history/reward_most_wrong.jsonl``: held-out pairs that the reward model puts the wrong way round.
* ``config.yaml``: named.
* ``tensorboard/``: the report says how to open it.
* ``evaluation.json``, see `rlhf_lightning.evaluation.compare` for the numbers::

    {
      "judge": "gold",                       score that decides wins
      "proxy": "reward_model" or null,       score PPO optimised
      "policies": {                          oldest first
        "base": {"summary": {...}, "samples": [{"prompt", "completion", "scores", "length", "finished", "kl"}, ...]},
        "sft": ..., "ppo": ...
      },
      "win_rates": {"ppo vs sft": {"judge", "wins", "ties", "losses", "unpaired", "win_rate", "low", "high",
                                     "length_controlled": {"win_rate", "low", "high"} or null}, ...},
      "reliability": {"confidence": [...], "accuracy": [...], "count": [...]},     optional, of the reward model
      "doubts": ["the reward model is ...", ...]      optional, see `rlhf_lightning.evaluation.trust`
      "notes": ["...", ...]                  optional, sentences to read the numbers with
      "folders": {"ppo": SHA-256 of its provenance.json, or null, ...}      optional, for the model cards
      "exported": 51                         optional, the rollout whose policy is the newest one
      "run": {"date": ..., "seed": ...}      optional, when and with what it was made
      "people": {"votes", "pairs", "ratings", ...}      where people voted, see `rlhf_lightning.people.votes.Standings`
      "reward_model": {"val/accuracy": ...}  optional, its metrics on held-out pairs; with "reward_model_conclusion"
    }

Written: ``report.md``, ``report.html`` and ``figures/*.png``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.places import write_file
from rlhf_lightning.console.display import markdown
from rlhf_lightning.errors import DataError
from rlhf_lightning.evaluation.conclusion import conclusion, repetitions, scores_of_answers, winner
from rlhf_lightning.evaluation.figures import save_figures
from rlhf_lightning.evaluation.history import HistoryRow, read_histories, series
from rlhf_lightning.evaluation.page import page
from rlhf_lightning.evaluation.table import before_and_after
from rlhf_lightning.evaluation.votes import people_section

MOST_WRONG = "reward_most_wrong.jsonl"
CAPTIONS = {
    "score_and_judge": "What is learned from and what nobody learned from. The second falling while the first rises is "
    "reward hacking. The dotted line is the rollout whose policy was exported.",
    "reward_kl_frontier": "What each nat of KL bought. A proxy that climbs while the judge falls is over-optimised.",
    "kl_control": "KL to the reference against its target, and the coefficient that steers it.",
    "response_shape": "Length of the responses and the share that ended by themselves.",
    "update_health": "How hard each PPO update pulled: ratio near 1, some clipping, entropy that falls slowly.",
    "critic": "Does the critic predict the returns? Near 0 or below it only adds noise.",
    "score_distributions": "Is it all answers that improved, or a few?",
    "length_against_score": "Points that climb to the right: the score can be bought with words.",
    "reward_model_accuracy": "Reward model: pairs ranked right, and by what margin.",
    "reward_model_reliability": "Reward model: is it right as often as it claims?",
    "sft_loss": "Supervised fine-tuning: loss on demonstrations.",
}


def read_evaluation(run_dir: str | Path) -> dict[str, Any]:
    """Content of ``evaluation.json``.

    Raises:
        DataError: the file is missing, is not JSON, or lacks a key the report needs; names it.
    """
    path = Path(run_dir) / "evaluation.json"
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run the evaluation stage before the report") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}); run the evaluation stage again") from None
    missing = [key for key in ("judge", "policies", "win_rates") if key not in evaluation]
    if missing or not evaluation["policies"]:
        raise DataError(
            f"{path}: {missing[0] if missing else 'policies'}: missing or empty; run the evaluation stage again"
        )
    return evaluation


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.md``, its figures, and ``report.html`` with the figures inside; returns the path of the first.

    Raises:
        DataError: as `read_evaluation`, or a history file is damaged.
    """
    run_dir = Path(run_dir)
    evaluation = read_evaluation(run_dir)
    histories = read_histories(run_dir)
    bins = evaluation.get("reliability") or _logged_bins(histories.get("reward", []))
    figures = save_figures(histories, run_dir / "figures", evaluation, bins)
    sections = [
        f"# Report: {' → '.join(map(markdown, evaluation['policies']))}",
        f"**{markdown(conclusion(evaluation))}**",
        *(f"**Warning: {markdown(said)}.**" for said in (*repetitions(evaluation), *evaluation.get("doubts", ()))),
        *(markdown(note) for note in evaluation.get("notes", ())),
        "## Before and after\n\n" + before_and_after(evaluation),
        people_section(evaluation),
        "## Samples\n\n" + _samples(evaluation),
    ]
    if figures:
        drawn = [f"![{path.stem}](figures/{path.name})\n\n{CAPTIONS[path.stem]}" for path in figures]
        sections.append("## Figures\n\n" + "\n\n".join(drawn))
    sections += [
        _reward_model(evaluation),
        _most_wrong(run_dir),
        _training(histories),
        _run(evaluation, histories, run_dir),
    ]
    text = "\n\n".join(section for section in [*sections, _how_to_look(run_dir)] if section) + "\n"
    write_file(run_dir / "report.html", page(text, run_dir))
    return write_file(run_dir / "report.md", text)


def _samples(evaluation: Mapping[str, Any]) -> str:
    """One table for each prompt of the newest policy, one row for each policy."""
    policies, scores = evaluation["policies"], scores_of_answers(evaluation)
    blocks = []
    for sample in policies[winner(evaluation)]["samples"]:
        lines = [
            f"**Prompt** {_inline(_prompt_text(sample['prompt']), 300)}",
            "",
            f"| {' | '.join(['policy', 'response', *map(markdown, scores)])} |",
            f"| {' | '.join(['---', '---', *('---:' for _ in scores)])} |",
        ]
        for name, policy in policies.items():
            match = next((other for other in policy["samples"] if other["prompt"] == sample["prompt"]), None)
            if match is not None:
                numbers = [f"{match['scores'][score]:.3f}" for score in scores]
                ending = "" if match["finished"] else " *(truncated)*"
                answer = f"{_inline(match['completion'], 500)}{ending}"
                lines.append(f"| {' | '.join([markdown(name), answer, *numbers])} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) or "No samples were kept."


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return " ".join(f"[{message['role']}] {message['content']}" for message in prompt)


def _inline(text: str, longest: int) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return markdown(text if len(text) <= longest else text[:longest] + "...")


def _training(histories: Mapping[str, list[HistoryRow]]) -> str:
    """How each stage ended."""
    shown = {
        "sft": (
            ("steps", "step", ".0f"),
            ("validation loss", "val/loss", ".3f"),
            ("perplexity", "val/perplexity", ".2f"),
        ),
        "reward": (("steps", "step", ".0f"), ("validation accuracy", "val/accuracy", ".3f"), ("ECE", "val/ece", ".3f")),
        "ppo": (
            ("rollouts", "step", ".0f"),
            ("score", "objective/scores", ".3f"),
            ("KL", "objective/kl", "z.2f"),
            ("KL target", "objective/kl_target", ".2f"),
            ("beta", "objective/kl_coef", ".3g"),
        ),
    }
    lines = []
    for stage, tags in shown.items():
        rows = histories.get(stage, [])
        found = [(word, *series(rows, tag), form) for word, tag, form in tags]
        parts = [
            f"{word} {f'{values[0]:{form}} → ' if steps[0] == 0 else ''}{values[-1]:{form}}"
            for word, steps, values, form in found
            if values
        ]
        if rows:
            parts.append(f"{float(rows[-1]['seconds']):.0f} s")
            lines.append(f"* **{stage}**: {', '.join(parts)}")
    return "## Training, at its end\n\n" + "\n".join(lines) if lines else ""


def _run(evaluation: Mapping[str, Any], histories: Mapping[str, list[HistoryRow]], run_dir: Path) -> str:
    """When, where and with what the run was made, and its configuration."""
    facts = dict(evaluation.get("run") or {})
    if histories:
        spent = {stage: float(rows[-1]["seconds"]) for stage, rows in histories.items() if rows}
        facts["training"] = f"{sum(spent.values()):.0f} s"
    lines = [f"* **{markdown(name)}**: {markdown(str(value))}" for name, value in facts.items()]
    if (run_dir / "config.yaml").exists():
        lines.append("* **configuration**: [config.yaml](config.yaml)")
    return "## Run\n\n" + "\n".join(lines) if lines else ""


def _reward_model(evaluation: Mapping[str, Any]) -> str:
    """What held-out pairs say of the reward model."""
    sentence, metrics = evaluation.get("reward_model_conclusion"), evaluation.get("reward_model") or {}
    shown = (
        ("accuracy", "val/accuracy"),
        ("agreement of people with each other", "people_agree"),
        ("where the better answer is the longer one", "val/accuracy_longer_is_better"),
        ("where the better answer is the shorter one", "val/accuracy_longer_is_worse"),
        ("correlation of score and length", "val/length_spearman_in_prompt"),
        ("correlation of label and length", "val/length_spearman_of_labels"),
        ("calibration error", "val/ece"),
        ("the same after a temperature", "val/ece_after_temperature"),
    )
    rows = [f"| {name} | {metrics[tag]:z.3f} |" for name, tag in shown if tag in metrics]
    if not rows:
        return ""
    table = "\n".join(["| on held-out pairs | |", "| --- | ---: |", *rows])
    return "## Reward model\n\n" + (f"{markdown(sentence)}\n\n" if sentence else "") + table


def _most_wrong(run_dir: Path, count: int = 5) -> str:
    """A row for each pair that the reward model gets most wrong."""
    file = run_dir / "history" / MOST_WRONG
    try:
        lines = file.read_text(encoding="utf-8").splitlines()[:count] if file.is_file() else []
        cells = [_wrong_pair(json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: is damaged ({error!r}); delete it, or run the reward stage again") from None
    if not cells:
        return ""
    table = [["prompt", "labelled better", "labelled worse", "score", "score"], ["---"] * 3 + ["---:"] * 2, *cells]
    return (
        "## Where the reward model is most wrong\n\nIs the model wrong, or the label? "
        f"More of these held-out pairs are in [{MOST_WRONG}](history/{MOST_WRONG}).\n\n"
        + "\n".join(f"| {' | '.join(row)} |" for row in table)
    )


def _wrong_pair(row: Mapping[str, Any]) -> list[str]:
    texts = [
        _inline(str(row[name]), longest) for name, longest in (("prompt", 200), ("chosen", 300), ("rejected", 300))
    ]
    return [*texts, f"{row['score_chosen']:z.2f}", f"{row['score_rejected']:z.2f}"]


def _how_to_look(run_dir: Path) -> str:
    if not (run_dir / "tensorboard").is_dir():
        return ""
    return (
        "## Look closer\n\n```bash\ntensorboard --logdir tensorboard   # from this folder\n```\n\n"
        "*Custom Scalars* holds the charts that belong together, *Text* samples from PPO, *Histograms* "
        "scores, lengths, advantages and ratios. `history/*.csv` holds the same numbers for a spreadsheet."
    )


def _logged_bins(rows: list[HistoryRow]) -> dict[str, list[float]] | None:
    """Bins the reward module logged as ``val/reliability/<bin>/confidence``, ``accuracy`` and ``count``, if it did."""
    fields = ("confidence", "accuracy", "count")
    bins: dict[str, list[float]] = {field: [] for field in fields}
    newest = next((row for row in reversed(rows) if "val/reliability/0/count" in row), {})
    number = 0
    while f"val/reliability/{number}/count" in newest:
        for field in fields:
            bins[field].append(float(newest.get(f"val/reliability/{number}/{field}", 0.0)))
        number += 1
    return bins if number else None
