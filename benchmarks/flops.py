"""Model FLOPs of a step by formula, and what this machine reaches at a matrix product.

    forward of one token  = 2 * trunk parameters + 4 * position * hidden * layers  [+ 2 * hidden * vocabulary]
    forward and backward  = 3 times that

The head is counted at positions whose logits are needed only, attention causally, embeddings not at all. Kaplan et al.
2020, arXiv:2001.08361, section 2.1; Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

Pair = tuple[int, int]  # tokens of prompt and answer


class Shape(NamedTuple):
    """What the formula needs to know of a Llama."""

    trunk: int  # parameters of the layers
    hidden: int
    layers: int
    vocabulary: int

    @classmethod
    def read(cls, folder: str | Path) -> Shape:
        """From the ``config.json`` of a model folder."""
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        hidden, heads, layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
        size = config.get("head_dim") or hidden // heads
        attention = 2 * hidden * size * (heads + config.get("num_key_value_heads", heads))
        per_layer = attention + 3 * hidden * config["intermediate_size"]
        return cls(per_layer * layers, hidden, layers, config["vocab_size"])

    def forward(self, rows: Iterable[Pair], head: bool = True) -> float:
        """FLOPs of reading prompts and answers once, with logits at the answers if ``head``.

        >>> Shape(trunk=10, hidden=2, layers=1, vocabulary=3).forward([(1, 1)])
        76.0
        """
        total = 0.0
        for prompt, answer in rows:
            length = prompt + answer
            total += 2 * self.trunk * length + 2 * length * (length + 1) * self.hidden * self.layers
            total += 2 * self.hidden * self.vocabulary * answer if head else 0
        return total


def step_flops(shape: Shape, learner: str, rows: list[Pair], epochs: int, shared_trunk: bool) -> dict[str, float]:
    """FLOPs of each phase for these rows; phases of one name over all steps.

    Args:
        shape: of policy, reference, critic and reward model.
        learner: sft, reward, dpo, grpo, rloo or ppo.
        rows: sequences that were learned from.
        epochs: passes over each rollout.
        shared_trunk: the critic has no trunk of its own.
    """
    whole, trunk = shape.forward(rows), shape.forward(rows, head=False)
    if learner in ("sft", "reward"):
        return {"learn": 3 * (whole if learner == "sft" else trunk)}
    if learner == "dpo":
        return {"learn": 4 * whole}  # forward and backward of the policy, forward of the reference
    critic = trunk if learner == "ppo" and not shared_trunk else 0.0
    score = trunk if learner == "ppo" else 0.0
    old = whole if epochs > 1 else 0.0  # with one pass the learning forward gives the old log-probabilities
    evaluate = whole + old + critic
    return {"generate": whole, "score": score, "evaluate": evaluate, "learn": 3 * epochs * (whole + critic)}


def matmul_peak(device: str, dtype: str, seconds: float = 0.5) -> dict[str, float]:
    """Best FLOP/s of a matrix product over several shapes: per CPU second of all threads and per second.

    Args:
        device: "cpu" or "cuda".
        dtype: name of a torch dtype.
        seconds: for each shape.
    """
    import torch

    best = {"cpu": 0.0, "wall": 0.0}
    for size in (512, 1024, 2048) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        a @ b
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            wall, cpu = time.perf_counter(), time.process_time()
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()
            used = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
            for kind in best:
                best[kind] = max(best[kind], 2 * size**3 / max(used[kind], 1e-9))
    return best


def main() -> None:
    """``python -m benchmarks.flops THREADS DEVICE DTYPE`` prints the peak as JSON."""
    import torch

    threads, device, dtype = sys.argv[1:]
    torch.set_num_threads(int(threads))
    peak: dict[str, Any] = matmul_peak(device, dtype)
    print(json.dumps(peak))


if __name__ == "__main__":
    main()
