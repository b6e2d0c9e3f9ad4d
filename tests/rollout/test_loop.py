"""The decode loop: right distribution, right log-probabilities, nobody's sample depends on who else is in the batch."""

import json
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import Pretrained
from rlhf_lightning.models.forward import response_forward
from rlhf_lightning.rollout import HFGenerateEngine, LoopEngine, Sampling, copies, rank_seed
from rlhf_lightning.rollout.hf import warn_of_unused_fields
from rlhf_lightning.rollout.sample import BLOCK, invert, sample
from tests.support import tiny
from tests.support.plain import gather_logprobs

PROMPTS = ("the food was", "we left", "very slow service and bad food .", "good")


def engine(model, seed=0, **options):
    made = LoopEngine(**options)
    made.sync(model, (1,), 0, version=7)
    made.seed(seed)
    return made


def test_captured_logprobs_are_those_of_the_teacher_forced_forward():
    model = tiny.policy()
    rollout = engine(model).generate(tiny.prompts(*PROMPTS, repeats=4), Sampling(max_new_tokens=16, temperature=0.7))
    with torch.no_grad():
        out = response_forward(model, rollout.input_ids, rollout.attention_mask, rollout.mask.shape[1])
    expected = gather_logprobs(out.logits, rollout.response_ids, temperature=0.7)
    torch.testing.assert_close(rollout.rollout_logprobs[rollout.mask], expected[rollout.mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"compact_below": 0.0}, {"compact_below": 1.0}, {"micro_batch_size": 3}, {"look_every": 7}, {"look_every": 64}],
)
def test_leaving_rows_and_micro_batches_change_nobodys_sample(options):
    model, batch, sampling = tiny.policy(scale=0.3), tiny.prompts(*PROMPTS, repeats=3), Sampling(max_new_tokens=20)
    plain = engine(model, compact_below=0.5).generate(batch, sampling)
    other = engine(model, **options).generate(batch, sampling)
    assert torch.equal(plain.mask, other.mask)
    assert torch.equal(plain.response_ids, other.response_ids)
    assert torch.equal(plain.finished, other.finished)
    torch.testing.assert_close(plain.rollout_logprobs, other.rollout_logprobs, atol=1e-5, rtol=1e-5)
    assert plain.lengths.unique().numel() > 2  # the batch was ragged


def test_the_mask_ends_with_the_first_eos_and_finished_says_so():
    rollout = engine(tiny.policy(scale=0.2)).generate(tiny.prompts(*PROMPTS, repeats=8), Sampling(max_new_tokens=12))
    assert rollout.finished.any() and not rollout.finished.all()
    for ids, mask, finished in zip(rollout.response_ids, rollout.mask, rollout.finished, strict=True):
        counted = ids[mask].tolist()
        assert (counted.count(1), counted[-1] == 1) == ((1, True) if finished else (0, False))


def test_sampled_frequencies_follow_the_tempered_softmax():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens, logprobs = sample(logits.expand(20_000, -1), uniforms, Sampling(temperature=0.5))
    expected = (logits[0] / 0.5).softmax(-1)
    torch.testing.assert_close(tokens.bincount(minlength=4) / 20_000, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logprobs, expected.log()[tokens])


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(top_k=2), {0, 3}),
        (Sampling(top_p=0.6), {3}),
        (Sampling(top_p=0.85), {0, 3}),
        (Sampling(), {0, 1, 2, 3}),
    ],
)
def test_truncation_keeps_the_likeliest_tokens(sampling, allowed):
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]]).expand(400, -1)  # probabilities .24 .09 .03 .64
    tokens, _ = sample(logits, (torch.arange(400, dtype=torch.float64) + 0.5) / 400, sampling)
    assert set(tokens.tolist()) == allowed


def test_an_extreme_uniform_never_draws_an_impossible_token():
    logits = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf")]]).expand(2, -1)
    tokens, _ = sample(logits, torch.tensor([0.0, 1.0 - 1e-16], dtype=torch.float64), Sampling())
    assert tokens.tolist() == [0, 2]


def test_training_refuses_truncated_sampling_and_says_why():
    with pytest.raises(ConfigError, match=r"top_p=0.9.*untruncated"):
        Sampling(top_p=0.9).require_scorable()
    Sampling(temperature=0.7).require_scorable()


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match=r"max_new_tokens=62 exceeds the model's 64"):
        engine(tiny.policy()).generate(tiny.prompts("the food was"), Sampling(max_new_tokens=62))


def test_a_seed_repeats_and_state_resumes_the_stream():
    model, batch, sampling = tiny.policy(), tiny.prompts(*PROMPTS), Sampling(max_new_tokens=8)
    first = engine(model, seed=3)
    a = first.generate(batch, sampling)
    state = first.state_dict()
    b = first.generate(batch, sampling)
    again = engine(model, seed=99)
    again.load_state_dict(state)
    assert torch.equal(again.generate(batch, sampling).response_ids, b.response_ids)
    assert torch.equal(engine(model, seed=3).generate(batch, sampling).response_ids, a.response_ids)
    assert not torch.equal(engine(model, seed=4).generate(batch, sampling).response_ids[:, :1], a.response_ids[:, :1])


@pytest.mark.parametrize("training", [True, False])
def test_the_policys_mode_is_restored_even_after_an_error(training):
    model = tiny.policy().train(training)
    broken = engine(model)
    broken._forward = lambda *_: 1 / 0
    with pytest.raises(
        ConfigError, match=r"rollout=loop cannot decode llama models \(ZeroDivisionError: division by zero\)"
    ):
        broken.generate(tiny.prompts("good"), Sampling(max_new_tokens=4))
    assert model.training is training


def test_a_copy_in_another_dtype_follows_the_policy():
    model, batch, sampling = tiny.policy(), tiny.prompts(*PROMPTS), Sampling(max_new_tokens=8)
    made = LoopEngine(dtype="bfloat16")
    for scale in (1.0, -1.0):
        with torch.no_grad():
            model.lm_head.weight.mul_(scale)
        made.sync(model, (1,), 0, version=0)
        made.seed(0)
        rollout = made.generate(batch, sampling)
        with torch.no_grad():
            out = response_forward(model, rollout.input_ids, rollout.attention_mask, rollout.mask.shape[1])
        expected = gather_logprobs(out.logits, rollout.response_ids)
        gap = (rollout.rollout_logprobs - expected)[rollout.mask].abs()
        assert 0 < gap.max() < 0.3 and model.lm_head.weight.dtype == torch.float32


def test_a_copy_is_made_where_reading_weights_decides_and_training_computes_in_half_precision(monkeypatch):
    model, made = tiny.policy(), LoopEngine()
    with torch.autocast("cpu", torch.bfloat16):
        made.sync(model, (1,), 0, version=0)
    assert made.is_exact and made._policy is model  # a CPU gains nothing
    monkeypatch.setattr(copies, "COPIED_ON", ("cpu",))
    for wanted in (model, tiny.policy().bfloat16()):
        made.sync(wanted, (1,), 0, version=0)
        assert made.is_exact and made._policy is wanted
    with torch.autocast("cpu", torch.bfloat16):
        made.sync(wanted, (1,), 0, version=0)
        assert made.is_exact and made._policy is wanted  # it has these numbers already
        made.sync(model, (1,), 0, version=0)
    assert not made.is_exact and {weight.dtype for weight in made._policy.parameters()} == {torch.bfloat16}


def test_hugging_face_generate_keeps_the_same_contract():
    made = HFGenerateEngine()
    made.sync(tiny.policy(scale=0.3), (1,), 0, version=2)
    made.seed(5)
    rollout = made.generate(tiny.prompts(*PROMPTS, repeats=4), Sampling(max_new_tokens=12))
    made.seed(5)
    again = made.generate(tiny.prompts(*PROMPTS, repeats=4), Sampling(max_new_tokens=12))
    assert torch.equal(rollout.response_ids, again.response_ids)
    assert set(rollout.weight_version.tolist()) == {2}
    ends = [row[m][-1].item() == 1 for row, m in zip(rollout.response_ids, rollout.mask, strict=True)]
    assert rollout.finished.tolist() == ends


def test_neighbouring_seeds_ranks_and_calls_of_hugging_face_share_no_stream():
    drawn = []
    for seed in (0, 1, rank_seed(0, 1), rank_seed(1, 1)):
        made = HFGenerateEngine()
        made.sync(tiny.policy(scale=0.3), (1,), 0, version=2)
        made.seed(seed)
        drawn += [made.generate(tiny.prompts("good", repeats=6), Sampling(max_new_tokens=8)).response_ids for _ in "ab"]
    assert len({str(ids.tolist()) for ids in drawn}) == 8


FIELDS = {
    "temperature": 0.1, "top_k": 2, "top_p": 0.2, "min_p": 0.3, "top_h": 0.3, "typical_p": 0.2, "epsilon_cutoff": 0.2,
    "eta_cutoff": 0.2, "repetition_penalty": 3.0, "encoder_repetition_penalty": 2.0, "no_repeat_ngram_size": 1,
    "bad_words_ids": [[5], [6]], "renormalize_logits": True, "forced_eos_token_id": 1, "forced_bos_token_id": 4,
    "suppress_tokens": [7, 8, 9], "begin_suppress_tokens": [10], "sequence_bias": [[[11], 9.0]], "guidance_scale": 3.0,
    "exponential_decay_length_penalty": [2, 3.0], "min_length": 20, "max_length": 6, "max_time": 0.0, "num_beams": 3,
    "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True, "use_cache": False,
    "token_healing": True, "prompt_lookup_num_tokens": 3, "stop_strings": ["."], "penalty_alpha": 0.6,
    "dola_layers": "high", "diversity_penalty": 0.5, "num_beam_groups": 3, "cache_implementation": "static",
    "encoder_no_repeat_ngram_size": 1, "watermarking_config": {"bias": 9.0}, "output_attentions": True,
}  # fmt: skip


def test_a_generation_config_of_a_model_changes_no_token_and_is_named(tmp_path):
    tiny.policy(scale=0.1).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    drawn = []
    for fields in ({}, FIELDS):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0} | fields))
        policy = Pretrained(str(tmp_path)).causal_lm()
        made = HFGenerateEngine()
        made.sync(policy, (1,), 0, version=0)
        drawn.append(made.generate(tiny.prompts(*PROMPTS, repeats=3), Sampling(max_new_tokens=12)).response_ids)
        assert policy.generation_config.no_repeat_ngram_size == fields.get("no_repeat_ngram_size")
        with pytest.warns(UserWarning, match="temperature=0.1") if fields else nullcontext():
            warn_of_unused_fields(policy, Sampling())
    assert torch.equal(*drawn) and len(drawn[0].unique()) > 4


def test_blocks_find_the_column_that_one_cumulative_sum_finds():
    torch.manual_seed(0)
    weights = (3 * torch.randn(300, 5 * BLOCK + 7)).softmax(-1) * torch.tensor(0.5).expand(
        300, 5 * BLOCK + 7
    ).bernoulli()
    uniforms = torch.rand(300, dtype=torch.float64)
    cumulative = weights.double().cumsum(-1)
    expected = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    assert torch.equal(invert(weights, uniforms), expected) and expected.unique().numel() > 100


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rows_a_few_at_a_time_are_drawn_as_all_at_once(temperature, monkeypatch):
    torch.manual_seed(0)
    logits, uniforms = (3 * torch.randn(50, 300)).bfloat16(), torch.rand(50, dtype=torch.float64)
    sampling = Sampling(max_new_tokens=1, temperature=temperature)
    whole = sample(logits, uniforms, sampling)
    monkeypatch.setattr("rlhf_lightning.rollout.sample.AT_ONCE", 7 * 300)
    assert all(map(torch.equal, sample(logits, uniforms, sampling), whole))
    probs = (logits.double() / temperature).softmax(-1)
    assert torch.equal(whole[0], torch.searchsorted(probs.cumsum(-1), uniforms[:, None]).squeeze(1))
    expected = probs.gather(1, whole[0][:, None]).squeeze(1).log()
    torch.testing.assert_close(whole[1].double(), expected, atol=1e-5, rtol=0)


class Vocabularies(TorchDispatchMode):
    """How many tensors [rows, vocabulary] are alive at once."""

    def __init__(self, rows, vocabulary):
        super().__init__()
        self.shape, self.alive, self.most = (rows, vocabulary), [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and (out.shape[0:1] + out.shape[-1:]) == self.shape:
            self.alive = [made for made in self.alive if made() is not None] + [weakref.ref(out)]
            self.most = max(self.most, len(self.alive))
        return out


def test_no_logits_are_kept_from_one_token_to_the_next():
    made = engine(tiny.policy(scale=0.0))
    most = []
    for steps in (3, 24):
        with Vocabularies(12, 17) as seen:
            made.generate(tiny.prompts(*PROMPTS, repeats=3), Sampling(max_new_tokens=steps))
        most.append(seen.most)
    assert 0 < most[1] == most[0]


def test_autocast_is_off_while_decoding():
    model, batch, sampling = tiny.policy(), tiny.prompts(*PROMPTS), Sampling(max_new_tokens=8)
    plain = engine(model).generate(batch, sampling)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = engine(model).generate(batch, sampling)
    assert torch.equal(plain.rollout_logprobs, other.rollout_logprobs)


def test_a_static_cache_draws_the_same_answers():
    drawn, used = [], []
    policy = tiny.policy(scale=0.1)
    policy.register_forward_pre_hook(
        lambda _, __, given: used.append(type(given.get("past_key_values"))), with_kwargs=True
    )
    for cache in ("dynamic", "static"):
        engine = HFGenerateEngine(cache)
        engine.sync(policy, (1,), 0, version=0)
        engine.seed(2)
        drawn.append(engine.generate(tiny.prompts(*PROMPTS, repeats=3), Sampling(max_new_tokens=12)))
    assert torch.equal(drawn[0].response_ids, drawn[1].response_ids) and len(drawn[0].response_ids.unique()) > 4
    assert {DynamicCache, StaticCache} <= set(used)
    with pytest.raises(ConfigError, match="choose dynamic or static"):
        HFGenerateEngine("offloaded")


class Waits(TorchDispatchMode):
    """Counts what makes Python wait for a device: reading a value, and shapes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        picked = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in picked)
        self.count += name in self.NAMES or by_mask
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("look_every", "waits"), [(64, 0), (1, 12)])
def test_between_two_looks_no_token_waits_for_the_device(look_every, waits):
    counts = []
    for steps in (8, 20):
        made = LoopEngine(look_every=look_every)
        made.sync(tiny.policy(), (), 0, version=0)  # nothing ends an answer
        with Waits() as seen:
            made.generate(tiny.prompts(*PROMPTS), Sampling(max_new_tokens=steps))
        counts.append(seen.count)
    assert counts[1] - counts[0] == waits if waits == 0 else counts[1] - counts[0] >= waits
