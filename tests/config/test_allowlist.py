import sys

import pytest
import torch
from omegaconf import OmegaConf

from rlhf_lightning.config.allowlist import check_objects, targets
from rlhf_lightning.config.compose import safe_instantiate
from rlhf_lightning.errors import ConfigError

# Each would leave the file MARKER behind if it were called, or imported.
HOSTILE = [
    {"_target_": "os.system", "command": "touch MARKER"},
    {"_target_": "posix.system", "command": "touch MARKER"},
    {"_target_": "os.popen", "cmd": "touch MARKER"},
    {"_target_": "os.mkdir", "path": "MARKER"},
    {"_target_": "os.execvp", "file": "touch", "args": ["touch", "MARKER"]},
    {"_target_": "subprocess.run", "args": ["touch", "MARKER"]},
    {"_target_": "subprocess.Popen", "args": ["touch", "MARKER"]},
    {"_target_": "subprocess.check_output", "args": ["touch", "MARKER"]},
    {"_target_": "builtins.open", "file": "MARKER", "mode": "w"},
    {"_target_": "io.open", "file": "MARKER", "mode": "w"},
    {"_target_": "builtins.eval", "_args_": ["open('MARKER', 'w')"]},
    {"_target_": "builtins.exec", "_args_": ["open('MARKER', 'w')"]},
    {"_target_": "builtins.__import__", "name": "evil_package"},
    {"_target_": "importlib.import_module", "name": "evil_package"},
    {"_target_": "evil_package.Model"},
    {"_target_": "runpy.run_module", "mod_name": "evil_package"},
    {"_target_": "runpy.run_path", "path_name": "evil_package.py"},
    {"_target_": "code.InteractiveInterpreter"},
    {"_target_": "timeit.timeit", "stmt": "open('MARKER', 'w')", "number": 1},
    {"_target_": "pdb.run", "statement": "open('MARKER', 'w')"},
    {"_target_": "pathlib.Path.touch", "self": "MARKER"},
    {"_target_": "shutil.copy", "src": "evil_package.py", "dst": "MARKER"},
    {"_target_": "pickle.load", "file": "x"},
    {"_target_": "torch.load", "f": "x", "weights_only": False},
    {"_target_": "torch.save", "obj": 1, "f": "MARKER"},
    {"_target_": "torch.hub.load", "repo_or_dir": ".", "model": "x", "source": "local"},
    {"_target_": "torch.utils.cpp_extension.load", "name": "x", "sources": []},
    {"_target_": "torch.classes.load_library", "path": "x"},
    {"_target_": "numpy.load", "file": "x", "allow_pickle": True},
    {"_target_": "joblib.load", "filename": "x"},
    {"_target_": "functools.partial", "_args_": [{"_target_": "os.system"}, "touch MARKER"]},
    {"_target_": "transformers.AutoModel.from_pretrained", "trust_remote_code": True},
    {"_target_": "transformers.pipeline", "task": "x"},
    {"_target_": "hydra.utils.instantiate", "config": {}},
    {"_target_": "lightning.fabric.utilities.cloud_io._load", "path_or_url": "x"},
    # Another module's object, reached through an allowed name.
    {"_target_": "rlhf_lightning.cli.main.os.system", "command": "touch MARKER"},
    {"_target_": "rlhf_lightning.config.compose.safe_instantiate", "node": {}, "trusted": ["os"]},
    {"_target_": "rlhf_lightning.cli.main.main"},
    {"_target_": "rlhf_lightning.scoring.functions.importlib.import_module", "name": "evil_package"},
    {"_target_": "rlhf_lightning.optim.schedules.math.sqrt", "_args_": [1]},
    {"_target_": "rlhf_lightning.checkpoint.folders.shutil.copy", "src": "evil_package.py", "dst": "MARKER"},
    {"_target_": "rlhf_lightning.checkpoint.folders.Path", "_args_": ["MARKER"]},
    {"_target_": "rlhf_lightning.__builtins__.open", "file": "MARKER", "mode": "w"},
    {"_target_": "rlhf_lightning.types.TensorData.to"},
    {"_target_": "torch.optim.lr_scheduler.partial", "_args_": ["x"]},
    {"_target_": "torch.optim.AdamW.__init__.__globals__"},
    {"_target_": "torch.optim.lr_scheduler.warnings.warn", "message": "x"},
    {"_target_": "lightning.pytorch.callbacks.model_checkpoint.os.mkdir", "path": "MARKER"},
    {"_target_": "lightning.pytorch.callbacks.model_checkpoint.shutil.copy", "src": "a", "dst": "MARKER"},
    {"_target_": "lightning.pytorch.plugins.TorchCheckpointIO.load_checkpoint", "path": "x"},
    {"_target_": "lightning.pytorch.strategies.launchers.subprocess_script._SubprocessScriptLauncher"},
    {"_target_": "lightning.Trainer.fit"},
    {"_target_": "torchmetrics.metric.apply_to_collection"},
    {"_target_": "transformers.get_linear_schedule_with_warmup.__globals__"},
    # Malformed names.
    {"_target_": "rlhf_lightning..types.TensorData"},
    {"_target_": "rlhf_lightning/../evil_package"},
    {"_target_": "torch.optim.AdamW; import evil_package"},
    {"_target_": "torchoptim.AdamW"},
    {"_target_": "rlhf_lightning_evil.Model"},
    {"_target_": ["os", "system"]},
    {"_target_": {"_target_": "os.system", "command": "touch MARKER"}},
    {"_target_": None},
    # Hidden in a place where Hydra would still find it, or an argument of ours that is an import path.
    {"_target_": "rlhf_lightning.scoring.functions.FunctionScorer", "_args_": ["evil_package.reward"]},
    {"_target_": "rlhf_lightning.scoring.FunctionScorer", "_partial_": True, "_args_": ["os.system"]},
    {"_target_": "rlhf_lightning.models.loading.Pretrained", "_args_": ["x", "float32", "sdpa", 0, "main", True]},
    {"a": [{"_target_": "rlhf_lightning.optim.schedules.linear", "_args_": [1]}]},
    {"_target_": "rlhf_lightning.scoring.isolation.worker.load", "path": "evil_package.reward"},
    {"_target_": "rlhf_lightning.scoring.functions.load", "path": "evil_package.reward"},
    {"_target_": "rlhf_lightning.scoring.isolation.process.IsolatedFunction", "path": "os.system"},
    {"_target_": "rlhf_lightning.scoring.functions.IsolatedFunction", "path": "os.system"},
    {"_target_": "rlhf_lightning.cli.launch.launch", "config": {"trusted_targets": ["os"]}, "processes": 2},
    {"_target_": "rlhf_lightning.stages.run.Run", "config": {"trusted_targets": ["os"]}},
    {"_target_": "rlhf_lightning.checkpoint.write_folder", "path": "MARKER", "write": None, "provenance": {}},
    {"_target_": "torch.optim.SGD", "_args_": [{"_target_": "os.system", "command": "touch MARKER"}]},
    {"_target_": "torch.optim.SGD", "params": [[[{"_target_": "os.system", "command": "touch MARKER"}]]]},
    {"_target_": "torch.optim.SGD", "_recursive_": False, "params": {"_target_": "os.system", "command": "touch M"}},
    {"_target_": "torch.optim.SGD", "_partial_": True, "x": {"_target_": "os.mkdir", "path": "MARKER"}},
    [{"_target_": "os.system", "command": "touch MARKER"}],
    {"a": {"b": [{"_target_": "os.system", "command": "touch MARKER"}]}},
    {"_target_": "torch.optim.SGD", "params": "${oc.create:'{_target_: os.system, command: touch MARKER}'}"},
    {"_target_": "rlhf_lightning.scoring.FunctionScorer", "function": "os.system"},
    {"_target_": "rlhf_lightning.scoring.FunctionScorer", "function": "evil_package.reward"},
]


@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_optimizers_of_other_libraries_may_be_named_and_nothing_else_of_them(library, tmp_path, monkeypatch):
    (tmp_path / library / "optim").mkdir(parents=True)
    (tmp_path / library / "__init__.py").write_text("class Other:\n    pass\n")
    (tmp_path / library / "optim" / "__init__.py").write_text("from .adam import AdamW8bit\nfrom os import system\n")
    (tmp_path / library / "optim" / "adam.py").write_text("class AdamW8bit:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": f"{library}.optim.AdamW8bit", "_partial_": True}
    real = {name: module for name, module in sys.modules.items() if name.split(".")[0] == library}
    for name in real:
        del sys.modules[name]
    try:
        assert type(safe_instantiate(node)()).__name__ == "AdamW8bit"
        for name in (f"{library}.Other", f"{library}.optim.system", f"{library}.optim.adam.os.system"):
            with pytest.raises(ConfigError):
                safe_instantiate({"_target_": name, "_partial_": True})
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == library]:
            del sys.modules[name]
        sys.modules |= real


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A folder with a package whose import leaves MARKER behind."""
    (tmp_path / "evil_package.py").write_text("open('MARKER', 'w').close()\nModel = reward = print\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("node", HOSTILE, ids=lambda node: str(node)[:60])
def test_hostile_target_is_refused_and_nothing_runs(node, scene):
    with pytest.raises(ConfigError):
        safe_instantiate(node)
    assert not (scene / "MARKER").exists()
    assert "evil_package" not in sys.modules


def test_the_scene_would_show_an_attack_that_works(scene):
    safe_instantiate({"_target_": "os.mkdir", "path": "MARKER"}, trusted=["os", "posix"])
    assert (scene / "MARKER").exists()


def test_omegaconf_nodes_are_judged_after_resolution(scene):
    cfg = OmegaConf.create({"name": "os.system", "node": {"_target_": "${name}", "command": "touch MARKER"}})
    with pytest.raises(ConfigError, match=r"os\.system is not on the list"):
        safe_instantiate(cfg.node)


def test_all_names_are_judged_before_the_first_import(scene):
    tree = {"a": {"_target_": "evil_package.Model"}, "b": {"_target_": "os.system"}}
    with pytest.raises(ConfigError, match=r"b\._target_"):
        safe_instantiate(tree, trusted=["evil_package"])
    assert not (scene / "MARKER").exists()


@pytest.mark.parametrize("variable", ["mine", "mine.*", "other:mine", "other,mine"])
def test_environment_can_trust_a_package(variable, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(ConfigError):
        safe_instantiate({"_target_": "mine.Thing"})
    monkeypatch.setenv("RLHF_LIGHTNING_TRUSTED_TARGETS", variable)
    assert type(safe_instantiate({"_target_": "mine.Thing"})).__name__ == "Thing"
    with pytest.raises(ConfigError):
        safe_instantiate({"_target_": "mine_too.Thing"})


def test_trust_in_a_package_does_not_extend_to_what_it_imports(tmp_path, monkeypatch):
    (tmp_path / "importer.py").write_text("import os\nfrom os import system\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("importer.os.system", "importer.system"):
        with pytest.raises(ConfigError):
            safe_instantiate({"_target_": name, "command": "true"}, trusted=["importer"])


@pytest.mark.parametrize("prefix", ["*", ".", "a..b", "a b", "../a"])
def test_trusting_everything_is_refused(prefix):
    with pytest.raises(ConfigError, match="trusted_targets"):
        safe_instantiate({"_target_": "torch.optim.SGD"}, trusted=[prefix])


def test_a_package_that_is_not_found_says_where_it_is_looked_for():
    with pytest.raises(ConfigError, match=r"judge\.function: cannot import nowhere\.fn.*put its folder on PYTHONPATH"):
        check_objects({"judge": {"_target_": "rlhf_lightning.scoring.FunctionScorer", "function": "nowhere.fn.a"}})


@pytest.mark.parametrize(("code", "says"), [("def f(:", "SyntaxError: invalid syntax"), ("1 / 0", "ZeroDivisionError")])
def test_a_module_that_fails_while_it_is_imported_is_named(tmp_path, monkeypatch, code, says):
    name = f"broken_{says[:4].lower()}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"_target_: importing {name} failed with {says}.*HYDRA_FULL_ERROR=1"):
        safe_instantiate({"_target_": f"{name}.f"}, trusted=[name])


def test_misspelt_class_names_the_nearest_one():
    with pytest.raises(ConfigError, match=r"did you mean torch\.optim\.AdamW\?"):
        safe_instantiate({"_target_": "torch.optim.AdaamW", "_partial_": True})


@pytest.mark.parametrize(
    "name",
    [
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.strategies.DDPStrategy",
        "lightning.pytorch.strategies.ModelParallelStrategy",
        "lightning.pytorch.profilers.SimpleProfiler",
        "lightning.pytorch.plugins.TorchCheckpointIO",
        "lightning.pytorch.plugins.MixedPrecision",
        "lightning.Trainer",
        "lightning.pytorch.Trainer",
        "torchmetrics.text.Perplexity",
        "transformers.get_cosine_schedule_with_warmup",
        "transformers.GenerationConfig",
        "transformers.LlamaConfig",
        "rlhf_lightning.scoring.FunctionScorer",
    ],
)
def test_parts_of_the_stack_are_allowed(name):
    factory = safe_instantiate({"_target_": name, "_partial_": True})
    assert callable(factory)


def test_targets_are_found_at_any_depth():
    tree = {"a": [{"_target_": "x.y", "_args_": [{"_target_": "z.w"}]}]}
    assert list(targets(tree)) == [("a[0]._target_", "x.y"), ("a[0]._args_[0]._target_", "z.w")]


def test_partial_optimizer_takes_parameters_later():
    make = safe_instantiate({"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.5})
    assert make([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.5
