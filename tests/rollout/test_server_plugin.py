"""The plugin in the server's environment, with a stand-in for vLLM: what it loads, and what it refuses."""

import hashlib
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Generic, TypeVar

import pytest
import torch
from safetensors.torch import save_file

from tests.gates.gate_sources import ROOT
from tests.support import tiny

A, B = TypeVar("A"), TypeVar("B")


class Base(Generic[A, B]):
    """As much of vLLM's class as the plugin stands on."""

    def __init__(self, model, device="cpu"):
        self.model, self.device, self.model_config = model, torch.device(device), None


@pytest.fixture
def plugin(monkeypatch):
    """The plugin's engine, and what it registered and called."""
    seen = SimpleNamespace(registered=[], calls=[])

    def register(name, module, cls):
        if name in [entry[0] for entry in seen.registered]:
            raise ValueError("already registered")
        seen.registered.append((name, module, cls))

    modules = {
        "vllm.distributed.weight_transfer.factory": {
            "WeightTransferEngineFactory": SimpleNamespace(register_engine=register)
        },
        "vllm.distributed.weight_transfer.base": {
            "WeightTransferEngine": Base, "WeightTransferInitInfo": object, "WeightTransferUpdateInfo": object,
        },
        "vllm.model_executor.model_loader.reload": {
            "initialize_layerwise_reload": lambda model: seen.calls.append("begin"),
            "finalize_layerwise_reload": lambda model, config: seen.calls.append("end"),
        },
    }  # fmt: skip
    for name, content in modules.items():
        for depth in range(1, name.count(".") + 2):
            monkeypatch.setitem(sys.modules, ".".join(name.split(".")[:depth]), ModuleType(name))
        vars(sys.modules[name]).update(content)
    monkeypatch.syspath_prepend(ROOT / "server_plugin")
    importlib.import_module("rlhf_lightning_vllm").register()
    importlib.import_module("rlhf_lightning_vllm").register()
    seen.engine = importlib.import_module(seen.registered[0][1])
    yield seen
    for name in [name for name in sys.modules if name.startswith("rlhf_lightning_vllm")]:
        monkeypatch.delitem(sys.modules, name)


def served(tied=False):
    """A model that loads as vLLM's do."""
    model = tiny.policy(seed=9)
    model.config.tie_word_embeddings = tied
    model.packed = 0

    def load_weights(weights):
        names = []
        for name, weight in weights:
            model.get_parameter(name).data.copy_(weight)
            names.append(name)
        return set(names)

    def pack(layer):
        assert layer is model.lm_head
        model.packed += 1

    model.load_weights = load_weights
    model.lm_head.quant_method = SimpleNamespace(process_weights_after_loading=pack)
    return model


def write(folder, state):
    path = folder / "model.safetensors"
    save_file(state, path)
    return [{"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]


def update(plugin, model, files, device="cpu"):
    engine = plugin.engine.FileEngine(model, device)
    engine.start_weight_update()
    engine.receive_weights(plugin.engine.UpdateInfo(files=files))
    engine.finish_weight_update()


def test_whole_weights_are_loaded_between_begin_and_end(plugin, tmp_path):
    model, given = served(), dict(tiny.policy().named_parameters())
    update(plugin, model, write(tmp_path, given))
    assert all(torch.equal(weight, given[name]) for name, weight in model.named_parameters())
    assert plugin.calls == ["begin", "end"] and plugin.registered[0][::2] == ("rlhf_lightning", "FileEngine")


@pytest.mark.parametrize(("tied", "device", "packed"), [(True, "cpu", 1), (False, "cpu", 0), (True, "cuda", 0)])
def test_a_shared_head_is_packed_again_on_a_cpu(tied, device, packed, plugin, tmp_path):
    model = served(tied)
    update(plugin, model, write(tmp_path, dict(tiny.policy().named_parameters())), device)
    assert model.packed == packed


def test_a_weight_that_did_not_come_is_named(plugin, tmp_path):
    given = dict(tiny.policy().named_parameters())
    del given["model.norm.weight"]
    with pytest.raises(ValueError, match=r"1 weights of the model were not among the files, for example model\.norm"):
        update(plugin, served(), write(tmp_path, given))


def test_files_that_are_not_what_was_said_change_nothing(plugin, tmp_path):
    model, given = served(), dict(tiny.policy().named_parameters())
    before, files = model.lm_head.weight.clone(), write(tmp_path, given)
    twice = [*files, *files]
    for wrong, says in ([{**files[0], "sha256": "0" * 64}], "SHA-256"), ([], "without files"):
        with pytest.raises(ValueError, match=says):
            update(plugin, model, wrong)
        assert torch.equal(model.lm_head.weight, before)
    with pytest.raises(ValueError, match="is there twice"):
        update(plugin, model, twice)
    with pytest.raises(TimeoutError, match="not read in time"):
        plugin.engine.FileEngine(model).receive_weights(plugin.engine.UpdateInfo(files=files, seconds=-1.0))
