"""Every algorithm that pays for KL in the reward ends at the optimum pi* ~ pi_ref exp(r / beta), known in closed form,
through the real module and Trainer.

The policies are tables, so that nothing but the algorithm can be wrong: one token among four, or two tokens of three.
"""

import json
from functools import partial
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.advantage import dr_grpo, gae, returns_only, rloo
from rlhf_lightning.functional.policy import reinforce_loss
from rlhf_lightning.functional.ppo import clipped_policy_loss
from rlhf_lightning.models import ScalarModel
from rlhf_lightning.modules import PPOModule, ppo
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.optim.schedules import linear
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.types import PromptBatch
from tests.gates.gate_sources import ROOT
from tests.support import tiny

GOLDEN = ROOT / "tests" / "support" / "golden_shared.json"
CASES = {
    case["id"].split("/")[1]: case
    for case in json.loads(GOLDEN.read_text())["cases"]
    if case["family"] == "kl_optimal" and ("reward" in case["inputs"] or "rewards" in case["inputs"])
}
RUNS = {"bandit_beta1.0": (20, 0.1), "bandit_beta0.1": (50, 0.3), "two_token": (40, 0.1)}  # rollouts, learning rate
BATCH = 256
COMMON = {"ppo_epochs": 4, "max_approx_kl": None, "missing_eos_penalty": 0.0, "whiten_advantages": False}


class Table(nn.Module):
    """A policy of at most two tokens: logits of the first, and of the second given the first."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.config = SimpleNamespace(max_position_embeddings=8)

    def forward(self, input_ids, position_ids, logits_to_keep, **columns):
        first = self.first.expand(*input_ids.shape, -1)
        logits = torch.where((position_ids == 0)[..., None], first, self.second[input_ids])
        return SimpleNamespace(logits=logits[:, -logits_to_keep:], hidden_states=None)

    def logprobs(self):
        return self.first.detach().double().log_softmax(-1), self.second.detach().double().log_softmax(-1)


class TableCritic(ScalarModel):
    """A value before the first token, and one after each first token."""

    def __init__(self, tokens):
        nn.Module.__init__(self)
        self.start, self.after = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(tokens))
        self.freeze_below = 0

    def forward(self, input_ids, attention_mask, hidden=None):
        return torch.cat([self.start.expand(len(input_ids), 1), self.after[input_ids][:, 1:]], 1)


class TableScorer:
    """The reward of an answer is looked up."""

    name = "table"

    def __init__(self, table):
        self.table = table

    def to(self, device):
        return self

    def score(self, rollout, tokenizer):
        return self.table[tuple(rollout.response_ids.T)]


class FlippedKL(FixedKL):
    """Pays for leaving the reference."""

    def __init__(self, coef):
        super().__init__(coef)
        self.coef = -coef


GROUP = 4
PPO = {"advantage": partial(gae, lam=0.95), "settings": {"value_coef": 1.0}}
ALGORITHMS = {
    "ppo": PPO,
    "rloo": {  # its loss allows one pass, so four minibatches
        "advantage": partial(rloo, group_size=GROUP),
        "policy_loss": reinforce_loss,
        "settings": {"baseline": "none", "group_size": GROUP, "ppo_epochs": 1, "num_minibatches": 4},
    },
    "dr_grpo": {
        "advantage": partial(dr_grpo, group_size=GROUP),
        "settings": {"baseline": "none", "group_size": GROUP, "aggregation": "token_sum_norm"},
    },
    "reinforce_pp": {"advantage": returns_only, "settings": {"baseline": "none", "whiten_advantages": True}},
}


def train(name, seed, kl, algorithm=PPO):
    """The policy after training on a case, as log-probabilities of the first and of the second token."""
    rollouts, rate = RUNS[name]
    lightning.seed_everything(seed, verbose=False)
    given = {key: torch.tensor(value) for key, value in CASES[name]["inputs"].items()}
    first = given.get("first_logits", given.get("ref_logits"))
    policy = Table(first.clone(), given.get("second_logits", torch.zeros(len(first), len(first))).clone())
    rewards = given.get("rewards", given.get("reward"))
    module = PPOModule(
        policy,
        TableScorer(rewards),
        SimpleNamespace(eos_token_id=99, pad_token_id=0),
        optimizer=partial(torch.optim.Adam, lr=rate),
        scheduler=linear,
        critic=TableCritic(len(first)),
        sampling=Sampling(max_new_tokens=rewards.ndim),
        kl_controller=kl(CASES[name]["params"]["beta"]),
        advantage=algorithm["advantage"],
        policy_loss=algorithm.get("policy_loss", clipped_policy_loss),
        settings=PPOSettings(**{**COMMON, **algorithm["settings"], "seed": seed}),
    )
    module.log_dict = lambda metrics: None  # two thirds of the time of so small a policy
    rows = BATCH // module.settings.group_size
    prompt = torch.zeros(rows, 1, dtype=torch.long)
    prompts = PromptBatch(prompt, torch.ones_like(prompt, dtype=torch.bool), ({"prompt": ""},) * rows)
    lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, tiny.Prompts(prompts, rollouts))  # fmt: skip
    return policy.logprobs()


def distance(name, first, second):
    """KL(pi || pi*) in nats per answer."""
    expected = {key: torch.tensor(v, dtype=torch.float64) for key, v in CASES[name]["expected"].items()}
    gap = first - expected.get("first", expected.get("pi")).log()
    if "second" in expected:
        gap = gap + (second.exp() * (second - expected["second"].log())).sum(-1)
    return float((first.exp() * gap).sum())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_training_ends_at_the_exact_optimum(algorithm, name, seed):
    assert 0 <= distance(name, *train(name, seed, FixedKL, ALGORITHMS[algorithm])) < 0.01


@pytest.mark.parametrize(
    ("name", "kl"),
    [("two_token", FlippedKL), ("two_token", lambda beta: FixedKL(beta / 2)), ("bandit_beta1.0", FlippedKL)],
    ids=["sign flipped", "penalty halved", "sign flipped in a bandit"],
)
def test_a_wrong_kl_penalty_is_seen(name, kl):
    assert distance(name, *train(name, 0, kl)) > 0.1


@pytest.mark.parametrize("name", ["two_token", "bandit_beta1.0"])
def test_k1_as_a_loss_is_seen_and_refused(name, monkeypatch):
    in_the_loss = {"kl_placement": "loss", "kl_estimator": "k1"}
    invalid = PPO | {"settings": PPO["settings"] | in_the_loss}
    with pytest.raises(ConfigError, match="expected gradient of k1 as a loss is zero"):
        train(name, 0, FixedKL, invalid)
    monkeypatch.setattr(ppo, "check_combination", lambda *parts: None)
    assert distance(name, *train(name, 0, FixedKL, invalid)) > 0.1
