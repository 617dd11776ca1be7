"""The master's sockets: publications out (XPUB), stats in (PULL), keys checked (ZAP).

Knows frames and keys, not their meaning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import zmq
from zmq.utils import z85

from bareku.curve import Keys
from bareku.errors import BarekuError
from diprocd import wire
from diprocd.loop import Loop

SNDHWM = 10_000  # messages kept for a slow node; the next whole document makes a lost one good
HEARTBEAT_MS = 10_000  # only to let go of the connections of the dead; the clients ask oftener
HEARTBEAT_TIMEOUT_MS = 30_000
BURST = 200  # stats taken in one turn of the loop
_ZAP = "inproc://zeromq.zap.01"


class Hub:
    """Both bound sockets, driven from the loop."""

    def __init__(
        self,
        loop: Loop,
        endpoints: tuple[str, str],
        keys: Keys | None,
        allowed: Mapping[str, str],
        on_subscribe: Callable[[bytes], None],
        on_stats: Callable[[bytes, str | None], None],
    ) -> None:
        self.endpoints = endpoints
        self._loop = loop
        self._allowed = {key: name for name, key in allowed.items()}
        self._on_subscribe = on_subscribe
        self._on_stats = on_stats
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65536)
        self._sockets: list[zmq.Socket[bytes]] = []
        self._zap: zmq.Socket[bytes] | None = None
        try:
            if keys is not None:
                self._zap = self._context.socket(zmq.REP)
                self._zap.setsockopt(zmq.LINGER, 0)
                self._zap.bind(_ZAP)
                self._drive(self._zap, self._check_key)
            self._updates = self._bind(zmq.XPUB, endpoints[0], keys)
            self._stats = self._bind(zmq.PULL, endpoints[1], keys)
        except zmq.ZMQError as exc:
            self.close()
            where = " or ".join(endpoints)
            raise BarekuError(f"cannot listen on {where}: {exc.strerror}") from exc
        self._drive(self._updates, self._read_subscriptions)
        self._drive(self._stats, self._read_stats)

    def allow(self, allowed: Mapping[str, str]) -> None:
        """name -> public key of those who may connect from now on."""
        self._allowed = {key: name for name, key in allowed.items()}

    def publish(self, parts: list[bytes]) -> None:
        """Send to whoever subscribed; who does not keep up gets the next one."""
        with contextlib.suppress(zmq.Again):
            self._updates.send_multipart(parts, zmq.NOBLOCK)
        self._loop.soon(self._read_subscriptions)  # sending may swallow the descriptor's edge

    def close(self) -> None:
        """Unbind."""
        for socket in self._sockets:
            self._loop.unwatch(socket.fileno())
        self._sockets.clear()
        self._context.destroy(linger=0)

    def _bind(self, kind: int, endpoint: str, keys: Keys | None) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.BACKLOG, 4096)
        if kind == zmq.XPUB:
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)
            socket.setsockopt(zmq.SNDHWM, SNDHWM)
            socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_SUBSCRIPTION_BYTES)
        else:
            socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
        if keys is not None:
            if kind == zmq.XPUB:
                socket.setsockopt(zmq.XPUB_MANUAL, 1)
            keys.apply(socket)
            socket.setsockopt(zmq.ZAP_DOMAIN, b"diprocd")
        socket.bind(endpoint)
        return socket

    def _drive(self, socket: zmq.Socket[bytes], callback: Callable[[], None]) -> None:
        self._sockets.append(socket)
        self._loop.watch(socket.fileno(), callback)
        self._loop.soon(callback)

    def _read_subscriptions(self) -> None:
        while not self._updates.closed:
            try:
                frame = self._updates.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            message = frame.bytes
            topic = message[1:]
            if self._zap is not None and not self._admit(message[:1], topic, frame):
                continue
            if message[:1] == b"\x01":
                self._on_subscribe(topic)

    def _admit(self, what: bytes, topic: bytes, frame: zmq.Frame) -> bool:
        """A key opens its own node's documents and the beats, nobody else's (XPUB_MANUAL)."""
        if what == b"\x00":
            self._updates.setsockopt(zmq.UNSUBSCRIBE, topic)
            return False
        if topic not in {wire.BEAT_TOPIC, own_topic(self._sender(frame) or "")}:
            return False
        self._updates.setsockopt(zmq.SUBSCRIBE, topic)
        return True

    def _read_stats(self) -> None:
        for _ in range(BURST):
            if self._stats.closed:
                return
            try:
                frame = self._stats.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            if frame.more:
                continue
            self._on_stats(frame.bytes, self._sender(frame))
        self._loop.soon(self._read_stats)

    def _sender(self, frame: zmq.Frame) -> str | None:
        """The name that the peer's key stands for; None without CURVE."""
        if self._zap is None:
            return None
        try:
            return str(frame.get("User-Id"))
        except (zmq.ZMQError, AttributeError):
            return ""

    def _check_key(self) -> None:
        """ZAP (RFC 27): version, request, domain, address, identity, mechanism, client key."""
        assert self._zap is not None
        while not self._zap.closed:
            try:
                parts = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            name = None
            if len(parts) == 7 and parts[5] == b"CURVE":
                name = self._allowed.get(z85.encode(parts[6]).decode())
            answer = (
                [b"400", b"unknown key", b""] if name is None else [b"200", b"OK", name.encode()]
            )
            self._zap.send_multipart([b"1.0", parts[1], *answer, b""])


def own_topic(sender: str) -> bytes:
    """The topic of whom a key stands for: `web1`, or `f/front1` for a frontend."""
    kind, _, name = sender.rpartition("/")
    return wire.frontend_topic(name) if kind else wire.node_topic(name)
