"""What the stages of a run share."""

import copy
import hashlib
import re

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.profilers import SimpleProfiler

from rlhf_lightning.callbacks import Samples
from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.config import compose as compose_module
from rlhf_lightning.config import judging
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.modules import PPOModule, SFTModule
from rlhf_lightning.stages import Run, pipeline
from rlhf_lightning.stages.device import settled
from rlhf_lightning.stages.pipeline import run
from rlhf_lightning.stages.resume import RunFolder
from tests.support import phases, small_pipeline, tiny


def test_provenance_names_every_file_of_a_list_by_its_checksum(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    files = [str(tmp_path / name) for name in ("a", "b")]
    run = Run(compose(["stage=sft"]))
    parents = run.provenance("sft", {}, run.parents({"data": files, "policy": None}))["parents"]
    expected = [{"path": file, "sha256": hashlib.sha256(file[-1].encode()).hexdigest()} for file in files]
    assert parents == {"data": expected}


def test_provenance_names_the_rows_in_a_folder_by_their_checksums(tmp_path):
    (tmp_path / "rows").mkdir()
    for name in ("a.jsonl", "b.csv", "notes.txt"):
        (tmp_path / "rows" / name).write_text(name)
    run = Run(compose(["stage=sft"]))
    parents = run.provenance("sft", {}, run.parents({"data": str(tmp_path / "rows")}))["parents"]
    expected = {n: {"sha256": hashlib.sha256(n.encode()).hexdigest(), "bytes": len(n)} for n in ("a.jsonl", "b.csv")}
    assert parents["data"]["files"] == expected


def test_a_stage_without_data_is_refused_before_anything_runs():
    config = compose(["stage=sft", "task=custom", "model.path=m"])
    with pytest.raises(ConfigError, match=r"sft\.data\.train is not set; add data\.demonstrations=FILE"):
        run(config)


def test_a_config_is_judged_once_and_again_only_if_it_was_changed(monkeypatch):
    judged, complete = [], []
    check_config, check_complete = judging.check_config, judging.check_complete
    monkeypatch.setattr(compose_module, "check_config", lambda c: (judged.append(c), check_config(c)))
    monkeypatch.setattr(judging, "check_config", lambda c: (judged.append(c), check_config(c)))
    monkeypatch.setattr(judging, "check_complete", lambda c: (complete.append(c), check_complete(c)))
    monkeypatch.setattr(pipeline, "Run", lambda config: pytest.skip("begins"))

    def calls(config):
        with pytest.raises(pytest.skip.Exception):
            run(config)
        found = len(judged), len(complete)
        judged.clear(), complete.clear()
        return found

    config = compose(["stage=sft"])
    assert calls(config) == (1, 1)
    assert calls(dict(config)) == (1, 1)
    assert calls(judging.judged(config)) == (0, 1)  # as the command does it
    changed = compose(["stage=sft"])
    changed["sft"]["max_epochs"] = 2
    assert calls(changed) == (2, 1)
    changed["sft"]["max_epochs"] = -1
    with pytest.raises(ConfigError, match=r"sft\.max_epochs=-1"):
        run(changed)


def test_any_node_of_the_trainer_is_built():
    profiler = "+trainer.profiler={_target_: lightning.pytorch.profilers.SimpleProfiler}"
    plugin = "+trainer.plugins=[{_target_: lightning.pytorch.plugins.io.TorchCheckpointIO}]"
    found = Run(compose(["stage=sft", profiler, plugin])).predictor()
    assert isinstance(found.profiler, SimpleProfiler)
    assert isinstance(found.strategy.checkpoint_io, TorchCheckpointIO)


def test_a_judge_that_is_not_there_is_known_before_the_first_stage(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")  # reading it would be another error
    files = dict.fromkeys(("demonstrations", "prompts", "prompts_validation"), tmp_path / "rows.jsonl")
    data = [f"data.{name}={file}" for name, file in files.items()]
    config = compose(
        [
            "task=custom",
            "model.path=no/such/model",
            *data,
            "judge=function",
            "judge.function=nowhere.fn.a",
            f"run_dir={tmp_path}/r",
        ]
    )
    with pytest.raises(ConfigError, match=r"judge\.function: cannot import nowhere\.fn"):
        run(config)
    with pytest.raises(
        CheckpointError, match="no/such/model: no such folder"
    ):  # a stage that asks nobody does not look for the judge
        run(config | {"stages": ["sft"], "run_dir": f"{tmp_path}/s"})


def test_a_run_that_is_stopped_names_the_stages_that_are_complete(tmp_path):
    config = compose([f"run_dir={tmp_path}"])
    assert "; no step" not in RunFolder(config).resume_hint()
    write_folder(tmp_path / "sft", lambda folder: None, {"stage": "sft"})
    assert RunFolder(config).resume_hint().startswith("no step was saved, but sft is complete. Go on with")


@pytest.mark.parametrize(
    ("override", "message"),
    [("+trainer.gradient_clip_val=1.0", "max_grad_norm"), ("trainer.strategy=fsdp", "use trainer=fsdp2")],
)
def test_trainer_arguments_that_would_mislead_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        compose(["stage=ppo", override])


@pytest.fixture(scope="module")
def composed():
    return compose(["task=miniature", "run_dir=runs/x"])


@pytest.fixture
def config(composed):
    """A config to be changed by hand."""
    return copy.deepcopy(composed)


@pytest.mark.parametrize(
    "key", ["seed", "stages", "judge", "task", "run_dir", "sft.scheduler", "ppo.critic", "ppo.loss"]
)
def test_a_key_that_was_taken_out_by_hand_is_named(key, config):
    section, _, name = key.rpartition(".")
    del (config[section] if section else config)[name]
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: is missing"):
        pipeline.run(config)


@pytest.mark.parametrize("key", ["model", "trainer", "task", "sft.data", "ppo.settings", "ppo.loss", "reward.loss"])
def test_a_word_in_the_place_of_a_part_is_named(key, config):
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = "mine"
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}=mine: must be a "):
        pipeline.run(config)


@pytest.mark.parametrize("key", ["run_dir", "sft.output", "ppo.policy"])
def test_a_number_in_the_place_of_a_folder_is_named(key, config):
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = 17
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}=17: must be text"):
        pipeline.run(config)


class NoStage:
    """Makes an object, and cannot be called with a run."""


def test_a_stage_that_cannot_be_called_with_the_run_is_refused_before_the_first(tmp_path):
    words = [*small_pipeline.inputs(tmp_path), "stages=[sft,tests.stages.test_run.NoStage]", "+NoStage={a: 1}"]
    config = compose([*words, "trusted_targets=[tests]", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(
        ConfigError, match=r"stages: tests\.stages\.test_run\.NoStage is called with the run and nothing"
    ):
        pipeline.run(config)
    assert not (tmp_path / "run" / "sft").exists()


class OwnSteps(SFTModule):
    """Takes the loss without the library's sums for the log, and an optimizer without a schedule."""

    def training_step(self, batch, batch_idx):
        loss = self.training_loss(batch)[0]
        self.log("train/mine", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.policy.parameters(), lr=0.05)


class OwnOptimizer(PPOModule):
    """Two parameter groups without names."""

    def configure_optimizers(self):
        groups = [{"params": list(model.parameters())} for model in (self.policy, self.critic)]
        return torch.optim.SGD(groups, lr=0.01)


OWN = {"sft": "OwnSteps", "ppo": "OwnOptimizer"}


@pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader. but have no")  # PPO is judged by `evaluate`
def test_modules_with_steps_and_optimizers_of_their_own_are_trained(tmp_path):
    words = [word for word in small_pipeline.prepare(tmp_path) if not word.startswith("stages=")]
    modules = [f"{stage}.module._target_=tests.stages.test_run.{name}" for stage, name in OWN.items()]
    scorer = ["scorer=function", "scorer.function=tests.support.phases.praise", "scorer.isolate=false"]
    more = [*modules, *scorer, "stages=[sft,ppo]", "ppo.critic=policy", "ppo.rollouts=1", "trusted_targets=[tests]"]
    metrics = run(compose([*words, *more, f"run_dir={tmp_path / 'run'}"]))
    assert "train/mine" in metrics and "train/loss" not in metrics
    assert metrics["grad_norm/1"] > 0


def test_a_judge_that_is_a_model_is_not_loaded_for_the_tables_of_samples(tmp_path):
    words = [
        "stage=sft",
        "logger=none",
        f"run_dir={tmp_path}",
        "judge=reward_model",
        "judge.model.path=/nowhere/at/all",
    ]
    trainer = Run(compose(words)).trainer("sft")
    assert [part.judge for part in trainer.callbacks if isinstance(part, Samples)] == [None]


HALF = "{_target_: rlhf_lightning.training.precision.HalfWeights, precision: bf16-true}"


@pytest.mark.parametrize(
    ("bfloat16", "words", "precision", "products"),
    [
        (None, [], "32-true", None),
        (True, [], "bf16-mixed", "high"),
        (True, ["matmul_precision=highest"], "bf16-mixed", "highest"),
        (False, [], "32-true", "high"),
        (True, ["trainer.precision=32-true"], "32-true", "high"),
        (True, ["trainer.accelerator=cpu"], "32-true", None),
        (True, [f"+trainer.plugins=[{HALF}]"], None, "high"),
    ],
)
def test_precision_is_what_the_device_is_good_at(monkeypatch, bfloat16, words, precision, products):
    set_to = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bfloat16 is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    config = compose(["stage=sft", "trainer.accelerator=auto", *words])
    found = settled(config)
    assert found["trainer"]["precision"] == precision and set_to == [products] * (products is not None)
    assert found.stands() and {**found, "trainer": 0} == {**config, "trainer": 0}


def test_a_callback_that_is_null_is_left_out():
    run = Run(compose(["stage=sft", "trainer=cpu", "logger=none", "callbacks.guard=null", "callbacks.progress=null"]))
    names = [type(part).__name__ for part in run.trainer("sft", max_epochs=1).callbacks]
    assert "ValidateFirst" in names and not {"RewardHackingGuard", "ProgressLine"} & set(names)
    assert "ProgressLine" not in [type(part).__name__ for part in run.predictor("rank").callbacks]


class Unfreeze(BaseFinetuning):
    """As Lightning's pages show it."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.policy)


def test_a_users_class_is_refused_as_what_it_is_made_from():
    node = f"+callbacks.mine._target_={__name__}.Unfreeze"
    run = Run(compose(["stage=sft", "trainer=cpu", "logger=none", node, f"trusted_targets=[{__name__}]"]))
    with pytest.raises(ConfigError, match=r"^callbacks\.mine: BaseFinetuning looks for layers .*model\.freeze_below=N"):
        run.trainer("sft", max_epochs=1)


def test_a_fit_that_ends_before_its_first_step_says_what_ended_it(tmp_path):
    folder = phases.write(tmp_path)
    for part in (tiny.policy(), tiny.tokenizer()):
        part.save_pretrained(folder / "model")
    early = "{_target_: rlhf_lightning.callbacks.StopEarly, monitor: val/loss, stopping_threshold: 1000}"
    words = [
        "stage=sft", "task=custom", "logger=none", "trainer=cpu", f"model.path={folder / 'model'}", "sft.max_epochs=1",
        f"data.demonstrations={folder / 'demonstrations.jsonl'}", "sft.data.batch_size=2",
        "sft.data.validation_fraction=0.5", f"+callbacks.early={early}", f"run_dir={folder / 'run'}",
    ]  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"sft: ended before its first step, .*: StopEarly: Stopping threshold reached"
    ):
        run(compose(words))
