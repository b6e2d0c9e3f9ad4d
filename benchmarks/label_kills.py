"""Is a judgement that the labelling server acknowledged ever lost, or written twice, however it dies?

    python -m benchmarks.label_kills --kills 200

Four people rank at once over HTTP; the server is killed with SIGKILL at random moments and started again. After each
kill the record is checked as a whole, and each acknowledged judgement must stand in it once, as it was sent. Exit
status 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.label_play import AWAY, Annotator, Server, write_candidates
from rlhf_lightning.people import record


def work(people: Sequence[Annotator], host: str, over: threading.Event, wrong: list[str]) -> list[threading.Thread]:
    """All people rank until the server is gone; a thread for each. What it refused is added to ``wrong``."""

    def rank(person: Annotator) -> None:
        try:
            person.connect(host)
            while not over.is_set() and person.judge():
                pass
        except AWAY:
            pass  # killed in the middle of a request: sent again to the next server
        except RuntimeError as refused:
            wrong.append(f"{person.name}: {refused}")

    threads = [threading.Thread(target=rank, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    return threads


def faults(path: Path, people: Sequence[Annotator]) -> list[str]:
    """What is missing, twice or different in the record."""
    record.check(path)
    lines = record.entries(path)
    times = Counter(entry.key for entry in lines)
    said = {entry.key: (entry.item, list(entry.ranks or ())) for entry in lines}
    acknowledged = {key: value for person in people for key, value in person.acknowledged.items()}
    found = [f"lost: {key}" for key in acknowledged if key not in said]
    found += [f"twice: {key}" for key, count in times.items() if count > 1]
    found += [f"changed: {key}" for key, value in acknowledged.items() if key in said and said[key] != value]
    return found


def main() -> None:
    """Parse the command line, kill, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--longest", type=float, default=0.6, help="seconds between a start and its kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, wrong, resent = random.Random(options.seed), list[str](), 0
    people = [Annotator(f"person {number}", options.seed) for number in range(options.people)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.db"
        rows = write_candidates(Path(folder) / "candidates.jsonl", 40 * options.kills, words=8)
        for kill in range(options.kills):
            server, over = Server(rows, path, "--overlap", "2"), threading.Event()
            threads = work(people, server.host, over, wrong)
            time.sleep(draw.uniform(0, options.longest))
            server.end(signal.SIGKILL)
            over.set()
            for thread in threads:
                thread.join()
            resent += sum(person.waiting is not None for person in people)
            wrong += (found := faults(path, people))
            if found or kill % 20 == 19:
                count = sum(len(person.acknowledged) for person in people)
                print(f"{kill + 1} kills: {count} acknowledged, {resent} on the way, {len(wrong)} faults", flush=True)
    for fault in wrong[:20]:
        print(fault)
    raise SystemExit(bool(wrong) or not any(person.acknowledged for person in people))


if __name__ == "__main__":
    main()
