"""Folders of a stranger that try to open an address, or to read or write elsewhere. Each function spoils a good one.

A model folder is called ``model``; beside it lies ``outside``, with a file ``secret`` and a whole model, which must
stay as they are and must not be read.
"""

import json
import shutil

import torch
from safetensors.torch import save_file

from tests.support.hostile_files import edit

ADDRESS = "https://evil.example/model"


def base_model_of_an_adapter(folder):
    edit(folder, "adapter_config.json", base_model_name_or_path=ADDRESS, peft_type="LORA", task_type="CAUSAL_LM", r=1)


def hub_base_model_of_an_adapter(folder):
    edit(folder, "adapter_config.json", base_model_name_or_path="evil/base", revision="main", peft_type="LORA", r=1)


def base_model_outside(folder):
    """A whole adapter, which only the base model is missing to."""
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    weights = {name.format(layer, "A"): torch.ones(1, 32) for layer in range(2)}
    weights |= {name.format(layer, "B"): torch.ones(32, 1) for layer in range(2)}
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    how = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "target_modules": ["q_proj"]}
    edit(folder, "adapter_config.json", base_model_name_or_path=str(folder.parent / "outside"), **how)


def name_or_path(folder):
    edit(folder, "config.json", _name_or_path=ADDRESS, name_or_path="evil/model")


def name_or_path_of_the_tokenizer(folder):
    edit(folder, "tokenizer_config.json", name_or_path="evil/tokenizer", _name_or_path=ADDRESS, _commit_hash="abc")


def tokenizer_file(folder):
    edit(
        folder, "tokenizer_config.json", tokenizer_file="/etc/passwd", vocab_file=str(folder.parent / "outside/secret")
    )


def tokenizer_file_at_an_address(folder):
    edit(folder, "tokenizer_config.json", tokenizer_file=ADDRESS, vocab_file="evil/model", merges_file=ADDRESS)


def only_a_tokenizer_file_outside(folder):
    outside = folder.parent / "outside" / "tokenizer.json"
    (folder / "tokenizer.json").rename(outside)
    edit(folder, "tokenizer_config.json", tokenizer_file=str(outside), tokenizer_class="PreTrainedTokenizerFast")


def template_names(folder):
    edit(folder, "tokenizer_config.json", chat_template=[{"name": "../../outside/secret", "template": "{{ 1 }}"}])


def template_that_includes(folder):
    text = "{% include '../outside/secret' %}{% include '/etc/passwd' %}{% extends 'http://evil.example' %}"
    (folder / "chat_template.jinja").write_text(text)


def linked_template(folder):
    (folder / "chat_template.jinja").symlink_to(folder.parent / "outside" / "secret")


def additional_templates(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").symlink_to(folder.parent / "outside" / "secret")
    edit(folder, "tokenizer_config.json", additional_chat_templates=[ADDRESS])


def versioned_files(folder):
    edit(folder, "config.json", transformers_weights="../outside/model.safetensors", configuration_files=[ADDRESS])
    edit(folder, "tokenizer_config.json", fast_tokenizer_files=["tokenizer.9.json", "../outside/tokenizer.4.0.0.json"])


def generation_address(folder):
    edit(folder, "generation_config.json", assistant_model=ADDRESS, prompt_lookup_num_tokens=None, base=ADDRESS)
    edit(folder, "config.json", custom_generate=ADDRESS, hub_repo=ADDRESS, torch_dtype="float32")


def quantisation_from_elsewhere(folder):
    edit(folder, "config.json", quantization_config={"quant_method": "evil", "path": ADDRESS, "load_in_4bit": True})


def remote_shards(folder):
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    edit(folder, "model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": ADDRESS})


def shards_through_a_folder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "sub").symlink_to(folder.parent / "outside")
    edit(folder, "model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": "sub/model.safetensors"})


MODELS = [
    base_model_of_an_adapter, hub_base_model_of_an_adapter, base_model_outside, name_or_path,
    name_or_path_of_the_tokenizer, tokenizer_file, tokenizer_file_at_an_address, only_a_tokenizer_file_outside,
    template_names, template_that_includes, linked_template, additional_templates, versioned_files, generation_address,
    quantisation_from_elsewhere, remote_shards, shards_through_a_folder,
]  # fmt: skip


def rows_with_addresses(folder):
    row = {"prompt": f"![x]({ADDRESS})", "image": ADDRESS, "file": "file:///etc/passwd", "messages": None}
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n")


def rows_with_images(folder):
    part = [{"type": "image_url", "image_url": {"url": ADDRESS}}, {"type": "image", "url": "file:///etc/passwd"}]
    (folder / "a.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": part}]}) + "\n")


def formulas(folder):
    text = f'prompt,x\n"=HYPERLINK(""{ADDRESS}"")","=cmd|\' /C calc\'!A0"\n@SUM(1),-2+3\n'
    (folder / "a.csv").write_text(text)


def saved_dataset_of_a_script(folder):
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../outside/secret"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"builder_name": ADDRESS, "download_checksums": {ADDRESS: 1}}))


DATA = [rows_with_addresses, rows_with_images, formulas, saved_dataset_of_a_script]


def surroundings(folder, good):
    """``model``, and ``outside`` with what must not be touched."""
    shutil.copytree(good, folder / "model")
    shutil.copytree(good, folder / "outside")
    (folder / "outside" / "secret").write_text("SECRET")
    (folder / "outside" / "tokenizer.json").unlink()
    return folder / "model"
