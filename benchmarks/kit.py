"""Assets for the benchmarks from a seed: a small Llama that ends its answers, a reward model, and files of rows.

    python -m benchmarks.kit DIR --seed 0

Writes ``model/``, ``rm/``, ``sft.jsonl``, ``pref.jsonl``, ``rankings.jsonl``, ``prompts.jsonl`` and ``kit.json``. The
text is that of the running interpreter's standard library; nothing is downloaded. The same seed, Python and torch give
the same files.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from benchmarks.kit_text import Lengths, Passages, documents

PAD, EOS = "<pad>", "<eos>"


class Size(NamedTuple):
    """How large the model and the files are."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    positions: int
    dtype: torch.dtype
    documents: int | None  # docstrings to read
    rows: dict[str, int]  # of each file
    prompt: Lengths
    completion: Lengths
    warm_up: int  # steps
    short: Lengths  # completions that the warm-up learns, and with them when to end


ROWS = {"sft": 2000, "pref": 600, "rankings": 240, "prompts": 600}
SIZES = {
    # 12.5 million parameters
    "small": Size(
        8192, 320, 8, 5, 5, 864, 1024, torch.float32, None, ROWS,
        Lengths(40, 0.7, 8, 152), Lengths(60, 1.0, 4, 350), 60, Lengths(20, 0.9, 2, 96),
    ),
    "tiny": Size(
        512, 32, 2, 2, 2, 64, 1024, torch.float32, 300, dict.fromkeys(ROWS, 40),
        Lengths(8, 0.6, 3, 16), Lengths(10, 0.8, 2, 40), 2, Lengths(4, 0.5, 1, 8),
    ),
    # 1.1 billion parameters, random: for GPUs
    "1b": Size(
        32000, 2048, 22, 32, 4, 5632, 4096, torch.bfloat16, None, ROWS,
        Lengths(160, 0.7, 16, 508), Lengths(300, 1.0, 8, 1530), 0, Lengths(20, 0.9, 2, 96),
    ),
}  # fmt: skip


def make_kit(folder: Path, seed: int = 0, size: str = "small") -> dict[str, Any]:
    """Write all assets into ``folder``; returns what ``kit.json`` says.

    Args:
        folder: made if missing.
        seed: of weights, lengths and rows.
        size: a key of `SIZES`.
    """
    began = time.process_time()
    chosen = SIZES[size]
    folder.mkdir(parents=True, exist_ok=True)
    texts = documents(chosen.documents)
    tokenizer = train_tokenizer(texts, chosen.vocabulary)
    source = random.Random(seed)
    source.shuffle(texts)
    passages = Passages(texts, tokenizer, source)
    for name, row in row_makers(passages, chosen, source).items():
        lines = [json.dumps(row()) for _ in range(chosen.rows[name])]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(chosen, tokenizer)).to(chosen.dtype)
    losses = warm_up(model, tokenizer, passages, chosen)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    judge = LlamaForSequenceClassification(llama_config(chosen, tokenizer, num_labels=1)).to(chosen.dtype)
    judge.model.load_state_dict(model.model.state_dict())
    judge.save_pretrained(folder / "rm")
    tokenizer.save_pretrained(folder / "rm")
    kit = {
        "seed": seed,
        "size": size,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": chosen.rows,
        "warm_up_loss": losses[:: max(len(losses) // 8, 1)],
        "answers": sampled(model, tokenizer, passages, chosen) if losses else {},
        "cpu_seconds": time.process_time() - began,
    }
    (folder / "kit.json").write_text(json.dumps(kit, indent=1) + "\n", encoding="utf-8")
    return kit


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a pad token of its own and an EOS."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=EOS)


def row_makers(passages: Passages, size: Size, source: random.Random) -> dict[str, Callable[[], dict[str, Any]]]:
    """A function for each file that makes its next row; answers to one prompt differ in length as all others do."""

    def answers(count: int) -> list[str]:
        return [" " + passages.take(size.completion) for _ in range(count)]

    def pair() -> dict[str, Any]:
        chosen, rejected = answers(2)
        return {"prompt": passages.take(size.prompt), "chosen": chosen, "rejected": rejected}

    return {
        "sft": lambda: {"prompt": passages.take(size.prompt), "completion": answers(1)[0]},
        "pref": pair,
        "rankings": lambda: {
            "prompt": passages.take(size.prompt),
            "completions": answers(4),
            "ranks": source.sample([1, 2, 3, 4], 4),
        },
        "prompts": lambda: {"prompt": passages.take(size.prompt)},
    }


def llama_config(size: Size, tokenizer: PreTrainedTokenizerBase, num_labels: int = 2) -> LlamaConfig:
    """The shape of policy and reward model."""
    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.positions,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=size.hidden < 1024,
        num_labels=num_labels,
    )


def warm_up(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, passages: Passages, size: Size) -> list[float]:
    """Teach the model the look of the text and to end its answers; returns the loss of every step, nats per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    losses = []
    for step in range(size.warm_up):
        rows = []
        for _ in range(16):
            prompt = tokenizer(passages.take(size.prompt)).input_ids
            answer = tokenizer(" " + passages.take(size.short)).input_ids
            rows.append((prompt[-32:], [*answer, tokenizer.eos_token_id]))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 10) * (1 - step / size.warm_up)
        total = 0.0
        for part in (rows[:8], rows[8:]):
            total += _backward(model, part, tokenizer.pad_token_id) / 2
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(total, 3))
    return losses


def _backward(model: LlamaForCausalLM, rows: list[tuple[list[int], list[int]]], pad: int) -> float:
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    loss = model(input_ids=ids, attention_mask=(ids != pad).long(), labels=labels).loss
    (loss / 2).backward()
    return float(loss.detach())


@torch.no_grad()
def sampled(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, passages: Passages, size: Size, count: int = 64
) -> dict[str, Any]:
    """Lengths of some answers of at most 64 tokens, and the share that ended by itself."""
    tokenizer.padding_side = "left"
    batch = tokenizer([passages.take(size.prompt) for _ in range(count)], padding=True, return_tensors="pt")
    tokenizer.padding_side = "right"
    ids = model.eval().generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=64, do_sample=True, top_k=0
    )
    answers = ids[:, batch.input_ids.shape[1] :]
    ended = (answers == tokenizer.eos_token_id).any(1)
    lengths = (answers != tokenizer.pad_token_id).sum(1).float()
    quantiles = lengths.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    return {"eos_rate": float(ended.float().mean()), "mean_length": float(lengths.mean()), "p10_p50_p90": quantiles}


def main() -> None:
    """Parse the command line, write, say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(make_kit(options.folder, options.seed, options.size), indent=1))


if __name__ == "__main__":
    main()
