"""What the answers of native handlers share: body, windows, the client's going."""

from __future__ import annotations

import asyncio
from collections import deque

from appnode.incoming import Incoming
from appnode.link import Door
from frontend.link import WINDOW


class Native:
    """One request that an app in this process answers; its methods belong to the loop's thread."""

    def __init__(self, door: Door, handler: int, incoming: Incoming, *, more: bool) -> None:
        self.handler = handler
        self.key = incoming.number
        self.ident = incoming.ident
        self.incoming = incoming
        self.door = door
        self.is_gone = False  # nobody waits for the answer any more
        self.is_over = False
        self.body_ended = not more
        self._pieces: deque[bytes] = deque([incoming.body] if incoming.body else [])
        self._is_granted = False
        self._owed = 0
        self._credit = WINDOW
        self._waiter: asyncio.Future[None] | None = None

    # from the door

    def start(self) -> None:
        """Give the request to the app."""
        raise NotImplementedError

    def body(self, data: bytes, *, end: bool) -> None:
        if data:
            self._pieces.append(data)
        if end:
            self.body_ended = True
        self._wake()

    def credit(self, size: int) -> None:
        self._credit += size
        self._wake()

    def cancel(self) -> None:
        self.is_gone = self.is_over = True
        self._wake()

    def abandon(self, why: str) -> None:
        """Never said of an app in this process."""

    def check(self, now: float) -> None:
        """How long an app may take is the frontend's to judge."""

    # for the app

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        """Until something is different; there may be two who wait."""
        if self._waiter is None or self._waiter.done():
            self._waiter = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._waiter)

    async def read(self) -> bytes:
        """The next piece of the body; empty at its end and when the client has gone."""
        self._grant()
        while not self._pieces and not self.body_ended and not self.is_gone:
            await self._wait()
        if not self._pieces:
            return b""
        data = self._pieces.popleft()
        self._owed += len(data)
        return data

    def _grant(self) -> None:
        if self.body_ended or self.is_gone:
            return
        if not self._is_granted:
            self._is_granted = True
            self._owed = 0  # what came with the request was not granted
            self.door.grant(self, WINDOW)
        elif self._owed >= WINDOW // 4:
            self.door.grant(self, self._owed)
            self._owed = 0

    async def send(self, data: bytes, *, end: bool) -> None:
        """Send a piece of the reply as soon as the client's window allows."""
        while True:
            if self.is_over:
                return
            if len(data) <= self._credit:
                break
            if self._credit > 0:
                piece, data = data[: self._credit], data[self._credit :]
                self._credit = 0
                self.door.reply(self, piece, end=False)
            await self._wait()
        self._credit -= len(data)
        if end:
            self.is_over = True
        if data or end:
            self.door.reply(self, data, end=end)

    async def until_gone(self) -> None:
        while not self.is_over:
            await self._wait()

    def fail(self, status: int, why: str) -> None:
        if not self.is_over:
            self.is_over = True
            self.door.fail(self, status, why)


def addresses(incoming: Incoming) -> tuple[str, str, int]:
    """The client's address, and the name and port it asked for."""
    server = incoming.server
    remote = server.get(b"REMOTE_ADDR", b"").decode("latin-1")
    host = (incoming.header(b"host") or b"localhost").decode("latin-1")
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name, port = host, "443" if server.get(b"URL_SCHEME") == b"https" else "80"
    return remote, name.strip("[]"), int(port[:5])
