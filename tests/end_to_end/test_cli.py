"""The command as users run it: own classes, a debugger, the whole pipeline and parts of it, without a network."""

import inspect
import json
import os
import subprocess
import sys

import pytest
import torch

from rlhf_lightning.checkpoint import verify_folder
from rlhf_lightning.config.compose import compose
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.stages.pipeline import run
from rlhf_lightning.tasks.miniature.prepare import prepare_miniature
from tests.gates.gate_sources import ROOT

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
]
SECONDS = 120
SIZES = {"demonstrations": 64, "texts": 40, "prompts": 48, "heldout_prompts": 16}
SECRET = "s3cret-Zq81xw"
SMALL = [
    "trainer=cpu", "sampling.max_new_tokens=6",
    "sft.max_epochs=1", "sft.data.batch_size=32",
    "rank.max_prompts=16", "rank.data.batch_size=16",
    "reward.max_epochs=1", "reward.data.batch_size=4",
    "ppo.rollouts=2", "ppo.data.batch_size=16", "ppo.settings.num_minibatches=2",
    "evaluate.max_prompts=16", "evaluate.samples_per_prompt=1",
]  # fmt: skip
NO_NETWORK = """
import os, socket
open(os.environ["SOCKETS"], "a").write("blocked ")
def refuse(self, address):
    if self.family != socket.AF_UNIX:
        open(os.environ["SOCKETS"], "a").write(f"connect {address} ")
        raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = refuse
"""
MY_PROJECT = """
import os
from pathlib import Path

from rlhf_lightning.modules import PPOModule


class MyPPO(PPOModule):
    def on_train_start(self):
        super().on_train_start()
        breakpoint()

    # rewards short answers, whoever judges
    def score(self, rollout):
        me = os.getpid()
        children = [p.read_text() for p in Path(f"/proc/{me}/task").glob("*/children")]
        with open(os.environ["MARKER"], "a") as marker:
            print(me, *children, file=marker)
        return super().score(rollout) - 0.1 * rollout.lengths
"""


def of_stage(*stages):
    """The sizes that a command knows."""
    return [word for word in SMALL if word.split(".")[0] in (*stages, "sampling", "trainer=cpu")]


def suppress_special_tokens(model, tokenizer, texts):
    """In place of training: one direction of the trunk tells words from special tokens, so that no answer is empty."""
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, 0] = 1.0
        embedding[tokenizer.all_special_ids, 0] = 0.0


@pytest.fixture(scope="session")
def assets(tmp_path_factory):
    """The miniature task, small, with a base model that has learned next to nothing."""
    root = tmp_path_factory.mktemp("assets")
    prepare_miniature(root, suppress_special_tokens, **SIZES)
    return [f"task.root={root}", *(f"task.{name}={size}" for name, size in SIZES.items())]


@pytest.fixture(scope="session")
def command(tmp_path_factory, assets):
    """Run ``python train.py`` with our assets in a folder of its own; sockets are blocked and watched."""
    surroundings = tmp_path_factory.mktemp("site")
    (surroundings / "sitecustomize.py").write_text(NO_NETWORK)
    (surroundings / "my_project.py").write_text(MY_PROJECT)

    def call(*words, typed="", **variables):
        watch = tmp_path_factory.mktemp("sockets") / "log"
        environment = {
            **os.environ, "PYTHONPATH": f"{surroundings}", "SOCKETS": str(watch), "OMP_NUM_THREADS": "1",
            **{name: str(value) for name, value in variables.items()},
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *words, *assets], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(typed, timeout=SECONDS)
        finally:
            process.kill()
            process.wait()
        assert watch.read_text().split() == ["blocked"] * len(watch.read_text().split())
        return process, output

    return call


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory, command):
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    given = [f"+sft.api_key={SECRET}", f"+ppo.notes.url=https://{SECRET}@host", "+notes=${oc.env:MY_API_KEY}"]
    process, output = command(*SMALL, *given, f"run_dir={folder}", MY_API_KEY=f"environment-{SECRET}")
    assert process.returncode == 0, output
    return folder, output


def test_an_own_ppo_class_runs_in_the_one_process_of_the_command_where_a_debugger_stops_inside_an_iteration(
    tmp_path, command
):
    lines, start = inspect.getsourcelines(PPOModule.training_step)
    first = start + next(i for i, line in enumerate(lines) if "with self.phase" in line)
    place = f"{inspect.getsourcefile(PPOModule)}:{first}"
    process, output = command(
        "stage=ppo", *of_stage("ppo"), "ppo.module._target_=my_project.MyPPO", "trusted_targets=[my_project]",
        f"run_dir={tmp_path / 'run'}", MARKER=tmp_path / "marker",
        typed=f"tbreak {place}\nc\np 'STOPPED', len(batch), batch_idx, self.rollouts\nc\n",
    )  # fmt: skip
    assert process.returncode == 0, output
    assert "('STOPPED', 16, 0, 0)" in output, output
    assert (tmp_path / "marker").read_text().split() == [str(process.pid)] * 2  # two rollouts, no child processes
    assert verify_folder(tmp_path / "run" / "ppo", expect_stage="ppo")["config"]["rollouts"] == 2


def test_the_pipeline_leaves_a_report_and_a_chain_of_verified_folders(pipeline):
    folder, _ = pipeline
    made = {name: verify_folder(folder / name) for name in ("sft", "rankings", "reward", "ppo")}
    assert [record["stage"] for record in made.values()] == ["sft", "rank", "reward", "ppo"]
    for child, parent in (("rankings", "sft"), ("reward", "sft"), ("ppo", "sft")):
        assert made[child]["parents"]["policy"]["files"] == made[parent]["files"] != {}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert set(evaluation["policies"]) == {"base", "sft", "ppo"}
    report = (folder / "report.md").read_text()
    figures = sorted(p.name for p in (folder / "figures").glob("*.png"))
    assert figures and all(f"figures/{name}" in report for name in figures)
    for stage in ("sft", "reward", "ppo"):
        assert (folder / "history" / f"{stage}.csv").read_text().count("\n") > 1
        assert list((folder / "tensorboard" / stage).rglob("events.*"))
    assert (folder / "config.yaml").is_file()


def test_the_screen_announces_every_stage_and_ends_with_where_everything_is(pipeline):
    folder, output = pipeline
    lines = output.splitlines()
    assert lines[0].endswith(f"| sft, rank, reward, ppo, evaluate | cpu x 1, 32-true, seed 0 | {folder}")
    for place, stage in enumerate(("sft", "rank", "reward", "ppo", "evaluate base", "evaluate ppo"), start=1):
        head = f"[{min(place, 5)}/5] {stage}  "
        assert [line for line in lines if line.startswith(head) and " in 0:" in line]
    last = dict(line.split("  ", 1) for line in lines[-8:])
    assert list(last) == ["took", "policy", "sft", "rank", "reward", "ppo", "report", "watch"]
    assert last["ppo"].strip() == f"{folder / 'ppo'}" and last["watch"].strip() == f"tensorboard --logdir {folder}"
    assert " of 2, the best within the KL limit (score " in last["policy"]
    assert "white space" not in output  # of rankings that the run itself wrote


def test_case_55_a_secret_of_the_config_is_in_no_file_of_the_run_and_not_on_the_console(pipeline):
    folder, output = pipeline
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [str(path) for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in output
    assert "***" in (folder / "config.yaml").read_text() and "***" in (folder / "sft" / "provenance.json").read_text()


def test_the_console_of_the_pipeline_shows_no_warnings_of_other_libraries(pipeline):
    _, output = pipeline
    assert not [line for line in output.splitlines() if "site-packages" in line]


def test_a_part_of_the_pipeline_runs_from_the_folders_of_another_run(tmp_path, pipeline, assets, capsys):
    whole, output = pipeline
    folders = [*(f"{stage}.output={whole / stage}" for stage in ("sft", "reward")), f"ppo.reference={whole / 'sft'}"]
    before = {name: verify_folder(whole / name)["files"] for name in ("sft", "reward", "ppo")}
    words = ["stages=[ppo,evaluate]", "logger=none", "evaluate.sampling.temperature=0.7", *folders, *SMALL, *assets]
    metrics = run(compose([*words, f"run_dir={tmp_path / 'part'}"]))
    part = tmp_path / "part"
    assert sorted(p.name for p in part.iterdir() if p.is_dir()) == ["checkpoints", "figures", "history", "ppo"]
    assert verify_folder(part / "ppo", expect_stage="ppo")["files"] == before["ppo"]  # the same seed, the same policy
    assert {name: verify_folder(whole / name)["files"] for name in before} == before
    assert verify_folder(part / "ppo")["parents"]["reference"]["files"] == before["sft"]
    assert metrics["objective/kl"] == pytest.approx(verify_folder(part / "ppo")["metrics"]["objective/kl"])
    note = "not drawn alike in all stages: ppo.sampling.temperature=1.0, evaluate.sampling.temperature=0.7\n"
    assert note in capsys.readouterr().out and "not drawn alike" in (part / "report.md").read_text()
    assert "not drawn alike" not in output + (whole / "report.md").read_text()


def test_rankings_by_people_take_the_place_of_the_judge(tmp_path, assets):
    rows = [{"prompt": "the soup", "completions": [" was good .", " was bad ."], "ranks": [1, 2]}]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["stage=rank", f"rank.human_ranks={tmp_path / 'people.jsonl'}", *of_stage("rank"), *assets]
    metrics = run(compose([*words, f"run_dir={tmp_path / 'run'}"]))
    written = (tmp_path / "run" / "rankings" / "rankings.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == rows
    assert metrics == {"rank/prompts": 1.0, "rank/answers": 2.0}
    assert verify_folder(tmp_path / "run" / "rankings", expect_stage="rank")
