"""Folders that are no plain model are refused in one sentence, before anything is loaded."""

import json
import shutil

import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.models import Pretrained, load_tokenizer
from tests.support import tiny
from tests.support.hostile_files import edit


@pytest.fixture
def folder(tmp_path):
    tiny.policy().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def quantised(folder):
    edit(folder, "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def encoder(folder):
    edit(folder, "config.json", is_encoder_decoder=True)


def adapter(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))


def pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")


def weights_twice(folder):
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def templates_twice(folder):
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    edit(folder, "tokenizer_config.json", chat_template="{{ messages[0] }}")


def noisy(folder):
    edit(folder, "config.json", router_jitter_noise=0.01)


FAULTS = {
    quantised: r"quantization_config: the weights are quantised \(gptq\).*the folder of the model they were made from",
    encoder: "a llama model has an encoder and a decoder; give a decoder-only",
    adapter: r"adapter of 'org/base', not a model; merge the two \(merge_and_unload\(\) of peft\)",
    pointer: r"model\.safetensors: is a pointer of Git LFS, not the file itself; fetch the files",
    weights_twice: r"holds weights twice, model\.safetensors and those that model\.safetensors\.index\.json names",
    templates_twice: r"chat_template\.jinja and the chat_template of tokenizer_config\.json differ",
    noisy: r"router_jitter_noise=0\.01: experts are drawn at random in training.*set it to 0 there",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("load", ["causal_lm", "reward_model"])
def test_a_folder_that_is_no_plain_model_is_refused_with_what_to_give_instead(folder, fault, load):
    fault(folder)
    with pytest.raises(CheckpointError, match=FAULTS[fault]):
        getattr(Pretrained(str(folder)), load)()


@pytest.mark.parametrize("fault", [adapter, templates_twice], ids=lambda fault: fault.__name__)
def test_the_tokenizer_of_such_a_folder_is_not_read_either(folder, fault):
    fault(folder)
    with pytest.raises(CheckpointError, match=FAULTS[fault]):
        load_tokenizer(folder)


def test_the_adapter_of_an_export_leads_to_the_merged_model_beside_it(folder):
    (folder / "adapter").mkdir()
    adapter(folder / "adapter")
    with pytest.raises(CheckpointError, match=f"this is the adapter alone; give {folder}, which holds the merged"):
        Pretrained(str(folder / "adapter")).causal_lm()


def test_a_classifier_with_two_outputs_is_no_reward_model(folder):
    config = LlamaConfig.from_pretrained(folder, num_labels=2)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"the classifier has 2 outputs, and a reward model has one"):
        Pretrained(str(folder)).reward_model()


def test_a_kernel_that_an_architecture_lacks_is_named_and_auto_takes_another(tmp_path, caplog):
    from benchmarks.families_tiny import write_tiny

    folder = write_tiny("gpt_oss", tmp_path / "model")
    with pytest.raises(
        ConfigError, match=r"attn_implementation=sdpa: gpt_oss models .* use model\.attn_implementation=auto"
    ):
        Pretrained(str(folder), attn_implementation="sdpa").causal_lm()
    for _ in range(2):
        assert Pretrained(str(folder)).causal_lm().config.get_text_config() is not None
    assert caplog.text.count("gpt_oss models have no sdpa attention: taking eager") <= 1
