"""Host memory of each process while a sharded run is loaded, learns and is saved: python -m benchmarks.sharded_loading

PPO with a critic of its own on a random Llama of 71 million parameters: policy, reference and critic are read from
files in bfloat16 and learn in float32. First one process without sharding, then two ranks of FSDP2 with gloo.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.sharded_memory import SIZES
from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.sharded import DurableModelParallelStrategy
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer

MIB = 1024  # KiB


def resident() -> tuple[float, float]:
    """MiB that this process holds, and the most it has held since the last call."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak again
    now, peak = (float(lines[name].split()[0]) / MIB for name in ("VmRSS", "VmHWM"))
    return now, peak


class Memory(Callback):
    """Notes the memory at the moments of a run."""

    def __init__(self) -> None:
        self.moments: list[str] = []

    def note(self, moment: str) -> None:
        """One line, for all ranks."""
        now, peak = resident()
        self.moments.append(f"{moment:28s} {now:7.0f} MiB, at most {peak:7.0f} since the line above")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.note("after the start's check")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note(f"after step {batch_idx + 1}")


class Saver(DurableCheckpoint):
    """Notes what a save takes."""

    def __init__(self, folder: Path, memory: Memory) -> None:
        super().__init__(folder, every_n_steps=1, at_end=False)
        self.memory = memory

    def save(self, trainer: Any) -> Path | None:
        """See `DurableCheckpoint`."""
        self.memory.note("before the save")
        path = super().save(trainer)
        self.memory.note("after the save")
        return path


class Loaded(PPOModule):
    """Says what it holds once its models are there."""

    memory: Memory

    def configure_model(self) -> None:
        """See `RLHFModule`."""
        there = self.policy is not None
        super().configure_model()
        if not there:
            self.memory.note("after loading")


def prepare(folder: Path) -> None:
    """A model, its tokenizer, and prompts."""
    words = {f"w{number}": number for number in range(SIZES["vocab_size"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given = {"pad_token": "w0", "eos_token": "w1", "unk_token": "w2"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **given).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, pad_token_id=0, eos_token_id=1, bos_token_id=None, max_position_embeddings=64)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size="40MB")
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "w{n} w{n + 1}"}}\n' for n in range(3, 67)))


def length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward."""
    return [float(len(text)) for text in completions]


def run_of(
    folder: Path, ranks: int, callbacks: list[Callback], cls: type[PPOModule] = PPOModule, rollouts: int = 2,
    rows: int = 4, tokens: int = 8,
) -> tuple[lightning.Trainer, PPOModule, PromptData]:  # fmt: skip
    """A Trainer, a module and data of PPO on the model in a folder; ``rows`` answers of ``tokens`` in a rollout."""
    source = Pretrained(str(folder))
    settings = PPOSettings(num_minibatches=1, micro_batch_size=1)
    scorer: Any = FunctionScorer(length)
    module = cls(
        source, scorer, critic="policy", sampling=Sampling(max_new_tokens=tokens), settings=settings,
        optimizer=partial(torch.optim.AdamW, lr=1e-5, foreach=False),
    )  # fmt: skip
    data = PromptData(
        folder / "prompts.jsonl", None, source.tokenizer(), batch_size=rows, rollouts=rollouts, validation_fraction=0.0
    )
    strategy: Any = {} if ranks == 1 else {"strategy": DurableModelParallelStrategy(ranks)}
    trainer = lightning.Trainer(
        accelerator="cpu", devices=ranks, max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, callbacks=callbacks,
        **strategy,
    )  # fmt: skip
    return trainer, module, data


def work(folder: Path, ranks: int) -> None:
    """One rank of a run of two steps, a save after each."""
    torch.set_num_threads(1)
    memory = Memory()
    memory.note("imports")
    Loaded.memory = memory
    saver = Saver(folder / f"saved{ranks}", memory)
    trainer, module, data = run_of(folder, ranks, [saver, memory], Loaded)
    trainer.fit(module, datamodule=data)
    memory.note("at the end")
    rank = trainer.global_rank
    (folder / f"{ranks}.{rank}").write_text("\n".join(memory.moments))


def main() -> None:
    """Run both ways, and print what each process noted."""
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for ranks in (1, 2):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
            shared["WORLD_SIZE"] = str(ranks)
            command = [sys.executable, "-m", "benchmarks.sharded_loading", name, str(ranks)]
            silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            running = [
                subprocess.Popen(command, env={**shared, "LOCAL_RANK": str(rank), "RANK": str(rank)}, **silent)
                for rank in range(ranks)
            ]
            if sum(process.wait() for process in running):
                sys.exit(f"a run with {ranks} ranks failed")
            for rank in range(ranks):
                print(f"rank {rank} of {ranks}\n{(Path(name) / f'{ranks}.{rank}').read_text()}\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
