"""The route table from the master, the statistics to it; works with the master away for ever."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from bareku.curve import Keys
from bareku.errors import BarekuError
from bareku.files import write_atomic
from bareku.log import event
from frontend.router import RouteDocument, decode_document, decode_update

log = logging.getLogger("frontend")

HEARTBEAT_MS = 2000
DEAD_MS = 6000
MAX_UPDATE = 64 * 2**20
BEATS = b"hb/"
SILENCE_S = 15.0  # of a master that beats every 2 s
BURST = 100  # messages taken per wake-up


class Routes:
    """The table's file: read at start, written on each update, read again when people edit it."""

    def __init__(self, path: Path, on_table: Callable[[RouteDocument], None]) -> None:
        self._path = path
        self._on_table = on_table
        self._seen: tuple[int, int, int] | None = None
        self.epoch = 0
        self.version = 0
        self.error: str | None = None

    def poll(self) -> None:
        """Use the file when it has changed; a bad one changes nothing but `error`."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        except OSError as exc:
            self.error = f"cannot read {self._path}: {exc.strerror}"
            return
        mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if mark == self._seen:
            return
        self._seen = mark
        try:
            document = decode_document(self._path.read_bytes())
        except (ValueError, OSError) as exc:
            self.error = f"cannot use {self._path}: {exc}"
            log.error(event("routes not used", path=self._path, reason=exc))
            return
        self._use(document)

    def update(self, document: RouteDocument, body: bytes) -> None:
        """A newer table from the master: keep it, use it."""
        if (document.epoch, document.version) <= (self.epoch, self.version):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, body, mode=0o600)
            stat = self._path.stat()
            self._seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError as exc:  # serving it is right all the same; only a restart would miss it
            log.error(event("routes not kept", path=self._path, reason=exc.strerror))
            self._use(document)
            self.error = f"cannot write {self._path}: {exc.strerror}"
            return
        self._use(document)

    def _use(self, document: RouteDocument) -> None:
        self.epoch, self.version = document.epoch, document.version
        self.error = None
        self._on_table(document)
        log.info(event("routes used", version=document.version, routes=len(document.routes)))


class Master:
    """SUB for our topic, PUSH for our statistics; both drained from their descriptors."""

    def __init__(
        self,
        name: str,
        updates: str | None,
        stats: str | None,
        routes: Routes,
        bad: Callable[[], None],
        keys: Keys | None = None,
    ) -> None:
        self._name = name
        self._topic = f"f/{name}/".encode()
        self._routes = routes
        self._bad = bad
        self._boot = str(uuid.uuid4())
        self._seq = 0
        self._loop = asyncio.get_running_loop()
        self._endpoints = (updates, stats)
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._sub: zmq.Socket[bytes] | None = None
        self._push: zmq.Socket[bytes] | None = None
        self._heard = 0.0
        self._open()

    def _open(self) -> None:
        updates, stats = self._endpoints
        self._push = self._connect(zmq.PUSH, stats)
        self._sub = self._connect(zmq.SUB, updates)
        if self._sub is not None:
            self._sub.subscribe(self._topic)
            self._sub.subscribe(BEATS)
            self._loop.add_reader(self._sub.fileno(), self._drain)
            self._loop.call_soon(self._drain)

    def tick(self, now: float) -> None:
        """Connect anew to a silent master: libzmq never repeats a handshake that was refused."""
        if self._heard == 0.0:
            self._heard = now
        if self._sub is not None and now - self._heard > SILENCE_S:
            self._heard = now
            self._close_sockets()
            self._open()

    def _close_sockets(self) -> None:
        if self._sub is not None:
            self._loop.remove_reader(self._sub.fileno())
            self._sub.close()
        if self._push is not None:
            self._push.close()

    def _connect(self, kind: int, endpoint: str | None) -> zmq.Socket[bytes] | None:
        if endpoint is None:
            return None
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, DEAD_MS)
        socket.setsockopt(zmq.HEARTBEAT_TTL, DEAD_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_UPDATE)
        socket.setsockopt(zmq.IPV6, 1)
        if kind == zmq.PUSH:
            socket.setsockopt(zmq.CONFLATE, 1)
        if self._keys is not None:
            self._keys.apply(socket)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as exc:
            raise BarekuError(f"cannot connect to {endpoint!r}: {exc}") from exc
        return socket

    def _drain(self) -> None:
        """Take what has come; the descriptor is edge-triggered, so until there is nothing."""
        for _ in range(BURST):
            if self._sub is None or self._sub.closed:
                return
            try:
                parts = self._sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_update(parts)
        self._loop.call_soon(self._drain)

    def _on_update(self, parts: list[bytes]) -> None:
        self._heard = time.monotonic()
        if parts[0] == BEATS:
            return
        try:
            if len(parts) != 3 or parts[0] != self._topic:
                raise ValueError("not three frames of our topic")
            document = decode_update(parts[1], parts[2], self._name)
        except ValueError as exc:
            self._bad()
            log.warning(event("update dropped", reason=exc))
            return
        self._routes.update(document, parts[2])

    def report(
        self, handlers: dict[str, dict[str, int]], inflight: dict[str, dict[str, int]]
    ) -> None:
        """Send the statistics; while the master is away only the newest wait for it."""
        if self._push is None:
            return
        self._seq += 1
        message = {
            "p": 1,
            "t": "frontend",
            "frontend": self._name,
            "boot": self._boot,
            "seq": self._seq,
            "epoch": self._routes.epoch,
            "have": self._routes.version,
            "handlers": handlers,
            "inflight": inflight,
        }
        try:
            self._push.send(msgspec.json.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return

    def close(self) -> None:
        """Close the sockets."""
        self._close_sockets()
        self._context.destroy(linger=0)
