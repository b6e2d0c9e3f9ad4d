"""Bugs that other systems shipped, one test each; what is tested closer to its code is not repeated here."""

from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils._pytree import tree_leaves

from rlhf_lightning.data.readers.files import read_rows
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.labelling.ranking import ranking_rows, write_rows
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer
from tests.support import phases, tiny
from tests.support.scene import fit, ppo

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


class Recorder(torch.optim.SGD):
    """Gradient descent that writes down the norm of the gradients it is given."""

    norms: list[float]

    def step(self, closure=None):
        result = closure() if closure is not None else None
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        type(self).norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))
        super().step()
        return result


def recorder():
    return type("Fresh", (Recorder,), {"norms": []})


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (2, 4), (3, 2)])
@pytest.mark.parametrize("micro", [None, 2])
def test_every_rollout_takes_epochs_times_minibatches_steps(tmp_path, epochs, minibatches, micro):
    """TRL: the minibatch count had no effect under accumulation, and the last rollout of a pass took 10 steps for 4."""
    steps = []

    class Count(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            steps.append(trainer.global_step - sum(steps))

    module = phases.ppo_module(ppo_epochs=epochs, num_minibatches=minibatches, micro_batch_size=micro)
    phases.ppo(phases.write(tmp_path), module, rollouts=3, callbacks=[Count()])
    assert steps == [epochs * minibatches] * 3


def test_the_last_rollout_of_a_pass_takes_as_many_steps_as_the_others(tmp_path):
    """TRL: 10 steps instead of 4. Here two rollouts make a pass, and the fifth ends in the middle of one."""
    steps = []

    class Count(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            steps.append(trainer.global_step - sum(steps))

    module = phases.ppo_module(ppo_epochs=2, num_minibatches=2, micro_batch_size=1)
    phases.ppo(phases.write(tmp_path), module, rollouts=5, batch=4, callbacks=[Count()])
    assert steps == [4] * 5


def precisions():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return {
        "float32": {"precision": "32-true"},
        "bfloat16": {"precision": "bf16-mixed"},
        "float16 with a loss scaler": {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]},
    }


@pytest.mark.parametrize("phase", ["sft", "ppo"])
@pytest.mark.parametrize("precision", list(precisions()))
def test_the_norm_that_the_optimizer_sees_is_the_clipped_one(tmp_path, precision, phase):
    """TRL ignored max_grad_norm; clipping before a loss scaler has unscaled makes updates 750 times too small."""
    limit, optimizer = 1e-3, recorder()
    folder = phases.write(tmp_path)
    if phase == "sft":
        module = phases.SFTModule(tiny.policy(), tiny.tokenizer(), partial(optimizer, lr=0.1), max_grad_norm=limit)
        data = phases.DemonstrationData(
            folder / "demonstrations.jsonl", None, tiny.tokenizer(), batch_size=4, validation_fraction=0.0
        )
        run = phases.trainer(**precisions()[precision])
        run.fit(module, datamodule=data)
        measured = float(run.callback_metrics["train/grad_norm"])
    else:
        module = phases.ppo_module(optimizer=partial(optimizer, lr=0.1), max_grad_norm=limit)
        _, run = phases.ppo(folder, module, **precisions()[precision])
        measured = float(run.callback_metrics["policy/grad_norm"])
    assert len(optimizer.norms) >= 2
    together = limit * (2 if phase == "ppo" else 1) ** 0.5  # policy and critic, each by itself
    assert optimizer.norms == pytest.approx([together] * len(optimizer.norms), rel=0.02)
    assert 10 * limit < measured < 100  # before clipping, and not in the scaler's unit


def test_the_reference_is_the_policy_that_was_passed_not_the_one_on_disk(tmp_path):
    """TRL loaded the reference by name: KL 0.85 per token at step 1."""
    tiny.policy(scale=0.3).save_pretrained(tmp_path)
    policy = type(tiny.policy()).from_pretrained(tmp_path).train()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    _, logged = fit(ppo(policy))
    assert logged["objective/kl"] == 0.0


def test_a_reward_of_zero_is_not_a_missing_reward():
    """OpenRLHF issue 1219."""
    rollout = fit(ppo())[0].last_experience.rollout
    zeros = FunctionScorer(lambda prompts, completions: [0.0] * len(prompts), name="zero", abstain_value=-5.0)
    mixed = FunctionScorer(lambda prompts, completions: [None, 0.0] * (len(prompts) // 2), name="m", abstain_value=-5.0)
    assert zeros.score(rollout, tiny.tokenizer()).tolist() == [0.0] * len(rollout)
    assert mixed.score(rollout, tiny.tokenizer()).tolist() == [-5.0, 0.0] * (len(rollout) // 2)


def test_nothing_in_the_experience_hangs_on_a_graph():
    """verl PR 6699, issue 7166: attached log-probabilities leaked memory until the run died."""
    experience = fit(ppo())[0].last_experience
    tensors = [leaf for leaf in tree_leaves([vars(experience), vars(experience.rollout)]) if hasattr(leaf, "grad_fn")]
    assert len(tensors) >= 12
    assert all(leaf.grad_fn is None and not leaf.requires_grad for leaf in tensors)


def test_the_score_lands_on_the_end_token_also_where_padding_is_the_same_token():
    """TRL: the score lay on the pad behind EOS, and with pad = eos the EOS itself was masked out."""
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    module = ppo(scorer=lambda prompts, completions, **columns: [3.0] * len(prompts), tokenizer=tokenizer)
    experience = fit(module)[0].last_experience
    rollout = experience.rollout
    assert 0 < rollout.finished.sum() < len(rollout) and len(rollout.lengths.unique()) > 2
    last = rollout.lengths - 1
    expected = torch.zeros_like(experience.rewards)
    expected[torch.arange(len(rollout)), last] = 3.0
    torch.testing.assert_close(experience.rewards, expected)
    ends = rollout.response_ids[torch.arange(len(rollout)), last] == tokenizer.eos_token_id
    assert torch.equal(ends, rollout.finished)
    assert (rollout.response_ids[rollout.mask] == tokenizer.eos_token_id).sum() == rollout.finished.sum()


def test_the_engine_records_the_logprob_of_the_token_it_drew():
    """NeMo-RL PR 3297 recorded the likeliest token's. Here against a plain forward, one row at a time."""
    module = ppo(sampling=Sampling(max_new_tokens=10, temperature=0.7))
    with torch.no_grad():
        start = tiny.policy(scale=0.3).eval()
    rollout = fit(module)[0].last_experience.rollout
    for i in range(len(rollout)):
        prompt, answer = rollout.prompt_ids[i][rollout.prompt_mask[i]], rollout.response_ids[i][rollout.mask[i]]
        with torch.no_grad():
            logits = start(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        drawn = (logits / 0.7).log_softmax(-1).gather(1, answer[:, None]).squeeze(1)
        torch.testing.assert_close(rollout.rollout_logprobs[i][rollout.mask[i]], drawn, atol=2e-5, rtol=0)


def test_mixed_precision_really_runs_in_the_lower_precision(tmp_path):
    """TRL: bf16=True changed nothing."""
    module, seen = phases.ppo_module(), set()
    module.configure_model()
    module.policy.model.layers[-1].mlp.down_proj.register_forward_hook(
        lambda layer, given, out: seen.add((torch.is_grad_enabled(), out.dtype))
    )
    phases.ppo(phases.write(tmp_path), module, rollouts=1, precision="bf16-mixed")
    assert (True, torch.bfloat16) in seen and (True, torch.float32) not in seen
    assert module.last_experience.logprobs.dtype == torch.float32


def test_rankings_of_the_rank_stage_are_accepted_by_the_reward_stage(tmp_path):
    """A policy that once ends at once must not stop the pipeline after all answers are ranked."""
    answers = [("", 0.0), (" good", 2.0), (" bad", 1.0)]
    records = [
        {"prompt": "we", "row": {"prompt": "we"}, "completion": text, "scores": {"gold": score}}
        for text, score in answers
    ]
    write_rows(tmp_path / "rankings.jsonl", ranking_rows(records, "gold"))
    assert len(validate_rows(read_rows(tmp_path / "rankings.jsonl"), "comparisons")) == 1
