"""Truncated answers that go on: the critic's value after the last token stands in for their score."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.advantage import gae, returns_only
from rlhf_lightning.models import ScalarModel, ValueHead
from rlhf_lightning.modules.bootstrapping import one_token_longer, values_after
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.types import Rollout
from tests.modules.test_environment_text import build as with_environment
from tests.modules.test_ppo import fit, module
from tests.support import phases


def taken(ppo):
    """The bootstrap values that the advantage function was given, one tensor per rollout."""
    seen, inner = [], ppo.advantage
    ppo.advantage = lambda *args, bootstrap: (seen.append(bootstrap), inner(*args, bootstrap=bootstrap))[1]
    return seen


def after_the_last_token(ppo, rollout):
    """Values of the state after each response, from a plain forward of the whole rows."""
    ids, attention = rollout.input_ids, rollout.attention_mask
    last = rollout.prompt_ids.shape[1] + rollout.attended.sum(1) - 1
    rows = torch.arange(len(rollout))
    if isinstance(ppo.critic, ValueHead):
        places = (attention.cumsum(1) - 1).clamp(min=0)
        out = ppo.policy(ids, attention_mask=attention, position_ids=places, output_hidden_states=True)
        return ppo.value_scale(ppo.critic(out.hidden_states[-1][rows, last]))
    return ppo.value_scale(ppo.critic(ids, attention)[rows, last])


def random_head(policy, copy):
    torch.manual_seed(3)
    made = ScalarModel.from_policy(policy) if copy else ValueHead(policy.config.hidden_size)
    for parameter in (made.model.score if copy else made).parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("copy", [True, False])
def test_a_truncated_answer_is_worth_what_the_critic_says_after_it_and_one_that_ended_nothing_more(copy):
    ppo = module(partial(random_head, copy=copy), bootstrap_truncated=True, micro_batch_size=2, lr=0.0)
    seen = taken(ppo)
    fit(ppo)
    e = ppo.last_experience
    assert 0 < e.rollout.finished.sum() < len(e.rollout)
    with torch.no_grad():
        wanted = after_the_last_token(ppo, e.rollout).masked_fill(e.rollout.finished, 0.0)
    assert_close(seen[0], wanted, atol=1e-5, rtol=1e-5)
    assert len(wanted[~e.rollout.finished].unique()) > 1


def test_the_score_of_a_truncated_answer_changes_nothing_and_neither_does_a_penalty():
    found = []
    for bonus in (0.0, 100.0):
        ppo = module(partial(random_head, copy=True), bootstrap_truncated=True, lr=0.0)
        plain = ppo.scorer.score
        ppo.scorer.score = lambda rollout, tok, bonus=bonus, plain=plain: (
            plain(rollout, tok) + bonus * ~rollout.finished
        )
        fit(ppo)
        e = ppo.last_experience
        assert (e.scores[~e.rollout.finished] >= bonus).all() and 0 < e.rollout.finished.sum() < len(e.scores)
        found.append(e.advantages)
    assert_close(found[0], found[1])
    assert PPOSettings(bootstrap_truncated=True).eos_penalty(learned=True) == 0.0
    assert PPOSettings().eos_penalty(learned=True) == 1.0


def test_text_of_an_environment_stands_before_the_state_that_counts():
    ids, wrote = torch.tensor([[5, 6, 7]]), torch.tensor([[True, False, False]])
    said = torch.tensor([[False, True, False]])
    rollout = Rollout(
        ids, wrote | True, ids, wrote, torch.tensor([False]), None, torch.tensor([0]), ({},), context=said
    )
    assert one_token_longer(rollout).mask.tolist() == [[True, False, True, False]]
    assert values_after(rollout, torch.tensor([[1.0, 0.0, 3.0, 0.0]])).tolist() == [3.0]
    ppo = with_environment(bootstrap_truncated=True, missing_eos_penalty=0.0)
    seen = taken(ppo)
    fit(ppo)
    rollout = ppo.last_experience.rollout
    assert rollout.context is not None and not rollout.finished.all()
    with torch.no_grad():
        wanted = after_the_last_token(ppo, rollout).masked_fill(rollout.finished, 0.0)
    assert_close(seen[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "advantage", "message"),
    [
        ({"baseline": "none"}, returns_only, "only a critic knows"),
        ({"mask_truncated": True}, gae, "mask_truncated=True: .* choose one"),
        ({"missing_eos_penalty": 1.0}, gae, "missing_eos_penalty=1.0: .* choose one"),
        ({}, lambda rewards, values, mask: (rewards, values), "takes no `bootstrap`"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, advantage, message):
    with pytest.raises(ConfigError, match=message):
        with_environment(advantage=advantage, bootstrap_truncated=True, **settings)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_a_model_needs_a_position_for_the_state_after_the_longest_answer(tmp_path):
    for longest, extra in (
        (57, False),
        (56, True),
        (57, True),
    ):  # the longest prompt has 7 tokens, the model 64 positions
        ppo = module(sampling=Sampling(max_new_tokens=longest), bootstrap_truncated=extra, lr=0.0)
        fits = longest + extra <= 57
        with nullcontext() if fits else pytest.raises(ConfigError, match="exceeds the model's 64 positions"):
            phases.ppo(phases.write(tmp_path), ppo, rollouts=1)
