"""Clean rows per second through reading and checking, without tokenisation: python -m benchmarks.data_rows [ROWS]"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_lightning.data.readers.files import iter_rows
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.data.rows.types import StageKind
from rlhf_lightning.data.rows.validate import validate_rows

QUESTION = "Why is the sky blue at noon, and why is it red when the sun goes down?"
GOOD = "Blue light is scattered most by the air; in the evening it has a longer way to go, and only red is left."
BAD = "Nobody knows."


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ROWS: dict[str, tuple[StageKind, Callable[[int], dict[str, Any]]]] = {
    "text": ("demonstrations", lambda i: {"text": f"{i} {QUESTION} {GOOD}"}),
    "prompt+completion": ("demonstrations", lambda i: {"prompt": f"{i} {QUESTION}", "completion": GOOD}),
    "messages": (
        "demonstrations",
        lambda i: {"messages": [_turn("user", f"{i} {QUESTION}"), _turn("assistant", GOOD)]},
    ),
    "prompt+chosen+rejected": (
        "comparisons",
        lambda i: {"prompt": f"{i} {QUESTION}", "chosen": GOOD, "rejected": BAD, "margin": 0.5},
    ),
    "chosen+rejected": (
        "comparisons",
        lambda i: {"chosen": f"{i} {QUESTION} {GOOD}", "rejected": f"{i} {QUESTION} {BAD}"},
    ),
    "prompt+completions+ranks": (
        "comparisons",
        lambda i: {"prompt": f"{i} {QUESTION}", "completions": [GOOD, BAD, "So."], "ranks": [1, 2, 2]},
    ),
    "prompt+completion+label": (
        "feedback",
        lambda i: {"prompt": f"{i} {QUESTION}", "completion": GOOD, "label": i % 2 == 0},
    ),
    "prompt": ("prompts", lambda i: {"prompt": f"{i} {QUESTION}"}),
}


def main(count: int) -> None:
    """Print rows per second of wall clock and of processor time for each row type."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (kind, make) in ROWS.items():
            path = Path(folder) / "rows.jsonl"
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(make(i)) + "\n" for i in range(count))
            _measure(f"{name} (.jsonl)", path, kind, count)
        kind, make = ROWS["prompt+completion"]
        path = Path(folder) / "rows.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(make(0)))
            writer.writeheader()
            writer.writerows(make(i) for i in range(count))
        _measure("prompt+completion (.csv)", path, kind, count)


def _measure(name: str, path: Path, kind: StageKind, count: int) -> None:
    wall, processor, problems = time.perf_counter(), time.process_time(), Problems()
    rows = validate_rows(iter_rows(path, problems), kind, problems)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    assert len(rows) == count and not problems.count
    print(f"{name:32s} {count / wall:9,.0f} rows/s   {count / processor:9,.0f} rows per second of processor time")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 200_000)
