"""The algorithms of `conf/algorithm/` as the command line composes them: each runs, each does what its name promises,
and combinations that cannot learn are refused before anything is loaded."""

from functools import partial

import lightning
import pytest
import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.advantage import dr_grpo, gae, grpo, rloo
from rlhf_lightning.functional.policy import reinforce_loss
from rlhf_lightning.functional.ppo import clipped_policy_loss
from rlhf_lightning.models import ValueHead
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.ppo_rules import check_combination
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer
from tests.support import algorithms, tiny

TEXTS = ("the food was", "we left", "very slow service and bad food .", "good")
TRAINER = {
    "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def praise(prompts, completions, **columns):
    return [float(c.split().count("good")) for c in completions]


def fit(module, steps=1):
    """Train on four prompts; returns what was logged last."""
    trainer = lightning.Trainer(**TRAINER)
    trainer.fit(module, tiny.Prompts(tiny.prompts(*TEXTS), steps))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def build(
    scorer=praise,
    sampling=None,
    kl=0.1,
    lr=1e-3,
    policy_loss=clipped_policy_loss,
    advantage=gae,
    critic="policy",
    **settings,
):
    """A module with settings of choice over the tiny policy."""
    return PPOModule(
        tiny.policy(scale=0.3),
        FunctionScorer(scorer),
        tiny.tokenizer(),
        optimizer=partial(torch.optim.SGD, lr=lr),
        sampling=sampling or Sampling(max_new_tokens=10),
        critic=critic,
        kl_controller=FixedKL(kl),
        advantage=advantage,
        policy_loss=policy_loss,
        settings=PPOSettings(**{"ppo_epochs": 1, "max_grad_norm": 0.0, "max_approx_kl": None, **settings}),
    )


def composed(name, **settings):
    """The module that `stage=ppo algorithm=<name>` makes, over the tiny policy."""
    return build(**algorithms.composed(name) | settings)


@pytest.mark.parametrize("name", algorithms.NAMES)
def test_every_algorithm_runs_from_its_config(name):
    module = composed(name)
    before = [p.detach().clone() for p in module._sources[0].parameters()]
    logged = fit(module, steps=6 if module.settings.critic_warmup else 2)
    assert logged["policy/updates"] >= 1 and all(v == v for v in logged.values())
    assert ("val/var_explained" in logged) == (name in ("ppo", "ppo_vc"))
    assert ("frac_reward_zero_std" in logged) == (module.settings.group_size > 1)
    assert len(module.last_experience.rollout) == 4 * module.settings.group_size
    assert any(not torch.equal(a, b) for a, b in zip(before, module.policy.parameters(), strict=True))


@pytest.mark.parametrize("name", algorithms.NAMES)
def test_the_first_update_sees_ratio_one_and_every_split_gives_the_same_gradient(name):
    after = {}
    for micro in (4, 1):
        untied = {"scorer": lambda prompts, completions, **columns: [float(len(c)) for c in completions]}
        module = composed(name, micro_batch_size=micro, ppo_epochs=1, critic_warmup=0, max_grad_norm=0.0, **untied)
        module._optimizer = partial(torch.optim.SGD, lr=0.1)
        logged = fit(module)
        assert logged["val/ratio"] == 1.0 and logged["policy/approxkl_avg"] == 0.0
        assert logged["val/ratio_max"] == logged["val/ratio_min"] == 1.0
        after[micro] = torch.cat([p.detach().flatten() for p in module.policy.parameters()])
    start = torch.cat([p.detach().flatten() for p in tiny.policy(scale=0.3).parameters()])
    assert (after[4] - start).norm() > 1e-5
    assert (after[1] - after[4]).norm() <= 1e-5 * max((after[4] - start).norm(), 1e-6)


def test_groups_answer_the_same_prompt_and_their_advantages_sum_to_zero():
    module = build(advantage=partial(dr_grpo, group_size=4), group_size=4, baseline="none", whiten_advantages=False)
    fit(module)
    e = module.last_experience
    prompts = [row["prompt"] for row in e.rollout.rows]
    assert prompts == [text for text in TEXTS for _ in range(4)]
    assert len({tuple(r.tolist()) for r in e.rollout.response_ids[:4]}) > 1  # not one sample copied
    torch.testing.assert_close(e.advantages[:, 0].view(4, 4).sum(1), torch.zeros(4), atol=1e-5, rtol=0)


def test_the_greedy_baseline_is_the_score_of_the_likeliest_answer():
    module = build(advantage=partial(gae, lam=1.0), baseline="greedy", policy_loss=reinforce_loss, kl=0.0,
                   whiten_advantages=False, missing_eos_penalty=0.0)  # fmt: skip
    fit(module)
    e = module.last_experience
    module.policy.load_state_dict(tiny.policy(scale=0.3).state_dict())
    greedy = module.generate(tiny.prompts(*TEXTS), Sampling(max_new_tokens=10, top_k=1))
    want = e.scores - module.score(greedy)
    torch.testing.assert_close(e.advantages[:, 0], want)
    assert [g["name"] for g in module.parameter_groups()] == ["policy"] and module.critic is None


def test_kl_in_the_loss_pulls_towards_the_reference_and_not_in_the_reward():
    def train(coef):
        return fit(build(kl=coef, lr=0.5, kl_placement="loss", kl_estimator="k2", ppo_epochs=4, value_coef=0.0,
                         missing_eos_penalty=0.0), steps=5)  # fmt: skip

    free, held = train(0.0), train(1.0)
    assert free["objective/kl"] > 1.5 * held["objective/kl"]
    assert held["objective/non_score_reward"] == 0 and held["loss/kl_avg"] > 0


@pytest.mark.filterwarnings("ignore:ppo. val/var_explained")  # the scores hardly vary
def test_entropy_is_rewarded():
    def entropy(coef):
        return fit(build(lr=0.5, kl=0.0, entropy_coef=coef, ppo_epochs=4), steps=5)["policy/entropy_avg"]

    assert entropy(0.5) > entropy(0.0) + 0.05


def test_truncated_answers_can_be_left_out():
    module = build(mask_truncated=True, sampling=Sampling(max_new_tokens=14))
    logged = fit(module)
    e = module.last_experience
    assert 0 < logged["completions/eos_rate"] < 1
    assert torch.equal(e.mask, e.rollout.mask & e.rollout.finished[:, None])
    assert e.advantages[~e.mask].abs().sum() == 0


def test_responses_nobody_judged_are_left_out():
    def silent(prompts, completions, **columns):
        return [None if "slow" in p else 1.0 for p in prompts]

    module = build(scorer=silent)
    module.scorer.abstain_value = float("nan")
    logged = fit(module)
    assert logged["objective/scores"] == 1.0
    assert module.last_experience.counted.tolist() == [True, True, False, True]


def test_scores_per_token_land_on_their_tokens():
    class Steps(FunctionScorer):
        def score(self, rollout, tokenizer):
            return torch.arange(rollout.mask.shape[1]).float().expand_as(rollout.mask)

    module = build(kl=0.0, missing_eos_penalty=0.0)
    module.scorer = Steps(praise)
    fit(module)
    e = module.last_experience
    want = torch.where(e.mask, torch.arange(e.mask.shape[1]).float(), 0)
    torch.testing.assert_close(e.rewards, want)
    torch.testing.assert_close(e.scores, want.sum(1))


def test_the_rollout_correction_weighs_the_loss():
    plain, corrected = build(lr=0.1), build(lr=0.1, correction="token_truncate")
    fit(plain), fit(corrected)
    weights = corrected.last_experience.weights
    assert weights.shape == corrected.last_experience.mask.shape
    torch.testing.assert_close(weights[corrected.last_experience.mask], torch.ones(int(weights.sum().round())))
    for a, b in zip(plain.policy.parameters(), corrected.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


GROUPED = {"advantage": partial(rloo, group_size=4), "group_size": 4, "baseline": "none"}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"kl_placement": "loss", "kl_estimator": "k1"}, "expected gradient of k1 as a loss is zero"),
        ({**GROUPED, "group_size": 1, "advantage": rloo}, "its own baseline, so every advantage is 0"),
        ({**GROUPED, "group_size": 2}, "group_size=4 but ppo.settings.group_size=2"),
        ({**GROUPED, "baseline": "critic"}, "never looks at another baseline"),
        ({**GROUPED, "advantage": partial(grpo, group_size=4)}, "already standardised"),
        ({"baseline": "none"}, "it only fades the score out"),
        ({"baseline": "none", "advantage": partial(gae, lam=1.0), "critic_warmup": 2}, "no critic to warm up"),
        ({"critic_warmup": 2, "critic": "shared_trunk"}, "a head on the policy would move the policy with it"),
        ({"critic_warmup": 2, "critic": partial(ValueHead, 8)}, "a head on the policy would move the policy with it"),
        ({"policy_loss": reinforce_loss, "ppo_epochs": 4}, "holds only for the policy that sampled"),
        ({"max_resamples": 1}, "a group of one always scores the same"),
        ({"sampling": Sampling(top_k=5)}, "sampling.top_k=5"),
    ],
)
def test_invalid_combinations_are_refused_with_the_reason(parts, says):
    slots = {"advantage": gae, "policy_loss": clipped_policy_loss, "sampling": Sampling(), "critic": "policy"}
    settings = {k: v for k, v in parts.items() if k not in slots}
    chosen = {**slots, **{k: v for k, v in parts.items() if k in slots}}
    with pytest.raises(ConfigError, match=says):
        check_combination(PPOSettings(**settings), **chosen)


def test_a_user_defined_function_is_no_combination_to_be_refused():
    check_combination(
        PPOSettings(baseline="none"), Sampling(), lambda r, v, m: (r, r), lambda *a, **k: clipped_policy_loss(*a, **k)
    )
