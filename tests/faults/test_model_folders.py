"""Case 72: model folders whose parts do not belong together, and runs in which nothing was learned."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import CheckpointError, NumericalError
from rlhf_lightning.models import Pretrained
from rlhf_lightning.stages.pipeline import run
from rlhf_lightning.training.step_guard import StepGuard
from tests.support import small_run, tiny
from tests.support.hostile_files import edit
from tests.support.numeric_faults import STAGES, Break, fit, module_of, write

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


@pytest.fixture
def folder(tmp_path):
    tiny.policy().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def with_weights(folder, **more):
    file = folder / "model.safetensors"
    save_file(
        load_file(file) | {name.replace("/", "."): torch.zeros(2) for name in more.values()}, file, {"format": "pt"}
    )


@pytest.mark.parametrize("load", ["causal_lm", "reward_model"])
def test_case_72_weights_that_the_config_has_no_place_for_are_refused_with_names_and_count(folder, load):
    edit(folder, "config.json", num_hidden_layers=1)
    given = {"init_head": True} if load == "reward_model" else {}
    says = r"model: 9 weights of the file have no place .*model\.layers\.1\.input_layernorm\.weight.* and 6 more"
    with pytest.raises(CheckpointError, match=says):
        getattr(Pretrained(str(folder)), load)(**given)


def test_case_72_weights_under_other_names_are_refused(folder):
    with_weights(folder, a="model.layers.1.self_attn.evil_proj.weight", b="tower.0.weight")
    with pytest.raises(CheckpointError, match=r"2 weights of the file .*evil_proj\.weight, tower\.0\.weight"):
        Pretrained(str(folder)).causal_lm()


def test_case_72_buffers_of_older_files_heads_and_layers_that_are_cut_off_on_purpose_are_expected(folder):
    with_weights(folder, a="model.layers.0.self_attn.rotary_emb.inv_freq")
    assert Pretrained(str(folder)).causal_lm().config.num_hidden_layers == 2
    assert Pretrained(str(folder)).reward_model(init_head=True, num_layers=1).config.num_hidden_layers == 1


@pytest.mark.parametrize("load", ["causal_lm", "reward_model"])
@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 3}, {"num_hidden_layers": 10**9}, {"num_hidden_layers": 0}, {"num_hidden_layers": "2"},
        {"vocab_size": 9}, {"vocab_size": 10**12}, {"hidden_size": 64}, {"num_attention_heads": 0},
        {"pad_token_id": 99}, {"eos_token_id": [1, 99]}, {"eos_token_id": -5}, {"eos_token_id": list(range(17))},
        {"bos_token_id": 17},
    ],
    ids=str,
)  # fmt: skip
def test_case_72_a_config_that_does_not_fit_its_weights_or_words_is_refused_by_folder(folder, load, values):
    edit(folder, "config.json", **values)
    with pytest.raises(CheckpointError, match=str(folder)):
        getattr(Pretrained(str(folder)), load)(**({"init_head": True} if load == "reward_model" else {}))


@pytest.mark.parametrize(
    "value", [[1, 17], -1, "x", True, 1.5, [[1]], {"a": 1}, list(range(17))], ids=lambda value: str(value)[:12]
)
def test_case_72_end_tokens_that_are_none_or_nearly_all_are_refused(folder, value):
    edit(folder, "generation_config.json", eos_token_id=value)
    with pytest.raises(CheckpointError, match=r"generation_config\.json or config\.json: eos_token_id"):
        Pretrained(str(folder)).causal_lm()


@pytest.mark.parametrize("values", [{"bos_token_id": 17}, {"pad_token_id": 99}, {"pad_token_id": "x"}], ids=str)
def test_case_72_other_special_tokens_outside_of_the_vocabulary_are_refused(folder, values):
    edit(folder, "generation_config.json", **values)
    with pytest.raises(CheckpointError, match=str(folder)):
        Pretrained(str(folder)).causal_lm()


def test_case_72_tokens_that_the_tokenizer_puts_around_a_text_are_of_the_vocabulary(folder):
    file = json.loads((folder / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    file["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<x>": {"id": "<x>", "ids": [4000], "tokens": ["<x>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(CheckpointError, match="token ids up to 4000, but the model has a vocabulary of 17"):
        Pretrained(str(folder)).causal_lm()


def test_case_72_an_end_token_that_is_a_word_is_told(folder, caplog):
    edit(folder, "tokenizer_config.json", eos_token="the")
    with caplog.at_level(logging.WARNING):
        Pretrained(str(folder)).causal_lm()
    assert "eos_token is 'the', which looks like an ordinary word" in caplog.text


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("stage", STAGES)
def test_case_72_a_fit_of_which_every_step_was_skipped_has_learned_nothing(stage, data, tmp_path):
    module = module_of(stage, max_skipped_steps=9)
    module, _ = fit(stage, tmp_path, 2, module, data=data, callbacks=[Break("grad", [1, 2])])
    assert module.guard.skipped == 2
    with pytest.raises(NumericalError, match=f"{stage}: not one step has changed the model: 2 were skipped"):
        module.guard.require_learned(stage)
    module, _ = fit(stage, tmp_path / "good", 2, data=data, callbacks=[Break("grad", [1])])
    module.guard.require_learned(stage)  # one good step is enough


def test_case_72_what_was_learned_before_a_checkpoint_counts():
    guard = StepGuard(3, "key")
    guard.learned = 2
    again = StepGuard(3, "key")
    again.load_state_dict(guard.state_dict())
    again.require_learned("sft")
    new = StepGuard(3, "key")
    new.load_state_dict({"skipped": 1})  # of a checkpoint from before such steps were counted
    new.require_learned("sft")


@pytest.mark.filterwarnings("ignore:BestPolicy. no 4 rollouts")
@pytest.mark.filterwarnings("ignore:.*that end the run")
@pytest.mark.parametrize(
    "words",
    [
        [
            "scorer.function=tests.support.hostile_rewards.huge", "ppo.max_skipped_steps=99",
            "+callbacks.bad={_target_: tests.support.numeric_faults.Break, where: grad, when: [1, 2, 3, 4]}",
        ],
        [
            "stages=[sft]", "sft.max_epochs=1", "sft.max_skipped_steps=9",
            "+callbacks.bad={_target_: tests.support.numeric_faults.Break, where: grad, when: [1, 2, 3, 4]}",
        ],
    ],
    ids=["ppo", "sft"],
)  # fmt: skip
def test_case_72_nothing_learned_is_never_a_success_and_nothing_is_exported(words, tmp_path):
    given = [*small_run.prepare(tmp_path), *words]
    with pytest.raises(NumericalError, match="not one step has changed the model") as ended:
        run(compose([*given, f"run_dir={tmp_path / 'run'}"]))
    assert ended.value.exit_code == 4
    assert not [stage for stage in ("sft", "ppo") if (tmp_path / "run" / stage).exists()]
