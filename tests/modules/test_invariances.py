"""What must not change a gradient: the ids in padded slots (EOS among them), how many there are, and on which side."""

from dataclasses import replace
from functools import partial

import lightning
import pytest
import torch
from torch.nn.functional import pad

from rlhf_lightning.functional.advantage import dr_grpo, gae
from rlhf_lightning.functional.policy import gspo_loss
from rlhf_lightning.functional.ppo import clipped_policy_loss
from rlhf_lightning.models import ScalarModel
from rlhf_lightning.modules import PPOModule, RewardModule, SFTModule
from rlhf_lightning.modules.online import Denominators
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import LogSpaceKL
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.types import ComparisonBatch, SFTBatch
from tests.support import phases, tiny

EOS, BEYOND = 1, 3  # an id that means something, and padded slots that are added
IDS = torch.tensor([[4, 5, 6, 7, EOS], [8, 9, EOS, 0, 0], [4, 7, 5, EOS, 0], [9, 9, 9, 9, EOS]])
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
SIDES = pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
PADS = pytest.mark.parametrize("pad_id", [0, EOS, 11], ids=["pad", "pad is eos", "pad is a word"])


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def padded(ids, real, pad_id, left):
    """The same rows with `BEYOND` more slots, all padding moved to one side."""
    order = real.int().argsort(dim=1, descending=not left, stable=True)
    ids, real = ids.gather(1, order), real.gather(1, order)
    sides = (BEYOND, 0) if left else (0, BEYOND)
    real = pad(real, sides, value=False)
    return torch.where(real, pad(ids, sides), pad_id), real, order, sides


def assert_equal(first, second):
    assert first.norm() > 1e-3
    assert (first - second).norm() <= 1e-6 * first.norm()


@SIDES
@PADS
def test_sft(pad_id, left):
    def grad(ids, real, mask):
        module = SFTModule(tiny.policy(), tiny.tokenizer(), phases.sgd(0.1))
        module.build()
        return gradient(module.policy, module.loss(SFTBatch(ids, real, mask, 1.0))[0])

    mask = REAL & (torch.arange(5) >= 2)
    ids, real, order, sides = padded(IDS, REAL, pad_id, left)
    assert_equal(grad(IDS, REAL, mask), grad(ids, real, pad(mask.gather(1, order), sides, value=False)))


@SIDES
@PADS
def test_reward_model(pad_id, left):
    def grad(ids, real):
        torch.manual_seed(1)
        model = ScalarModel.from_policy(tiny.policy()).model
        torch.nn.init.normal_(model.score.weight)
        module = RewardModule(model, tiny.tokenizer(), phases.sgd(0.1))
        module.build()
        batch = ComparisonBatch(
            ids, real, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 2, 1]), real.sum(1), torch.zeros(4), 2, 2.0
        )
        return gradient(model, module.loss(module.score(batch), batch))

    assert_equal(grad(IDS, REAL), grad(*padded(IDS, REAL, pad_id, left)[:2]))


def ppo(critic="policy", advantage=gae, policy_loss=clipped_policy_loss, **settings):
    module = PPOModule(
        tiny.policy(scale=0.3),
        phases.FunctionScorer(phases.praise),
        tiny.tokenizer(),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        critic=critic,
        sampling=Sampling(max_new_tokens=6),
        advantage=advantage,
        policy_loss=policy_loss,
        settings=PPOSettings(**{"ppo_epochs": 1, "max_approx_kl": None, **settings}),
    )
    phases.trainer().fit(module, tiny.Prompts(tiny.prompts("the food was", "good", "we left"), 1))
    return module


GROUPS = {"advantage": partial(dr_grpo, group_size=2), "policy_loss": gspo_loss, "group_size": 2, "baseline": "none",
          "kl_placement": "loss", "kl_estimator": "k3", "aggregation": "seq_mean_token_mean"}  # fmt: skip


@pytest.mark.parametrize("parts", [{}, {"critic": "shared_trunk"}, GROUPS], ids=["ppo", "shared trunk", "groups"])
@PADS
def test_ppo(pad_id, parts):
    """The policy has moved on from the experience, so that ratios, values and KL all carry a gradient."""
    module = ppo(**parts)
    e = module.last_experience
    old = e.rollout

    def grad(experience):
        mask = experience.mask
        denominators = Denominators(module.aggregation.count(mask).float(), mask.sum().float())
        return gradient(module, module.loss(experience, denominators)[0])

    def wider(x):
        return pad(x, (0, BEYOND), value=torch.nan if x.is_floating_point() else False)

    prompt_mask = pad(old.prompt_mask, (BEYOND, 0), value=False)
    mask = pad(old.mask, (0, BEYOND), value=False)
    spoilt = replace(
        old,
        prompt_ids=torch.where(prompt_mask, pad(old.prompt_ids, (BEYOND, 0)), pad_id),
        prompt_mask=prompt_mask,
        response_ids=torch.where(mask, pad(old.response_ids, (0, BEYOND)), pad_id),
        mask=mask,
        rollout_logprobs=wider(old.rollout_logprobs),
    )
    tensors = ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
    assert_equal(grad(e), grad(replace(e, rollout=spoilt, **{n: wider(getattr(e, n)) for n in tensors})))


@pytest.mark.parametrize("factor", [0.1, 10.0], ids=["too cheap", "too dear"])
def test_the_controller_steers_the_real_policy_to_its_target_from_ten_times_off(factor):
    """KL is nats per response; the right KL coefficient of this task lies near 0.3."""
    module = PPOModule(
        tiny.policy(scale=0.3),
        phases.FunctionScorer(phases.praise),
        tiny.tokenizer(),
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        sampling=Sampling(max_new_tokens=6),
        kl_controller=LogSpaceKL(init_coef=0.3 * factor, target=1.5, lower_gain=0.1, floor=0.05),
        advantage=partial(dr_grpo, group_size=8),
        settings=PPOSettings(group_size=8, baseline="none", missing_eos_penalty=0.0, max_approx_kl=None, ppo_epochs=2),
    )
    seen = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append(float(trainer.callback_metrics["objective/kl"]))

    prompts = tiny.prompts(*[" ".join(tiny.WORDS[i : i + 2]) for i in range(12)])
    phases.trainer(callbacks=[Watch()]).fit(module, tiny.Prompts(prompts, 60))
    assert sum(seen[50:]) / 10 == pytest.approx(1.5, rel=0.2)
