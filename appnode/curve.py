"""The same as `appnode.dealer` over libzmq, for frontends that are reached with CURVE.

Non-blocking pyzmq driven from the socket's descriptor. After each loss of the connection the
socket is made anew: nothing said to the old frontend reaches the next one, and libzmq never
retries a failed authentication.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import zmq
from zmq.utils.monitor import parse_monitor_message

from bareku.curve import Keys

BATCH = 200  # messages taken per wake-up, so that the other sockets get their turn
REOPEN_FIRST_S = 0.05
REOPEN_MOST_S = 1.0
MAX_MESSAGE = 8 * 2**20
_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_OPTIONS = (
    (zmq.LINGER, 0),
    (zmq.SNDHWM, 0),  # credits bound what is queued
    (zmq.RCVHWM, 0),
    (zmq.MAXMSGSIZE, MAX_MESSAGE),
    (zmq.RECONNECT_IVL, 50),
    (zmq.RECONNECT_IVL_MAX, 250),
    (zmq.HANDSHAKE_IVL, 3000),
    (zmq.HEARTBEAT_IVL, 1000),
    (zmq.HEARTBEAT_TIMEOUT, 3000),
    (zmq.HEARTBEAT_TTL, 3000),
)


class CurveDealer:
    """The socket. Callbacks: `on_up()`, `on_down()`, `on_message(head, payload)`."""

    def __init__(
        self,
        endpoint: str,
        keys: Keys,
        *,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[bytes, bytes], None],
    ) -> None:
        self.endpoint = endpoint
        self.is_up = False
        self.losses = 0
        self.garbage = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._on_up = on_up
        self._on_down = on_down
        self._on_message = on_message
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._reopening: asyncio.TimerHandle | None = None
        self._reopen_s = REOPEN_FIRST_S
        self._is_scheduled = False
        self._open()

    def _open(self) -> None:
        self._reopening = None
        sock = self._context.socket(zmq.DEALER)
        for option, value in _OPTIONS:
            sock.setsockopt(option, value)
        self._keys.apply(sock)
        monitor = sock.get_monitor_socket(_EVENTS)
        self._socket, self._monitor = sock, monitor
        self._loop.add_reader(sock.FD, self._drain)
        self._loop.add_reader(monitor.FD, self._watch)
        sock.connect(self.endpoint)
        self._loop.call_soon(self._watch)

    def say(self, head: bytes, payload: bytes = b"") -> None:
        """Queue a message; nothing when there is no connection."""
        if not self.is_up or self._socket is None:
            return
        with contextlib.suppress(zmq.Again):
            self._socket.send(head, zmq.SNDMORE | zmq.DONTWAIT)
            self._socket.send(payload, zmq.DONTWAIT)
        if not self._is_scheduled:  # the descriptor is edge-triggered and a send may eat its edge
            self._is_scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._is_scheduled = False
        sock = self._socket
        if sock is None:
            return
        recv, on_message = sock.recv, self._on_message
        for _ in range(BATCH):
            try:
                head = recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            if not sock.getsockopt(zmq.RCVMORE):
                self.garbage += 1
                continue
            payload = recv(zmq.DONTWAIT)
            if sock.getsockopt(zmq.RCVMORE):
                self.garbage += 1
                while sock.getsockopt(zmq.RCVMORE):
                    recv(zmq.DONTWAIT)
                continue
            on_message(head, payload)
            if self._socket is not sock:
                return
        self._is_scheduled = True
        self._loop.call_soon(self._drain)

    def _watch(self) -> None:
        monitor = self._monitor
        while monitor is not None and self._monitor is monitor:
            try:
                frames = monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            happened = parse_monitor_message(frames)["event"]
            if happened == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._set_up()
            else:
                self._lose()

    def _set_up(self) -> None:
        if not self.is_up:
            self.is_up = True
            self._reopen_s = REOPEN_FIRST_S
            self._on_up()

    def _lose(self) -> None:
        if self.is_up:
            self.losses += 1
        self._close(linger_ms=0)
        self._reopening = self._loop.call_later(self._reopen_s, self._open)
        self._reopen_s = min(self._reopen_s * 2, REOPEN_MOST_S)

    def _close(self, *, linger_ms: int) -> None:
        was_up, self.is_up = self.is_up, False
        sock, self._socket = self._socket, None
        monitor, self._monitor = self._monitor, None
        if sock is not None and monitor is not None:
            self._loop.remove_reader(sock.FD)
            self._loop.remove_reader(monitor.FD)
            sock.disable_monitor()
            monitor.close(linger=0)
            sock.close(linger=linger_ms)
        if was_up:
            self._on_down()

    def close(self) -> None:
        """For good; what is queued gets a moment."""
        if self._reopening is not None:
            self._reopening.cancel()
        self._close(linger_ms=500)
