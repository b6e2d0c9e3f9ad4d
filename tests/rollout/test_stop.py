"""Stop strings end answers without changing what is drawn."""

import math
from functools import partial

import pytest
import torch

from rlhf_lightning.config.compose import compose, safe_instantiate
from rlhf_lightning.errors import ConfigError, NumericalError
from rlhf_lightning.rollout import HFGenerateEngine, LoopEngine, Sampling
from rlhf_lightning.rollout.broken_logits import FiniteLogits
from rlhf_lightning.rollout.stop import StopStrings
from tests.rollout.test_loop import PROMPTS
from tests.support import tiny

TOKENIZER = tiny.tokenizer()


def answers(engine, stop=(), steps=16):
    engine.sync(tiny.policy(scale=0.1), (1,), 1, version=0)  # padding is EOS, as with many models
    engine.seed(2)
    return engine.generate(
        tiny.prompts(*PROMPTS, repeats=6), Sampling(max_new_tokens=steps, stop=stop), TOKENIZER if stop else None
    )


def texts(rollout):
    rows = zip(rollout.response_ids, rollout.mask, strict=True)
    return [TOKENIZER.decode(ids[mask], skip_special_tokens=True) for ids, mask in rows]


@pytest.mark.parametrize("make", [LoopEngine, partial(LoopEngine, look_every=5), HFGenerateEngine])
@pytest.mark.parametrize("stop", [("good",), ("d was", "slow", "y h"), ("never there",)])
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(make, stop):
    plain, stopped = answers(make()), answers(make(), stop)
    assert stopped.response_ids.shape[1] == int(stopped.mask.sum(1).max())
    reasons = set()
    for i, text in enumerate(texts(stopped)):
        ids = stopped.response_ids[i][stopped.mask[i]]
        found, ended = any(s in text for s in stop), ids[-1].item() == 1
        assert stopped.finished[i] == (found or ended)
        assert not any(s in TOKENIZER.decode(ids[:-1], skip_special_tokens=True) for s in stop)
        assert found or len(ids) == plain.lengths[i]
        reasons.add((found, ended))
        if make is not HFGenerateEngine:  # its draws do not depend on the other rows
            assert torch.equal(ids, plain.response_ids[i, : len(ids)])
            logprobs = stopped.rollout_logprobs[i, : len(ids)] - plain.rollout_logprobs[i, : len(ids)]
            assert logprobs.abs().max() < 1e-5
    assert reasons >= ({(True, False), (False, True)} if stop != ("never there",) else {(False, True)})


def test_a_string_over_several_tokens_is_seen_when_its_last_one_comes():
    check = StopStrings(["very slow service", "!"], TOKENIZER)  # the longest says how much is decoded
    ids = torch.tensor(
        [TOKENIZER("we left . very slow service").input_ids, TOKENIZER("very slow . we left .").input_ids]
    )
    assert [check(ids[:, :n]).tolist() for n in (4, 5, 6)] == [[False, False], [False, False], [True, False]]


def test_stop_strings_need_a_tokenizer_and_must_be_a_list():
    engine = LoopEngine()
    engine.sync(tiny.policy(), (1,), 0, version=0)
    with pytest.raises(ConfigError, match=r"sampling.stop needs the tokenizer"):
        engine.generate(tiny.prompts("good"), Sampling(max_new_tokens=4, stop=("good",)))
    for wrong in ("###", [""], [3]):
        with pytest.raises(ConfigError, match="give a list of texts"):
            Sampling(stop=wrong)


@pytest.mark.parametrize(("stage", "key"), [("ppo", "+ppo"), ("evaluate", "evaluate"), ("rank", "rank")])
def test_stop_strings_are_a_key_of_the_config_and_fit_for_training(stage, key):
    config = compose([f"stage={stage}", f"{key}.sampling.stop=['###','the end']"])
    sampling = safe_instantiate(config[stage]["sampling"])
    assert sampling.stop == ("###", "the end")
    sampling.require_scorable()


@pytest.mark.parametrize("make", [LoopEngine, HFGenerateEngine])
def test_an_engine_goes_on_with_the_random_numbers_of_its_state(make):
    first, other = make(), make()
    for engine, seed in ((first, 3), (other, 4)):
        engine.sync(tiny.policy(scale=0.3), (1,), 0, version=0)
        engine.seed(seed)
    short = Sampling(max_new_tokens=6)
    first.generate(tiny.prompts("the food", "we"), short)
    other.load_state_dict(first.state_dict())
    answers = [engine.generate(tiny.prompts("the food", "we"), short).response_ids for engine in (first, other)]
    assert torch.equal(*answers)


def test_one_logit_that_is_not_finite_ends_sampling_and_a_forbidden_token_does_not():
    policy, ids = tiny.policy(), torch.tensor([[2, 3], [2, 4], [2, 5]])
    check = FiniteLogits(policy, ids, torch.ones_like(ids, dtype=torch.bool))
    scores = torch.zeros(3, 8)
    scores[0, 1] = -math.inf
    grown = torch.cat([ids, ids[:, :1]], 1)
    assert check(grown, scores) is scores
    for broken in (math.nan, math.inf):
        scores[1, 2] = broken
        with pytest.raises(NumericalError, match="the logits of token 2 are not finite in 1 of 3 answers; all weights"):
            check(grown, scores)
