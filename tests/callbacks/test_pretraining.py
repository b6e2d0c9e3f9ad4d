"""PPO-ptx: in every optimizer step the gradient of the texts is added, and their order follows from the step."""

import pytest
import torch
from torch.testing import assert_close

from rlhf_lightning.callbacks import PretrainingMix
from rlhf_lightning.config.compose import compose
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.errors import ConfigError, OutOfMemory
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.stages.ppo import check_ppo
from rlhf_lightning.stages.run import Run
from tests.support import phases, tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
ONE_STEP = {"ppo_epochs": 1, "num_minibatches": 1, "micro_batch_size": 2, "max_grad_norm": 0.0}


def rows(folder, micro=None):
    return DemonstrationData(
        folder / "demonstrations.jsonl", None, tiny.tokenizer(), batch_size=4, micro_batch_size=micro,
        validation_fraction=0.0,
    )  # fmt: skip


def trained(folder, coef=0.5, micro=None, rollouts=1, **settings):
    module = phases.ppo_module(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1), **{**ONE_STEP, **settings})
    mix = [PretrainingMix(rows(folder, micro), coef)] if coef else []
    module, run = phases.ppo(folder, module, rollouts=rollouts, callbacks=mix)
    return phases.flat(module.policy), {name: float(value) for name, value in run.callback_metrics.items()}


def test_a_step_adds_the_gradient_of_the_texts_mean_loss_however_they_are_cut(tmp_path):
    folder = phases.write(tmp_path)
    alone, _ = trained(folder, coef=0)
    data, policy = rows(folder), tiny.policy(scale=0.3)
    data.setup("fit")
    batch = data.train_dataloader().draw()
    loss = -token_scores(policy, batch.input_ids, batch.attention_mask, batch.mask).logprobs.mean()
    loss.backward()
    push = torch.cat([p.grad.flatten() for p in policy.parameters()])
    for micro in (None, 1):
        mixed, logged = trained(folder, micro=micro)
        assert_close(mixed - alone, -0.1 * 0.5 * push, atol=2e-6, rtol=1e-4)
        assert logged["loss/pretraining_avg"] == pytest.approx(loss.item(), rel=1e-5)


def test_every_step_takes_the_next_rows_and_a_warm_up_of_the_critic_none(tmp_path):
    folder, taken = phases.write(tmp_path), []
    mix = PretrainingMix(rows(folder), 0.5)
    module = phases.ppo_module(critic_warmup=1, **{**ONE_STEP, "num_minibatches": 2})
    inner = mix.accumulate

    def spied(ppo):
        taken.append((ppo.rollouts, ppo.optimizer_steps))
        return inner(ppo)

    mix.accumulate = spied
    phases.ppo(folder, module, rollouts=3, callbacks=[mix])
    assert taken == [(1, 2), (1, 3), (2, 4), (2, 5)]
    assert mix.state_dict()["position"] == 6


def test_rows_that_do_not_fit_name_their_own_keys_and_no_rollout_gets_smaller(tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("rlhf_lightning.callbacks.pretraining.token_scores", full)
    says = r"ppo\.pretraining: out of memory with 4 rows of \d+ tokens; lower ppo\.pretraining\.data\.micro_batch_size"
    with pytest.raises(OutOfMemory, match=says):
        trained(phases.write(tmp_path))


def test_other_rows_than_those_of_the_checkpoint_are_refused(tmp_path):
    folder = phases.write(tmp_path)
    mix = PretrainingMix(rows(folder), 0.5)
    phases.ppo(folder, phases.ppo_module(), rollouts=1, callbacks=[mix])
    (folder / "demonstrations.jsonl").write_text('{"text": "the food was good ."}\n' * 8)
    other = PretrainingMix(rows(folder), 0.5)
    other.load_state_dict(mix.state_dict())
    with pytest.raises(Exception, match="not those of the checkpoint"):
        phases.ppo(folder, phases.ppo_module(), rollouts=1, callbacks=[other])


def test_a_coefficient_below_zero_and_a_module_that_does_not_sample_are_refused(tmp_path):
    folder = phases.write(tmp_path)
    with pytest.raises(ConfigError, match=r"ppo\.pretraining\.coef"):
        PretrainingMix(rows(folder), -0.1)
    with pytest.raises(ConfigError, match="SFTModule does not learn online"):
        phases.sft(folder, callbacks=[PretrainingMix(rows(folder), 1.0)])


@pytest.mark.parametrize("given", ["coef=0.5", "data.train=texts.jsonl"])
def test_rows_without_a_coefficient_and_one_without_rows_are_refused_before_anything_is_trained(given, tmp_path):
    run = Run(compose(["stage=ppo", f"run_dir={tmp_path / 'run'}", f"ppo.pretraining.{given}"]))
    with pytest.raises(ConfigError, match=r"ppo\.pretraining\.coef=.* set both, or neither"):
        check_ppo(run)
