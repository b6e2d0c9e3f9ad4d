"""A run of the command that samples from a server, whole and in pieces."""

import csv

import pytest

from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import ConfigError
from tests.support import small_pipeline, tiny
from tests.support.fake_vllm import fake_vllm

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


def test_a_run_that_samples_from_a_server_learns_and_ends_the_same_in_pieces_with_servers_elsewhere(tmp_path):
    with fake_vllm(tiny.policy(seed=9)) as server:
        words = [
            *small_pipeline.inputs(tmp_path), "stages=[ppo]", "ppo.policy=${model.path}", "ppo.rollouts=3",
            "ppo.monitor=false", "scorer=function", "scorer.function=tests.support.phases.praise",
            "scorer.isolate=false", "trusted_targets=[tests]", "checkpoint.every_n_minutes=null",
            "checkpoint.every_n_steps=1", "rollout=server", f"rollout.urls=[{server.url}]",
        ]  # fmt: skip
        whole = small_pipeline.go(words, tmp_path / "whole")
        rows = list(csv.DictReader((tmp_path / "whole" / "history" / "ppo.csv").read_text().splitlines()))
        gaps = [float(row["sampling/sampling_logp_difference/mean"]) for row in rows]
        assert len(gaps) == 3 and max(gaps) < 1e-5 and server.paths.count("/update_weights") == 3
        with pytest.raises(SystemError):
            small_pipeline.go(words, tmp_path / "pieces", after=1)
        with pytest.raises(ConfigError, match=r"made with another config \(rollout\.weights: "):
            small_pipeline.go([*words, "rollout.weights=reload", "resume=auto"], tmp_path / "pieces")
        elsewhere = [*words, f"rollout.urls=[{server.url.replace('127.0.0.1', 'localhost')}]", "rollout.concurrency=1"]
        pieces, stops = small_pipeline.go_in_pieces(elsewhere, tmp_path / "pieces", after=1)
        assert stops == 1
        small_pipeline.assert_same_metrics(whole, pieces)
        assert not list((tmp_path / "whole" / "server").glob("weights"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], r"rollout\.urls=\[\] and rollout\.start=false: give rollout\.urls="),
        (["rollout.weights=nccl"], r"rollout\.weights=nccl"),
        (["rollout.start=true", "rollout.weights=lora"], r"lora: the policy of stage ppo has no adapters"),
        (["stage=pipeline", "rollout.start=true", "rollout.weights=lora", "+model.lora.r=8"], r"policy of stage rank"),
        (["rollout.concurrency=0"], r"concurrency=0: must be at least 1"),
        (["rollout.stop_at=0"], r"stop_at=0: must be above 0"),
        (["rollout.timeout=x"], r"rollout\.timeout"),
    ],
)
def test_what_cannot_work_is_refused_before_torch_is_imported(words, says):
    with pytest.raises(ConfigError, match=says):
        compose(["stage=ppo", "task=custom", "data.prompts=x", "model.path=x", "scorer=function",
                 "scorer.function=tests.support.phases.praise", "rollout=server", *words])  # fmt: skip
