"""Random trees of files, links and folders of ours, and a stage of a few milliseconds that writes among them."""

import copy
import json
import os
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.config.compose import compose
from rlhf_lightning.tasks.folders import prepare_folder

NAMES = (
    "models", "base", "data", "runs", "run", "rankings", "sft", "history", "checkpoints", "tensorboard",
    "figures", "notes.txt", "config.yaml", "run.json", "train.log", ".rlhf_lightning.lock", "report.md",
    "evaluation.json", "provenance.json", "rankings.jsonl", ".tmp-rankings-abc", ".tmp-rankings-old",
    ".rankings.lock", ".lock", ".rlhf_lightning", "step-000001", ".tmp-config.yaml-x", "task", ".task.lock",
    "rank.csv",
)  # fmt: skip
ROW = {"prompt": "the food", "completions": [" was good", " was bad"], "ranks": [0, 1]}


def letters(prompts, completions, **columns):
    """A judge that likes long answers."""
    return [float(len(completion)) for completion in completions]


def task(root):
    """A task of one file."""
    return prepare_folder(root, "test-task", {}, lambda folder: (folder / "rows.jsonl").write_text("{}\n") and {})


@cache
def _composed():
    words = [
        "stage=rank",
        "task=custom",
        "logger=none",
        "trainer=cpu",
        "model.path=base",
        "callbacks={}",
        "run_dir=run",
    ]
    return compose([*words, "rank.human_ranks=ranks.jsonl", "output_root=runs", "trusted_targets=[tests]"])


def base_config(ranks):
    """The config of a stage that reads rankings of people and writes them to its output; see `make_config`."""
    config = copy.deepcopy(_composed())
    config["rank"]["human_ranks"] = str(ranks)
    return config | {"task": {"_target_": "tests.support.trees.task", "root": "task"}}


def make_config(base, **places):
    """A config with other places."""
    config = copy.deepcopy(base)
    config["run_dir"], config["output_root"] = str(places["run_dir"]), str(places["output_root"])
    config["rank"]["output"], config["task"]["root"] = str(places["output"]), str(places["root"])
    config["model"]["path"] = config["rank"]["policy"] = str(places["model"])
    config["resume"], config["overwrite"] = places["resume"], places["overwrite"]
    return config


def grow(draw, top: Path, outside: Path, depth=0) -> set[Path]:
    """Fill a folder with random entries; returns the files of ours among them."""
    ours: set[Path] = set()
    for name in draw.sample(NAMES, draw.randrange(1, 6)):
        path = top / name
        kind = draw.random()
        if kind < 0.35 and depth < 3:
            path.mkdir()
            ours |= grow(draw, path, outside, depth + 1)
        elif kind < 0.5:
            path.symlink_to(draw.choice([outside, outside / "precious.txt", top.parent, "nowhere", "."]))
        elif kind < 0.6:
            stage = draw.choice(["rank", "sft", "test-task", "checkpoint"])
            write_folder(path, lambda folder: (folder / "a.bin").write_bytes(b"ours"), {"stage": stage, "config": {}})
            ours |= set(path.iterdir())
            if draw.random() < 0.4:  # the user puts something into it, or changes it
                ours -= {add(path / draw.choice(["mine.txt", "a.bin"]))}
        elif kind < 0.65:
            os.mkfifo(path)
        else:
            path.write_text(draw.choice(["" if "lightning" not in name else "x", "mine", json.dumps(ROW)]))
    return ours


def add(path: Path) -> Path:
    """A file of the user's."""
    path.write_text("mine")
    return path


def files(top: Path) -> set[Path]:
    """Every file below a folder, links not followed."""
    return {path for path in top.rglob("*") if path.is_file() and not path.is_symlink()}


def belongings(top: Path, ours: Collection[Path] = ()) -> dict[Path, Any]:
    """Every file and link of the user's below a folder, with its content or target."""
    found: dict[Path, Any] = {}
    for folder, folders, names in os.walk(top):
        for path in (Path(folder) / name for name in (*folders, *names)):
            if path.is_symlink():
                found[path] = os.readlink(path)
            elif path.is_file() and path not in ours:
                found[path] = path.read_bytes()
            elif path.is_fifo():
                found[path] = "fifo"
    return found


def scene(draw, folder: Path, run) -> tuple[set[Path], dict[str, Any], dict[str, Any]]:
    """A random tree, at times with an earlier run in it: the files of ours, and a config that writes somewhere there.

    Args:
        draw: `random.Random`.
        folder: to be filled, and to work in.
        run: runs a config.
    """
    top, outside = folder / "top", folder / "outside"
    (outside / "data").mkdir(parents=True)
    top.mkdir()
    os.chdir(top)
    rows = folder / "ranks.jsonl"
    rows.write_text(json.dumps(ROW) + "\n")
    for file in ("precious.txt", "data/more.txt"):
        (outside / file).write_text("precious")
    ours, base = grow(draw, top, outside), base_config(rows)
    if draw.random() < 0.3:
        places = {"run_dir": top / "earlier", "output": top / "earlier" / "rankings", "root": top / "earlier_task"}
        before = files(top)
        run(make_config(base, **places, output_root="runs", model=rows, resume="none", overwrite=False))
        ours |= files(top) - before
        for name in draw.sample(["mine.txt", "rankings/mine.txt", "history", ".tmp-rankings-abc", "train.log"], 2):
            ours -= {add(top / "earlier" / name)}
    there = [*top.rglob("*"), top, outside, top / "earlier", top / "new", top / "new" / "deep"]
    names = ["run_dir", "output", "root", "model", "output_root"]
    chosen = {name: draw.choice(there) if draw.random() < 0.5 else top / f"fresh_{name}" for name in names}
    if draw.random() < 0.5:
        chosen["output"] = chosen["run_dir"] / draw.choice(["rankings", "history", "sft/deep"])
    answers = {"resume": draw.choice(["none", "auto"]), "overwrite": draw.random() < 0.5}
    return ours, chosen, make_config(base, **chosen, **answers)
