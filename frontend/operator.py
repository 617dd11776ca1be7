"""What an operator may ask and switch; `frontend.admin` is the door to it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from bareku.config import decode
from bareku.files import read_json, write_json
from bareku.log import event
from bareku.names import parse_app
from frontend.admin import Answer, as_json
from frontend.config import Door
from frontend.exchange import Exchange
from frontend.pairdoor import Pair
from frontend.router import Key

log = logging.getLogger("frontend")


class Operator:
    """Answers on the run folder's socket. Pause and maintenance are kept over a restart."""

    def __init__(
        self,
        exchange: Exchange,
        path: Path,
        document: Callable[[], dict[str, object]],
        open_pair: Callable[[Door], Awaitable[Pair]],
        close_pair: Callable[[str, str], Awaitable[int]],
    ) -> None:
        self._exchange = exchange
        self._path = path
        self._document = document
        self._open_pair = open_pair
        self._close_pair = close_pair

    def load(self) -> None:
        """Pause and close what was so before."""
        try:
            kept = read_json(self._path)
        except FileNotFoundError:
            return
        self._exchange.maintenance.update(kept["maintenance"])
        for app in kept["paused"]:
            self._exchange.dispatcher.pause(app)

    async def ask(self, method: str, path: str, body: bytes) -> Answer:
        """Answer one request. Raises BarekuError for a pair that cannot be opened."""
        match [method, *path.strip("/").split("/")]:
            case ["GET" | "HEAD", "status"]:
                return as_json(self._document())
            case ["GET" | "HEAD", "metrics"]:
                text = self._exchange.metrics.render(self._gauges())
                return 200, "text/plain; version=0.0.4", text.encode()
            case ["POST", "apps", app, ("pause" | "resume" | "maintenance" | "live") as act]:
                return self._switch(app, act)
            case ["POST", "pairs"]:
                door = decode(body, Door, name="the pair")
                return as_json((await self._open_pair(door)).status(), 201)
            case ["DELETE", "pairs", app, process]:
                closed = await self._close_pair(app, process)
                return as_json({"closed": closed}, 200 if closed else 404)
        return 404, "text/plain", b"nothing of that name\n"

    def _gauges(self) -> dict[str, dict[Key | None, int]]:
        pools = self._exchange.dispatcher.pools
        ready, leased = self._exchange.dispatcher.counts()
        return {
            "handlers": {(a, int(v)): n for a, row in ready.items() for v, n in row.items()},
            "inflight": {(a, int(v)): n for a, row in leased.items() for v, n in row.items()},
            "held": {key: len(pool.held) for key, pool in pools.items()},
        }

    def _switch(self, app: str, act: str) -> Answer:
        """Pause or maintenance of an app."""
        exchange = self._exchange
        parse_app(app)
        if act == "pause":
            exchange.dispatcher.pause(app)
        elif act == "resume":
            exchange.dispatcher.resume(app)
        elif act == "maintenance":
            exchange.maintenance.add(app)
        else:
            exchange.maintenance.discard(app)
        kept = {"format": 1, "paused": sorted(exchange.dispatcher.paused)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {**kept, "maintenance": sorted(exchange.maintenance)})
        log.info(event("app switched", app=app, to=act))
        return as_json({"app": app, "state": act})
