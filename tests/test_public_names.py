"""The names that users import from the package itself."""

import subprocess
import sys

import pytest

import rlhf_lightning
from tests.gates.gate_sources import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()


@pytest.mark.parametrize("name", rlhf_lightning.__all__)
def test_every_public_name_is_there(name):
    found = getattr(rlhf_lightning, name)
    assert getattr(found, "__name__", name) == name
    assert name in dir(rlhf_lightning)
    assert name in PAGE or name == "__version__"


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        rlhf_lightning.Trainer  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, rlhf_lightning; print(sorted({'torch', 'lightning', 'hydra', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
