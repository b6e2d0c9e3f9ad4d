import itertools

import pytest

from rlhf_lightning.config.compose import compose
from rlhf_lightning.config.locations import help_text
from tests.gates.gate_configs import config_faults, groups_of
from tests.gates.gate_sources import CONF, ROOT, none_of, read

FILES = sorted(p for p in CONF.rglob("*.yaml") if "local" not in p.relative_to(CONF).parts)
NAMES = {"ids": lambda path: str(path.relative_to(CONF))}
STAGES = sorted(p.stem for p in (CONF / "stage").glob("*.yaml"))


def test_values_are_the_defaults_of_the_class():
    none_of(fault for name, text in read(FILES) for fault in config_faults(text, name))


def test_every_file_opens_with_a_comment_that_shows_its_use():
    none_of(f"{name}: {fault}" for name, text in read(FILES) if (fault := opening_fault(text)))


def opening_fault(text):
    """What the comment at the top of a file lacks."""
    comments = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    opening = " ".join(comment for comment in comments if "@package" not in comment)
    if len(opening) <= 20:
        return "open with a comment that says what this is for"
    return "" if "train.py" in opening or "rlhf-lightning" in opening else "show the command that uses it"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_composes_and_has_the_keys_that_its_help_names(stage):
    tree = compose([f"stage={stage}"])
    assert tree["stages"]
    keys = help_text(stage).partition("Change first: ")[2].split(", ")
    assert len(keys) >= 4
    for key in keys:
        place = tree
        for name in key.strip().split("."):
            assert name in place, key
            place = place[name]


def test_the_documented_table_of_groups_is_that_of_the_folder():
    groups = {folder.name: {p.stem for p in folder.glob("*.yaml")} for folder in CONF.iterdir() if folder.is_dir()}
    for name in ("hydra", "preset", "local"):  # Hydra's own, chosen by the task, not under version control
        groups.pop(name, None)
    assert groups_of((ROOT / "docs" / "configuration.md").read_text()) == groups


def test_the_table_of_groups_is_read_as_it_is_written():
    text = "| group | options | keys |\n|---|---|---|\n| `a` | x, y_2 (CUDA, z) | k |\n| `b` | z | |\n\n| `c` | x | |\n"
    assert groups_of(text) == {"a": {"x", "y_2"}, "b": {"z"}}


def test_no_arguments_compose_the_whole_pipeline():
    assert compose()["stages"] == compose(["stage=pipeline"])["stages"]


def test_the_tree_stays_small():
    assert len(FILES) <= 100


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in {"experiment", "debug"}], **NAMES)
def test_every_experiment_composes(path):
    brought = ["data.root=hh"] if path.stem == "hh_smollm2" else []  # by the user
    assert compose([f"{path.parent.name}={path.stem}", *brought])["stages"]


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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("_target_: PLAIN\ngamma: 1.0\nlam: 0.95 # given in Python: lam_critic, lambda_", "has no lambda_"),
        ("a:\n  _target_: PLAIN\n  gamma: 1.0\n  lam: 0.95\n# given in Python: lam_critic", "knobs of no class"),
        ("a: # given in Python: lam_critic\n  _target_: PLAIN\n  gamma: 1.0\n  lam: 0.95", "lam_critic is not listed"),
        ("_target_: PLAIN # given in Python: gamma\ngamma: 1.0\nlam: 0.95\nlam_critic: null", "gamma is listed"),
        (
            "a:\n  _target_: PLAIN\n  gamma: 1.0\n  lam: 0.95\n"
            "b:\n  _target_: PLAIN\n  gamma: 1.0\n  # given in Python: lam, lam_critic",
            "lam_critic is not listed",
        ),
    ],
)
def test_the_gate_sees_a_comment_that_is_not_about_its_own_node(text, says):
    assert says in " ".join(config_faults(text.replace("PLAIN", "rlhf_lightning.functional.advantage.gae"), "x.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "x:\n  _target_: PLAIN # given in Python: lam_critic\n  gamma: 1.0\n  lam: 0.95",
        "x:\n  _target_: PLAIN\n  # given in Python: lam_critic\n  gamma: 1.0\n  lam: 0.95\ny: 1",
        "x:\n  _target_: PLAIN\n  gamma: 1.0\n  lam: 0.95\n  # given in Python: lam_critic\ny: 1",
        "x:\n  - {_target_: PLAIN, gamma: 1.0, lam: 0.5} # not the default: why; given in Python: lam_critic",
    ],
)
def test_the_gate_finds_the_comment_of_a_node_wherever_it_stands_in_it(text):
    assert config_faults(text.replace("PLAIN", "rlhf_lightning.functional.advantage.gae"), "x.yaml") == []
