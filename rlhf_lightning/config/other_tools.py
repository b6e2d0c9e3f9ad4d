"""Words that other training tools use for what has another name here, for the hints of messages."""

from __future__ import annotations

from collections.abc import Sequence

# word -> ends of our keys, or what to write (where it has a "=" or a space). `docs/coming_from.md` explains the tools.
_KEYS: dict[str, tuple[str, ...]] = {
    # lengths of runs
    "epochs": ("max_epochs", "rollouts"),
    "num_epochs": ("max_epochs", "rollouts"),
    "num_train_epochs": ("max_epochs", "rollouts"),
    "max_epochs": ("max_epochs", "rollouts"),
    "max_steps": ("max_epochs", "rollouts"),
    "steps": ("max_epochs", "rollouts"),
    "total_episodes": ("rollouts",),
    "iterations": ("rollouts",),
    "num_ppo_epochs": ("settings.ppo_epochs",),
    "num_iterations": ("settings.ppo_epochs",),
    # sizes
    "train_batch_size": ("data.batch_size",),
    "rollout_batch_size": ("ppo.data.batch_size",),
    "per_device_train_batch_size": ("data.micro_batch_size", "settings.micro_batch_size"),
    "micro_train_batch_size": ("data.micro_batch_size", "settings.micro_batch_size"),
    "gradient_accumulation_steps": ("data.micro_batch_size", "settings.micro_batch_size"),
    "accumulate_grad_batches": ("data.micro_batch_size", "settings.micro_batch_size"),
    "mini_batch_size": ("settings.num_minibatches",),
    "minibatch_size": ("settings.num_minibatches",),
    "ppo_mini_batch_size": ("settings.num_minibatches",),
    "num_mini_batches": ("settings.num_minibatches",),
    "num_generations": ("settings.group_size",),
    "n_samples_per_prompt": ("settings.group_size",),
    "num_return_sequences": ("settings.group_size", "samples_per_prompt"),
    "max_seq_length": ("data.max_length",),
    "cutoff_len": ("data.max_length",),
    "sequence_len": ("data.max_length",),
    "max_len": ("data.max_length",),
    "max_completion_length": ("sampling.max_new_tokens",),
    "max_tokens": ("sampling.max_new_tokens",),
    "response_length": ("sampling.max_new_tokens",),
    "generate_max_len": ("sampling.max_new_tokens",),
    "prompt_max_len": ("data.max_prompt_length",),
    # learning
    "learning_rate": ("optimizer.lr",),
    "actor_learning_rate": ("ppo.optimizer.lr",),
    "critic_learning_rate": ("settings.critic_lr",),
    "gradient_clip_val": ("max_grad_norm",),
    "clip_grad_norm": ("max_grad_norm",),
    "lr_scheduler_type": ("scheduler._target_",),
    "warmup_steps": ("scheduler.warmup_ratio",),
    "adam_epsilon": ("optimizer.eps",),
    "cliprange": ("loss.clip_range",),
    "clip_eps": ("loss.clip_range",),
    "eps_clip": ("loss.clip_range",),
    "epsilon": ("loss.clip_range",),
    "epsilon_high": ("loss.clip_range_high",),
    "vf_coef": ("settings.value_coef",),
    "cliprange_value": ("settings.value_clip_range",),
    "ent_coef": ("settings.entropy_coef",),
    "entropy_coeff": ("settings.entropy_coef",),
    "lambd": ("advantage.lam",),
    "gae_lambda": ("advantage.lam",),
    "kl_coef": ("kl.coef", "kl.init_coef"),
    "init_kl_coef": ("kl.coef", "kl.init_coef"),
    "kl_loss_coef": ("kl.coef", "kl.init_coef"),
    "kl_ctl": ("kl.coef", "kl.init_coef"),
    "kl_target": ("kl.target",),
    "target_kl": ("settings.max_approx_kl", "kl.target"),
    "beta": ("loss.beta", "kl.coef", "kl.init_coef"),
    "loss_type": ("loss=NAME",),
    "ref_model": ("reference",),
    "reference_model": ("reference",),
    "precompute_ref_log_probs": ("cache_reference",),
    # models, files, machine
    "model_name_or_path": ("model.path",),
    "model_name": ("model.path",),
    "base_model": ("model.path",),
    "pretrain": ("model.path",),
    "tokenizer_name": ("model.path, whose folder holds the tokenizer",),
    "reward_model_path": ("scorer=reward_model scorer.model.path=FOLDER",),
    "reward_model": ("scorer=reward_model scorer.model.path=FOLDER",),
    "torch_dtype": ("model.dtype",),
    "gradient_checkpointing": ("model.activation_checkpointing",),
    "flash_attn": ("model.attn_implementation",),
    "flash_attention": ("model.attn_implementation",),
    "use_peft": ("model.lora={r: 16}",),
    "lora_r": ("model.lora={r: 16}",),
    "lora_rank": ("model.lora={r: 16}",),
    "lora_alpha": ("model.lora={r: 16, lora_alpha: 32}",),
    "dataset": ("data.demonstrations", "data.comparisons", "data.prompts"),
    "dataset_name": ("data.demonstrations", "data.comparisons", "data.prompts"),
    "datasets": ("data.demonstrations", "data.comparisons", "data.prompts"),
    "train_file": ("data.demonstrations", "data.comparisons", "data.prompts"),
    "dataset_text_field": ("data.columns",),
    "input_key": ("data.columns",),
    "prompt_key": ("data.columns",),
    "field_messages": ("data.columns",),
    "input_template": ("data.prompt_template",),
    "completion_only_loss": ("data.completion_only",),
    "train_on_prompt": ("data.completion_only",),
    "train_on_inputs": ("data.completion_only",),
    "assistant_only_loss": ("data.completion_only",),
    "packing": ("data.length_window",),
    "group_by_length": ("data.length_window",),
    "eval_split": ("data.validation_fraction",),
    "val_size": ("data.validation_fraction",),
    "val_set_size": ("data.validation_fraction",),
    "output_dir": ("run_dir", "output_root"),
    "save_path": ("run_dir", "output_root"),
    "resume_from_checkpoint": ("resume=auto",),
    "save_steps": ("checkpoint.every_n_steps",),
    "report_to": ("logger=NAME",),
    "bf16": ("trainer.precision=bf16-mixed",),
    "fp16": ("trainer.precision=16-mixed",),
    "mixed_precision": ("trainer.precision",),
    "precision": ("trainer.precision",),
    "gpus": ("trainer.devices",),
    "num_gpus": ("trainer.devices",),
    "n_gpus": ("trainer.devices",),
    "nproc_per_node": ("trainer.devices",),
    "num_processes": ("trainer.devices",),
    "deepspeed": ("trainer=fsdp2",),
    "fsdp": ("trainer=fsdp2",),
    "zero_stage": ("trainer=fsdp2",),
    "num_workers": ("nothing: files are read as they are needed",),
}
_VALUES = {
    "fp16": ("16-mixed", "float16"),
    "float16": ("16-mixed",),
    "half": ("16-mixed", "float16"),
    "amp": ("16-mixed",),
    "bf16": ("bf16-mixed", "bfloat16"),
    "bfloat16": ("bf16-mixed",),
    "fp32": ("32-true", "float32"),
    "float32": ("32-true",),
    "true": ("auto",),
}


def same_key(word: str, keys: Sequence[str], section: str) -> list[str]:
    """What a key of another tool is called here.

    Args:
        word: the last part of the key.
        keys: dotted keys of the config.
        section: the first part of the key that was typed, which wins over others; may be empty.

    Returns:
        Keys that are in the config, or what to write; empty for a word that is not known.

    >>> same_key("learning_rate", ["sft.optimizer.lr", "ppo.optimizer.lr"], "ppo")
    ['ppo.optimizer.lr']
    """
    ends = _KEYS.get(word.lower(), ())
    if advice := [end for end in ends if "=" in end or " " in end]:
        return advice
    found: dict[tuple[str, str], str] = {}  # the outermost of each end in each section
    for key in sorted(keys, key=lambda key: key.count(".")):
        for end in ends:
            if key == end or key.endswith(f".{end}"):
                found.setdefault((key.partition(".")[0], end), key)
    return [key for key in found.values() if key.startswith(f"{section}.")] or list(found.values())


def same_value(value: str, choices: Sequence[str]) -> str:
    """The choice that another tool's word stands for, or nothing.

    >>> same_value("fp16", ["16-mixed", "bf16-mixed"])
    '16-mixed'
    """
    return next((word for word in _VALUES.get(value.lower(), ()) if word in choices), "")
