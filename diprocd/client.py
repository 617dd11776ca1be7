"""The client: brings its node's list from the master to the worker's file, and reports back.

It decides nothing. It can die at any moment: the worker goes on with the file that is there.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import uuid
from pathlib import Path
from typing import Any

import msgspec
import zmq

from bareku.daemon import Presence
from bareku.errors import BarekuError
from bareku.files import write_atomic
from bareku.log import event
from diprocd import wire
from diprocd.loop import Loop
from diprocd.spec import NodeConfig, NodeDocument
from diprocd.watch import LOOK_S, Watcher
from diprocd.worker import expand_name

log = logging.getLogger("diprocd.client")


class Client:
    """One run of the client daemon."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._node = expand_name(config.node_name)
        self._presence = Presence(Path(config.run), "client")
        self._status = Path(config.run) / "worker.json"
        self._loop = Loop()
        self._watcher = Watcher()
        self._context = zmq.Context()
        self._updates = self._socket(zmq.SUB)
        self._stats = self._socket(zmq.PUSH)
        self._uuid = str(uuid.uuid4())
        self._seq = 0
        self._have = self._written_before()

    def run(self) -> None:
        """Serve until TERM or INT."""
        self._stats.setsockopt(zmq.CONFLATE, 1)
        self._updates.subscribe(wire.node_topic(self._node))
        self._updates.subscribe(wire.BEAT_TOPIC)
        self._updates.connect(self._config.master_updates)
        self._stats.connect(self._config.master_stats)
        self._loop.watch(wire_fd(self._updates), self._receive)
        self._loop.watch(self._watcher.fd, self._watcher.read)
        self._loop.every(LOOK_S, self._look)
        self._loop.every(self._config.interval_s, self._beat)
        self._watcher.file(self._status, self._send)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self._loop.stop)
        self._write()
        self._send()
        self._loop.run()
        self._watcher.close()
        self._loop.close()
        self._context.destroy(linger=0)
        self._presence.close()

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        """Heartbeats, or a master that lost power would never be missed."""
        made = self._context.socket(kind)
        made.linger = 0
        made.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        made.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        made.setsockopt(zmq.RECONNECT_IVL, 100)
        made.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        made.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
        return made

    def _written_before(self) -> tuple[int, int]:
        """Epoch and version of the worker's file, if it is ours."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            data = Path(self._config.conf_file).read_bytes()
            document = msgspec.json.decode(data, type=NodeDocument)
            if document.node == self._node:
                return document.epoch, document.version
        return 0, 0

    def _look(self) -> None:
        self._watcher.look()
        self._receive()  # the descriptor is edge-triggered; this finds what an edge missed

    def _beat(self) -> None:
        self._presence.touch()
        self._send()

    def _write(self) -> None:
        epoch, have = self._have
        self._presence.write("ok", None, node=self._node, epoch=epoch, have=have)

    def _receive(self) -> None:
        while True:
            try:
                parts = self._updates.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if parts[0] != wire.BEAT_TOPIC:
                self._accept(parts)

    def _accept(self, parts: list[bytes]) -> None:
        """Write a newer document; answer any with what we have, so that a new master knows."""
        try:
            header, _ = wire.open_document(self._node, parts)
        except BarekuError as exc:
            log.warning(event("publication refused", error=exc.message))
            return
        if (header.epoch, header.version) > self._have:
            try:
                write_atomic(Path(self._config.conf_file), parts[2], mode=0o600)
            except OSError as exc:
                log.error(event("document not written", error=exc.strerror))
                return
            self._have = (header.epoch, header.version)
            log.info(event("document written", epoch=header.epoch, version=header.version))
            self._write()
        self._send()

    def _send(self) -> None:
        """The worker's status as stats; the newest replaces one that could not be sent."""
        status: dict[str, Any] = {}
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            status = msgspec.json.decode(self._status.read_bytes())
        self._seq += 1
        stats = {
            "p": 1,
            "t": "stats",
            "node": self._node,
            "client": self._uuid,
            "seq": self._seq,
            "epoch": self._have[0],
            "have": self._have[1],
            "applied": status.get("applied", 0),
            "error": status.get("config_error"),
            "procs": status.get("processes", []),
            "events": status.get("events", []),
        }
        with contextlib.suppress(zmq.Again):
            self._stats.send(msgspec.json.encode(stats), zmq.NOBLOCK)


def wire_fd(socket: zmq.Socket[bytes]) -> int:
    """The descriptor that becomes readable when the socket's state may have changed."""
    fd = socket.getsockopt(zmq.FD)
    assert isinstance(fd, int)
    return fd
