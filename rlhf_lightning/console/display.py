"""Text of others, made safe to show on a terminal, in a log, in Markdown and in a figure. Standard library only."""

from __future__ import annotations

import re

LEARNED_START, LEARNED_END = "\ue000", "\ue001"  # of Unicode's private use, around what is learned in a preview
LONGEST_NAME = 80  # characters of a name in a figure

# Controls but tab and newline, marks without width, changes of direction, separators that end a line, halves of pairs,
# fillers and tags that nobody sees. NUL to U+009F, then by the blocks of Unicode.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# What Markdown, its usual extensions and the programs that show it give a meaning to. A dot inside of a word and a
# colon before anything make addresses, an underscore inside of a word makes nothing.
_MARKS = re.compile(
    r"""[&<>|`*~\[\]{}!\#\\$^]
    | _ (?!(?<=[^\W_]_)[^\W_])
    | : (?=\S)
    | (?<=[^\s.]) \. (?=[^\W\d])
    | (?<=[wW]{3}) \.
    | ^[-+](?=\s|-|$) | ^[=:]""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"^(\d+)([.)])(?=\s|$)")  # begins a list
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain(text: str) -> str:
    r"""The text with everything that a terminal would act on, or that nobody would see, as a visible escape.

    Newlines and tabs stay, CRLF is a newline, and a carriage return alone, with which a line can overwrite itself, is
    escaped. Text that holds nothing of the kind comes back as it is.

    >>> print(plain("good\x1b[2J\u202e.txt\r\nnext\rline"))
    good\x1b[2J\u202e.txt
    next\rline
    """
    return _UNSEEN.sub(_escape, text.replace("\r\n", "\n"))


def learned(text: str, coloured: bool) -> str:
    """The text with what is learned in green, or between guillemets.

    >>> learned("Q \ue000A\ue001", coloured=False)
    'Q «A»'
    """
    start, end = ("\x1b[32m", "\x1b[0m") if coloured else ("«", "»")
    return text.replace(LEARNED_START, start).replace(LEARNED_END, end)


def markdown(text: str, newline: str = " ") -> str:
    """The text as one line of Markdown that shows it and does nothing else.

    Nothing of it becomes a link, an image, HTML, code, a heading, emphasis, mathematics, a list, the end of a table
    cell, or an address that a program links by itself. A commercial at, which entities do not keep from becoming an
    address or a mention, is shown as its wide form.

    Args:
        text: what someone else wrote.
        newline: what stands for the end of a line, of the Markdown around it.

    >>> markdown("![x](http://a.example) | <b>")
    '&#33;&#91;x&#93;(http&#58;//a&#46;example) &#124; &lt;b&gt;'
    >>> markdown("reward_model: 1.5")
    'reward_model: 1.5'
    """
    lines = plain(text).replace("\t", " ").strip().split("\n")
    marked = (_NUMBER.sub(_number, _MARKS.sub(_entity, line.strip())) for line in lines)
    return newline.join(marked).replace("@", "\uff20")


def label(name: str) -> str:
    r"""A name for a figure: one line of text, not mathematics, and none that the legend leaves out.

    >>> label("$x$"), label("_hidden")
    ('\\$x\\$', ' _hidden')
    """
    text = " ".join(plain(name).split())
    text = text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME] + "..."
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def fence(text: str) -> str:
    """What begins and ends a code block that the text cannot end.

    >>> fence("a ```` b")
    '`````'
    """
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if found[0] == "\r":
        return r"\r"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _entity(found: re.Match[str]) -> str:
    return _NAMED.get(found[0]) or f"&#{ord(found[0])};"


def _number(found: re.Match[str]) -> str:
    return f"{found[1]}&#{ord(found[2])};"
