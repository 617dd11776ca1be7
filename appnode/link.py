"""The handler side of the link: handlers, their frontends, the requests in flight.

One Link a frontend, one number a handler; `open_request` makes what answers a request. The
same for the connector, where a handler is an app's process, and for the native handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from appnode.dealer import Dealer, Wire
from appnode.greeting import BEAT_S, HELLO_AGAIN_S, HELLO_MOST_S, Event, Say, State, step
from appnode.incoming import Incoming, parse
from bareku.curve import Keys
from bareku.log import event
from frontend.link import (
    END,
    MORE,
    SILENCE_S,
    Hello,
    Kind,
    decode_head,
    encode_head,
)
from frontend.mongrel2 import MessageError

_REQUEST = Kind.REQUEST.value

log = logging.getLogger("appnode.link")


class Answer(Protocol):
    """A request in flight, as its door sees it: `ident` and `key` are its name there."""

    handler: int
    ident: bytes
    key: int

    def start(self) -> None: ...
    def body(self, data: bytes, *, end: bool) -> None: ...
    def credit(self, size: int) -> None: ...
    def cancel(self) -> None: ...
    def abandon(self, why: str) -> None: ...
    def check(self, now: float) -> None: ...


class Door(Protocol):
    """Where a request came from, and how it is answered.

    After the end of the reply, `refuse` or `fail` the answer is forgotten.
    """

    def reply(self, answer: Answer, data: bytes, *, end: bool) -> None: ...
    def refuse(self, answer: Answer, why: str) -> None: ...
    def fail(self, answer: Answer, status: int, why: str) -> None: ...
    def grant(self, answer: Answer, size: int) -> None: ...
    def upgraded(self, answer: Answer) -> None: ...


Opener = Callable[[Door, int, Incoming, bool], Answer]


@dataclass(slots=True)
class Counts:
    """What a handler did since it was first heard of."""

    requests: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    upgraded: int = 0


class Handler:
    """Something that answers requests: one process of one release.

    `open_request(door, number of the handler, request, more)` makes the answer; it may raise
    MessageError.
    """

    def __init__(self, number: int, hello: Hello, open_request: Opener) -> None:
        self.number = number
        self.hello = hello
        self.open_request = open_request
        self.capacity = hello.capacity
        self.counts = Counts()


class _Member:
    """A handler as one frontend knows it."""

    __slots__ = (
        "again_s", "capacity_said", "handler", "heard_at", "is_leaving", "spoke_at", "state",
    )  # fmt: skip

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.state = State.AWAY
        self.again_s = HELLO_AGAIN_S
        self.spoke_at = 0.0
        self.heard_at = 0.0
        self.capacity_said = 0
        self.is_leaving = False


class Link:
    """One frontend: the door through which its requests come and their replies go."""

    def __init__(
        self,
        endpoint: str,
        *,
        on_change: Callable[[], None],
        keys: Keys | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.frontend: str | None = None
        self.bad_messages = 0
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._members: dict[int, _Member] = {}
        self._answers: dict[int, Answer] = {}
        self._reply_heads: dict[int, tuple[bytes, bytes]] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._dealer = self._dial(keys)
        self._by_kind: dict[bytes, Callable[[int, tuple[int, ...], bytes], None]] = {
            Kind.REQUEST.value: self._request,
            Kind.BODY.value: self._body,
            Kind.CREDIT.value: self._credit,
            Kind.CANCEL.value: self._cancel,
            Kind.WELCOME.value: self._welcome,
            Kind.REJECT.value: self._reject,
            Kind.FAREWELL.value: self._farewell,
            Kind.ECHO.value: self._echo,
        }
        self._tick()

    def _dial(self, keys: Keys | None) -> Wire:
        up, down, message = self._up, self._down, self._message
        if keys is None:
            return Dealer(self.endpoint, on_up=up, on_down=down, on_message=message)
        from appnode.curve import CurveDealer  # libzmq is only loaded when it is needed

        return CurveDealer(self.endpoint, keys, on_up=up, on_down=down, on_message=message)

    # handlers come and go

    def add(self, handler: Handler) -> None:
        member = self._members[handler.number] = _Member(handler)
        number = handler.number
        self._reply_heads[number] = (
            encode_head(Kind.REPLY, number, 0),
            encode_head(Kind.REPLY, number, END),
        )
        if self._dealer.is_up:
            self._step(member, Event.UP)

    def leave(self, number: int) -> None:
        """Say goodbye for a handler; its requests in flight are still answered."""
        if member := self._members.get(number):
            member.is_leaving = True
            self._step(member, Event.LEAVE)

    def remove(self, number: int, why: str) -> None:
        """A handler is gone: its requests in flight fail at once."""
        for answer in [a for a in self._answers.values() if a.handler == number]:
            answer.abandon(why)
        self.leave(number)
        self._members.pop(number, None)

    def has_left(self, number: int) -> bool:
        member = self._members.get(number)
        return member is None or member.state is State.LEFT

    def in_flight(self, number: int) -> int:
        return sum(answer.handler == number for answer in self._answers.values())

    def state_of(self, number: int) -> str:
        member = self._members.get(number)
        return member.state.value if member else State.LEFT.value

    def say_capacity(self, number: int, capacity: int) -> None:
        """So many requests at once from now on, if that is news."""
        member = self._members.get(number)
        if member and member.state is State.WELCOME and member.capacity_said != capacity:
            member.capacity_said = capacity
            self._say(Kind.CAPACITY, number, capacity)

    def status(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "state": "connected" if self._dealer.is_up else "away",
            "frontend": self.frontend,
            "losses": self._dealer.losses,
            "bad_messages": self.bad_messages + self._dealer.garbage,
            "in_flight": len(self._answers),
        }

    @property
    def is_up(self) -> bool:
        return self._dealer.is_up

    def answers(self) -> Collection[Answer]:
        """The requests in flight."""
        return self._answers.values()

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        self._forget_requests()
        self._dealer.close()

    # the door of an exchange

    def reply(self, answer: Answer, data: bytes, *, end: bool) -> None:
        number = b"%d" % answer.key
        payload = b"%b %d:%b, %b" % (answer.ident, len(number), number, data)
        self._dealer.say(self._reply_heads[answer.handler][end], payload)
        if end and (handler := self._forget(answer)):
            handler.counts.answered += 1

    def refuse(self, answer: Answer, why: str) -> None:
        log.warning(event("request refused", handler=answer.handler, why=why))
        self._say(Kind.REFUSE, answer.handler, answer.key)
        if handler := self._forget(answer):
            handler.counts.refused += 1

    def fail(self, answer: Answer, status: int, why: str) -> None:
        log.warning(event("request failed", handler=answer.handler, status=status, why=why))
        self._say(Kind.FAIL, answer.handler, answer.key, status)
        if handler := self._forget(answer):
            handler.counts.failed += 1

    def grant(self, answer: Answer, size: int) -> None:
        self._say(Kind.GRANT, answer.handler, answer.key, size)

    def upgraded(self, answer: Answer) -> None:
        if member := self._members.get(answer.handler):
            member.handler.counts.upgraded += 1
        self._on_change()

    def _forget(self, answer: Answer) -> Handler | None:
        self._answers.pop(answer.key, None)
        member = self._members.get(answer.handler)
        if member is None:
            return None
        if member.is_leaving:
            self._on_change()
        return member.handler

    # what the frontend says

    def _message(self, head: bytes, payload: bytes) -> None:
        if head[:1] == _REQUEST and len(head) == 6:  # the most frequent one, quickly
            self._request(int.from_bytes(head[1:5], "big"), (head[5],), payload)
            return
        decoded = decode_head(head)
        if decoded is None or decoded[0] not in self._by_kind:
            self._bad("unknown head")
            return
        kind, number, fields = decoded
        self._by_kind[kind](number, fields, payload)

    def _bad(self, what: str) -> None:
        self.bad_messages += 1
        if self.bad_messages.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …
            log.warning(
                event("message dropped", peer=self.endpoint, why=what, count=self.bad_messages)
            )

    def _request(self, number: int, fields: tuple[int, ...], payload: bytes) -> None:
        try:
            incoming = parse(payload)
        except MessageError as exc:
            self._bad(str(exc))
            return
        key = incoming.number
        member = self._members.get(number)
        if member is None or member.state is State.LEFT or key in self._answers:
            self._say(Kind.REFUSE, number, key)
            return
        handler = member.handler
        handler.counts.requests += 1
        try:
            answer = handler.open_request(self, number, incoming, bool(fields[0] & MORE))
        except MessageError as exc:
            self._bad(str(exc))
            handler.counts.failed += 1
            self._say(Kind.FAIL, number, key, 502)
            return
        self._answers[key] = answer
        answer.start()

    def _body(self, number: int, fields: tuple[int, ...], payload: bytes) -> None:
        if answer := self._answers.get(fields[0]):
            answer.body(payload, end=bool(fields[1] & END))

    def _credit(self, number: int, fields: tuple[int, ...], payload: bytes) -> None:
        if answer := self._answers.get(fields[0]):
            answer.credit(fields[1])

    def _cancel(self, number: int, fields: tuple[int, ...], payload: bytes) -> None:
        if answer := self._answers.get(fields[0]):
            answer.cancel()
            if handler := self._forget(answer):
                handler.counts.cancelled += 1

    def _welcome(self, number: int, fields: tuple[int, ...], payload: bytes) -> None:
        if member := self._members.get(number):
            member.heard_at = self._loop.time()
            with contextlib.suppress(ValueError, AttributeError):
                self.frontend = str(json.loads(payload).get("frontend"))
            member.capacity_said = member.handler.hello.capacity
            member.again_s = HELLO_AGAIN_S
            self._step(member, Event.WELCOME)
            self.say_capacity(number, member.handler.capacity)

    def _reject(self, number: int, fields: tuple[int, ...], payload: bytes) -> None:
        if member := self._members.get(number):
            if member.state is State.GREETING:
                log.debug(event("hello rejected", peer=self.endpoint, why=payload[:200]))
            self._step(member, Event.REJECT)

    def _farewell(self, number: int, fields: tuple[int, ...], payload: bytes) -> None:
        if member := self._members.get(number):
            self._step(member, Event.FAREWELL)

    def _echo(self, number: int, fields: tuple[int, ...], payload: bytes) -> None:
        if member := self._members.get(number):
            member.heard_at = self._loop.time()

    # connection and time

    def _up(self) -> None:
        log.info(event("frontend reached", endpoint=self.endpoint))
        for member in self._members.values():
            self._step(member, Event.UP)
        self._on_change()

    def _down(self) -> None:
        log.warning(event("frontend lost", endpoint=self.endpoint))
        self._forget_requests()
        for member in self._members.values():
            self._step(member, Event.DOWN)
        self._on_change()

    def _forget_requests(self) -> None:
        """Whoever waited for these answers cannot get them any more."""
        answers = list(self._answers.values())
        self._answers.clear()
        for answer in answers:
            answer.cancel()

    def _step(self, member: _Member, happened: Event) -> None:
        before = member.state
        member.state, say = step(before, happened)
        number = member.handler.number
        if say:
            member.spoke_at = self._loop.time()
        if say is Say.HELLO:
            self._say(Kind.HELLO, number, payload=_encode_hello(member.handler.hello))
        elif say is Say.GOODBYE:
            self._say(Kind.GOODBYE, number)
        if before is not member.state:
            self._on_change()

    def _say(self, kind: Kind, number: int, *fields: int, payload: bytes = b"") -> None:
        self._dealer.say(encode_head(kind, number, *fields), payload)

    def _tick(self) -> None:
        """Every quarter of a second: beats, hellos said again, requests that are too slow."""
        self._ticker = self._loop.call_later(0.25, self._tick)
        now = self._loop.time()
        for member in list(self._members.values()):
            since = now - member.spoke_at
            if member.state is State.WELCOME:
                if now - member.heard_at > SILENCE_S:
                    self._step(member, Event.SILENCE)
                elif since >= BEAT_S - 0.125:
                    member.spoke_at = now
                    self._say(Kind.BEAT, member.handler.number)
            elif since >= member.again_s:
                if member.state is State.REJECTED:  # perhaps for as long as it lives
                    member.again_s = min(member.again_s * 2, HELLO_MOST_S)
                self._step(member, Event.TICK)
        for answer in list(self._answers.values()):
            answer.check(now)


def _encode_hello(hello: Hello) -> bytes:
    return json.dumps(
        {
            "p": hello.p,
            "app": hello.app,
            "release": hello.release,
            "process": hello.process,
            "node": hello.node,
            "capacity": hello.capacity,
            "token": hello.token,
        }
    ).encode()
