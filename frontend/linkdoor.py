"""Door B: the link's ROUTER, where handlers say hello and get requests by credit."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from bareku.log import event
from frontend.dispatch import Handler
from frontend.exchange import Exchange, Request
from frontend.link import END, MORE, SILENCE_S, Hello, Kind, decode_head, encode_head
from frontend.payload import link_payload
from frontend.peers import Peer

log = logging.getLogger("frontend")

MAX_CAPACITY = 10_000
MAX_HANDLERS = 4096  # of one connection

_hello = msgspec.json.Decoder(Hello)
_REPLY = Kind.REPLY.value


class Link:
    """The handlers that said hello on the link."""

    heeds_close = False
    first_grant = 0
    widens = False  # handlers say so themselves, by CAPACITY

    def __init__(self, exchange: Exchange, ident: bytes, frontend: str) -> None:
        self._exchange = exchange
        self._ident = ident + b" "
        self._skip = len(ident) + 1
        self._welcome = msgspec.json.encode({"ident": ident.decode(), "frontend": frontend})
        self._peers: set[Peer] = set()
        self._acts: dict[bytes, Callable[[Peer, Handler[Request], tuple[int, ...]], None]] = {
            Kind.REFUSE: lambda _, handler, f: exchange.on_refuse(handler, f[0]),
            Kind.FAIL: lambda _, handler, f: exchange.on_fail(
                handler, f[0], 504 if f[1] == 504 else 502
            ),
            Kind.GRANT: lambda _, handler, f: exchange.on_grant(handler, f[0], f[1]),
            Kind.CAPACITY: self._on_capacity,
            Kind.GOODBYE: self._on_goodbye,
        }

    def peer(self) -> Peer:
        """The protocol of a new connection."""
        return Peer(self, b"ROUTER", frozenset({b"DEALER"}))

    # connections

    def on_open(self, peer: Peer) -> None:
        peer.state = {}
        self._peers.add(peer)

    def on_gone(self, peer: Peer) -> None:
        self._peers.discard(peer)
        self._drop_all(peer, "disconnected")

    def _drop_all(self, peer: Peer, why: str) -> None:
        handlers = dict(peer.state)
        peer.state.clear()
        for handler in handlers.values():
            if handler is not None:
                self._exchange.remove_handler(handler, why)

    def tick(self, now: float) -> None:
        """Take silent peers for dead."""
        for peer in list(self._peers):
            if now - peer.seen > SILENCE_S and peer.state:
                log.warning(event("peer silent", peer=peer.name))
                peer.abort()
                self._drop_all(peer, "silent")

    def close(self, *, farewell: bool) -> None:
        """End all connections, telling the handlers that no request will follow."""
        for peer in list(self._peers):
            if farewell:
                for number in peer.state:
                    self._say(peer, Kind.FAREWELL, number)
            peer.close()

    # messages from handlers

    def on_message(self, peer: Peer, parts: list[bytes]) -> None:
        if len(parts) != 2:
            self._exchange.metrics.count("bad_frames")
            return
        head, payload = parts
        if head[:1] == _REPLY and len(head) == 6:
            handler = peer.state.get(int.from_bytes(head[1:5], "big"))
            if handler is not None:
                self._on_reply(handler, payload, head[5] == END)
            else:
                self._exchange.metrics.count("stray_replies")
            return
        decoded = decode_head(head)
        if decoded is None:
            self._exchange.metrics.count("bad_frames")
            return
        kind, number, fields = decoded
        if kind == Kind.HELLO:
            self._on_hello(peer, number, payload)
            return
        handler = peer.state.get(number)
        if kind == Kind.BEAT:
            self._on_beat(peer, number, handler)
        elif handler is not None and kind in self._acts:
            self._acts[kind](peer, handler, fields)
        else:
            self._exchange.metrics.count("bad_frames")

    def _on_reply(self, handler: Handler[Request], payload: bytes, end: bool) -> None:
        """`IDENT LEN:ID ..., BODY`, nearly always for one id."""
        skip = self._skip
        colon = payload.find(b":", skip, skip + 10)
        comma = payload.find(b", ", colon)
        ids = payload[colon + 1 : comma]
        if colon < 0 or comma < 0 or not payload.startswith(self._ident):
            self._exchange.metrics.count("bad_frames")
            return
        body = payload[comma + 2 :]
        if ids.isdigit() and len(ids) < 11:
            self._exchange.on_reply(handler, int(ids), body, end)
            return
        targets = ids.split()
        if not all(target.isdigit() and len(target) < 11 for target in targets):
            self._exchange.metrics.count("bad_frames")
            return
        for target in targets:
            self._exchange.on_reply(handler, int(target), body, end)

    def _on_hello(self, peer: Peer, number: int, payload: bytes) -> None:
        try:
            hello = _hello.decode(payload)
        except msgspec.MsgspecError as exc:
            self._reject(peer, number, f"not a hello: {exc}")
            return
        key = (hello.app, hello.release)
        token = self._exchange.table.tokens.get(key, "")
        if token and hello.token != token:
            self._reject(peer, number, "the token is not this release's")
        elif not 0 <= hello.capacity <= MAX_CAPACITY:
            self._reject(peer, number, f"the capacity is not 0 to {MAX_CAPACITY}")
        elif len(peer.state) >= MAX_HANDLERS:
            self._reject(peer, number, "too many handlers on one connection")
        else:
            self._welcome_handler(peer, number, hello)

    def _welcome_handler(self, peer: Peer, number: int, hello: Hello) -> None:
        key = (hello.app, hello.release)
        known = peer.state.get(number)
        self._say(peer, Kind.WELCOME, number, payload=self._welcome)
        if known is not None:
            if (known.key, known.process, known.token) == (key, hello.process, hello.token):
                self._exchange.dispatcher.set_capacity(known, hello.capacity)
                return
            self._exchange.remove_handler(known, "said hello as another")
        handler: Handler[Request] = Handler(
            key,
            hello.capacity,
            process=hello.process,
            node=hello.node,
            token=hello.token,
            door=self,
            peer=peer,
            number=number,
        )
        peer.state[number] = handler
        self._exchange.add_handler(handler)

    def _reject(self, peer: Peer, number: int, why: str) -> None:
        self._exchange.metrics.count("rejected_hellos")
        log.warning(event("hello rejected", peer=peer.name, reason=why))
        known = peer.state.pop(number, None)
        if known is not None:
            self._exchange.remove_handler(known, why)
        self._say(peer, Kind.REJECT, number, payload=msgspec.json.encode({"error": why}))

    def _on_beat(self, peer: Peer, number: int, handler: Handler[Request] | None) -> None:
        if handler is None:
            payload = msgspec.json.encode({"error": "unknown handler: say hello"})
            self._say(peer, Kind.REJECT, number, payload=payload)
            return
        self._say(peer, Kind.ECHO, number)
        if handler.is_resting:
            self._exchange.dispatcher.wake(handler)

    def _on_capacity(self, peer: Peer, handler: Handler[Request], fields: tuple[int, ...]) -> None:
        handler.is_resting = False
        self._exchange.dispatcher.set_capacity(handler, min(fields[0], MAX_CAPACITY))

    def _on_goodbye(self, peer: Peer, handler: Handler[Request], _: tuple[int, ...]) -> None:
        self._exchange.dispatcher.drain(handler)
        self._say(peer, Kind.FAREWELL, handler.number)

    def recheck(self) -> None:
        """A new route table names other tokens: who does not have them is rejected."""
        tokens = self._exchange.table.tokens
        for peer in self._peers:
            for number, handler in list(peer.state.items()):
                token = tokens.get(handler.key, "")
                if token and handler.token != token:
                    self._reject(peer, number, "the token is not this release's")

    # messages to handlers

    def _say(self, peer: Peer, kind: Kind, *fields: int, payload: bytes = b"") -> None:
        peer.send_two(encode_head(kind, *fields), payload)

    def send_request(self, handler: Handler[Request], number: int, request: Request) -> None:
        peer: Peer = handler.peer  # type: ignore[assignment]
        message = b"%b%d %b %b" % (self._ident, number, request.head.path, link_payload(request))
        flags = MORE if request.has_more else 0
        peer.send_two(b"r%b%c" % (handler.number.to_bytes(4, "big"), flags), message)

    def send_body(self, handler: Handler[Request], number: int, data: bytes, *, end: bool) -> None:
        peer: Peer = handler.peer  # type: ignore[assignment]
        flags = END if end else 0
        self._say(peer, Kind.BODY, handler.number, number, flags, payload=data)

    def cancel(self, handler: Handler[Request], number: int) -> None:
        peer: Peer = handler.peer  # type: ignore[assignment]
        self._say(peer, Kind.CANCEL, handler.number, number)

    def credit(self, handler: Handler[Request], number: int, size: int) -> None:
        peer: Peer = handler.peer  # type: ignore[assignment]
        self._say(peer, Kind.CREDIT, handler.number, number, size)
