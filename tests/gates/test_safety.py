import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.gates.gate_sources import ROOT, SOURCES, load_faults, none_of, read

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BOUNDS = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
# Two judge the name before they import it, see rlhf_lightning/config/allowlist.py; the third has a table of its own.
IMPORTERS = frozenset(
    [
        "rlhf_lightning/__init__.py", "rlhf_lightning/config/allowlist.py",
        "rlhf_lightning/scoring/isolation/worker.py",
        "rlhf_lightning/config/loggers.py",  # names of a table of its own
    ]
)  # fmt: skip


def test_no_load_can_run_code():
    none_of(fault for name, text in read(SOURCES) for fault in load_faults(text, name, IMPORTERS))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import dill as d",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "Module.load_from_checkpoint(path, weights_only=False)",
        "eval(text)",
        "importlib.import_module(name)",
    ],
)
def test_the_gate_sees_an_unsafe_load(source):
    assert load_faults(source, "a.py") != []


def test_the_gate_lets_safe_loads_pass():
    assert load_faults("torch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)\nmodel.eval()", "a.py") == []


@pytest.mark.parametrize(
    ("package", "version", "allowed"),
    [
        ("lightning", "2.6.1", False),
        ("lightning", "2.6.2", False),  # malicious upload, GHSA-w37p-236h-pfx3
        ("lightning", "2.6.3", False),  # the same
        ("lightning", "2.6.5", False),  # code execution in spite of weights_only, CVE-2026-58659
        ("lightning", "2.6.6", True),
        ("lightning", "2.7.0", False),
        ("hydra-core", "1.3.7", False),  # targets through aliases, GHSA-37p2-j732-x8pj and later
        ("hydra-core", "1.3.8", True),
        ("torch", "2.9.1", False),  # memory corruption under weights_only, CVE-2026-24747
        ("torch", "2.10.0", True),
        ("torch", "2.14.0", False),
        ("transformers", "4.57.0", False),  # random state of its trainer, CVE-2026-1839
        ("transformers", "5.0.0", True),
        ("transformers", "6.0.0", False),
    ],
)
def test_versions_with_known_holes_are_out_of_bounds(package, version, allowed):
    assert BOUNDS[package].contains(version) is allowed


def test_pins_lie_within_the_bounds():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    pins = {name.lower().replace("_", "-"): Version(version) for name, version in pins.items()}
    extras = (r for group in PROJECT["optional-dependencies"].values() for r in group)
    required = [*PROJECT["dependencies"], *extras]
    for requirement in map(Requirement, required):
        name = requirement.name.lower().replace("_", "-")
        if name in pins:
            assert requirement.specifier.contains(pins[name]), requirement
    assert {r.name for r in map(Requirement, PROJECT["dependencies"])} <= set(pins)
    assert all(version.local is None for version in pins.values())
