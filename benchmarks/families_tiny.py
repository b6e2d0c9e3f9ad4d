"""A tiny random model of any type that transformers knows, in a folder as `save_pretrained` writes it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, WINDOW, POSITIONS, SPREAD = 320, 8, 128, 1.5
CAUSAL = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
BOTH = ["linear_attention", "full_attention"]
WINDOWS = ["sliding_attention", "full_attention"]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_SIZES: dict[int, str] = {  # number: keys of configs, over all types
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    POSITIONS: "max_position_embeddings n_positions n_ctx max_seq_len",
    96: "intermediate_size ffn_dim dff d_ff d_inner dim_ff n_inner decoder_ffn_dim encoder_ffn_dim ffn_hidden_size "
    "dense_intermediate_size",
    64: "hidden_size d_model n_embd n_embed embedding_size word_embed_proj_dim dim_model d_embed out_hidden_size "
    "projection_dim mm_embed_dim output_proj_dims shape_vocab_size pronunciation_vocab_size hidden_size_global "
    "embed_dim",
    32: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size mamba_d_head "
    "shared_intermediate_size expert_ffn_hidden_size mamba_head_dim",
    16: "head_dim dim_head v_head_dim q_lora_rank kv_lora_rank o_lora_rank index_head_dim linear_key_head_dim "
    "linear_value_head_dim image_size global_head_dim linear_head_dim swa_head_dim hc_lowrank indexer_head_dim",
    WINDOW: "qk_rope_head_dim qk_nope_head_dim sliding_window attention_chunk_size window_size sliding_window_size "
    "mamba_d_state ssm_state_size state_size patch_size hidden_size_per_layer_input rotary_dim",
    4: "num_hidden_layers num_layers n_layer n_layers decoder_layers num_attention_heads n_head n_heads num_heads "
    "decoder_attention_heads encoder_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts "
    "linear_num_value_heads mamba_n_heads mamba_num_heads linear_num_heads",
    2: "encoder_layers depth num_key_value_heads num_kv_heads num_experts_per_tok moe_topk moe_k index_n_heads "
    "linear_num_key_heads altup_num_inputs bos_token_id",
    1: "n_group topk_group first_k_dense_replace mamba_n_groups n_groups eos_token_id",
    128: "mamba_d_ssm",
    0: "pad_token_id",
}
SIZES: dict[str, Any] = {key: size for size, keys in _SIZES.items() for key in keys.split()}

_INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_budget": 16, "indexer_compress_ratio": 4}
SPECIAL: dict[str, dict[str, Any]] = {  # what these sizes alone do not make a model of
    "bailing_hybrid": {"layer_types": BOTH * 2},
    "kimi_linear": {"layer_types": BOTH * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "cohere_compass_text": {
        "layer_types": WINDOWS * 2,
        "rope_parameters": {name: {**ROPE, "mrope_section": [4, 2, 2]} for name in WINDOWS},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1, "max_window_layers": 2, "layer_types": WINDOWS * 2},
    "gemma3n_text": {"layer_types": WINDOWS * 2, "num_kv_shared_layers": 2},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": BOTH * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "nemotron_h": {"layers_block_type": [*BOTH, "moe", "mlp"]},
    "glm4v_text": {"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
    "qwen2_5_vl_text": {"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
    "qwen2_vl_text": {"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
    "qwen4_exp_text": {"ngram_vocab_size_base": 500, "split_ngram_parts": 1, **_INDEXER},
    "reformer": {
        "is_decoder": True, "axial_pos_shape": (8, 16), "axial_pos_embds_dim": (32, 32), "attention_head_size": 16,
        "attn_layers": ["local", "local"], "local_attn_chunk_length": 16,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {  # other settings of types that matter here; `TYPE/NAME`
    "deepseek_v32/few": {"index_topk": 8},
    "glm_moe_dsa/few": {"index_topk": 8},
    "phimoe/still": {"router_jitter_noise": 0.0},
    "bert/decoder": {"is_decoder": True},
    "roberta/decoder": {"is_decoder": True},
    "electra/decoder": {"is_decoder": True},
    "roformer/decoder": {"is_decoder": True},
    "gemma3/dropout": {"text_config": {"attention_dropout": 0.1}},
    "opt/layerdrop": {"layerdrop": 0.5},
    "mistral/full": {"sliding_window": None},
    "qwen2/windows": {"use_sliding_window": True, "max_window_layers": 2},
    "smollm3/windows": {"use_sliding_window": True, "layer_types": WINDOWS * 2},
    "llama/linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    "llama/yarn": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
        }
    },
    "llama/dynamic": {
        "rope_parameters": {
            "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
        }
    },
}  # fmt: skip
VISION = (
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "mistral3",
    "llava",
    "internvl",
    "idefics3",
    "smolvlm",
    "glm4v",
    "aya_vision",
)


def tiny_config(kind: str) -> PretrainedConfig:
    """A config of hidden size 64, few layers, `VOCABULARY` tokens, windows of `WINDOW`; ``kind`` as in `VARIANTS`."""
    made = CONFIG_MAPPING[kind.split("/")[0]]
    return _config(made, VARIANTS.get(kind, {}))


def _config(made: type[PretrainedConfig], given: dict[str, Any]) -> PretrainedConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default = made()
    known = set(vars(default)) | set(made.attribute_map)
    keys = {key: size for key, size in SIZES.items() if key in known}
    for other, key in made.attribute_map.items():
        if key in keys:
            keys.pop(other, None)
    if "qk_rope_head_dim" in keys:  # latent attention: a key for each head, and only a part of it turns
        keys |= {key: size for key, size in {"head_dim": WINDOW, "num_key_value_heads": 4}.items() if key in keys}
    keys |= SPECIAL.get(made.model_type, {})
    for name in made.sub_configs or {}:
        part = getattr(default, name, None)
        if part is not None and name not in keys:
            keys[name] = _config(type(part), given.get(name, {})).to_dict()
    return made(**keys | {key: value for key, value in given.items() if not isinstance(value, dict) or key not in keys})


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, ids: pad 0, eos 1, unk 2, then ``w3`` to the last of `VOCABULARY`."""
    words = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(3, VOCABULARY))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def tiny_model(kind: str, seed: int = 0) -> PreTrainedModel:
    """A random model whose logits spread by `SPREAD`, so that attention and positions matter."""
    torch.manual_seed(seed)
    config = tiny_config(kind)
    auto: Any = AutoModelForImageTextToText if kind.split("/")[0] in VISION else AutoModelForCausalLM
    with torch.device("meta"):
        size = sum(weight.numel() for weight in auto.from_config(config).parameters())
    if size > 20_000_000:
        raise ValueError(f"{kind}: still has {size:,} weights; add its sizes to benchmarks/families_tiny.py")
    model = auto.from_config(config).eval()
    _scale(model)
    return model


@torch.no_grad()
def _scale(model: PreTrainedModel) -> None:
    for part in model.modules():
        for weight in part.parameters(recurse=False):
            if (weight.dim() >= 2 and isinstance(part, (nn.Linear, nn.Embedding))) or weight.dim() == 3:
                spread = float(weight.float().std())
                if 0 < spread < 0.05:
                    weight.mul_(0.125 / spread)
    weight = model.get_input_embeddings().weight
    weight[0] = weight[5:9].mean(0)  # that of the pad is zero otherwise
    head: Any = model.get_output_embeddings()
    if head is None:
        return
    ids = torch.arange(3, 27)[None]
    for _ in range(2):
        spread = float(model(input_ids=ids, use_cache=False).logits.float().std(-1).mean())
        if 0.7 < spread < 3.4 or not 0 < spread < float("inf"):
            return
        head.weight.mul_(SPREAD / spread)


def write_tiny(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write such a model with its tokenizer."""
    model = tiny_model(kind, seed)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
