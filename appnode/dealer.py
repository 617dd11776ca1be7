"""The DEALER of one link: connects for ever, says when it is up and down.

ZMTP on the event loop itself: libzmq's thread and its signalling would cost a third more CPU, and
a loss is known at once. `appnode.curve` is the same with encryption.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from bareku.log import event
from frontend.link import SILENCE_S
from frontend.peers import Peer
from frontend.zmtp import COMMAND, MORE, frame

AGAIN_FIRST_S = 0.05
AGAIN_MOST_S = 0.25  # a frontend that comes back is found within this
CONNECT_S = 3.0
CHECK_S = 1.0
_PING = frame(b"\x04PING\x00\x1e", COMMAND)  # a TTL of 3 s, in tenths

log = logging.getLogger("appnode.link")


class Wire(Protocol):
    """A connection to a frontend that mends itself."""

    is_up: bool
    losses: int
    garbage: int

    def send(self, head: bytes, payload: bytes = b"") -> None: ...
    def close(self) -> None: ...


class Curve:
    """Keys (Z85) for a frontend on another machine."""

    __slots__ = ("public", "secret", "server")

    def __init__(self, public: bytes, secret: bytes, server: bytes) -> None:
        self.public = public
        self.secret = secret
        self.server = server


class _Client(Peer):
    """A peer that notes when it last heard anything."""

    def data_received(self, data: bytes) -> None:
        self.seen = self._loop.time()
        super().data_received(data)


class Dealer:
    """The connection. Callbacks: `on_up()`, `on_down()`, `on_message(head, payload)`."""

    def __init__(
        self,
        endpoint: str,
        *,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[bytes, bytes], None],
    ) -> None:
        self.endpoint = endpoint
        self.is_up = False
        self.losses = 0
        self.garbage = 0
        self._on_up = on_up
        self._on_down = on_down
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._peer: Peer | None = None
        self._ended = asyncio.Event()
        self._task = self._loop.create_task(self._stay_connected())

    async def _stay_connected(self) -> None:
        wait_s = AGAIN_FIRST_S
        while True:
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

    async def _connect(self) -> Peer:
        def make() -> Peer:
            return _Client(self, b"DEALER", frozenset({b"ROUTER"}))

        kind, _, address = self.endpoint.partition("://")
        if kind == "ipc":
            return (await self._loop.create_unix_connection(make, address))[1]
        host, _, port = address.rpartition(":")
        return (await self._loop.create_connection(make, host.strip("[]"), int(port)))[1]

    async def _watch(self, peer: Peer) -> None:
        """Until the connection ends, or nothing was heard for too long."""
        try:
            while not self._ended.is_set():
                try:
                    async with asyncio.timeout(CHECK_S):
                        await self._ended.wait()
                except TimeoutError:
                    silent_s = self._loop.time() - peer.seen
                    if silent_s > SILENCE_S:
                        break
                    if peer.is_open:
                        peer.send(_PING)
        finally:
            peer.abort()

    # what the peer tells

    def on_open(self, peer: Peer) -> None:
        self._peer = peer
        self.is_up = True
        log.info(event("frontend reached", endpoint=self.endpoint))
        self._on_up()

    def on_message(self, peer: Peer, parts: list[bytes]) -> None:
        if len(parts) == 2:
            self._on_message(parts[0], parts[1])
        else:
            self.garbage += 1

    def on_gone(self, peer: Peer) -> None:
        self._ended.set()
        if self._peer is peer:
            self._peer = None
            self.is_up = False
            self.losses += 1
            log.warning(event("frontend lost", endpoint=self.endpoint))
            self._on_down()

    def send(self, head: bytes, payload: bytes = b"") -> None:
        """Queue a message; nothing when there is no connection."""
        if self._peer is not None:
            self._peer.send(frame(head, MORE) + frame(payload))

    def close(self) -> None:
        """For good, after what was sent."""
        self._task.cancel()
        peer, self._peer = self._peer, None
        self.is_up = False
        if peer is not None:
            peer.close()
