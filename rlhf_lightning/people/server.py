"""The web server of the labelling page: Starlette and uvicorn, on one record."""

from __future__ import annotations

import json
import logging
import socket
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.people.access import Access, Visitor, from_here, is_loopback
from rlhf_lightning.people.form import Form
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.service import NothingToUndo

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {path.name: path for path in sorted(PAGE.iterdir()) if path.suffix in TYPES}  # no path comes from a request
LARGEST = 1 << 20  # bytes of a request
YEAR = 365 * 24 * 3600
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that gets no answer but this one."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Served(Protocol):
    """What the page asks for, see `Service`. Threads may share it."""

    record: Record
    form: Form
    data: str  # tells a page whether it looks at the same record

    def next(self, annotator: str) -> dict[str, Any]:
        """The item at hand."""

    def progress(self, annotator: str) -> dict[str, int]:
        """How far the person is."""

    def judge(self, annotator: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Write a judgement, and give the next item."""

    def undo(self, annotator: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take back the last one; ``body`` is its ``key``, of which a second try does nothing more."""

    def lead(self) -> dict[str, Any]:
        """Figures for who leads."""


class App:
    """The addresses of the server and what they answer; ``/api/...`` answers JSON.

    Args:
        service: what is served.
        access: who may.
    """

    pages = ("label.html", "lead.html")  # for people, and for who leads

    def __init__(self, service: Served, access: Access) -> None:
        self.service, self.access = service, access

    def asgi(self) -> ASGIApp:
        """As a web server runs it."""
        app = Starlette(routes=self.routes(), exception_handlers=self._handlers())
        return _Guard(app, loopback=not self.access.links)

    def routes(self) -> list[Route]:
        """The addresses."""
        return [
            Route("/", self._file(self.pages[0])),
            Route("/lead", self._file(self.pages[1])),
            Route("/static/{name}", self._static),
            Route("/enter/{token}", self._enter),
            Route("/api/session", self._get(self._session), methods=["GET"]),
            Route("/api/session", self._post(self._name), methods=["POST"]),
            Route("/api/next", self._get(lambda visitor: self.service.next(person(visitor))), methods=["GET"]),
            Route("/api/judgements", self._post(self._judge), methods=["POST"]),
            Route("/api/undo", self._post(self._undo), methods=["POST"]),
            Route("/api/lead", self._get(self._lead), methods=["GET"]),
        ]

    def _handlers(self) -> dict[Any, Callable[[Request, Any], Any]]:
        """What is answered in the place of an error: a status and a sentence."""

        async def unwritten(request: Request, error: sqlite3.Error) -> Response:
            log.error("%s: %s", self.service.record.path, error)
            return _error(503, f"not saved: the record cannot be read or written ({error})")

        async def refused(request: Request, error: Refused) -> Response:
            return _error(error.status, str(error))

        return {
            404: _not_found, 405: _not_found, 500: _failed, Refused: refused, sqlite3.Error: unwritten,
            NothingToUndo: _says(409), DataError: _says(400),
        }  # fmt: skip

    def _session(self, visitor: Visitor) -> dict[str, Any]:
        who = visitor.annotator
        progress = self.service.progress(who) if who is not None else {"done": 0, "of": 0}
        return self.service.form.public() | {
            "annotator": who, "named": not self.access.links, "csrf": self.access.csrf(visitor), "progress": progress,
            "data": self.service.data,
        }  # fmt: skip

    def _name(self, visitor: Visitor, body: Mapping[str, Any]) -> Response:
        if self.access.links:
            raise Refused(403, "open the link that you were given")
        cookie = self.access.name(body.get("name"))
        return self._with_cookie(JSONResponse(self._session(self.access.visitor(cookie))), cookie)

    def _judge(self, visitor: Visitor, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.service.judge(person(visitor), body)

    def _undo(self, visitor: Visitor, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.service.undo(person(visitor), body)

    def _lead(self, visitor: Visitor) -> dict[str, Any]:
        if not visitor.leads:
            raise Refused(403, "this page is for who leads; open the link that was printed for them")
        return self.service.lead()

    async def _enter(self, request: Request) -> Response:
        cookie = await run_in_threadpool(self.access.enter, request.path_params["token"])
        if cookie is None:
            return _error(403, "this link is nobody's; ask for a new one")
        leads = (await run_in_threadpool(self.access.visitor, cookie)).annotator is None
        return self._with_cookie(RedirectResponse("/lead" if leads else "/", status_code=303), cookie)

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        return await self._file(name)(request) if name in FILES else _error(404, "there is no such file")

    def _file(self, name: str) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            path = FILES[name]
            content = await run_in_threadpool(path.read_bytes)
            return Response(content, media_type=TYPES[path.suffix])

        return answer

    def _with_cookie(self, response: Response, value: str) -> Response:
        response.set_cookie(self.access.cookie, value, max_age=YEAR, httponly=True, samesite="strict")
        return response

    def _get(self, work: Callable[[Visitor], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            return await run_in_threadpool(self._answer, request, work)

        return answer

    def _post(self, work: Callable[[Visitor, Mapping[str, Any]], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            body = await _body(request)

            def written(visitor: Visitor) -> Any:
                here = from_here(
                    request.headers.get("host", ""), request.headers.get("origin"),
                    request.headers.get("sec-fetch-site"),
                )  # fmt: skip
                if not here or not self.access.is_ours(visitor, request.headers.get("x-label-token", "")):
                    raise Refused(403, "this does not come from the page; load it again")
                return work(visitor, body)

            return await run_in_threadpool(self._answer, request, written)

        return answer

    def _answer(self, request: Request, work: Callable[[Visitor], Any]) -> Response:
        found = work(self.access.visitor(request.cookies.get(self.access.cookie, "")))
        return found if isinstance(found, Response) else JSONResponse(found)


class _Guard:
    """Headers on every answer; a request under a strange name gets none of ours."""

    def __init__(self, app: ASGIApp, loopback: bool) -> None:
        self.app, self.loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                pairs = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *pairs]}
            await send(message)

        if scope["type"] != "http":
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self.loopback and not is_loopback(host):
            await _error(403, "open the address that the command printed")(scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers)


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 takes a free one.

    Raises:
        ConfigError: it is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if not 0 <= port < 1 << 16:
            raise OSError("a port is a number from 0 to 65535")
        heard = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error}; choose another, or --port 0 for a free one"
        ) from error
    # Else the end of an answer waits for the browser to acknowledge its beginning, for 40 ms on Linux. Connections take
    # this over; asyncio sets it on sockets only that name their protocol, which these do not.
    heard.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return heard


def web_server(app: App) -> uvicorn.Server:
    """A server that ends by SIGTERM or Ctrl-C once the requests at hand are answered."""
    config = uvicorn.Config(
        app.asgi(), http="h11", ws="none", lifespan="off", log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=5, timeout_keep_alive=30, proxy_headers=False,
    )  # fmt: skip
    return uvicorn.Server(config)


async def _body(request: Request) -> Mapping[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send application/json")
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > LARGEST:
                raise Refused(413, f"more than {LARGEST} bytes")
            parts.append(part)
        body = json.loads(b"".join(parts))
    except (ValueError, RecursionError, ClientDisconnect) as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body is no JSON object")
    return body


def person(visitor: Visitor) -> str:
    """Who asks.

    Raises:
        Refused: they have not said so.
    """
    if visitor.annotator is None:
        raise Refused(401, "say who you are first: load the page again")
    return visitor.annotator


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status_code=status)


def _says(status: int) -> Callable[[Request, Exception], Any]:
    async def answer(request: Request, error: Exception) -> Response:
        return _error(status, str(error))

    return answer


async def _not_found(request: Request, error: Exception) -> Response:
    return _error(getattr(error, "status_code", 404), "there is no such page")


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, "the server failed; see its messages")
