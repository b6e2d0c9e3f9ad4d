"""Tokens per second of processor time: a real vLLM server, the decode loop and `generate`, one thread each.

    python -m benchmarks.server_speed MODEL ../vllm_env/bin/python --dtype float32

``MODEL`` is a folder; the next word is vLLM's command or the python of its environment, and words behind it are handed
to vLLM. Each engine answers the same prompts ``--times`` times after one that is not counted; prints the median, and
that of time on the clock. Of the server the time of all its processes counts, besides that of asking it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rlhf_lightning.functional.sequences import left_pad
from rlhf_lightning.models import Pretrained, eos_token_ids
from rlhf_lightning.rollout import HFGenerateEngine, LoopEngine, Sampling, ServerEngine
from rlhf_lightning.types import PromptBatch

OPENINGS = ("This movie is", "The first time I", "I have never", "What a film")
TICKS = os.sysconf("SC_CLK_TCK")


def prompts(tokenizer: object, rows: int) -> PromptBatch:
    """Openings, again and again."""
    texts = [OPENINGS[n % len(OPENINGS)] for n in range(rows)]
    ids, mask = left_pad([tokenizer(text)["input_ids"] for text in texts], 0)  # type: ignore[operator]
    return PromptBatch(ids, mask, tuple({"prompt": text} for text in texts))


def seconds_of(children_of: int) -> float:
    """Processor time of all processes that come from one, itself included."""
    stats = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        stats[int(place.name)] = (int(fields[1]), sum(map(int, fields[11:13])) / TICKS)
    family = {children_of}
    while more := {pid for pid, (parent, _) in stats.items() if parent in family} - family:
        family |= more
    return sum(stats[pid][1] for pid in family if pid in stats)


def measured(name: str, answer: Callable[[], int], times: int) -> None:
    """Print the medians of an engine."""
    answer()
    processor, clock = [], []
    for _ in range(times):
        before, start = seconds_of(os.getpid()), time.monotonic()
        tokens = answer()
        processor.append(tokens / (seconds_of(os.getpid()) - before))
        clock.append(tokens / (time.monotonic() - start))
    print(f"{name:8} {statistics.median(processor):8.1f} tokens per second of processor time, "
          f"{statistics.median(clock):8.1f} on the clock", flush=True)  # fmt: skip


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("program", help="vLLM's command, or the python of its environment")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--times", type=int, default=5)
    options, more = parser.parse_known_args()
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "0"}  # of the server: one core
    source = Pretrained(str(options.model))
    policy, tokenizer = source.causal_lm().eval(), source.tokenizer()
    batch, sampling = prompts(tokenizer, options.rows), Sampling(max_new_tokens=options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        server = ServerEngine(start=True, program=[options.program, *more], folder=Path(folder), retries=1)
        for name, engine in {"loop": LoopEngine(), "hf": HFGenerateEngine(), "server": server}.items():
            engine.sync(policy, eos_token_ids(policy, tokenizer), tokenizer.pad_token_id, 0)
            engine.seed(0)
            try:
                measured(name, lambda engine=engine: int(engine.generate(batch, sampling).mask.sum()), options.times)  # type: ignore[misc]
            finally:
                getattr(engine, "close", lambda: None)()


if __name__ == "__main__":
    main()
