"""How fast does the labelling server answer with 10,000 items in the record?

    python -m benchmarks.label_latency

Four people rank at once over HTTP, after a first one has ranked some thousands. Prints median, 95th percentile and
largest time of a request, which reads or writes a judgement with fsync; exit status 1 if the 95th percentile is above
50 ms.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
from pathlib import Path

from benchmarks.label_play import Annotator, Server, write_candidates


def rank(person: Annotator, host: str, count: int) -> None:
    """So many judgements of one person."""
    person.connect(host)
    for _ in range(count):
        if not person.judge():
            return


def main() -> None:
    """Parse the command line, rank, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--before", type=int, default=4_000, help="judgements in the record when the clock starts")
    parser.add_argument("--each", type=int, default=250, help="judgements of each person")
    parser.add_argument("--people", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = write_candidates(Path(folder) / "candidates.jsonl", options.items)
        server = Server(rows, Path(folder) / "labels.db")
        rank(Annotator("first", 0), server.host, options.before)
        people = [Annotator(f"person {number}", 0) for number in range(options.people)]
        threads = [threading.Thread(target=rank, args=(person, server.host, options.each)) for person in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.end()
    seconds = sorted(value for person in people for value in person.seconds)
    p95 = seconds[int(0.95 * len(seconds))]
    print(f"{len(seconds)} requests of {options.people} people at once, {options.items} items, {options.before} judged")
    print(f"median {1e3 * statistics.median(seconds):.1f} ms  p95 {1e3 * p95:.1f} ms  max {1e3 * seconds[-1]:.1f} ms")
    raise SystemExit(p95 > 0.05)


if __name__ == "__main__":
    main()
