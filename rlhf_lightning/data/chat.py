"""Text and conversations to token ids. Prompt and completion are encoded apart, so that no token spans both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.readers.files import LocatedRow, located
from rlhf_lightning.data.rows.turns import has_generation_markers, split_turns
from rlhf_lightning.errors import DataError
from rlhf_lightning.models.templates import LIMITS, name_of, render, render_marked
from rlhf_lightning.models.tokens import TokenizerFault, decode, encode, encode_marked
from rlhf_lightning.types import Row

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example: the prompt is all before the first token to learn, the completion is the rest."""

    prompt_ids: list[int]
    completion_ids: list[int]  # ends with EOS, unless it was cut
    completion_mask: list[bool]  # True at tokens to learn; False at later user turns of a conversation

    @property
    def input_ids(self) -> list[int]:
        """Prompt and completion."""
        return self.prompt_ids + self.completion_ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    def shortened(self, max_length: int, bos: int | None) -> Encoded:
        """At most ``max_length`` tokens: the prompt loses its head (not BOS), and only then the completion its end."""
        room = max(max_length - len(self.completion_ids), 1 if self.prompt_ids else 0)
        prompt = shorten_prompt(self.prompt_ids, room, bos)
        rest = max_length - len(prompt)
        return replace(
            self,
            prompt_ids=prompt,
            completion_ids=self.completion_ids[:rest],
            completion_mask=self.completion_mask[:rest],
        )


def shorten_prompt(ids: list[int], length: int, bos: int | None) -> list[int]:
    """The last ``length`` tokens; a leading BOS is kept where there is room for it and one token more."""
    if len(ids) <= length:
        return ids
    if bos is not None and ids[0] == bos and length > 1:
        return [bos, *ids[len(ids) - length + 1 :]]
    return ids[len(ids) - length :]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Ids of a prompt: text with the tokenizer's own BOS (if it adds one), or messages through the chat template."""
    return encode_prompts(tokenizer, [LocatedRow({"prompt": prompt}, "prompt", 1)])[0]


def encode_example(tokenizer: PreTrainedTokenizerBase, row: Row) -> Encoded:
    """Ids of a demonstration: prompt+completion, messages or text. See `encode_examples`."""
    return encode_examples(tokenizer, [LocatedRow(row, "row", 1)])[0]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[LocatedRow]) -> list[list[int]]:
    """Ids of ``row["prompt"]`` of each row, in one call of the tokenizer.

    Raises:
        DataError: messages without a chat template, or a prompt without a single token; names file and line.
    """
    texts, plain = [], []
    with LIMITS:
        for row in rows:
            prompt = row.row["prompt"]
            plain.append(isinstance(prompt, str))
            LIMITS.renew()
            with located(row):
                texts.append(prompt if isinstance(prompt, str) else render(tokenizer, prompt, generation_prompt=True))
    start = _start_ids(tokenizer)
    encoded = tokenise(tokenizer, texts, rows)
    for row, ids in zip(rows, encoded, strict=True):
        if not ids:
            raise DataError(
                f"{row.where}: prompt: holds no token of tokenizer {name_of(tokenizer)}; change or delete it."
            )
    return [_with_start(ids, start) if text else ids for ids, text in zip(encoded, plain, strict=True)]


def encode_examples(tokenizer: PreTrainedTokenizerBase, rows: Sequence[LocatedRow]) -> list[Encoded]:
    """Ids of prompt+completion, messages or text rows. EOS stands exactly once at the end and is learned.

    Raises:
        DataError: no EOS token, no chat template for messages, a completion without a token; names file and line.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(f"tokenizer {name_of(tokenizer)} has no EOS token; set `tokenizer.eos_token`.")
    marked: dict[int, tuple[str, list[tuple[int, int]]]] = {}
    pieces: list[list[tuple[str, bool]]] = []
    with LIMITS:
        for index, row in enumerate(rows):
            LIMITS.renew()
            with located(row):
                if "messages" in row.row and _is_messages(row.row) and has_generation_markers(tokenizer):
                    marked[index] = render_marked(tokenizer, row.row["messages"])
                pieces.append([] if index in marked else _pieces(tokenizer, row.row))
    owners = [row for row, row_pieces in zip(rows, pieces, strict=True) for _ in row_pieces]
    flat = iter(tokenise(tokenizer, [text for row_pieces in pieces for text, _ in row_pieces], owners))
    start = _start_ids(tokenizer)
    examples = []
    for index, row in enumerate(rows):
        with located(row):
            if index in marked:
                ids = _marked_pieces(tokenizer, row.row["messages"], *marked[index])
            else:
                ids = [(next(flat), learned) for _, learned in pieces[index]]
            if not ids[0][0]:
                raise DataError(f"the row starts with no token of tokenizer {name_of(tokenizer)}; change or delete it.")
            if _is_plain(row.row):
                ids[0] = (_with_start(ids[0][0], start), ids[0][1])
            examples.append(_assemble(tokenizer, ids, int(eos)))
    return examples


def tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], owners: Sequence[LocatedRow] = ()
) -> list[list[int]]:
    """Ids of each text without added special tokens; equal texts are encoded once.

    Args:
        tokenizer: what to encode with.
        texts: what to encode.
        owners: the row that each text is of.

    Raises:
        DataError: the tokenizer fails on a text; names file and line of its row.
    """
    unique = list(dict.fromkeys(texts))
    try:
        ids = encode(tokenizer, unique)
    except TokenizerFault as fault:
        owner = owners[texts.index(unique[fault.index])].where + ": " if owners else ""
        raise DataError(f"{owner}{fault}") from fault
    table = dict(zip(unique, ids, strict=True))
    return [list(table[text]) for text in texts]


def _is_messages(row: Row) -> bool:
    return row.get("messages") is not None and row.get("completion") is None


def _is_plain(row: Row) -> bool:
    return not _is_messages(row) and isinstance(row.get("completion", row.get("text")), str)


def _pieces(tokenizer: PreTrainedTokenizerBase, row: Row) -> list[tuple[str, bool]]:
    if _is_messages(row):
        return split_turns(tokenizer, row["messages"])
    if row.get("completion") is None:
        return [(row["text"], True)]
    if isinstance(row["completion"], str):
        return [(row["prompt"], False), (row["completion"], True)]
    return split_turns(tokenizer, [*row["prompt"], *row["completion"]], first=len(row["prompt"]))


def _marked_pieces(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], text: str, places: list[tuple[int, int]]
) -> list[tuple[list[int], bool]]:
    """Pieces by the template's own markers; by `split_turns` where the tokenizer cannot place them."""
    ids, mask = encode_marked(tokenizer, text, places)
    if not any(mask):
        cut = split_turns(tokenizer, messages)
        return list(zip(tokenise(tokenizer, [text for text, _ in cut]), [learned for _, learned in cut], strict=True))
    pieces: list[tuple[list[int], bool]] = []
    for token, learned in zip(ids, mask, strict=True):
        ends_turn = pieces and pieces[-1][1] and token == tokenizer.eos_token_id
        if not pieces or (pieces[-1][1] != learned and not ends_turn):
            pieces.append(([], learned))
        pieces[-1][0].append(token)
    return pieces


def _assemble(tokenizer: PreTrainedTokenizerBase, pieces: list[tuple[list[int], bool]], eos: int) -> Encoded:
    """Join pieces; the white space a template puts after EOS is not learned, and nothing follows the last EOS."""
    ids: list[int] = []
    mask: list[bool] = []
    for part, learned in pieces:
        kept = _through_eos(tokenizer, part, eos) if learned else 0
        ids += part
        mask += [True] * kept + [False] * (len(part) - kept)
    if True not in mask:
        raise DataError(f"the completion holds no token of tokenizer {name_of(tokenizer)}; change or delete the row.")
    first, last = mask.index(True), len(mask) - mask[::-1].index(True)
    ids, mask = ids[:last], mask[:last]
    if ids[-1] != eos:
        ids, mask = [*ids, eos], [*mask, True]
    return Encoded(ids[:first], ids[first:], mask[first:])


def _through_eos(tokenizer: PreTrainedTokenizerBase, ids: list[int], eos: int) -> int:
    """How many of ``ids`` to learn: all, or up to the last EOS where only white space follows it."""
    if eos not in ids or ids[-1] == eos:
        return len(ids)
    end = len(ids) - ids[::-1].index(eos)
    return len(ids) if decode(tokenizer, [ids[end:]], special=True)[0].strip() else end


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts in front of a text: BOS, or nothing."""
    bare, full = (encode(tokenizer, ["a"], special)[0] for special in (False, True))
    found = (i for i in range(len(full)) if bare and full[i : i + len(bare)] == bare)
    return list(full[: next(found, 0)])


def _with_start(ids: list[int], start: list[int]) -> list[int]:
    return ids if ids[: len(start)] == start else start + ids
