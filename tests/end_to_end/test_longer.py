"""A stage that has finished is made longer, and ends where one that was as long from the start ends."""

import pytest

from rlhf_lightning.errors import CheckpointError, ConfigError
from tests.support.small_pipeline import prepare
from tests.support.small_run import go

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
CONSTANT = ["sft.scheduler.final=1.0", "ppo.scheduler.final=1.0", "checkpoint.every_n_steps=null"]  # of any length
LENGTHS = {"sft": ("sft.max_epochs", 1, 3), "ppo": ("ppo.rollouts", 2, 4)}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    scorer = ["scorer=function", "scorer.function=tests.support.phases.praise", "scorer.isolate=false"]
    return [*prepare(tmp_path_factory.mktemp("data")), *CONSTANT, *scorer]


@pytest.mark.parametrize("stage", LENGTHS)
def test_a_finished_stage_goes_on_from_its_end(words, tmp_path, stage):
    key, short, long = LENGTHS[stage]
    alone = [*words, f"stages=[{stage}]", "ppo.policy=${model.path}", "ppo.critic=policy", "ppo.best_policy=null"]
    first = go([*alone, f"{key}={short}"], tmp_path / "grown")
    grown = go([*alone, f"{key}={long}", "resume=auto"], tmp_path / "grown")
    assert grown == go([*alone, f"{key}={long}"], tmp_path / "long") != first
    histories = [(tmp_path / run / "history" / f"{stage}.csv").read_text().splitlines() for run in ("grown", "long")]
    assert [row.split(",")[:2] for row in histories[0]] == [row.split(",")[:2] for row in histories[1]]
    with pytest.raises(ConfigError, match=f"{key}: {long} -> {short}"):
        go([*alone, f"{key}={short}", "resume=auto"], tmp_path / "grown")


def test_a_stage_that_others_went_on_from_and_one_without_its_end_stay_as_they_are(words, tmp_path):
    alone = [*words, "sft.max_epochs=1", "checkpoint.at_end=false", "resume=auto"]
    go([*alone, "stages=[sft]"], tmp_path)
    with pytest.raises(CheckpointError, match=r"sft \(1 -> 2 epochs\) cannot .* no checkpoint of it is left"):
        go([*alone, "stages=[sft]", "sft.max_epochs=2"], tmp_path)
    go([*alone, "stages=[sft,reward]"], tmp_path)
    with pytest.raises(ConfigError, match=r"sft \(1 -> 2 epochs\) cannot become longer, for reward went on"):
        go([*alone, "stages=[sft,reward]", "sft.max_epochs=2"], tmp_path)


def test_a_fast_dev_run_exports_nothing(words, tmp_path, capsys):
    with pytest.raises(FileNotFoundError):  # of the model, which is asked for its checksum
        go([*words, "stages=[sft]", "+trainer.fast_dev_run=true"], tmp_path)
    assert "sft: fast_dev_run only tried a step; no model is exported" in capsys.readouterr().out
    assert not (tmp_path / "sft").exists() and not (tmp_path / "checkpoints" / "sft").exists()
