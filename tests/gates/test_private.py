import importlib
import inspect
import pkgutil

import pytest

import rlhf_lightning
from tests.gates.gate_private import ROOM, classes_of, overridden, private_faults
from tests.gates.gate_sources import ROOT, SOURCES, none_of, read

OUTSIDE = [path for path in SOURCES if not str(path.relative_to(ROOT)).startswith(ROOM)]


def test_private_api_of_other_libraries_is_used_in_one_room():
    classes = classes_of(text for _, text in read(SOURCES))
    none_of(fault for name, text in read(OUTSIDE) for fault in private_faults(text, name, classes))


def test_no_class_outside_the_room_replaces_a_private_method_of_a_library():
    for module in pkgutil.walk_packages(rlhf_lightning.__path__, "rlhf_lightning."):
        if "private_api" in module.name or module.name.endswith("__main__"):
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(cls) and cls.__module__ == module.name:
                assert overridden(cls) == [], cls


@pytest.mark.parametrize(
    "source",
    [
        "def f(trainer):\n    trainer._signal_connector.on()",
        "class A(pl.LightningModule):\n    def f(self):\n        return self._trainer",
        "class A(Base):\n    def f(self):\n        return super()._compose(1)",
        "from hydra._internal import hydra",
        "import torch._dynamo",
        "from lightning.fabric.x import _rekey",
        "import torch\n\ndef f():\n    return torch._C.f()",
        "from tensorboard import writer\nwriter.RecordWriter = None",
        "import yaml\nyaml.SafeLoader = None",
        "def f(config):\n    return getattr(config, '_attn_implementation', None)",
        "def f(module, g):\n    module.on_train_batch_end = g  # type: ignore[assignment,method-assign]",
    ],
)
def test_the_gate_sees_what_is_private(source):
    assert len(private_faults(source, "x.py", {})) == 1


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    _x = 1\n\n    def f(self, other):\n        self._y = other._x\n        return self._y",
        "class B(A):\n    def f(self):\n        return self._inherited + super()._inherited",
        "from rlhf_lightning.cli import _wants\nimport os\n\nos._exit(row._replace(a=1)._fields.__len__())",
        "import sys\nsys.stdout = None\nfrom .x import _y",
    ],
)
def test_the_gate_lets_our_own_pass(source):
    assert private_faults(source, "x.py", {"A": ([], {"_inherited"}), "B": (["A"], set())}) == []


def test_the_gate_sees_a_replaced_private_method():
    class Loader(importlib.import_module("hydra._internal.config_loader_impl").ConfigLoaderImpl):
        def _process_config_searchpath(self):
            """Replaced."""

    Loader.__module__ = "rlhf_lightning.config.x"
    assert overridden(Loader) == ["_process_config_searchpath"]
