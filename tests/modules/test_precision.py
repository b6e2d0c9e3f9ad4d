"""Every phase in every precision: offline it learns what it learns in float32, online the first rollout has no KL."""

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file

from rlhf_lightning.training.precision import HALF, HalfWeights
from tests.support import offline, phases, small_run, tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
PRECISIONS = ["bf16-mixed", "16-mixed", *HALF]
DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


def options(precision):
    if precision in HALF:
        return {"plugins": [HalfWeights(precision)]}
    if precision == "16-mixed":  # of which Lightning makes bf16-mixed on a CPU
        return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]}
    return {"precision": precision}


def sft(folder, **given):
    return phases.sft(folder, epochs=1, **given)[0]


def reward(folder, **given):
    return phases.reward(folder, **given)[0]


def dpo(folder, **given):
    module = offline.preference(reference=tiny.policy(1))
    offline.fit(module, offline.pairs(offline.rankings(folder)), **given)
    return module


def kto(folder, **given):
    module = offline.unpaired(reference=tiny.policy(1))
    offline.fit(module, offline.answers(offline.feedback(folder)), **given)
    return module


def start(module):
    return phases.flat(phases.reward_model() if module.trains == "model" else tiny.policy())


@pytest.fixture(scope="module", params=[sft, reward, dpo, kto], ids=lambda phase: phase.__name__)
def in_float32(request, tmp_path_factory):
    """A phase, its data, and what it learns."""
    folder = phases.write(tmp_path_factory.mktemp("phase"))
    return request.param, folder, request.param(folder)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_phase_learns_what_it_learns_in_float32(in_float32, precision):
    phase, folder, expected = in_float32
    module = phase(folder, **options(precision))
    assert {p.dtype for p in module.trained.parameters()} == {DTYPES.get(precision, torch.float32)}
    way = phases.flat(expected.trained) - start(expected)
    moved = phases.flat(module.trained).float() - start(module)
    assert way.norm() > 0
    assert torch.cosine_similarity(moved, way, dim=0) > (0.9 if precision in HALF else 0.99)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_only_weights_in_half_precision_are_warned_of(tmp_path, caplog, precision):
    sft(phases.write(tmp_path), **options(precision))
    warned = [record.message for record in caplog.records if "lost to rounding" in record.message]
    assert len(warned) == (precision == "bf16-true")
    assert all(text.startswith("sft: learns in weights of bfloat16, ") and "about 2 %" in text for text in warned)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_policy_starts_at_its_reference(tmp_path, precision):
    module, _ = phases.ppo(phases.write(tmp_path), phases.ppo_module(), rollouts=1, **options(precision))
    experience = module.last_experience
    assert torch.equal(experience.logprobs, experience.ref_logprobs)
    assert experience.logprobs.dtype == experience.advantages.dtype == torch.float32
    after, before = phases.flat(module.policy), phases.flat(tiny.policy(scale=0.3))
    assert after.isfinite().all() and not torch.equal(after.float(), before.to(after.dtype).float())


def test_the_command_takes_half_precision(tmp_path):
    words = ["stages=[sft,ppo]", "scorer.function=tests.support.hostile_rewards.words", "trainer.precision=bf16-true"]
    small_run.go(small_run.prepare(tmp_path), tmp_path / "run", *words)
    for stage in ("sft", "ppo"):
        weights = load_file(tmp_path / "run" / stage / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
