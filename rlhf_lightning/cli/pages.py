"""What the commands that serve a page share: where they listen, who may take part, and how they begin and end."""

from __future__ import annotations

import argparse
import signal
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from rlhf_lightning.console.display import plain
from rlhf_lightning.console.streams import say
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.people.access import LOOPBACK, Access
from rlhf_lightning.people.record import Record

if TYPE_CHECKING:
    from rlhf_lightning.people.server import App

_INSTALL = "pip install 'rlhf_lightning[label]'"


def add_page(words: argparse.ArgumentParser) -> None:
    """Options of a page that is served to people."""
    words.add_argument("--host", default="127.0.0.1", help="where to listen (127.0.0.1: this machine only)")
    words.add_argument("--port", type=int, default=8321, help="where to listen (8321); 0 takes a free one")
    words.add_argument("--annotators", metavar="ANN,BOB", default="", help="people who get a secret link each; needed "
                       "where --host is not this machine")  # fmt: skip
    words.add_argument("--new-links", action="store_true", help="new links for all of them; the old ones end")
    words.add_argument("--no-browser", action="store_true", help="print the address and open nothing")


def people_of(given: argparse.Namespace) -> list[str]:
    """Who gets a secret link.

    Raises:
        ConfigError: nobody, though others can reach the page.
    """
    names = [name.strip() for name in given.annotators.split(",") if name.strip()]
    if given.host not in LOOPBACK and not names:
        raise ConfigError(
            f"--host {given.host}: others could write as anybody; name who may with --annotators ann,bob, and each "
            "gets a secret link"
        )
    return names


def serve(
    command: str, given: argparse.Namespace, record: Record, make: Callable[[Access], App], kept: str = "judgements"
) -> None:
    """Serve a page until SIGTERM or Ctrl-C.

    Args:
        command: that was typed, for messages.
        given: with the options of `add_page`.
        record: open for writing.
        make: the application.
        kept: what the record is filled with, for people.

    Raises:
        ConfigError: an address that is taken, or the extra `label` is missing.
    """
    try:
        from rlhf_lightning.people.server import listen, web_server
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ConfigError(f"rlhf-lightning {command} needs {package}: {_INSTALL}") from error
    names = people_of(given)
    access = Access(record, links=bool(names))
    app = make(access)
    with listen(given.host, given.port) as heard:
        port = heard.getsockname()[1]
        shown = f"[{given.host}]" if ":" in given.host else given.host
        address = f"http://{shown}:{port}"
        say(f"{address}/   {kept} are kept in {plain(str(record.path))}; Ctrl-C ends")
        _tell_links(address, access.new_links(names, given.new_links) if names else {}, names)
        if not given.no_browser and not names:
            threading.Thread(target=webbrowser.open, args=(f"{address}/",), daemon=True).start()
        server = web_server(app)
        before = {kind: signal.signal(kind, server.handle_exit) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            with suppress(KeyboardInterrupt):
                server.run(sockets=[heard])
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def _tell_links(address: str, tokens: dict[str, str], names: Sequence[str]) -> None:
    for name, token in tokens.items():
        say(f"{plain(name) if name else 'who leads'}: {address}/enter/{token}")
    if old := [name for name in names if name not in tokens]:
        say(f"links of before: {plain(', '.join(old))} (--new-links makes new ones)")
