"""A server with the interface of a language model, which says what a test tells it to."""

import json
import re
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with guard:
                seen.append((dict(self.headers), body))
                fault = left.pop(0) if left else None
            if fault == "closed":
                self.close_connection = True
                return
            fault = (fault, {}) if isinstance(fault, int) else fault
            state, headers = fault if isinstance(fault, tuple) else (200, {})
            text = says(body["messages"][0]["content"]) if fault is None else f"{fault} {self.headers}"
            text = fault if isinstance(fault, str) else text
            content = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
            told = b"<html>" if fault == "garbage" else content.encode()
            self.send_response(state)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told)))
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked has given up
                self.end_headers()
                self.wfile.write(told)

        def log_message(self, *given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
