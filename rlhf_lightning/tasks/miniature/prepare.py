"""Write the miniature task to disk: its data files and a small base model, both decided by one seed.

Layout under ``root``: ``texts.jsonl`` (``text`` rows), ``demonstrations.jsonl`` and ``demonstrations.validation.jsonl``
(``prompt`` and ``completion``), ``prompts.jsonl`` and ``prompts.validation.jsonl`` (``prompt``), and ``base/``, a
Hugging Face folder with model and tokenizer.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.checkpoint.folders import write_folder
from rlhf_lightning.checkpoint.provenance import sha256
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.tasks.folders import prepare_folder, write_jsonl
from rlhf_lightning.tasks.miniature import grammar
from rlhf_lightning.tasks.miniature.base import train_with_sft
from rlhf_lightning.tasks.miniature.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TrainBase = Callable[["LlamaForCausalLM", "PreTrainedTokenizerFast", Path], None]
"""Trains the model in place on a file of ``text`` rows."""

STAGE, BASE = "miniature", "miniature-base"


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

    A second call with the same arguments changes nothing; with others the folder is written again, and the base model
    is trained again only if ``texts.jsonl`` or the seed changed.

    Args:
        root: folder to fill; made if missing.
        train_base: called as ``train_base(model, tokenizer, texts)`` with the file of texts; None trains with
            `SFTModule`.
        seed: decides every file and the first weights.
        demonstrations, texts, prompts: rows of the training files.
        heldout_prompts: rows of each validation file; their prompts are in no training file.

    Raises:
        ConfigError: more different prompts asked for than the grammar has.
        CheckpointError: something else is at ``root``, or its folder is damaged, or the place cannot be written to.
    """
    sizes = {"demonstrations": demonstrations, "texts": texts, "prompts": prompts, "heldout_prompts": heldout_prompts}
    old = Path(root)

    def write(folder: Path) -> dict[str, Any]:
        write_files(folder, seed=seed, **sizes)
        file = folder / "texts.jsonl"
        if (old / "base").is_dir() and sha256(file) == sha256(old / "texts.jsonl"):
            shutil.copytree(old / "base", folder / "base")
            return {}
        model, tokenizer = untrained_model(seed), build_tokenizer()
        (train_base or train_with_sft)(model, tokenizer, file)
        record = {"stage": BASE, "parents": {}, "config": {"seed": seed, "texts_sha256": sha256(file)}, "metrics": {}}

        def save(base: Path) -> None:
            model.save_pretrained(base)
            tokenizer.save_pretrained(base)

        write_folder(folder / "base", save, record)
        return {}

    return prepare_folder(root, STAGE, {"seed": seed, **sizes}, write)


def write_files(
    root: Path, *, demonstrations: int, texts: int, prompts: int, heldout_prompts: int, seed: int = 0
) -> None:
    """Write the data files of the task. Arguments: `prepare_miniature`."""
    root.mkdir(parents=True, exist_ok=True)
    known, held_out = grammar.train_prompts(), grammar.heldout_prompts()
    _check_count("prompts", prompts, len(known))
    _check_count("heldout_prompts", heldout_prompts, len(held_out))
    held_out = held_out[:heldout_prompts]
    choose = _stream(seed, "demonstrations")
    trained = [choose.choice(known) for _ in range(demonstrations)]
    write_jsonl(root / "texts.jsonl", _texts(_stream(seed, "texts"), known, texts))
    write_jsonl(root / "demonstrations.jsonl", _demonstrations(_stream(seed, "answers"), trained))
    write_jsonl(root / "demonstrations.validation.jsonl", _demonstrations(_stream(seed, "validation"), held_out))
    write_jsonl(root / "prompts.jsonl", ({"prompt": p} for p in _stream(seed, "prompts").sample(known, prompts)))
    write_jsonl(root / "prompts.validation.jsonl", ({"prompt": p} for p in held_out))


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
