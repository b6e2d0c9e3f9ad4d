"""Work that is done once instead of several times changes nothing: prompts of several answers, log-probabilities."""

from functools import partial

import pytest
import torch

from rlhf_lightning.functional.advantage import grpo, rloo
from rlhf_lightning.functional.policy import reinforce_loss
from rlhf_lightning.functional.ppo import clipped_policy_loss
from rlhf_lightning.models import Pretrained, packing
from rlhf_lightning.modules import DPOModule, PPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout import LoopEngine, Sampling
from rlhf_lightning.scoring import FunctionScorer
from tests.support import offline, phases, tiny

LONG = ("the food was very good and the service was slow and kind .", "we left very happy and the service was good .")
GROUP = 4


class Counting:
    """A function and how often it was called."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *given, **named):
        self.calls += 1
        return self.function(*given, **named)


@pytest.fixture
def shared(monkeypatch):
    counting = Counting(packing.packed_inputs)
    monkeypatch.setattr(packing, "packed_inputs", counting)
    return counting


def recipe(folder, share, frozen):
    """A policy that packs its rows if it may; the lowest layers frozen, or all of them to be trained."""
    policy = tiny.policy(scale=0.3)
    if not frozen:
        policy.pack_rows = share and packing.can_pack(policy)
        return policy
    policy.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return Pretrained(str(folder), freeze_below=frozen, pack_rows=share)


def group_run(
    share=False, micro=None, critic=None, loss=clipped_policy_loss, advantage=grpo, engine=None, policy=None, **settings
):
    policy = policy or recipe(None, share, frozen=0)
    module = PPOModule(
        policy, FunctionScorer(phases.praise), tiny.tokenizer(), optimizer=partial(torch.optim.SGD, lr=0.5),
        critic=critic or "policy", sampling=Sampling(6), advantage=partial(advantage, group_size=GROUP),
        policy_loss=loss, engine=engine,
        settings=PPOSettings(**{
            "baseline": "critic" if critic else "none", "ppo_epochs": 1, "group_size": GROUP, "max_approx_kl": None,
            "whiten_advantages": False, "micro_batch_size": micro, **settings,
        }),
    )  # fmt: skip
    run = phases.trainer()
    run.fit(module, tiny.Prompts(tiny.prompts(*LONG), 2))
    return phases.flat(module.policy), {name: float(v) for name, v in run.callback_metrics.items()}


@pytest.mark.parametrize("micro", [None, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kl_placement": "loss", "kl_estimator": "k3"},
        {"advantage": rloo, "loss": reinforce_loss},
        {"ppo_epochs": 3},
    ],
    ids=["grpo", "kl in the loss", "rloo", "three passes"],
)
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_group_that_shares_its_prompt_learns_the_same(tmp_path, shared, options, micro, frozen):
    expected, plain = group_run(micro=micro, policy=recipe(tmp_path, False, frozen), **options)
    assert shared.calls == 0
    after, logged = group_run(micro=micro, policy=recipe(tmp_path, True, frozen), **options)
    assert shared.calls > 4  # policy and reference, twice each, and what can_pack tries
    assert torch.allclose(after, expected, atol=1e-6) and not torch.equal(expected, phases.flat(tiny.policy(scale=0.3)))
    assert logged["policy/approxkl_avg"] == pytest.approx(plain["policy/approxkl_avg"], abs=1e-5)


@pytest.mark.parametrize("frozen", [0, 1])
def test_dpo_pairs_that_share_their_prompt_learn_the_same(tmp_path, shared, frozen):
    answers = [" good", " bad", " slow ."]
    rows = [{"prompt": prompt, "completions": answers, "ranks": [1, 3, 2]} for prompt in LONG]
    file = offline.write(tmp_path / "rankings.jsonl", rows)

    def after(share):
        policy, sgd = recipe(tmp_path, share, frozen), partial(torch.optim.SGD, lr=1.0)
        module = DPOModule(policy, tiny.tokenizer(), sgd, max_grad_norm=0.0)
        offline.fit(module, offline.pairs(file, batch=2))
        return phases.flat(module.policy)

    expected = after(False)
    assert shared.calls == 0
    assert torch.allclose(after(True), expected, atol=1e-6) and shared.calls > 2


class Inexact(LoopEngine):
    """Decodes with other weights than training, as far as anybody knows."""

    is_exact = False


class Silent(LoopEngine):
    """Does not say whether it is exact."""

    @property
    def is_exact(self):
        raise AttributeError


@pytest.mark.parametrize("advantage", [grpo, rloo])
def test_a_single_update_needs_no_forward_for_its_old_log_probabilities(monkeypatch, advantage):
    calls = Counting(PPOModule.forward_policy)
    monkeypatch.setattr(PPOModule, "forward_policy", lambda *given, **named: calls(*given, **named))
    expected, plain = group_run(reuse_logprobs=False, advantage=advantage)
    assert calls.calls == 4
    after, logged = group_run(advantage=advantage)
    assert calls.calls == 4 + 2 + 1  # the engine is checked in the first rollout
    assert torch.allclose(after, expected, atol=1e-6)
    assert logged["policy/approxkl_avg"] == 0 and logged["val/ratio"] == 1
    assert logged["objective/kl"] == pytest.approx(plain["objective/kl"], abs=1e-5) and logged["objective/kl"] != 0


@pytest.mark.parametrize(
    "options",
    [
        {"ppo_epochs": 2},
        {"num_minibatches": 2},
        {"correction": "token_mask"},
        {"engine": Inexact()},
        {"engine": Silent()},
    ],
    ids=["two passes", "minibatches", "correction", "inexact engine", "silent engine"],
)
def test_otherwise_old_log_probabilities_are_those_of_training(options):
    expected, _ = group_run(reuse_logprobs=False, **options)
    after, logged = group_run(**options)
    assert torch.equal(after, expected)
    assert "sampling/sampling_logp_difference/max" in logged
