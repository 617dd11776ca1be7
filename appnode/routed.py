"""Requests of a Mongrel2 that any process of an app may answer: held, tried again, counted.

What a frontend does on the link, done on this side for a server that does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from appnode.exchange import Exchange
from appnode.forward import IDEMPOTENT
from appnode.incoming import Incoming
from appnode.link import Answer, Door
from bareku.log import event

log = logging.getLogger("appnode.mongrel2")

AGAIN_S = 0.05
ATTEMPTS = 3

# the handler's number and what opens an exchange with it through a door; None when none is there
Choose = Callable[[], tuple[int, Callable[[Door, Incoming], Exchange]] | None]


class Routes:
    """The routed requests of a connector."""

    def __init__(self) -> None:
        self.live: set[Routed] = set()

    def in_flight(self, number: int) -> int:
        return sum(one.handler == number for one in self.live)

    def abandon(self, number: int, why: str) -> None:
        for one in [one for one in self.live if one.handler == number]:
            one.abandon(why)

    def open(self, door: Door, incoming: Incoming, choose: Choose, hold_s: float) -> Routed:
        return Routed(self, door, incoming, choose, hold_s)


class Routed:
    """One request; the door of its exchange, and an answer to the real one."""

    def __init__(
        self, routes: Routes, door: Door, incoming: Incoming, choose: Choose, hold_s: float
    ) -> None:
        self.handler = 0
        self.ident = incoming.ident
        self.key = incoming.number
        self._routes = routes
        self._door = door
        self._incoming = incoming
        self._choose = choose
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + hold_s
        self._attempts = 0
        self._exchange: Exchange | None = None
        self._is_started = False
        self._timer: asyncio.TimerHandle | None = None

    # an answer

    def start(self) -> None:
        self._routes.live.add(self)
        self._try()

    def _try(self) -> None:
        self._timer = None
        found = self._choose()
        if found is None:
            self._again()
            return
        self.handler, opener = found
        self._exchange = opener(self, self._incoming)
        self._exchange.start()

    def _again(self) -> None:
        self._exchange = None
        self.handler = 0
        if self._loop.time() >= self._until:
            self._forget()
            self._door.refuse(self, "no process is ready")
        else:
            self._timer = self._loop.call_later(AGAIN_S, self._try)

    def body(self, data: bytes, *, end: bool) -> None:
        if self._exchange is not None:
            self._exchange.body(data, end=end)

    def credit(self, size: int) -> None:
        if self._exchange is not None:
            self._exchange.credit(size)

    def cancel(self) -> None:
        self._forget()
        if self._exchange is not None:
            self._exchange.cancel()

    def abandon(self, why: str) -> None:
        if self._exchange is not None:
            self._exchange.abandon(why)

    def check(self, now: float) -> None:
        if self._exchange is not None:
            self._exchange.check(now)

    def _forget(self) -> None:
        self._routes.live.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    # the door of the exchange

    def reply(self, answer: Answer, data: bytes, *, end: bool) -> None:
        self._is_started = True
        if end:
            self._forget()
        self._door.reply(self, data, end=end)

    def refuse(self, answer: Answer, why: str) -> None:
        self._again()

    def fail(self, answer: Answer, status: int, why: str) -> None:
        self._attempts += 1
        method = self._incoming.server.get(b"METHOD")
        may_repeat = method in IDEMPOTENT and not self._is_started and status != 504
        if may_repeat and self._attempts < ATTEMPTS:
            log.warning(event("request tried again", handler=self.handler, why=why))
            self._again()
        else:
            self._forget()
            self._door.fail(self, status, why)

    def grant(self, answer: Answer, size: int) -> None:
        self._door.grant(self, size)

    def upgraded(self, answer: Answer) -> None:
        self._door.upgraded(self)
