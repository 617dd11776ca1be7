"""A client's connection: HTTP in, one request at a time, in order."""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import cast

from frontend.chunked import Chunked
from frontend.exchange import Request
from frontend.http import Head, HttpError, check_start, page, parse_head
from frontend.link import INLINE
from frontend.listener import Listener, behind, facts
from frontend.mongrel2 import encode_pair
from frontend.router import Target

AHEAD = 65_536  # bytes read ahead of the request being answered
WRITE_HIGH = 262_144
WRITE_LOW = 65_536
WRITE_MOST = 16 * 2**20
LINGER_S = 2.0  # for a client that still sends when it was refused, so that it reads why
MAX_EMPTY_LINES = 8
PROGRESS = 1024  # bytes of a body that count as progress


class Phase(Enum):
    """What the next bytes of the client are."""

    HEAD = auto()
    BODY = auto()
    BUSY = auto()  # of the next request
    TUNNEL = auto()
    LINGER = auto()  # dropped
    CLOSED = auto()


class Connection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_buffer", "_chunked", "_left", "_lines", "_phase", "_progress", "_shared", "_skipped", "_transport",
        "_writable", "deadline", "due", "extra", "is_reading", "remote", "request", "slot",
    )  # fmt: skip

    def __init__(self, shared: Listener) -> None:
        self._shared = shared
        self._transport: asyncio.Transport | None = None
        self._phase = Phase.HEAD
        self._buffer: bytes | bytearray = b""
        self._chunked: Chunked | None = None
        self._left = 0
        self._progress = 0
        self._skipped = 0
        self._lines = b""
        self._writable = True
        self.is_reading = True
        self.deadline = 0.0
        self.due = 0.0
        self.slot = 0
        self.remote = ""
        self.extra = b""
        self.request: Request | None = None

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        shared = self._shared
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        peer = transport.get_extra_info("peername")
        self.remote = peer[0] if isinstance(peer, tuple) else "127.0.0.1"
        self._lines = shared.lines(self.remote)
        shared.connections.add(self)
        if len(shared.connections) > shared.exchange.config.limits.connections:
            self._transport.write(page(503, close=True, fields="Retry-After: 1\r\n"))
            self._close()
            return
        shared.wheel.set(self, shared.clock() + shared.timeouts.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._phase = Phase.CLOSED
        self._shared.connections.discard(self)
        self._shared.wheel.forget(self)
        request = self.request
        if request is not None:
            self.request = None
            self._shared.exchange.forget(request)
            self._finished(request, request.status if request.is_started else 499)

    def eof_received(self) -> bool:
        """A client that ends its side has gone; within a tunnel it has only nothing more to say."""
        if self._phase is Phase.TUNNEL and self.request is not None:
            self._shared.exchange.end_body(self.request)
            return True
        return False

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is Phase.HEAD:
            self._read_head(data)
        elif phase is Phase.BODY:
            self._read_body(data)
        elif phase is Phase.TUNNEL:
            assert self.request is not None
            self._wait(self._shared.timeouts.tunnel_s)
            self._shared.exchange.add_body(self.request, data)
        elif phase is Phase.BUSY:
            self._append(data)
            if len(self._buffer) > AHEAD:
                self._pause()

    def pause_writing(self) -> None:
        self._writable = False
        self._wait(self._shared.timeouts.write_s)

    def resume_writing(self) -> None:
        self._writable = True
        if self.request is not None:
            self._wait(self._shared.timeouts.stream_s)
            self._shared.exchange.writable(self.request)

    # reading

    def _read_head(self, data: bytes) -> None:
        seen = len(self._buffer)
        if not seen:
            end = data.find(b"\r\n\r\n")
            if end > 0 and data[0] != 0x0D:
                self._read_whole(data, end)
                return
            self._buffer = data
        else:
            self._append(data)
            end = self._buffer.find(b"\r\n\r\n", max(0, seen - 3))
        if self._buffer[:1] == b"\r" and not self._skip_empty_lines():
            return
        if end >= 0:
            whole = bytes(self._buffer)
            self._buffer = b""
            self._read_whole(whole, end)
            return
        try:
            check_start(self._buffer, seen, self._shared.limits)
        except HttpError as exc:
            self._refuse(exc)
            return
        if not seen:
            self._wait(self._shared.timeouts.head_s)

    def _append(self, data: bytes) -> None:
        if not self._buffer:
            self._buffer = data
            return
        if isinstance(self._buffer, bytes):
            self._buffer = bytearray(self._buffer)
        self._buffer += data

    def _read_whole(self, data: bytes, end: int) -> None:
        try:
            head = parse_head(data, end, self._shared.limits)
        except HttpError as exc:
            self._refuse(exc)
            return
        self._begin(head, data[end + 4 :])

    def _skip_empty_lines(self) -> bool:
        """Some empty lines before a request are forgiven (RFC 9112 §2.2); True for none at all."""
        rest = bytes(self._buffer)
        while rest.startswith(b"\r\n"):
            rest = rest[2:]
            self._skipped += 1
        if self._skipped > MAX_EMPTY_LINES:
            self._refuse(HttpError(400, "empty lines instead of a request"))
        elif rest == b"\r":
            self._buffer = rest
        elif rest.startswith(b"\r") or rest == bytes(self._buffer):
            return True
        else:
            self._buffer = b""
            if rest:
                self._read_head(rest)
        return False

    def _begin(self, head: Head, rest: bytes) -> None:
        """A request's head is here; `rest` is what came after it."""
        shared = self._shared
        exchange = shared.exchange
        self._skipped = 0
        if head.path == b"*":
            self._plain(head, rest, 200, "Allow: GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH\r\n")
            return
        target = exchange.table.find(head.host, head.path)
        if target is None:
            exchange.metrics.count("no_route")
            self._plain(head, rest, 404)
            return
        block = head.block
        length = block.length or 0
        if shared.body_bytes and length > shared.body_bytes:
            self._refuse(HttpError(413, "body too large"), head)
            return
        request = self._request(head, target)
        if target.route.app in exchange.maintenance:
            self._phase = Phase.BODY if length or block.is_chunked else Phase.BUSY
            self._buffer = rest
            self.answer(request, 503, "maintenance")
            return
        if not length and not block.is_chunked:
            request.is_complete = not head.is_upgrade
            self._phase = Phase.BUSY
            self._buffer = rest
            exchange.submit(request)
            return
        self._phase = Phase.BODY
        self._left = length
        self._chunked = Chunked() if block.is_chunked else None
        self._progress = 0
        self._wait(shared.timeouts.body_s)
        if block.expects and not rest and not head.is_http10:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if rest:
            self._read_body(rest)

    def _request(self, head: Head, target: Target) -> Request:
        shared = self._shared
        id = head.block.request_id
        if not id:
            shared.ids += 1
            id = f"{shared.id_prefix}{shared.ids:08x}"
        lines = self._lines
        if shared.trusted and shared.trusts(self.remote):
            known = behind(self.remote, shared.scheme, shared.port, head.block)
            lines = b"".join(encode_pair(*item) for item in known.items())
        if shared.id_field:
            text = id.encode()
            lines = b"%b12:x-request-id,%d:%b," % (lines, len(text), text)
            self.extra = b"%b%b\r\n" % (shared.id_start, text)
        if head.host is not None and head.block.host is None:
            lines += encode_pair("host", head.host)
        self.request = Request(self, head, target, lines, id, shared.clock())
        return self.request

    def _read_body(self, data: bytes) -> None:
        request = self.request
        assert request is not None
        rest = b""
        if self._chunked is not None:
            try:
                pieces, rest = self._chunked.feed(data)
            except HttpError as exc:
                self._refuse(exc)
                return
            data = b"".join(pieces)
            is_complete = self._chunked.is_done
        else:
            if len(data) > self._left:
                data, rest = data[: self._left], data[self._left :]
            self._left -= len(data)
            is_complete = not self._left
        request.body_bytes += len(data)
        if self._shared.body_bytes and request.body_bytes > self._shared.body_bytes:
            self._refuse(HttpError(413, "body too large"))
            return
        self._progress += len(data)
        if self._progress >= PROGRESS and not request.is_started:
            self._progress = 0
            if not request.is_submitted:
                self._wait(self._shared.timeouts.body_s)
            elif request.handler is not None:  # its time begins when it has everything
                self._wait(self._shared.timeouts.first_byte_s)
        if is_complete:
            self._phase = Phase.BUSY
            self._chunked = None
            self._buffer = rest
        self._pass_body(request, data, is_complete)

    def _pass_body(self, request: Request, data: bytes, is_complete: bool) -> None:
        """Collect the first part, which goes with the request; hand the rest on."""
        exchange = self._shared.exchange
        if not request.is_submitted:
            request.push(data)
            if not is_complete and request.queued < INLINE:
                return
            body = b"".join(request.queue)
            request.body, rest = body[:INLINE], body[INLINE:]
            request.queue = [rest] if rest else ()
            request.queued = len(rest)
            request.is_complete = is_complete
            exchange.submit(request)
            if request.queued > INLINE or (request.handler is None and not is_complete):
                self.pause_body()
            return
        if data:
            exchange.add_body(request, data)
        if is_complete:
            exchange.end_body(request)

    def pause_body(self) -> None:
        if self._phase in (Phase.BODY, Phase.TUNNEL):
            self._pause()

    def resume_body(self) -> None:
        if self._phase in (Phase.BODY, Phase.TUNNEL):
            self._resume()

    def _pause(self) -> None:
        if self.is_reading and self._transport is not None:
            self.is_reading = False
            self._transport.pause_reading()

    def _resume(self) -> None:
        if not self.is_reading and self._transport is not None:
            self.is_reading = True
            self._transport.resume_reading()

    # answering

    @property
    def said(self) -> dict[str, str]:
        shared = self._shared
        if shared.trusts(self.remote) and self.request is not None:
            return behind(self.remote, shared.scheme, shared.port, self.request.head.block)
        return facts(self.remote, shared.scheme, shared.port)

    def is_writable(self) -> bool:
        return self._writable

    def write(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None:
            if not self._writable and transport.get_write_buffer_size() > WRITE_MOST:
                transport.abort()  # handlers without credit sent more than is held for a slow client
                return
            transport.write(data)

    def upgraded(self) -> None:
        """The connection is a tunnel from now on."""
        if self._phase is Phase.TUNNEL or self.request is None:
            return
        self._phase = Phase.TUNNEL
        self._resume()
        if self._buffer:  # sent before the 101
            early, self._buffer = bytes(self._buffer), b""
            self._shared.exchange.add_body(self.request, early)

    def done(self, request: Request) -> None:
        """The whole reply was written."""
        self._finished(request, request.status)
        if request.closes or self._phase is not Phase.BUSY:
            self._close()
        else:
            self._next()

    def answer(self, request: Request, status: int, name: str = "") -> None:
        """Answer with a page of ours; the connection stays when the request was read whole."""
        exchange = self._shared.exchange
        exchange.forget(request)
        close = self._phase is not Phase.BUSY or not request.head.keeps_alive or exchange.is_closing
        fields = self.extra.decode()
        if status == 503:
            fields += "Retry-After: 5\r\n"
        is_head = request.head.method == b"HEAD"
        self.write(self._page(status, request.key[0], name, close, is_head, fields))
        self._finished(request, status)
        if close:
            self._close()
        else:
            self._next()

    def hang_up(self, request: Request) -> None:
        """Close without a further word."""
        self._shared.exchange.forget(request)
        self._finished(request, request.status or 502)
        self._phase = Phase.LINGER
        if self._transport is not None:
            self._transport.close()

    def abort(self, request: Request) -> None:
        """Half an answer must not look like a whole one: reset instead of a clean end."""
        self._shared.exchange.forget(request)
        self._finished(request, request.status or 502)
        if self._transport is not None:
            self._transport.abort()

    def _finished(self, request: Request, status: int) -> None:
        self._shared.journal.finished(request, status)
        self.request = None
        self.extra = b""

    def _next(self) -> None:
        """Ready for the next request, which may be here already."""
        self._phase = Phase.HEAD
        self._wait(self._shared.timeouts.idle_s)
        self._resume()
        if self._buffer:
            asyncio.get_running_loop().call_soon(self._next_buffered)

    def _next_buffered(self) -> None:
        if self._phase is Phase.HEAD and self._buffer:
            data, self._buffer = bytes(self._buffer), b""
            self._read_head(data)

    def _plain(self, head: Head, rest: bytes, status: int, fields: str = "") -> None:
        """Answer without any handler."""
        has_body = bool(head.block.length) or head.block.is_chunked
        close = has_body or not head.keeps_alive or self._shared.exchange.is_closing
        body = b"" if status == 200 else None
        is_head = head.method == b"HEAD"
        if body is None:
            self.write(self._page(status, "", "", close, is_head, fields))
        else:
            self.write(page(status, body=body, close=close, fields=fields))
        if close:
            self._close()
            return
        self._buffer = rest
        self._next()

    def _page(
        self, status: int, app: str, name: str, close: bool, is_head: bool, fields: str
    ) -> bytes:
        """A response of ours, with the operator's page when there is one."""
        own = self._shared.pages.find(app, name or str(status))
        kind = "text/plain" if own is None else "text/html"
        return page(
            status,
            body=own,
            content_type=f"{kind}; charset=utf-8",
            close=close,
            is_head=is_head,
            fields=fields,
        )

    def _refuse(self, error: HttpError, head: Head | None = None) -> None:
        """Refuse what was sent and end the connection."""
        self._shared.journal.rejected(self.remote, error)
        request = self.request
        is_started = False
        if request is not None:
            is_started = request.is_started
            self._shared.exchange.forget(request)
            self._finished(request, error.status)
        self._buffer = b""
        if is_started:
            if self._transport is not None:
                self._transport.abort()
            return
        self.write(page(error.status, close=True, is_head=bool(head and head.method == b"HEAD")))
        self._close()

    def _close(self) -> None:
        """Close after what was written; a client that still sends gets a moment to read it."""
        transport = self._transport
        if transport is None or self._phase is Phase.LINGER:
            return
        is_clean = self._phase is Phase.BUSY and not self._buffer
        self._phase = Phase.LINGER
        self._buffer = b""
        if is_clean or not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        self._resume()
        self._wait(LINGER_S)

    # deadlines

    def wait_until(self, deadline: float) -> None:
        if not self._writable:
            return
        if deadline >= self.due > 0.0:
            self.deadline = deadline
        else:
            self._shared.wheel.set(self, deadline)

    def _wait(self, seconds: float) -> None:
        deadline = self._shared.clock() + seconds
        if deadline >= self.due > 0.0:
            self.deadline = deadline
        else:
            self._shared.wheel.set(self, deadline)

    def expire(self) -> None:
        """The deadline has passed."""
        transport = self._transport
        if transport is None:
            return
        request = self.request
        if self._phase is Phase.LINGER or not self._writable:
            transport.abort()
        elif request is not None and self._is_sender_late(request):
            self._refuse(HttpError(408, "too slow"))
        elif request is not None and (request.is_submitted or request.is_started):
            self._shared.exchange.expire(request)
        elif request is not None or self._buffer:
            self._refuse(HttpError(408, "too slow"))
        else:
            transport.close()

    def _is_sender_late(self, request: Request) -> bool:
        """The handler waits for a body, and we read, but none comes."""
        return (
            self._phase is Phase.BODY
            and request.handler is not None
            and self.is_reading
            and not request.is_started
        )

    def kill(self) -> None:
        """Break the connection off."""
        if self._transport is not None:
            self._transport.abort()

    def end(self) -> None:
        """The frontend stops: idle connections end now, others after their answer."""
        if self.request is None and self._phase is Phase.HEAD and not self._buffer:
            self._phase = Phase.LINGER
            if self._transport is not None:
                self._transport.close()
