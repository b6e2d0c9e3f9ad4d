import pytest

from tests.gates.gate_sizes import size_faults
from tests.gates.gate_sources import PACKAGE, ROOT, none_of, project_files, read

SCRIPTS = [*ROOT.glob("*.py"), *ROOT.glob("hydra_plugins/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
PYTHON = sorted([*PACKAGE.rglob("*.py"), *SCRIPTS])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Functions whose arguments belong to another library's signature.
KEYWORDS_ALLOWED = frozenset(
    {
        "benchmarks/peer_laps.py::on_train_begin",  # transformers.TrainerCallback
        "benchmarks/peer_laps.py::on_step_end",  # the same
        "benchmarks/peer_trl_learning.py::on_step_end",
        "rlhf_lightning/types.py::to",  # torch.Tensor.to
        "rlhf_lightning/types.py::_to",
        "rlhf_lightning/models/loading.py::_config",  # attributes of a transformers config
        "rlhf_lightning/rollout/cache.py::update",  # transformers' cache layers
        "rlhf_lightning/rollout/environment.py::reset",  # the columns of a row
        "rlhf_lightning/scoring/environment.py::environment_reward",  # the same
        "rlhf_lightning/rollout/hf.py::__call__",  # transformers.StoppingCriteria
        "rlhf_lightning/config/compose.py::safe_instantiate",  # the constructor named in a config
        "rlhf_lightning/stages/run.py::build",  # the same
        "rlhf_lightning/stages/run.py::trainer",  # lightning.Trainer
    }
)


def test_files_functions_and_constructors_stay_small():
    none_of(fault for name, text in read(PYTHON) for fault in size_faults(text, name, KEYWORDS_ALLOWED))


def test_test_files_stay_small():
    lines = {name: len(text.splitlines()) for name, text in read(TESTS)}
    none_of(f"{name}: {count} lines, at most 500" for name, count in lines.items() if count > 500)


def test_no_file_is_a_drawer_for_everything():
    names = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [p for p in project_files() if p.suffix == ".py" and p.stem in names] == []


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\n" * 301, "301 lines"),
        ("def f():\n" + "    x = 1\n" * 50, "f has 51 lines"),
        ("class A:\n    async def f(self):\n" + "        x = 1\n" * 50, "f has 51 lines"),
        (f"class A:\n    def __init__(self, {', '.join(f'a{i}' for i in range(14))}): ...", "14 arguments"),
        (f"class A:\n    def __init__(self, *, {', '.join(f'a{i}' for i in range(14))}): ...", "14 arguments"),
        ("def f(**kwargs): ...", "takes **kwargs"),
    ],
)
def test_the_gate_sees_what_is_too_big(source, says):
    assert says in " ".join(size_faults(source, "a.py"))


def test_the_gate_does_not_count_docstrings():
    source = 'def f():\n    """One.\n' + "    more\n" * 60 + '    """\n' + "    x = 1\n" * 49
    assert size_faults(source, "a.py") == []
    assert size_faults(source + "    x = 1\n", "a.py") != []
