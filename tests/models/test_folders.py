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


def in_shards(folder):
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def without_index(folder):
    in_shards(folder)
    (folder / "model.safetensors.index.json").unlink()


def instead(name):
    def fault(folder):
        (folder / "model.safetensors").unlink()
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"x")

    fault.__name__ = name
    return fault


def custom_code(folder):
    edit(folder, "config.json", model_type="new", auto_map={"AutoConfig": "new.NewConfig"})


FAULTS = {
    quantised: r"quantization_config: the weights are quantised \(gptq\).*the folder of the model they were made from",
    encoder: "a llama model has an encoder and a decoder; give a decoder-only",
    adapter: r"adapter of 'org/base', not a model; merge the two \(merge_and_unload\(\) of peft\)",
    pointer: r"model\.safetensors: is a pointer of Git LFS, not the file itself; fetch the files",
    weights_twice: r"holds weights twice, model\.safetensors and those that model\.safetensors\.index\.json names",
    templates_twice: r"chat_template\.jinja and the chat_template of tokenizer_config\.json differ",
    in_shards: r"index\.json: 1 of its 2 shards are not there \(model-00001-of-00002\.safetensors\); fetch the files",
    without_index: r"shards without their model\.safetensors\.index\.json; fetch it as well",
    instead("pytorch_model.bin"): r"but pytorch_model\.bin: a pickle, which is a program and is never opened; write it",
    instead("m-Q4.gguf"): r"but m-Q4\.gguf: a GGUF file, whose weights are for serving; give the folder of the model",
    instead(".cache/huggingface/download/a.incomplete"): r"a download that did not end; fetch the files again",
    instead("global_step9/x"): r"a checkpoint of DeepSpeed; run its zero_to_fp32\.py",
    instead("weights/__0_0.distcp"): r"a sharded checkpoint; merge it first \(accelerate merge-weights\)",
    instead("consolidated.00.pth"): r"weights as their authors publish them; give the folder in the format of",
    instead("notes.md"): r"no model\.safetensors there; fetch the weights",
    custom_code: r"brings code of its own.*set model\.trust_remote_code=true model\.revision=COMMIT",
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


def test_a_folder_without_a_tokenizer_and_a_file_say_what_to_give(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer; copy tokenizer\.json and"):
        load_tokenizer(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a file; give the folder of a model"):
        Pretrained(str(folder / "model.safetensors")).causal_lm()


def test_the_index_of_pickles_beside_other_weights_is_passed_over(folder):
    index = {"weight_map": {"lm_head.weight": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert Pretrained(str(folder)).causal_lm()


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
