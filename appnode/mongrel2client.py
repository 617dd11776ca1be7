"""One connection of a Mongrel2: its requests in their order, its replies in few messages."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from typing import Protocol

from appnode import websocket
from appnode.incoming import Incoming
from appnode.link import Answer
from appnode.writer import plain
from bareku.log import event
from frontend.mongrel2 import MessageError

log = logging.getLogger("appnode.mongrel2")

GATHER_S = 0.002  # a reply that goes on is gathered for so long before its next message
BURST = 8  # messages that leave without a pause; Mongrel2 cuts at the 17th it could not write
PACE_S = 0.05  # after a burst, one message each
WHOLE_BYTES = 16 * 2**20  # up to this a reply of known length leaves in one message
MAX_MESSAGES = 12  # of a larger reply of known length
HIGH_BYTES = 4 * 2**20  # gathered before the app has to wait, when the length is not known
MAX_QUEUED = 64  # pipelined requests of one connection


class Server(Protocol):
    """The door that the connection belongs to."""

    def send(self, ident: bytes, number: int, data: bytes) -> None: ...
    def open(self, incoming: Incoming) -> Answer: ...
    def forget(self, client: Client) -> None: ...
    def answered(self) -> None: ...


class Client:
    """One connection of the server: requests in order, replies in few messages."""

    def __init__(self, door: Server, ident: bytes, number: int) -> None:
        self._door = door
        self.ident = ident
        self.number = number
        self._loop = asyncio.get_running_loop()
        self._answer: Answer | None = None
        self._takes_place = False
        self._waiting: deque[Incoming] = deque()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._owed = 0  # bytes of the reply that were not credited yet
        self._tokens = float(BURST)
        self._token_at = 0.0
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._is_started = False
        self._is_sent = False  # some of it, to the server
        self._left: int | None = None  # bytes that are still to come, when the reply says so
        self._closes = False  # after the reply
        self._is_websocket = False

    # requests

    def request(self, incoming: Incoming) -> None:
        if self._answer is None:
            self._begin(incoming)
        elif len(self._waiting) < MAX_QUEUED:
            self._waiting.append(incoming)
        else:
            self.give_up(503)

    def _begin(self, incoming: Incoming) -> None:
        self._is_started = self._is_sent = False
        self._left = None
        self._closes = _wants_close(incoming)
        if _is_upload(incoming):
            self._refuse_upload(incoming)
            return
        if incoming.server.get(b"METHOD") == b"WEBSOCKET_HANDSHAKE":
            self._is_websocket = True
            incoming.server[b"METHOD"] = b"GET"
            incoming.body = b""  # the accept value, which whoever answers makes again
        self._takes_place = True
        try:
            self._answer = self._door.open(incoming)
        except MessageError as exc:
            log.warning(event("request dropped", why=exc))
            self.give_up(502)
            return
        self._answer.start()

    def _refuse_upload(self, incoming: Incoming) -> None:
        """Nobody opens the file: a client may have made up its name."""
        if incoming.header(b"x-mongrel2-upload-start") is None or incoming.header(
            b"x-mongrel2-upload-done"
        ):
            self._send(plain(413, close=True))
            self._send(b"")
        self._door.forget(self)

    def websocket(self, incoming: Incoming) -> None:
        """A frame, for whoever reads the connection as the browser wrote it: masked."""
        if self._answer is None:
            return
        try:
            flags = int(incoming.server.get(b"FLAGS", b"0x81"), 16)
        except ValueError:
            flags = 0x81
        mask = os.urandom(4)
        self._answer.body(websocket.frame(flags & 0xFF, incoming.body, mask), end=False)

    def upgraded(self) -> None:
        if self._takes_place:
            self._takes_place = False
            self._door.answered()

    # the reply

    def reply(self, data: bytes, *, end: bool) -> None:
        if data and not self._is_started:
            self._is_started = True
            self._read_head(data)
        elif self._left is not None:
            self._left -= len(data)
        if data:
            self._out.append(data)
            self._out_bytes += len(data)
            self._owed += len(data)
        if end:
            self._end()
        elif self._is_gathering():
            self._repay()
        else:
            if self._timer is None and self._out:
                self._timer = self._loop.call_later(self._pause_s(), self._flush)
            if self._out_bytes < HIGH_BYTES:
                self._repay()

    def _read_head(self, data: bytes) -> None:
        """How the reply ends: by its length, by itself (chunked), or with the connection."""
        end = data.find(b"\r\n\r\n") + 4
        low = data[: end - 2].lower()
        at = low.find(b"\r\ncontent-length:")
        if at >= 0:
            length = low[at + 17 : low.index(b"\r\n", at + 17)].strip()
            self._left = end + int(length) - len(data) if length.isdigit() else None
        elif b"\r\ntransfer-encoding:" not in low and low[9:12] not in (b"204", b"304"):
            self._closes = True

    def _is_gathering(self) -> bool:
        """True while the reply is better gathered than sent."""
        if self._left is None:
            return False
        return self._out_bytes < max(WHOLE_BYTES, (self._left + self._out_bytes) // MAX_MESSAGES)

    def _pause_s(self) -> float:
        now = self._loop.time()
        self._tokens = min(BURST, self._tokens + (now - self._token_at) / PACE_S)
        self._token_at = now
        if self._tokens < 1:
            return (1 - self._tokens) * PACE_S
        return 0.0 if self._is_websocket else GATHER_S

    def _repay(self) -> None:
        """Credit what was taken; later, since the answer is in the middle of something."""
        if self._answer is not None and self._owed:
            self._loop.call_soon(self._answer.credit, self._owed)
            self._owed = 0

    def _flush(self) -> None:
        self._timer = None
        if self._out:
            self._pause_s()
            self._tokens -= 1
            self._is_sent = True
            self._send(b"".join(self._out))
            self._out.clear()
            self._out_bytes = 0
        self._repay()

    def _send(self, data: bytes) -> None:
        self._door.send(self.ident, self.number, data)

    # the end

    def _end(self) -> None:
        """The reply is whole."""
        self._answer = None
        self._stop_timer()
        self._flush()
        self._free()
        if self._closes or self._is_websocket:
            self._send(b"")
            self._door.forget(self)
        elif self._waiting:
            self._begin(self._waiting.popleft())
        else:
            self._door.forget(self)

    def give_up(self, status: int) -> None:
        """Say so when nothing was said yet; close in any case."""
        if not self._is_sent:
            self._out.clear()
            self._send(plain(status, close=True))
        self._send(b"")
        self.gone()

    def gone(self) -> None:
        """Nobody waits for the answers any more."""
        self._stop_timer()
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.cancel()
        self._free()
        self._waiting.clear()
        self._door.forget(self)

    def _free(self) -> None:
        if self._takes_place:
            self._takes_place = False
            self._door.answered()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self, now: float) -> None:
        if self._answer is not None:
            self._answer.check(now)


def _wants_close(incoming: Incoming) -> bool:
    """True when the client expects the server to close (which Mongrel2 never does by itself)."""
    connection = (incoming.header(b"connection") or b"").lower()
    return b"close" in connection or (not incoming.is_http11 and b"keep-alive" not in connection)


def _is_upload(incoming: Incoming) -> bool:
    """True for a body that Mongrel2 did not put into the message."""
    server = incoming.server
    return incoming.header(b"x-mongrel2-upload-start") is not None or (
        b"UPLOAD_STREAM" in server and b"UPLOAD_STREAM_DONE" not in server
    )
