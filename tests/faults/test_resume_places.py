"""Case 16 at the places where Lightning itself would go on otherwise: validation within an epoch, its end, a stop."""

import lightning
import pytest

from rlhf_lightning import signals
from rlhf_lightning.callbacks.steps import steps_done
from rlhf_lightning.checkpoint.provenance import read_sealed, sha256
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.modules.base import RLHFModule
from rlhf_lightning.stages.pipeline import run as run_pipeline
from tests.support import jobs, small_pipeline

STOP = "{_target_: tests.support.small_pipeline.Stop, after: 3}"
EARLY = "+callbacks.early={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, mode: max}"
SURROUNDINGS = {
    "validation within the epoch": ["+trainer.val_check_interval=2"],
    "validation within a step": ["sft.data.micro_batch_size=1", "+trainer.val_check_interval=3"],
    "validation across epochs": ["+trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=2"],
    "a limit of steps": ["+trainer.val_check_interval=2", "+trainer.max_steps=8"],
    "early stopping": [EARLY],
}


class Tell(lightning.Callback):
    """A signal comes while a step ends."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *given):
        if steps_done(trainer) == self.step and not signals.received():
            signals.adopt(15)


class Enough(lightning.Callback):
    """Ends the fit after two steps, but only where it saw them."""

    seen = 0

    def on_train_batch_end(self, trainer, *given):
        self.seen += 1
        trainer.should_stop = self.seen == 2


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    pipeline = small_pipeline.prepare(tmp_path_factory.mktemp("data"))
    own = ["stage=sft", "stages=[sft]", "sft.max_epochs=3", "sft.data.validation_fraction=0.25"]
    kept = [word for word in pipeline if word.split(".")[0] not in ("reward", "ppo", "stage=pipeline")]
    return [*own, *(w for w in kept if not w.startswith(("stages", "sft.max_epochs"))), "trusted_targets=[tests]"]


def go(words, folder):
    return run_pipeline(compose([*words, f"run_dir={folder}", "resume=auto"]))


def left(folder):
    """The exported weights and the history without its clocks."""
    return sha256(folder / "sft" / "model.safetensors"), jobs.history(folder / "history" / "sft.csv")


@pytest.mark.parametrize("surrounding", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_case_16_a_run_that_stops_again_and_again_ends_the_same(words, tmp_path, surrounding):
    words = [*words, *surrounding]
    go(words, tmp_path / "whole")
    stops = 0
    while stops < 9:
        try:
            go([*words, f"+callbacks.stop={STOP}"], tmp_path / "stopped")
            break
        except SystemError:
            stops += 1
    assert stops > 1
    assert left(tmp_path / "stopped") == left(tmp_path / "whole")


@pytest.mark.parametrize("patience", [0, 60], ids=["validation given up", "validation completed"])
def test_case_16_a_signal_in_a_step_that_ends_with_a_validation(words, tmp_path, patience):
    words = [*words, f"checkpoint.grace_period_seconds={patience}"]
    go(words, tmp_path / "whole")
    tell = "+callbacks.tell={_target_: tests.faults.test_resume_places.Tell, step: 3}"
    with pytest.raises(signals.Stopped, match=r"saved up to .*step-000003"), signals.watched():
        go([*words, tell], tmp_path / "told")
    go(words, tmp_path / "told")
    assert left(tmp_path / "told") == left(tmp_path / "whole")


def test_case_29_a_run_goes_on_with_smaller_micro_batches_behind_the_same_rows(words, tmp_path):
    words = [*words, "sft.data.batch_size=4", "sft.data.micro_batch_size=4"]
    go(words, tmp_path / "whole")
    with pytest.raises(SystemError):
        go([*words, f"+callbacks.stop={STOP}"], tmp_path / "run")
    go([*words[:-1], "sft.data.micro_batch_size=1"], tmp_path / "run")
    [names, *expected], [_, *found] = (left(tmp_path / folder)[1] for folder in ("whole", "run"))
    assert len(found) == len(expected) == 1 + 3 * (2 + 1)  # steps and validations
    for row, other in zip(found, expected, strict=True):
        for name, cell, wanted in zip(names, row, other, strict=True):
            if name != "train/padding":  # there is none in a micro-batch of one row
                assert cell == wanted or float(cell) == pytest.approx(float(wanted), rel=1e-4), name


def test_case_16_a_fit_that_a_callback_has_ended_is_not_trained_on(words, tmp_path, monkeypatch):
    words = [*words, "+callbacks.enough={_target_: tests.faults.test_resume_places.Enough}"]
    go(words, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(RLHFModule, "export", lambda *given: exec("raise SystemError('killed')"))
        go([*words, "checkpoint.keep=9"], tmp_path / "killed")
    names = [path.name for path in (tmp_path / "killed" / "checkpoints" / "sft").iterdir()]
    assert names == ["step-000001"]  # the next attempt does the second step again, and ends there


def test_case_16_a_refused_checkpoint_leaves_config_and_record_as_they_were(words, tmp_path, monkeypatch):
    with pytest.raises(SystemError):
        go([*words, f"+callbacks.stop={STOP}"], tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("config.yaml", "run.json")}
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="refused"):
        patch.setattr(
            RLHFModule, "on_load_checkpoint", lambda *given: (_ for _ in ()).throw(CheckpointError("refused"))
        )
        go([*words, "threads=1"], tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    go([*words, "threads=1"], tmp_path)
    assert "threads: 1" in (tmp_path / "config.yaml").read_text()
    assert read_sealed(tmp_path / "run.json")["state"] == "finished"


@pytest.mark.filterwarnings("ignore:predict returned None")
def test_case_16_best_of_n_goes_on_in_its_fine_tuning(tmp_path):
    given = small_pipeline.prepare(tmp_path)
    words = [
        "stage=best_of_n", "trusted_targets=[tests]", "scorer=function",
        "scorer.function=tests.support.phases.praise", "scorer.isolate=false", "best_of_n.n=16",
        "best_of_n.sampling.max_new_tokens=30", "best_of_n.data.max_prompt_length=32",
        "best_of_n.sft.data.batch_size=2", "best_of_n.sft.data.validation_fraction=0", "best_of_n.sft.max_epochs=2",
        *(w for w in given if w.startswith(("task", "logger", "trainer", "threads", "model", "data.prompts", "+"))),
    ]  # fmt: skip
    whole = go(words, tmp_path / "whole")
    with pytest.raises(SystemError):
        go([*words, f"+callbacks.stop={STOP}"], tmp_path / "stopped")
    file = tmp_path / "stopped" / "demonstrations" / "demonstrations.jsonl"
    selected = file.stat().st_mtime_ns
    found = go(words, tmp_path / "stopped")
    assert found.keys() == whole.keys() and file.stat().st_mtime_ns == selected
    weights = [sha256(tmp_path / run / "best_of_n" / "model.safetensors") for run in ("whole", "stopped")]
    assert weights[0] == weights[1]
