"""PPO that samples from a server: what it learns, what it notices, and where it goes on after it was stopped."""

from functools import partial

import pytest
import torch

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.errors import NumericalError, RolloutError
from rlhf_lightning.rollout import LoopEngine, Sampling, ServerEngine
from tests.support import phases, scene, tiny
from tests.support.fake_vllm import fake_vllm

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


@pytest.fixture
def server():
    with fake_vllm(tiny.policy(seed=9)) as fake:
        yield fake


def engine(server, folder, **options):
    return ServerEngine([server.url], folder=folder, **{"ram_disk": False, "retries": 0, **options})


def run(server, folder, steps=3, lr=0.05, options=None, **settings):
    given = {"sampling": Sampling(max_new_tokens=6), "lr": lr, **settings}
    module = scene.ppo(parts={"engine": engine(server, folder, **(options or {}))}, **given)
    return scene.fit(module, steps, repeats=2)


def test_a_run_ends_where_one_with_the_same_answers_from_its_own_engine_ends(server, tmp_path):
    class Same(LoopEngine):
        """Draws the answers that the server gave, and decodes them itself."""

        def __init__(self, rollouts):
            super().__init__()
            self.rollouts = iter(rollouts)

        def generate(self, prompts, sampling, tokenizer=None):
            return next(self.rollouts)

    seen = []
    module = scene.ppo(parts={"engine": engine(server, tmp_path)}, lr=0.05, sampling=Sampling(max_new_tokens=6))
    generate = module.engine.generate
    module.engine.generate = lambda *given: (seen.append(generate(*given)), seen[-1])[1]
    module, logged = scene.fit(module, 3, repeats=2)
    other, _ = scene.fit(
        scene.ppo(parts={"engine": Same(seen)}, lr=0.05, sampling=Sampling(max_new_tokens=6)), 3, repeats=2
    )
    torch.testing.assert_close(phases.flat(module.policy), phases.flat(other.policy), atol=0, rtol=0)
    assert [set(r.weight_version.tolist()) for r in seen] == [{0}, {1}, {2}]
    assert logged["sampling/sampling_logp_difference/mean"] < 1e-5 and logged["sampling/ratio_outside"] == 0
    assert server.paths.count("/update_weights") == 3
    assert not (tmp_path / "weights").exists()  # the end of the fit lets it go


@pytest.mark.parametrize("stale_from", [1, 2, 4])
def test_a_server_that_keeps_old_weights_is_found_at_the_first_rollout_of_them(stale_from, server, tmp_path):
    server.stale_from = stale_from
    with pytest.raises(NumericalError, match=r"ppo: the log-probabilities of the server are .* rollout.stop_at=0.01"):
        run(server, tmp_path, steps=6, lr=0.5)
    assert server.updates == stale_from


def shift(gap):
    def change(found):
        numbers = found["choices"][0]["logprobs"]["token_logprobs"]
        numbers[:] = [p - gap for p in numbers]

    return change


@pytest.mark.parametrize(("gap", "outcome"), [(0.02, NumericalError), (0.007, UserWarning), (0.003, None)])
def test_wrong_log_probabilities_end_the_run_or_are_told(gap, outcome, server, tmp_path):
    server.each = shift(gap)
    if outcome is None:
        assert run(server, tmp_path)[1]["sampling/sampling_logp_difference/mean"] == pytest.approx(gap, rel=0.01)
        return
    with pytest.raises(outcome, match=rf"are {gap:.1g}.* nats per token .*at={0.01 if gap > 0.01 else 0.005}"):
        run(server, tmp_path)


def test_every_nth_rollout_is_looked_at(server, tmp_path):
    def late(found):
        if len(server.asked) > 8:  # in the first rollout all is well
            shift(0.02)(found)

    server.each = late
    with pytest.raises(NumericalError):
        run(server, tmp_path, options={"verify_every_n": 3}, steps=4)
    assert len(server.asked) == 4 * 8


def test_the_correction_weighs_by_the_numbers_of_the_server(server, tmp_path):
    server.each = shift(0.005)
    _, logged = run(server, tmp_path, correction="token_truncate", options={"warn_at": 0.01})
    assert logged["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.005, abs=2e-4)


def test_a_server_that_dies_in_a_rollout_ends_the_run_with_its_address(server, tmp_path):
    def dies(found):
        if len(server.asked) > 12:
            server.broken["/v1/completions"] = "closed"

    server.each = dies
    with pytest.raises(
        RolloutError, match=rf"rollout: {server.url}/v1/completions gave no answer after 1 try"
    ) as ended:
        run(server, tmp_path)
    assert ended.value.exit_code == 7


def test_a_run_that_is_resumed_at_any_step_samples_and_ends_the_same(server, tmp_path):
    folder = phases.write(tmp_path)
    server.jitter = 0.02

    def ppo(**options):
        module = phases.ppo_module(optimizer=partial(torch.optim.AdamW, lr=1e-2))
        module.engine = engine(server, tmp_path / "server")
        asked = len(server.asked)
        module, _ = phases.ppo(folder, module, rollouts=4, batch=4, plugins=[DurableCheckpointIO()], **options)
        answered = sorted((body["seed"], *body["prompt"]) for body in server.asked[asked:])
        return answered, phases.flat(module.policy)

    saver = DurableCheckpoint(folder / "checkpoints", every_n_steps=1, keep=100)
    answered, weights = ppo(callbacks=[saver], checkpointing=True)
    saved = checkpoints(folder / "checkpoints")[::-1]
    assert len(saved) == 3 and len(answered) == 16
    for number, path in enumerate(saved, 1):
        rest, ended = ppo(resume=path)
        assert set(rest) <= set(answered) and len(rest) == 4 * (4 - number)
        assert torch.equal(ended, weights)
