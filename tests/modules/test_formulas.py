"""A formula that cannot work is known before a model is loaded, by the key it is set at."""

import re
from functools import partial

import pytest
import torch

from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.advantage import dr_grpo, gae, grpo, returns_only, rloo
from rlhf_lightning.functional.kto import kto_loss
from rlhf_lightning.functional.policy import cispo_loss, gspo_loss, reinforce_loss
from rlhf_lightning.functional.ppo import clipped_policy_loss
from rlhf_lightning.functional.preference import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from rlhf_lightning.functional.reference_free import orpo_odds_ratio_loss, simpo_loss
from rlhf_lightning.functional.reward import kwise_logistic_loss, plackett_luce_loss
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules import PPOModule, RewardModule, SFTModule
from rlhf_lightning.modules import formulas as checks
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.stages.pipeline import run
from tests.support import tiny

ADVANTAGES = [gae, returns_only, *(partial(f, group_size=4) for f in (rloo, grpo, dr_grpo))]
CHECKS = {
    "ppo.advantage": (partial(checks.check_advantage, group_size=4), gae),
    "ppo.loss": (checks.check_policy_loss, clipped_policy_loss),
    "dpo.loss": (checks.check_pair_loss, dpo_loss),
    "kto.loss": (checks.check_answer_loss, kto_loss),
    "reward.loss": (checks.check_ranking_loss, kwise_logistic_loss),
}
LOSSES = [key for key in CHECKS if key != "ppo.advantage"]


def changed(formula, change):
    """The formula, with its loss (of an advantage: the advantages) changed."""

    def mine(*given, **named):
        found = formula(*given, **named)
        if isinstance(found, torch.Tensor):
            return change(found)
        if formula is gae:
            return change(found[0]), found[1]
        return found._replace(loss=change(found.loss))

    return mine


@pytest.mark.parametrize("formula", ADVANTAGES)
def test_our_advantages_pass(formula):
    checks.check_advantage(formula, group_size=4)


@pytest.mark.parametrize("formula", [clipped_policy_loss, reinforce_loss, gspo_loss, cispo_loss])
def test_our_policy_losses_pass(formula):
    checks.check_policy_loss(formula)


@pytest.mark.parametrize("formula", [dpo_loss, hinge_loss, ipo_loss, partial(robust_dpo_loss, label_smoothing=0.1)])
def test_our_losses_of_pairs_pass_and_need_a_reference(formula):
    assert checks.check_pair_loss(formula)


@pytest.mark.parametrize("formula", [simpo_loss, orpo_odds_ratio_loss])
def test_those_without_a_reference_are_recognised(formula):
    assert not checks.check_pair_loss(formula)


@pytest.mark.parametrize("formula", [kwise_logistic_loss, plackett_luce_loss])
def test_our_losses_of_rankings_pass(formula):
    checks.check_ranking_loss(formula)


@pytest.mark.parametrize("key", CHECKS)
def test_wrong_arguments_are_named_with_the_key_and_the_call(key):
    check, formula = CHECKS[key]
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: \w+ cannot be called as f\(.*TypeError.*clip_rnage"):
        check(partial(formula, clip_rnage=0.2))


@pytest.mark.parametrize("key", CHECKS)
def test_an_error_of_its_own_is_shown(key):
    def broken(*given, **named):
        raise KeyError("beta")

    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: broken cannot be called .*KeyError: 'beta'"):
        CHECKS[key][0](broken)


@pytest.mark.parametrize("key", CHECKS)
def test_another_shape_is_named(key):
    check, formula = CHECKS[key]
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: mine, called as .* wanted: .* of shape \["):
        check(changed(formula, lambda found: found[None]))


@pytest.mark.parametrize(
    ("key", "field"),
    [("ppo.advantage", 1), ("ppo.loss", "per_token"), ("dpo.loss", "chosen_rewards"), ("dpo.loss", "rejected_rewards"),
     ("kto.loss", "rewards")],
)  # fmt: skip
def test_another_shape_beside_the_loss_is_named(key, field):
    check, formula = CHECKS[key]

    def mine(*given, **named):
        found = formula(*given, **named)
        return (found[0], found[1][:1]) if field == 1 else found._replace(**{field: getattr(found, field)[:1]})

    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: mine, called as .* wanted: .* of shape \["):
        check(mine)


@pytest.mark.parametrize("key", CHECKS)
def test_nan_is_named(key):
    check, formula = CHECKS[key]
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: mine, .* is not finite"):
        check(changed(formula, lambda found: found * float("nan")))


@pytest.mark.parametrize("key", LOSSES)
def test_a_loss_without_a_gradient_is_named(key):
    check, formula = CHECKS[key]
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: mine, .* no gradient"):
        check(changed(formula, lambda found: found.detach()))


@pytest.mark.parametrize("key", LOSSES)
def test_a_gradient_that_is_not_finite_is_named(key):
    check, formula = CHECKS[key]
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: mine, .* the gradient is not finite"):
        check(changed(formula, lambda found: (found * 0).sqrt()))  # 0 * infinity


@pytest.mark.parametrize("key", CHECKS)
def test_nothing_returned_is_named(key):
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: .* returned a NoneType"):
        CHECKS[key][0](lambda *given, **named: None)


def test_a_formula_with_a_memory_does_not_remember_the_trial_and_random_numbers_are_as_before():
    class Counts:
        calls = 0

        def __call__(self, rewards, values, mask):
            self.calls += 1
            torch.rand(1)
            return rewards, rewards

    formula, before = Counts(), torch.random.get_rng_state()
    checks.check_advantage(formula)
    assert formula.calls == 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_nor_does_a_loss_of_pairs_remember_the_trial_without_a_reference():
    class Counts:
        calls = 0

        def __call__(self, *given, **named):
            self.calls += 1
            torch.rand(1)
            return simpo_loss(*given, **named)

    formula, before = Counts(), torch.random.get_rng_state()
    assert not checks.check_pair_loss(formula)
    assert formula.calls == 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loss_of_pairs_may_say_in_its_own_way_that_it_needs_the_reference():
    def strict(chosen, rejected, ref_chosen, *given, **named):
        if ref_chosen is None:
            raise ValueError("a reference, please")
        return dpo_loss(chosen, rejected, ref_chosen, *given, **named)

    assert checks.check_pair_loss(strict)


def test_answers_are_told_from_tokens():
    def of_columns(rewards, values, mask):
        return rewards - rewards.mean(0)[:, None], rewards

    def weighs_columns(logprobs, old_logprobs, advantages, mask, **named):
        return clipped_policy_loss(logprobs, old_logprobs, advantages / mask.sum(0)[:, None], mask, **named)

    with pytest.raises(ConfigError, match=r"^ppo\.advantage: of_columns .* answers of three tokens: RuntimeError"):
        checks.check_advantage(of_columns)
    with pytest.raises(ConfigError, match=r"^ppo\.loss: weighs_columns .* two answers of three tokens: RuntimeError"):
        checks.check_policy_loss(weighs_columns)


def test_a_policy_loss_that_learns_from_other_tokens_is_named():
    def everywhere(logprobs, old_logprobs, advantages, mask, **named):
        return clipped_policy_loss(logprobs, old_logprobs, advantages, torch.ones_like(mask), **named)

    with pytest.raises(ConfigError, match=r"^ppo\.loss: everywhere learns from tokens outside of the mask"):
        checks.check_policy_loss(everywhere)


def test_a_policy_loss_gets_the_weights_it_will_get():
    def of_three_dimensions(*given, weights, **named):
        return clipped_policy_loss(*given, weights=None if weights is None else weights[..., None], **named)

    checks.check_policy_loss(of_three_dimensions)
    with pytest.raises(ConfigError, match=r"^ppo\.loss: of_three_dimensions cannot be called"):
        PPOModule(
            Pretrained("nowhere"), None, tiny.tokenizer(), policy_loss=of_three_dimensions,
            settings=PPOSettings(correction="token_mask"),
        )  # fmt: skip


def test_modules_made_in_python_are_checked_too():
    with pytest.raises(ConfigError, match=r"ppo\.loss: "):
        PPOModule(Pretrained("nowhere"), None, tiny.tokenizer(), policy_loss=kto_loss)
    with pytest.raises(ConfigError, match=r"wrap it: FunctionScorer\(gae\)"):
        PPOModule(Pretrained("nowhere"), gae)
    with pytest.raises(ConfigError, match=r"a folder: give Pretrained\('runs/sft'\)"):
        PPOModule("runs/sft", None)
    with pytest.raises(ConfigError, match=r"a folder: give Pretrained\('runs/sft'\)"):
        SFTModule("runs/sft", tiny.tokenizer(), partial(torch.optim.SGD, lr=1.0)).build()
    with pytest.raises(ConfigError, match=r"reward\.loss: "):
        RewardModule(Pretrained("nowhere"), tiny.tokenizer(), partial(torch.optim.SGD, lr=1.0), ranking_loss=gae)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("stage=ppo ppo.loss._target_=rlhf_lightning.functional.kto.kto_loss", "ppo.loss"),
        ("stage=ppo ppo.advantage._target_=rlhf_lightning.functional.kto.kto_loss", "ppo.advantage"),
        ("stage=ppo ppo.critic={_target_:rlhf_lightning.models.heads.ValueHead}", "ppo.critic: ValueHead: missing"),
        ("stage=ppo ppo.settings.critic_warmup=2 ppo.critic={_target_:rlhf_lightning.models.heads.ValueHead,"
         "_partial_:true}", "ppo.settings.critic_warmup=2: a head on the policy"),
        ("stage=ppo ppo.loss._target_=rlhf_lightning.functional.ppo.clipped", "ppo.loss._target_: "),
        ("stage=ppo ppo.scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "ppo.scheduler"),
        ("stage=reward reward.loss._target_=rlhf_lightning.functional.kto.kto_loss", "reward.loss"),
        ("stage=dpo dpo.loss._target_=rlhf_lightning.functional.kto.kto_loss", "dpo.loss"),
        ("stage=kto kto.loss._target_=rlhf_lightning.functional.preference.dpo_loss", "kto.loss"),
        ("stage=sft sft.scheduler._target_=transformers.get_linear_schedule_with_warmup", "sft.scheduler"),
        ("stage=best_of_n best_of_n.scheduler._target_=torch.optim.lr_scheduler.LinearLR "
         "+best_of_n.scheduler.start_factor=2.0", "best_of_n.scheduler"),
        ("stages=[sft,rank,reward,ppo] ppo.scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "ppo.scheduler"),
    ],
)  # fmt: skip
def test_a_run_ends_before_its_first_stage(words, key, tmp_path):
    words = [*words.split(), "data.comparisons=rows.jsonl", "trainer=cpu", "logger=none"]
    config = compose([*words, f"run_dir={tmp_path}/run", f"output_root={tmp_path}"])
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}"):
        run(config)
    assert not (tmp_path / "run" / "sft").exists()
