"""Rows as the model meets them: the text, with what is learned from marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.console.display import LEARNED_END, LEARNED_START
from rlhf_lightning.data.rows.repeats import pair_of
from rlhf_lightning.data.rows.types import StageKind, row_type
from rlhf_lightning.rules.rows import TEMPLATE

if TYPE_CHECKING:
    from rlhf_lightning.data.readers.files import LocatedRow
    from rlhf_lightning.types import Row


def previews(rows: Sequence[LocatedRow], kind: StageKind, tokenizer: Any = None) -> list[str]:
    """Lines that show the rows: through the tokenizer, where there is one, else as they are.

    Args:
        rows: to show.
        kind: what the stage takes.
        tokenizer: with whose template and special tokens they are shown.
    """
    shown = []
    for row in rows:
        for label, prompt, answer in _parts(row.row, kind):
            shown.append(f"--- {row.where}{label}")
            shown.append(_plain(prompt, answer) if tokenizer is None else _rendered(row, prompt, answer, tokenizer))
    return shown


def _parts(row: Row, kind: StageKind) -> list[tuple[str, Any, Any]]:
    """Label, prompt and answer of each answer of a row; a conversation or text alone is an answer without a prompt."""
    name = str(row_type(row, kind))
    if kind == "prompts":
        return [("", row["prompt"], None)]
    if name == "prompt+completions+ranks":
        pairs = zip(row["completions"], row["ranks"], strict=True)
        return [(f" (rank {rank})", row["prompt"], answer) for answer, rank in pairs]
    if name.endswith("chosen+rejected"):
        prompt, chosen, rejected = pair_of(row)
        return [(" (chosen)", prompt, chosen), (" (rejected)", prompt, rejected)]
    if name.startswith("prompt"):
        return [(f" (label {row['label']})" if name.endswith("label") else "", row["prompt"], row["completion"])]
    return [("", None, row[name])]


def _plain(prompt: Any, answer: Any) -> str:
    if isinstance(prompt, list) or isinstance(answer, list):
        given = [(turn, False) for turn in prompt or []]
        turns = given + [(t, t["role"] == "assistant" and t.get("weight") != 0) for t in answer or []]
        return "\n".join(f"{turn['role']}: {_marked(turn['content']) if on else turn['content']}" for turn, on in turns)
    return (prompt or "") + (_marked(answer) if answer is not None else "")


def _rendered(row: LocatedRow, prompt: Any, answer: Any, tokenizer: Any) -> str:
    from rlhf_lightning.data.chat import encode_examples, encode_prompts
    from rlhf_lightning.models.tokens import decode

    given = {name: row.row[name] for name in TEMPLATE if row.row.get(name)}
    if answer is None:
        return decode(tokenizer, encode_prompts(tokenizer, [row]), special=True)[0]
    if prompt is None:
        made = {"messages" if isinstance(answer, list) else "text": answer}
    else:
        made = {"prompt": prompt, "completion": answer}
    example = encode_examples(tokenizer, [row._replace(row=made | given)])[0]
    pieces: list[tuple[list[int], bool]] = [(example.prompt_ids, False)] if example.prompt_ids else []
    for token, learned in zip(example.completion_ids, example.completion_mask, strict=True):
        if not pieces or pieces[-1][1] != learned:
            pieces.append(([], learned))
        pieces[-1][0].append(token)
    found = decode(tokenizer, [ids for ids, _ in pieces], special=True)
    return "".join(_marked(text) if on else text for text, (_, on) in zip(found, pieces, strict=True))


def _marked(text: str) -> str:
    return f"{LEARNED_START}{text}{LEARNED_END}"
