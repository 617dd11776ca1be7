"""Connections to one app process: opened, pooled while idle, watched for being stale.

What travels over them is the exchange's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Protocol, cast

# below the shortest keep-alive time in use (gunicorn 2 s, uvicorn and node 5 s): a request that
# must not be sent twice only takes a connection that the app cannot be about to close
SAFE_IDLE_S = 1.0
PROBE_FIRST_S = 0.05
PROBE_MOST_S = 0.5


class User(Protocol):
    """Who uses a connection just now."""

    def received(self, data: bytes) -> None: ...
    def lost(self) -> None: ...
    def paused(self) -> None: ...
    def resumed(self) -> None: ...


class Connection(asyncio.Protocol):
    """One TCP connection to the app. `user` is None while it is idle."""

    __slots__ = ("_sock", "_upstream", "idle_since", "is_used", "transport", "user")

    def __init__(self, upstream: Upstream, sock: socket.socket) -> None:
        self._upstream = upstream
        self._sock = sock
        self.user: User | None = None
        self.is_used = False  # carried a request before
        self.idle_since = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.user is not None:
            self.user.received(data)
        else:
            self.abort()  # bytes that nobody asked for

    def eof_received(self) -> bool:
        if self.user is not None:
            self.user.lost()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._upstream.forget(self)
        if self.user is not None:
            self.user.lost()

    def pause_writing(self) -> None:
        if self.user is not None:
            self.user.paused()

    def resume_writing(self) -> None:
        if self.user is not None:
            self.user.resumed()

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def write_eof(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write_eof()

    def pause(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def release(self, *, reusable: bool) -> None:
        """The user is done with it."""
        self.user = None
        if reusable and self.transport is not None and not self.transport.is_closing():
            self._upstream.put_back(self)
        else:
            self.abort()  # what was not written yet, nobody needs

    def abort(self) -> None:
        """Drop the connection at once; the user hears nothing more."""
        self.user = None
        if self.transport is not None:
            self.transport.abort()

    def is_stale(self) -> bool:
        """True when the app has closed it, or said something without being asked."""
        if self.transport is None or self.transport.is_closing():
            return True
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True  # end of stream or bytes: either way nothing to send a request on


class Upstream:
    """The connections to one app process, and whether it listens."""

    def __init__(
        self, host: str, port: int, *, size: int, idle_s: float, on_listening: Callable[[], None]
    ) -> None:
        self._address = (host, port)
        self._size = size
        self._idle_s = idle_s
        self._on_listening = on_listening
        self.loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._probe: asyncio.Task[None] | None = None
        self.opened = 0

    @property
    def is_listening(self) -> bool:
        """False from a refused connection until one is accepted again."""
        return self._probe is None

    def take(self, *, repeatable: bool) -> Connection | None:
        """An idle connection, or None when a fresh one is needed.

        One for a request that is not `repeatable` was used a moment ago and is still open.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is None or connection.transport.is_closing():
                continue
            if not repeatable:
                now = self.loop.time()
                if now - connection.idle_since > SAFE_IDLE_S:  # and so are those below it
                    self._idle.append(connection)
                    return None
                if connection.is_stale():
                    connection.abort()
                    continue
            return connection
        return None

    async def connect(self, timeout_s: float) -> Connection:
        """A fresh connection. Raises OSError (TimeoutError too); then nothing was sent."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(timeout_s):
                await self.loop.sock_connect(sock, self._address)
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self, sock), sock=sock
                )
        except ConnectionRefusedError:
            sock.close()
            self._watch()
            raise
        except BaseException:
            sock.close()
            raise
        self.opened += 1
        self._all.add(connection)
        if connection.transport is None:
            self._all.discard(connection)
            raise ConnectionResetError("closed at once")
        return connection

    def put_back(self, connection: Connection) -> None:
        if len(self._idle) >= self._size:
            connection.abort()
            return
        connection.is_used = True
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        self._all.discard(connection)

    def expire(self) -> None:
        """Close what has been idle for too long; the oldest are first."""
        oldest = self.loop.time() - self._idle_s
        count = 0
        for connection in self._idle:
            if connection.idle_since > oldest:
                break
            connection.release(reusable=False)
            count += 1
        del self._idle[:count]

    def _watch(self) -> None:
        """Find out when the app listens again."""
        if self._probe is None:
            self._probe = self.loop.create_task(self._try_again())

    async def _try_again(self) -> None:
        wait_s = PROBE_FIRST_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, PROBE_MOST_S)
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            with contextlib.suppress(OSError), contextlib.closing(sock):
                async with asyncio.timeout(PROBE_MOST_S):
                    await self.loop.sock_connect(sock, self._address)
                break
        self._probe = None
        self._on_listening()

    def close(self) -> None:
        """Drop every connection; their users hear nothing."""
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
        for connection in list(self._all):
            connection.abort()
        self._idle.clear()
