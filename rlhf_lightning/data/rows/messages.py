"""Messages of other tools in one form: ``role`` and ``content`` as text, and whatever else the chat template reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.data.readers.problems import BadRow
from rlhf_lightning.data.rows.keys import MESSAGE_KEYS, REFUSED
from rlhf_lightning.data.rows.unflatten import as_conversation, as_value, rows_of_columns

ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool", "function", "ipython")},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "chatbot", "ai"), "assistant"),
    "observation": "tool",
    "function_call": "assistant",
}
"""What the roles of other tools are here."""
_PLAIN = {"role", "content"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_OTHER_PARTS = {  # of Anthropic's messages
    "tool_use": "write it as tool_calls of the message",
    "tool_result": "write it as a message of the role tool",
    "thinking": "write it as reasoning_content of the message",
}
_LEARNED = ("weight", "train", "training")


def normal(name: str, value: Any, roles: Mapping[str, str] = ROLES) -> Any:
    """A list of messages in our form; anything that is no list or object of messages as it is.

    Args:
        name: of the column, for messages.
        value: as it stands in the row: a list, one message, lists of roles and contents, or any of these as text.
        roles: what the roles of the file are here.

    Raises:
        BadRow: a message that is not understood; names it.
    """
    if isinstance(value, str):
        value = as_conversation(name, value)
    if isinstance(value, Mapping):
        value = rows_of_columns(dict(value)) or [value]
    if not isinstance(value, list):
        return value
    if all(_is_normal(message, roles) for message in value):
        return value
    return [_message(f"{name}[{number}]", message, roles) for number, message in enumerate(value)]


def _is_normal(message: Any, roles: Mapping[str, str]) -> bool:
    if type(message) is not dict or message.keys() != _PLAIN:
        return False
    role = message["role"]
    return type(message["content"]) is str and type(role) is str and roles.get(role) == role


def _message(name: str, message: Any, roles: Mapping[str, str]) -> Any:
    if isinstance(message, str):
        message = as_conversation(name, message)
    if not isinstance(message, Mapping):
        return message  # the check of fields names it
    given = {key: value for key, value in message.items() if value is not None}
    for key, (what, how) in MESSAGE_KEYS.items():
        if what == REFUSED and given.get(key) not in (None, [], {}, ""):
            raise BadRow(f"{name}.{key}: {how}")
    made: dict[str, Any] = {
        "role": _either(name, given, "role", "from"),
        "content": _either(name, given, "content", "value", "parts"),
    }
    rest = {
        key: value
        for key, value in given.items()
        if key not in ("role", "from", "content", "value", "parts", *_LEARNED)
    }
    role = made["role"]
    if isinstance(role, str):
        made["role"] = _role(name, role, roles)
        if role == "function_call" and roles.get(role) == "assistant":
            if rest.get("tool_calls") or rest.get("function_call"):
                raise BadRow(f"{name}: is a function_call, and holds another one; keep one")
            rest["function_call"], made["content"] = _called(name, made["content"]), ""
    if calls := _calls(name, rest):
        rest["tool_calls"] = calls
        made["content"] = made["content"] or ""
    made["content"] = content(f"{name}.content", made["content"])
    if made["content"] is None and any(rest.get(key) for key in ("reasoning_content", "thinking", "reasoning")):
        made["content"] = ""
    return {key: value for key, value in made.items() if value is not None} | rest | _learned(name, given, made["role"])


def _either(name: str, given: Mapping[str, Any], *keys: str) -> Any:
    """What stands under one of several keys that mean the same."""
    first, *others = [key for key in keys if key in given] or keys[:1]
    for other in others:
        if given[first] != given[other]:
            raise BadRow(f"{name}: holds {first} and {other}, which differ; keep one")
    return given.get(first)


def _role(name: str, role: str, roles: Mapping[str, str]) -> str:
    found = roles.get(role) or roles.get(role.strip().lower())
    if found is None and role.strip():
        raise BadRow(
            f"{name}.role: '{role[:40]}' is none of {', '.join(ROLES)}; say what it is,"
            f" for example data.roles={{user: {role[:40]}}}"
        )
    return found or role


def content(name: str, value: Any) -> Any:
    """Text parts as one text; anything else as it is.

    Raises:
        BadRow: a part that is no text; names it.
    """
    if isinstance(value, str) and value[:1] == "[" and '"type"' in value.replace("'", '"')[:200]:
        value = as_value(name, value, "a list of parts that was written as text")
    if not isinstance(value, list):
        return value
    parts = []
    for number, part in enumerate(value):
        if isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") in _TEXT_PARTS:
            extra = sorted(key for key in part if key not in ("type", "text") and part[key] not in (None, [], {}, ""))
            if extra:
                raise BadRow(f"{name}[{number}].{extra[0]}: only text parts of type and text are learned; leave it out")
            parts.append(part["text"])
            continue
        kind = part.get("type", *list(part)[:1]) if isinstance(part, Mapping) else type(part).__name__
        advice = _OTHER_PARTS.get(str(kind), "leave rows with other parts out")
        raise BadRow(f"{name}[{number}]: a part of type {str(kind)[:40]}; only text parts are learned; {advice}")
    return "".join(parts)


def _calls(name: str, rest: dict[str, Any]) -> list[Any]:
    """The tool calls of a message, arguments as objects; the older ``function_call`` is one of them."""
    older = rest.pop("function_call", None)
    calls = rest.pop("tool_calls", None) or []
    if isinstance(calls, str):
        calls = as_value(f"{name}.tool_calls", calls)
    if not isinstance(calls, list) or (older and calls):
        raise BadRow(f"{name}.tool_calls: must be a list, and not stand beside function_call")
    calls = calls or ([{"type": "function", "function": older}] if older else [])
    return [_call(f"{name}.tool_calls[{number}]", call) for number, call in enumerate(calls)]


def _call(name: str, call: Any) -> Any:
    if isinstance(call, str):
        call = as_value(name, call)
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise BadRow(f'{name}: write {{"type": "function", "function": {{"name": ..., "arguments": {{...}}}}}}')
    arguments = inner.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        arguments = as_value(f"{name}.arguments", arguments, "an object that was written as text")
    function = dict(inner) | {"arguments": without_nulls(arguments) if arguments else {}}
    return (dict(call) if "function" in call else {"type": "function"}) | {"function": function}


def _called(name: str, content: Any) -> Any:
    return (
        as_value(f"{name}.value", content, "a call that was written as text") if isinstance(content, str) else content
    )


def without_nulls(value: Any) -> Any:
    """The value without the keys that a table format fills with null."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _learned(name: str, given: Mapping[str, Any], role: object) -> dict[str, Any]:
    """``weight: 0`` of a turn that is not to be learned, whatever it is called in the file."""
    values = {key: given[key] for key in _LEARNED if key in given}
    for key, value in values.items():
        if isinstance(value, str) or value not in (0, 1):
            raise BadRow(
                f"{name}.{key}: is {value!r:.40}; write 1 for a turn that is learned and 0 for one that is given"
            )
        if value and role != "assistant":
            raise BadRow(f"{name}.{key}: only turns of the assistant are learned; leave the key out")
    if len({bool(value) for value in values.values()}) > 1:
        raise BadRow(f"{name}: {' and '.join(values)} say different things; keep one")
    return {"weight": 0} if values and not any(values.values()) else {}


def texts(value: Any) -> str:
    """All the text of a prompt or conversation."""
    if isinstance(value, str):
        return value
    turns = value if isinstance(value, list) else []
    return "\n".join(str(turn.get("content") or "") for turn in turns if isinstance(turn, Mapping))
