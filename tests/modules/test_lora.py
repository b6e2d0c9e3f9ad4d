"""Every phase with adapters: it learns, its base stays bit for bit, and its reference is that base."""

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_lightning.checkpoint import verify_folder
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.advantage import rloo
from rlhf_lightning.models import Pretrained, ScalarModel, ValueHead
from rlhf_lightning.models.adapters import Lora, adapted_layers
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.modules import DPOModule, KTOModule, PPOModule, RewardModule, SFTModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.rollout import HFGenerateEngine, LoopEngine, Sampling
from rlhf_lightning.scoring import FunctionScorer
from tests.support import offline, phases, tiny

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft's own model
]
TEXTS = ("the food was", "we left", "very slow service and bad food .", "good")
IDS = torch.tensor([[3, 4, 5, 6, 1], [7, 8, 9, 10, 11]])
MASK = torch.ones_like(IDS, dtype=torch.bool)
ADAM = partial(torch.optim.Adam, lr=0.01)


@pytest.fixture
def base(tmp_path):
    tiny.policy(scale=0.3).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def recipe(base, freeze_below=0, **arguments):
    return Pretrained(str(base), freeze_below=freeze_below, lora={"r": 8, **arguments})


def logprobs(model):
    with torch.no_grad():
        return token_scores(model, IDS, MASK, MASK).logprobs


def assert_base_unchanged(model):
    """The weights below the adapters are those of the folder, and something beside them has moved."""
    stored = dict(tiny.policy(scale=0.3).named_parameters())
    kept = {n.replace(".base_layer.", "."): p for n, p in model.named_parameters() if ".lora_" not in n}
    kept.pop("score.weight", None)
    assert kept.keys() <= stored.keys() and len(kept) >= len(stored) - 1
    assert all(torch.equal(p, stored[name]) and p.grad is None for name, p in kept.items())
    layers = adapted_layers(model).values()
    assert layers and all(layer.lora_B["default"].weight.any() for layer in layers)


def assert_exported(module, kind, tmp_path):
    """A plain folder that computes what the module does, and its adapter beside it in peft's format."""
    model = module.export_model().eval()
    folder = module.export(tmp_path / "out", {"stage": "test"})
    files = verify_folder(folder)["files"]
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model.safetensors"} <= files.keys()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        plain = kind.from_pretrained(folder)
        torch.testing.assert_close(plain(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
        labels = {} if kind is AutoModelForCausalLM else {"num_labels": 1, "pad_token_id": 0}
        read = peft.PeftModel.from_pretrained(
            kind.from_pretrained(tmp_path / "base", **labels), folder / "adapter"
        ).eval()
        torch.testing.assert_close(read(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


def ppo(policy, critic="policy", lr=0.01, engine=None, **settings):
    given = {"ppo_epochs": 1, "max_grad_norm": 0.0, "max_approx_kl": None, **settings}
    return PPOModule(
        policy, FunctionScorer(phases.praise), tiny.tokenizer(), partial(torch.optim.Adam, lr=lr), critic=critic,
        engine=engine, sampling=Sampling(max_new_tokens=8), kl_controller=FixedKL(0.01), settings=PPOSettings(**given),
        **({"advantage": partial(rloo, group_size=2)} if given.get("baseline") == "none" else {}),
    )  # fmt: skip


def fit(module, steps=1):
    run = phases.trainer()
    run.fit(module, tiny.Prompts(tiny.prompts(*TEXTS, repeats=2), steps))
    return {name: float(value) for name, value in run.callback_metrics.items()}


def test_sft_learns(base, tmp_path):
    phases.write(tmp_path)
    losses = []
    for epochs in (1, 8):
        data = DemonstrationData(
            tmp_path / "demonstrations.jsonl", None, tiny.tokenizer(), batch_size=4, validation_fraction=0.0
        )
        module = SFTModule(recipe(base), tiny.tokenizer(), ADAM)
        run = phases.trainer(data.accumulate_for(1), epochs)
        run.fit(module, datamodule=data)
        losses.append(float(run.callback_metrics["train/loss"]))
    assert losses[1] < losses[0] - 0.5
    assert_base_unchanged(module.policy)
    assert_exported(module, AutoModelForCausalLM, tmp_path)


@pytest.mark.parametrize("kind", [DPOModule, KTOModule])
@pytest.mark.parametrize("freeze_below", [0, 1])
def test_preferences_are_learned_and_the_reference_stays_the_base(base, tmp_path, kind, freeze_below):
    paired = kind is DPOModule
    data = offline.pairs(offline.rankings(tmp_path)) if paired else offline.answers(offline.feedback(tmp_path))
    losses = []
    for epochs in (1, 15):
        module = kind(recipe(base, freeze_below), tiny.tokenizer(), ADAM)
        losses.append(offline.fit(module, data, epochs)["train/loss"])
    assert losses[0] == pytest.approx(0.6931 if paired else 0.5, abs=1e-3)  # policy and reference are still one
    assert losses[1] < losses[0] - 0.1
    assert torch.equal(logprobs(module.frozen["reference"]), logprobs(tiny.policy(scale=0.3)))
    assert {n.split(".")[2] for n in adapted_layers(module.policy)} == set("01"[freeze_below:])
    assert_base_unchanged(module.policy)


def test_a_reference_of_its_own_gets_no_adapters(base):
    module = DPOModule(recipe(base), tiny.tokenizer(), ADAM, reference=recipe(base))
    module.configure_model()
    assert not adapted_layers(module.frozen["reference"]) and adapted_layers(module.policy)


def test_a_reward_model_learns_with_its_head(base, tmp_path):
    data = offline.pairs(offline.rankings(tmp_path))
    losses = []
    for epochs in (1, 15):
        torch.manual_seed(0)
        module = RewardModule(recipe(base), tiny.tokenizer(), ADAM)
        losses.append(offline.fit(module, data, epochs)["train/loss"])
    assert losses[1] < losses[0] - 0.1
    assert_base_unchanged(module.export_model())
    assert_exported(module, AutoModelForSequenceClassification, tmp_path)


@pytest.mark.parametrize("freeze_below", [0, 1])
@pytest.mark.parametrize("critic", ["policy", "shared_trunk", "folder"])
def test_ppo_starts_at_ratio_one_and_kl_zero_and_moves_adapters_only(base, tmp_path, critic, freeze_below):
    given = critic
    if critic == "folder":
        ScalarModel.from_policy(tiny.policy(scale=0.3)).model.save_pretrained(tmp_path / "critic")
        tiny.tokenizer().save_pretrained(tmp_path / "critic")
        given = recipe(tmp_path / "critic", freeze_below)
    module = ppo(recipe(base, freeze_below), given, micro_batch_size=3)
    first = fit(module)
    assert first["val/ratio_max"] == first["val/ratio_min"] == 1.0
    assert first["policy/approxkl_avg"] == 0.0 and first["objective/kl"] == 0.0
    module = ppo(recipe(base, freeze_below), given, ppo_epochs=2)
    later = fit(module, steps=3)
    assert later["objective/kl"] != 0.0
    assert_base_unchanged(module.policy)
    reference = module.frozen["reference"]
    assert torch.equal(logprobs(reference), logprobs(tiny.policy(scale=0.3)))
    assert {p.untyped_storage().data_ptr() for p in reference.parameters()} < {
        p.untyped_storage().data_ptr() for p in module.policy.parameters()
    }
    learned = {name for group in module.trainer.optimizers[0].param_groups for name in [group["name"]]}
    assert learned == {"policy", "critic"}
    if critic == "shared_trunk":
        assert isinstance(module.critic, ValueHead)
    else:
        assert_base_unchanged(module.critic.model)
        assert module.critic.model.score.weight.any() and module.critic.freeze_below == freeze_below
    assert_exported(module, AutoModelForCausalLM, tmp_path)


def test_ppo_raises_the_score(base):
    scores = [fit(ppo(recipe(base), lr=0.02, ppo_epochs=2), steps)["objective/scores"] for steps in (1, 8)]
    assert scores[1] > scores[0] + 0.5


def test_the_optimizer_holds_adapters_and_head_only(base):
    module = ppo(recipe(base))
    fit(module)
    groups = {group["name"]: len(group["params"]) for group in module.trainer.optimizers[0].param_groups}
    assert groups == {"policy": 2 * 2 * 7, "critic": 2 * 2 * 7 + 1}
    assert len(module.trainer.optimizers[0].state_dict()["state"]) == 4 * 2 * 7 + 1


@pytest.mark.parametrize("engine", [LoopEngine(dtype="bfloat16"), HFGenerateEngine()])
def test_engines_sample_with_the_adapters(base, engine):
    module = ppo(recipe(base), engine=engine)
    module.configure_model()
    layer = adapted_layers(module.policy)["model.layers.1.mlp.down_proj"]
    shares = []
    for wanted in (False, True):  # a copy in bfloat16 has to be refreshed between the two
        with torch.no_grad():  # the last layer writes the output embedding of "good", many times
            layer.lora_A["default"].weight.zero_()
            if wanted:
                layer.lora_A["default"].weight[0] = 1.0
                layer.lora_B["default"].weight[:, 0] = 1e3 * module.policy.lm_head.weight[6]
        rollout = module.generate(tiny.prompts(*TEXTS, repeats=4))
        shares.append(float((rollout.response_ids[rollout.mask] == 6).float().mean()))
    assert shares[1] > shares[0] + 0.2


def test_groups_with_one_update_reuse_the_numbers_of_the_engine(base):
    """Both switches of `reuse_logprobs` end with the same adapters."""
    after = []
    for reuse in (True, False):
        torch.manual_seed(0)
        module = ppo(recipe(base), baseline="none", group_size=2, reuse_logprobs=reuse)
        fit(module, steps=2)
        after.append(torch.cat([p.detach().flatten() for p in module.policy.parameters() if p.requires_grad]))
    torch.testing.assert_close(after[0], after[1], atol=1e-3, rtol=1e-3)  # Adam magnifies rounding of small gradients


def test_dropout_in_adapters_is_refused_by_ppo(base):
    with pytest.raises(ConfigError, match=r"lora_dropout=0.1: PPO compares the policy with itself"):
        ppo(recipe(base, lora_dropout=0.1)).configure_model()


def test_adapters_put_in_by_hand_work_as_those_of_a_recipe():
    policy = tiny.policy(scale=0.3)
    Lora().put_into(policy)
    module = ppo(policy)
    assert fit(module)["objective/kl"] == 0.0
    assert_base_unchanged(module.policy)
