"""Continuous batching, as far as it can be seen without CUDA: the refusals, and what is made of its answers."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaForCausalLM

from rlhf_lightning.config.compose import compose, safe_instantiate
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rollout import ContinuousEngine, Sampling
from tests.support import tiny

ANSWERS = ([5, 6, 1], [7], [8, 9, 10, 11])


class OnCuda(LlamaForCausalLM):
    """Says that it is on CUDA and answers from a list."""

    lost, error = 0, None

    @property
    def device(self):
        return torch.device("cuda")

    def generate_batch(self, inputs, generation_config, continuous_batching_config):
        self.asked, self.config_given, self.mode = inputs, generation_config, self.training
        self.keeps = continuous_batching_config.return_logprobs
        answers = ANSWERS[: len(ANSWERS) - self.lost]
        return {
            str(i): SimpleNamespace(generated_tokens=ids, error=self.error, logprobs=[-0.5 * t for t in ids])
            for i, ids in enumerate(answers)
        }


def engine(model):
    made = ContinuousEngine()
    made.sync(model, (1,), 0, version=4)
    return made


PROMPTS = tiny.prompts("the food was", "good", "we left")


def test_the_cpu_is_refused_and_the_other_engine_named():
    with pytest.raises(ConfigError, match=r"14 times slower on a CPU; use rollout=loop"):
        engine(tiny.policy()).generate(PROMPTS, Sampling())


@pytest.mark.parametrize("sampling", [Sampling(stop=("x",)), Sampling(min_new_tokens=2)])
def test_what_it_cannot_do_is_refused(sampling):
    with pytest.raises(ConfigError, match="rollout=loop"):
        engine(OnCuda(tiny.policy().config)).generate(PROMPTS, sampling, tiny.tokenizer())


def test_answers_of_generate_batch_become_a_rollout():
    model = OnCuda(tiny.policy().config).train()
    rollout = engine(model).generate(PROMPTS, Sampling(max_new_tokens=4, temperature=0.7))
    assert model.asked == [[3, 4, 5], [6], [13, 14]] and not model.mode and model.training
    assert (model.config_given.temperature, model.config_given.eos_token_id) == (0.7, [1])
    assert rollout.response_ids.tolist() == [[5, 6, 1, 0], [7, 0, 0, 0], [8, 9, 10, 11]]
    assert rollout.lengths.tolist() == [3, 1, 4] and rollout.finished.tolist() == [True, False, False]
    assert rollout.weight_version.tolist() == [4, 4, 4] and model.keeps
    assert rollout.rollout_logprobs.tolist() == [[-2.5, -3, -0.5, 0], [-3.5, 0, 0, 0], [-4, -4.5, -5, -5.5]]


@pytest.mark.parametrize("fault", [{"lost": 1}, {"error": "out of memory"}])
def test_lost_answers_are_an_error(fault):
    model = OnCuda(tiny.policy().config)
    for name, value in fault.items():
        setattr(model, name, value)
    with pytest.raises(RuntimeError, match="of 3 prompts"):
        engine(model).generate(PROMPTS, Sampling(max_new_tokens=4))


def test_the_config_names_it():
    assert isinstance(safe_instantiate(compose(["stage=ppo", "rollout=continuous"])["rollout"]), ContinuousEngine)
