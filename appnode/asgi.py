"""ASGI 3 apps on the link: HTTP, WebSocket and lifespan."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any
from urllib.parse import unquote_to_bytes

from appnode import websocket
from appnode.incoming import HOP_BY_HOP, Incoming
from appnode.link import Answer, Door
from appnode.native import Native, addresses
from appnode.writer import AnswerError, Writer, plain
from bareku.log import event

log = logging.getLogger("appnode.serve")

Event = dict[str, Any]
_KEPT_OUT = HOP_BY_HOP - {b"te", b"trailer"}
LIFESPAN_S = 30.0


class Asgi:
    """The app and its lifespan; `open` makes the answer to a request."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._state: dict[str, Any] = {}
        self._lifespan: asyncio.Task[None] | None = None
        self._in: asyncio.Queue[Event] = asyncio.Queue()
        self._out: asyncio.Queue[Event] = asyncio.Queue()

    def open(self, door: Door, handler: int, incoming: Incoming, more: bool) -> Answer:
        if incoming.wants_upgrade and (incoming.header(b"upgrade") or b"").lower() == b"websocket":
            return _WebSocket(self, door, handler, incoming)
        return _Http(self, door, handler, incoming, more=more)

    def run(self, answer: _Http | _WebSocket) -> None:
        task = self._loop.create_task(answer.run(self._app, dict(self._state)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def start(self) -> None:
        """Lifespan startup; an app without one is fine. Raises RuntimeError when it fails."""
        self._lifespan = self._loop.create_task(self._live())
        await self._in.put({"type": "lifespan.startup"})
        answer = await self._answer()
        if answer.get("type") == "lifespan.startup.failed":
            raise RuntimeError(answer.get("message") or "the app's startup failed")

    async def _live(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self._state}
        try:
            await self._app(scope, self._in.get, self._out.put)
        except Exception as exc:  # noqa: BLE001  # an app that knows no lifespan raises anything
            log.debug(event("no lifespan", error=repr(exc)))

    async def _answer(self) -> Event:
        """What the lifespan says next; nothing when it is not supported."""
        assert self._lifespan is not None
        getter = asyncio.ensure_future(self._out.get())
        done, _ = await asyncio.wait(
            [getter, self._lifespan], timeout=LIFESPAN_S, return_when=asyncio.FIRST_COMPLETED
        )
        if getter in done:
            return getter.result()
        getter.cancel()
        return {}

    async def stop(self) -> None:
        """Lifespan shutdown."""
        if self._lifespan is not None and not self._lifespan.done():
            await self._in.put({"type": "lifespan.shutdown"})
            await self._answer()
            self._lifespan.cancel()
        for task in list(self._tasks):
            task.cancel()


def scope_of(incoming: Incoming, kind: str, state: dict[str, Any]) -> Event:
    """The ASGI scope of a request."""
    server = incoming.server
    remote, name, port = addresses(incoming)
    target = server.get(b"URI", b"/")
    path, _, query = target.partition(b"?")
    scheme = server.get(b"URL_SCHEME", b"http").decode("latin-1")
    if kind == "websocket":
        scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1" if incoming.is_http11 else "1.0",
        "method": server.get(b"METHOD", b"GET").decode("latin-1"),
        "scheme": scheme,
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [header for header in incoming.headers if header[0] not in _KEPT_OUT],
        "client": (remote, 0) if remote else None,
        "server": (name, port),
        "state": state,
        "extensions": {},
    }


class _Http(Native):
    """An HTTP request for the app."""

    def __init__(
        self, asgi: Asgi, door: Door, handler: int, incoming: Incoming, *, more: bool
    ) -> None:
        super().__init__(door, handler, incoming, more=more)
        self._asgi = asgi
        self._writer = Writer(incoming.server.get(b"METHOD", b""), http11=incoming.is_http11)
        self._is_read = False
        self._is_sent = False

    def start(self) -> None:
        self._asgi.run(self)

    async def run(self, app: Any, state: dict[str, Any]) -> None:
        try:
            await app(scope_of(self.incoming, "http", state), self._receive, self._send)
        except Exception:
            log.exception(event("app failed", path=self.incoming.path.decode("latin-1")))
            await self._break()
        else:
            if not self.is_over:
                log.error(event("app returned without a whole response"))
                await self._break()

    async def _break(self) -> None:
        if self._is_sent:
            self.fail(502, "the app failed in the middle of its response")
        else:
            await self.send(plain(500), end=True)

    async def _receive(self) -> Event:
        if self._is_read:
            await self.until_gone()
        if not self.is_gone:
            data = await self.read()
            if not self.is_gone:
                more = bool(self._pieces) or not self.body_ended
                self._is_read = not more
                return {"type": "http.request", "body": data, "more_body": more}
        return {"type": "http.disconnect"}

    async def _send(self, message: Event) -> None:
        if self.is_gone:
            return  # ASGI: sending to a client that has gone is no error
        if message["type"] == "http.response.start":
            self._writer.start(message["status"], message.get("headers") or ())
        elif message["type"] == "http.response.body":
            last = not message.get("more_body", False)
            data = self._writer.body(bytes(message.get("body") or b""), last=last)
            self._is_sent = True
            await self.send(data, end=last)
        else:
            raise AnswerError(f"unknown message {message['type']!r}")


class _WebSocket(Native):
    """A WebSocket for the app."""

    def __init__(self, asgi: Asgi, door: Door, handler: int, incoming: Incoming) -> None:
        super().__init__(door, handler, incoming, more=False)
        self._asgi = asgi
        self._reader = websocket.Reader()
        self._events: deque[Event] = deque([{"type": "websocket.connect"}])
        self._is_accepted = False
        self._is_closed = False

    def start(self) -> None:
        self._asgi.run(self)

    async def run(self, app: Any, state: dict[str, Any]) -> None:
        scope = scope_of(self.incoming, "websocket", state)
        del scope["method"]
        offered = self.incoming.header(b"sec-websocket-protocol") or b""
        scope["subprotocols"] = [
            one.strip() for one in offered.decode("latin-1").split(",") if one.strip()
        ]
        code = 1000
        try:
            await app(scope, self._receive, self._send)
        except Exception:
            log.exception(event("app failed", path=self.incoming.path.decode("latin-1")))
            code = 1011
        if not self.is_over:
            await self._close(code, "")

    async def _receive(self) -> Event:
        while not self._events:
            if self.is_over or self._is_closed:
                return {"type": "websocket.disconnect", "code": 1006}
            data = await self.read()
            try:
                messages = self._reader.feed(data)
            except websocket.WebSocketError as exc:
                await self._close(exc.code, str(exc))
                return {"type": "websocket.disconnect", "code": exc.code}
            for message in messages:
                await self._take(message)
            if not data and self.body_ended and not self._events:
                self._is_closed = True
                await self.send(b"", end=True)
        return self._events.popleft()

    async def _take(self, message: websocket.Message) -> None:
        kind, data = message
        if kind == websocket.TEXT:
            self._events.append({"type": "websocket.receive", "text": data})
        elif kind == websocket.BINARY:
            self._events.append({"type": "websocket.receive", "bytes": data})
        elif kind == websocket.PING:
            await self.send(websocket.frame(websocket.FIN | websocket.PONG, _raw(data)), end=False)
        elif kind == websocket.CLOSE:
            code, reason = websocket.close_code(_raw(data))
            self._events.append({"type": "websocket.disconnect", "code": code, "reason": reason})
            await self._close(1000 if code == 1005 else code, reason)

    async def _send(self, message: Event) -> None:
        if self.is_over or self._is_closed:
            return
        kind = message["type"]
        if kind == "websocket.accept":
            await self._accept(message)
        elif kind == "websocket.send":
            text = message.get("text")
            if text is not None:
                data = websocket.frame(websocket.FIN | websocket.TEXT, text.encode())
            else:
                data = websocket.frame(websocket.FIN | websocket.BINARY, message["bytes"])
            await self.send(data, end=False)
        elif kind == "websocket.close":
            await self._close(message.get("code") or 1000, message.get("reason") or "")
        else:
            raise AnswerError(f"unknown message {kind!r}")

    async def _accept(self, message: Event) -> None:
        key = self.incoming.header(b"sec-websocket-key") or b""
        lines = [
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + websocket.accept(key) + b"\r\n"
        ]
        if chosen := message.get("subprotocol"):
            lines.append(b"Sec-WebSocket-Protocol: " + chosen.encode("latin-1") + b"\r\n")
        for name, value in message.get("headers") or ():
            if b"\n" in name + value or b"\r" in name + value:
                raise AnswerError("a header has a line break")
            lines.append(name + b": " + value + b"\r\n")
        self._is_accepted = True
        self.body_ended = False  # from now on the client's frames follow
        await self.send(b"".join(lines) + b"\r\n", end=False)
        self.door.upgraded(self)

    async def _close(self, code: int, reason: str) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_accepted:
            await self.send(websocket.close_frame(code, reason), end=True)
        else:
            await self.send(plain(403), end=True)


def _raw(data: str | bytes) -> bytes:
    return data if isinstance(data, bytes) else data.encode()
