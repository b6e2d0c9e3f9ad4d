"""The parts of a row in their places: system turns, prompts beside conversations, and what the chat template gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.data.readers.problems import BadRow
from rlhf_lightning.data.rows.keys import MORE, PROMPT_LIKE
from rlhf_lightning.data.rows.messages import content, texts, without_nulls
from rlhf_lightning.data.rows.unflatten import as_value
from rlhf_lightning.rules.rows import TEMPLATE

_RESERVED = (
    "add_generation_prompt", "chat_template", "continue_final_message", "tokenize", "padding", "truncation",
    "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "conversation", "messages",
    "strftime_now",
)  # fmt: skip
_SYSTEM_ROLES = (None, "system", "user")  # of Gemini's `systemInstruction`
_ANSWERS = ("completion", "chosen", "rejected")


def finished(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """A row with our columns, whose parts are where the checks and the encoding look for them.

    Raises:
        BadRow: something that would be lost or misread; names the column.
    """
    if kind == "demonstrations" and row.get("label") is False:
        raise BadRow(
            "label: is false, and fine-tuning would learn the bad answer; delete the row, take stage=kto,"
            " or rename the column: data.columns={my_label: label}"
        )
    row = _without_repeats(_in_turns(_as_one(_with_system(row))))
    _template_columns(row)
    if isinstance(row.get("margin"), str):
        row["margin"] = number_or_text(row["margin"])
    _nothing_lost(row, kind)
    return row


def prompt_of_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A conversation that waits for an answer is a prompt."""
    turns = row.get("messages")
    if row.get("prompt") is not None or not isinstance(turns, list) or not turns or not isinstance(turns[-1], Mapping):
        return row
    if turns[-1].get("role") == "assistant":
        return row
    return {key: value for key, value in row.items() if key != "messages"} | {"prompt": turns}


def _with_system(row: dict[str, Any]) -> dict[str, Any]:
    """``system`` as the first turn of the conversation, which text becomes where there is one."""
    if row.get("system") is None:
        return row
    given = row["system"]
    system = content("system", given.get("parts") if isinstance(given, Mapping) else given)
    odd = isinstance(given, Mapping) and (set(given) - {"role", "parts"} or given.get("role") not in _SYSTEM_ROLES)
    if not isinstance(system, str) or odd:
        raise BadRow(f"system: is a {type(given).__name__}; write text")
    rest = {key: value for key, value in row.items() if key != "system"}
    name = next((n for n in ("prompt", "messages") if row.get(n) is not None), None)
    if name is None and all(isinstance(row.get(side), list) for side in ("chosen", "rejected")):
        return rest | {side: _begun(side, row[side], system) for side in ("chosen", "rejected")}
    if name is None:
        if row.get("text") is None and row.get("chosen") is None:
            return row  # of no known type
        raise BadRow("system: there is no prompt and no messages that it could be put before; add a prompt column")
    turns = [{"role": "user", "content": row[name]}] if isinstance(row[name], str) else row[name]
    return rest | {name: _begun(name, turns, system)}


def _in_turns(row: dict[str, Any]) -> dict[str, Any]:
    """Answers that are text beside a prompt of messages, as turns of the assistant."""
    if not isinstance(row.get("prompt"), list):
        return row

    def turns(answer: Any) -> Any:
        return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer

    made = {name: turns(row[name]) for name in _ANSWERS if name in row}
    if isinstance(row.get("completions"), list):
        made["completions"] = [turns(answer) for answer in row["completions"]]
    return row | made


def _begun(name: str, turns: Any, system: str) -> Any:
    """The turns, after the system turn."""
    if not isinstance(turns, list) or not system.strip():
        return turns
    first = turns[0] if turns and isinstance(turns[0], Mapping) else {}
    if first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": system}, *turns]
    if str(first.get("content")).strip() != system.strip():
        raise BadRow(f"system: differs from the system turn in {name}; keep one")
    return turns


def _without_repeats(row: dict[str, Any]) -> dict[str, Any]:
    """Answers without the turns of the prompt, where they all begin with them."""
    prompt, given = row.get("prompt"), [name for name in _ANSWERS if row.get(name) is not None]
    if (
        not isinstance(prompt, list)
        or not prompt
        or not given
        or not all(isinstance(row[name], list) for name in given)
    ):
        return row
    length = len(prompt)
    if all(row[name][:length] == prompt and len(row[name]) > length for name in given):
        return row | {name: row[name][length:] for name in given}
    return row


def _as_one(row: dict[str, Any]) -> dict[str, Any]:
    """A text prompt beside answers that are conversations: their first turns, or a user turn before them."""
    prompt, completion = row.get("prompt"), row.get("completion")
    first = completion[0] if isinstance(completion, list) and completion else None
    if isinstance(prompt, str) and isinstance(first, Mapping) and first.get("role") == "assistant":
        return row | {"prompt": [{"role": "user", "content": prompt}]}
    sides = [side for side in (row.get("chosen"), row.get("rejected")) if isinstance(side, list) and side]
    if not isinstance(prompt, str) or len(sides) < 2:
        return row
    shared = 0
    for one, other in zip(*sides, strict=False):
        if one != other:
            break
        shared += 1
    shared = min(shared, *(len(side) - 1 for side in sides))
    turns = [turn for turn in sides[0][:shared] if isinstance(turn, Mapping)]
    if not shared:
        if any(isinstance(turn, Mapping) and turn.get("role") != "assistant" for side in sides for turn in side[:1]):
            raise BadRow(
                "prompt: is text, and chosen and rejected are conversations that do not begin alike; write messages"
            )
        return row | {"prompt": [{"role": "user", "content": prompt}]}
    if prompt.strip() not in texts(turns):
        raise BadRow(
            "prompt: is not what chosen and rejected both begin with; write it there, or rename it by data.columns"
        )
    return row | {"prompt": sides[0][:shared], "chosen": sides[0][shared:], "rejected": sides[1][shared:]}


def _template_columns(row: dict[str, Any]) -> None:
    """What reaches the chat template, as lists and objects."""
    if row.get("functions") is not None:
        functions = row.pop("functions")
        functions = as_value("functions", functions) if isinstance(functions, str) else functions
        if row.get("tools") or not isinstance(functions, list):
            raise BadRow("functions: must be a list, and not stand beside tools")
        row["tools"] = [{"type": "function", "function": function} for function in functions] or None
    for name, form in (("tools", list), ("documents", list), ("chat_template_kwargs", dict)):
        value = row.get(name)
        if isinstance(value, str):
            value = as_value(name, value) if value.strip() else None
        if value is not None and not isinstance(value, form):
            raise BadRow(f"{name}: is a {type(value).__name__}; write {'a list' if form is list else 'an object'}")
        if name in row:
            row[name] = [_tool(tool) for tool in value] if name == "tools" and value else value or None
    reserved = [name for name in row.get("chat_template_kwargs") or () if name in _RESERVED or name in TEMPLATE]
    if reserved:
        raise BadRow(f"chat_template_kwargs.{reserved[0]}: is not for the template to read; leave it out")
    if isinstance(row.get("enable_thinking"), bool):
        row["chat_template_kwargs"] = (row.get("chat_template_kwargs") or {}) | {
            "enable_thinking": row.pop("enable_thinking")
        }
    given = next((name for name in TEMPLATE if row.get(name)), None)
    parts = [row[name] for name in ("prompt", "messages", "chosen", "text") if row.get(name) is not None]
    if given and parts and not any(isinstance(part, list) for part in parts):
        raise BadRow(
            f"{given}: is for a chat template, but the row is text; write messages, or rename it by data.columns"
        )


def _tool(tool: Any) -> Any:
    tool = as_value("tools", tool) if isinstance(tool, str) else tool
    if not isinstance(tool, Mapping):
        raise BadRow(f"tools: holds a {type(tool).__name__}; write each tool as an object")
    tool = without_nulls(tool)
    if "function" in tool or "name" not in tool:
        return tool
    if "input_schema" in tool:  # Anthropic's name
        tool = {key: value for key, value in tool.items() if key != "input_schema"} | {
            "parameters": tool["input_schema"]
        }
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def number_or_text(text: str) -> Any:
    """A number that a table wrote as text; other text is named by the check of fields."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _nothing_lost(row: Mapping[str, Any], kind: str) -> None:
    """Refuse a column that looks like a part of the prompt and is not in what the model would see."""
    named = (
        MORE if kind == "prompts" and row.get("prompt") is not None else PROMPT_LIKE
    )  # reward functions get the rest
    names = [name for name in row if name.lower() in named and name != "prompt" and row[name] not in (None, "", [])]
    if row.get("messages") is not None and row.get("prompt") is not None and row.get("completion") is None:
        names.append("prompt")
    shown = [row[name] for name in ("prompt", "messages", "text", "chosen") if row.get(name) is not None]
    if not names or not shown:
        return
    seen = "\n".join(texts(value) for value in shown if value is not row.get("prompt") or "prompt" not in names)
    for name in names:
        if texts(row[name]).strip() not in seen or not texts(row[name]).strip():
            raise BadRow(
                f"{name}: looks like a part of the prompt, and would be left out; say where it belongs with"
                f" data.columns or data.prompt_template, or rename it: data.columns={{other_{name}: {name}}}"
            )
