"""Render conversations by the chat template of a tokenizer, which is a program that someone else wrote.

It runs in the sandbox of transformers, and here with an end: a conversation gets `SECONDS` of processor time, about
`MEMORY` bytes more than the process holds, and `OUTPUT` characters. The time is kept in the main thread only, where
Python has signals, and the memory where ``/proc`` tells how much is in use.
"""

from __future__ import annotations

import datetime
import os
import re
import resource
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, MappingProxyType, TracebackType
from typing import Any, NoReturn, TypeVar

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from rlhf_lightning.errors import DataError, TemplateFault

SECONDS = 10.0  # of processor time
MEMORY = 2**30  # bytes
OUTPUT = 16 * 2**20  # characters; a line of a data file may be as long
_STATM = "/proc/self/statm"
_ROWS = 32  # conversations between two looks at the memory in use
DATE = datetime.datetime(2024, 7, 26)  # what Llama 3's templates write where nobody tells them the date
_RANDOM = re.compile(r"\|\s*random\b|\blipsum\s*\(")
Message = Mapping[str, Any]
T = TypeVar("T")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class _TooLong(TemplateFault):
    """Raised in the middle of a template, or of what is done with it."""


class _Limits:
    """While it is entered, work that goes on too long is interrupted and large allocations fail.

    Entering it again inside costs nothing, so that a loop over many rows enters once and calls `renew` for each.
    """

    def __init__(self) -> None:
        self._depth = self._count = 0
        self._handler: Any = None
        self._soft = self._hard = resource.RLIM_INFINITY
        self._statm: int | None = None

    def __enter__(self) -> _Limits:
        if not _in_main_thread():
            return self
        self._depth += 1
        if self._depth == 1:
            self._soft, self._hard = resource.getrlimit(resource.RLIMIT_AS)
            self._statm = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC) if os.path.exists(_STATM) else None
            self._handler, self._count = signal.signal(signal.SIGVTALRM, _interrupt), 0
            self.renew()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not _in_main_thread():
            return
        self._depth -= 1
        if self._depth == 0:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, self._handler)
            if self._statm is not None:
                resource.setrlimit(resource.RLIMIT_AS, (self._soft, self._hard))
                os.close(self._statm)

    def renew(self) -> None:
        """The next conversation begins."""
        if not _in_main_thread():
            return
        # again each second, since Python drops what is raised while it deletes an object
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 1.0)
        if self._statm is not None and self._count % _ROWS == 0:
            pages = int(os.pread(self._statm, 32, 0).split()[0])
            most = pages * resource.getpagesize() + MEMORY
            others = [limit for limit in (self._soft, self._hard) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_AS, (min([most, *others]), self._hard))
        self._count += 1


LIMITS = _Limits()


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """How messages call the tokenizer: its path, or its class where it has none."""
    return f"'{tokenizer.name_or_path or type(tokenizer).__name__}'"


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    generation_prompt: bool = False,
    given: Mapping[str, Any] = _NOTHING,
) -> str:
    """The conversation as the template writes it, special tokens included.

    A template that asks for the date always gets `DATE`: what a model learns must not depend on the day.

    Args:
        tokenizer: with a chat template.
        messages: the conversation.
        generation_prompt: also write what stands before an answer.
        given: ``tools``, ``documents``, and other variables that the template reads.

    Raises:
        TemplateFault: the template takes too much time or memory, or writes too much.
        DataError: the tokenizer has no chat template, or the template refuses the conversation.
    """
    check_template(tokenizer)

    def attempt() -> str:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **{"strftime_now": DATE.strftime, **given},
            )
        )

    text = _limited(tokenizer, len(messages), attempt)
    _check_length(tokenizer, text)
    return text


def render_marked(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], given: Mapping[str, Any] = _NOTHING
) -> tuple[str, list[tuple[int, int]]]:
    """The same, with the places (first character, one behind the last) that ``{% generation %}`` encloses."""
    check_template(tokenizer)

    def attempt() -> tuple[list[str], list[list[tuple[int, int]]]]:
        call: dict[str, Any] = {
            "conversations": [[{k: v for k, v in message.items() if v is not None} for message in messages]],
            "chat_template": tokenizer.get_chat_template(tools=given.get("tools")),
            "return_assistant_tokens_mask": True,
        }
        date = {"strftime_now": DATE.strftime}
        found: Any = render_jinja_template(**{**tokenizer.special_tokens_map, **date, **given, **call})
        return found

    (text,), (places,) = _limited(tokenizer, len(messages), attempt)
    _check_length(tokenizer, text)
    return text, places


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `DataError` if the tokenizer cannot render messages, or not twice alike."""
    if not tokenizer.chat_template:
        raise DataError(
            f"the row holds messages, but tokenizer {name_of(tokenizer)} has no chat template; take the tokenizer of an"
            " instruct model, set `tokenizer.chat_template`, or write prompt and completion as text"
            " (data.prompt_template makes text of columns)."
        )
    template = tokenizer.chat_template
    if any(_RANDOM.search(str(text)) for text in (template.values() if isinstance(template, dict) else [template])):
        raise DataError(
            f"the chat template of tokenizer {name_of(tokenizer)} draws at random, so that no two runs would learn from"
            " the same text; take it out of the template."
        )


def _limited(tokenizer: PreTrainedTokenizerBase, messages: int, attempt: Callable[[], T]) -> T:
    try:
        with LIMITS:
            return attempt()
    except _TooLong:
        why = f"took more than {SECONDS:.0f} s of processor time for"
    except MemoryError:
        why = f"took more than {MEMORY:,} bytes of memory for"
    except Exception as error:  # a template is a program: it can fail in any way
        reason = str(error).strip() or type(error).__name__
        raise DataError(
            f"the chat template of tokenizer {name_of(tokenizer)} refuses the messages: {reason}"
        ) from error
    raise _fault(tokenizer, f"{why} a conversation of {messages} messages")


def _check_length(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    if len(text) > OUTPUT:
        raise _fault(tokenizer, f"wrote {len(text):,} characters for one conversation, and {OUTPUT:,} are allowed")


def _fault(tokenizer: PreTrainedTokenizerBase, what: str) -> TemplateFault:
    return TemplateFault(
        f"the chat template of tokenizer {name_of(tokenizer)} {what}; look at the template (chat_template.jinja or "
        "tokenizer_config.json in that folder), take another tokenizer, or shorten the row."
    )


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise _TooLong(f"to render the conversation took more than {SECONDS:.0f} s of processor time; shorten it.")
