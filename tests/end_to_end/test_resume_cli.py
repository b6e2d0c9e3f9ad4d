"""``resume=auto``: a run that was stopped goes on in its folder, and ends where an uninterrupted one ends."""

import subprocess
import sys

import pytest

from rlhf_lightning.checkpoint.io import checkpoints
from rlhf_lightning.checkpoint.provenance import sha256
from rlhf_lightning.errors import CheckpointError, ConfigError
from tests.support.small_pipeline import assert_same_metrics, exported, go, go_in_pieces, prepare

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, go(words, folder)


def test_a_run_stopped_again_and_again_ends_where_an_uninterrupted_one_ends(words, whole, tmp_path):
    folder, metrics = whole
    found, stops = go_in_pieces(words, tmp_path)
    assert stops >= 3
    assert exported(tmp_path) == exported(folder)
    assert_same_metrics(metrics, found)


def test_finished_stages_are_verified_and_not_run_again(words, whole):
    folder, metrics = whole
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    again = go([*words, "resume=auto"], folder)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")} == before
    assert again.items() >= {"val/accuracy": metrics["val/accuracy"]}.items()


def test_stages_added_one_by_one_end_where_one_command_with_all_of_them_ends(words, whole, tmp_path):
    folder, metrics = whole
    for stages in ("sft", "sft,reward", "sft", "reward,ppo"):
        found = go([*words, f"stages=[{stages}]", "resume=auto"], tmp_path)
    assert exported(tmp_path) == exported(folder)
    assert_same_metrics({name: value for name, value in metrics.items() if name in found}, found)


def test_a_changed_file_of_a_finished_stage_stops_the_run(words, whole):
    folder, _ = whole
    file = folder / "sft" / "config.json"
    text = file.read_text()
    file.write_text(text.replace(" ", "  ", 1))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        go([*words, "resume=auto"], folder)
    file.write_text(text)


def test_another_config_is_refused_with_what_changed(words, whole):
    folder, _ = whole
    with pytest.raises(ConfigError, match=r"sft\.optimizer\.lr: 2e-05 -> 0\.1") as error:
        go([*words, "resume=auto", "sft.optimizer.lr=0.1"], folder)
    assert "another run_dir" in str(error.value)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(words, whole, tmp_path):
    with pytest.raises(SystemError):
        go(words, tmp_path, after=4)
    newest = checkpoints(tmp_path / "checkpoints" / "sft")[0]
    (newest / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match=rf"skipped the checkpoint {newest.name}.*state\.json"):
        go([*words, "resume=auto"], tmp_path)
    assert exported(tmp_path) == exported(whole[0])


def test_a_single_stage_goes_on_from_a_checkpoint_and_a_pipeline_does_not(words, whole, tmp_path):
    folder, _ = whole
    path = checkpoints(folder / "checkpoints" / "sft")[0]
    go([*words, "stages=[sft]", f"resume={path}"], tmp_path)
    assert sha256(tmp_path / "sft" / "model.safetensors") == exported(folder)["sft/model.safetensors"]
    with pytest.raises(ConfigError, match="belongs to one stage, but sft, reward, ppo"):
        go([*words, f"resume={path}"], tmp_path)
    with pytest.raises(CheckpointError, match="not a checkpoint folder"):
        go([*words, "stages=[sft]", f"resume={folder / 'sft'}"], tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from rlhf_lightning.checkpoint.places import lock
with lock(Path(sys.argv[1]), inside=True):  # as a run does
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_belongs_to_one_process_until_that_one_is_gone(words, tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"in use by process {other.pid} on"):
            go([*words, "stages=[sft]"], tmp_path)
    finally:
        other.kill()
        other.communicate()
    go([*words, "stages=[sft]"], tmp_path)
