"""Cases 56, 58, 59, 66, 67 and 71: nothing of the user's is replaced, deleted, or written to through a link."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from rlhf_lightning.checkpoint import verify_folder, write_folder
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.checkpoint.places import lock, write_file
from rlhf_lightning.checkpoint.provenance import read_sealed, sealed
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import CheckpointError, ConfigError, DiskError, RLHFError
from rlhf_lightning.stages.changes import relocated
from rlhf_lightning.stages.device import settled
from rlhf_lightning.stages.pipeline import run
from rlhf_lightning.stages.resume import RunFolder
from tests.support import small_run, trees

pytestmark = [
    pytest.mark.filterwarnings("ignore:predict returned None"),  # answers are collected by the module
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with rows that people have ranked, and the config of the stage that reads them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ranks.jsonl").write_text(json.dumps(trees.ROW) + "\n")
    (tmp_path / "base").mkdir()
    return trees.base_config(tmp_path / "ranks.jsonl")


def config(place, **changes):
    places = {"run_dir": "run", "output_root": "runs", "output": "run/rankings", "root": "task", "model": "base"}
    return trees.make_config(place, **{**places, "resume": "none", "overwrite": False, **changes})


def test_the_stage_of_these_tests_runs(place):
    run(config(place))
    assert (Path("run/rankings/rankings.jsonl")).is_file() and read_sealed(Path("run/run.json"))["state"] == "finished"


def documents(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")


def plain_file(path):
    path.write_text("precious")


def link(path):
    documents(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def changed_since(path):
    write_folder(path, lambda folder: (folder / "a.txt").write_text("a"), {"stage": "rank"})
    (path / "provenance.json").write_text((path / "provenance.json").read_text().replace("rank", "sft"))


def with_more_in_it(path):
    write_folder(path, lambda folder: (folder / "a.txt").write_text("a"), {"stage": "rank"})
    (path / "notes.txt").write_text("precious")


@pytest.mark.parametrize("key", ["output", "root"])
@pytest.mark.parametrize("make", [documents, plain_file, link, changed_since, with_more_in_it])
@pytest.mark.parametrize("overwrite", [False, True])
def test_case_56_what_the_user_has_is_never_replaced(place, tmp_path, key, make, overwrite):
    make(tmp_path / "mine")
    before = trees.belongings(tmp_path)
    with pytest.raises(RLHFError, match="mine"):
        run(config(place, overwrite=overwrite, **{key: "mine"}))
    assert before.items() <= trees.belongings(tmp_path).items()
    assert not Path("run/rankings").exists()  # refused before the stage began


@pytest.mark.parametrize("key", ["output", "root"])
@pytest.mark.parametrize(
    ("path", "says"),
    [
        (".", "the working folder"),
        ("..", "the working folder"),
        ("/", "the working folder"),
        ("~", "your home folder"),
        ("run", "run_dir"),
        ("runs", "output_root"),
        ("run/history", "history"),
        ("run/checkpoints/x", "checkpoints"),
        ("base", "base"),
        ("link_to_base", "base"),
    ],
)
def test_case_56_no_output_is_or_holds_what_the_run_needs(place, monkeypatch, tmp_path, key, path, says):
    home = tmp_path.parent / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    Path("link_to_base").symlink_to("base")
    if key == "root" and says == "base":
        pytest.skip("a task makes its own base")
    with pytest.raises(ConfigError, match=rf"(rank\.output|task\.root)=.*{says}"):
        run(config(place, **{key: path.replace("~", str(home))}))


def test_case_56_a_file_that_the_run_reads_is_in_no_output(place):
    Path("mine").mkdir()
    Path("ranks.jsonl").rename("mine/ranks.jsonl")
    place["rank"]["human_ranks"] = "mine/ranks.jsonl"
    with pytest.raises(ConfigError, match=r"rank\.output=mine: is or holds rank\.human_ranks \(mine/ranks\.jsonl\)"):
        run(config(place, output="mine"))


def test_case_56_stages_may_read_what_earlier_ones_write_and_none_reads_its_own_output(tmp_path):
    from rlhf_lightning.stages.places import check_places

    chained = compose(["stage=pipeline", "task=custom", "model.path=base", f"run_dir={tmp_path}"])
    for stage in ("sft", "rank", "reward", "ppo"):  # all are there from an earlier run
        write_folder(chained[stage]["output"], lambda folder: (folder / "a").touch(), {"stage": stage})
    check_places(chained)
    chained["ppo"]["policy"] = chained["ppo"]["output"]
    with pytest.raises(ConfigError, match=r"ppo\.output=.* is or holds ppo\.policy"):
        check_places(chained)
    chained["ppo"]["policy"], chained["sft"]["output"] = chained["sft"]["output"], chained["ppo"]["output"] + "/.."
    with pytest.raises(ConfigError, match=r"sft\.output=.* is or holds"):
        check_places(chained)


def test_case_56_a_finished_run_and_its_outputs_are_replaced_only_if_told_to(place, tmp_path):
    run(config(place, output="out"))
    with pytest.raises(ConfigError, match=r"rank: out holds what the stage rank of an earlier run has made"):
        run(config(place, output="out", run_dir="other"))
    run(config(place))
    for resume in ("none", "run/checkpoints/rank/step-000001"):
        with pytest.raises(RLHFError, match=r"holds an earlier run \(finished: rankings\)|not a checkpoint"):
            run(config(place, resume=resume))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert run(config(place, resume="auto"))["rank/prompts"] == 1  # as it is
    with (tmp_path / "ranks.jsonl").open("a") as file:
        file.write(json.dumps({**trees.ROW, "prompt": "the soup"}) + "\n")
    assert run(config(place, overwrite=True))["rank/prompts"] == 2
    assert len((tmp_path / "run" / "rankings" / "rankings.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob("run.replaced-*"))


def test_case_56_a_replaced_run_is_kept_aside_until_the_new_one_is_complete(place, tmp_path, caplog):
    run(config(place))
    add = trees.add
    for name in ("checkpoints", "tensorboard"):
        (tmp_path / "run" / name / "rank").mkdir(parents=True)
    add(tmp_path / "run" / "checkpoints" / "rank" / "mine.txt")
    ranks = (tmp_path / "ranks.jsonl").read_text()
    (tmp_path / "ranks.jsonl").write_text("{broken")
    with pytest.raises(RLHFError):
        run(config(place, overwrite=True))
    assert "the earlier run is kept in run.replaced-1 until this one is complete" in caplog.text
    verify_folder(tmp_path / "run.replaced-1" / "rankings", "rank")
    (tmp_path / "ranks.jsonl").write_text(ranks)
    run(config(place, overwrite=True))  # the failed one left nothing worth keeping
    (tmp_path / "run" / "tensorboard" / "rank" / "by_tokens").mkdir(parents=True)
    for name in ("mine.txt", "events.out.tfevents.1", "by_tokens/events.out.tfevents.1"):
        add(tmp_path / "run" / "tensorboard" / "rank" / name)
    run(config(place, overwrite=True))
    verify_folder(tmp_path / "run" / "rankings", "rank")
    assert (tmp_path / "run.replaced-1" / "checkpoints" / "rank" / "mine.txt").read_text() == "mine"
    assert [path.name for path in trees.files(tmp_path / "run.replaced-2")] == ["mine.txt"]
    assert "run.replaced-2: holds what this library has not written" in caplog.text


def test_case_56_a_run_with_the_shipped_defaults_is_replaced(tmp_path):
    words = [word for word in small_run.prepare(tmp_path) if not word.startswith("logger=")]
    words = [
        *words, "stages=[sft,rank]", f"run_dir={tmp_path / 'run'}", "judge=function", "judge.isolate=false",
        "judge.function=tests.support.trees.letters", "rank.data.max_rows=2", "rank.data.max_prompt_length=32",
        "rank.sampling.max_new_tokens=4",
    ]  # fmt: skip
    run(compose(words))
    (tmp_path / "run" / "sft" / "notes.txt").write_text("mine")
    run(compose([*words, "resume=auto"]))  # nothing is written to what is done, so notes may lie there
    (tmp_path / "run" / "sft" / "notes.txt").unlink()
    with pytest.raises(ConfigError, match=r"holds an earlier run \(history of sft; finished: rankings, sft\)"):
        run(compose(words))
    run(compose([*words, "overwrite=true"]))
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run"]
    assert len(list((tmp_path / "run" / "tensorboard" / "sft").glob("events*"))) == 2  # of the fit, and of its end


def test_case_56_models_in_a_folder_that_no_run_made_are_not_those_of_a_run(place, tmp_path):
    run(config(place))
    shutil.copytree(tmp_path / "run" / "rankings", tmp_path / "models" / "monday")
    run(config(place, run_dir="models", output="models/tuesday", overwrite=True))
    run(config(place, run_dir="models", output="models/tuesday", overwrite=True))
    for name in ("monday", "tuesday"):
        verify_folder(tmp_path / "models" / name, "rank")


def test_case_56_a_run_that_ended_before_its_first_step_is_none(place, tmp_path):
    (tmp_path / "ranks.jsonl").write_text("broken")
    for _ in range(2):
        with pytest.raises(RLHFError, match=r"ranks\.jsonl:1"):
            run(config(place))
        (tmp_path / "run" / "history").mkdir(exist_ok=True)
        (tmp_path / "run" / "history" / "rank.csv").write_text("step,kind,seconds\n")


def test_case_56_what_comes_to_an_output_during_training_is_kept_and_so_is_the_model(tmp_path):
    def write(folder):
        (folder / "model.bin").write_text("trained")
        documents(tmp_path / "out")

    with pytest.raises(CheckpointError, match=r"holds files that this library.*the new folder is .*out\.new-1"):
        write_folder(tmp_path / "out", write, {"stage": "sft"})
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"
    verify_folder(tmp_path / "out.new-1", "sft")


@pytest.mark.parametrize("start", [0, *(pytest.param(start, marks=pytest.mark.soak) for start in (100, 200, 300, 400))])
def test_case_56_and_58_no_random_tree_loses_a_byte(tmp_path, monkeypatch, start):
    monkeypatch.chdir(tmp_path)
    outcomes = []
    for seed in range(start, start + 100):
        folder = tmp_path / str(seed)
        ours, chosen, changed = trees.scene(random.Random(seed), folder, run)
        before = trees.belongings(folder, ours)
        try:
            run(changed)
            outcomes.append("ran")
        except RLHFError as error:
            outcomes.append(type(error).__name__)
        after = trees.belongings(folder)
        lost = {str(path): content for path, content in before.items() if after.get(path) != content}
        assert not lost, (seed, lost, chosen)
    assert len(outcomes) == 100 and outcomes.count("ran") > 10, outcomes


@pytest.mark.parametrize(
    "name", ["config.yaml", "run.json", ".rlhf_lightning.lock", "history", "history/rank.csv", "checkpoints",
             "checkpoints/sft", "checkpoints/sft/step-000001", "tensorboard", "tensorboard/sft", "report.md", "figures",
             "train.log"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["file", "folder", "nowhere", "fifo"])
@pytest.mark.parametrize("resume", ["none", "auto"])
def test_case_58_a_link_in_the_run_folder_is_not_followed(place, tmp_path, name, kind, resume):
    run(config(place))
    entry = tmp_path / "run" / name
    entry.parent.mkdir(parents=True, exist_ok=True)
    entry.unlink(missing_ok=True)
    outside = tmp_path / "outside"
    documents(outside)
    target = {"file": outside / "thesis.tex", "folder": outside, "nowhere": outside / "new"}.get(kind)
    os.mkfifo(entry) if target is None else entry.symlink_to(target)
    before = trees.belongings(tmp_path)
    with pytest.raises(CheckpointError, match=rf"run_dir=.*: {name} is a link or a device"):
        run(config(place, resume=resume, overwrite=True))
    assert trees.belongings(tmp_path) == before


def test_case_58_the_run_folder_itself_is_no_link_and_a_second_name_of_a_file_is_no_lock(place, tmp_path):
    documents(tmp_path / "outside")
    (tmp_path / "run").symlink_to("outside")
    with pytest.raises(CheckpointError, match="run_dir=run: is a link"):
        run(config(place))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".rlhf_lightning.lock").hardlink_to(tmp_path / "outside" / "thesis.tex")
    with pytest.raises(CheckpointError, match=r"\.lock: is not a lock of this library"):
        run(config(place, run_dir="other"))
    assert (tmp_path / "outside" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("name", ["config.yaml", "history", "checkpoints", "report.md", "tensorboard", "run.json"])
def test_case_58_what_a_run_of_this_library_did_not_make_is_not_taken_for_its_own(place, tmp_path, name):
    (tmp_path / "run").mkdir()
    if "." in name:
        (tmp_path / "run" / name).write_text("precious")
    else:
        documents(tmp_path / "run" / name)
    before = trees.belongings(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match=f"run_dir=run: holds {name}, which no run of this library has made"):
            run(config(place, overwrite=overwrite))
    assert before.items() <= trees.belongings(tmp_path).items()


def test_case_58_only_what_a_crash_of_ours_left_is_swept(tmp_path):
    documents(tmp_path / ".tmp-out-abc")
    documents(tmp_path / ".tmp-out-old")
    (tmp_path / ".tmp-out-file").write_text("precious")
    (tmp_path / ".tmp-out-link").symlink_to(tmp_path / ".tmp-out-abc")
    (tmp_path / ".tmp-out-empty").mkdir()
    (tmp_path / ".tmp-out-ours").mkdir()
    (tmp_path / ".tmp-out-ours" / ".rlhf_lightning").touch()
    (tmp_path / ".tmp-out-ours" / "half").write_text("half")
    write_folder(tmp_path / "out", lambda folder: (folder / "a").touch(), {"stage": "sft"})
    left = {".tmp-out-abc", ".tmp-out-old", ".tmp-out-file", ".tmp-out-link", "out"}
    assert {path.name for path in tmp_path.iterdir()} == left
    assert (tmp_path / ".tmp-out-abc" / "thesis.tex").read_text() == "precious"


def test_case_58_a_file_that_is_written_takes_the_place_of_a_link_and_not_of_its_target(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to("precious")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "precious").read_text() == "precious" and (tmp_path / "link").read_text() == "new"


IO = DurableCheckpointIO()


def damage(path, how, draw):
    """Make a checkpoint one that cannot be read."""
    record = path / "provenance.json"
    file = path / draw.choice(["state.json", "tensors.safetensors", "config.yaml"])
    if how == "newer schema":
        record.write_text(record.read_text().replace('"schema": 2', '"schema": 3'))
    elif how == "flipped bit":
        data = bytearray(file.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
    elif how == "gone":
        file.unlink()
    else:
        record.unlink()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The words of a stage on a small model, and its run folder with three checkpoints."""
    folder = tmp_path_factory.mktemp("stopped")
    words = [*small_run.prepare(folder), "stages=[sft]", f"run_dir={folder / 'run'}"]
    saver = ["checkpoint.every_n_steps=1", "checkpoint.keep=3", "sft.max_epochs=4"]
    run(compose([*words, *saver]))
    shutil.rmtree(folder / "run" / "sft")  # as if it had been stopped before the end
    return [*words, *saver, "resume=auto"], folder / "run"


@pytest.mark.parametrize("how", ["newer schema", "flipped bit", "gone", "no record"])
def test_case_59_where_no_checkpoint_can_be_read_nothing_is_trained_or_deleted(stopped, tmp_path, how):
    words, folder = stopped
    draw, original = random.Random(how), settled(compose([*words, f"run_dir={folder}"]))
    for number in range(4):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        saved = checkpoints(copy / "checkpoints" / "sft")
        assert len(saved) == 3
        for path in saved:
            damage(path, how, draw)
        before = trees.belongings(copy / "checkpoints")
        moved = relocated(original, str(folder), str(copy))
        with pytest.raises(CheckpointError, match="none of 3 checkpoints can be used, and none is deleted") as refused:
            run(moved) if (how, number) == ("flipped bit", 0) else RunFolder(moved).checkpoint("sft")
        assert refused.value.exit_code == 5 and str(refused.value).count("step-00000") == 3
        assert trees.belongings(copy / "checkpoints") == before and not (copy / "sft").exists()


def test_case_59_a_damaged_checkpoint_stays_when_its_step_is_saved_again_and_when_old_ones_go(tmp_path):
    from tests.support.crash_worker import saver

    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3, 4):
        IO.save_checkpoint({"global_step": step, "state_dict": {}}, folder / f"step-{step:06d}")
    for step in (2, 4):
        (folder / f"step-{step:06d}" / "state.json").write_text("damaged")
    callback, trainer = saver(folder, 4)  # resumed from 3
    with pytest.warns(UserWarning, match=r"an old checkpoint is not deleted: .*step-000002"):
        callback.save(trainer)
    assert (folder / "step-000004.damaged-1" / "state.json").read_text() == "damaged"
    assert [path.name[-1] for path in checkpoints(folder)] == ["4", "3", "2"]  # 1 is good and expired
    trainer.global_step = 5
    callback.save(trainer)
    assert [path.name[-1] for path in checkpoints(folder)] == ["5", "4", "2"]


@pytest.mark.parametrize("text", ["", "stages: [ra", "\x00", None])
def test_case_66_a_damaged_config_is_written_again_as_the_record_says_what_a_stage_ran_with(place, tmp_path, text):
    run(config(place))
    file = tmp_path / "run" / "config.yaml"
    whole = file.read_text()
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(ConfigError, match=r"made with another config \(seed: 0 -> 1\)"):
        run(config(place, resume="auto") | {"seed": 1})
    assert run(config(place, resume="auto"))["rank/prompts"] == 1
    assert file.read_text() == whole.replace("resume: none", "resume: auto")


def test_case_66_a_stage_that_has_begun_is_not_gone_on_with_where_no_record_says_how(place, tmp_path):
    run(config(place))
    record = read_sealed(tmp_path / "run" / "run.json")
    (tmp_path / "run" / "run.json").write_text(sealed({**record, "ran": {}}))
    assert run(config(place, resume="auto"))["rank/prompts"] == 1  # its own record says that it is the same
    with pytest.raises(ConfigError, match=r"rankings was made with other settings \(rank\.seed: 0 -> 7\)"):
        run(config(place, resume="auto") | {"rank": {**place["rank"], "seed": 7, "output": "run/rankings"}})
    shutil.rmtree(tmp_path / "run" / "rankings")
    IO.save_checkpoint({"global_step": 1, "state_dict": {}}, tmp_path / "run" / "checkpoints" / "rank" / "step-000001")
    with pytest.raises(CheckpointError, match=r"run\.json: does not say what rank ran with"):
        run(config(place, resume="auto"))
    del record["ran"]  # as version 0.1.0 wrote it, where all stages had the config of the run
    (tmp_path / "run" / "run.json").write_text(sealed(record))
    with pytest.raises(ConfigError, match=r'another config \(rank\.merge: "weighted" -> "majority"\)'):
        run(config(place, resume="auto") | {"rank": {**place["rank"], "merge": "majority", "output": "run/rankings"}})
    assert run(config(place, resume="auto"))["rank/prompts"] == 1


def test_case_67_two_runs_with_one_output_do_not_both_train(place, tmp_path):
    with lock(tmp_path / "out"):  # as another run holds it
        with pytest.raises(CheckpointError, match=r"out: in use by process \d+ on "):
            run(config(place, output="out"))
        run(config(place, output="other", run_dir="other_run"))
    (tmp_path / ".out.rlhf_lightning.lock").write_text("process 1 on a machine that died\n")
    run(config(place, output="out"))
    assert not list(tmp_path.glob(".*.lock"))


def test_case_71_settings_that_change_the_bits_are_refused_and_others_are_named_and_recorded(place, tmp_path, caplog):
    run(config(place))
    changed = config(place, resume="auto")
    changed["trainer"] = {**changed["trainer"], "precision": "bf16-mixed"}
    with pytest.raises(ConfigError, match=r'made with another config \(trainer\.precision: .* -> "bf16-mixed"\)'):
        run(changed)
    changed = config(place, resume="auto") | {"threads": 1}
    run(changed)
    assert "resumed with other settings: threads: null -> 1" in caplog.text
    assert read_sealed(tmp_path / "run" / "run.json")["changed"] == ["threads: null -> 1"]


def test_a_file_that_was_moved_is_the_same_file_and_one_that_changed_is_not(place, tmp_path):
    rows = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    for path, prompt in zip(rows, ("same", "same", "other"), strict=True):
        path.write_text(json.dumps({**trees.ROW, "prompt": prompt}))

    def with_rows(path, resume):
        found = config(place, resume=resume)
        return found | {"rank": found["rank"] | {"human_ranks": str(path)}}

    run(with_rows(rows[0], "none"))
    rows[0].unlink()
    run(with_rows(rows[1], "auto"))
    with pytest.raises(ConfigError, match=r"made with another config \(rank\.human_ranks: .*a\.jsonl.* -> .*c\.jsonl"):
        run(with_rows(rows[2], "auto"))


def test_case_56_an_output_of_another_run_is_used_only_if_it_was_made_with_the_same_settings(place):
    run(config(place, output="out"))
    assert run(config(place, output="out", run_dir="second", resume="auto"))["rank/prompts"] == 1
    other = config(place, output="out", run_dir="third", resume="auto")
    other["rank"]["seed"] = 7
    with pytest.raises(ConfigError, match=r"out was made with other settings \(rank\.seed: 0 -> 7\).*overwrite=true"):
        run(other)
    run(other | {"overwrite": True, "run_dir": "fourth"})
    assert verify_folder("out")["config"]["seed"] == 7


@pytest.mark.parametrize("kind", ["file", "link", "folder", "dangling"])
def test_case_56_a_sweep_replaces_no_file_of_the_user(tmp_path, kind):
    from rlhf_lightning.config.hydra_loader import check_sweep

    check_sweep(tmp_path / "new")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "multirun.yaml").write_text("hydra:\n  run:\n    dir: x\n")
    check_sweep(tmp_path / "ours")  # a sweep may go on
    (tmp_path / "sweep").mkdir()
    file = tmp_path / "sweep" / "multirun.yaml"
    if kind == "file":
        file.write_text("mine: 1")
    elif kind == "folder":
        (tmp_path / "sweep").rmdir()
        (tmp_path / "sweep").symlink_to(tmp_path / "ours")
    else:
        file.symlink_to(tmp_path / "ours" / "multirun.yaml" if kind == "link" else "nowhere")
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir=.*would replace it"):
        check_sweep(tmp_path / "sweep")
    with pytest.raises(ConfigError, match=r"run_dir: the jobs .* give hydra\.sweep\.dir=FOLDER"):
        check_sweep(tmp_path / "new", ["run_dir=mine"])


@pytest.mark.parametrize("name", ["config.yaml", "evaluation.json", "report.md"])
def test_case_61_a_file_that_does_not_fit_is_left_as_it_was(tmp_path, monkeypatch, name):
    write_file(tmp_path / name, "before")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=rf"{name}: cannot write here .*No space left.*unchanged"):
        write_file(tmp_path / name, "after")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "before"
