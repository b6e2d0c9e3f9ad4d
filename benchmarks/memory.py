"""How much memory each rank of a PPO run takes, by formula, and whether it fits.

    python -m benchmarks.memory
    python -m benchmarks.memory --model 8b --gpus 8 --layout fsdp2 --card 80
    python -m benchmarks.memory --model runs/one/sft --gpus 1 --adapters 16 --offload --card 24

Without a model it prints a table of 1.5 to 70 billion parameters in the layouts that there are. The formulas are those
of `rlhf_lightning.models.footprint`; the tests hold them against measured bytes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlamaConfig, PretrainedConfig

from rlhf_lightning.models.footprint import Setup, on_device, on_host, shape_of

GB = 1e9
MODELS: dict[str, dict[str, Any]] = {
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "32b": {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
            "num_key_value_heads": 8, "vocab_size": 152064},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
STEP = {"gather": "layer"}
TABLE: list[Any] = [
    ("1.5b", 1, {}), ("1.5b", 1, {"offload": True, "checkpointed": 1.0}), ("8b", 1, {"adapters": 16, "offload": True}),
    ("8b", 1, {"adapters": 16, "checkpointed": 1.0, "critic": "own", "weight_bytes": 2, "four_bits": True}, 24.0),
    ("8b", 8, {}), ("8b", 8, {"sharded": True, "checkpointed": 1.0}),
    ("8b", 8, {"sharded": True, "checkpointed": 1.0, "reward_bytes": 0}),
    ("32b", 32, {"sharded": True, "checkpointed": 1.0}), ("32b", 32, {"sharded": True, "checkpointed": 1.0, **STEP}),
    ("70b", 64, {"sharded": True, "checkpointed": 1.0, **STEP}),
]  # fmt: skip


def config_of(model: str) -> PretrainedConfig:
    """Of a size in `MODELS`, or of a folder."""
    if model in MODELS:
        return LlamaConfig(**MODELS[model])
    return AutoConfig.from_pretrained(Path(model))


def line(model: str, setup: Setup, card: float) -> str:
    """A row of the table."""
    shape = shape_of(config_of(model))
    device = {name: n / GB for name, n in on_device(shape, setup).items()}
    host = {name: n / GB for name, n in on_host(shape, setup).items()}
    copied = on_host(shape, replace(setup, asynchronous=True))["save"] / GB
    left = card - max(device.values())
    layout = "fsdp2" if setup.sharded else "ddp" if setup.ranks > 1 else "single"
    rest = [f"LoRA {setup.adapters}"] * bool(setup.adapters) + ["offload"] * setup.offload
    rest += ["checkpointing"] * bool(setup.checkpointed) + ["no reward model"] * (not setup.reward_bytes)
    rest += ["4 bits"] * setup.four_bits
    rest += ["a layer at a time"] * (setup.gather == "layer")
    cells = [model, f"{setup.ranks} x {card:g} GB, {', '.join([layout, *rest])}"]
    cells += [f"{device[phase]:.0f}" for phase in ("load", "generate", "score", "learn")]
    cells += [f"{max(host.values()):.0f}", f"{copied:.0f}"]
    return f"| {' | '.join(cells)} | {f'{left:.0f} GB left' if left > 0 else 'does not fit'} |"


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"{', '.join(MODELS)}, or a folder")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--layout", choices=("single", "ddp", "fsdp2"), default="single")
    parser.add_argument("--replicas", type=int, default=1, help="trainer.strategy.replicate_size; of fsdp2")
    parser.add_argument("--card", type=float, default=80.0, help="GB of a device")
    parser.add_argument("--float32", action="store_true", help="trainer.precision=32-true; else bf16-mixed")
    parser.add_argument("--critic", choices=("none", "shared_trunk", "own"), default="shared_trunk")
    parser.add_argument("--reward-bytes", type=int, default=2, help="of a weight of the reward model; 0: there is none")
    parser.add_argument("--offload", action="store_true", help="model.offload=true")
    parser.add_argument("--adapters", type=int, default=0, help="rank of LoRA")
    parser.add_argument("--checkpointing", type=int, default=0, help="model.activation_checkpointing, every n-th layer")
    parser.add_argument("--tokens", type=int, default=4096, help="in a micro-batch")
    parser.add_argument("--sampled", type=int, default=32, help="rows that a rank decodes at once")
    parser.add_argument("--context", type=int, default=1024, help="tokens of prompt and answer")
    parser.add_argument("--bfloat16", action="store_true", help="model.dtype=bfloat16")
    parser.add_argument("--four-bits", action="store_true", help="model.load_in_4bit=true")
    parser.add_argument("--gather", choices=("model", "layer"), default="model", help="rollout.gather")
    given = parser.parse_args()
    print("| model | layout | load | generate | score | learn | host | host at an asynchronous save | |")
    print("|---|---|---|---|---|---|---|---|---|")
    if given.model is None:
        for model, ranks, more, *card in TABLE:
            print(line(model, Setup(ranks, **more), *(card or [given.card])))
        return
    setup = Setup(
        given.gpus, given.layout == "fsdp2", not given.float32, given.critic, given.adapters == 0, given.reward_bytes,
        given.offload, given.adapters, 1 / given.checkpointing if given.checkpointing else 0.0, given.tokens,
        given.sampled, given.context, gather=given.gather, replicas=given.replicas,
        weight_bytes=2 if given.bfloat16 else 4, four_bits=given.four_bits,
    )  # fmt: skip
    print(line(given.model, setup, given.card))


if __name__ == "__main__":
    main()
