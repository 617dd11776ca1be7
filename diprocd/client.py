"""The client: brings this node's document from the master to the worker, and its state back.

It accepts only its own node's documents, each newer than the one it has, and writes them byte
for byte. It knows nothing of processes. Without a master it waits; the worker goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
import zmq

from bareku import curve
from bareku.config import MAX_DOCUMENT_BYTES
from bareku.daemon import Presence, is_fresh
from bareku.errors import BarekuError
from bareku.files import write_atomic
from bareku.log import event
from bareku.watch import LOOK_S, Watcher
from diprocd import procfs, wire
from diprocd.loop import Loop, Timer
from diprocd.names import expand_name
from diprocd.spec import PROTOCOL, NodeConfig, NodeDocument
from diprocd.stats import Load

log = logging.getLogger("diprocd.client")

TOUCH_S = 4.0
DEAF_S = 8.0  # no beat for so long: a fresh socket also helps after a refused handshake
# every ping costs the master 15 us and there may be a thousand of us: stats can wait longer
HEARTBEAT_MS = {zmq.SUB: 2000, zmq.PUSH: 5000}
HEARTBEAT_TIMEOUT_MS = {zmq.SUB: 3000, zmq.PUSH: 5000}


class WorkerStatus(msgspec.Struct, frozen=True):
    """What of the worker's status goes to the master."""

    epoch: int = 0
    applied: int = 0
    error: str | None = None
    processes: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    isolation: dict[str, Any] = {}


class Client:
    """One run of the client daemon."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self.node = expand_name(config.node_name)
        self._run = Path(config.run)
        self._conf_file = Path(config.conf_file)
        self._presence = Presence(self._run, "client")
        self._keys = curve.client_keys(
            config.curve_key, config.curve_master, [config.master_updates, config.master_stats]
        )
        self._loop = Loop()
        self._watcher = Watcher()
        self._context = zmq.Context()
        self._updates: zmq.Socket[bytes] | None = None
        self._stats: zmq.Socket[bytes] | None = None
        self._id = self._client_id()
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._load = Load(self._conf_file.parent)
        self._have: tuple[int, int] = (0, 0)
        self._sha256 = ""
        # the newest document this node ever took: nothing older is taken, whatever the file holds
        self._known: tuple[tuple[int, int], str] | None = None
        self._seq = 0
        self._error: str | None = None
        self._notice: str | None = None
        self._heard_at_s: float | None = None
        self._opened_at_s = 0.0
        self._is_up = False
        self._worker = WorkerStatus()
        self._send_timer: Timer | None = None

    def run(self) -> None:
        """Serve until TERM or INT."""
        loop = self._loop
        _log_also_to(self._config.log_file)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(number, loop.stop)
        if self._config.pid_file:
            write_atomic(Path(self._config.pid_file), f"{os.getpid()}\n".encode())
        loop.watch(self._watcher.fd, self._watcher.read)
        loop.every(LOOK_S, self._watcher.look)
        loop.every(TOUCH_S, self._write)
        loop.every(1.0, self._check_ears)
        self._watcher.file(self._conf_file, self._look_at_conf)
        self._watcher.file(self._run / "worker.json", self._read_worker)
        self._look_at_conf()
        self._read_worker()
        self._open()
        self._write()
        log.info(event("client started", node=self.node, have=self._have[1]))
        self._beat()
        loop.run()
        self._close()
        self._context.destroy(linger=0)
        if self._config.pid_file:
            Path(self._config.pid_file).unlink(missing_ok=True)
        self._watcher.close()
        loop.close()
        self._presence.close()
        log.info(event("client ended"))

    # sockets

    def _open(self) -> None:
        """New sockets to the master; libzmq reconnects them by itself."""
        self._close()
        updates = self._socket(zmq.SUB)
        updates.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
        updates.subscribe(wire.node_topic(self.node))
        updates.subscribe(wire.BEAT_TOPIC)
        updates.connect(self._config.master_updates)
        stats = self._socket(zmq.PUSH)
        stats.setsockopt(zmq.CONFLATE, 1)
        stats.connect(self._config.master_stats)
        self._updates, self._stats = updates, stats
        self._loop.watch(updates.fileno(), self._receive)
        self._opened_at_s = time.monotonic()
        self._loop.soon(self._receive)

    def _socket(self, kind: zmq.SocketType) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS[kind])
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS[kind])
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        if self._keys is not None:
            self._keys.apply(socket)
        return socket

    def _close(self) -> None:
        if self._updates is not None:
            self._loop.unwatch(self._updates.fileno())
            self._updates.close()
        if self._stats is not None:
            self._stats.close()
        self._updates = self._stats = None

    def _check_ears(self) -> None:
        """Beats come every 2 s; when none comes, start anew rather than hope."""
        now = time.monotonic()
        heard = self._heard_at_s if self._heard_at_s is not None else -DEAF_S
        is_up = now - heard < DEAF_S
        if is_up != self._is_up:
            self._is_up = is_up
            log.warning(event("master heard" if is_up else "master silent"))
            self._write()
        if not is_up and now - self._opened_at_s >= DEAF_S:
            self._open()
            self._send()

    # from the master

    def _receive(self) -> None:
        """The descriptor is edge-triggered: take everything that is there."""
        while self._updates is not None:
            try:
                parts = self._updates.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if parts[0] == wire.BEAT_TOPIC:
                self._hear(parts)
            else:
                self._accept(parts)

    def _hear(self, parts: list[bytes]) -> None:
        try:
            beat = wire.decode(parts[1] if len(parts) > 1 else b"", wire.Beat, "a beat")
        except BarekuError as exc:
            self._notice = exc.message
            return
        if beat.epoch < self._have[0]:
            self._set_notice(f"stale_master: it is at epoch {beat.epoch}, we at {self._have[0]}")
            return
        self._heard_at_s = time.monotonic()
        if not self._is_up:
            self._check_ears()
        if self.node not in beat.silent:
            with contextlib.suppress(OSError):
                lease = f"{procfs.boottime_s():.3f}\n".encode()
                write_atomic(self._run / "lease", lease, durable=False)

    def _accept(self, parts: list[bytes]) -> None:
        try:
            header, document = wire.open_document(self.node, parts)
        except BarekuError as exc:
            log.warning(event("publication refused", error=exc.message))
            self._set_notice(exc.message)
            return
        offered = (header.epoch, header.version)
        floor = self._known[0] if self._known else (0, 0)
        if offered <= self._have or offered < floor:
            if header.epoch < floor[0]:
                self._set_notice(f"stale_master: it offered epoch {header.epoch}")
            elif offered == self._have and header.sha256 != self._sha256:
                self._set_notice("stale_master: same version, other content")
            return
        try:
            write_atomic(self._conf_file, parts[2], mode=0o600)
        except OSError as exc:
            self._error = f"cannot write {self._conf_file}: {exc.strerror}"
            log.warning(event("document not written", error=self._error))
        else:
            self._error = self._notice = None
            self._have, self._sha256 = self._known = (offered, header.sha256)
            log.info(
                event(
                    "document accepted",
                    epoch=offered[0],
                    version=offered[1],
                    processes=len(document.processes),
                )
            )
        self._write()
        self._send()

    def _set_notice(self, notice: str) -> None:
        if notice != self._notice:
            self._notice = notice
            log.warning(event("master refused", reason=notice))
            self._write()
            self._send()

    # from the worker

    def _look_at_conf(self) -> None:
        """What the file holds counts, not what we remember: a damaged or edited one is fetched
        again. Only at the start, with nothing to compare it with, the file is taken at its word.
        """
        body = b""
        with contextlib.suppress(OSError):
            if self._conf_file.stat().st_size <= MAX_DOCUMENT_BYTES:
                body = self._conf_file.read_bytes()
        sha256 = wire.digest(body)
        if self._known is None:
            self._known = ((0, 0), "")
            with contextlib.suppress(BarekuError):
                document = wire.decode(body, NodeDocument, str(self._conf_file))
                wire.check_document(document, self.node)
                self._known = ((document.epoch, document.version), sha256)
        have, known_sha256 = self._known
        if sha256 == known_sha256:
            self._have, self._sha256 = have, sha256
        else:
            self._have, self._sha256 = (0, 0), ""
        self._send_soon()

    def _read_worker(self) -> None:
        try:
            data = (self._run / "worker.json").read_bytes()
            self._worker = msgspec.json.decode(data, type=WorkerStatus)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return  # the last one stands until the next good one
        self._send_soon()

    # to the master

    def _beat(self) -> None:
        interval_s = self._config.interval_s * random.uniform(0.9, 1.1)  # noqa: S311
        self._loop.after(interval_s, self._beat)
        self._send()

    def _send_soon(self) -> None:
        """At once, but one message for changes of the same moment."""
        if self._send_timer is None:
            self._send_timer = self._loop.after(0.002, self._send)

    def _send(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
        if self._stats is None:
            return
        self._seq += 1
        with contextlib.suppress(zmq.Again):
            self._stats.send(msgspec.json.encode(self._report()), zmq.NOBLOCK)

    def _report(self) -> dict[str, object]:
        worker = self._worker
        is_alive = is_fresh(self._run / "worker.json")
        error = self._error or self._notice or worker.error
        return {
            "p": PROTOCOL,
            "t": "stats",
            "node": self.node,
            "boot_id": self._boot_id,
            "client": self._id,
            "seq": self._seq,
            "epoch": self._have[0],
            "have": self._have[1],
            "sha256": self._sha256,
            "applied": worker.applied if worker.epoch == self._have[0] else 0,
            "error": error if is_alive else (error or "the worker does not run"),
            "load": self._load.read(),
            "procs": [
                {name: value for name, value in one.items() if name != "token"}
                for one in worker.processes
            ],
            "events": worker.events,
            "isolation": worker.isolation,
        }

    # own status

    def _write(self) -> None:
        heard_s = self._heard_at_s
        error = self._error or self._notice
        if error is None and not self._is_up:
            error = "no beat from the master"
        with contextlib.suppress(OSError):
            self._presence.write(
                "degraded" if error else "ok",
                error,
                node=self.node,
                client=self._id,
                epoch=self._have[0],
                have=self._have[1],
                sha256=self._sha256,
                updates=self._config.master_updates,
                stats=self._config.master_stats,
                curve=self._keys is not None,
                heard_s=None if heard_s is None else round(time.monotonic() - heard_s, 1),
            )

    def _client_id(self) -> str:
        """The same over restarts, another on another machine: two of one name are told apart."""
        path = self._run / "client.id"
        with contextlib.suppress(OSError):
            known = path.read_text().strip()
            if known:
                return known
        made = str(uuid.uuid4())
        with contextlib.suppress(OSError):
            write_atomic(path, f"{made}\n".encode(), durable=False)
        return made


def _log_also_to(path: str | None) -> None:
    """`log_file` beside stderr, unless stderr is that file already."""
    if path is None:
        return
    try:
        handler = logging.FileHandler(path)
        if handler.stream is not None and os.path.sameopenfile(handler.stream.fileno(), 2):
            handler.close()
            return
    except OSError as exc:
        log.warning(event("log file not opened", path=path, error=exc.strerror))
        return
    handler.setFormatter(logging.getLogger().handlers[0].formatter)
    logging.getLogger().addHandler(handler)
