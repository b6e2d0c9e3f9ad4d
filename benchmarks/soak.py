"""Kill a pipeline again and again, let it go on, and compare its end with that of a run nobody touched.

python -m benchmarks.soak --kills 200 [--seed 0] [--ranks 2] [--json FILE] [--folder FOLDER] [WORD...]

Every attempt is the command `rlhf-lightning ... resume=auto` in a process of its own, forked from one that has imported
torch and Lightning already, and ended with SIGKILL: after a random delay, or within milliseconds of the appearance of a
temporary folder, which is inside of a save, an export or a removal. With ``--ranks`` it is so many processes under
``trainer=fsdp2``, which are all killed within 50 ms. Words are added to the command, like
``checkpoint.asynchronous=true``, with which a thread writes at those moments.

A step counts as saved when its folder has its name: it must be there after every later kill, and a run that tells of a
step has saved all others before it but one, which may be being written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.soak_traces import done_steps, finished_files, history_rows, saved_steps

STAGES = ("sft", "rank", "reward", "ppo")
WORDS = [
    "logger=none", "resume=auto",
    "task.texts=400", "task.demonstrations=48", "task.prompts=32", "task.heldout_prompts=16",
    "sft.data.batch_size=8", "sft.data.micro_batch_size=4", "rank.max_prompts=16", "rank.data.batch_size=16",
    "sampling.max_new_tokens=6", "reward.data.batch_size=4", "ppo.rollouts=8", "ppo.data.batch_size=8",
    "ppo.settings.num_minibatches=2", "checkpoint.every_n_steps=1", "checkpoint.every_n_minutes=null",
]  # fmt: skip
KILLS_PER_RUN = 20  # then the run may end
SECONDS = 120  # an attempt that takes longer hangs
DURING_SAVES = 0.6  # share of the kills
BEHIND = "steps at most that were done and not saved"
_RESUMED = re.compile(r"stage (\w+): (?:goes on from .*step-(\d+)|(no checkpoint, starting new))")


class Soak:
    """Counts what happens to runs that are killed.

    Args:
        folder: for the task's files, the runs and their logs.
        seed: of the moments.
        ranks: processes of a run.
        more: words of the command.
    """

    def __init__(self, folder: Path, seed: int, ranks: int = 1, more: Sequence[str] = ()) -> None:
        self.folder, self.ranks = folder, ranks
        sharded = ["trainer=fsdp2", f"trainer.devices={ranks}", "trainer.accelerator=cpu"]
        self.words = [*WORDS, *(["trainer=cpu"] if ranks == 1 else sharded), *more]
        self.draw = random.Random(seed)
        self.seconds = 0.0  # that a run takes
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def command(self, run: Path, stages: Sequence[str] = STAGES) -> list[str]:
        """The words of one run."""
        return [*self.words, f"stages=[{','.join(stages)}]", f"output_root={self.folder}", f"run_dir={run}"]

    def uninterrupted(self) -> dict[str, object]:
        """What a run leaves that nobody kills; one before it makes the task's files."""
        for name, stages in (("first", STAGES[:1]), ("uninterrupted", STAGES)):
            run, since = self.folder / name, time.monotonic()
            if _wait(_start(self.command(run, stages), run.with_suffix(".log"), self.ranks)) != 0:
                raise SystemExit(f"the uninterrupted run failed; see {run.with_suffix('.log')}")
            self.seconds = time.monotonic() - since
        return _end(run)

    def kill_one_run(self, run: Path, kills: int, expected: dict[str, object]) -> None:
        """Kill a run at most ``kills`` times, let it end, and compare what it leaves."""
        before: dict[str, int] = {}
        for attempt in range(1000):
            log = run.with_suffix(f".{attempt}.log")
            processes = _start(self.command(run), log, self.ranks)
            code = _wait(processes) if attempt >= kills else self._kill(processes, run)
            self._check_resume(log, before)
            before = self._check_folder(run, before)
            self.counts[f"killed in {_stage(run)}"] += code is None
            if code is not None:
                break
        self.counts["runs"] += 1
        if code != 0:
            self._fault("needed help", f"{log}: exit status {code}")
        elif (found := _end(run)) != expected:
            differing = [name for name in expected if found.get(name) != expected[name]]
            self._fault("other result", f"{run}: {', '.join(differing)}")

    def _kill(self, processes: list[int], run: Path) -> int | None:
        """Kill processes at a random moment; the exit status if the first was done before that."""
        saves = self.draw.randint(1, 8) if self.draw.random() < DURING_SAVES else 0
        end = time.monotonic() + self.draw.uniform(0, self.seconds)
        seen = before = _temporary(run)
        while saves or time.monotonic() < end:
            ended, status = os.waitpid(processes[0], os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status) or (_wait(processes[1:]) if processes[1:] else 0)
            if saves and (new := _temporary(run) - seen):
                seen = seen | new
                saves -= 1
                end = time.monotonic() + self.draw.uniform(0, 0.008)
            time.sleep(0.0002 if saves else 0.001)
        self.draw.shuffle(processes)
        for number, process in enumerate(processes):
            time.sleep(self.draw.uniform(0, 0.05) if number else 0)
            os.kill(process, signal.SIGKILL)
        _wait(processes)
        self.counts["kills"] += 1
        self.counts["kills inside of a save"] += bool(_temporary(run) - before)
        return None

    def _check_resume(self, log: Path, before: dict[str, int]) -> None:
        """Whether the run went on from the newest checkpoint that there was."""
        text = log.read_text(encoding="utf-8", errors="replace")
        for stage, step, from_scratch in _RESUMED.findall(text)[:1]:
            self.counts["resumes"] += not from_scratch
            if lost := before.get(stage, 0) - int(step or 0):
                self._fault("lost steps", f"{log}: {stage} lost {lost}", lost)
        if "skipped the checkpoint" in text:
            self._fault("damaged", f"{log}: a checkpoint was damaged")

    def _check_folder(self, run: Path, before: dict[str, int]) -> dict[str, int]:
        """Every checkpoint must verify, and the newest one must not be older than before."""
        after, damaged = saved_steps(run)
        for path in damaged:
            self._fault("damaged", path)
        for stage, step in before.items():
            if after.get(stage, 0) < step:
                self._fault("lost steps", f"{run}: {stage} had {step}, has {after.get(stage, 0)}", step)
        for stage, step in done_steps(run).items():
            behind = step - after.get(stage, 0)
            self.counts[BEHIND] = max(self.counts[BEHIND], behind)
            if behind > 2:
                self._fault("lost steps", f"{run}: {stage} has done {step} and saved {after.get(stage, 0)}", behind)
        return after

    def _fault(self, name: str, text: str, number: int = 1) -> None:
        self.counts[name] += number
        self.faults.append(text)

    def report(self, seconds: float) -> str:
        """The counts in words."""
        rows = ["kills", "kills inside of a save", *sorted(n for n in self.counts if n.startswith("killed in"))]
        rows += ["runs", "resumes", BEHIND, *_BAD]
        lines = [f"{self.counts[name]:6d}  {name}" for name in rows]
        return "\n".join([*lines, f"{seconds:6.0f}  seconds", *self.faults])


_BAD = ("lost steps", "damaged", "needed help", "other result")


def _start(words: Sequence[str], log: Path, ranks: int) -> list[int]:
    """Fork the processes that are the command; their numbers. The first one writes the log."""
    if ranks == 1:
        return [_fork(words, log, {})]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    return [
        _fork(
            words,
            log if not rank else log.with_suffix(f".{rank}"),
            {**shared, "LOCAL_RANK": str(rank), "RANK": str(rank)},
        )
        for rank in range(ranks)
    ]


def _fork(words: Sequence[str], log: Path, surroundings: Mapping[str, str]) -> int:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    process = os.fork()
    if process:
        os.close(stream)
        return process
    code: object = 1
    try:
        from lightning.pytorch.utilities import rank_zero_only

        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.environ.update(surroundings)
        rank_zero_only.rank = int(surroundings.get("RANK", "0"))  # Lightning was imported without
        sys.argv = ["rlhf-lightning", *words]
        from rlhf_lightning.cli.main import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _wait(processes: Sequence[int]) -> int | None:
    """The exit status of the first that failed, or 0; None for those that were killed."""
    end, left, codes = time.monotonic() + SECONDS * len(processes), list(processes), [0]
    while left and time.monotonic() < end:
        ended, status = os.waitpid(left[0], os.WNOHANG)
        if ended:
            codes.append(os.waitstatus_to_exitcode(status))
            left.pop(0)
        time.sleep(0 if ended else 0.01)
    for process in left:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    failed = next((code for code in codes if code), 124 if left else 0)
    return None if failed == -signal.SIGKILL else failed


def _temporary(run: Path) -> set[str]:
    """The temporary folders that a run has made and not renamed or removed."""
    places = [run, *(run / "checkpoints" / stage for stage in STAGES)]
    found: set[str] = set()
    for place in places:
        try:
            with os.scandir(place) as entries:
                found |= {entry.name for entry in entries if entry.name.startswith(".tmp-") and entry.is_dir()}
        except OSError:
            continue
    return found


def _stage(run: Path) -> str:
    """The stage that has not handed over its result yet."""
    done = {file.parent.name for file in run.glob("*/provenance.json")}
    return next((stage for stage in STAGES if {"rank": "rankings"}.get(stage, stage) not in done), "the end")


def _end(run: Path) -> dict[str, object]:
    """Everything that must be the same: files of the stages and rows of the histories."""
    rows = {f"history/{file.name}": history_rows(file) for file in sorted((run / "history").glob("*.csv"))}
    return {**finished_files(run), **rows}


def _import_all() -> None:
    """What an attempt would have to import, most of its time; forked processes have it."""
    import torch

    import rlhf_lightning.cli.main
    import rlhf_lightning.modules
    import rlhf_lightning.stages.pipeline
    import rlhf_lightning.tasks.miniature.prepare  # noqa: F401

    torch.set_num_threads(1)


def main(arguments: Sequence[str]) -> int:
    """Run until so many kills are done; exit status 0 where nothing was lost, damaged, stuck or different."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("words", nargs="*")
    given = parser.parse_args(arguments)
    from rlhf_lightning.console.streams import quiet

    quiet()
    _import_all()
    with tempfile.TemporaryDirectory() as place:
        folder = (given.folder or Path(place)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        soak, since = Soak(folder, given.seed, given.ranks, given.words), time.monotonic()
        expected = soak.uninterrupted()
        while (left := given.kills - soak.counts["kills"]) > 0:
            soak.kill_one_run(folder / f"run-{soak.counts['runs']:03d}", min(left, KILLS_PER_RUN), expected)
        seconds = time.monotonic() - since
    print(soak.report(seconds))
    if given.json:
        given.json.write_text(json.dumps({**soak.counts, "seconds": seconds, "faults": soak.faults}) + "\n")
    return int(any(soak.counts[name] for name in _BAD))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
