"""ZMTP connections on the event loop: what libzmq peers connect to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

from bareku.log import event
from frontend import zmtp
from frontend.zmtp import COMMAND, MORE, ZmtpError

log = logging.getLogger("frontend")

MAX_FRAME = 16 * 2**20  # windows keep honest frames below 1 MiB
MAX_PARTS = 8
LARGE = 16_384  # bytes of a payload that is not copied into one write with others
MAX_BACKLOG = 64 * 2**20  # unsent bytes; credit keeps honest peers far below
HANDSHAKE_S = 10.0


class PeerOwner(Protocol):
    """Who is told of the peers of a listening socket."""

    def on_open(self, peer: Peer) -> None: ...

    def on_message(self, peer: Peer, parts: list[bytes]) -> None: ...

    def on_gone(self, peer: Peer) -> None: ...


class Peer(asyncio.Protocol):
    """One connection. `state` is its owner's."""

    def __init__(
        self,
        owner: PeerOwner,
        socket_type: bytes,
        accepts: frozenset[bytes],
        *,
        minor: int = 1,
        max_frame: int = MAX_FRAME,
    ) -> None:
        self._owner = owner
        self._type = socket_type
        self._accepts = accepts
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._greeting: bytes | None = b""
        self._splitter = zmtp.Splitter(max_frame)
        self._parts: list[bytes] = []
        self._out: list[bytes] = []
        self._is_large = False
        self._minor = minor
        self._handshake: asyncio.TimerHandle | None = None
        self.is_open = False
        self.name = ""
        self.seen = time.monotonic()
        self._asked = self.seen
        self._pongs = False
        self.state: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_BACKLOG)
        self.name = str(transport.get_extra_info("peername") or "ipc")
        self._transport.write(zmtp.greeting(self._minor))
        self._handshake = self._loop.call_later(HANDSHAKE_S, self.abort)

    def heard(self) -> None:
        """Something came from this peer."""
        self.seen = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self.seen = time.monotonic()
        try:
            if self._greeting is not None:
                data = self._greet(self._greeting + data)
            for flags, body in self._splitter.feed(data):
                if flags & COMMAND:
                    self._command(body)
                elif not self.is_open:
                    raise ZmtpError("message before READY")
                elif flags & MORE:
                    self._parts.append(body)
                    if len(self._parts) >= MAX_PARTS:
                        raise ZmtpError("too many frames in a message")
                else:
                    parts = [*self._parts, body]
                    self._parts.clear()
                    self._owner.on_message(self, parts)
        except ZmtpError as exc:
            log.warning(event("peer dropped", peer=self.name, reason=exc))
            self.abort()

    def _greet(self, data: bytes) -> bytes:
        zmtp.check_greeting(data[: zmtp.GREETING_BYTES])
        if len(data) < zmtp.GREETING_BYTES:
            self._greeting = data
            return b""
        self._greeting = None
        assert self._transport is not None
        self._transport.write(zmtp.ready(self._type))
        return data[zmtp.GREETING_BYTES :]

    def _command(self, body: bytes) -> None:
        if self.is_open:
            if answer := zmtp.pong(body):
                self.send(answer)
            elif body.startswith(b"\x04PONG"):
                self._pongs = True
            return
        found = zmtp.parse_ready(body).get(b"socket-type", b"")
        if found not in self._accepts:
            raise ZmtpError(f"socket type {found!r} does not fit {self._type!r}")
        self.is_open = True
        if self._handshake:
            self._handshake.cancel()
        self._owner.on_open(self)

    def send(self, data: bytes) -> None:
        """Send encoded frames; all of one turn of the loop leave in one write."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def send_two(self, head: bytes, payload: bytes) -> None:
        """Send a message of two frames."""
        if len(payload) < LARGE:
            self.send(b"\x01%c%b%b" % (len(head), head, zmtp.frame(payload)))
        else:
            self.send(b"\x01%c%b%b" % (len(head), head, zmtp.long_head(len(payload))))
            self._out.append(payload)
            self._is_large = True

    def beat(self, now: float, every_s: float, dead_s: float) -> None:
        """Ask for a sign of life; a peer that has answered before and is silent now is dead."""
        if self._pongs and now - self.seen > dead_s:
            log.warning(event("peer silent", peer=self.name))
            self.abort()
        elif self.is_open and now - self._asked >= every_s:
            self._asked = now
            self.send(zmtp.ping(int(dead_s * 10)))

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is None:
            return
        if self._is_large:  # without copying
            self._is_large = False
            self._transport.writelines(out)
        else:
            self._transport.write(b"".join(out))

    def pause_writing(self) -> None:
        log.warning(event("peer dropped", peer=self.name, reason="does not read"))
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close after what was sent."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._handshake:
            self._handshake.cancel()
        if self.is_open:
            self.is_open = False
            self._owner.on_gone(self)


async def listen(
    endpoint: str, make: Callable[[], Peer], *, inherited: Any = None
) -> asyncio.Server:
    """Bind `tcp://host:port` or `ipc://path`, or use a socket that is bound already."""
    loop = asyncio.get_running_loop()
    if inherited is not None:
        return await loop.create_server(make, sock=inherited)
    kind, _, address = endpoint.partition("://")
    if kind == "ipc":
        return await loop.create_unix_server(make, address)
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    return await loop.create_server(
        make, None if host == "*" else host, 0 if port == "*" else int(port)
    )
