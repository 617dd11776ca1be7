"""One request on its way to an app and back: retries, windows, verdicts.

The door is whoever brought the request (the link, or a Mongrel2); the upstream is the app.
"""

from __future__ import annotations

import asyncio
from collections import deque

from appnode.forward import IDEMPOTENT, Forward
from appnode.incoming import Incoming
from appnode.link import Door
from appnode.response import ResponseError, ResponseReader
from appnode.upstream import Connection, Upstream
from frontend.link import WINDOW

MAX_PIECE = 131_072  # of a reply in one message, so that one reply does not hold up the others


class Times:
    """Seconds to connect, to the first byte of the reply, and without a byte either way."""

    __slots__ = ("connect_s", "first_byte_s", "idle_s")

    def __init__(self, connect_s: float, first_byte_s: float, idle_s: float) -> None:
        self.connect_s = connect_s
        self.first_byte_s = first_byte_s
        self.idle_s = idle_s


class Exchange:
    """One request in flight. `key` is the door's own name for it."""

    # defaults here, since most exchanges are over after one piece each way
    _connection: Connection | None = None
    _opening: asyncio.Task[None] | None = None
    _silent = True  # not a byte came back
    _granted = 0
    _owed = 0  # body bytes passed on and not granted again
    _paused = False
    _credit = WINDOW
    _ended = False  # the app's part is over, what is held is not
    is_over = False

    def __init__(
        self, door: Door, handler: int, incoming: Incoming, upstream: Upstream, times: Times,
        *, more: bool,
    ) -> None:  # fmt: skip
        """`more`: the body follows. Raises MessageError."""
        forward = Forward(incoming, more=more)
        self._door = door
        self.handler = handler
        self.key = incoming.number
        self.ident = incoming.ident
        self.forward = forward
        self._upstream = upstream
        self._times = times
        self._loop = upstream.loop
        self.started_at = now = self._loop.time()
        self.deadline = now + times.first_byte_s
        self._reader = ResponseReader(
            forward.method, http11=forward.http11, upgrade=forward.upgrade
        )
        self._has_body = more
        self._body_ended = not more
        self._may_retry = not more and forward.method in IDEMPOTENT
        self._body_left = None if forward.length is None else forward.length - len(forward.body)
        self._held: deque[bytes] | None = None

    def start(self) -> None:
        """Send the request to the app."""
        # a body in pieces cannot be sent again, so it goes where nothing can be stale
        connection = None
        if not self._has_body:
            connection = self._upstream.take(repeatable=self._may_retry)
        if connection is None:
            self._open()
        else:
            self._send(connection)

    @property
    def is_replying(self) -> bool:
        return self._reader.started

    @property
    def is_tunnel(self) -> bool:
        return self._reader.tunnel

    def _open(self) -> None:
        self._opening = self._loop.create_task(self._open_and_send())

    async def _open_and_send(self) -> None:
        try:
            connection = await self._upstream.connect(self._times.connect_s)
        except OSError as exc:
            self._opening = None
            if not self.is_over:
                self._end()
                self._door.refuse(self, f"cannot connect: {type(exc).__name__}")
            return
        self._opening = None
        if self.is_over:
            connection.release(reusable=True)
        else:
            self._send(connection)

    def _send(self, connection: Connection) -> None:
        self._connection = connection
        connection.user = self
        forward = self.forward
        if not self._has_body:
            connection.write(forward.head + forward.body)
            return
        connection.write(forward.head)
        if forward.body:
            connection.write(self._framed(forward.body))
        self._granted = WINDOW
        self._door.grant(self, WINDOW)

    def _framed(self, data: bytes) -> bytes:
        return data if self.forward.length is not None else b"%x\r\n%b\r\n" % (len(data), data)

    # from the door

    def body(self, data: bytes, *, end: bool) -> None:
        """More of the request's body, or of the tunnel's bytes."""
        if self.is_over or self._ended:
            return
        self._granted -= len(data)
        if self._granted < 0 or self._body_ended:
            self._break(502, "the frontend sent more than was granted")
            return
        if self._reader.tunnel:
            self._pass_on(data, end=end)
            return
        if self._body_left is not None:
            self._body_left -= len(data)
            if self._body_left < 0 or (end and self._body_left):
                self._break(502, "the body is not as long as its content-length")
                return
        self.deadline = self._loop.time() + self._times.first_byte_s
        self._pass_on(self._framed(data) if data else b"", end=False)
        if end:
            self._body_ended = True
            if self.forward.length is None and self._connection is not None:
                self._connection.write(b"0\r\n\r\n")
        self._owed += len(data)
        self._repay()

    def _pass_on(self, data: bytes, *, end: bool) -> None:
        if self._connection is None:
            return
        if data:
            self._connection.write(data)
        if self._reader.tunnel:
            self._touch()
            self._owed += len(data)
            self._repay()
            if end:
                self._body_ended = True
                self._connection.write_eof()

    def _repay(self) -> None:
        """Grant what the app has taken, in quarters of a window."""
        if not self._paused and not self._body_ended and self._owed >= WINDOW // 4:
            self._granted += self._owed
            self._door.grant(self, self._owed)
            self._owed = 0

    def credit(self, size: int) -> None:
        """The client took so much of the reply."""
        self._credit += size
        if not self._held:
            return
        held = self._held
        while held and self._credit > 0 and not self.is_over:
            piece = held.popleft()
            if len(piece) > self._credit:
                held.appendleft(piece[self._credit :])
                piece = piece[: self._credit]
            self._reply(piece, end=self._ended and not held)
        if not held and self._connection is not None:
            self._connection.resume()

    def cancel(self) -> None:
        """The client has gone, or the frontend has: nobody waits for the answer."""
        self._end()

    def abandon(self, why: str) -> None:
        """The app's process is gone, says who knows."""
        if not self.is_over:
            self._break(502, why)

    def check(self, now: float) -> None:
        """Give up when the app is too slow."""
        if now < self.deadline or self.is_over:
            return
        if self._held or not (self._body_ended or self._paused or self._reader.started):
            # the client is the slow one: the frontend's to judge
            self.deadline = now + self._times.idle_s
        elif self._reader.started:
            self._break(504, "no byte for too long")
        else:
            self._break(504, "no reply in time")

    # from the app

    def received(self, data: bytes) -> None:
        self._silent = False
        reader = self._reader
        was_started = reader.started
        try:
            out = reader.feed(data)
        except ResponseError as exc:
            self._break(502, str(exc))
            return
        if reader.done:
            connection = self._connection
            if self._held or len(out) > MAX_PIECE or len(out) > self._credit or connection is None:
                self._finish(out)
                return
            self._connection = None
            connection.release(reusable=reader.keep_alive and self._body_ended)
            self.is_over = True
            self._door.reply(self, out, end=True)
            return
        if reader.started:
            self._touch()
            if reader.tunnel and not was_started:
                self._start_tunnel()
            if out:
                self._offer(out, end=False)

    def _touch(self) -> None:
        self.deadline = self._loop.time() + self._times.idle_s

    def _start_tunnel(self) -> None:
        self._body_ended = False
        self._owed = 0
        if self._granted < WINDOW:
            self._door.grant(self, WINDOW - self._granted)
            self._granted = WINDOW
        self._door.upgraded(self)

    def lost(self) -> None:
        """The app closed the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release(reusable=False)
        if self._silent and self._may_retry and connection is not None and connection.is_used:
            # idle for longer than the app wished: it closed before it read the request, or
            # died over it, and either way the request may be sent again
            self._may_retry = False
            self._open()
            return
        try:
            out = self._reader.eof()
        except ResponseError as exc:
            self._break(502, str(exc))
            return
        self._finish(out)

    def paused(self) -> None:
        self._paused = True

    def resumed(self) -> None:
        self._paused = False
        self._repay()

    def _finish(self, out: bytes) -> None:
        """The response is whole: the connection is free although the client may be slow."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._held:
                connection.resume()
            connection.release(reusable=self._reader.keep_alive and self._body_ended)
        self._ended = True
        self._offer(out, end=True)

    def _offer(self, out: bytes, *, end: bool) -> None:
        """Send `out` as far as the client's window reaches, hold the rest."""
        if not self._held and len(out) <= self._credit and len(out) <= MAX_PIECE:
            self._reply(out, end=end)
            return
        if self._held is None:
            self._held = deque()
        for at in range(0, len(out), MAX_PIECE):
            self._held.append(out[at : at + MAX_PIECE])
        if end and not out and not self._held:
            self._reply(b"", end=True)
        elif end and not out:
            pass  # the last held piece carries the end
        if self._connection is not None:
            self._connection.pause()
        self.credit(0)

    def _reply(self, data: bytes, *, end: bool) -> None:
        self._credit -= len(data)
        if end:
            self.is_over = True
        self._door.reply(self, data, end=end)

    def _break(self, status: int, why: str) -> None:
        self._end()
        self._door.fail(self, status, why)

    def _end(self) -> None:
        self.is_over = True
        self._held = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
