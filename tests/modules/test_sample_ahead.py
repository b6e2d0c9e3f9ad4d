"""PPO that samples each rollout while it learns from the one before: with which weights, and what stays the same."""

import threading
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from rlhf_lightning import signals
from rlhf_lightning.callbacks import DurableCheckpoint, RecordRollouts
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.errors import ConfigError, NumericalError, RolloutError
from rlhf_lightning.functional.ratios import CORRECTIONS
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout import HFGenerateEngine, LoopEngine, ServerEngine
from rlhf_lightning.rollout.recorded import ReplayEngine, iterations, read
from rlhf_lightning.rules.ahead import check_ahead_node
from rlhf_lightning.scoring.recorded import RecordedScorer
from rlhf_lightning.training.pending import PendingRollout
from tests.gates.gate_sources import ROOT
from tests.support import phases, scene, tiny
from tests.support.fake_vllm import fake_vllm

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
AHEAD = {"sample_ahead": True, "correction": "token_truncate"}
STEPS = 4  # optimizer steps of a rollout


class Noting(LoopEngine):
    """Keeps what it sampled and in which thread; ``meets`` is called in threads other than the main one."""

    def __init__(self, meets=lambda: None):
        super().__init__()
        self.rollouts, self.threads, self.meets = [], [], meets

    def generate(self, prompts, sampling, tokenizer=None):
        aside = threading.current_thread() is not threading.main_thread()
        if aside:
            self.meets()
        rollout = super().generate(prompts, sampling, tokenizer)
        self.rollouts.append(rollout)
        self.threads.append(aside)
        return rollout


class Late(PendingRollout):
    """The thread samples only once somebody waits for it."""

    def __init__(self):
        super().__init__()
        self.asked = threading.Event()

    def wait(self):
        self.asked.set()
        super().wait()
        self.asked.clear()


def late(folder, **options):
    module = phases.ppo_module(Learning, partial(torch.optim.AdamW, lr=1e-2), **AHEAD)
    module.pending = Late()
    return ppo(folder, Noting(lambda: module.pending.asked.wait(60)), module=module, **options)


class Learning(phases.PPOModule):
    """Keeps what it learned from, and the policy before each rollout."""

    def build(self):
        super().build()
        self.learned, self.policies = [], []

    def learn(self, experience):
        self.learned.append(experience)
        self.policies.append(phases.flat(self.policy))
        return super().learn(experience)


def ppo(folder, engine=None, rollouts=4, module=None, resume=None, callbacks=(), **settings):
    module = module or phases.ppo_module(Learning, partial(torch.optim.AdamW, lr=1e-2), **{**AHEAD, **settings})
    module.engine = engine or Noting()
    saves = any(isinstance(callback, DurableCheckpoint) for callback in callbacks)
    phases.ppo(
        folder, module, rollouts, batch=4, resume=resume, callbacks=callbacks, checkpointing=saves,
        plugins=[DurableCheckpointIO()],
    )  # fmt: skip
    return module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a step that is not finite leaves its batch in the current folder
    return phases.write(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from start to end, and the weights it ends with."""
    module = ppo(phases.write(tmp_path_factory.mktemp("whole")))
    return module, phases.flat(module.policy)


def test_each_rollout_is_sampled_by_the_policy_of_one_rollout_before_while_that_learns(folder):
    learning = threading.Event()  # the thread goes on only once the main one has begun to learn
    module = phases.ppo_module(Learning, partial(torch.optim.AdamW, lr=1e-2), **AHEAD)
    learn = module.learn
    module.learn = lambda experience: (learning.set(), learn(experience))[1]
    module = ppo(folder, Noting(lambda: learning.wait(60) and learning.clear()), module=module)
    sampled = [set(rollout.weight_version.tolist()) for rollout in module.engine.rollouts]
    assert sampled == [{0}, {0}, {STEPS}, {2 * STEPS}] and module.engine.threads == [False, True, True, True]
    assert module.optimizer_steps == 4 * STEPS and not module.pending.is_there
    for drawn, learned in zip(module.engine.rollouts, module.learned, strict=True):
        assert torch.equal(drawn.response_ids, learned.rollout.response_ids)
        assert [row["prompt"] for row in drawn.rows] == [row["prompt"] for row in learned.rollout.rows]


def test_old_log_probabilities_are_those_of_the_policy_that_learns_and_weights_those_of_the_one_that_sampled(whole):
    module, weights = whole
    for place, experience in enumerate(module.learned):
        rollout = experience.rollout
        torch.nn.utils.vector_to_parameters(module.policies[place], module.policy.parameters())
        with torch.no_grad():
            now = module.forward_policy(rollout).logprobs
            torch.nn.utils.vector_to_parameters(module.policies[max(place - 1, 0)], module.policy.parameters())
            then = module.forward_policy(rollout).logprobs
        torch.testing.assert_close(experience.logprobs, now)
        torch.testing.assert_close(rollout.rollout_logprobs, then)
        expected = CORRECTIONS["token_truncate"](now, then, rollout.mask)
        torch.testing.assert_close(experience.weights, expected)
        assert place < 2 or not torch.allclose(now, then, atol=1e-3)
        kl = (then - experience.ref_logprobs).masked_fill(~rollout.mask, 0).sum(1).mean()
        assert module.rollout_metrics(experience)["objective/kl"] == pytest.approx(float(kl), abs=1e-5)
    torch.nn.utils.vector_to_parameters(weights, module.policy.parameters())


def test_what_is_recorded_is_each_rollout_once_and_leads_to_the_same_weights_when_it_is_fed_back(folder):
    recorded = ppo(folder, callbacks=[RecordRollouts(folder / "rollouts")])
    calls = [read(folder / "rollouts", iteration, 0) for iteration, _ in iterations(folder / "rollouts")]
    assert [len(each) for each in calls] == [1] * 4
    for (call,), experience in zip(calls, recorded.learned, strict=True):
        assert torch.equal(call.rollout.response_ids, experience.rollout.response_ids)
        assert torch.equal(call.scores, experience.scores)
    saver = DurableCheckpoint(folder / "checkpoints", every_n_steps=2, keep=100)
    for resumes in (False, True):
        options = {"resume": checkpoints(folder / "checkpoints")[-1]} if resumes else {"callbacks": [saver]}
        module = phases.ppo_module(Learning, partial(torch.optim.AdamW, lr=1e-2), **AHEAD)
        module.scorer = RecordedScorer()
        again = ppo(folder, ReplayEngine(folder / "rollouts"), module=module, **options)
        assert torch.equal(phases.flat(again.policy), phases.flat(recorded.policy))


def test_an_engine_that_is_another_model_ends_the_run_at_the_first_rollout(folder):
    class Other(LoopEngine):
        def generate(self, prompts, sampling, tokenizer=None):
            rollout = super().generate(prompts, sampling, tokenizer)
            rollout.rollout_logprobs.sub_(0.01)
            return rollout

    module = phases.ppo_module(Learning, **AHEAD)
    with pytest.raises(NumericalError, match=r"0\.01 nats per token from those of the training forward"):
        ppo(folder, Other(), module=module)
    assert not module.learned


def test_the_same_prompts_are_answered_in_the_same_order_as_without(folder, whole):
    ahead, plain = whole[0], ppo(folder, sample_ahead=False)
    asked = [[rollout.prompt_ids.tolist() for rollout in module.engine.rollouts] for module in (ahead, plain)]
    assert asked[0] == asked[1] and len(asked[0]) == 4 and ahead.optimizer_steps == plain.optimizer_steps


def test_a_run_resumed_at_any_step_ends_bit_for_bit_where_it_would_have_ended_as_does_the_same_run_again(folder, whole):
    saver = DurableCheckpoint(folder / "checkpoints", every_n_steps=1, keep=100)
    again, (_, weights) = late(folder, callbacks=[saver]), whole
    saved = checkpoints(folder / "checkpoints")[::-1]
    assert torch.equal(phases.flat(again.policy), weights) and len(saved) == 3
    for number, path in enumerate(saved, 1):
        rest = ppo(folder, resume=path)
        assert torch.equal(phases.flat(rest.policy), weights)
        assert len(rest.learned) == 4 - number and len(rest.engine.rollouts) == 3 - number  # one was in the checkpoint
        assert all(rest.learned[0].rollout.rows)


@pytest.mark.parametrize("error", [RolloutError("it is gone"), signals.Stopped(15)])
def test_an_error_in_the_thread_ends_the_run_at_the_next_step(error, folder):
    def fails():
        raise error

    module = phases.ppo_module(Learning, **AHEAD)
    with pytest.raises(type(error), match=str(error)):
        ppo(folder, Noting(fails), module=module)
    assert len(module.learned) == 1


def test_a_number_that_is_not_finite_costs_its_rollout_and_the_next_is_sampled_at_once(folder):
    faults = [NumericalError("NaN in the logits")]

    def once():
        if faults:
            raise faults.pop()

    saver = DurableCheckpoint(folder / "checkpoints", every_n_steps=1, keep=100)
    with pytest.warns(UserWarning, match="a logit in generation is not finite"):
        module = ppo(folder, Noting(once), callbacks=[saver])
    assert len(module.learned) == 3 and module.engine.threads == [False, False, True]
    with pytest.warns(UserWarning, match="NaN in the logits"):
        rest = ppo(folder, resume=checkpoints(folder / "checkpoints")[-1])
    assert torch.equal(phases.flat(rest.policy), phases.flat(module.policy)) and len(rest.learned) == 2


def test_what_nobody_waits_for_is_given_up():
    pending, begun = PendingRollout(), threading.Event()

    def forever():
        begun.set()
        while True:
            signals.poll()

    pending.begin(forever, torch.device("cpu"))
    begun.wait(60)
    thread = pending._thread
    pending.drop()
    assert not thread.is_alive() and not pending.is_there
    pending.begin(forever, torch.device("cpu"))
    thread = pending._thread
    del pending
    assert not thread.is_alive()


def test_answers_that_are_asked_for_aside_change_nothing(folder, whole):
    class Asking(phases.lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            before = module.pending.is_there
            module.generate_aside(batch, 7)
            assert module.pending.is_there == before

    assert torch.equal(phases.flat(late(folder, callbacks=[Asking()]).policy), whole[1])


@pytest.fixture
def server():
    with fake_vllm(tiny.policy(seed=9)) as fake:
        yield fake


def served(server, folder, **options):
    return ServerEngine([server.url], folder=folder / "server", ram_disk=False, retries=0, **options)


def test_a_server_samples_with_the_weights_of_one_rollout_before_and_goes_on_the_same_after_a_resume(server, folder):
    saver = DurableCheckpoint(folder / "checkpoints", every_n_steps=2, keep=100)
    whole = ppo(folder, served(server, folder), callbacks=[saver])
    versions = [set(experience.rollout.weight_version.tolist()) for experience in whole.learned]
    assert versions == [{0}, {0}, {STEPS}, {2 * STEPS}] and server.paths.count("/update_weights") == 3
    rest = ppo(folder, served(server, folder), resume=checkpoints(folder / "checkpoints")[0])
    assert torch.equal(phases.flat(rest.policy), phases.flat(whole.policy)) and len(rest.learned) == 2


@pytest.mark.parametrize("stale_from", [1, 2, 3])
def test_a_server_that_keeps_old_weights_is_found_before_it_samples_with_them(stale_from, server, folder):
    server.stale_from = stale_from
    module = phases.ppo_module(Learning, partial(torch.optim.AdamW, lr=0.1), **AHEAD)
    with pytest.raises(NumericalError, match=r"the log-probabilities of the server are .* rollout.stop_at=0.01"):
        ppo(folder, served(server, folder), module=module)
    assert server.updates == stale_from and len(module.learned) == stale_from - 1


@pytest.mark.parametrize(
    ("parts", "settings", "says"),
    [
        ({}, {"correction": None}, r"without ppo.settings.correction.*set ppo.settings.correction=token_truncate"),
        ({}, {"baseline": "greedy"}, r"ppo.settings.baseline=greedy"),
        ({}, {"group_size": 2, "max_resamples": 1}, r"ppo.settings.max_resamples=1"),
        ({"engine": HFGenerateEngine()}, {}, r"HFGenerateEngine cannot sample in a thread.*rollout=server"),
        ({"engine": LoopEngine(gather="layer")}, {}, r"LoopEngine cannot sample in a thread.*gather=model"),
    ],
)
def test_what_cannot_be_sampled_ahead_is_refused(parts, settings, says):
    with pytest.raises(ConfigError, match=says):
        scene.ppo(parts=parts, **{**AHEAD, **settings})


@pytest.mark.parametrize(
    ("name", "shards", "says"),
    [
        ("server", True, None), ("loop", False, None), ("loop", True, r"sharded ones \(trainer=fsdp2\) cannot be"),
        ("hf", False, "HFGenerateEngine cannot"), ("environment", False, "EnvironmentEngine cannot"),
        ("replay", True, None),
    ],
)  # fmt: skip
def test_a_config_is_refused_by_its_engine_before_anything_is_built(name, shards, says):
    node = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "rollout" / f"{name}.yaml"), resolve=False)
    with nullcontext() if says is None else pytest.raises(ConfigError, match=says):
        check_ahead_node(node, shards=shards)


def test_a_loader_that_cannot_say_what_comes_next_is_refused_and_one_that_says_something_else_is_found(folder):
    with pytest.raises(ConfigError, match=r"has no peek\(\); take the prompts from a PromptData"):
        scene.fit(scene.ppo(**AHEAD), 2)
    module = phases.ppo_module(**AHEAD)
    begin = module._begin_next
    module._begin_next = lambda: (begin(), module.trainer.train_dataloader.draw())
    with pytest.raises(ConfigError, match=r"the loader handed out other prompts than its peek\(\) said"):
        ppo(folder, module=module, rollouts=3)


def test_it_is_off_unless_asked_for():
    assert not PPOSettings().sample_ahead
