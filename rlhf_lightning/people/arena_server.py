"""The web server of the arena: that of the labelling page, with answers that come while they are written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from starlette.responses import StreamingResponse
from starlette.routing import Route

from rlhf_lightning.people.access import Access, Visitor
from rlhf_lightning.people.arena import Arena
from rlhf_lightning.people.battle import Battle, Line
from rlhf_lightning.people.server import App, person


class ArenaApp(App):
    """``POST /api/battles`` answers with lines of JSON, see `Battle.start`; the other addresses are those of `App`.

    Args:
        arena: what is served.
        access: who may.
    """

    pages = ("arena.html", "standings.html")

    def __init__(self, arena: Arena, access: Access) -> None:
        super().__init__(arena, access)
        self.arena = arena

    def routes(self) -> list[Route]:
        """The addresses."""
        return [*super().routes(), Route("/api/battles", self._post(self._battle), methods=["POST"])]

    def _battle(self, visitor: Visitor, body: Mapping[str, Any]) -> StreamingResponse:
        battle = self.arena.battle(person(visitor), body)
        return StreamingResponse(_lines(battle), media_type="application/x-ndjson")


async def _lines(battle: Battle) -> AsyncIterator[str]:
    """The lines of a battle, which ends when nobody reads them any longer."""
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[Line | None]()

    def tell(line: Line | None) -> None:
        with suppress(RuntimeError):  # the server has ended, and with it the loop
            loop.call_soon_threadsafe(lines.put_nowait, line)

    battle.start(tell)
    try:
        while (line := await lines.get()) is not None:
            yield json.dumps(line) + "\n"
    finally:
        battle.stop()
