"""Door A: PUSH and SUB pairs, where any Mongrel2 handler connects its PULL and PUB.

A `pair` belongs to one process: a window of requests, its replies only for what it was given,
retries when it goes. A `shared` pair is what Mongrel2 has: any number of processes, requests dealt
to them in turn, at most once, nothing repeated.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

from bareku.errors import BarekuError
from bareku.log import event
from frontend import zmtp
from frontend.config import Door
from frontend.dispatch import Handler
from frontend.exchange import Exchange, Request
from frontend.mongrel2 import (
    MessageError,
    Protocol,
    decode_control,
    decode_reply,
    encode_disconnect,
)
from frontend.payload import request_message, websocket_message
from frontend.peers import Peer, listen
from frontend.websocket import Frames, WebSocketError

log = logging.getLogger("frontend")

SETTLE_S = 0.05  # a PUB has our subscription by then; classic handlers lose replies before
SHARED_WINDOW = 1000
MAX_REPLY = 128 * 2**20  # handlers of this door answer in one message
PING_S = 2.0
DEAD_S = 7.0


class Pair:
    """One PUSH and one SUB socket, and the handler behind them."""

    heeds_close = True
    first_grant = 2**40
    widens = True

    def __init__(self, exchange: Exchange, door: Door) -> None:
        self.door = door
        self.send_endpoint = door.send_spec
        self.recv_endpoint = door.recv_spec
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        ident = door.send_ident or str(uuid.uuid4())
        prefix = f"{ident} " if door.recv_ident is None else door.recv_ident
        self._ident = ident.encode()
        self._prefix = prefix.encode()
        self._protocol: Protocol = door.protocol
        self._is_shared = door.kind == "shared"
        self._pulls: list[Peer] = []
        self._pubs: list[Peer] = []
        self._turn = 0
        self._servers: list[asyncio.Server] = []
        self._handler: Handler[Request] | None = None
        self._frames: dict[int, Frames] = {}
        self._went: dict[int, Peer] = {}  # shared: the peer that got a websocket's handshake
        self._settle: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Bind both sockets. Raises BarekuError naming the endpoint."""
        pulls = _Side(self, self._pulls)
        pubs = _Side(self, self._pubs)
        for side, endpoint, kind, accepts, minor in (
            (pulls, self.door.send_spec, b"PUSH", frozenset({b"PULL"}), 1),
            (pubs, self.door.recv_spec, b"SUB", frozenset({b"PUB", b"XPUB"}), 0),
        ):

            def make(
                side: _Side = side,
                kind: bytes = kind,
                accepts: frozenset[bytes] = accepts,
                minor: int = minor,
            ) -> Peer:
                return Peer(side, kind, accepts, minor=minor, max_frame=MAX_REPLY)

            try:
                self._servers.append(await listen(endpoint, make))
            except (OSError, ValueError, OverflowError) as exc:
                await self.close()
                raise BarekuError(f"cannot listen on {endpoint!r}: {exc}") from exc
        self.send_endpoint = _actual(self._servers[0], self.door.send_spec)
        self.recv_endpoint = _actual(self._servers[1], self.door.recv_spec)

    async def close(self) -> None:
        """Close the sockets and let the handler go."""
        for server in self._servers:
            server.close()
        for peer in [*self._pulls, *self._pubs]:
            peer.close()
        self._lose("closed")

    def status(self) -> dict[str, object]:
        """For the status document."""
        return {
            "app": self.door.app,
            "process": self.door.process,
            "kind": self.door.kind,
            "send": self.send_endpoint,
            "recv": self.recv_endpoint,
            "ready": self._handler is not None,
        }

    # peers

    def on_open(self, side: list[Peer], peer: Peer) -> None:
        if side and not self._is_shared:
            log.warning(event("second process refused", app=self.door.app, peer=peer.name))
            peer.abort()
            return
        side.append(peer)
        if side is self._pubs:
            peer.send(zmtp.frame(b"\x01" + self._prefix))
        if self._pulls and self._pubs and self._handler is None:
            self._settle = self._loop.call_later(SETTLE_S, self._join)
        elif self._handler is not None and self._is_shared:
            self._handler.is_draining = False
            self._exchange.dispatcher.wake(self._handler)

    def on_gone(self, side: list[Peer], peer: Peer) -> None:
        if peer not in side:
            return
        side.remove(peer)
        if self._settle is not None and not (self._pulls and self._pubs):
            self._settle.cancel()
            self._settle = None
        handler = self._handler
        if handler is None:
            return
        if not self._pubs:
            self._lose("disconnected")
        elif not self._pulls:  # a handler that stops in good order still answers what it has
            self._exchange.dispatcher.drain(handler)

    def _join(self) -> None:
        self._settle = None
        if self._handler is not None or not (self._pulls and self._pubs):
            return
        door = self.door
        window = door.window
        if self._is_shared and window == 1:
            window = SHARED_WINDOW
        release = self._release()
        self._handler = Handler(
            (door.app, release), window, process=door.process, token=door.token, door=self
        )
        self._exchange.add_handler(self._handler)

    def _release(self) -> int:
        """The release it answers for: its own, or the one that the routes name."""
        if self.door.release is not None:
            return self.door.release
        named = [release for app, release in self._exchange.table.tokens if app == self.door.app]
        return max(named, default=0)

    def recheck(self) -> None:
        """There is a new route table."""
        handler = self._handler
        if handler is None:
            return
        key = (self.door.app, self._release())
        if key != handler.key:
            self._exchange.dispatcher.move(handler, key)

    def _lose(self, why: str) -> None:
        handler, self._handler = self._handler, None
        self._frames.clear()
        self._went.clear()
        if handler is not None:
            self._exchange.remove_handler(handler, why)

    def tick(self, now: float) -> None:
        """Ask silent peers whether they live; old ones never answer and are not asked twice."""
        for peer in [*self._pulls, *self._pubs]:
            peer.beat(now, PING_S, DEAD_S)

    # to the handler

    def send_request(self, handler: Handler[Request], number: int, request: Request) -> None:
        peer = self._next_pull()
        if peer is None:
            self._loop.call_soon(self._exchange.on_refuse, handler, number)
            return
        head = request.head
        if request.has_more or len(request.body) > self.door.content_length:
            self._loop.call_soon(self._exchange.on_fail, handler, number, 413)
            return
        if head.is_upgrade and head.block.websocket_key:
            self._frames[number] = Frames()
            self._went[number] = peer
        peer.send(zmtp.frame(request_message(self._ident, number, request, self._protocol)))

    def _next_pull(self) -> Peer | None:
        if not self._pulls:
            return None
        self._turn = (self._turn + 1) % len(self._pulls)
        return self._pulls[self._turn]

    def send_body(self, handler: Handler[Request], number: int, data: bytes, *, end: bool) -> None:
        """Bytes of a WebSocket client: each message becomes one of Mongrel2's."""
        frames = self._frames.get(number)
        request = handler.leases.get(number)
        peer = self._went.get(number)
        if frames is None or request is None:
            return
        try:
            messages = frames.feed(data)
        except WebSocketError as exc:
            log.info(event("websocket closed", app=self.door.app, reason=exc))
            self._loop.call_soon(self._exchange.hang_up, handler, number)
            return
        if peer is None or not peer.is_open:
            return
        for flags, payload in messages:
            message = websocket_message(
                self._ident, number, request, flags, payload, self._protocol
            )
            peer.send(zmtp.frame(message))
        if end:  # a client that sends no more has gone
            self._loop.call_soon(self._exchange.hang_up, handler, number)

    def cancel(self, handler: Handler[Request], number: int) -> None:
        """The client has gone: the process that had the request is told."""
        peer = self._went.pop(number, None) or (None if self._is_shared else self._next_pull())
        self._frames.pop(number, None)
        if peer is not None and peer.is_open:
            peer.send(zmtp.frame(encode_disconnect(self._ident, number, self._protocol)))

    def credit(self, handler: Handler[Request], number: int, size: int) -> None:
        """Mongrel2's handlers know no credit of this kind."""

    # from the handler

    def on_reply(self, message: bytes) -> None:
        handler = self._handler
        try:
            reply = decode_reply(message)
        except MessageError:
            self._exchange.metrics.count("bad_frames")
            return
        if handler is None or not message.startswith(self._prefix):
            self._exchange.metrics.count("stray_replies")
            return
        for number in reply.ids:
            if number not in handler.leases:
                self._unknown(number, reply.body, is_control=reply.is_control)
            elif reply.is_control:
                self._on_control(handler, number, reply.body)
            elif reply.body:
                self._exchange.on_reply(handler, number, reply.body, False)
                self._after(handler, number)
            else:
                self._exchange.on_close(handler, number)
                self._after(handler, number)

    def _after(self, handler: Handler[Request], number: int) -> None:
        """A reply that is complete by its own framing ends its lease."""
        request = handler.leases.get(number)
        if request is not None and request.is_answered:
            self._exchange.end_lease(handler, number)
        if number not in handler.leases:
            self._frames.pop(number, None)
            self._went.pop(number, None)

    def _unknown(self, number: int, body: bytes, *, is_control: bool) -> None:
        """Mongrel2 tells the handler that an id is gone; so do we, for replies with content."""
        self._exchange.metrics.count("stray_replies")
        peer = None if is_control or not body else self._next_pull()
        if peer is not None:
            peer.send(zmtp.frame(encode_disconnect(self._ident, number, self._protocol)))

    def _on_control(self, handler: Handler[Request], number: int, body: bytes) -> None:
        """`ctl` with keep-alive, credits or cancel; an unknown name closes, as in Mongrel2."""
        try:
            name, arguments = decode_control(body)
        except MessageError:
            self._exchange.metrics.count("bad_frames")
            return
        if name != b"ctl" or b"cancel" in arguments:
            self._frames.pop(number, None)
            self._went.pop(number, None)
            self._exchange.hang_up(handler, number, tell=False)
        elif b"keep-alive" in arguments:
            self._exchange.keep_alive(handler, number)


class _Side:
    """One of the two sockets of a pair."""

    def __init__(self, pair: Pair, peers: list[Peer]) -> None:
        self._pair = pair
        self._peers = peers

    def on_open(self, peer: Peer) -> None:
        self._pair.on_open(self._peers, peer)

    def on_gone(self, peer: Peer) -> None:
        self._pair.on_gone(self._peers, peer)

    def on_message(self, peer: Peer, parts: list[bytes]) -> None:
        if len(parts) == 1 and peer in self._peers:
            self._pair.on_reply(parts[0])


def _actual(server: asyncio.Server, wanted: str) -> str:
    """The endpoint with the port that the kernel chose."""
    name: Any = server.sockets[0].getsockname()
    return f"tcp://{name[0]}:{name[1]}" if isinstance(name, tuple) else wanted
