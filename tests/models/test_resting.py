"""Frozen models in the memory of the host: on the device while they are asked, and nowhere else in between."""

import copy
from contextlib import contextmanager

import pytest
import torch
from transformers import LlamaForCausalLM

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import FrozenModels, Pretrained, frozen_copy
from rlhf_lightning.models.adapters import Lora
from rlhf_lightning.models.resting import Resting
from rlhf_lightning.models.trunk import freeze_layers
from rlhf_lightning.modules import DPOModule, PPOModule
from rlhf_lightning.modules.online import OnlineModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import RewardModelScorer
from tests.support import jobs, phases, tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


def state(model):
    return {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def places(model):
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


def test_all_weights_come_and_go_and_the_host_keeps_its_copy():
    model = tiny.policy().requires_grad_(False)
    before, where = state(model), {name: p.data_ptr() for name, p in model.named_parameters()}
    frozen = FrozenModels()
    frozen.add("reference", model, offload=True)
    frozen.to("meta")
    assert places(model) == {"cpu"}
    for _ in range(2):
        with frozen.awake("reference"):
            assert places(model) == {"meta"}  # no buffer is left behind
        assert {name: p.data_ptr() for name, p in model.named_parameters()} == where
    with pytest.raises(RuntimeError, match="ran out"), frozen.awake("reference"):
        raise RuntimeError("ran out")
    after = state(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_tied_weights_stay_tied():
    config = tiny.policy().config
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config).requires_grad_(False)
    resting = Resting(model)
    resting.to("meta")
    with resting.awake():
        assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.is_meta
    assert model.lm_head.weight is model.model.embed_tokens.weight and not model.lm_head.weight.is_meta


def test_other_models_stay_where_they_are():
    frozen = FrozenModels()
    frozen.add("reference", tiny.policy())
    frozen.to("meta")
    assert places(frozen["reference"]) == {"meta"}
    with frozen.awake("reference"):
        assert places(frozen["reference"]) == {"meta"}


@pytest.mark.parametrize("kind", ["adapters", "frozen layers"])
def test_what_the_policy_holds_as_well_is_left_to_it(kind):
    policy = tiny.policy(layers=3)
    if kind == "adapters":
        pytest.importorskip("peft")
        Lora().put_into(policy)
    else:
        freeze_layers(policy, 2)
    reference = frozen_copy(policy)
    resting = Resting(reference, policy)
    resting.to("meta")
    with resting.awake():
        assert places(policy) == {"cpu"}
        assert {p.device.type for p in reference.model.layers[0].parameters()} == {"cpu"}
        own = {p.device.type for p in reference.model.layers[2].parameters()}
        assert own == ({"cpu"} if kind == "adapters" else {"meta"})


def test_another_dtype_is_taken_before_they_rest():
    frozen = FrozenModels()
    frozen.add("reference", tiny.policy(), offload=True)
    frozen.to(torch.bfloat16).to("cpu")
    with frozen.awake("reference"):
        assert frozen["reference"].dtype == torch.bfloat16


@pytest.fixture
def world(tmp_path):
    jobs.write(tmp_path)
    tiny.policy(scale=0.3).save_pretrained(tmp_path / "policy")
    tiny.tokenizer().save_pretrained(tmp_path / "policy")
    torch.manual_seed(3)
    scalar = phases.ScalarModel.from_policy(tiny.policy(2)).model
    torch.nn.init.normal_(scalar.score.weight)
    scalar.save_pretrained(tmp_path / "reward")
    tiny.tokenizer().save_pretrained(tmp_path / "reward")
    return tmp_path


def learn(world, offload):
    torch.manual_seed(0)
    recipe, judge = (Pretrained(str(world / name), offload=offload) for name in ("policy", "reward"))
    module = PPOModule(
        recipe, RewardModelScorer(judge), optimizer=phases.sgd(0.1), sampling=Sampling(max_new_tokens=8),
        settings=PPOSettings(ppo_epochs=2, num_minibatches=2, micro_batch_size=2),
    )  # fmt: skip
    return phases.ppo(world, module)


def test_ppo_learns_the_same_and_asks_each_where_it_is_needed(world, monkeypatch):
    plain, before = learn(world, False)
    seen, awake, phase = [], Resting.awake, OnlineModule.phase

    @contextmanager
    def told(self):
        seen.append("in")
        with awake(self):
            yield
        seen.append("out")

    @contextmanager
    def named(self, name):
        seen.append(name)
        with phase(self, name):
            yield

    monkeypatch.setattr(Resting, "awake", told)
    monkeypatch.setattr(OnlineModule, "phase", named)
    module, after = learn(world, True)
    assert seen == 2 * ["generate", "score", "in", "out", "evaluate", "in", "out", "learn"]
    assert torch.equal(phases.flat(plain.policy), phases.flat(module.policy))
    timeless = [{n: v for n, v in run.callback_metrics.items() if not n.startswith("perf")} for run in (before, after)]
    assert timeless[0] == timeless[1] and "objective/kl" in timeless[0]


def test_a_scorer_rests_between_its_scores(world):
    scorer = RewardModelScorer(Pretrained(str(world / "reward"), offload=True))
    plain = RewardModelScorer(Pretrained(str(world / "reward")))
    asked = [["the food was"], [" very good ."], [{}]]
    assert scorer.score_texts(*asked) == plain.score_texts(*asked)
    scorer.to("meta")
    assert places(scorer.model) == {"cpu"}


def test_a_reference_without_phases_is_refused(world):
    recipe = Pretrained(str(world / "policy"), offload=True)
    with pytest.raises(ConfigError, match=r"dpo: model.offload=true would move the reference in and out"):
        DPOModule(recipe, tiny.tokenizer(), phases.sgd(0.1))
    assert DPOModule(recipe, tiny.tokenizer(), phases.sgd(0.1), cache_reference=True)


def test_shards_are_refused():
    model = copy.deepcopy(tiny.policy())
    model.lm_head.weight.full_tensor = None
    with pytest.raises(ConfigError, match="trainer=fsdp2 keeps the shards"):
        Resting(model).to("cpu")
