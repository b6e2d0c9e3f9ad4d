"""From the results of processes to numbers per second, ratios and tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.flops import Pair, Shape, step_flops
from benchmarks.suites import Bar, Entry, Sizes, Suite

Result = Mapping[str, Any]
Numbers = dict[str, float]


class Spread(NamedTuple):
    """Median and extremes over repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one number."""
        seen = list(values)
        return cls(statistics.median(seen), min(seen), max(seen))

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)}-{short(self.high)})"


def short(value: float) -> str:
    """Three digits that matter.

    >>> [short(x) for x in (1234.5, 12.345, 0.01234)]
    ['1234', '12.3', '0.0123']
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def numbers(
    suite: Suite, entry: Entry, sizes: Sizes, result: Result, sequences: Sequence[Sequence[Pair]], shape: Shape,
    peak: Mapping[str, float],
) -> Numbers:  # fmt: skip
    """What one run says; seconds are CPU seconds unless they are called wall.

    Args:
        suite: what was measured.
        entry: who.
        sizes: of the suite.
        result: of the process, see `benchmarks.clock.Clock.result`.
        sequences: for each row of all steps its tokens, in the order of learning.
        shape: of the model.
        peak: FLOP/s of a matrix product, per CPU second ("cpu") and per second ("wall").
    """
    counts, answers = result["counts"], [tuple(pair) for pair in result["answers"]]
    clock = "wall" if result["device"] == "cuda" else "cpu"
    if answers:
        learned: list[Pair] = answers
        tokens, supervised = sum(p + r for p, r in learned), sum(r for _, r in learned)
        units = float(len(learned))
        shared = any("shared_trunk" in word for word in entry.overrides)
        passes = suite.epochs * (2 if suite.learner == "ppo" and not shared else 1)
    else:
        shared, passes = False, 1
        measured = sequences[sizes.warm_up * sizes.batch : (sizes.warm_up + sizes.steps) * sizes.batch]
        learned = [pair for row in measured for pair in row]
        tokens = counts["tokens"]
        supervised = counts["supervised"] or sum(answer for _, answer in learned)
        units = tokens if suite.unit == "tokens" else float(len(measured))
    flops = step_flops(shape, suite.learner, learned, suite.epochs, shared)
    if not answers and suite.unit == "tokens":  # other rows than ours were in these steps
        flops = {name: value * tokens / sum(p + a for p, a in learned) for name, value in flops.items()}
    found = {
        f"{suite.unit}_per_cpu_second": units / result["cpu"],
        f"{suite.unit}_per_second": units / result["wall"],
        "tokens_per_cpu_second": tokens / result["cpu"],
        "supervised_per_cpu_second": supervised / result["cpu"],
        "cpu_seconds_per_step": result["cpu"] / result["steps"],
        "wall_seconds_per_step": result["wall"] / result["steps"],
        "padding_share": 1 - passes * tokens / max(counts["positions_learned"], 1),
        "peak_megabytes": result["peak_memory"] / 1e6,
        "mfu": sum(flops.values()) / result[clock] / peak[clock],
        "start_seconds": result["begun"]["cpu"],
    }
    for phase, seconds in result["phases"].items():
        found[f"seconds_{phase}"] = seconds["cpu"] / result["steps"]
    for phase in ("generate", "learn"):
        used = result["phases"].get(phase, {}).get(clock, 0.0)
        if used and phase in flops:
            found[f"mfu_{phase}"] = flops[phase] / used / peak[clock]
    return found


def summary(runs: Sequence[Numbers]) -> dict[str, Spread]:
    """Every number over the repeats."""
    return {name: Spread.of(run[name] for run in runs) for name in runs[0]}


def ratios(suite: Suite, bar: Bar, runs: Mapping[str, Sequence[Numbers]], clock: str = "cpu") -> dict[str, Any] | None:
    """The entry of a bar over the other, pair by pair of repeats; None if the other did not take part.

    Args:
        suite: what was measured.
        bar: what is wanted.
        runs: of each entry, one per repeat.
        clock: "cpu" or "wall", which decides who is fastest and whether a bar is reached.
    """
    other = bar.other
    speeds = {"cpu": f"{suite.unit}_per_cpu_second", "wall": f"{suite.unit}_per_second"}
    if other == "fastest":
        peers = [name for name in runs if name.startswith("trl")]
        if not peers:
            return None
        other = max(peers, key=lambda name: statistics.median(run[speeds[clock]] for run in runs[name]))
    if other not in runs or bar.entry not in runs:
        return None

    def pairs(of: Callable[[Numbers], float]) -> Spread:
        return Spread.of(of(a) / of(b) for a, b in zip(runs[bar.entry], runs[other], strict=True))

    found = {"entry": bar.entry, "other": other, "bar": bar.factor, "memory_bar": bar.memory}
    found |= {kind: pairs(lambda run, name=name: run[name]) for kind, name in speeds.items()}
    found["tokens"] = pairs(lambda run: run["supervised_per_cpu_second"])
    found["memory"] = pairs(lambda run: run["peak_megabytes"])
    memory_kept = bar.memory is None or found["memory"].median <= bar.memory
    found["reached"] = found[clock].median >= bar.factor and memory_kept
    return found


def table(suite: Suite, summaries: Mapping[str, Mapping[str, Spread]]) -> str:
    """One line per entry, as Markdown."""
    columns = {
        f"{suite.unit}/CPU s": f"{suite.unit}_per_cpu_second",
        f"{suite.unit}/s": f"{suite.unit}_per_second",
        "supervised or sampled tokens/CPU s": "supervised_per_cpu_second",
        "padding": "padding_share",
        "peak MB": "peak_megabytes",
        "MFU": "mfu",
        "start s": "start_seconds",
    }
    lines = [f"| {suite.name} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for entry, found in summaries.items():
        lines.append(f"| {entry} | " + " | ".join(str(found[name]) for name in columns.values()) + " |")
    return "\n".join(lines)


def phase_lines(summaries: Mapping[str, Mapping[str, Spread]]) -> list[str]:
    """CPU seconds per step of each phase, and their MFU where the formula knows it."""
    lines = []
    for entry, found in summaries.items():
        parts = []
        for name, spread in found.items():
            if name.startswith("seconds_"):
                phase = name.removeprefix("seconds_")
                mfu = found.get(f"mfu_{phase}")
                parts.append(f"{phase} {short(spread.median)}" + (f" [MFU {mfu.median:.2f}]" if mfu else ""))
        lines.append(f"  {entry}: CPU s per step {short(found['cpu_seconds_per_step'].median)}: {', '.join(parts)}")
    return lines


def ratio_line(found: Mapping[str, Any]) -> str:
    """One ratio in words."""
    text = f"  {found['entry']} / {found['other']}: {found['cpu']} in CPU s, {found['wall']} in wall s, "
    text += f"supervised or sampled tokens {found['tokens']}, memory {found['memory']}; wanted {short(found['bar'])}"
    text += f" at {found['memory_bar']} of the memory" if found["memory_bar"] else ""
    return text + (": reached" if found["reached"] else ": NOT reached")
