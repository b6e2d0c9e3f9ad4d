"""Text in a response that the policy did not write: context for what follows, and nothing else, in every algorithm."""

from dataclasses import fields, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rlhf_lightning.functional.advantage import gae
from rlhf_lightning.functional.ppo import clipped_policy_loss
from rlhf_lightning.labelling import SamplingModule
from rlhf_lightning.models import Pretrained, packing
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.online import Denominators
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer
from rlhf_lightning.training.micro_batches import micro_batches, take
from rlhf_lightning.types import Rollout
from tests.support import algorithms, episodes, phases, tiny

TEXTS = ("the food was", "we left", "very slow service and bad food .", "good")


def count_good(prompts, completions, **columns):
    return [float(len(c.split()) + 3 * c.split().count("good")) for c in completions]


def build(policy=None, critic="policy", advantage=gae, policy_loss=clipped_policy_loss, lr=0.0, kl=0.1, **settings):
    """PPO with an environment that talks, over the tiny policy."""
    return PPOModule(
        policy or tiny.policy(scale=0.1),
        FunctionScorer(count_good),
        tiny.tokenizer(),
        optimizer=partial(torch.optim.SGD, lr=lr),
        critic=critic,
        engine=episodes.engine(),
        sampling=Sampling(3),
        kl_controller=FixedKL(kl),
        advantage=advantage,
        policy_loss=policy_loss,
        settings=PPOSettings(**{"ppo_epochs": 1, "max_grad_norm": 0.0, "max_approx_kl": None, **settings}),
    )


def fit(module, texts=TEXTS, repeats=1):
    run = phases.trainer()
    run.fit(module, tiny.Prompts(tiny.prompts(*texts, repeats=repeats), 1))
    return module, {name: float(value) for name, value in run.callback_metrics.items()}


def composed(name, **settings):
    """The module of a named algorithm; what it learned from has gaps."""
    module, _ = fit(build(**algorithms.composed(name) | {"critic_warmup": 0} | settings))
    assert module.last_experience.rollout.context.any(1).float().mean() > 0.5
    return module, module.last_experience


def garbage(data, where):
    """NaN at the positions ``where`` of every float column [B, T]."""
    columns = {f.name: getattr(data, f.name) for f in fields(data)}
    spoilt = {
        name: column.masked_fill(where, torch.nan)
        for name, column in columns.items()
        if isinstance(column, Tensor) and column.is_floating_point() and column.shape == where.shape
    }
    return replace(data, **spoilt)


def loss_of(module, experience):
    counts = module.aggregation.count(experience.mask), experience.mask.sum()
    return module.loss(experience, Denominators(*(count.float() for count in counts)))[0]


def gradients(module, experience):
    """The loss, and its gradient at the logits [B, T + 1, V] and at what the critic gives (None without one)."""
    module.policy.head_chunk = 0  # all logits at once
    seen = {}

    def keep(name):
        def hook(_, given, out):
            out.retain_grad()
            seen[name] = out

        return hook

    watched = {"logits": module.policy.lm_head} | ({"values": module.critic} if module.has_critic else {})
    hooks = [part.register_forward_hook(keep(name)) for name, part in watched.items()]
    loss = loss_of(module, experience)
    loss.backward()
    for hook in hooks:
        hook.remove()
    return loss, seen["logits"].grad, seen["values"].grad if module.has_critic else None


@pytest.mark.parametrize("name", algorithms.NAMES)
def test_text_from_elsewhere_has_exactly_no_gradient_and_its_numbers_change_nothing(name):
    module, experience = composed(name, correction="token_truncate", entropy_coef=0.01)
    rollout, mask = experience.rollout, experience.rollout.mask
    shift = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    experience = replace(experience, advantages=shift, returns=shift, logprobs=experience.logprobs - 0.1 * shift)
    loss, logits, values = gradients(module, experience)
    per_token = logits[:, :-1].abs().sum(-1)  # [B, T], of the distribution that each response token came from
    assert per_token.shape == mask.shape and (per_token[~mask] == 0).all()
    assert (per_token[experience.mask] > 0).float().mean() > 0.9 and experience.mask.any()
    if name == "ppo_vc":  # a critic of its own
        before = values[:, -mask.shape[1] - 1 : -1]  # of the states before the response tokens
        assert (before[~mask] == 0).all() and (before[mask] != 0).all()
    elif name == "ppo":  # one on the trunk of the policy
        assert values.shape == (mask.sum(),)
    spoilt = replace(garbage(experience, ~mask), rollout=garbage(rollout, ~mask))
    assert spoilt.logprobs.isnan().any() and torch.equal(loss_of(module, spoilt), loss)


@pytest.mark.parametrize("name", algorithms.NAMES)
def test_advantages_do_not_see_what_stands_at_text_from_elsewhere(name, monkeypatch):
    module, experience = composed(name, correction="token_mask")
    rollout, plain = experience.rollout, module.forward_policy

    def spoilt(part, *given, **named):
        now = plain(part, *given, **named)
        gap = part.attended & ~part.mask
        return now._replace(logprobs=now.logprobs.masked_fill(gap, 1e4), values=now.values.masked_fill(gap, 1e4))

    monkeypatch.setattr(module, "greedy_baseline", lambda r, penalty: torch.zeros(len(r)))
    expected, found = [], []
    for out, forward in ((expected, plain), (found, spoilt)):
        monkeypatch.setattr(module, "forward_policy", forward)
        out.append(module.evaluate(rollout, module.score(rollout)))
    for column in ("rewards", "advantages", "returns", "weights"):
        a, b = getattr(expected[0], column), getattr(found[0], column)
        assert (a is None and b is None) or torch.equal(a[experience.mask], b[experience.mask]), column
    assert (found[0].rewards[~rollout.mask] == 0).all()


def test_advantages_and_rewards_are_those_of_the_response_without_the_gap():
    module, _ = fit(build(critic="policy", lr=0.0))
    torch.manual_seed(1)
    torch.nn.init.normal_(module.critic.model.score.weight)
    rollout = module.last_experience.rollout
    scores = module.score(rollout)
    found = module.evaluate(rollout, scores)
    dense = {"policy": module.policy.eval(), "reference": module.frozen["reference"]}
    logprobs = {name: episodes.dense_logprobs(model, rollout) for name, model in dense.items()}
    assert_close(found.logprobs[rollout.mask], logprobs["policy"][rollout.mask], atol=1e-4, rtol=1e-4)
    advantages = []
    for row, there in enumerate(rollout.mask):
        kl = (logprobs["policy"] - logprobs["reference"])[row][there]
        rewards, values = -0.1 * kl, found.values[row][there]
        rewards[-1] += scores[row]  # on the last token of the policy
        after, value, out = 0.0, 0.0, []
        for reward, now in zip(reversed(rewards.tolist()), reversed(values.tolist()), strict=True):
            after, value = reward + value - now + 0.95 * after, now
            out.append(after)
        advantages += out[::-1]
    advantages = torch.tensor(advantages)
    whitened = (advantages - advantages.mean()) / advantages.std(correction=0)
    assert_close(found.advantages[rollout.mask], whitened, atol=1e-3, rtol=1e-3)
    assert (found.advantages[~rollout.mask] == 0).all() and rollout.context.any()


def trained(tmp_path=None, pack=False, depth=0, **settings):
    policy = tiny.policy(scale=0.1)
    policy.pack_rows = pack and packing.can_pack(policy)
    if tmp_path is not None:
        policy.save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        policy = Pretrained(str(tmp_path), freeze_below=depth)
    module, logged = fit(build(policy, lr=0.3, **settings), repeats=4)
    return phases.flat(module.policy), module, logged


@pytest.mark.parametrize("critic", ["policy", "shared_trunk"])
@pytest.mark.parametrize(
    "options", [{"pack": True}, {"by_length": False}, {"pack": True, "micro_batch_size": 4}, {"micro_batch_size": 4}]
)
def test_rows_packed_cut_or_padded_learn_the_same(options, critic, monkeypatch):
    expected, module, plain = trained(critic=critic)
    assert module.last_experience.rollout.context.any()
    packed = []
    inputs = packing.packed_inputs
    monkeypatch.setattr(
        "rlhf_lightning.models.packing.packed_inputs", lambda *given: (packed.append(1), inputs(*given))[1]
    )
    found, _, logged = trained(critic=critic, **options)
    assert bool(packed) == options.get("pack", False)
    assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.equal(expected, phases.flat(tiny.policy(scale=0.1)))
    assert logged["perf/padding"] <= plain["perf/padding"] + 1e-9 or "by_length" in options


def test_a_single_update_may_use_the_log_probabilities_kept_while_the_turns_were_sampled():
    alone = {"baseline": "none", "advantage": partial(gae, lam=1.0)}
    expected, module, _ = trained(reuse_logprobs=False, **alone)
    found, again, logged = trained(**alone)
    rollout = again.last_experience.rollout
    assert again.last_experience.logprobs is not rollout.rollout_logprobs and rollout.context.any()
    assert torch.equal(again.last_experience.logprobs, rollout.rollout_logprobs) and logged["val/ratio"] == 1.0
    assert not torch.equal(module.last_experience.logprobs, rollout.rollout_logprobs)
    assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_frozen_lower_layers_learn_the_same_as_without_their_cached_outputs(tmp_path):
    _, module, _ = trained(tmp_path, depth=1, micro_batch_size=4)
    experience = module.last_experience
    kept = module.forward_policy(experience.rollout, experience.hidden)
    dense = episodes.dense_logprobs(module.policy.eval(), experience.rollout)
    mask = experience.rollout.mask
    assert experience.hidden is not None and experience.rollout.context.any()
    assert_close(kept.logprobs.detach()[mask], dense[mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_micro_batches_are_cut_by_whole_responses_and_trimmed_behind_them(packed):
    mask, context = torch.zeros(4, 9).bool(), torch.zeros(4, 9).bool()
    mask[:, :2], context[[0, 2], 2:7] = True, True  # all policies wrote as much
    ids = torch.arange(4)[:, None].expand(4, 9)
    rows = ({"prompt": ""},) * 4
    rollout = Rollout(ids[:, :1], mask[:, :1], ids, mask, mask[:, 0], None, ids[:, 0], rows, context=context)
    schedule = replace(PPOSettings(micro_batch_size=2).schedule(4, 1), packed=packed)
    parts = {tuple(rows.tolist()): take(rollout, rows, schedule) for rows in micro_batches(rollout, schedule)}
    if packed:  # as many tokens in each
        assert {part.attended.sum().item() for part in parts.values()} == {9}
    else:
        assert {rows: part.response_ids.shape[1] for rows, part in parts.items()} == {(0, 2): 7, (1, 3): 2}
        assert torch.equal(parts[0, 2].context, context[[0, 2], :7])


def test_lengths_tokens_and_kl_are_those_of_the_policy(monkeypatch):
    module, counts = build(lr=0.0), []
    loss = module.loss
    monkeypatch.setattr(module, "loss", lambda batch, given: (counts.append(given), loss(batch, given))[1])
    _, logged = fit(module)
    rollout = module.last_experience.rollout
    written = rollout.mask.sum(1).double()
    assert rollout.context.any() and logged["completions/mean_length"] == pytest.approx(written.mean().item())
    assert counts and all(count == rollout.mask.sum() for given in counts for count in given)
    assert module.tokens == rollout.mask.sum() and logged["objective/kl"] == 0.0
    surprise = -torch.where(rollout.mask, module.last_experience.logprobs, 0).sum(1)
    assert logged["objective/entropy"] == pytest.approx(surprise.mean().item(), rel=1e-4)


def test_the_greedy_baseline_plays_the_prompt_that_was_asked():
    module = build(advantage=partial(gae, lam=1.0), baseline="greedy", kl=0.0)
    module.engine = episodes.engine(episodes.Asks)
    fit(module)
    rollout = module.last_experience.rollout
    greedy = module.generate(rollout.asked, replace(module.sampling, top_k=1))
    assert torch.equal(greedy.prompt_ids, rollout.prompt_ids)
    want = module.score(greedy) - 0.5 * (~greedy.finished).float()
    assert_close(module.greedy_baseline(rollout, 0.5), want)


class CountsSlow:
    """Scores tokens: 1 for each "slow", whoever wrote it."""

    name = "slow"

    def to(self, device):
        return self

    def score(self, rollout, tokenizer):
        return (rollout.response_ids == tokenizer.convert_tokens_to_ids("slow")).float()


def test_groups_are_sampled_again_where_only_text_from_elsewhere_tells_their_scores_apart(monkeypatch):
    module, _ = fit(build(advantage=partial(gae, lam=1.0), baseline="none", group_size=2, max_resamples=1))
    rollout, slow = module.last_experience.rollout, tiny.tokenizer().convert_tokens_to_ids("slow")
    ids = rollout.response_ids.masked_fill(rollout.mask, 5).clone()
    assert (ids == slow)[rollout.attended].any() and not (ids == slow)[rollout.mask].any()
    rollout, module.scorer, again = replace(rollout, response_ids=ids), CountsSlow(), []
    monkeypatch.setattr(module, "generate", lambda prompts: (again.append(len(prompts)), rollout)[1])
    monkeypatch.setattr("rlhf_lightning.modules.resampling.replaced", lambda old, *given: old)
    scores = module.score(rollout)
    assert len({float(score) for score in scores.sum(1)}) > 1
    module.resample(rollout, scores)
    assert again == [len(rollout)]


def test_scores_of_tokens_are_sums_over_the_policys_in_records():
    sampler = SamplingModule(SimpleNamespace(tokenizer=tiny.tokenizer, causal_lm=tiny.policy), [CountsSlow()])
    rollout = episodes.rollout(episodes.engine())
    want = (CountsSlow().score(rollout, tiny.tokenizer()) * rollout.mask).sum(1)
    assert [record["scores"]["slow"] for record in sampler._records(rollout)] == want.tolist()
