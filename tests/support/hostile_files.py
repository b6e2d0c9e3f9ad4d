"""Config files of an attacker, each an ``experiment``, and folders of models and checkpoints that are attacks.

Every attack that worked would leave the file MARKER in the working folder, or write outside of it.
"""

import json
import pickle
import shutil
import struct

CALL = "{_target_: os.system, command: touch MARKER}"
OPENS = "{_target_: builtins.open, file: MARKER, mode: w}"
LOG = "filename: OUTSIDE/evil.log"
JUDGE = "_target_: rlhf_lightning.scoring.functions.FunctionScorer"

# name: text of conf/experiment/NAME.yaml below `# @package _global_`
CONFIGS = {
    # a target anywhere in the tree
    "top": f"x: {CALL}",
    "callback": f"callbacks: {{evil: {CALL}}}",
    "logger": f"logger: {OPENS}",
    "log_handler": "logger: {_target_: logging.FileHandler, filename: MARKER}",
    "optimizer": f"sft: {{optimizer: {CALL}}}",
    "judge": f"judge: {CALL}",
    "scorer": "judge: {_target_: subprocess.Popen, args: [touch, MARKER]}",
    "task": "task: {_target_: shutil.copyfile, src: conf/experiment/top.yaml, dst: MARKER}",
    "trainer": f"trainer: {CALL}",
    "strategy": f"trainer: {{strategy: {CALL}}}",
    "in_lists": f"a: {{b: [[[{CALL}]]]}}",
    "in_a_list_of_parts": f"evaluate: {{judges: [{CALL}]}}",
    "positional": f"callbacks: {{e: {{_target_: lightning.pytorch.callbacks.Timer, _args_: [{CALL}]}}}}",
    "partial": "callbacks: {e: {_target_: os.system, _partial_: true, command: touch MARKER}}",
    "not_recursive": f"callbacks: {{e: {{_target_: torch.optim.SGD, _recursive_: false, d: {CALL}}}}}",
    "nested_target": f"callbacks: {{e: {{_target_: {CALL}}}}}",
    "evaluated": "x: {_target_: builtins.eval, _args_: [\"open('MARKER', 'w')\"]}",
    "imported": "x: {_target_: evil_package.Model}",
    "hub": "x: {_target_: torch.hub.load, repo_or_dir: ., model: x, source: local}",
    "unpickled": "x: {_target_: torch.load, f: x, weights_only: false}",
    "instantiated": f"x: {{_target_: hydra.utils.instantiate, config: {CALL}}}",
    "our_instantiate": f"x: {{_target_: rlhf_lightning.config.compose.safe_instantiate, node: {CALL}, trusted: [os]}}",
    "our_cli": "x: {_target_: rlhf_lightning.cli.main.main}",
    "interpolated": "name: os.system\nx: {_target_: '${name}', command: touch MARKER}",
    "spliced": "x: {_target_: 'os.${y}', command: touch MARKER}\ny: system",
    "from_environment": "x: {_target_: '${oc.env:EVIL}', command: touch MARKER}",
    "created": "x: \"${oc.create:'{_target_: os.system, command: touch MARKER}'}\"",
    "decoded": "x: \"${oc.decode:'{_target_: os.system, command: touch MARKER}'}\"",
    "selected": f"a: {CALL}\ncallbacks: {{e: '${{oc.select:a}}'}}",
    "reward_function": f"judge: {{{JUDGE}, function: os.system}}",
    "own_reward_function": f"judge: {{{JUDGE}, function: evil_package.reward}}",
    "function_node": f"judge: {{{JUDGE}, function: {CALL}}}",
    # allowing itself more
    "trusting": f"trusted_targets: [os]\nx: {CALL}",
    "trusting_a_name": f"trusted_targets: os\nx: {CALL}",
    "remote_code": "model: {path: evil/model, trust_remote_code: true, revision: abc}",
    "remote_code_of_a_judge": "judge: {_target_: rlhf_lightning.scoring.reward_model.RewardModelScorer, model: {"
    "_target_: rlhf_lightning.models.loading.Pretrained, path: e/m, trust_remote_code: true, revision: a}}",
    "kernel": "model: {attn_implementation: evil/kernel}",
    # what Hydra itself does
    "log_file": f"hydra: {{job_logging: {{handlers: {{file: {{{LOG}}}}}}}}}",
    "log_file_of_hydra": f"hydra: {{hydra_logging: {{handlers: {{e: {{class: logging.FileHandler, {LOG}}}}}}}}}",
    "log_class": "hydra: {job_logging: {handlers: {e: {class: evil_package.Model}}}}",
    "log_factory": "hydra: {job_logging: {handlers: {e: {(): evil_package.Model}}}}",
    "log_formatter": "hydra: {job_logging: {formatters: {e: {(): os.system, command: touch MARKER}}}}",
    "log_filter": "hydra: {hydra_logging: {filters: {e: {(): os.mkdir, path: MARKER}}}}",
    "log_reference": "hydra: {job_logging: {handlers: {console: {stream: 'ext://evil_package.Model'}}}}",
    "hydra_callback": f"hydra: {{callbacks: {{e: {CALL}}}}}",
    "launcher": f"hydra: {{launcher: {CALL}}}",
    "launcher_of_hydra": f"hydra: {{launcher: {{x: {CALL}}}}}",
    "sweeper": f"hydra: {{sweeper: {CALL}}}",
    "run_folder": "hydra: {run: {dir: OUTSIDE/run}}",
    "sweep_folder": "hydra: {sweep: {dir: OUTSIDE/sweep}}",
    "sweep_subfolder": "hydra: {sweep: {subdir: ../../../OUTSIDE}}",
    "change_folder": "hydra: {job: {chdir: true}}",
    "job_name": "hydra: {job: {name: ../../OUTSIDE/evil}}",
    "environment": f"hydra: {{job: {{env_set: {{RLHF_LIGHTNING_TRUSTED_TARGETS: os}}}}}}\nx: {CALL}",
    "preload": "hydra: {job: {env_set: {LD_PRELOAD: evil.so}}}",
    "copied_environment": "hydra: {job: {env_copy: [EVIL]}}",
    "saved_overrides": "hydra: {output_subdir: .hydra}",
    # YAML itself
    "yaml_object": "x: !!python/object/apply:os.system [touch MARKER]",
    "yaml_name": "x: !!python/name:os.system",
    "yaml_module": "x: !!python/module:evil_package",
}


class Evil:
    """Pickled, it opens MARKER when it is loaded."""

    def __reduce__(self):
        return (open, ("MARKER", "w"))


def edit(folder, name, **values):
    """Add keys to a JSON file."""
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def remote_code(folder):
    """Python beside the weights."""
    code = "open('MARKER', 'w').close()\nclass Model: pass\ndef generate(*a, **k): pass\n"
    (folder / "evil.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    return {"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Model", None]}


def known_auto_map(folder):
    edit(folder, "config.json", auto_map=remote_code(folder))


def unknown_auto_map(folder):
    edit(folder, "config.json", auto_map=remote_code(folder), model_type="evil", architectures=["Model"])


def trusting_config(folder):
    edit(folder, "config.json", auto_map=remote_code(folder), model_type="evil", trust_remote_code=True)


def other_repository(folder):
    edit(folder, "config.json", auto_map={"AutoConfig": "evil/evil--evil.Model"}, model_type="evil")


def tokenizer_auto_map(folder):
    edit(folder, "tokenizer_config.json", auto_map=remote_code(folder), tokenizer_class="EvilTokenizer")


def generation_code(folder):
    remote_code(folder)
    edit(folder, "generation_config.json", custom_generate=".", trust_remote_code=True)


def kernel_in_config(folder):
    edit(folder, "config.json", _attn_implementation="evil/kernel", attn_implementation="evil/kernel")


def adapter(folder):
    remote_code(folder)
    edit(folder, "adapter_config.json", base_model_name_or_path="evil/evil", auto_mapping={"parent_library": "evil"})


def pickled_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def pickled_shards(folder):
    (folder / "model.safetensors").unlink()
    (folder / "shard.bin").write_bytes(pickle.dumps(Evil()))
    edit(folder, "pytorch_model.bin.index.json", metadata={}, weight_map={"lm_head.weight": "shard.bin"})


def pickle_called_safetensors(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil()))


def header(folder, text, length=None):
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(data) if length is None else length) + data)


def header_too_long(folder):
    header(folder, b"{}", length=2**63)


def header_beyond_the_file(folder):
    header(folder, {"lm_head.weight": {"dtype": "F32", "shape": [9999], "data_offsets": [0, 9999 * 4]}})


def header_with_wrong_size(folder):
    header(folder, {"lm_head.weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}})


def header_backwards(folder):
    header(folder, {"lm_head.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}})


def header_of_python(folder):
    header(folder, b"cos\nsystem\n(S'touch MARKER'\ntR.")


def header_bomb(folder):
    header(folder, b'{"a":' * 100_000)


def index(folder, name):
    (folder.parent / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    edit(folder, "model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": name})


def shard_above(folder):
    index(folder, "../outside.safetensors")


def shard_absolute(folder):
    index(folder, str(folder.parent / "outside.safetensors"))


def shard_pickled(folder):
    (folder / "shard.bin").write_bytes(pickle.dumps(Evil()))
    index(folder, "shard.bin")


def index_bomb(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)


def config_bomb(folder):
    (folder / "config.json").write_text('{"a":' * 100_000)


def provenance_above(folder):
    _listed(folder, "../outside.txt")


def provenance_absolute(folder):
    _listed(folder, str(folder.parent / "outside.txt"))


def provenance_bomb(folder):
    (folder / "provenance.json").write_text("[" * 100_000)


def linked_weights(folder):
    (folder.parent / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder.parent / "outside.safetensors")
    _listed(folder, "model.safetensors")


def linked_folder(folder):
    (folder.parent / "outside").mkdir()
    (folder.parent / "outside" / "x.txt").write_text("secret")
    (folder / "sub").symlink_to(folder.parent / "outside")
    _listed(folder, "sub/x.txt")


def _listed(folder, name):
    """A hand-over folder whose checksums hold, and which lists a file outside."""
    import hashlib

    from rlhf_lightning.checkpoint import write_folder

    (folder.parent / "outside.txt").write_text("secret")
    data = (folder / name).read_bytes()
    files = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
    made = write_folder(folder.parent / "made", lambda tmp: None, {"stage": "sft", "parents": {}})
    record = json.loads((made / "provenance.json").read_text()) | {"files": files}
    if "sha256" in record:  # of the record itself
        del record["sha256"]
        text = json.dumps(record, indent=2, sort_keys=True)
        record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "provenance.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(made)


# What must be refused, and what may be loaded as long as nothing of it runs: code beside a known kind of model.
REFUSED = [
    unknown_auto_map, tokenizer_auto_map, trusting_config, other_repository, pickled_weights, pickled_shards,
    pickle_called_safetensors, header_too_long, header_beyond_the_file, header_with_wrong_size, header_backwards,
    header_of_python, header_bomb, shard_above, shard_absolute, shard_pickled, index_bomb, config_bomb,
    provenance_above, provenance_absolute, provenance_bomb, linked_weights, linked_folder,
]  # fmt: skip
IGNORED = [known_auto_map, generation_code, kernel_in_config]
