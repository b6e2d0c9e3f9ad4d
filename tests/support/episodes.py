"""Environments that say a few words, an engine around them, and a rollout with text that the policy did not write."""

from functools import partial

import torch

from rlhf_lightning.rollout import EnvironmentEngine, LoopEngine, Sampling
from tests.support import tiny

REPLIES = ("very bad", "slow . slow")


class Talk:
    """Says `REPLIES` one after the other, until it has none left or hears "good"."""

    def __init__(self, replies=REPLIES):
        self.replies, self.heard = list(replies), []

    def reset(self, **row):
        return None

    def step(self, answer):
        self.heard.append(answer)
        return self.replies.pop(0) if self.replies and "good" not in answer else None

    def reward(self):
        return float(len(self.heard))


class Asks(Talk):
    """Adds a question to the prompt."""

    def reset(self, **row):
        return " was it"


def engine(environment=Talk, inner=None, replies=None, **options):
    made = environment if replies is None else partial(environment, replies)
    return EnvironmentEngine(inner or LoopEngine(), made, **options)


def rollout(engine, prompts=("the food was", "we left"), repeats=3, tokens=3, seed=0, **sampling):
    """What an engine samples from the tiny policy."""
    engine.sync(tiny.policy(scale=0.1), [1], 0, 7)
    engine.seed(seed)
    batch = prompts if not isinstance(prompts, tuple) else tiny.prompts(*prompts, repeats=repeats)
    return engine.generate(batch, Sampling(tokens, **sampling), tiny.tokenizer())


def words(ids):
    return tiny.tokenizer().decode(ids)


def dense_logprobs(policy, rollout, temperature=1.0):
    """Log-probability of every token of the response, one unpadded row at a time; 0 behind the response."""
    found = torch.zeros(rollout.response_ids.shape)
    for i in range(len(rollout)):
        prompt = rollout.prompt_ids[i][rollout.prompt_mask[i]]
        response = rollout.response_ids[i][rollout.attended[i]]
        with torch.no_grad():
            logits = policy(input_ids=torch.cat([prompt, response])[None]).logits[0]
        rows = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
        found[i, : len(response)] = rows.gather(1, response[:, None]).squeeze(1)
    return found
