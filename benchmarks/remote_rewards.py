"""How long do many slow calls of a reward service take, and what does a bad day of it cost?

    python -m benchmarks.remote_rewards
    python -m benchmarks.remote_rewards --calls 1000 --in-flight 64 --seconds 1

First all calls are well. Then the service is away for 10 seconds in the middle, and one call in ten meets a 429, a 503,
a closed connection, a wrong number of scores, NaN or a text. Exit status 1 if a score is missing or wrong.
"""

from __future__ import annotations

import argparse
import random
import time

from rlhf_lightning.scoring.remote import RemoteScorer
from tests.support.reward_service import Service, reward_service

FAULTS = [429, 503, "closed", b'{"scores": []}', b'{"scores": [NaN]}', b'{"scores": ["1"]}', b"<html>"]


def lap(service: Service, calls: int, in_flight: int) -> float:
    """Seconds of one call for each of so many answers."""
    scorer = RemoteScorer(service.address, batch_size=1, concurrency=in_flight, retries=8)
    rows, texts = [{"prompt": str(n)} for n in range(calls)], ["x" * (n % 9) for n in range(calls)]
    begin = time.monotonic()
    scores = scorer.score_texts(texts, rows)
    took = time.monotonic() - begin
    if scores != [-float(len(text)) for text in texts]:
        raise SystemExit("a score is missing or wrong")
    return took


def main() -> None:
    """Parse the command line, call, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0, help="that the service takes for a call")
    options = parser.parse_args()
    draw = random.Random(0)
    with reward_service() as service:
        service.seconds = options.seconds
        print(f"{options.calls} calls, {options.in_flight} in flight: "
              f"{lap(service, options.calls, options.in_flight):.1f} s, at most {service.most} at once")  # fmt: skip
        service.bodies.clear()
        service.faults = [draw.choice(FAULTS) if draw.random() < 0.1 else None for _ in range(options.calls)]
        service.down_until = time.monotonic() + 10.0
        took = lap(service, options.calls, options.in_flight)
        print(f"away for 10 s and wrong one time in ten: {took:.1f} s, {len(service.bodies)} requests, no score lost")


if __name__ == "__main__":
    main()
