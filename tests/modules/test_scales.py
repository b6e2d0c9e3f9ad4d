"""Neither the zero nor the unit of a score changes what is learned, and an answer that nobody judged counts nowhere."""

from functools import partial

import lightning
import pytest
import torch
from torch.testing import assert_close

from rlhf_lightning.functional.advantage import dr_grpo, gae, grpo, rloo
from rlhf_lightning.models import ScalarModel
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.modules.scales import ScoreScale, ValueScale
from rlhf_lightning.optim.kl_controllers import FixedKL, LogSpaceKL
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer, RewardSources
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.training.step_guard import NotFinite, require_finite
from tests.support import tiny

TEXTS = ("the food was", "we left", "very slow service", "good")
NAN = float("nan")


def trained(score, critic="policy", advantage=gae, steps=1, seed=0, **settings):
    """A module after some steps on scores of the texts."""
    torch.manual_seed(seed)
    module = PPOModule(
        tiny.policy(scale=0.3), FunctionScorer(lambda prompts, completions, **columns: list(map(score, completions))),
        tiny.tokenizer(), optimizer=partial(torch.optim.SGD, lr=1e-3), critic=critic, advantage=advantage,
        sampling=Sampling(max_new_tokens=8), kl_controller=FixedKL(0.0), settings=PPOSettings(**settings),
    )  # fmt: skip
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, tiny.Prompts(tiny.prompts(*TEXTS), steps))
    return module


def reward_model(policy, size=1.0):
    torch.manual_seed(1)
    critic = ScalarModel.from_policy(policy)
    torch.nn.init.normal_(critic.model.score.weight, std=size)
    return critic


@pytest.mark.parametrize("critic", ["shared_trunk", "policy", reward_model])
def test_a_constant_added_to_all_scores_or_a_factor_changes_no_advantage(critic):
    plain, moved, scaled = (
        trained(lambda text, a=a, b=b: a * len(text) + b, critic).last_experience
        for a, b in ((1.0, 0.0), (1.0, 200.0), (50.0, 0.0))
    )
    assert plain.advantages[plain.mask].std() > 0.5
    assert_close(moved.advantages, plain.advantages, atol=2e-3, rtol=1e-3)
    assert_close(scaled.advantages, plain.advantages, atol=2e-3, rtol=1e-3)


def test_the_first_step_of_a_critic_does_not_depend_on_the_unit_of_the_scores():
    heads = [trained(lambda text, a=a: a * len(text), ppo_epochs=1).critic.model.score.weight for a in (1.0, 50.0)]
    assert heads[0].abs().sum() > 0
    assert_close(heads[0], heads[1], atol=1e-6, rtol=1e-3)


def test_a_critic_from_a_reward_model_with_a_larger_head_gives_the_same_values():
    small, large = (trained(len, partial(reward_model, size=size)).last_experience for size in (1.0, 5.0))
    assert_close(small.values, large.values, atol=1e-4, rtol=1e-3)


def test_values_are_fitted_to_the_first_returns():
    returns, mask = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])
    scale = ValueScale()
    scale.fit(torch.tensor([[10.0, 20.0, 0.0]]), returns, mask, Ranks())
    assert_close(scale(torch.tensor([[10.0, 20.0]])), returns[:, :2])
    assert scale.unit == 1.0
    scale.fit(torch.zeros(1, 3), returns, mask, Ranks())
    assert_close(scale(torch.tensor([[0.0, 1.0]])), torch.tensor([[2.0, 3.0]]))
    scale.fit(torch.tensor([[20.0, 10.0, 0.0]]), returns, mask, Ranks())  # it says the opposite
    assert scale.scale == pytest.approx(0.1 * 1.0 / 5.0)
    before = dict(vars(scale))
    scale.fit(torch.zeros(1, 3), torch.full((1, 3), torch.inf), mask, Ranks())
    assert vars(scale) == before
    again = ValueScale()
    again.load_state_dict(scale.state_dict())
    assert vars(again) == vars(scale)


def test_a_critic_that_stays_worse_than_the_mean_return_is_a_warning_once():
    scale = ValueScale()
    for explained in (-1.0, -1.0, -1.0, -1.0, 0.0, -1.0, -1.0, -1.0, -1.0, None, *[-1.0] * 4):
        scale.watch(explained)
    with pytest.warns(UserWarning, match="val/var_explained was below -0.5 in 5 rollouts"):
        scale.watch(-0.6)
    scale.watch(-1.0)


def test_the_penalty_for_truncated_answers_is_in_deviations_of_the_scores_that_a_model_gave():
    for learned, given, penalty in ((False, None, 0.0), (True, None, 1.0), (False, 2.0, 2.0), (True, 0.0, 0.0)):
        module = trained(len, missing_eos_penalty=given)
        module.score_scale, module.scorer.learned = ScoreScale(), learned
        assert module.missing_eos_penalty(torch.tensor([0.0, 10.0, NAN])) == pytest.approx(5 * penalty)


def test_the_deviation_of_the_scores_is_a_running_one():
    scale = ScoreScale()
    assert scale.update(torch.tensor([NAN, torch.inf]), Ranks()) == 0.0
    assert scale.update(torch.tensor([-1.0, 1.0]), Ranks()) == 1.0
    assert scale.update(torch.zeros(2), Ranks()) == pytest.approx(0.9**0.5)


@pytest.mark.parametrize("advantage", [rloo, dr_grpo, grpo])
def test_an_answer_nobody_judged_is_not_a_score_of_zero_in_its_group(advantage):
    rewards = torch.tensor([[-5.0], [-5.0], [-5.0], [0.0], [1.0], [3.0], [0.0], [0.0]])
    mask = torch.tensor([[True]] * 3 + [[False]] + [[True]] * 2 + [[False]] * 2)
    found = advantage(rewards, torch.zeros(8, 1), mask, group_size=4)[0][:, 0]
    alone = advantage(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1), torch.ones(2, 1).bool(), group_size=2)[0][:, 0]
    assert_close(found, torch.cat([torch.zeros(4), alone, torch.zeros(2)]))


def test_nothing_is_learned_from_a_prompt_whose_greedy_answer_nobody_judged():
    module = trained(len, baseline="greedy", advantage=partial(gae, lam=1.0), ppo_epochs=1, whiten_advantages=False)
    rollout = module.last_experience.rollout
    module.greedy_baseline = lambda rollout, penalty: torch.tensor([NAN, 1.0, 1.0, 1.0])
    experience = module.evaluate(rollout, torch.tensor([5.0, 5.0, NAN, 2.0]))
    assert experience.counted.tolist() == [False, True, False, True]
    assert experience.advantages[:, 0].tolist() == [0.0, 4.0, 0.0, 1.0]


def test_a_critic_whose_numbers_are_broken_is_no_missing_baseline():
    module = trained(len)
    rollout = module.last_experience.rollout
    with torch.no_grad():
        module.critic.model.score.weight.fill_(NAN)
    experience = module.evaluate(rollout, torch.ones(len(rollout)))
    with pytest.raises(NotFinite):
        require_finite(experience, module.ranks)


def test_truncated_answers_that_do_not_count_do_not_lower_the_baseline_of_the_others():
    module = trained(len, baseline="none", advantage=partial(dr_grpo, group_size=2), group_size=2,
                     mask_truncated=True, whiten_advantages=False)  # fmt: skip
    rollout = module.last_experience.rollout
    object.__setattr__(rollout, "finished", torch.tensor([True, False] * 4))
    assert (module.evaluate(rollout, torch.arange(8.0)).advantages == 0).all()


def test_recipes_for_verifiable_rewards_charge_kl_only_where_a_model_scores(caplog):
    given = {
        "policy": tiny.policy(),
        "tokenizer": tiny.tokenizer(),
        "kl_controller": LogSpaceKL(learned_scores_only=True),
    }
    scorer = FunctionScorer(lambda prompts, completions, **columns: [0.0] * len(prompts))
    assert PPOModule(scorer=scorer, **given).kl_controller.coef == 0.0
    scorer.learned = True
    sources = RewardSources({"model": scorer})
    assert PPOModule(scorer=sources, **given).kl_controller is given["kl_controller"]
    assert not caplog.messages
    PPOModule(scorer=sources, **given | {"kl_controller": FixedKL(0.0)})
    assert "no KL penalty keeps the policy near" in caplog.messages[0]
