import pytest

from rlhf_lightning.config.compose import compose
from tests.gates.gate_configs import config_faults
from tests.gates.gate_sources import CONF, ROOT

FILES = sorted(p for p in CONF.rglob("*.yaml") if "local" not in p.relative_to(CONF).parts)
NAMES = {"ids": lambda path: str(path.relative_to(CONF))}
STAGES = sorted(p.stem for p in (CONF / "stage").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, **NAMES)
def test_values_are_the_defaults_of_the_class(path):
    assert config_faults(path.read_text(), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize("path", FILES, **NAMES)
def test_every_file_opens_with_a_comment_that_shows_its_use(path):
    lines = path.read_text().splitlines()
    comments = []
    for line in lines:
        if not line.startswith("#"):
            break
        comments.append(line)
    opening = " ".join(c for c in comments if "@package" not in c)
    assert len(opening) > 20, "open with a comment that says what this is for"
    assert "train.py" in opening or "rlhf-lightning" in opening, "show the command that uses it"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_composes(stage):
    config = compose([f"stage={stage}"])
    assert config["stages"]


def test_no_arguments_compose_the_whole_pipeline():
    assert compose()["stages"] == compose(["stage=pipeline"])["stages"]


def test_the_tree_stays_small():
    assert len(FILES) <= 100


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in {"experiment", "debug"}], **NAMES)
def test_every_experiment_composes(path):
    assert compose([f"{path.parent.name}={path.stem}"])["stages"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gamma: 1.0\nlam: 0.95\nlamda: 1", "takes no lamda"),
        ("gamma: 0.9\nlam: 0.95", "gamma is 0.9, the default is 1.0"),
        ("gamma: 1.0", "lam is not listed"),
        ("gamma: true\nlam: 0.95", "gamma is True"),
        ("gamma: 1e0\nlam: 0.95", "needs a point"),
        ("gamma: null\nlam: 0.95", "gamma is None"),
    ],
)
def test_the_gate_sees_a_config_that_disagrees_with_its_class(text, says):
    body = f"_target_: rlhf_lightning.functional.advantage.gae\n_partial_: true\nlam_critic: null\n{text}"
    nested = "a:\n  - b:\n" + "\n".join(f"      {line}" for line in body.splitlines())
    assert says in " ".join(config_faults(body, "x.yaml"))
    assert says in " ".join(config_faults(nested, "x.yaml"))


@pytest.mark.parametrize("gamma", ["1.0", "${discount}", "???", "0.9 # not the default: episodes are long"])
def test_the_gate_lets_defaults_interpolations_and_reasons_pass(gamma):
    text = f"_target_: rlhf_lightning.functional.advantage.gae\ngamma: {gamma}\nlam: 0.95\nlam_critic: null"
    assert config_faults(text, "x.yaml") == []


def test_the_gate_lets_arguments_given_in_python_be_missing():
    text = "_target_: rlhf_lightning.functional.advantage.gae\ngamma: 1.0 # given in Python: lam, lam_critic"
    assert config_faults(text, "x.yaml") == []
