"""Requests between client connections and handlers: leases, retries, bodies, replies.

Decides by `dispatch` and `reply`; knows clients and doors only through the protocols below.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from bareku.log import event
from frontend.config import Config
from frontend.dispatch import Dispatcher, Handler, HoldLimits
from frontend.http import IDEMPOTENT, Head
from frontend.link import INLINE, WINDOW
from frontend.metrics import Metrics
from frontend.reply import Mode, Reply, ReplyError, whole_reply
from frontend.router import Key, Table, Target

log = logging.getLogger("frontend")

QUEUE_HIGH = 8 * INLINE  # body bytes waiting for a grant before the client is no longer read
PIECE = 4 * INLINE  # bytes of one BODY message
MAX_REFUSALS = 20


class Client(Protocol):
    """The connection a request came on."""

    extra: bytes  # header lines for every reply
    remote: str

    @property
    def said(self) -> dict[str, str]:
        """What handlers are told of the connection."""

    def write(self, data: bytes) -> None: ...

    def done(self, request: Request) -> None:
        """The whole answer was written; `request.reply` says whether the connection stays."""

    def answer(self, request: Request, status: int) -> None:
        """Answer with a page of our own."""

    def hang_up(self, request: Request) -> None:
        """Close the connection without a further word."""

    def abort(self, request: Request) -> None:
        """Break the connection off in the middle of an answer."""

    def pause_body(self) -> None: ...

    def resume_body(self) -> None: ...

    def wait_until(self, deadline: float) -> None: ...

    def is_writable(self) -> bool: ...

    def upgraded(self) -> None:
        """The connection is a tunnel from now on; may be said more than once."""


class Door(Protocol):
    """How handlers of one kind are reached."""

    heeds_close: bool  # `Connection: close` of a handler is meant for the client
    first_grant: int  # of an upgraded connection
    widens: bool  # an upgraded connection no longer counts against the handler's capacity

    def send_request(self, handler: Handler[Request], number: int, request: Request) -> None: ...

    def send_body(
        self, handler: Handler[Request], number: int, data: bytes, *, end: bool
    ) -> None: ...

    def cancel(self, handler: Handler[Request], number: int) -> None: ...

    def credit(self, handler: Handler[Request], number: int, size: int) -> None: ...


class Request:
    """A request on its way. Defaults stand in the class: most requests never change them."""

    held_until = 0.0
    body = b""  # what goes with the request message
    body_bytes = 0
    size_bytes = 0
    is_complete = False  # the whole body is here
    is_submitted = False
    is_gone = False
    is_started = False  # the first byte of an answer has gone to the client
    is_answered = False
    is_wide = False  # its handler's capacity was raised for it
    closes = False  # the connection ends after the answer
    status = 0
    body_out = 0
    handler: Handler[Request] | None = None
    number = 0
    attempts = 0
    refusals = 0
    queue: list[bytes] | tuple[()] = ()
    queued = 0
    granted = 0
    streamed = False  # some of the body went in BODY messages: it cannot be sent again
    reply: Reply | None = None
    uncredited = 0

    def __init__(
        self, client: Client, head: Head, target: Target, lines: bytes, id: str, now: float
    ) -> None:
        self.client = client
        self.head = head
        self.target = target
        self.key: Key = target.key
        self.lines = lines  # REMOTE_ADDR and what the frontend says of itself, as tnetstring pairs
        self.id = id
        self.started_at = now

    def push(self, data: bytes) -> None:
        """Put bytes of the body behind those that wait."""
        if self.queue:
            self.queue.append(data)
        else:
            self.queue = [data]
        self.queued += len(data)

    @property
    def has_more(self) -> bool:
        """Whether more of the body follows the request message."""
        return not (self.is_complete or self.head.is_upgrade) or bool(self.queue)

    @property
    def may_repeat(self) -> bool:
        """Whether it may be executed again (RFC 9110 §9.2.2) and still can be."""
        return self.head.method in IDEMPOTENT and not self.streamed and not self.is_started


class Exchange:
    """All requests of a frontend."""

    def __init__(
        self, config: Config, clock: Callable[[], float], first_number: int, metrics: Metrics
    ) -> None:
        bounds = config.limits
        self.config = config
        self.clock = clock
        self.metrics = metrics
        self.on_news: Callable[[], None] = lambda: None  # the handlers are others than before
        self.table = Table()
        self.maintenance: set[str] = set()
        self.is_closing = False
        self.dispatcher: Dispatcher[Request] = Dispatcher(
            self._send, HoldLimits(bounds.held_requests, bounds.held_bytes), first_number
        )
        self._attempts = bounds.attempts
        self._first_byte_s = config.timeouts.first_byte_s
        self._stream_s = config.timeouts.stream_s
        self._tunnel_s = config.timeouts.tunnel_s

    # from clients

    def submit(self, request: Request) -> None:
        """A request's head, and its body or the first part of it, are here."""
        request.is_submitted = True
        request.size_bytes = len(request.body) + 1024
        if not self.dispatcher.submit(request):
            self.metrics.count("hold_overflow")
            request.client.answer(request, 503)
        elif request.handler is None:
            self._wait_held(request)

    def _wait_held(self, request: Request) -> None:
        if not request.held_until:
            request.held_until = self.clock() + self.config.timeouts.hold_s
        request.client.wait_until(request.held_until)

    def add_body(self, request: Request, data: bytes) -> None:
        """More of the body, or of an upgraded connection, has come from the client."""
        request.push(data)
        self._send_body(request)
        if request.queued > QUEUE_HIGH:
            request.client.pause_body()

    def end_body(self, request: Request) -> None:
        """The body is complete, or the client of an upgraded connection sends no more."""
        request.is_complete = True
        self._send_body(request)

    def _send_body(self, request: Request) -> None:
        """As much of the queue as was granted."""
        handler = request.handler
        if handler is None or request.is_answered:
            return
        door: Door = handler.door  # type: ignore[assignment]
        while request.queue and request.granted > 0:
            data = b"".join(request.queue) if len(request.queue) > 1 else request.queue[0]
            size = min(request.granted, PIECE)
            piece, rest = (data, b"") if len(data) <= size else (data[:size], data[size:])
            request.queue = [rest] if rest else ()
            request.queued -= len(piece)
            request.granted -= len(piece)
            request.streamed = True
            is_last = request.is_complete and not rest
            door.send_body(handler, request.number, piece, end=is_last)
            if is_last:
                request.granted = -1  # the end was said
        if request.is_complete and not request.queue and request.granted >= 0:
            request.granted = -1
            request.streamed = True
            door.send_body(handler, request.number, b"", end=True)
        if request.queued < INLINE:
            request.client.resume_body()

    def forget(self, request: Request) -> None:
        """The client has gone or has been answered otherwise: nobody waits for this request."""
        if request.is_gone:
            return
        request.is_gone = True
        handler = request.handler
        if handler is not None:
            number = request.number
            request.handler = None
            if self.end_lease(handler, number) is request:
                self.metrics.count("cancelled")
                door: Door = handler.door  # type: ignore[assignment]
                door.cancel(handler, number)
        elif request.is_submitted:
            self.dispatcher.unhold(request)

    def writable(self, request: Request) -> None:
        """The client has taken what was written: the handler may send more."""
        if request.uncredited >= WINDOW // 4 and request.handler is not None:
            door: Door = request.handler.door  # type: ignore[assignment]
            door.credit(request.handler, request.number, request.uncredited)
            request.uncredited = 0

    def expire(self, request: Request) -> None:
        """The client's deadline has passed while it waited for an answer."""
        if request.is_started:
            request.client.abort(request)
        elif request.handler is None:
            self.metrics.count("hold_timeout")
            request.client.answer(request, 503)
        else:
            self.metrics.count("first_byte_timeout")
            request.client.answer(request, 504)

    # to and from handlers

    def _send(self, handler: Handler[Request], number: int, request: Request) -> None:
        request.handler = handler
        request.number = number
        request.attempts += 1
        door: Door = handler.door  # type: ignore[assignment]
        request.granted = 0 if request.has_more else -1
        if request.head.is_upgrade:
            request.granted = door.first_grant
        request.client.wait_until(self.clock() + self._first_byte_s)
        door.send_request(handler, number, request)

    def on_reply(self, handler: Handler[Request], number: int, data: bytes, end: bool) -> None:
        """Bytes of a reply; `end` when they are the last."""
        request = handler.leases.get(number)
        if request is None:
            self.metrics.count("stray_replies")
            return
        if request.is_answered:
            if end:
                self.end_lease(handler, number)
            return
        reply = request.reply
        if reply is None:
            if self._answer_whole(handler, request, data):
                if end:
                    self.end_lease(handler, number)
                request.client.done(request)
                return
            reply = request.reply = self._reply(handler, request)
        client = request.client
        try:
            out = reply.feed(data, end)
        except ReplyError as exc:
            request.is_started = reply.is_started
            self._bad_reply(handler, request, exc)
            return
        request.is_started = reply.is_started
        request.status = reply.status
        request.body_out = reply.body_bytes
        if out:
            client.write(out)
        if end:
            self.end_lease(handler, number)
        if reply.mode is Mode.DONE:
            request.is_answered = True
            request.closes = reply.close
            client.done(request)
            return
        request.uncredited += len(data)
        if request.uncredited >= WINDOW // 4 and client.is_writable():
            self.writable(request)
        if reply.mode is Mode.TUNNEL:
            self._widen(handler, request)
            client.upgraded()
            client.wait_until(self.clock() + self._tunnel_s)
        else:
            client.wait_until(self.clock() + self._stream_s)

    def _answer_whole(self, handler: Handler[Request], request: Request, data: bytes) -> bool:
        """The common case: a whole reply in one message, with a head like others before it."""
        head = request.head
        if head.is_plain and not self.is_closing:
            door: Door = handler.door  # type: ignore[assignment]
            whole = whole_reply(data, request.client.extra, heeds_close=door.heeds_close)
            if whole is not None:
                request.client.write(whole[0])
                request.is_started = request.is_answered = True
                _, request.status, request.body_out = whole
                return True
        return False

    def _widen(self, handler: Handler[Request], request: Request) -> None:
        """An upgraded connection takes no place among the requests of a window."""
        door: Door = handler.door  # type: ignore[assignment]
        if door.widens and not request.is_wide:
            request.is_wide = True
            self.dispatcher.set_capacity(handler, handler.capacity + 1)

    def end_lease(self, handler: Handler[Request], number: int) -> Request | None:
        """A lease has ended; None when there was no such lease."""
        request = self.dispatcher.release(handler, number)
        if request is not None and request.is_wide:
            request.is_wide = False
            self.dispatcher.set_capacity(handler, handler.capacity - 1)
        return request

    def on_close(self, handler: Handler[Request], number: int) -> None:
        """The handler wants the connection closed after what it sent (an empty reply)."""
        request = handler.leases.get(number)
        if request is None or request.is_answered:
            return
        if request.is_started:
            self.on_reply(handler, number, b"", True)
        else:
            self.hang_up(handler, number, tell=False)

    def hang_up(self, handler: Handler[Request], number: int, *, tell: bool = True) -> None:
        """Close the client's connection; `tell` the handler that it has gone."""
        request = handler.leases.get(number)
        if request is None or request.is_answered:
            return
        if not tell:
            request.handler = None
            request.is_gone = True
            self.end_lease(handler, number)
        request.client.hang_up(request)

    def keep_alive(self, handler: Handler[Request], number: int) -> None:
        """The handler says that a long request is alive."""
        request = handler.leases.get(number)
        if request is not None and not request.is_answered:
            request.client.wait_until(self.clock() + self._stream_s)

    def _reply(self, handler: Handler[Request], request: Request) -> Reply:
        head = request.head
        door: Door = handler.door  # type: ignore[assignment]
        return Reply(
            is_head=head.method == b"HEAD",
            is_http10=head.is_http10,
            keeps_alive=head.keeps_alive and not self.is_closing,
            is_upgrade=head.is_upgrade,
            heeds_close=door.heeds_close,
            extra=request.client.extra,
        )

    def _bad_reply(self, handler: Handler[Request], request: Request, why: ReplyError) -> None:
        self.metrics.count("bad_replies")
        log.warning(event("bad reply", app=request.key[0], process=handler.process, reason=why))
        if request.is_started:
            request.client.abort(request)
        else:
            request.client.answer(request, 502)

    def on_grant(self, handler: Handler[Request], number: int, size: int) -> None:
        """So much more of the body may be sent."""
        request = handler.leases.get(number)
        if request is not None and request.granted >= 0:
            request.granted += size
            self._send_body(request)

    def on_refuse(self, handler: Handler[Request], number: int) -> None:
        """The request was never given to the app: any method may go elsewhere."""
        request = handler.leases.get(number)
        if request is None:
            return
        self.metrics.count("refused")
        self.dispatcher.rest(handler)
        self.end_lease(handler, number)
        request.handler = None
        request.refusals += 1
        if request.is_started or request.streamed or request.refusals > MAX_REFUSALS:
            self._give_up(request, 503)
        else:
            self._again(request)

    def on_fail(self, handler: Handler[Request], number: int, status: int) -> None:
        """The app broke (502), was too slow (504), or the door cannot carry it (413)."""
        request = self.end_lease(handler, number)
        if request is None:
            return
        self.metrics.count("failed")
        request.handler = None
        if status == 502 and request.may_repeat and request.attempts < self._attempts:
            self.metrics.count("retried")
            self._again(request)
        else:
            self._give_up(request, status)

    def add_handler(self, handler: Handler[Request]) -> None:
        """A handler is there."""
        self.metrics.count("handlers_joined")
        self.dispatcher.add(handler)
        log.info(_about("handler joined", handler))
        self.on_news()

    def remove_handler(self, handler: Handler[Request], why: str) -> None:
        """A handler is gone; what it had goes to others or is answered with 502."""
        self.metrics.count("handlers_gone")
        log.info(_about("handler gone", handler, why))
        self.on_news()
        for request in self.dispatcher.remove(handler):
            request.handler = None
            if request.is_gone or request.is_answered:
                continue
            self.metrics.count("lost")
            if request.may_repeat and request.attempts < self._attempts:
                self.metrics.count("retried")
                self._again(request)
            else:
                self._give_up(request, 502)

    def _again(self, request: Request) -> None:
        """Lease it to another handler, or hold it before all others."""
        request.reply = None
        request.status = 0
        if not self.dispatcher.resubmit(request):
            self._give_up(request, 503)
        elif request.handler is None:
            self._wait_held(request)

    def _give_up(self, request: Request, status: int) -> None:
        if request.is_started:
            request.client.abort(request)
        else:
            request.client.answer(request, status)

    def swap(self, table: Table) -> None:
        """Use a new route table; what is held goes where it leads now."""
        self.table = table
        for request in self.dispatcher.take_held():
            if request.is_gone:
                continue
            target = table.find(request.head.host, request.head.path)
            if target is None:
                request.client.answer(request, 503)
                continue
            request.target = target
            request.key = target.key
            if not self.dispatcher.submit(request):
                request.client.answer(request, 503)


def _about(what: str, handler: Handler[Request], why: str = "") -> str:
    app, release = handler.key
    fields = {"reason": why} if why else {}
    return event(
        what, app=app, release=f"v{release}", process=handler.process, node=handler.node, **fields
    )
