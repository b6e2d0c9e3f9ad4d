"""From a row as it stands in a file to one of our types: columns, templates, roles, and shapes of other tools."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.data.readers.problems import BadRow
from rlhf_lightning.data.rows import known
from rlhf_lightning.data.rows.judged import check_kept, judged
from rlhf_lightning.data.rows.keys import FOLLOWED, PROMPT_LIKE, REFUSED, ROW_KEYS
from rlhf_lightning.data.rows.messages import ROLES, normal
from rlhf_lightning.data.rows.parts import finished, prompt_of_messages
from rlhf_lightning.data.rows.types import UNREAD
from rlhf_lightning.data.rows.unflatten import as_value
from rlhf_lightning.errors import ConfigError

CONTENT = ("prompt", "completion", "chosen", "rejected", "messages", "text")
_PLAIN = frozenset(("prompt", "completion", "chosen", "rejected", "text"))
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_MAYBE_FLAT = re.compile(r"\s*[\[{]").match  # what a conversation that was written as text begins with
_FIRST = "[{ \t\r\n\v\f"


class Shape:
    """How the columns of a file are read.

    Args:
        columns: our name of a column, and that of the file: ``{prompt: question, completion: answer}``.
        prompt_template: text of the prompt, with columns of the file in braces: ``"Q: {question}\\nA:"``. A line end
            may be written as ``\\n``, a brace as two.
        roles: our name of a role, and that of the file or a list of them: ``{user: guest, assistant: [agent, bot]}``.

    Raises:
        ConfigError: a name that is no text, or a template without a column.
    """

    def __init__(
        self,
        columns: Mapping[str, str] | None = None,
        prompt_template: str | None = None,
        roles: Mapping[str, str | Sequence[str]] | None = None,
    ) -> None:
        self.columns = {str(ours): _name("columns", theirs) for ours, theirs in (columns or {}).items()}
        self.template = None if prompt_template is None else str(prompt_template).replace("\\n", "\n")
        if self.template is not None and not any(match[1] for match in _FIELD.finditer(self.template)):
            raise ConfigError(
                f"data.prompt_template={prompt_template}: names no column; write one in braces: {{question}}"
            )
        theirs = {ours: [names] if isinstance(names, str) else list(names) for ours, names in (roles or {}).items()}
        self.roles = ROLES | {_name("roles", name): str(ours) for ours, names in theirs.items() for name in names}
        self.roles |= {str(ours): str(ours) for ours in theirs if ours not in self.roles}
        self._as_it_is = not self.columns and self.template is None
        self._plain: dict[tuple[str, ...], bool] = {}

    def __call__(self, row: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
        """The row with our columns; itself where nothing is to do.

        Args:
            row: as it stands in the file.
            kind: what the stage takes: demonstrations, comparisons, feedback or prompts.

        Raises:
            BadRow: something in it that is not understood or not followed; names the column.
        """
        return row if self.is_plain(row) else self._shaped(dict(row), kind)

    def is_plain(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is all text that is taken as it is; blank text is not."""
        names = tuple(row)
        plain = self._plain.get(names)
        if plain is None:
            plain = self._plain[names] = self._as_it_is and not any(_is_special(name) for name in names)
        if plain:
            for value in row.values():
                if type(value) is not str or (
                    value[:1] in _FIRST and (_MAYBE_FLAT(value) or not value or value.isspace())
                ):
                    return False
        return plain

    def _shaped(self, row: dict[str, Any], kind: str) -> dict[str, Any]:
        row = self._with_template(self._renamed(row, kind))
        given = known.message_pair(known.openai_preference(row))
        row = judged(given, kind, self.template is not None, self.roles)
        if row is not given:
            check_kept(given, row)
        _refuse(row, kind)
        row = known.question_pair(known.alpaca(known.called(known.share_gpt(row)), kind == "prompts"))
        for name in CONTENT:
            if row.get(name) is not None and (name != "text" or not isinstance(row[name], list)):
                found = normal(name, row[name], self.roles)
                if name == "text" and isinstance(found, list):
                    row = known.renamed(row, {"text": "messages"}) | {"messages": found}
                else:
                    row[name] = found
        self._completions(row, kind)
        row = known.labelled(row, kind == "feedback") if kind != "prompts" else prompt_of_messages(row)
        return finished(row, kind)

    def _completions(self, row: dict[str, Any], kind: str) -> None:
        """Answers as messages or text, and their ranks."""
        if kind == "prompts" or row.get("completions") is None:
            return
        found = row["completions"]
        found = as_value("completions", found) if isinstance(found, str) else found
        if isinstance(found, list):
            row["completions"] = [normal(f"completions[{i}]", answer, self.roles) for i, answer in enumerate(found)]
        if isinstance(row.get("ranks"), str):
            row["ranks"] = as_value("ranks", row["ranks"])
        row |= known.scores(row)

    def _renamed(self, row: dict[str, Any], kind: str) -> dict[str, Any]:
        """The row with the names that ``columns`` gives. Those of answers that are not read may be missing."""
        used = {theirs for theirs in self.columns.values() if theirs in row}
        made: dict[str, Any] = {}
        for ours, theirs in self.columns.items():
            if theirs not in row:
                if ours in row or ours in UNREAD[kind]:
                    continue
                raise BadRow(f"data.columns: there is no column '{theirs}' (there are {', '.join(row) or 'none'})")
            if ours in row and ours not in used and ours != theirs:
                raise BadRow(
                    f"data.columns: {ours} is to be '{theirs}', but there is a column {ours} as well; give that one a"
                    f" name too: data.columns={{{ours}: {theirs}, old_{ours}: {ours}}}"
                )
            made[ours] = row[theirs]
        return {key: value for key, value in row.items() if key not in used} | made

    def _with_template(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the prompt that ``prompt_template`` makes of it."""
        if self.template is None:
            return row
        fields = {match[1] for match in _FIELD.finditer(self.template) if match[1]}
        if missing := sorted(fields - set(row)):
            raise BadRow(
                f"data.prompt_template: there is no column '{missing[0]}' (there are {', '.join(row) or 'none'})"
            )
        if "prompt" in row and row["prompt"] is not None and "prompt" not in fields:
            raise BadRow("data.prompt_template: does not use the prompt of the row; write {prompt} in it or rename it")

        def filled(match: re.Match[str]) -> str:
            if not match[1]:
                return match[0][0]
            value = row[match[1]]
            if value is not None and not isinstance(value, (str, int, float)):
                raise BadRow(
                    f"data.prompt_template: {match[1]} is a {type(value).__name__}; only text can be filled in"
                )
            return "" if value is None else str(value)

        gone = {name for name in fields if name.lower() in PROMPT_LIKE or name == "system"}
        return {key: value for key, value in row.items() if key not in gone} | {
            "prompt": _FIELD.sub(filled, self.template)
        }


AS_IT_IS = Shape()
"""Our columns, and the shapes of other tools."""


def _name(key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"data.{key}: holds {value!r}; write names, for example data.columns={{prompt: question}}")
    return value


def _is_special(name: str) -> bool:
    """Whether a column is more than text that is taken as it is, or reaches reward functions."""
    if name in _PLAIN:
        return False
    use = ROW_KEYS.get(name)
    return name.lower() in PROMPT_LIKE or (use is not None and use.what in (FOLLOWED, REFUSED))


def _refuse(row: Mapping[str, Any], kind: str) -> None:
    for name in row:
        if isinstance(row[name], Mapping) and row[name].keys() == {"bytes", "path"}:
            raise BadRow(f"{name}: is an image or sound; {ROW_KEYS['image'].how}")
        use = ROW_KEYS.get(name)
        if use is None or use.what != REFUSED or row[name] in (None, "", []) or _is_harmless(name, row[name]):
            continue
        if kind == "prompts" and name in ("weight", "labels"):
            continue  # of answers, which prompts have none of
        raise BadRow(f"{name}: {use.how}; to keep it for reward functions alone, data.columns={{my_{name}: {name}}}")


def _is_harmless(name: str, value: Any) -> bool:
    """What says nothing else than what is done anyway."""
    return name == "parallel_tool_calls" and value is True
