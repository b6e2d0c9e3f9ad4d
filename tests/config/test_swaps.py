"""A part is swapped by one word, whatever keys the part before it had."""

import os

import pytest

from rlhf_lightning.config.compose import compose, safe_instantiate
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules import RewardModule


class Nothing:
    """Takes no argument."""

    def __init__(self) -> None:
        self.built = True


class Engine:
    def __init__(self, micro_batch_size: int = 4) -> None:
        self.micro_batch_size = micro_batch_size


class Anything:
    def __init__(self, **given) -> None:
        self.given = given


class Mine(RewardModule):
    """Takes what its base takes."""


NOTHING = f"{__name__}.Nothing"
SLOTS = [
    ("ppo", "ppo.advantage"),
    ("ppo", "ppo.loss"),
    ("ppo", "ppo.optimizer"),
    ("ppo", "ppo.scheduler"),
    ("ppo", "ppo.module"),
    ("ppo", "ppo.best_policy"),
    ("ppo", "rollout"),
    ("ppo", "kl"),
    ("ppo", "scorer"),
    ("ppo", "judge"),
    ("ppo", "callbacks.progress"),
    ("ppo", "callbacks.tensorboard"),
    ("ppo", "logger.tensorboard"),
    ("dpo", "dpo.loss"),
    ("dpo", "dpo.module"),
    ("kto", "kto.loss"),
    ("reward", "reward.loss"),
    ("reward", "reward.module"),
    ("sft", "sft.optimizer"),
    ("sft", "sft.scheduler"),
    ("best_of_n", "best_of_n.sft.module"),
]


def at(tree, key):
    for name in key.split("."):
        tree = tree[name]
    return tree


@pytest.mark.parametrize(("stage", "key"), SLOTS)
def test_a_part_without_arguments_can_be_put_into_every_slot(stage, key):
    node = at(compose([f"stage={stage}", f"{key}._target_={NOTHING}"]), key)
    built = safe_instantiate(node, trusted=[NOTHING])
    assert (built() if "_partial_" in node else built).built


def test_keys_that_the_new_part_takes_stay():
    target = f"{__name__}.Engine"
    config = compose(["stage=ppo", f"rollout._target_={target}"])
    assert config["rollout"] == {"_target_": target, "micro_batch_size": None}


def test_what_takes_any_key_keeps_all_of_them():
    config = compose(["stage=ppo", f"rollout._target_={__name__}.Anything"])
    assert set(config["rollout"]) == {
        "_target_",
        "compact_below",
        "micro_batch_size",
        "dtype",
        "share_prefill",
        "look_every",
        "gather",
    }


def test_a_subclass_keeps_the_keys_of_its_base():
    config = compose(["stage=reward", f"reward.module._target_={__name__}.Mine", "reward.module.head_std=0.1"])
    assert {"init_head", "head_std", "num_layers"} <= set(config["reward"]["module"])


def test_a_typed_key_is_never_dropped():
    node = compose(["stage=ppo", f"kl._target_={NOTHING}", "kl.target=3"])["kl"]
    assert node == {"_target_": NOTHING, "target": 3}
    with pytest.raises(ConfigError, match=r"ppo\.optimizer\.eps: torch\.optim\.SGD takes no eps"):
        compose(["stage=ppo", "ppo.optimizer._target_=torch.optim.SGD", "ppo.optimizer.eps=0.1"])


def test_a_limit_of_a_step_that_the_swapped_module_does_not_take_is_an_error():
    words = ["stage=sft", f"sft.module._target_={NOTHING}"]
    assert compose(words)["sft"]["max_grad_norm"] == 1.0
    with pytest.raises(ConfigError, match=rf"sft\.max_grad_norm=2: {NOTHING} takes no max_grad_norm"):
        compose([*words, "sft.max_grad_norm=2"])


def test_keys_of_the_shipped_part_need_no_plus():
    config = compose(["stage=ppo", "ppo.loss.clip_range_high=0.28", "rollout.micro_batch_size=8"])
    assert config["ppo"]["loss"]["clip_range_high"] == 0.28
    assert config["rollout"]["micro_batch_size"] == 8


@pytest.mark.parametrize(
    "target",
    [
        "rlhf_lightning.optim.schedules.constant",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "transformers.get_linear_schedule_with_warmup",
    ],
)
def test_schedules_of_other_packages_are_read_without_importing_them(target):
    node = compose(["stage=sft", f"sft.scheduler._target_={target}"])["sft"]["scheduler"]
    assert set(node) <= {"_target_", "_partial_", "warmup_ratio"}
    assert ("warmup_ratio" in node) == target.startswith("rlhf_lightning")


def experiment(folder, text):
    file = folder / "experiment" / "swap.yaml"
    file.parent.mkdir()
    file.write_text(f"# @package _global_\n{text}")
    return ["stage=ppo", f"hydra.searchpath=[file://{folder}]", "experiment=swap", f"trusted_targets=[{__name__}]"]


def test_a_file_swaps_as_the_command_line_does(tmp_path):
    config = compose(experiment(tmp_path, f"rollout: {{_target_: {__name__}.Engine, micro_batch_size: 2}}"))
    assert config["rollout"] == {"_target_": f"{__name__}.Engine", "micro_batch_size": 2}


def test_a_key_that_the_swapping_file_itself_misspells_is_an_error(tmp_path):
    words = experiment(tmp_path, "ppo: {optimizer: {_target_: torch.optim.SGD, momentun: 0.9, lr: 0.1}}")
    with pytest.raises(ConfigError, match=r"takes no momentun.*momentum"):
        compose(words)


def test_a_key_for_another_part_than_the_chosen_one_is_an_error_as_before(tmp_path):
    with pytest.raises(ConfigError, match="takes no coef"):
        compose(experiment(tmp_path, "kl: {coef: 0.1}"))


def test_a_part_chosen_anew_by_its_own_name_loses_nothing():
    config = compose(["stage=sft", "sft.optimizer._target_=torch.optim.AdamW", "sft.optimizer.lr=0.5"])
    assert config["sft"]["optimizer"]["weight_decay"] == 0.0


def test_an_edit_of_a_part_is_seen_without_a_restart(tmp_path, monkeypatch):
    line = ["stage=ppo", "rollout._target_=edited_parts.engines.Mine"]
    assert "micro_batch_size" in compose(line)["rollout"]  # nobody can say yet what it takes
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited_parts").mkdir()
    file = tmp_path / "edited_parts" / "engines.py"
    for number, argument in enumerate(["dtype", "micro_batch_size"]):
        file.write_text(f"class Mine:\n    def __init__(self, {argument}=None): ...\n")
        os.utime(file, ns=(number, number))  # two edits within one tick of the clock of the disk
        assert set(compose(line)["rollout"]) == {"_target_", argument}


def test_a_class_may_have_the_name_of_its_base_and_is_read_by_its_own_arguments(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    base = "from rlhf_lightning.modules.sft import SFTModule as Mine"
    own = "    def __init__(self, model, rate=1): ...\n"
    names = {
        "same": f"{base}\nclass Mine(Mine):\n{own}",
        "again": f"{base}\nclass Middle(Mine): ...\nclass Mine(Middle):\n{own}",
    }
    for name, text in names.items():
        (tmp_path / f"named_{name}.py").write_text(text)
        line = ["stage=sft", f"sft.module._target_=named_{name}.Mine", "trusted_targets=[named_same,named_again]"]
        assert compose([*line, "+sft.module.rate=2"])["sft"]["module"] == {"_target_": f"named_{name}.Mine", "rate": 2}


def test_a_stage_of_the_user_that_is_typed_wins_over_the_list_of_an_experiment(tmp_path):
    (tmp_path / "stage").mkdir()
    mine = {"mine": "defaults: [ppo, _self_]\nstages: [best_of_n, ppo]\n", "alike": "defaults: [ppo]\n"}
    for name, text in mine.items():
        (tmp_path / "stage" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    words = experiment(tmp_path, "stages: [sft, ppo]")
    assert compose(["stage=mine", *words[1:]])["stages"] == ["best_of_n", "ppo"]
    assert compose(["stage=alike", *words[1:]])["stages"] == ["ppo"]
    assert compose(["stage=mine", *words[1:], "stages=[ppo]"])["stages"] == ["ppo"]
    assert compose(words[1:])["stages"] == ["sft", "ppo"]


def test_a_stage_that_is_typed_runs_alone_also_where_the_experiment_lists_others():
    words = ["experiment=hh_smollm2", "data.root=x"]
    assert compose([*words, "stage=reward"])["stages"] == ["reward"]
    assert compose([*words, "stage=dpo"])["dpo"]["policy"] == "runs/assets/smollm2"
    assert compose([*words, "stage=pipeline"])["stages"][0] == compose(words)["stages"][0] == "sft"
    assert compose([*words, "stage=pipeline", "stages=[sft,dpo]"])["stages"] == ["sft", "dpo"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"class Mine:\n    def __init__(self: ...\n", 2),  # a bracket is open
        ("x = 1\nclass Mine: ...  # \u00e9\n".encode("latin-1"), 1),
    ],
)
def test_a_file_of_a_part_that_is_no_python_is_named(tmp_path, monkeypatch, text, line):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"unread_part_{line}.py").write_bytes(text)
    with pytest.raises(ConfigError, match=rf"unread_part_{line}\.py:{line}: cannot be read as Python: "):
        compose(["stage=ppo", f"rollout._target_=unread_part_{line}.Mine"])


def test_any_python_of_a_part_may_be_read(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    lines = "def require(seed): ...\ndef mine(name='\u00e9', odd={[]: 1}):\n    require(name)\n"
    (tmp_path / "any_part.py").write_bytes(b"# coding: latin-1\n" + lines.encode("latin-1"))
    config = compose(["stage=ppo", "rollout._target_=any_part.mine", "+rollout.name=x"])
    assert config["rollout"] == {"_target_": "any_part.mine", "name": "x"}
