"""The command as users run it: own classes, a debugger, the whole pipeline and parts of it, without a network."""

import inspect
import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
import torch
import transformers
import yaml

from rlhf_lightning.checkpoint import verify_folder
from rlhf_lightning.checkpoint.places import foreign, lock
from rlhf_lightning.checkpoint.provenance import read_sealed, sealed
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import OutOfMemory
from rlhf_lightning.evaluation import scored
from rlhf_lightning.labelling.inference import Responder
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.scoring import completion_texts
from rlhf_lightning.scoring.reward_model import RewardModelScorer
from rlhf_lightning.stages.pipeline import run
from rlhf_lightning.tasks.miniature.prepare import prepare_miniature
from tests.gates.gate_docs import blocks
from tests.gates.gate_sources import ROOT
from tests.support import commands

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
NOUNS = ("soup", "inn", "room", "waiter", "food")
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
    assert "precision: 32-true" in (folder / "config.yaml").read_text()  # null, until the device was known


def test_the_screen_announces_every_stage_and_ends_with_where_everything_is(pipeline):
    folder, output = pipeline
    lines = output.splitlines()
    assert lines[0].endswith(f"| sft, rank, reward, ppo, evaluate | cpu x 1, 32-true, seed 0 | {folder}")
    for place, stage in enumerate(("sft", "rank", "reward", "ppo", "evaluate base", "evaluate ppo"), start=1):
        head = f"[{min(place, 5)}/5] {stage}  "
        assert [line for line in lines if line.startswith(head) and " in 0:" in line]
    last = dict(line.split("  ", 1) for line in lines[-9:])
    assert list(last) == ["took", "policy", "sft", "rank", "reward", "ppo", "report", "watch", "talk to it"]
    sft, reward, ppo = (folder / name for name in ("sft", "reward", "ppo"))
    assert last["talk to it"] == f"rlhf-lightning chat {ppo} --compare {sft} --reward {reward}"
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


def test_a_part_of_the_pipeline_runs_from_the_folders_of_another_run(tmp_path, pipeline, assets, capsys, monkeypatch):
    whole, output = pipeline
    seen = record_scores(monkeypatch)
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
    check_scores_again(seen, whole / "reward", tmp_path)


def record_scores(monkeypatch):
    """Every answer of PPO that comes, as a row of text, and the score it saw."""
    seen, score = [], PPOModule.score

    def recorded(self, rollout):
        found, texts = score(self, rollout), completion_texts(rollout, self.tokenizer)
        rows = [{"prompt": row["prompt"], "completion": text} for row, text in zip(rollout.rows, texts, strict=True)]
        seen.extend(zip(rows, found.tolist(), rollout.finished.tolist(), strict=True))
        return found

    monkeypatch.setattr(PPOModule, "score", recorded)
    return seen


def check_scores_again(seen, reward, folder):
    """The command and the line that a reward model's card shows give the scores that PPO saw."""
    assert not any(ended for _, _, ended in seen)  # scored at an EOS that the policy has not written
    first, other = (row for row, _, _ in seen[:2])
    wrong = [other["completion"]] * 3
    bench = {
        "id": "1",
        "prompt": first["prompt"],
        "chosen": [first["completion"]],
        "rejected": wrong,
        "subset": "Focus",
    }
    rows = [*({**row, "n": 1} for row, _, _ in seen), bench]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = commands.answer(["score", str(reward), f"{folder / 'rows.jsonl'}", "--out", f"{folder / 'scored.jsonl'}"])
    assert done["code"] == 0 and f"{len(seen) + 4} answers: " in done["err"], done["err"]
    *scored, benched = [json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()]
    best, *rest = benched["scores"]
    assert best == pytest.approx(seen[0][1], abs=1e-5) and rest[0] == rest[1] == rest[2]
    points = 100 if best > rest[0] else 25 if best == rest[0] else 0
    assert f"RewardBench 2: Focus {points}.0, mean {points}.0" in done["err"]
    assert [{**row, "n": 1} for row, _, _ in seen] == [{k: v for k, v in row.items() if k != "score"} for row in scored]
    assert [row["score"] for row in scored] == pytest.approx([score for _, score, _ in seen], abs=1e-5)
    (program,) = [b.body for b in blocks((reward / "README.md").read_text()) if b.language == "python"]
    row, score, _ = seen[0]
    program = program.replace('"reward"', repr(str(reward))).replace("prompt and answer", " ".join(row.values()))
    with redirect_stdout(io.StringIO()) as printed:
        exec(program, {})
    assert float(printed.getvalue()) == pytest.approx(score, abs=1e-5)


def test_cards_hold_the_numbers_of_the_evaluation_and_stay_as_a_person_leaves_them(pipeline):
    folder, _ = pipeline
    evaluation = json.loads((folder / "evaluation.json").read_text())
    card = (folder / "ppo" / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| ppo |")).split("|")
    summary, wins = evaluation["policies"]["ppo"]["summary"], evaluation["win_rates"]["ppo vs sft"]
    judged = summary["scores"][evaluation["judge"]]
    assert [float(n) for n in row[2].split("±")] == pytest.approx([judged["mean"], judged["stderr"]], abs=5e-4)
    for cell, rate in ((row[-3], wins), (row[-2], wins["length_controlled"])):
        shown = [float(n.strip(" %,]")) for n in cell.replace("[", " ").split()]
        assert shown == pytest.approx([100 * rate[key] for key in ("win_rate", "low", "high")], abs=0.051)
    data = verify_folder(folder / "ppo")["parents"]["data"]
    assert data["sha256"] in card and (folder / "ppo" / "figure.png").is_file() and "ppo.rollouts" not in card
    assert "rollouts: 2" in card and f"transformers {transformers.__version__}" in card
    config = json.loads((folder / "reward" / "config.json").read_text())
    assert config["id2label"] == {"0": "reward"}
    generation = json.loads((folder / "ppo" / "generation_config.json").read_text())
    wanted = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 6}
    assert wanted.items() <= generation.items()
    call = ["card", str(folder / "ppo")]
    assert commands.answer([*call, "--license", "mit"])["code"] == commands.answer(call)["code"] == 0
    mine = (folder / "ppo" / "README.md").read_text()
    assert mine.replace("license: mit", "license: unknown").rpartition("<!--")[0] == card.rpartition("<!--")[0]
    (folder / "ppo" / "README.md").write_text(mine + "mine")
    assert "--overwrite" in (refused := commands.answer(call))["err"] and refused["code"] == 5
    assert foreign(folder / "ppo") == "holds README.md, which this library has not written like this"
    assert commands.answer([*call, "--overwrite"])["code"] == 0 and foreign(folder / "ppo") == ""
    assert (folder / "ppo" / "README.md").read_text() == mine


def test_generate_writes_rows_that_score_reads_and_replaces_no_file(tmp_path, pipeline, assets):
    folder, _ = pipeline
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p, "topic": p[-4:]}) + "\n" for p in ("the soup was", "this inn")))
    out = tmp_path / "answers.jsonl"
    call = ["generate", str(folder / "ppo"), str(prompts), "-n", "3", "--out", str(out)]
    done = commands.answer([*call, "--seed", "1", "--batch-size", "1"])
    assert done["code"] == 0 and "sampled at temperature 1, at most 6 tokens" in done["err"]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["prompt"], row["topic"]) for row in rows] == [("the soup was", " was")] * 3 + [
        ("this inn", " inn")
    ] * 3
    assert len({row["completion"] for row in rows}) > 2 and {"finished"} < set(rows[0])
    assert (again := commands.answer(call))["code"] == 2 and "is there already" in " ".join(again["err"].split())
    printed = commands.answer([*call[:-2], "--seed", "1", "--batch-size", "1"])["out"]
    assert [json.loads(line) for line in printed.splitlines()] == rows
    greedy = commands.answer(["generate", str(tmp_path), str(prompts)])
    assert greedy["code"] == 5 and str(tmp_path) in greedy["err"]
    ranked = {"prompt": "the soup was", "completions": ["", " good"], "finished": None}
    pair = {"prompt": "the soup was", "chosen": " good", "rejected": "", "finished": None}
    more = [
        {"prompt": "the soup was", "completion": "", "finished": True},
        ranked,
        pair,
    ]  # PPO scores empty answers, too
    out.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
    scored = commands.answer(["score", str(folder / "reward"), str(out), "--raw"])
    found = [json.loads(line) for line in scored["out"].splitlines()]
    assert [row["finished"] for row in found] == [row["finished"] for row in [*rows, *more]]
    assert found[-2]["scores"] == pytest.approx([found[-3]["score"], found[-1]["score_chosen"]], abs=1e-5)
    assert found[-1]["score_rejected"] == pytest.approx(found[-3]["score"], abs=1e-5) and "ranks" not in found[-2]


def test_generate_and_score_go_on_where_they_were_interrupted(tmp_path, pipeline, monkeypatch):
    folder, _ = pipeline
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the {word} was"}) + "\n" for word in NOUNS))
    calls = {
        "generate": ["generate", str(folder / "ppo"), str(prompts), "-n", "2", "--batch-size", "2"],
        "score": ["score", str(folder / "reward"), str(tmp_path / "generate-whole.jsonl")],
    }
    monkeypatch.setattr(scored, "AT_ONCE", 4)
    does = {"generate": (Responder, "answers"), "score": (RewardModelScorer, "score_texts")}
    for command, (owner, name) in does.items():
        whole, out = (tmp_path / f"{command}-{word}.jsonl" for word in ("whole", "again"))
        undisturbed = commands.answer([*calls[command], "--out", str(whole)])
        assert undisturbed["code"] == 0
        method, asked = getattr(owner, name), []

        def fails_once(self, *given, method=method, asked=asked):
            asked.append(given)
            if len(asked) == 3:
                raise OutOfMemory("full")
            return method(self, *given)

        with monkeypatch.context() as full:
            full.setattr(owner, name, fails_once)
            assert commands.answer([*calls[command], "--out", str(out)])["code"] == 1
            assert not out.exists()
            done = commands.answer([*calls[command], "--out", str(out)])
        assert done["code"] == 0 and len(asked) == 4 and "goes on behind 8 rows" in done["err"]
        assert out.read_text() == whole.read_text() and len(out.read_text().splitlines()) == 10
        assert done["err"].splitlines()[-1] == undisturbed["err"].splitlines()[-1]


def test_chat_answers_what_is_piped_in_beside_another_policy_with_scores(pipeline, monkeypatch):
    folder, _ = pipeline
    sft, reward, ppo = (str(folder / name) for name in ("sft", "reward", "ppo"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("the soup was\n\nthe zebra was\n/quit\nnever\n"))
    done = commands.answer(["chat", ppo, "--compare", sft, "--reward", reward])
    assert done["code"] == 0, done["err"]
    assert "knows 125 words, others become <unk>; for example: " in done["out"]
    assert done["out"].count("ppo> ") == done["out"].count("sft> ") == 2 and done["out"].count("  score ") == 4
    assert done["out"].count("does not know: zebra") == 1 and "never" not in done["out"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("the soup was\n"))
    other = commands.answer(["chat", reward])
    assert other["code"] == 5 and "this is a reward model" in other["err"]


def test_runs_lists_what_there_is_and_puts_runs_side_by_side(pipeline, tmp_path, monkeypatch):
    folder, _ = pipeline
    monkeypatch.setenv("COLUMNS", "250")
    listed = commands.answer(["runs", str(folder.parent)])
    assert listed["code"] == 0 and "finished" in listed["out"] and "ppo score" in " ".join(listed["out"].split())
    other = tmp_path / "other"
    (other / "history").mkdir(parents=True)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["kl"]["target"], config["ppo"]["rollouts"] = 3.5, 9
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    (other / "history" / "ppo.csv").write_text("step,kind,seconds,objective/scores\n4,train,1,-0.25\n")
    record = read_sealed(folder / "run.json") | {"state": "running", "outputs": []}
    (other / "run.json").write_text(sealed(record))
    assert "interrupted, before sft" in commands.answer(["runs", str(tmp_path)])["out"]
    with lock(other, inside=True):
        assert "running, before sft" in commands.answer(["runs", str(tmp_path)])["out"]
    figure = tmp_path / "two.png"
    call = ["runs", "compare", str(folder), str(other), "--figure", str(figure)]
    both = commands.answer(call)
    lines = {cells[1].strip(): cells[2:4] for line in both["out"].splitlines() if len(cells := line.split("│")) == 5}
    assert [cell.strip() for cell in lines["kl.target"]] == ["6.0", "3.5"], both["out"]
    assert [cell.strip() for cell in lines["ppo.rollouts"]] == ["2", "9"] and lines["ppo score"][1].strip() == "-0.250"
    assert "run_dir" not in lines and figure.read_bytes()[:4] == b"\x89PNG"
    assert (again := commands.answer(call))["code"] == 2 and "is there already" in " ".join(again["err"].split())


def test_two_policies_are_compared_by_one_command(pipeline, tmp_path, assets, monkeypatch):
    folder, _ = pipeline
    prompts = assets[0].partition("=")[2] + "/prompts.validation.jsonl"
    call = ["compare", str(folder / "sft"), str(folder / "ppo"), "--prompts", prompts]
    assert "nothing judges" in commands.answer(call)["err"]
    given = ["--reward", str(folder / "reward"), "trainer=cpu", "evaluate.max_prompts=8", f"run_dir={tmp_path / 'run'}"]
    done = commands.answer([*call, *given])
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert done["code"] is None or done["code"] == 0, done["err"]
    assert list(evaluation["policies"]) == ["sft", "ppo"] and evaluation["policies"]["ppo"]["summary"]["prompts"] == 8
    assert "win rate vs sft" in done["out"] and "[" in done["out"].partition("win rate vs sft")[2]
    assert verify_folder(folder / "ppo") and "max_new_tokens: 6" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_new_project_trains_with_its_own_parts_by_one_command(tmp_path, assets, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commands.answer(["new", "my lab"])["code"] == 2
    assert commands.answer(["new", "my_lab"])["code"] == 0
    again = commands.answer(["new", "my_lab"])
    assert again["code"] == 2 and "is there already" in " ".join(again["err"].split())
    monkeypatch.chdir(tmp_path / "my_lab")
    words = ["experiment=first", "ppo.rollouts=1", "ppo.data.batch_size=8", "sampling.max_new_tokens=4", "trainer=cpu"]
    monkeypatch.syspath_prepend(tmp_path / "my_lab")
    monkeypatch.setenv("RLHF_LIGHTNING_TRUSTED_TARGETS", "my_lab")  # as the file itself does; undone after the test
    monkeypatch.setattr(sys, "argv", ["train.py", *words, *assets, "run_dir=runs/one"])
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path("train.py", run_name="__main__")
    assert "best answer of the last rollout: " in printed.getvalue()
    record = verify_folder("runs/one/ppo", expect_stage="ppo")["config"]
    assert record["module"]["_target_"] == "my_lab.modules.BatchMeanPPO"
    assert record["data"]["_target_"] == "my_lab.data.ShortPrompts"
    names = {str(file.relative_to(tmp_path)) for file in (tmp_path / "my_lab").rglob("*") if "runs" not in file.parts}
    assert {"my_lab/pyproject.toml", "my_lab/conf/experiment/first.yaml", "my_lab/tests/test_project.py"} <= names
    assert not [name for name in names if name.endswith(".txt")]


def test_rankings_by_people_take_the_place_of_the_judge(tmp_path, assets):
    rows = [{"prompt": "the soup", "completions": [" was good .", " was bad ."], "ranks": [1, 2]}]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["stage=rank", f"rank.human_ranks={tmp_path / 'people.jsonl'}", *of_stage("rank"), *assets]
    metrics = run(compose([*words, f"run_dir={tmp_path / 'run'}"]))
    written = (tmp_path / "run" / "rankings" / "rankings.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == rows
    assert metrics == {"rank/prompts": 1.0, "rank/answers": 2.0}
    assert verify_folder(tmp_path / "run" / "rankings", expect_stage="rank")
