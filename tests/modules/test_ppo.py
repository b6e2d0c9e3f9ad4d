"""The PPO iteration: first ratio exactly 1, gradients that no split changes, KL 0 at the start, hooks that can be
overridden."""

import json
from functools import partial

import lightning
import pytest
import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.advantage import gae, reward_to_go
from rlhf_lightning.models import Pretrained, ScalarModel, ValueHead
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.recipes import load_reference
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer
from rlhf_lightning.training.ranks import Ranks
from tests.support import tiny

TEXTS = ("the food was", "we left", "very slow service and bad food .", "good")


def praise(prompts, completions, **columns):
    return [float(c.split().count("good")) for c in completions]


def module(critic="policy", kl=0.1, sampling=None, scorer=praise, lr=1e-3, cls=PPOModule, **settings):
    return cls(
        tiny.policy(scale=0.3),
        FunctionScorer(scorer),
        tiny.tokenizer(),
        optimizer=partial(torch.optim.SGD, lr=lr),
        critic=critic,
        sampling=sampling or Sampling(max_new_tokens=10),
        kl_controller=FixedKL(kl),
        settings=PPOSettings(**{"ppo_epochs": 1, "max_grad_norm": 0.0, "max_approx_kl": None, **settings}),
    )


def fit(ppo, steps=1, callbacks=()):
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(ppo, tiny.Prompts(tiny.prompts(*TEXTS, repeats=2), steps))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("critic", ["policy", "shared_trunk"])
@pytest.mark.parametrize("micro", [8, 4, 2, 1])
def test_the_first_ratio_is_exactly_one_and_kl_exactly_zero(critic, micro):
    logged = fit(module(critic, micro_batch_size=micro, sampling=Sampling(max_new_tokens=10, temperature=0.7)))
    assert logged["val/ratio"] == 1.0
    assert logged["policy/approxkl_avg"] == 0.0 and logged["policy/clipfrac_avg"] == 0.0
    assert logged["objective/kl"] == 0.0


@pytest.mark.parametrize("critic", ["policy", "shared_trunk"])
def test_gradients_do_not_depend_on_the_micro_batch_split(critic):
    after = {}
    for micro in (8, 4, 2, 1):
        ppo = module(critic, micro_batch_size=micro, lr=1.0)
        fit(ppo)
        after[micro] = torch.cat([p.detach().flatten() for p in ppo.policy.parameters()])
    start = torch.cat([p.detach().flatten() for p in tiny.policy(scale=0.3).parameters()])
    assert (after[8] - start).norm() > 1e-3
    for micro in (4, 2, 1):
        assert (after[micro] - after[8]).norm() <= 1e-5 * (after[8] - start).norm()


def test_the_reward_is_the_score_minus_the_kl_penalty_and_returns_are_advantages_plus_values():
    ppo, taken = module(kl=0.3, missing_eos_penalty=0.0, whiten_advantages=False), []
    loss = ppo.policy_loss
    ppo.policy_loss = lambda new, old, advantages, *args, **named: (
        taken.append(advantages),
        loss(new, old, advantages, *args, **named),
    )[1]
    fit(ppo, steps=3)
    e = ppo.last_experience
    assert not any(advantages.requires_grad for advantages in taken)
    torch.testing.assert_close(taken[-1].sum(1).sort().values, e.advantages.sum(1).sort().values)
    kl = torch.where(e.mask, e.logprobs - e.ref_logprobs, 0)
    torch.testing.assert_close(e.rewards.sum(1), e.scores - 0.3 * kl.sum(1))
    advantages, returns = gae(e.rewards, e.values, e.mask)
    torch.testing.assert_close(e.advantages, advantages)
    torch.testing.assert_close(returns[e.mask], (advantages + e.values)[e.mask])
    assert not any(t.requires_grad for t in (e.advantages, e.returns, e.logprobs, e.values))


class Doubling(FixedKL):
    """A controller whose coefficient doubles with each rollout."""

    def update(self, kl, num_sequences):
        self.coef *= 2


@pytest.mark.parametrize(("placement", "estimator", "in_reward"), [("reward", "k1", 0.4), ("loss", "k3", 0.0)])
def test_a_rollout_is_learned_from_and_logged_with_the_kl_coefficient_it_began_with(placement, estimator, in_reward):
    used = []

    class Watched(PPOModule):
        def loss(self, batch, denominators):
            used.append(self.kl_controller.coef)
            return super().loss(batch, denominators)

    ppo = module(cls=Watched, kl_placement=placement, kl_estimator=estimator, missing_eos_penalty=0.0, lr=0.1)
    ppo.kl_controller = Doubling(0.1)
    logged = fit(ppo, steps=3)
    e = ppo.last_experience
    kl = torch.where(e.mask, e.logprobs - e.ref_logprobs, 0).sum(1)
    assert kl.abs().max() > 1e-3
    torch.testing.assert_close(e.scores - e.rewards.sum(1), in_reward * kl, rtol=1e-4, atol=1e-5)
    assert used == pytest.approx([0.1, 0.2, 0.4]) and logged["objective/kl_coef"] == pytest.approx(0.4)
    assert ppo.kl_controller.coef == pytest.approx(0.8)


def test_the_first_epoch_keeps_the_order_and_each_later_one_draws_another():
    ppo = module(ppo_epochs=3, num_minibatches=4)
    pairs = [pair.tolist() for _ in range(2) for pair in ppo._minibatches(ppo.settings.schedule(8, 1))]
    epochs = [pairs[start : start + 4] for start in range(0, 24, 4)]
    assert all(sorted(row for pair in epoch for row in pair) == list(range(8)) for epoch in epochs)
    assert epochs[0] == epochs[3] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert len({str(epoch) for epoch in epochs}) == 5


@pytest.mark.parametrize("critic", ["policy", "shared_trunk"])
def test_each_token_is_judged_from_the_state_before_it_at_the_temperature_of_sampling(critic):
    ppo = module(critic, lr=0.1, value_coef=1.0, sampling=Sampling(max_new_tokens=10, temperature=0.7))
    fit(ppo, steps=3)
    rollout = ppo.last_experience.rollout
    e = ppo.evaluate(rollout, ppo.last_experience.scores)
    assert (e.logprobs - e.ref_logprobs).abs().max() > 1e-3
    assert e.values[e.mask].std() > 1e-4
    for row in range(len(rollout)):  # one at a time, without padding
        prompt, answer = rollout.prompt_ids[row][rollout.prompt_mask[row]], rollout.response_ids[row][rollout.mask[row]]
        ids = torch.cat([prompt, answer])[None]
        before = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        for model, got in ((ppo.frozen["reference"], e.ref_logprobs), (ppo.policy, e.logprobs)):
            out = model(ids, output_hidden_states=True)
            want = (out.logits[0, before] / 0.7).log_softmax(-1).gather(1, answer[:, None])[:, 0]
            torch.testing.assert_close(got[row][rollout.mask[row]], want, rtol=1e-4, atol=1e-5)
        numbers = (
            ppo.critic(out.hidden_states[-1])
            if critic == "shared_trunk"
            else ppo.critic(ids, torch.ones_like(ids).bool())
        )
        want = ppo.value_scale(numbers[0, before])
        torch.testing.assert_close(e.values[row][rollout.mask[row]], want, rtol=1e-4, atol=1e-5)


def test_answers_that_nobody_judged_have_no_part_in_whitening_nor_in_the_start_of_the_critic():
    def every_other(prompts, completions, **columns):
        return [score if row % 2 else None for row, score in enumerate(praise(prompts, completions))]

    ppo = module()
    ppo.scorer = FunctionScorer(every_other, abstain_value=None)
    fit(ppo)
    e = ppo.last_experience
    assert e.counted.tolist() == [False, True] * 4
    counted = e.advantages[e.mask]
    assert float(counted.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(counted.std(unbiased=False)) == pytest.approx(1.0, abs=1e-3)
    start = float(reward_to_go(e.rewards, e.mask)[e.mask].mean())
    torch.testing.assert_close(e.values[e.mask], torch.full_like(counted, start))


@pytest.mark.filterwarnings("ignore:ppo. val/var_explained")  # the scores hardly vary
def test_learning_raises_the_score():
    ppo = module(kl=0.0, lr=0.1, ppo_epochs=2, num_minibatches=2)
    scores, lengths = [], []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            scores.append(float(trainer.callback_metrics["objective/scores"]))
            lengths.append(int(pl_module.last_experience.rollout.lengths.sum()))

    logged = fit(ppo, steps=12, callbacks=[Watch()])
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.5
    assert ppo.optimizer_steps == 12 * 2 * 2 and ppo.rollouts == 12 and ppo.episodes == 96 and ppo.step_number == 13
    assert logged["episode"] == 96 and logged["tokens"] == sum(lengths)


class Twins(Ranks):
    """Two ranks that see the same: what this one says, both say."""

    size = 2

    def reduce(self, tensor):
        return 2 * tensor

    def gather(self, tensor):
        return torch.stack([tensor, tensor]).double()


def test_two_ranks_that_see_the_same_learn_what_one_learns(monkeypatch):
    options = {"num_minibatches": 2, "micro_batch_size": 2, "whiten_advantages": False, "max_grad_norm": 0.1}
    one = module("shared_trunk", **options)
    alone = fit(one)
    monkeypatch.setattr(PPOModule, "ranks", property(lambda self: Twins()))
    two = module("shared_trunk", **options)
    together = fit(two)
    for a, b in zip(one.policy.parameters(), two.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    twice = {"episode": 2, "tokens": 2}
    for name, value in alone.items():
        if not name.startswith("perf/"):
            assert together[name] == pytest.approx(twice.get(name, 1) * value, rel=1e-4, abs=1e-6), name


def test_updates_stop_once_the_policy_has_moved_too_far():
    far = fit(module(lr=5.0, ppo_epochs=8, max_approx_kl=1e-3))
    per_token = fit(module(lr=0.05, ppo_epochs=3))["policy/approxkl_avg"]  # of three updates: none is above three times
    near = fit(module(lr=0.05, ppo_epochs=3, max_approx_kl=3 * per_token))
    assert far["policy/updates"] == 1 and near["policy/updates"] == 3


def test_the_policy_stands_still_while_the_critic_warms_up():
    ppo = module(critic_warmup=1, lr=1.0)
    before = [p.detach().clone() for p in tiny.policy(scale=0.3).parameters()]
    fit(ppo)
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.policy.parameters(), strict=True))
    assert ppo.critic.model.score.weight.abs().sum() > 0
    with pytest.raises(ConfigError, match=r"critic_warmup=1: a head on the policy would move the policy"):
        module(lambda policy: ValueHead(policy.config.hidden_size), critic_warmup=1).build()


def test_a_critic_that_would_read_other_words_is_refused(tmp_path):
    ScalarModel.from_policy(tiny.policy()).model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    critic = Pretrained(str(tmp_path))
    module(critic).build()
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"^ppo\.critic=.*: reads the policy's token ids.* policy or shared_trunk"):
        module(critic).build()


def test_the_reference_never_moves_and_is_not_in_the_state():
    ppo = module(lr=1.0)
    fit(ppo, steps=2)
    for a, b in zip(tiny.policy(scale=0.3).parameters(), ppo.frozen["reference"].parameters(), strict=True):
        assert torch.equal(a, b) and not b.requires_grad
    assert {name.split(".")[0] for name in ppo.state_dict()} == {"policy", "critic"}
    assert ppo.sharded_modules() == [ppo.policy, ppo.critic, ppo.frozen["reference"]]
    ppo.critic = None
    assert ppo.sharded_modules() == [ppo.policy, ppo.frozen["reference"]]


def test_another_reference_is_the_one_that_kl_is_measured_to(tmp_path):
    for seed, name in enumerate(("policy", "first")):
        tiny.policy(seed, scale=0.3).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    start, first = (Pretrained(str(tmp_path / name), freeze_below=1) for name in ("policy", "first"))
    ppo = PPOModule(
        start, FunctionScorer(praise), tiny.tokenizer(), reference=first, sampling=Sampling(max_new_tokens=10)
    )
    logged = fit(ppo)
    found = ppo.last_experience
    rollout, mask = found.rollout, found.mask
    scored = token_scores(tiny.policy(1, scale=0.3), rollout.input_ids, rollout.attention_mask, rollout.sampled)
    torch.testing.assert_close(found.ref_logprobs[mask], scored.logprobs)
    assert logged["objective/kl"] == pytest.approx(float((found.logprobs - found.ref_logprobs).sum(1).mean())) != 0
    other = tiny.policy()
    other.set_input_embeddings(torch.nn.Embedding(9, 32))
    with pytest.raises(ConfigError, match="reference: its vocabulary has 9 tokens, the policy's"):
        load_reference(other, tiny.policy())


def test_critics_start_at_the_mean_return_and_there_is_one_group_each():
    for critic, kind in (("policy", ScalarModel), ("shared_trunk", ValueHead)):
        ppo = module(critic)
        logged = fit(ppo)
        assert isinstance(ppo.critic, kind)
        e = ppo.last_experience
        assert e.values[e.mask].unique().tolist() == pytest.approx(
            [float(reward_to_go(e.rewards, e.mask)[e.mask].mean())]
        )
        assert logged["loss/value_avg"] > 0 and not e.values[~e.mask].any()
        assert [group["name"] for group in ppo.parameter_groups()] == ["policy", "critic"]


def test_sizes_that_do_not_divide_are_refused_with_the_whole_chain():
    with pytest.raises(ConfigError, match=r"3 minibatches do not divide a rollout of 8(.|\n)*-> micro +2"):
        fit(module(num_minibatches=3))
    whole = PPOSettings(by_length=False, micro_batch_size=16).schedule(8, 1)
    assert (whole.micro, whole.micro_batches) == (8, 1)  # a bound on memory


def test_a_hook_can_be_overridden_without_touching_another():
    class MeanBaseline(PPOModule):
        def compute_advantages(self, rewards, values, mask):
            total = rewards.sum(1, keepdim=True)
            return (total - total.mean()).expand_as(rewards), values

    ppo = module(cls=MeanBaseline, whiten_advantages=False)
    fit(ppo)
    e = ppo.last_experience
    total = e.rewards.sum(1)
    torch.testing.assert_close(e.advantages[:, 0], total - total.mean())


def test_a_plain_model_needs_its_tokenizer():
    with pytest.raises(ConfigError, match="also needs tokenizer="):
        PPOModule(tiny.policy(), FunctionScorer(praise))
