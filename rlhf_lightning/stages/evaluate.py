"""Stage `evaluate`: policies side by side on held-out prompts."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning import __version__
from rlhf_lightning.checkpoint import read_provenance
from rlhf_lightning.checkpoint.places import write_file
from rlhf_lightning.checkpoint.provenance import CARD, own_card
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.evaluation import compare, print_table, write_report
from rlhf_lightning.evaluation.card import identity, write_card
from rlhf_lightning.evaluation.conclusion import winner
from rlhf_lightning.evaluation.trust import conclusion
from rlhf_lightning.evaluation.votes import PeopleVotes
from rlhf_lightning.labelling.ranking import answers_table
from rlhf_lightning.models import Pretrained
from rlhf_lightning.rules.combinations import NO_JUDGE, votes_judge
from rlhf_lightning.scoring import RewardModelScorer, Scorer
from rlhf_lightning.scoring.reward_model import stored_doubts
from rlhf_lightning.stages.run import Run

PROXY = "reward_model"  # how the reward model is called among the scores


def run_evaluate(run: Run) -> dict[str, float]:
    """Sample from every policy, compare, write `evaluation.json` and `report.md`; returns the headline numbers."""
    section = run.section("evaluate")
    votes, scorers = _votes(run), _scorers(run)
    records = {name: _sample(run, name, folder, scorers) for name, folder in section["policies"].items()}
    if not run.is_first:
        return {}
    proxy = PROXY if section["proxy"] else None
    if votes is not None:
        comparison = votes.compare(records, proxy)
    else:
        comparison = compare(records, judge=scorers[0].name, proxy=proxy)
    evaluation = comparison | _of_reward_model(section["proxy"]) | {"run": _facts(run)}
    newest = read_provenance(list(section["policies"].values())[-1]) or {}
    if "best/rollout" in newest.get("metrics", {}):
        evaluation["exported"] = int(newest["metrics"]["best/rollout"])
    if note := run.sampling_note(section["policies"].values()):
        evaluation["notes"] = [note]
    folders = section["policies"]
    evaluation["folders"] = {name: identity(folder) for name, folder in folders.items()}
    write_file(run.folder / "evaluation.json", json.dumps(evaluation, indent=2, default=str) + "\n")
    write_report(run.folder)
    for folder in map(Path, [*folders.values(), *([section["proxy"]] if section["proxy"] else [])]):
        if folder.absolute().is_relative_to(run.folder.absolute()) and CARD in own_card(folder):
            write_card(folder)
    print_table(evaluation)
    names = [scorer.name for scorer in scorers]
    for policy, answers in records.items():
        run.loggers.table("evaluate", f"samples/{policy}", *answers_table(answers, names))
    return _headline(evaluation)


def _votes(run: Run) -> PeopleVotes | None:
    judge = run.config["judge"]
    return run.build(judge).about(run.section("evaluate")["policies"]) if votes_judge(judge) else None


def _sample(run: Run, name: str, folder: str, scorers: list[Scorer]) -> list[dict[str, Any]]:
    section = run.section("evaluate")
    reference = None if name == section["baseline"] else section["policies"][section["baseline"]]
    return run.sample(section, folder, scorers, section["samples_per_prompt"], reference, run.title("evaluate", name))


def _scorers(run: Run) -> list[Scorer]:
    """The judge first, unless it is people or the proxy itself, then the proxy, then the others."""
    section, judge = run.section("evaluate"), run.config["judge"]
    asked = judge and not votes_judge(judge) and not _is_proxy(judge, section["proxy"])
    scorers: list[Scorer] = [run.build(judge)] if asked else []
    if section["proxy"]:
        scorers.append(RewardModelScorer(Pretrained(section["proxy"], dtype=run.config["model"]["dtype"]), name=PROXY))
    scorers += [run.build(node) for node in section["judges"]]
    if not scorers and not judge:
        raise ConfigError(NO_JUDGE)
    if alone := [scorer.name for scorer in scorers if getattr(scorer, "relative", False)]:
        raise ConfigError(
            f"{alone[0]}: compares a policy's answers to a prompt with each other, which does not tell policies apart; "
            "leave evaluate out of stages, or name another judge"
        )
    return scorers


def _is_proxy(judge: Mapping[str, Any], proxy: str | None) -> bool:
    """Whether the judge is the reward model that the policy learned from."""
    model = judge.get("model")
    path = model.get("path") if isinstance(model, Mapping) else None
    return None not in (path, proxy) and Path(str(path)).absolute() == Path(str(proxy)).absolute()


def _of_reward_model(proxy: str | None) -> dict[str, Any]:
    """Calibration bins of the reward model and reasons to doubt it, where its folder tells them."""
    if not proxy:
        return {}
    metrics = (read_provenance(proxy) or {}).get("metrics", {})
    found = {"reliability": metrics.get("reliability"), "doubts": stored_doubts(proxy)}
    found |= {"reward_model": {name: value for name, value in metrics.items() if name.startswith(("val/", "people_"))}}
    return {name: value for name, value in (found | {"reward_model_conclusion": conclusion(metrics)}).items() if value}


def _facts(run: Run) -> dict[str, Any]:
    """When and with what a run was made."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"
    packages = ("torch", "lightning", "transformers")
    versions = [f"rlhf_lightning {__version__}", *(f"{name} {version(name)}" for name in packages)]
    return {
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "seed": run.seed,
        "hardware": f"{device}, {run.config['trainer'].get('devices', 'auto')} device(s)",
        "versions": ", ".join(versions),
    }


def _headline(evaluation: dict[str, Any]) -> dict[str, float]:
    judge = evaluation["judge"]
    numbers = {
        f"evaluate/{name}/{judge}": p["summary"]["scores"][judge]["mean"] for name, p in evaluation["policies"].items()
    }
    wins = {f"evaluate/{pair}/win_rate": result["win_rate"] for pair, result in evaluation["win_rates"].items()}
    return {f"evaluate/{judge}": numbers[f"evaluate/{winner(evaluation)}/{judge}"]} | numbers | wins
