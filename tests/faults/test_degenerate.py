"""Numbers that are finite but lead to ones that are not: no spread, no tokens, huge ratios, few bits (22 to 28)."""

import logging
import math
from functools import partial

import lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import MixedPrecision

from rlhf_lightning.data import DemonstrationData
from rlhf_lightning.errors import NumericalError
from rlhf_lightning.functional.advantage import dr_grpo, gae, grpo, returns_only, rloo
from rlhf_lightning.functional.kl import ESTIMATORS, estimate
from rlhf_lightning.functional.kto import kto_loss, kto_reference_point
from rlhf_lightning.functional.masking import masked_moments, whiten_with
from rlhf_lightning.functional.policy import cispo_loss, gspo_loss, reinforce_loss
from rlhf_lightning.functional.ppo import clipped_policy_loss
from rlhf_lightning.functional.preference import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from rlhf_lightning.functional.ratios import CORRECTIONS
from rlhf_lightning.functional.reference_free import simpo_loss
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import AdaptiveKL, FixedKL, LogSpaceKL
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer
from tests.support import tiny
from tests.support.numeric_faults import Break, Watch, fit, module_of, write

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
POLICY_LOSSES = [
    clipped_policy_loss,
    partial(clipped_policy_loss, dual_clip=3.0),
    reinforce_loss,
    cispo_loss,
    gspo_loss,
]
PAIR_LOSSES = [dpo_loss, robust_dpo_loss, hinge_loss, ipo_loss, partial(simpo_loss)]
GROUPED = [rloo, grpo, dr_grpo]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


def same_score(prompts, completions, **columns):
    return [1.0] * len(prompts)


@pytest.mark.parametrize("advantage", GROUPED)
def test_case_22_equal_rewards_in_a_group_give_zero_advantages(advantage):
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [True, True, True]])
    rewards = torch.zeros(4, 3)
    rewards[torch.arange(4), mask.sum(1) - 1] = 0.7
    advantages, _ = advantage(rewards, torch.zeros(4, 3), mask, group_size=2)
    assert torch.equal(advantages, torch.zeros(4, 3))


def test_case_22_equal_rewards_of_all_whiten_to_zero():
    mask = torch.ones(2, 3, dtype=torch.bool)
    advantages, _ = returns_only(torch.zeros(2, 3), torch.zeros(2, 3), mask)
    moments = masked_moments(advantages, mask)
    assert torch.equal(whiten_with(advantages, mask, moments.mean, moments.var), torch.zeros(2, 3))


def test_case_22_equal_scores_are_counted_and_told_of_once(files, tmp_path, caplog):
    module = PPOModule(
        tiny.policy(scale=0.3), FunctionScorer(same_score), tiny.tokenizer(), sampling=Sampling(8),
        kl_controller=FixedKL(0.0), advantage=partial(grpo, group_size=2),
        settings=PPOSettings(group_size=2, baseline="none", whiten_advantages=False, missing_eos_penalty=0.0),
    )  # fmt: skip
    watch = Watch()
    with caplog.at_level(logging.WARNING, logger="rlhf_lightning"):
        _, trainer = fit("ppo", tmp_path, 3, module, [watch], data=files)
    assert float(trainer.callback_metrics["guard/equal_scores"]) == 3 and module.guard.skipped == 0
    assert [r.getMessage() for r in caplog.records] == [
        "ppo: step 1: all 16 responses scored 1: nothing can be learned; guard/equal_scores counts such rollouts"
    ]
    assert all(torch.equal(w, watch.weights[0]) for w in watch.weights)  # nothing was learned, and nothing broke
    assert all(math.isfinite(float(v)) for v in trainer.callback_metrics.values())


@pytest.mark.parametrize("baseline", ["critic", "none"])
def test_case_23_a_batch_of_one_has_no_nan(baseline, files, tmp_path):
    class One(PPOModule):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch.select(torch.arange(1)), batch_idx)

    module = One(
        tiny.policy(scale=0.3), FunctionScorer(same_score), tiny.tokenizer(), sampling=Sampling(8),
        advantage=gae if baseline == "critic" else returns_only, settings=PPOSettings(baseline=baseline),
    )  # fmt: skip
    _, trainer = fit("ppo", tmp_path, 2, module, data=files)
    assert module.guard.skipped == 0 and module.rollouts == 2
    assert all(math.isfinite(float(v)) for v in trainer.callback_metrics.values())


def test_case_23_the_variance_of_one_number_is_zero():
    assert masked_moments(torch.tensor([3.0]), torch.tensor([True])).var == 0
    advantages, _ = dr_grpo(torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1).bool(), group_size=1)
    assert advantages.isfinite().all()


def test_case_24_a_row_without_a_token_to_learn_is_dropped_before_the_batch_and_counted(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "<eos>"}\n{"text": "we"}\n{"text": "food"}\n')  # nothing stands before the only token
    data = DemonstrationData(file, None, tiny.tokenizer(), batch_size=2, validation_fraction=0.0)
    data.setup()
    assert (data.report["dropped"], data.num_train_rows) == (1, 2)
    assert all(batch.mask.any(1).all() and batch.denominator == 2 for batch in data.train_dataloader())


@given(shift=st.floats(-1e4, 1e4), gain=st.floats(-10, 10))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_case_25_policy_losses_and_their_gradients_are_finite_for_any_log_ratio(loss, shift, gain):
    old = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    new = (old + shift).requires_grad_()
    out = loss(new, old, torch.full_like(old, gain), mask)
    out.loss.backward()
    assert out.loss.isfinite() and new.grad.isfinite().all()
    assert all(value.isfinite().all() for value in out)


@given(shift=st.floats(-1e4, 1e4), other=st.floats(-1e4, 1e4))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_case_25_pair_losses_are_finite_for_any_log_ratio(loss, shift, other):
    chosen = torch.tensor([shift - 5.0]).requires_grad_()
    rejected = torch.tensor([other - 5.0]).requires_grad_()
    reference, lengths = torch.tensor([-5.0]), torch.tensor([4.0])
    one = torch.ones(1)
    out = loss(chosen, rejected, reference, reference, lengths, lengths, weights=one, denominator=1.0)
    out.loss.backward()
    assert out.loss.isfinite() and chosen.grad.isfinite().all() and rejected.grad.isfinite().all()


@given(shift=st.floats(-1e4, 1e4))
@settings(max_examples=60, deadline=None)
def test_case_25_kto_kl_estimates_and_corrections_are_finite_for_any_log_ratio(shift):
    old, mask = torch.full((2, 3), -1.0), torch.tensor([[True] * 3, [True, False, False]])
    new = (old + shift).requires_grad_()
    sums = new.sum(1)
    point = kto_reference_point(sums.detach(), old.sum(1))
    terms = [kto_loss(sums, old.sum(1), torch.tensor([True, False]), point, denominator=2.0).loss]
    terms += [estimate(new, old, mask, kind).sum() for kind in ESTIMATORS.values()]
    sum(terms).backward()
    assert new.grad.isfinite().all() and all(term.isfinite() for term in terms)
    for correction in CORRECTIONS.values():
        assert correction(new.detach(), old, mask).isfinite().all()


def test_case_25_k3_is_the_same_up_to_where_it_goes_straight_and_meets_it_there():
    gap = torch.tensor(
        [-30.0, -1.0, 0.0, 1e-3, 5.0, 19.999, 20.001, 21.0, 1e4], dtype=torch.float64, requires_grad=True
    )
    value = ESTIMATORS["k3"](torch.zeros_like(gap), gap)
    value.sum().backward()
    plain = gap.detach()[:6]
    assert torch.equal(value[:6], torch.expm1(plain) - plain) and torch.equal(gap.grad[:6], plain.exp() - 1)
    torch.testing.assert_close(value[6:8], math.exp(20) * (gap[6:8] - 19) - 1 - gap[6:8])
    assert gap.grad[6:].eq(math.exp(20) - 1).all() and value.isfinite().all()


def test_case_25_empty_responses_are_finite():
    new, nothing = torch.full((2, 3), -1.0).requires_grad_(), torch.zeros(2, 3, dtype=torch.bool)
    for loss in POLICY_LOSSES:
        out = loss(new, new.detach(), torch.ones(2, 3), nothing)
        out.loss.backward()
        assert out.loss == 0 and all(value.isfinite().all() for value in out)
    assert new.grad.eq(0).all()
    for advantage in (gae, returns_only, partial(grpo, group_size=2), partial(rloo, group_size=2)):
        assert all(x.isfinite().all() for x in advantage(torch.ones(2, 3), torch.ones(2, 3), nothing))


@pytest.mark.parametrize("controller", [LogSpaceKL(), AdaptiveKL(), AdaptiveKL(horizon=1)])
def test_case_26_beta_is_bounded_and_the_ceiling_is_told_of(controller):
    with pytest.warns(UserWarning, match="kl_coef is at its ceiling"):
        for kl in [1.0, 10.0, 1e3, 1e8, 1e300, math.inf] * 3000:
            controller.update(kl, num_sequences=512)
    assert controller.coef == controller.max_coef < 1e4
    with pytest.raises(NumericalError, match="KL is NaN"):
        controller.update(math.nan, 512)
    assert math.isfinite(controller.coef)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_case_28_the_first_ratio_of_a_rollout_is_logged_and_1(precision, files, tmp_path):
    module = module_of("ppo", ppo_epochs=2, num_minibatches=1)
    _, trainer = fit("ppo", tmp_path, 2, module, data=files, precision=precision)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val/ratio_first_gap"] == 0.0 and logged["val/ratio_max"] > 1.0


def test_case_28_a_first_ratio_that_is_not_1_shows(files, tmp_path):
    class Rounded(PPOModule):
        def evaluate(self, rollout, scores):
            experience = super().evaluate(rollout, scores)
            experience.logprobs.add_(0.1)
            return experience

    module = module_of("ppo", Rounded, ppo_epochs=2, num_minibatches=1)
    _, trainer = fit("ppo", tmp_path, 1, module, data=files)
    assert float(trainer.callback_metrics["val/ratio_first_gap"]) == pytest.approx(1 - math.exp(-0.1), abs=1e-4)


class Scale(lightning.Callback):
    """The loss scale after every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append(trainer.precision_plugin.scaler.get_scale())


def fp16(scale):
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_case_21_a_loss_scaler_may_look_for_its_scale(stage, files, tmp_path):
    scale, watch = Scale(), Watch()
    module = module_of(stage, **({"ppo_epochs": 1, "num_minibatches": 1} if stage == "ppo" else {}))
    fit(stage, tmp_path, 6, module, [scale, watch], micro=4, data=files, plugins=[fp16(2.0**40)])
    assert scale.seen[-1] < scale.seen[0] and module.guard.skipped == 0
    assert torch.equal(watch.weights[0], watch.weights[1])  # the scaler skipped more steps than end a run


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(("stage", "step"), [("sft", 5), ("ppo", 3)])  # the scale falls to 1 in two optimizer steps
def test_case_21_overflow_at_the_lowest_scale_is_a_fault(stage, step, files, tmp_path):
    broken = Break("grad", range(9), float("inf"))
    with pytest.raises(NumericalError, match=f"{stage}: step {step}: gradient norm is not finite; 3 in a row"):
        fit(stage, tmp_path, 9, module_of(stage), [broken], micro=4, data=files, plugins=[fp16(4.0)])
