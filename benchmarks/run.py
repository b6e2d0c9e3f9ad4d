"""How fast the stages are, alone and against a peer.

    python -m benchmarks.kit ASSETS --seed 0
    python -m benchmarks.run --suite sft,reward,dpo,grpo,ppo --assets ASSETS --repeats 5 --against trl

Every measurement is a process of its own: it loads, takes its warm-up steps, and is timed over the steps after them.
The entries of a suite run one after the other, then all of them again. How to read the result: `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.flops import Shape
from benchmarks.report import Numbers, Result, numbers, phase_lines, ratio_line, ratios, summary, table
from benchmarks.rows import Rows, choose_rows
from benchmarks.suites import PRESETS, Entry, Preset, Suite, named_suites

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """No interpreter with TRL {version} was given by --{option} or {variable}. To make one:
    python3.11 -m venv VENV
    VENV/bin/pip install torch==2.13.0     # first and alone, so that the build for this machine is taken
    echo torch==2.13.0 > pinned.txt
    VENV/bin/pip install -c pinned.txt trl=={version}
then: --{option} VENV/bin/python"""
PEERS = {  # option: (environment variable, version)
    "peer-python": ("RLHF_LIGHTNING_PEER_PYTHON", "1.16.0"),
    "peer-ppo-python": ("RLHF_LIGHTNING_PEER_PPO_PYTHON", "1.12.0"),  # the last release that has PPO
}


class Bench:
    """Runs suites and keeps what they said.

    Args:
        options: the command line.
        work: folder for rows, jobs and results of processes.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.preset: Preset = PRESETS[options.preset]
        self.assets: Path = options.assets.resolve()
        self.shape = Shape.read(self.assets / "model")

    def peak(self) -> dict[str, float]:
        """FLOP/s of a matrix product, now."""
        words = [str(self.options.threads), self.preset.device, self.preset.dtype]
        done = subprocess.run([sys.executable, "-m", "benchmarks.flops", *words], **self._surroundings(), check=True)
        return json.loads(done.stdout)

    def suite(self, suite: Suite) -> dict[str, Any]:
        """All repeats of a suite; prints its tables."""
        peak = self.peak()
        entries = [entry for entry in suite.entries if entry.side != "trl" or self.options.against == "trl"]
        rows = {entry.name: self.rows(suite, entry) for entry in entries}
        results: dict[str, list[Result]] = {entry.name: [] for entry in entries}
        for repeat in range(self.options.repeats):
            for entry in entries:
                print(f"{suite.name} {repeat + 1}/{self.options.repeats}: {entry.name}", file=sys.stderr, flush=True)
                results[entry.name].append(self.measure(suite, entry, rows[entry.name]))
        found = {
            e.name: [
                numbers(suite, e, self.preset.of(suite, e), run, rows[e.name].sequences, self.shape, peak)
                for run in results[e.name]
            ]
            for e in entries
        }
        return self.tell(suite, found) | {"peak": peak, "runs": results}

    def tell(self, suite: Suite, found: Mapping[str, list[Numbers]]) -> dict[str, Any]:
        """Print what a suite gave; returns it as plain data."""
        clock = "wall" if self.preset.device == "cuda" else "cpu"
        summaries = {name: summary(runs) for name, runs in found.items()}
        compared = [r for bar in suite.bars if (r := ratios(suite, bar, found, clock)) is not None]
        print("\n" + table(suite, summaries))
        print("\n".join([*phase_lines(summaries), *map(ratio_line, compared)]), flush=True)
        return {"summary": summaries, "ratios": compared}

    def rows(self, suite: Suite, entry: Entry) -> Rows:
        """The rows of an entry: as many as its steps take, times its growth."""
        sizes = self.preset.of(suite, entry)
        per_step = sizes.batch // suite.group_size
        count = (sizes.warm_up + sizes.steps) * per_step * entry.growth
        limits = (sizes.max_prompt_length, sizes.max_length)
        folder = self.work / suite.name / f"x{entry.growth}_{entry.stretch}"
        return choose_rows(self.assets, suite.rows, count, per_step, limits, folder, entry.stretch is not None)

    def measure(self, suite: Suite, entry: Entry, rows: Rows) -> Result:
        """One process."""
        job = self.job(suite, entry, rows)
        folder = Path(job["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        module = "benchmarks.peer" if entry.side == "trl" else "benchmarks.ours"
        command = [self.interpreter(suite, entry), "-m", module, str(folder / "job.json")]
        done = subprocess.run(command, **self._surroundings(), check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        result: dict[str, Any] = json.loads(Path(job["out"]).read_text(encoding="utf-8"))
        expected = sum(p + a for row in rows.sequences for p, a in row)
        seen = result["counts_of_all_steps"]["tokens"]
        if seen and entry.growth == 1 and suite.rows != "rankings" and seen != expected:
            print(f"  {entry.name} has seen {seen} tokens of {expected}", file=sys.stderr)
        return result | {"device": self.preset.device}

    def job(self, suite: Suite, entry: Entry, rows: Rows) -> dict[str, Any]:
        """What a process is to do."""
        folder = self.work / suite.name / entry.name.replace(" ", "_").replace("/", "_")
        sequences = [pair for row in rows.sequences for pair in row]
        return asdict(self.preset.of(suite, entry)) | {
            "learner": suite.learner,
            "side": entry.side,
            "variant": entry.variant,
            "group_size": suite.group_size,
            "epochs": suite.epochs,
            "kl_coef": suite.kl_coef,
            "rows": str(rows.peers if entry.side == "trl" else rows.ours),
            "pairs_per_row": 6 if suite.rows == "rankings" else 1,
            "mean_length": sum(p + a for p, a in sequences) / len(sequences),
            "model": str(self.assets / "model"),
            "reward_model": str(self.assets / "rm"),
            "threads": self.options.threads,
            "device": self.preset.device,
            "dtype": self.preset.dtype,
            "overrides": [*self.preset.overrides, *entry.overrides, *self.options.override],
            "folder": str(folder),
            "out": str(folder / "result.json"),
            "started": time.time(),
        }

    def interpreter(self, suite: Suite, entry: Entry) -> str:
        """Of this process, or of the peer."""
        if entry.side != "trl":
            return sys.executable
        return peer_python(self.options, "peer-ppo-python" if suite.learner == "ppo" else "peer-python")

    def _surroundings(self) -> dict[str, Any]:
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        threads = {"OMP_NUM_THREADS": str(self.options.threads), "MKL_NUM_THREADS": str(self.options.threads)}
        env = {**os.environ, **quiet, **threads, "PYTHONPATH": str(ROOT)}
        return {"cwd": ROOT, "env": env, "capture_output": True, "text": True}


def peer_python(options: argparse.Namespace, option: str) -> str:
    """Path of an interpreter of the peer.

    Raises:
        SystemExit: not given, with a recipe how to make one.
    """
    variable, version = PEERS[option]
    path = getattr(options, option.replace("-", "_")) or os.environ.get(variable)
    if not path:
        raise SystemExit(RECIPE.format(version=version, option=option, variable=variable))
    return str(path)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Where and with what it was measured; no names."""
    import torch

    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or None,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": options.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": os.getloadavg(),
    }


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="all", help="comma-separated names; grpo is grpo4 and grpo8, all is all")
    parser.add_argument("--assets", type=Path, required=True, help="a folder as benchmarks.kit writes it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", choices=["trl"], default=None)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu", help="sizes of batches and sequences")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--override", action="append", default=[], help="one more for our config; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks.json"), help="all results as JSON")
    parser.add_argument("--work", type=Path, default=None, help="keep files of processes here")
    for option, (variable, version) in PEERS.items():
        parser.add_argument(f"--{option}", default=None, help=f"interpreter with TRL {version}; also by {variable}")
    return parser


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Run what the command line asks for; returns what is written as JSON."""
    options = arguments().parse_args(words)
    suites = named_suites(options.suite)
    if options.against:  # before anything runs
        for option in {"peer-ppo-python" if s.learner == "ppo" else "peer-python" for s in suites
                       if any(e.side == "trl" for e in s.entries)}:  # fmt: skip
            peer_python(options, option)
    told: dict[str, Any] = {"machine": machine(options), "suites": {}}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options, (options.work or Path(temporary)).resolve())
        for suite in suites:
            began = time.time()
            told["suites"][suite.name] = bench.suite(suite) | {"seconds": time.time() - began}
            options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.out}")
    return told


if __name__ == "__main__":
    main()
