"""The peer's side of a measurement, run by an interpreter of its own that has TRL and not this library.

    PEER/bin/python -m benchmarks.peer JOB.json

What is set beside sizes: 32-bit floats, rows in the given order, and no gradient checkpointing (TRL's default, which
saves memory for a third more time; our side does not checkpoint either).
"""

from __future__ import annotations

import sys

from benchmarks.clock import Clock, read_job, write_result


def main() -> None:
    """Run the job in the file named on the command line."""
    job = read_job(sys.argv[1])
    if job["learner"] == "ppo":
        from benchmarks.peer_trl_ppo import train
    elif job["learner"] in ("grpo", "rloo"):
        from benchmarks.peer_trl_online import train
    else:
        from benchmarks.peer_trl_offline import train
    clock = Clock(job["started"], job["device"])
    clock.watch_positions()
    train(job, clock)
    write_result(job, clock.result(job["warm_up"]))


if __name__ == "__main__":
    main()
