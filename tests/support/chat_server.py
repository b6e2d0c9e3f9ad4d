"""A server with the interface of a language model, which says what a test tells it to."""

import re
import threading
from contextlib import contextmanager

from tests.support.http_answers import answering

PART = re.compile(r"<answer ([AB])>\n(.*?)\n</answer \1>", re.DOTALL)


def longer(question):
    """Prefers the longer answer."""
    shown = dict(PART.findall(question))
    gap = len(shown["A"]) - len(shown["B"])
    return "tie" if not gap else "A" if gap > 0 else "B"


@contextmanager
def chat_server(says=longer, faults=()):
    """Yields the address and the list of requests; the first requests meet the ``faults``, one each.

    A fault is an HTTP state, a pair of one and its headers, ``garbage`` (no JSON), ``closed`` (no answer), or a text.
    What a server says beside a state repeats the headers of the request, as some do.
    """
    seen, left, guard = [], list(faults), threading.Lock()

    def answer(path, body, headers):
        with guard:
            seen.append((dict(headers), body))
            fault = left.pop(0) if left else None
        if fault == "closed":
            return None
        if fault == "garbage":
            return 200, {}, b"<html>"
        state, more = fault if isinstance(fault, tuple) else (fault, {}) if isinstance(fault, int) else (200, {})
        text = says(body["messages"][0]["content"]) if fault is None else f"{(state, more)} {headers}"
        text = fault if isinstance(fault, str) else text
        return state, more, {"choices": [{"message": {"role": "assistant", "content": text}}]}

    with answering(answer) as address:
        yield f"{address}/v1", seen
