"""A Mongrel2, real or ours, as a door: PULL and XPUB instead of the link.

Its replies have no acknowledgement, and more than sixteen of them queued on one connection cut
it: a reply leaves in as few messages as it can. Its requests of one connection arrive together
when the client pipelines, and are answered one after the other here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from appnode.dealer import Line
from appnode.incoming import Incoming, parse
from appnode.link import Answer
from appnode.mongrel2client import Client
from bareku.log import event
from frontend.mongrel2 import MessageError, encode_reply
from frontend.zmtp import frame

log = logging.getLogger("appnode.mongrel2")

SILENCE_S = 15.0  # a real Mongrel2 only answers libzmq's own sign of life


class Pair(NamedTuple):
    """The two endpoints of a Mongrel2 `Handler`, by its own names."""

    send_spec: str
    recv_spec: str


class Mongrel2Door:
    """Requests from one Mongrel2 handler pair, answered by what `open_request` makes."""

    def __init__(
        self, pair: Pair, open_request: Callable[[Mongrel2Door, Incoming], Answer], *, most: int
    ) -> None:
        self.pair = pair
        self.bad_messages = 0
        self.requests = 0
        self._open_request = open_request
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._clients: dict[tuple[bytes, int], Client] = {}
        self._in_flight = 0
        self._is_leaving = False
        self._pull: Line | None = None
        self._backlog: deque[bytes] = deque()
        self._pub = Line(
            pair.recv_spec, b"XPUB", b"SUB", minor=0, silence_s=SILENCE_S,
            on_up=lambda: None, on_down=self._lose, on_message=self._hear,
        )  # fmt: skip
        self._ticker = self._loop.call_soon(self._tick)

    # connections

    def _hear(self, frames: list[bytes]) -> None:
        """A subscription: before it replies would be lost, so no request is taken before it."""
        if frames[0][:1] == b"\x01" and self._pull is None and not self._is_leaving:
            self._pull = Line(
                self.pair.send_spec, b"PULL", b"PUSH", silence_s=SILENCE_S,
                on_up=lambda: None, on_down=lambda: None, on_message=self._take,
            )  # fmt: skip
            log.info(event("mongrel2 reached", send_spec=self.pair.send_spec))

    def _lose(self) -> None:
        """The server has gone, and with it everyone who waited for an answer."""
        log.warning(event("mongrel2 lost", send_spec=self.pair.send_spec))
        if self._pull is not None:
            self._pull.close()
            self._pull = None
        self._backlog.clear()
        for client in list(self._clients.values()):
            client.gone()

    def _take(self, frames: list[bytes]) -> None:
        if len(frames) != 1:
            self.bad_messages += 1
        elif self._in_flight < self._most and not self._backlog:
            self._message(frames[0])
        else:
            self._backlog.append(frames[0])
            if len(self._backlog) == 1 and self._pull is not None:
                self._pull.pause()

    def _drain(self) -> None:
        """There is room again."""
        while self._backlog and self._in_flight < self._most:
            self._message(self._backlog.popleft())
        if not self._backlog and self._pull is not None:
            self._pull.resume()

    def send(self, ident: bytes, number: int, data: bytes) -> None:
        """One message for one connection; empty closes it."""
        self._pub.send(frame(encode_reply(ident, [number], data)))

    # requests

    def _message(self, message: bytes) -> None:
        try:
            incoming = parse(message)
        except MessageError as exc:
            self.bad_messages += 1
            if self.bad_messages.bit_count() == 1:
                log.warning(event("message dropped", why=exc, count=self.bad_messages))
            return
        key = (incoming.ident, incoming.number)
        client = self._clients.get(key)
        method = incoming.server.get(b"METHOD", b"")
        if incoming.path == b"@*" or method in (b"JSON", b"XML"):
            if client is not None and b'"disconnect"' in incoming.body:
                client.gone()
            return
        if client is None:
            client = self._clients[key] = Client(self, incoming.ident, incoming.number)
        if method == b"WEBSOCKET":
            client.websocket(incoming)
        else:
            self.requests += 1
            client.request(incoming)

    def open(self, incoming: Incoming) -> Answer:
        self._in_flight += 1
        return self._open_request(self, incoming)

    def forget(self, client: Client) -> None:
        self._clients.pop((client.ident, client.number), None)

    def answered(self) -> None:
        """There is a place for another request."""
        self._in_flight -= 1
        if self._backlog:
            self._loop.call_soon(self._drain)

    # the door of an answer

    def reply(self, answer: Answer, data: bytes, *, end: bool) -> None:
        if client := self._clients.get((answer.ident, answer.key)):
            client.reply(data, end=end)

    def refuse(self, answer: Answer, why: str) -> None:
        self._give_up(answer, 503, why)

    def fail(self, answer: Answer, status: int, why: str) -> None:
        self._give_up(answer, status, why)

    def _give_up(self, answer: Answer, status: int, why: str) -> None:
        log.warning(event("request failed", status=status, why=why))
        if client := self._clients.get((answer.ident, answer.key)):
            client.give_up(status)

    def grant(self, answer: Answer, size: int) -> None:
        """Nothing to say: the whole body came with the request."""

    def upgraded(self, answer: Answer) -> None:
        """A WebSocket may last for days and takes no place."""
        if client := self._clients.get((answer.ident, answer.key)):
            client.upgraded()

    # time and end

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(0.25, self._tick)
        now = self._loop.time()
        for client in list(self._clients.values()):
            client.check(now)

    def status(self) -> dict[str, object]:
        return {
            "send_spec": self.pair.send_spec,
            "state": "connected" if self.is_connected else "away",
            "requests": self.requests,
            "bad_messages": self.bad_messages,
            "in_flight": self._in_flight,
        }

    @property
    def is_connected(self) -> bool:
        """Its replies would be heard, so it takes requests."""
        return self._pull is not None and self._pull.is_up

    @property
    def is_busy(self) -> bool:
        """Requests are in flight, or may still be on the way here."""
        is_hearing = self._is_leaving and self.is_connected
        return bool(self._in_flight or self._backlog or is_hearing)

    def leave(self) -> None:
        """Take no new requests; those that were sent are answered."""
        self._is_leaving = True
        if self._pull is not None:
            self._pull.resume()  # the end of its side comes after what it has sent
            self._pull.finish()

    def close(self) -> None:
        self._ticker.cancel()
        if self._pull is not None:
            self._pull.close()
        self._pub.close()
