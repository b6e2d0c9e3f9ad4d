"""An environment by its import path, in a run."""

import csv

import pytest

from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import ConfigError
from tests.support import small_pipeline
from tests.support.small_run import go

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
ENVIRONMENT = ["rollout=environment", "rollout.environment._target_=tests.support.episodes.Talk", "scorer=environment"]


def words(folder):
    return [
        *small_pipeline.inputs(folder), "stages=[ppo]", "ppo.policy=${model.path}", "ppo.monitor=false",
        "ppo.rollouts=2", "ppo.sampling.max_new_tokens=3", *ENVIRONMENT,
    ]  # fmt: skip


@pytest.mark.parametrize("inner", ["loop.LoopEngine", "hf.HFGenerateEngine"])
def test_a_run_with_an_environment_logs_its_reward(tmp_path, inner):
    go(words(tmp_path), tmp_path / "run", f"rollout.engine._target_=rlhf_lightning.rollout.{inner}")
    rows = list(csv.DictReader((tmp_path / "run" / "history" / "ppo.csv").read_text().splitlines()))
    scores = [float(row["objective/scores"]) for row in rows]
    assert len(scores) == 2 and all(1 <= score <= 3 for score in scores)  # turns that were heard


def test_an_environment_in_a_file_needs_trust(tmp_path):
    (tmp_path / "rollout").mkdir()
    text = """# @package rollout
_target_: rlhf_lightning.rollout.environment.EnvironmentEngine
engine: {_target_: rlhf_lightning.rollout.loop.LoopEngine}
environment: {_target_: os.system, _partial_: true}
"""
    (tmp_path / "rollout" / "game.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"rollout\.environment\._target_: os\.system is not on the list"):
        compose(["stage=ppo", "rollout=game", f"hydra.searchpath=[file://{tmp_path}]"])
