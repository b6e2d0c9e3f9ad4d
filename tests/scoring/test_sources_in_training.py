"""Reward sources inside PPO: each is logged apart, silence teaches nothing, running statistics survive a resume."""

import json
import math
import statistics
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import lightning
import pytest
import torch

from rlhf_lightning.functional.advantage import gae
from rlhf_lightning.metrics.rollout import _of_sources
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import EnsembleScorer, FunctionScorer, RewardSources, Source
from rlhf_lightning.scoring.transforms import RunningNormalise
from tests.gates.gate_sources import ROOT
from tests.support import tiny

TEXTS = ("the food was", "we left", "very slow service and bad food .", "good")


def brevity(prompts, completions, **columns):
    return [-float(len(c.split())) for c in completions]


def praise_of_food(prompts, completions, **columns):
    """Abstains from half of the prompts."""
    return [float(c.count("good")) if "food" in p else None for p, c in zip(prompts, completions, strict=True)]


def silence(prompts, completions, **columns):
    return [None] * len(prompts)


def source(function, weight=1.0, *transforms):
    return Source(FunctionScorer(function, abstain_value=None), weight, transforms)


def module(scorer, **settings):
    return PPOModule(
        tiny.policy(scale=0.3),
        scorer,
        tiny.tokenizer(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        sampling=Sampling(max_new_tokens=10),
        kl_controller=FixedKL(0.1),
        advantage=partial(gae, lam=1.0),
        settings=PPOSettings(**{"ppo_epochs": 1, "max_approx_kl": None, "missing_eos_penalty": 0.0, **settings}),
    )


def fit(ppo, steps=1, callbacks=(), **options):
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(ppo, tiny.Prompts(tiny.prompts(*TEXTS, repeats=2), steps), **options)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def texts_of(ppo):
    rollout = ppo.last_experience.rollout
    ids = [row[m].tolist() for row, m in zip(rollout.response_ids, rollout.mask, strict=True)]
    return [row["prompt"] for row in rollout.rows], tiny.tokenizer().batch_decode(ids, skip_special_tokens=True)


def test_two_sources_are_logged_apart_over_what_each_has_judged():
    ppo = module(RewardSources({"short": source(brevity, 0.5), "praise": source(praise_of_food, 2.0)}))
    logged = fit(ppo)
    prompts, texts = texts_of(ppo)
    short, praise = brevity(prompts, texts), praise_of_food(prompts, texts)
    judged = [p for p in praise if p is not None]
    assert len(judged) == 4
    assert logged["rewards/short/mean"] == pytest.approx(statistics.fmean(short))
    assert logged["rewards/short/std"] == pytest.approx(statistics.pstdev(short))
    assert logged["rewards/praise/mean"] == pytest.approx(statistics.fmean(judged))
    assert logged["rewards/praise/std"] == pytest.approx(statistics.pstdev(judged))
    total = [0.5 * s + 2.0 * (p or 0.0) for s, p in zip(short, praise, strict=True)]
    assert logged["objective/scores"] == pytest.approx(statistics.fmean(total))


def test_answers_that_nobody_judged_teach_nothing_and_a_silent_source_logs_nothing():
    ppo = module(RewardSources({"praise": source(praise_of_food), "mute": source(silence)}))
    logged = fit(ppo)
    prompts, _ = texts_of(ppo)
    assert ppo.last_experience.counted.tolist() == ["food" in p for p in prompts]
    assert "rewards/praise/mean" in logged and not any("mute" in tag for tag in logged)


def test_the_disagreement_of_an_ensemble_is_logged():
    def apart(prompts, completions, **columns):
        return [s + 2.0 for s in brevity(prompts, completions)]

    logged = fit(module(EnsembleScorer([FunctionScorer(brevity), FunctionScorer(apart)], "mean")))
    assert logged["rewards/disagreement/mean"] == pytest.approx(1.0)
    assert logged["rewards/disagreement/std"] == pytest.approx(0.0, abs=1e-6)


def test_a_greedy_baseline_does_not_get_between_a_rollout_and_its_sources():
    running = RunningNormalise()
    ppo = module(RewardSources({"short": source(brevity, 1.0, running)}), baseline="greedy")
    logged = fit(ppo)
    assert logged["rewards/short/mean"] == pytest.approx(statistics.fmean(brevity(*texts_of(ppo))))
    assert running.state_dict()["count"] == 8


def test_a_scorer_of_one_piece_logs_no_sources():
    assert not any(tag.startswith("rewards/") for tag in fit(module(FunctionScorer(brevity))))


def test_means_are_over_the_judged_answers_of_all_ranks():
    details = {"a": torch.tensor([1.0, math.nan]), "b": torch.full((2,), math.nan)}
    other = torch.tensor([[3.0, math.nan], [8.0, math.nan]], dtype=torch.float64)
    ranks = SimpleNamespace(gather=lambda local: torch.stack([local, other]))
    logged = _of_sources(details, ranks)
    assert {name: float(value) for name, value in logged.items()} == {
        "rewards/a/mean": 4.0,
        "rewards/a/std": pytest.approx(statistics.pstdev([1, 3, 8])),
    }


class SaveAt(lightning.Callback):
    def __init__(self, rollout, path):
        self.rollout, self.path = rollout, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.rollouts == self.rollout:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # a plain loader has no position
def test_running_statistics_go_on_after_a_resume(tmp_path):
    def fresh():
        return module(RewardSources({"short": source(brevity, 1.0, RunningNormalise())}))

    whole, resumed = fresh(), fresh()
    fit(whole, 3, [SaveAt(1, tmp_path / "at1.ckpt")])
    fit(resumed, 3, ckpt_path=tmp_path / "at1.ckpt", weights_only=True)
    assert whole.scorer.state_dict()["sources/short/RunningNormalise"]["count"] == 24
    assert resumed.scorer.state_dict() == whole.scorer.state_dict()
    assert torch.equal(resumed.last_experience.scores, whole.last_experience.scores)


def test_two_ranks_share_their_running_statistics(tmp_path):
    command = [sys.executable, "-m", "tests.support.sources_worker"]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT) for rank in range(2)]
    assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["state"] == second["state"]
    scores = [0.0, 2.0, 4.0, 10.0, 1.0, 1.0, 1.0]  # of both calls on both ranks, without the NaN
    assert first["state"]["count"] == 7
    assert first["state"]["mean"] == pytest.approx(statistics.fmean(scores))
    assert first["last"][0] == pytest.approx((1.0 - statistics.fmean(scores)) / statistics.pstdev(scores), rel=1e-5)
