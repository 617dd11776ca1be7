"""Connections to a frontend or a Mongrel2: made again for ever, they say when they are up.

ZMTP on the event loop itself: libzmq's thread and its signalling would cost a third more CPU, and
a loss is known at once. `appnode.curve` is the same with encryption.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Protocol

from frontend.link import SILENCE_S
from frontend.peers import Peer
from frontend.zmtp import MORE, frame

AGAIN_FIRST_S = 0.05
AGAIN_MOST_S = 0.25  # a frontend that comes back is found within this
CONNECT_S = 3.0
CHECK_S = 1.0


class Wire(Protocol):
    """A connection to a frontend that mends itself."""

    is_up: bool
    losses: int
    garbage: int

    def say(self, head: bytes, payload: bytes = b"") -> None: ...
    def close(self) -> None: ...


class _Client(Peer):
    """A peer that may end its own side first, and be kept waiting."""

    def finish(self) -> None:
        """Say no more, hear what was already said."""
        if self._transport is not None:
            self._flush()
            self._transport.write_eof()

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()


class Line:
    """A ZMTP connection that mends itself, of any socket type.

    Callbacks: `on_up()`, `on_down()`, `on_message(frames)`. `silence_s`: how long the peer may be
    silent when asked for a sign of life.
    """

    def __init__(
        self,
        endpoint: str,
        socket_type: bytes,
        peer_type: bytes,
        *,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[list[bytes]], None],
        minor: int = 1,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.endpoint = endpoint
        self.is_up = False
        self.losses = 0
        self._type = socket_type
        self._peer_type = peer_type
        self._minor = minor
        self._silence_s = silence_s
        self._on_up = on_up
        self._on_down = on_down
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._peer: _Client | None = None
        self._is_finished = False
        self._ended = asyncio.Event()
        self._task = self._loop.create_task(self._stay_connected())

    async def _stay_connected(self) -> None:
        wait_s = AGAIN_FIRST_S
        while not self._is_finished:
            self._ended.clear()
            try:
                async with asyncio.timeout(CONNECT_S):
                    peer = await self._connect()
            except OSError:
                wait_s = min(wait_s * 2, AGAIN_MOST_S)
            else:
                wait_s = AGAIN_FIRST_S
                await self._watch(peer)
            await asyncio.sleep(wait_s)

    async def _connect(self) -> _Client:
        def make() -> _Client:
            return _Client(self, self._type, frozenset({self._peer_type}), minor=self._minor)

        kind, _, address = self.endpoint.partition("://")
        if kind == "ipc":
            return (await self._loop.create_unix_connection(make, address))[1]
        host, _, port = address.rpartition(":")
        return (await self._loop.create_connection(make, host.strip("[]"), int(port)))[1]

    async def _watch(self, peer: _Client) -> None:
        """Until the connection ends, or nothing was heard for too long."""
        try:
            while not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_S):
                        await self._ended.wait()
                if not self._is_finished:
                    peer.beat(time.monotonic(), CHECK_S / 2, self._silence_s)
        finally:
            peer.abort()

    # what the peer tells

    def on_open(self, peer: Peer) -> None:
        assert isinstance(peer, _Client)
        self._peer = peer
        self.is_up = True
        self._on_up()

    def on_message(self, peer: Peer, parts: list[bytes]) -> None:
        self._on_message(parts)

    def on_gone(self, peer: Peer) -> None:
        self._ended.set()
        if self._peer is peer:
            self._peer = None
            self.is_up = False
            self.losses += 1
            self._on_down()

    # for the owner

    def send(self, frames: bytes) -> None:
        """Queue encoded frames; nothing when there is no connection."""
        if self._peer is not None:
            self._peer.send(frames)

    def pause(self) -> None:
        """Read no more for now: the peer finds out by TCP."""
        if self._peer is not None:
            self._peer.pause()

    def resume(self) -> None:
        if self._peer is not None:
            self._peer.resume()

    def finish(self) -> None:
        """Say no more, hear what was said before the peer knew; then stay away."""
        self._is_finished = True
        if self._peer is not None:
            self._peer.finish()

    def close(self) -> None:
        """For good, after what was sent."""
        self._task.cancel()
        peer, self._peer = self._peer, None
        self.is_up = False
        if peer is not None:
            peer.close()


class Dealer(Line):
    """The link's DEALER: two frames a message."""

    def __init__(
        self,
        endpoint: str,
        *,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[bytes, bytes], None],
    ) -> None:
        self.garbage = 0
        self._on_pair = on_message
        super().__init__(
            endpoint, b"DEALER", b"ROUTER", on_up=on_up, on_down=on_down, on_message=self._take
        )

    def _take(self, parts: list[bytes]) -> None:
        if len(parts) == 2:
            self._on_pair(parts[0], parts[1])
        else:
            self.garbage += 1

    def say(self, head: bytes, payload: bytes = b"") -> None:
        """Queue a message; nothing when there is no connection."""
        self.send(frame(head, MORE) + frame(payload))
