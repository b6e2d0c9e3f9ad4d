"""Bugs of other systems in what a loss divides by, what a KL term pulls towards, and what a group is."""

from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from torch.nn.functional import pad
from torch.testing import assert_close

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.advantage import dr_grpo, gae, grpo, leave_one_out, rloo
from rlhf_lightning.functional.aggregate import seq_mean_token_sum
from rlhf_lightning.functional.kl import ESTIMATORS, shaped_rewards
from rlhf_lightning.functional.policy import reinforce_loss
from rlhf_lightning.modules.online import Denominators
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.training.ranks import Ranks
from tests.support import phases, tiny
from tests.support.scene import TEXTS, fit, ppo

GROUPED = {"rloo": rloo, "dr_grpo": dr_grpo, "grpo": grpo}


def critic_of(**settings):
    """The critic's weights after two passes over one rollout of sixteen ragged answers, and those it began with."""
    module, logged = fit(ppo(lr=0.5, value_coef=1.0, max_grad_norm=0.0, ppo_epochs=2, num_minibatches=2, **settings))
    lengths = module.last_experience.rollout.lengths
    assert len(lengths.unique()) > 3  # micro-batches hold different numbers of tokens
    fresh = ppo(**settings)
    fresh.configure_model()
    return phases.flat(module.critic), phases.flat(fresh.critic), logged


def test_the_critic_learns_the_same_from_every_split_into_micro_batches():
    """verl PR 6957: normalised per micro-batch, its gradient was 2.05 or 4.06 times too large."""
    whole, start, logged = critic_of(micro_batch_size=8)
    assert (whole - start).norm() > 1e-2
    for micro in (4, 2, 1):
        after, _, other = critic_of(micro_batch_size=micro)
        assert (after - whole).norm() <= 1e-4 * (whole - start).norm()
        assert other["loss/value_avg"] == pytest.approx(logged["loss/value_avg"], rel=1e-4)


def widened(data, extra):
    """The same data with ``extra`` more columns of padding behind the responses, filled with noise."""
    width, changes = data.advantages.shape[1], {}
    for field in fields(data):
        value = getattr(data, field.name)
        if isinstance(value, torch.Tensor) and value.dim() == 2 and value.shape[1] == width:
            changes[field.name] = pad(value, (0, extra), value=7.0)
    rollout = data.rollout
    changes["rollout"] = replace(
        rollout, response_ids=pad(rollout.response_ids, (0, extra), value=5), mask=pad(rollout.mask, (0, extra))
    )
    return replace(data, **changes)


def test_padding_changes_neither_loss_nor_gradient_of_policy_and_critic():
    """verl PR 6957 again: what is divided by must be tokens, not columns."""
    module, _ = fit(ppo(kl_placement="loss", kl_estimator="k2", kl=0.3, lr=0.5), steps=2)
    assert not module.last_experience.mask.all()
    results = []
    for experience in (module.last_experience, widened(module.last_experience, 5)):
        module.zero_grad()
        count = experience.mask.sum().float()
        loss, _ = module.loss(experience, Denominators(count, count))
        loss.backward()
        results.append(torch.cat([loss.detach()[None], *(p.grad.flatten() for p in module.parameters())]))
    assert results[0][1:].norm() > 1e-3
    assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


def by_hand(name, per_token, mask, norm):
    """Each reduction as two loops over plain numbers."""
    rows = [[x for x, m in zip(r, k, strict=True) if m] for r, k in zip(per_token.tolist(), mask.tolist(), strict=True)]
    if name == "token_mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if name == "token_sum_norm":
        return sum(map(sum, rows)) / (len(rows) * norm)
    each = [sum(row) / (len(row) if name == "seq_mean_token_mean" else 1) for row in rows]
    return sum(each) / len(each)


@pytest.mark.parametrize("micro", [16, 4, 1])
@pytest.mark.parametrize("name", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "token_sum_norm"])
def test_policy_and_kl_loss_share_one_reduction_in_every_split(name, micro):
    """verl issues 5366 and 5417, OpenRLHF 923: modes that meant something else on another path."""
    parts = {"advantage": partial(gae, lam=1.0)}
    module, _ = fit(
        ppo(
            aggregation=name, baseline="none", kl_placement="loss", kl_estimator="k2", kl=0.3, lr=0.5, parts=parts,
            reuse_logprobs=False,
        ),
        steps=2,
    )  # fmt: skip
    e, settings = module.last_experience, module.settings
    now = module.forward_policy(e.rollout).logprobs.detach()
    ratio = (now - e.logprobs).exp()
    surrogate = -torch.minimum(ratio * e.advantages, ratio.clamp(0.8, 1.2) * e.advantages)
    kl = (now - e.ref_logprobs).square() / 2
    expected = [by_hand(name, x, e.mask, norm=10) for x in (surrogate, kl)]
    assert expected[1] > 1e-4 and settings.aggregation == name
    count = module.aggregation.count(e.mask).float()
    summed = torch.zeros(2)
    for rows in torch.arange(16).split(micro):
        loss, stats = module.loss(e.select(rows), Denominators(count, e.mask.sum().float()))
        assert_close(loss.detach(), stats["loss_policy"].detach() + 0.3 * stats["loss_kl"].detach())
        summed += torch.stack([stats["loss_policy"], stats["loss_kl"]]).detach()
    assert summed.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def tree(far):
    """Two tokens of three: logits of policy and reference, [4, 3] each (first token, then given each first token)."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    reference[0, 2] -= far  # a token that the reference nearly forbids
    rewards = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return policy.requires_grad_(), reference, rewards


def sequences(logits):
    """Log-probabilities of the tokens of all nine answers, [9, 2]."""
    logprobs = logits.log_softmax(-1)
    return torch.stack([logprobs[0].repeat_interleave(3), logprobs[1:].flatten()], dim=1)


@pytest.mark.parametrize("far", [0.0, 60.0], ids=["near", "beyond any clamp"])
@pytest.mark.parametrize("baseline", [0.0, 3.0])
def test_the_kl_in_the_reward_has_the_exact_gradient_by_enumeration(baseline, far):
    """NeMo-RL PR 2506, 2958: the score-function term was missing, and again under clamping."""
    policy, reference, rewards = tree(far)
    beta, mask = 0.7, torch.ones(9, 2, dtype=torch.bool)
    new, ref = sequences(policy), sequences(reference)
    law = new.sum(1).exp()
    objective = (law * (rewards.flatten() - beta * (new - ref).sum(1))).sum()
    (exact,) = torch.autograd.grad(-objective, policy)

    old = sequences(policy.detach())
    shaped = shaped_rewards(rewards.flatten(), old, ref, mask, mask.all(1), kl_coef=beta).rewards
    advantages, _ = gae(shaped, torch.full((9, 2), baseline).double(), mask, lam=1.0)
    new = sequences(policy)
    expected = torch.zeros_like(policy)
    for row in range(9):
        one = slice(row, row + 1)
        loss = reinforce_loss(new[one], old[one], advantages[one], mask[one], aggregate=seq_mean_token_sum).loss
        (gradient,) = torch.autograd.grad(loss, policy, retain_graph=True)
        expected += law.detach()[row] * gradient
    assert exact.norm() > 0.1
    assert_close(expected, exact)


def test_as_a_loss_k2_alone_has_the_gradient_of_the_kl_by_enumeration():
    """The same bug for the KL as a loss of one token: k1 pulls nowhere, k3 towards the forward KL."""
    policy, reference, _ = tree(0.0)
    new, ref = policy[0].log_softmax(-1), reference[0].log_softmax(-1)
    law = new.detach().exp()
    wanted = {
        "k2": torch.autograd.grad((new.exp() * (new - ref)).sum(), policy, retain_graph=True)[0],
        "k3": torch.autograd.grad((ref.exp() * (ref - new)).sum(), policy, retain_graph=True)[0],
        "k1": torch.zeros_like(policy),
    }
    for name, gradient in wanted.items():
        (found,) = torch.autograd.grad((law * ESTIMATORS[name](new, ref)).sum(), policy, retain_graph=True)
        assert_close(found, gradient)


def test_whitening_looks_at_all_tokens_together_and_never_at_a_row_alone():
    """OpenRLHF PR 1250: the mean of a row was broadcast along the wrong axis."""
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    x = torch.tensor([[1.0, 1.0, 1.0], [5.0, 5.0, 99.0], [9.0, float("nan"), 99.0]])  # row by row nothing would remain
    counted = torch.tensor([1.0, 1.0, 1.0, 5.0, 5.0, 9.0])
    white = Ranks().whiten(x, mask)
    assert_close(white[mask], (counted - counted.mean()) / counted.std(correction=0))
    assert (white[~mask] == 0).all()
    experience = fit(ppo(whiten_advantages=True))[0].last_experience
    learned = experience.advantages[experience.mask]
    assert_close(torch.stack([learned.mean(), learned.std(correction=0)]), torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)
    assert experience.advantages.sum(1).abs().max() > 0.1  # rows keep what sets them apart


@pytest.mark.parametrize("name", list(GROUPED))
def test_a_group_of_one_is_refused_and_would_teach_nothing(name):
    """OpenRLHF PR 1250: every advantage was 0, and training did nothing."""
    with pytest.raises(ConfigError, match="every advantage is 0; set group_size to 2 or more"):
        ppo(baseline="none", whiten_advantages=False, parts={"advantage": partial(GROUPED[name], group_size=1)})
    assert leave_one_out(torch.tensor([3.0]), torch.tensor([0])).tolist() == [0.0]


def in_blocks(name, totals, size):
    """Advantages by a loop over blocks of ``size`` answers."""
    out = []
    for block in torch.tensor(totals).split(size):
        for i, total in enumerate(block):
            others = torch.cat([block[:i], block[i + 1 :]]) if name == "rloo" else block
            spread = block.std() + 1e-6 if name == "grpo" else 1.0
            out.append(float((total - others.mean()) / spread))
    return out


@pytest.mark.parametrize("name", list(GROUPED))
def test_groups_go_by_position_for_ragged_and_for_repeated_prompts(name):
    """NeMo-RL PR 2176, 3882: groups were found by (wrongly cut) prompt tokens, so equal prompts were merged."""
    texts = (*TEXTS, "good", "we left")  # prompts of one to seven tokens, two of them twice
    module = ppo(
        scorer=lambda prompts, completions, **columns: [float(i * i % 17) for i in range(len(prompts))],
        group_size=4, baseline="none", whiten_advantages=False, kl=0.1,
        parts={"advantage": partial(GROUPED[name], group_size=4)},
    )  # fmt: skip
    fit(module, steps=2, texts=texts, repeats=1)
    e = module.last_experience
    assert [row["prompt"] for row in e.rollout.rows] == [text for text in texts for _ in range(4)]
    assert len(e.rollout.prompt_mask.sum(1).unique()) >= 4 and len(e.rollout.lengths.unique()) > 3
    totals = torch.where(e.mask, e.rewards, 0).sum(1).tolist()
    assert e.advantages[:, 0].tolist() == pytest.approx(in_blocks(name, totals, 4), abs=1e-4)
    merged = totals[12:20]  # both groups that answer "good"
    assert e.advantages[12:20, 0].tolist() != pytest.approx(in_blocks(name, merged, 8), abs=1e-2)
    assert (e.advantages == torch.where(e.mask, e.advantages[:, :1], 0)).all()


def test_the_engine_of_each_rank_draws_its_own_answers_and_repeats_them(monkeypatch):
    """verl PR 5179: all replicas started from one seed."""
    drawn = {}
    for rank in (0, 1, 2, 0, 1, 2):
        monkeypatch.setattr(PPOModule, "global_rank", property(lambda self, rank=rank: rank))
        module = ppo()
        module.configure_model()
        module.on_fit_start()
        answers = [module.generate(tiny.prompts("the food was", repeats=6)).response_ids.tolist() for _ in range(2)]
        assert answers[0] != answers[1]
        assert drawn.setdefault(rank, answers) == answers
    assert len({str(answers) for answers in drawn.values()}) == 3
    assert not {str(a) for a in drawn[0]} & {str(a) for a in drawn[1]}  # nor one shifted by a rollout
