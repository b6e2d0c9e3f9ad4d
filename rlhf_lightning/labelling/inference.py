"""A policy's folder, loaded to be used: it answers as its own template and generation config say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from rlhf_lightning.data.chat import encode_prompts
from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.sequences import left_pad
from rlhf_lightning.models import Pretrained, eos_token_ids
from rlhf_lightning.models.loading import DType
from rlhf_lightning.models.memory import halved
from rlhf_lightning.models.tokens import decode, encode
from rlhf_lightning.rollout.engine import Sampling, check_context, decoding, stream_seed
from rlhf_lightning.rollout.hf import generation_config, responses
from rlhf_lightning.rollout.stop import StopStrings
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import PromptBatch

LONGEST = 256  # tokens of an answer, where the folder does not say, but at most half the model's positions
FEW_WORDS = 1000  # a vocabulary that people can be shown


class Answer(NamedTuple):
    """What a policy wrote."""

    text: str
    finished: bool  # by itself, and not because it had to be cut


class Responder:
    """Answers prompts with transformers' own `generate`, so that every field of ``generation_config.json`` counts.

    Args:
        path: folder or hub id of a policy.
        device: where to compute.
        dtype: of the weights.
        settings: fields of the generation config to set otherwise, None to leave them; a temperature switches sampling
            on.
        sampling: draw like this instead, whatever the generation config says; only its stop strings count.

    Raises:
        CheckpointError: there is no policy, or it is damaged.
        ConfigError: transformers refuses the settings.
    """

    def __init__(
        self,
        path: str,
        device: torch.device | str = "cpu",
        dtype: DType = "float32",
        settings: Mapping[str, Any] | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        source = Pretrained(path, dtype=dtype)
        self.model = source.causal_lm().eval().requires_grad_(False).to(device)
        self.tokenizer: PreTrainedTokenizerBase = source.tokenizer()
        given = {name: value for name, value in (settings or {}).items() if value is not None}
        require("--temperature", given.get("temperature"), above=0)
        require("--top-p", given.get("top_p"), above=0, at_most=1)
        require("--max-new-tokens", given.get("max_new_tokens"), at_least=1)
        ends = list(eos_token_ids(self.model, self.tokenizer))
        self.stop = StopStrings(self.model.generation_config.stop_strings or (), self.tokenizer)
        if sampling is not None:  # in the place of the model's own, with which transformers fills in what is not said
            self.model.generation_config = generation_config(sampling, ends, int(self.tokenizer.pad_token_id or 0))
        self.config: GenerationConfig = self.model.generation_config
        tokens = {"eos_token_id": ends, "pad_token_id": self.tokenizer.pad_token_id, "stop_strings": None}
        try:
            self.config.update(**tokens, **given, **({"do_sample": True} if "temperature" in given else {}))
            self.config.max_new_tokens = self.config.max_new_tokens or min(
                LONGEST, (self._positions() or 2 * LONGEST) // 2
            )
            self.config.max_length = None
            self.config.validate()
        except ValueError as error:
            raise ConfigError(f"{path}: generation_config.json: {error}") from error

    @property
    def is_chat(self) -> bool:
        """Whether it has a chat template; otherwise it goes on writing a text."""
        return bool(self.tokenizer.chat_template)

    def __str__(self) -> str:
        """How it answers."""
        how = f"sampled at temperature {self.config.temperature or 1.0:g}" if self.config.do_sample else "greedy"
        kept = {name: getattr(self.config, name) for name in ("top_p", "top_k")}
        kept = {name: value for name, value in kept.items() if self.config.do_sample and value and value != 1}
        more = "".join(f", {name} {value:g}" for name, value in kept.items())
        return f"{how}{more}, at most {self.config.max_new_tokens} tokens"

    def answers(self, rows: Sequence[LocatedRow], samples: int = 1, seed: int = 0) -> list[list[Answer]]:
        """``samples`` answers to the prompt of each row.

        Raises:
            ConfigError: prompt and answer do not fit the model, or several greedy answers were asked for.
            DataError: a prompt cannot be encoded; names file and line.
            OutOfMemory: not even one row fits.
        """
        if samples > 1 and not self.config.do_sample:
            raise ConfigError(
                "the folder's generation_config.json is greedy, so that all answers to a prompt are the same; give "
                "--temperature, or one answer"
            )
        prompts = self._prompts(rows).repeat_interleave(samples)

        def attempt(size: int) -> list[Answer]:
            places = torch.arange(len(prompts)).split(size)
            return [one for part in places for one in self._write(prompts.select(part), seed, int(part[0]))]

        found, _ = halved(attempt, len(prompts), "sampling", "lower --max-new-tokens")
        return [found[at : at + samples] for at in range(0, len(found), samples)]

    def stream(self, row: LocatedRow, write: Callable[[str], None], seed: int = 0) -> Answer:
        """One answer, of which each piece is handed to ``write`` as soon as it is there.

        Raises:
            ConfigError, DataError: as `answers`.
        """
        return self._write(self._prompts([row]), seed, 0, _Pieces(self.tokenizer, write))[0]

    def room(self, row: LocatedRow) -> bool:
        """Whether the row's prompt and an answer fit the model's positions."""
        limit = self._positions()
        length = self._prompts([row]).input_ids.shape[1]
        return limit is None or length + int(self.config.max_new_tokens or 0) <= limit

    def _positions(self) -> int | None:
        """How many tokens the model has places for, where its config says so."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def _prompts(self, rows: Sequence[LocatedRow]) -> PromptBatch:
        ids, mask = left_pad(encode_prompts(self.tokenizer, rows), int(self.tokenizer.pad_token_id or 0))
        return PromptBatch(ids, mask, tuple(row.row for row in rows)).to(self.model.device)

    def _write(self, prompts: PromptBatch, seed: int, part: int, streamer: Any = None) -> list[Answer]:
        longest = Sampling(max_new_tokens=int(self.config.max_new_tokens or LONGEST))
        check_context(self.model, prompts.input_ids.shape[1], longest)
        device = prompts.input_ids.device
        with decoding(self.model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(stream_seed(seed, part))
            found = responses(self.model, prompts, self.config, self.stop, streamer)
        kept = [ids[there].tolist() for ids, there in zip(found.ids, found.mask, strict=True)]
        return list(map(Answer, decode(self.tokenizer, kept), found.finished.tolist()))


def known_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """All words of a tokenizer that knows few of them and no others; none for any other tokenizer."""
    unknown = tokenizer.unk_token_id
    if unknown is None or len(tokenizer) > FEW_WORDS or not unknown_words(tokenizer, "\u2603"):
        return []
    return [word for word, index in sorted(tokenizer.get_vocab().items()) if index not in tokenizer.all_special_ids]


def unknown_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The words of a text that the tokenizer does not know, each once."""
    words = list(dict.fromkeys(text.split()))
    return [word for word, ids in zip(words, encode(tokenizer, words), strict=True) if tokenizer.unk_token_id in ids]


class _Pieces(TextStreamer):
    """Hands the words of an answer on as they are finished."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """As transformers calls it."""
        self._write(text)
