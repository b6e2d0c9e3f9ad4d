"""Case 16: whatever the step a run is stopped at, it ends where it would have ended, to the last bit."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import lightning
import pytest

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO
from rlhf_lightning.modules.base import RLHFModule
from rlhf_lightning.stages import pipeline
from tests.gates.gate_sources import ROOT
from tests.support import jobs, pair, phases, pipeline_worker, small_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


def check(phase, steps, folder):
    """Run the job of a phase, resume it from every checkpoint, and compare; returns how many those were."""
    data, run = jobs.write(folder), folder / "run"
    whole = jobs.tell(phase, steps, data, run)
    points = jobs.points(run)
    assert len(points) == steps - 1 and len(set(whole.order)) > 3 and len(whole.history) > steps
    for point in points:
        rest = jobs.take_up(phase, steps, data, run, point, folder / point.name)
        assert rest.order == whole.order[len(whole.order) - len(rest.order) :] != [], point.name
        assert rest._replace(order=whole.order) == whole, point.name
    return len(points)


@pytest.mark.parametrize("phase", jobs.PHASES)
def test_case_16_a_job_resumed_after_every_step_ends_the_same(phase, tmp_path):
    assert check(phase, 4, tmp_path) == 3  # within an epoch of two steps, at its end, and within the next


@pytest.mark.soak
@pytest.mark.parametrize("phase", jobs.PHASES)
def test_case_16_a_job_taken_up_after_each_of_forty_steps_ends_the_same(phase, tmp_path):
    assert check(phase, 40, tmp_path) == 39


def two_ranks(folder, strategy, steps, every, *phases):
    """Take up the jobs of the phases with two processes; how many places there were in all."""
    jobs.write(folder)
    words = [str(folder), strategy, str(steps), str(every), *phases]
    pair.launch("tests.support.jobs_worker", *words, log=folder, seconds=3000)
    found = []
    for name in [f"{phase}.{rank}.json" for phase in phases for rank in (0, 1)]:
        assert (folder / name).is_file(), (folder / f"rank{name.split('.')[1]}.log").read_text()[-3000:]
        found.append(json.loads((folder / name).read_text()))
    assert [entry for entry in found if entry["other"]] == []
    return sum(entry["places"] for entry in found) // 2


@pytest.mark.soak
@pytest.mark.parametrize("phase", jobs.PHASES)
def test_case_16_two_processes_take_up_a_job_after_each_of_forty_steps_and_end_the_same(phase, tmp_path):
    assert two_ranks(tmp_path, "ddp", 40, 1, phase) == 39


@pytest.mark.soak
def test_case_16_two_sharded_processes_take_up_jobs_and_end_the_same(tmp_path):
    assert two_ranks(tmp_path, "fsdp2", 12, 3, "sft", "reward", "dpo", "ppo") == 12


def test_saving_takes_at_most_five_percent_of_the_checkpoint_in_memory(tmp_path):
    command = [sys.executable, "-m", "tests.support.memory_worker", tmp_path, "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    for size, grown in [map(int, line.split()) for line in done.stdout.splitlines()]:
        assert size > 120e6 and grown < 0.05 * size


class Stops:
    """Ends a run at every place between two stages, at each of them once."""

    def __init__(self):
        self.seen = []

    def at(self, place):
        if place not in self.seen:
            self.seen.append(place)
            raise SystemError(place)

    def stage(self, name, run_stage):
        def stopped(run):
            self.at(f"before {name}")
            metrics = run_stage(run)
            self.at(f"after {name}")
            return metrics

        return stopped


def assert_same_histories(folder):
    """The metrics of the whole run and of the one that was stopped."""
    for stage in ("sft", "reward", "ppo"):
        rows = [jobs.history(folder / run / "history" / f"{stage}.csv") for run in ("whole", "stopped")]
        assert rows[0] == rows[1] and len(rows[0]) > 2


def test_case_16_a_pipeline_stopped_between_its_stages_ends_the_same(tmp_path, monkeypatch):
    words = small_pipeline.prepare(tmp_path)
    small_pipeline.go(words, tmp_path / "whole")
    stops, export = Stops(), RLHFModule.export
    load = pipeline.load_stage
    monkeypatch.setattr(
        pipeline,
        "load_stage",
        lambda run, entry: replace(found := load(run, entry), run=stops.stage(found.name, found.run)),
    )
    monkeypatch.setattr(
        RLHFModule,
        "export",
        lambda self, folder, *given: (stops.at(f"export {folder}"), export(self, folder, *given))[1],
    )
    while True:
        try:
            small_pipeline.go([*words, "resume=auto"], tmp_path / "stopped")
            break
        except SystemError:
            continue
    assert [place.split()[0] for place in stops.seen] == ["before", "export", "after"] * 3
    assert small_pipeline.exported(tmp_path / "stopped") == small_pipeline.exported(tmp_path / "whole")
    assert_same_histories(tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_case_16_two_processes_of_a_pipeline_die_at_every_place_of_it_and_end_the_same(trainer, tmp_path):
    words = small_pipeline.prepare(tmp_path)
    words[words.index("trainer=cpu")] = f"trainer={trainer}"
    words += ["trainer.accelerator=cpu", "trainer.devices=2", "resume=auto"]

    def go(name, place):
        log, run = tmp_path / f"{name}.", f"run_dir={tmp_path / name}"
        codes = pair.launch("tests.support.pipeline_worker", str(log), place, *words, run, log=tmp_path)
        return codes, (tmp_path / "rank0.log").read_text()[-3000:]

    codes, told = go("whole", "none")
    assert codes == [0, 0], told
    places = (tmp_path / "whole.0").read_text().splitlines()
    for place in places:
        codes, told = go("stopped", place)
        assert pipeline_worker.DIED in codes, f"{place}: {told}"
    codes, told = go("stopped", "none")
    assert codes == [0, 0], told
    assert len([place for place in places if place.startswith("step")]) == len(places) - 9 > 9
    assert small_pipeline.exported(tmp_path / "stopped") == small_pipeline.exported(tmp_path / "whole")
    assert_same_histories(tmp_path)


class Places(DurableCheckpointIO):
    """Counts the saves by the micro-batches of the epoch that were done."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.found[checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]] += 1


class DueWithin(lightning.Callback):
    """A checkpoint becomes due in the middle of the second step of an epoch."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        saver = next(part for part in trainer.callbacks if isinstance(part, DurableCheckpoint))
        if batch_idx == 2 and trainer.current_epoch == 0:
            saver._since -= 3600


@pytest.mark.parametrize(
    ("minutes", "others", "found"),
    [(1e-9, [], {2: 3, 4: 2}), (60, [DueWithin()], {4: 1})],  # the end of the last epoch is left to the export
    ids=["always due", "due within a step"],
)
def test_case_16_no_trigger_saves_between_two_micro_batches_of_a_step(tmp_path, minutes, others, found):
    module, data = jobs.sft(jobs.write(tmp_path), 6)
    io, saver = Places(), DurableCheckpoint(tmp_path / "checkpoints", every_n_minutes=minutes, at_end=False)
    fit = phases.trainer(data.accumulate_for(1), 3, [*others, saver], checkpointing=True, plugins=[io])
    fit.fit(module, datamodule=data)
    assert io.found == found  # of four micro-batches an epoch, two make a step
