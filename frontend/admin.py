"""What an operator asks of a running frontend: HTTP on a Unix socket, and read-only on TCP.

GET  /status                      the status document
GET  /metrics                     Prometheus's text
POST /apps/APP/pause | resume     hold the app's requests, or serve them again
POST /apps/APP/maintenance | live answer 503 with the maintenance page, or serve again
POST /pairs                       open a pair for Mongrel2 handlers (JSON as in the config)
DELETE /pairs/APP/PROCESS         close it
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from bareku.errors import BarekuError
from frontend.http import Head, HttpError, Limits, check_start, page, parse_head

MAX_BODY = 65_536
TIMEOUT_S = 10.0

Answer = tuple[int, str, bytes]  # status, content type, body
Ask = Callable[[str, str, bytes], Awaitable[Answer]]  # method, path, body


class AdminConnection(asyncio.Protocol):
    """One request, one answer, close."""

    def __init__(self, ask: Ask, *, may_change: bool) -> None:
        self._ask = ask
        self._may_change = may_change
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(TIMEOUT_S, self._abort)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._timer.cancel()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._task is not None:
            return
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        try:
            if end < 0:
                check_start(self._data, 0, Limits())
                return
            head = parse_head(self._data, end, Limits())
            length = head.block.length or 0
            if head.block.is_chunked or length > MAX_BODY:
                raise HttpError(413, "body too large")
        except HttpError as exc:
            self._say((exc.status, "text/plain", f"{exc}\n".encode()))
            return
        body = self._data[end + 4 :]
        if len(body) >= length:
            task = self._answer(head, body[:length])
            self._task = asyncio.get_running_loop().create_task(task)

    async def _answer(self, head: Head, body: bytes) -> None:
        method = head.method.decode()
        if method not in ("GET", "HEAD") and not self._may_change:
            self._say((405, "text/plain", b"only GET is answered here\n"))
            return
        try:
            answer = await self._ask(method, head.path.decode("latin-1"), body)
        except (BarekuError, msgspec.MsgspecError) as exc:
            answer = (400, "text/plain", f"{exc}\n".encode())
        self._say(answer)

    def _say(self, answer: Answer) -> None:
        status, content_type, body = answer
        if self._transport is not None:
            self._transport.write(page(status, body=body, content_type=content_type, close=True))
            self._transport.close()


def as_json(value: object, status: int = 200) -> Answer:
    """An answer in JSON."""
    return status, "application/json", (json.dumps(value) + "\n").encode()
