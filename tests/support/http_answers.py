"""An HTTP server that says what a test makes up; of the standard library only, so that a program has it at once."""

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def http_server(answer, port=0):
    """A server on this machine that is not yet answering.

    ``answer(path, body, headers)`` is called with the decoded JSON of each request, and gives an HTTP state, a dict of
    headers, and bytes or an object to be said as JSON; None closes the connection.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers.get("Content-Length") or 0)
            found = answer(self.path, json.loads(self.rfile.read(size) or b"null"), self.headers)
            if found is None:
                return
            state, headers, said = found
            text = said if isinstance(said, bytes) else json.dumps(said).encode()
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked has given up
                self.send_response(state)
                for name, value in {**headers, "Content-Length": len(text)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, *given):
            pass

    return _Server(("127.0.0.1", port), Handler)


@contextmanager
def answering(answer, port=0):
    """The address of an `http_server` that answers in threads of this process."""
    server = http_server(answer, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
