"""The master: places processes on nodes, publishes documents and routes, knows what runs.

A restart loses nothing: desired state and placement are files, the rest comes with the next stats.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import zmq

from bareku import config
from bareku.daemon import Presence
from bareku.errors import BarekuError
from bareku.files import read_json, write_json
from bareku.log import event
from diprocd import expand, placement, wire
from diprocd.client import wire_fd
from diprocd.loop import Loop
from diprocd.spec import Desired, NodeDocument, Process, RouteDocument, encode
from diprocd.watch import LOOK_S, Watcher

log = logging.getLogger("diprocd.master")

EPOCH = 1


class Master:
    """One run of the master daemon; `path` is the desired document."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._desired = config.load(path, Desired)
        self._presence = Presence(Path(self._desired.run), "master")
        self._loop = Loop()
        self._watcher = Watcher()
        self._context = zmq.Context()
        self._updates = self._socket(zmq.XPUB)
        self._stats = self._socket(zmq.PULL)
        self._kept = path.with_name("diprocd-placement.json")
        self._assign: dict[str, str] = {}
        self._versions: dict[str, tuple[int, str]] = {}
        self._published: dict[bytes, tuple[wire.Header, bytes]] = {}
        self._sha256 = ""
        self._error: str | None = None
        self._unplaced: dict[str, str] = {}
        self._nodes: dict[str, tuple[float, wire.NodeStats]] = {}
        self._frontends: dict[str, tuple[float, wire.FrontendStats]] = {}
        self._beats = 0
        if self._kept.exists():
            saved = read_json(self._kept)
            self._assign = saved["assign"]
            self._versions = {topic: (n, sha) for topic, (n, sha) in saved["versions"].items()}

    def run(self) -> None:
        """Serve until TERM or INT. Raises BarekuError when a socket cannot be bound."""
        self._updates.setsockopt(zmq.XPUB_VERBOSE, 1)
        for socket, endpoint in (
            (self._updates, self._desired.updates),
            (self._stats, self._desired.stats),
        ):
            try:
                socket.bind(endpoint)
            except zmq.ZMQError as exc:
                raise BarekuError(f"cannot bind {endpoint}: {exc.strerror}") from exc
        for socket in (self._updates, self._stats):
            self._loop.watch(wire_fd(socket), self._drain)
        self._loop.watch(self._watcher.fd, self._watcher.read)
        self._loop.every(LOOK_S, self._look)
        self._loop.every(self._desired.timing.beat_s, self._beat)
        self._watcher.file(self._path, self._read)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self._loop.stop)
        self._read()
        self._loop.run()
        self._watcher.close()
        self._loop.close()
        self._context.destroy(linger=0)
        self._presence.close()

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        made.linger = 0
        made.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
        made.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        made.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        return made

    def _look(self) -> None:
        self._watcher.look()
        self._drain()

    # desired

    def _read(self) -> None:
        """Take the desired document; one that cannot be used changes nothing."""
        try:
            data = self._path.read_bytes()
            desired = config.decode(data, Desired, name=str(self._path))
            expand.check(desired)
        except (OSError, BarekuError) as exc:
            self._error = str(exc)
            log.warning(event("desired state refused", error=exc))
            self._write()
            return
        self._error = None
        self._desired = desired
        self._sha256 = hashlib.sha256(data).hexdigest()
        self._place()
        self._write()

    def _place(self) -> None:
        wanted = expand.processes(self._desired)
        hosts = {
            name: placement.Host(
                name, node.memory_bytes, frozenset(node.labels), is_open=not node.drain
            )
            for name, node in self._desired.nodes.items()
        }
        items = {
            id_: placement.Item(
                id_, f"{one.app}.{one.release}.{one.type}", one.index, one.memory_bytes or 0, labels
            )
            for id_, (one, labels) in wanted.items()
        }
        placed = placement.place(hosts, items, self._assign)
        self._assign, self._unplaced = placed.assign, placed.unplaced
        changed = []
        for node in self._desired.nodes:
            mine = [wanted[id_][0] for id_ in sorted(placed.assign) if placed.assign[id_] == node]
            changed.append(self._renew(wire.node_topic(node), "desired", node_document(node, mine)))
        for name in self._desired.frontends:
            routes = RouteDocument(
                frontend=name, epoch=EPOCH, version=0, routes=self._desired.routes
            )
            changed.append(
                self._renew(
                    wire.frontend_topic(name),
                    "routes",
                    lambda version, routes=routes: encode(  # type: ignore[misc]
                        msgspec.structs.replace(routes, version=version)
                    ),
                )
            )
        write_json(
            self._kept,
            {"format": 1, "epoch": EPOCH, "assign": self._assign, "versions": self._versions},
        )
        for topic in filter(None, changed):
            self._publish(topic)

    def _renew(
        self, topic: bytes, kind: Literal["desired", "routes"], make: Callable[[int], bytes]
    ) -> bytes | None:
        """Give a document its next version if its content changed; the topic if so."""
        content = wire.digest(make(0))
        version, before = self._versions.get(topic.decode(), (0, ""))
        if content != before:
            version += 1
            self._versions[topic.decode()] = (version, content)
        body = make(version)
        header = wire.Header(t=kind, epoch=EPOCH, version=version, sha256=wire.digest(body))
        is_new = self._published.get(topic) != (header, body)
        self._published[topic] = (header, body)
        return topic if is_new else None

    def _publish(self, topic: bytes) -> None:
        self._updates.send_multipart(wire.frames(topic, *self._published[topic]))
        self._loop.soon(self._drain)

    def _beat(self) -> None:
        self._beats += 1
        beat = wire.Beat(EPOCH, self._beats)
        self._updates.send_multipart(wire.frames(wire.BEAT_TOPIC, beat))
        self._loop.soon(self._drain)
        self._write()

    # actual

    def _drain(self) -> None:
        """Serve new subscribers and take stats until there is nothing more."""
        while (message := _next(self._updates)) is not None:
            if message[:1] == b"\1" and message[1:] in self._published:
                self._publish(message[1:])
        changed = False
        while (message := _next(self._stats)) is not None:
            try:
                self._hear(wire.decode_stats(message))
                changed = True
            except BarekuError as exc:
                log.warning(event("stats refused", error=exc.message))
        if changed:
            self._write()

    def _hear(self, stats: wire.NodeStats | wire.FrontendStats) -> None:
        """Note what a node or frontend says; publish again to one that is behind."""
        now_s = time.monotonic()
        if isinstance(stats, wire.NodeStats):
            self._nodes[stats.node] = (now_s, stats)
            topic = wire.node_topic(stats.node)
        else:
            self._frontends[stats.frontend] = (now_s, stats)
            topic = wire.frontend_topic(stats.frontend)
        known = self._published.get(topic)
        if known and (stats.epoch, stats.have) < (known[0].epoch, known[0].version):
            self._publish(topic)

    def _state(self, heard_s: float) -> str:
        silent_s = time.monotonic() - heard_s
        timing = self._desired.timing
        if silent_s < timing.suspect_s:
            return "up"
        return "suspect" if silent_s < timing.lost_s else "lost"

    def _write(self) -> None:
        nodes: dict[str, dict[str, Any]] = {}
        frontends: dict[str, dict[str, Any]] = {}
        processes: list[dict[str, Any]] = []
        for name in self._desired.nodes:
            nodes[name] = {"state": "unknown"}
            if name in self._nodes:
                heard_s, stats = self._nodes[name]
                nodes[name] = {
                    "state": self._state(heard_s),
                    "have": stats.have,
                    "applied": stats.applied,
                    "error": stats.error,
                }
                processes += [{**msgspec.to_builtins(p), "node": name} for p in stats.procs]
        for name in self._desired.frontends:
            known = self._published.get(wire.frontend_topic(name))
            frontends[name] = {"state": "unknown", "version": known[0].version if known else 0}
            if name in self._frontends:
                heard_s, report = self._frontends[name]
                frontends[name] |= {
                    "state": self._state(heard_s),
                    "have": report.have,
                    "handlers": report.handlers,
                    "inflight": report.inflight,
                }
        self._presence.write(
            "degraded" if self._error else "ok",
            self._error,
            epoch=EPOCH,
            desired_sha256=self._sha256,
            nodes=nodes,
            frontends=frontends,
            processes=processes,
            unplaced=[{"id": id_, "reason": why} for id_, why in self._unplaced.items()],
            conflict=None,
        )


def node_document(node: str, processes: list[Process]) -> Callable[[int], bytes]:
    """The document of a node, given its version."""

    def make(version: int) -> bytes:
        return encode(
            NodeDocument(
                node=node,
                epoch=EPOCH,
                version=version,
                processes=processes,
                empty=not processes,
            )
        )

    return make


def _next(socket: zmq.Socket[bytes]) -> bytes | None:
    """The next message, None when there is none."""
    try:
        return socket.recv(zmq.NOBLOCK)
    except zmq.Again:
        return None
