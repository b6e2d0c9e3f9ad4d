"""Write the miniature task to disk: its data files and a small base model, both decided by one seed.

Layout under ``root``: ``texts.jsonl`` (``text`` rows), ``demonstrations.jsonl`` and ``demonstrations.validation.jsonl``
(``prompt`` and ``completion``), ``prompts.jsonl`` and ``prompts.validation.jsonl`` (``prompt``), and ``base/``, a
Hugging Face folder with model and tokenizer.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.checkpoint.handover import sha256, verify_folder, write_folder
from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.miniature import grammar
from rlhf_lightning.miniature.base import train_with_sft
from rlhf_lightning.miniature.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TrainBase = Callable[["LlamaForCausalLM", "PreTrainedTokenizerFast", Path], None]
"""Trains the model in place on a file of ``text`` rows."""

STAGE = "miniature-base"


def prepare_miniature(
    root: str | Path,
    train_base: TrainBase | None = None,
    *,
    seed: int = 0,
    demonstrations: int = 3000,
    texts: int = 6000,
    prompts: int = 2000,
    heldout_prompts: int = 256,
) -> Path:
    """Make sure that ``root`` holds the whole task, and train the base model unless it is already there.

    A second call with the same arguments changes nothing; with others it writes what differs. The base model is
    trained anew when ``texts.jsonl`` or the seed changed, or when its folder is damaged.

    Args:
        root: folder to fill; made if missing.
        train_base: called as ``train_base(model, tokenizer, root / "texts.jsonl")``; None trains with `SFTModule`.
        seed: decides every file and the first weights.
        demonstrations, texts, prompts: rows of the training files.
        heldout_prompts: rows of each validation file; their prompts are in no training file.

    Returns:
        ``root`` as a path.

    Raises:
        ConfigError: more different prompts asked for than the grammar has.
        CheckpointError: the place cannot be written to.
    """
    root = Path(root)
    write_files(
        root, seed=seed, demonstrations=demonstrations, texts=texts, prompts=prompts, heldout_prompts=heldout_prompts
    )
    file = root / "texts.jsonl"
    config = {"seed": seed, "texts_sha256": sha256(file)}
    if _has_base(root / "base", config):
        return root
    model, tokenizer = untrained_model(seed), build_tokenizer()
    (train_base or train_with_sft)(model, tokenizer, file)

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    write_folder(root / "base", save, {"stage": STAGE, "parents": {}, "config": config, "metrics": {}})
    return root


def write_files(
    root: str | Path,
    *,
    seed: int = 0,
    demonstrations: int = 3000,
    texts: int = 6000,
    prompts: int = 2000,
    heldout_prompts: int = 256,
) -> Path:
    """Write the data files of the task; a file that is already right is left alone. Arguments: `prepare_miniature`."""
    root = Path(root)
    known, held_out = grammar.train_prompts(), grammar.heldout_prompts()
    _check_count("prompts", prompts, len(known))
    _check_count("heldout_prompts", heldout_prompts, len(held_out))
    held_out = held_out[:heldout_prompts]
    choose = _stream(seed, "demonstrations")
    trained = [choose.choice(known) for _ in range(demonstrations)]
    _write(root / "texts.jsonl", _texts(_stream(seed, "texts"), known, texts))
    _write(root / "demonstrations.jsonl", _demonstrations(_stream(seed, "answers"), trained))
    _write(root / "demonstrations.validation.jsonl", _demonstrations(_stream(seed, "validation"), held_out))
    _write(root / "prompts.jsonl", ({"prompt": p} for p in _stream(seed, "prompts").sample(known, prompts)))
    _write(root / "prompts.validation.jsonl", ({"prompt": p} for p in held_out))
    return root


def untrained_model(seed: int = 0) -> LlamaForCausalLM:
    """A Llama with 2 layers of width 128, 0.35 million weights, for the vocabulary of `build_tokenizer`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _stream(seed: int, name: str) -> random.Random:
    """A source of its own for each file, so that the size of one does not change the words of another."""
    return random.Random(f"{seed}/{name}")


def _texts(rng: random.Random, prompts: tuple[str, ...], count: int) -> Iterable[dict[str, str]]:
    for _ in range(count):
        prompt = rng.choice(prompts)
        yield {"text": f"{prompt} {grammar.answer(rng, prompt, grammar.TEXTS)}"}


def _demonstrations(rng: random.Random, prompts: Iterable[str]) -> Iterable[dict[str, str]]:
    for prompt in prompts:
        yield {"prompt": prompt, "completion": f" {grammar.answer(rng, prompt, grammar.DEMONSTRATIONS)}"}


def _check_count(name: str, wanted: int, available: int) -> None:
    if not 1 <= wanted <= available:
        raise ConfigError(f"{name}={wanted}: the miniature grammar has {available} of them; choose 1 to {available}")


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace ``file`` in one step if its content would change."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if file.is_file() and file.read_bytes() == content:
        return
    temporary = file.with_name(f".tmp-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, file)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot write here ({error}); choose another folder or free the disk") from error


def _has_base(folder: Path, config: dict[str, Any]) -> bool:
    try:
        return bool(verify_folder(folder, expect_stage=STAGE)["config"] == config)
    except CheckpointError:
        return False
