"""A reward service over HTTP of which a test says how well it is."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def brevity(prompts, completions, **columns):
    return [-float(len(str(text))) for text in completions]


class Service:
    """Its address, the bodies of all requests, and what is wrong with it.

    ``faults`` meet the next requests, one each: an HTTP state or a pair of one and its headers, ``closed`` (no answer),
    ``slow`` (after a second), or bytes that are said instead. ``down_until`` is a time on `time.monotonic`: until then
    all are ``closed``. ``seconds`` is how long each answer takes.
    """

    def __init__(self, function):
        self.function, self.bodies, self.headers, self.faults = function, [], [], []
        self.down_until, self.seconds, self.most, self.address = 0.0, 0.0, 0, ""
        self.times = []  # of the requests, time.monotonic
        self._open, self._guard = 0, threading.Lock()

    @property
    def asked(self):
        """Each answer of each request, as often as it was asked for."""
        return [(p, c) for body in self.bodies for p, c in zip(body["prompts"], body["completions"], strict=True)]

    def answer(self, body, headers):
        """Status, headers and bytes; None closes the connection."""
        with self._guard:
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.headers.append(headers)
            fault = self.faults.pop(0) if self.faults else None
            self._open += 1
            self.most = max(self.most, self._open)
        time.sleep(self.seconds + (1.0 if fault == "slow" else 0.0))
        with self._guard:
            self._open -= 1
        if fault == "closed" or time.monotonic() < self.down_until:
            return None
        if isinstance(fault, (int, tuple)):
            state, more = fault if isinstance(fault, tuple) else (fault, {})
            return state, more, b"{}"
        said = json.dumps({"scores": self.function(**body)}).encode()
        return 200, {}, fault if isinstance(fault, bytes) else said


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


@contextmanager
def reward_service(function=brevity):
    """A `Service` on a free port of this machine."""
    service = Service(function)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = service.answer(body, dict(self.headers))
            self.close_connection = True
            if found is None:
                return
            state, headers, text = found
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked has given up
                self.send_response(state)
                for name, value in {**headers, "Content-Length": len(text)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, *given):
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    service.address = f"http://127.0.0.1:{server.server_address[1]}/score"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
