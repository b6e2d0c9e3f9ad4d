import pytest

from tests.gates.gate_layers import circles, layer_faults
from tests.gates.gate_sources import ROOT, SOURCES, none_of


def module_name(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return (
        name if name == "rlhf_lightning.__init__" else name.removesuffix(".__init__") + "." * name.endswith("__init__")
    )


def test_imports_go_downwards():
    none_of(fault for path in SOURCES for fault in layer_faults(path.read_text(), module_name(path)))


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        ("rlhf_lightning.types", "from rlhf_lightning.functional import ppo", "types imports nothing"),
        ("rlhf_lightning.functional.ppo", "from rlhf_lightning.models import x", "layer 0 imports models of layer 1"),
        ("rlhf_lightning.functional.ppo", "import lightning.pytorch as L", "torch only"),
        ("rlhf_lightning.data.loader", "from rlhf_lightning.rollout.engine import x", "siblings"),
        ("rlhf_lightning.data.loader", "from rlhf_lightning import scoring", "siblings"),
        ("rlhf_lightning.data.loader", "from ..scoring import scorer", "siblings"),
        ("rlhf_lightning.data.loader", "from .. import scoring", "siblings"),
        ("rlhf_lightning.data.", "from ..scoring import scorer", "siblings"),
        (
            "rlhf_lightning.modules.ppo",
            "def f():\n    import rlhf_lightning.stages.run",
            "layer 5 imports stages",
        ),
        ("rlhf_lightning.modules.ppo", "from omegaconf import OmegaConf", "top layer only"),
        ("rlhf_lightning.callbacks.x", "import hydra.utils", "top layer only"),
        ("rlhf_lightning.private_api.lightning", "import hydra.utils", "top layer only"),
        ("rlhf_lightning.callbacks.x", "from rlhf_lightning.private_api.hydra import x", "top layer only"),
        ("rlhf_lightning.private_api.hydra", "from rlhf_lightning.rules import x", "private_api imports nothing"),
        ("rlhf_lightning.modules.ppo", "if TYPE_CHECKING:\n    from rlhf_lightning.callbacks import x", "layer 5"),
        ("rlhf_lightning.novelty", "", "has no layer"),
        ("rlhf_lightning.modules.ppo", "import rlhf_lightning.novelty", "has no layer"),
    ],
)
def test_the_gate_sees_bad_imports(module, source, says):
    assert says in " ".join(layer_faults(source, module))


def test_the_gate_lets_good_imports_pass():
    source = (
        "import torch\nfrom rlhf_lightning.types import Rollout\nfrom .sources import read_rows\nfrom . import chat"
    )
    assert layer_faults(source, "rlhf_lightning.data.loader") == []


def test_no_modules_import_each_other():
    files = [*SOURCES, *sorted((ROOT / "benchmarks").glob("*.py"))]
    sources = {module_name(path).rstrip(".").removesuffix(".__init__"): path.read_text() for path in files}
    assert circles(sources) == []


@pytest.mark.parametrize(
    "back", ["import p.a", "def f():\n    from p import a", "if TYPE_CHECKING:\n    from p.a import A"]
)
def test_the_gate_sees_a_circle_through_any_kind_of_import(back):
    assert circles({"p": "", "p.a": "from p.b import B", "p.b": "import p.c", "p.c": back}) == [["p.a", "p.b", "p.c"]]
    assert circles({"p": "", "p.a": "from p.b import B", "p.b": "import p.c", "p.c": ""}) == []
