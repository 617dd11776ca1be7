"""The master: desired apps and what nodes say in, one whole document per node out.

It is also the health manager: it repeats what a node lacks, moves what a lost or drained node
ran, and shows what is amiss. When it dies nothing stops; when another is master it keeps quiet.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bareku import config as documents
from bareku import curve
from bareku.daemon import Presence
from bareku.errors import BarekuError
from bareku.files import write_atomic
from bareku.log import event
from bareku.watch import LOOK_S, Watcher
from diprocd import expand, fleet, health, ledger, press, wire
from diprocd.health import NodeState
from diprocd.hub import Hub
from diprocd.loop import Loop, Timer, close_on_exec, raise_file_limit
from diprocd.placement import Host
from diprocd.spec import Desired

log = logging.getLogger("diprocd.master")

TOUCH_S = 4.0
REPEAT_S = 1.0  # a node that lags is told again, at most this often
DUPLICATE_S = 12.0  # a second client of one name within this time is not a restart
DRIFT_S = 10.0  # a node that has the newest document and yet differs this long is reported
MAX_STRANGERS = 100


@dataclass(slots=True)
class Peer:
    """A node or frontend as it was last heard."""

    heard_s: float | None = None
    state: NodeState = NodeState.UNKNOWN
    back_s: float | None = None  # since when it is back, when it had been lost
    client: str = ""
    duplicate: str | None = None
    duplicate_s: float = 0.0
    told_s: float = 0.0
    seq: int = 0
    node: wire.NodeStats | None = None
    frontend: wire.FrontendStats | None = None
    ready: set[str] = field(default_factory=set)
    drift_since_s: float | None = None


class Master:
    """One run of the master daemon."""

    def __init__(self, path: Path, *, takeover: bool = False) -> None:
        self._path = path
        self._good = path.with_name(f".{path.name}.good")
        self._error: str | None = None
        self._raw, self._desired = self._first()
        self._presence = Presence(Path(self._desired.run), "master")
        self._loop = Loop()
        self._watcher = Watcher()
        raise_file_limit()
        close_on_exec()
        self._ledger_path = ledger.path_beside(path)
        self._ledger = ledger.load(self._ledger_path)
        self._saved: ledger.Ledger | None = None
        self._disk_error: str | None = None
        if takeover:
            self._ledger = msgspec.structs.replace(self._ledger, epoch=self._ledger.epoch + 1)
        self._is_taking_over = takeover
        self._assignment = fleet.Assignment(dict(self._ledger.assign), dict(self._ledger.leaving))
        self._wanted: fleet.Wanted = {}
        self._frames: dict[bytes, list[bytes]] = {}
        self._contents: dict[str, list[str]] = {}
        self._peers: dict[str, Peer] = {}
        self._fronts: dict[str, Peer] = {}
        self._strangers: dict[str, float] = {}
        self._conflict: str | None = None
        self._outage_s: float | None = None  # when most nodes were lost: the others may yet return
        self._started_s = time.monotonic()
        self._beat_seq = 0
        self._hub: Hub | None = None
        self._applied_sha256: str | None = None
        self._write_timer: Timer | None = None
        self._written_s = 0.0
        self._cost_s = 0.0
        self._is_planning = False

    def run(self) -> None:
        """Serve until TERM or INT."""
        loop = self._loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(number, loop.stop)
        loop.watch(self._watcher.fd, self._watcher.read)
        loop.every(LOOK_S, self._watcher.look)
        loop.every(TOUCH_S, self._write)
        loop.every(min(1.0, self._desired.timing.suspect_s / 4), self._look_at_peers)
        self._watcher.file(self._path, self._reload)
        self._apply()
        self._write()
        log.info(event("master started", epoch=self._ledger.epoch, nodes=len(self._desired.nodes)))
        self._beat()
        loop.run()
        if self._hub is not None:
            self._hub.close()
        self._watcher.close()
        loop.close()
        self._presence.close()
        log.info(event("master ended"))

    # desired

    def _first(self) -> tuple[bytes, Desired]:
        """The document to start with: the file, else the last one that was good."""
        try:
            return self._read()
        except BarekuError as exc:
            try:
                raw = self._good.read_bytes()
                desired = documents.decode(raw, Desired, name=str(self._good))
            except (OSError, BarekuError):
                raise exc from None
            self._error = exc.message
            log.warning(event("desired state refused", error=exc.message, kept="the last good one"))
            return raw, desired

    def _read(self) -> tuple[bytes, Desired]:
        raw, desired = read_desired(self._path)
        return raw, desired

    def _reload(self) -> None:
        try:
            raw, desired = self._read()
        except BarekuError as exc:
            if exc.message != self._error:
                self._error = exc.message
                log.warning(event("desired state refused", error=exc.message))
            self._write_soon()
            return
        self._error = None
        self._raw, self._desired = raw, desired
        self._apply()

    def _apply(self) -> None:
        """Make the document in hand the one in force."""
        begun_s = time.monotonic()
        desired = self._desired
        self._wanted = expand.processes(desired)
        endpoints = (desired.updates, desired.stats)
        try:
            self._listen(endpoints)
        except BarekuError as exc:
            self._error = exc.message
            log.warning(event("desired state not applied", error=exc.message))
            self._write_soon()
            return
        for name in desired.nodes:
            self._peers.setdefault(name, Peer())
        for name in desired.frontends:
            self._fronts.setdefault(name, Peer())
        self._peers = {n: p for n, p in self._peers.items() if n in desired.nodes}
        self._fronts = {n: p for n, p in self._fronts.items() if n in desired.frontends}
        self._plan()
        self._applied_sha256 = hashlib.sha256(self._raw).hexdigest()
        log.info(
            event(
                "desired state applied",
                processes=len(self._wanted),
                unplaced=len(self._assignment.unplaced),
                ms=round((time.monotonic() - begun_s) * 1000, 1),
            )
        )
        self._write()
        if self._error is None:
            with contextlib.suppress(OSError):
                write_atomic(self._good, self._raw, mode=0o600)

    def _listen(self, endpoints: tuple[str, str]) -> None:
        desired = self._desired
        allowed = {name: node.curve for name, node in desired.nodes.items() if node.curve}
        allowed |= {f"f/{name}": key for name, key in desired.frontend_curve.items()}
        if self._hub is not None and self._hub.endpoints == endpoints:
            self._hub.allow(allowed)
            return
        keys = curve.server_keys(desired.curve_key, endpoints)
        if self._hub is not None:
            self._hub.close()
            self._hub = None
        self._hub = Hub(self._loop, endpoints, keys, allowed, self._subscribed, self._heard)

    # deciding

    def _plan_soon(self) -> None:
        if not self._is_planning:
            self._is_planning = True
            self._loop.soon(self._plan)

    def _plan(self) -> None:
        """Place, and publish every document that says something new."""
        self._is_planning = False
        now_s = time.monotonic()
        hosts, gone = self._hosts(now_s)
        before = self._assignment
        self._assignment = fleet.assign(self._wanted, hosts, before, gone)
        for id_, node in self._assignment.assign.items():
            old = before.assign.get(id_)
            if old is not None and old != node:
                log.info(event("process moved", id=id_, node=node, old=old))
        self._publish_changes()
        self._write_soon()

    def _hosts(self, now_s: float) -> tuple[dict[str, Host], frozenset[str]]:
        timing = self._desired.timing
        states = {name: peer.state for name, peer in self._peers.items()}
        is_outage = health.is_mass_outage(states.values())
        if is_outage:
            self._outage_s = now_s
        is_clear = self._outage_s is None or now_s - self._outage_s >= timing.lost_s
        gone = frozenset(
            name for name, state in states.items() if state is NodeState.LOST and is_clear
        )
        hosts = {}
        for name, node in self._desired.nodes.items():
            peer = self._peers[name]
            hosts[name] = Host(
                name,
                node.memory_bytes,
                frozenset(node.labels),
                is_open=health.is_open(peer.state, peer.back_s, now_s, timing) and not node.drain,
                is_kept=name not in gone and not node.drain,
            )
        if not any(host.is_open for host in hosts.values()) and not is_outage:
            hosts = {
                name: Host(name, host.memory_bytes, host.labels, host.is_kept, host.is_kept)
                for name, host in hosts.items()
            }
        return hosts, gone

    def _publish_changes(self) -> None:
        """Publish what is new, once it is remembered; what cannot be remembered waits."""
        desired, now = self._desired, self._assignment
        shares = fleet.shares(self._wanted, now, desired.nodes)
        made = press.print_edition(
            desired.cluster,
            self._ledger.epoch,
            shares,
            dict.fromkeys(desired.frontends, desired.routes),
            self._ledger.docs,
            self._ledger.frontends,
            self._frames,
        )
        if not self._remember(made):
            return
        self._contents = {name: [one.id for one in found] for name, found in shares.items()}
        self._frames.update(made.frames)
        for topic in made.fresh:
            self._publish(topic)

    def _remember(self, made: press.Edition) -> bool:
        """Durably, before anything is published: a version never has two contents."""
        now = self._assignment
        book = msgspec.structs.replace(
            self._ledger,
            assign=dict(now.assign),
            leaving=dict(now.leaving),
            docs=made.docs,
            frontends=made.frontends,
        )
        if book != self._saved:
            try:
                ledger.save(self._ledger_path, book)
            except OSError as exc:
                self._disk_error = f"cannot write {self._ledger_path}: {exc.strerror}"
                log.warning(event("ledger not written", error=self._disk_error))
                self._write_soon()
                return False
            self._saved = book
        self._ledger = book
        if self._disk_error:
            self._disk_error = None
            self._write_soon()
        return True

    def _publish(self, topic: bytes) -> None:
        parts = self._frames.get(topic)
        if parts is None or self._hub is None or self._conflict:
            return
        found = wire.parse_topic(topic)
        if found is not None:
            peers = self._peers if found[0] == "n" else self._fronts
            if found[1] in peers:
                peers[found[1]].told_s = time.monotonic()
        self._hub.publish(parts)

    def _beat(self) -> None:
        timing = self._desired.timing
        self._loop.after(timing.beat_s, self._beat)
        if self._hub is None or self._conflict:
            return
        now_s = time.monotonic()
        silent = [
            name
            for name, peer in self._peers.items()
            if health.is_silent(peer.heard_s, self._started_s, now_s, timing)
        ]
        self._beat_seq += 1
        beat = wire.Beat(epoch=self._ledger.epoch, seq=self._beat_seq, silent=silent)
        self._hub.publish(wire.frames(wire.BEAT_TOPIC, beat))

    # hearing

    def _subscribed(self, topic: bytes) -> None:
        """A late joiner gets the whole document at once."""
        found = wire.parse_topic(topic)
        if topic in self._frames:
            self._publish(topic)
        elif found is not None:
            self._note_stranger("/".join(found))

    def _heard(self, data: bytes, sender: str | None) -> None:
        try:
            stats = wire.decode_stats(data)
        except BarekuError as exc:
            log.warning(event("stats refused", error=exc.message[:200]))
            return
        if isinstance(stats, wire.NodeStats):
            if sender is None or sender == stats.node:
                self._heard_node(stats)
        elif sender is None or sender == f"f/{stats.frontend}":
            self._heard_frontend(stats)

    def _heard_node(self, stats: wire.NodeStats) -> None:
        peer = self._peers.get(stats.node)
        if peer is None:
            self._note_stranger(f"n/{stats.node}")
            return
        now_s = time.monotonic()
        is_other = bool(peer.client) and stats.client != peer.client
        if is_other and peer.heard_s is not None and now_s - peer.heard_s < DUPLICATE_S:
            if peer.duplicate != stats.client:
                log.warning(event("duplicate node", node=stats.node, client=stats.client))
            peer.duplicate, peer.duplicate_s = stats.client, now_s
            self._write_soon()
            return
        peer.client = stats.client
        old = peer.node
        peer.heard_s, peer.node = now_s, stats
        peer.ready = {one.id for one in stats.procs if one.ready}
        if peer.state is not NodeState.UP and self._look_at("node", stats.node, peer, now_s):
            self._plan_soon()
        doc = self._ledger.docs.get(stats.node)
        if doc is not None:
            self._compare(wire.node_topic(stats.node), peer, stats, doc.version)
        if stats.node in self._assignment.leaving.values() or any(
            self._assignment.assign.get(id_) == stats.node for id_ in self._assignment.leaving
        ):
            self._finish_moves()
        if old is None or _gist(old) != _gist(stats):
            self._write_soon()

    def _heard_frontend(self, stats: wire.FrontendStats) -> None:
        peer = self._fronts.get(stats.frontend)
        if peer is None:
            self._note_stranger(f"f/{stats.frontend}")
            return
        now_s = time.monotonic()
        peer.heard_s, peer.frontend = now_s, stats
        if peer.state is not NodeState.UP:
            self._look_at("frontend", stats.frontend, peer, now_s)
        doc = self._ledger.frontends.get(stats.frontend)
        if doc is not None:
            self._compare(wire.frontend_topic(stats.frontend), peer, stats, doc.version)
        self._write_soon()

    def _compare(
        self,
        topic: bytes,
        peer: Peer,
        stats: wire.NodeStats | wire.FrontendStats,
        version: int,
    ) -> None:
        """Behind: tell again. Ahead: another master is, or was, at work; keep quiet."""
        epoch = self._ledger.epoch
        parts = self._frames.get(topic)
        sha256 = msgspec.json.decode(parts[1], type=wire.Header).sha256 if parts else ""
        has = (stats.epoch, stats.have)
        if has < (epoch, version):
            if time.monotonic() - peer.told_s >= REPEAT_S:
                self._publish(topic)
        elif has > (epoch, version) or (stats.sha256 and stats.sha256 != sha256):
            if self._is_taking_over:
                self._raise_epoch(stats.epoch)
                return
            name = topic.decode().strip("/")
            self._set_conflict(
                f"{name} holds epoch {stats.epoch} version {stats.have}, "
                f"this master is at epoch {epoch} version {version}"
            )

    def _raise_epoch(self, seen: int) -> None:
        """Taking over: be newer than whatever anyone holds."""
        epoch = max(self._ledger.epoch, seen) + 1
        self._ledger = msgspec.structs.replace(self._ledger, epoch=epoch)
        self._frames.clear()
        self._publish_changes()
        for topic in self._frames:
            self._publish(topic)
        log.warning(event("epoch raised", epoch=self._ledger.epoch))

    def _set_conflict(self, reason: str) -> None:
        if self._conflict is None:
            self._conflict = reason
            log.error(event("conflict", reason=reason))
            self._write_soon()

    def _finish_moves(self) -> None:
        now = self._assignment
        absent = {}
        for name in set(now.leaving.values()):
            stats, doc = self._peers[name].node, self._ledger.docs.get(name)
            if stats is not None and doc is not None and stats.applied >= doc.version:
                absent[name] = set(now.leaving) - {one.id for one in stats.procs}
        ready = {name: peer.ready for name, peer in self._peers.items()}
        after = fleet.moved(self._wanted, now, ready, absent)
        if after.leaving != now.leaving:
            self._assignment = after
            self._publish_changes()
            self._write_soon()

    def _look_at_peers(self) -> None:
        """Note who fell silent and who is back; act on it."""
        now_s = time.monotonic()
        timing = self._desired.timing
        is_changed = False
        for kind, peers in (("node", self._peers), ("frontend", self._fronts)):
            for name, peer in peers.items():
                is_changed = self._look_at(kind, name, peer, now_s) or is_changed
        if self._is_taking_over and now_s - self._started_s > timing.lost_s:
            self._is_taking_over = False
        if self._outage_s is not None:
            if self._is_outage():
                self._outage_s = now_s
            elif now_s - self._outage_s >= timing.lost_s:
                self._outage_s = None
                is_changed = True
        if is_changed or self._disk_error:
            self._plan_soon()

    def _look_at(self, kind: str, name: str, peer: Peer, now_s: float) -> bool:
        """Note its state; True when that may change where processes go."""
        timing = self._desired.timing
        state = health.node_state(peer.heard_s, self._started_s, now_s, timing)
        if peer.duplicate and now_s - peer.duplicate_s > timing.suspect_s:
            peer.duplicate = None
        is_settled = peer.back_s is not None and now_s - peer.back_s >= timing.suspect_s
        if is_settled:
            peer.back_s = None
        before = peer.state
        if state is before:
            return is_settled
        if before is NodeState.LOST:
            peer.back_s = now_s
        log.info(event(f"{kind} {state}", name=name, before=before.value))
        peer.state = state
        return (before, state) != (NodeState.UNKNOWN, NodeState.UP)

    def _note_stranger(self, name: str) -> None:
        if name not in self._strangers and len(self._strangers) < MAX_STRANGERS:
            log.warning(event("stranger", name=name))
        if name in self._strangers or len(self._strangers) < MAX_STRANGERS:
            self._strangers[name] = time.monotonic()
            self._write_soon()

    # status

    def _write_soon(self) -> None:
        """At once when it was quiet, else so seldom that writing takes little of the time."""
        if self._write_timer is None:
            rest_s = self._written_s + 20 * self._cost_s - time.monotonic()
            self._write_timer = self._loop.after(max(0.0, rest_s), self._write)

    def _write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        begun_s = time.monotonic()
        problem = self._problem()
        with contextlib.suppress(OSError):
            self._presence.write(
                "degraded" if problem else "ok",
                problem,
                epoch=self._ledger.epoch,
                desired_sha256=self._applied_sha256,
                config_error=self._error,
                nodes={name: self._node(name, peer) for name, peer in self._peers.items()},
                frontends={name: self._frontend(name, peer) for name, peer in self._fronts.items()},
                processes=self._processes(),
                unplaced=[
                    {"id": id_, "reason": reason}
                    for id_, reason in sorted(self._assignment.unplaced.items())
                ],
                moving=self._assignment.leaving,
                conflict=self._conflict,
                outage=self._is_outage(),
                strangers=sorted(self._strangers),
            )
        self._written_s = time.monotonic()
        self._cost_s = self._written_s - begun_s

    def _problem(self) -> str | None:
        if self._error or self._disk_error:
            return self._error or self._disk_error
        if self._conflict:
            return f"conflict: {self._conflict}"
        if self._is_outage():
            return "more than half of the nodes are lost: nothing is moved"
        twice = [name for name, peer in self._peers.items() if peer.duplicate]
        return f"duplicate_node: {', '.join(twice)}" if twice else None

    def _is_outage(self) -> bool:
        return health.is_mass_outage([peer.state for peer in self._peers.values()])

    def _node(self, name: str, peer: Peer) -> dict[str, object]:
        doc, stats = self._ledger.docs.get(name), peer.node
        now_s = time.monotonic()
        return {
            "state": peer.state.value,
            "version": doc.version if doc else 0,
            "epoch": stats.epoch if stats else 0,
            "have": stats.have if stats else 0,
            "applied": stats.applied if stats else 0,
            "error": stats.error if stats else None,
            "silent_s": None if peer.heard_s is None else round(now_s - peer.heard_s, 1),
            "duplicate_node": peer.duplicate,
            "load": stats.load if stats else {},
            "isolation": stats.isolation if stats else {},
            "drift": self._drift(name, peer),
        }

    def _drift(self, name: str, peer: Peer) -> list[str]:
        """How a node that has the newest document differs from it, once that has lasted."""
        stats, doc = peer.node, self._ledger.docs.get(name)
        if stats is None or doc is None or stats.applied < doc.version:
            return []
        wanted = set(self._contents.get(name, []))
        has = {one.id for one in stats.procs}
        drift = [f"missing {id_}" for id_ in sorted(wanted - has)]
        drift += [f"extra {id_}" for id_ in sorted(has - wanted)]
        drift += [f"crash_loop {one.id}" for one in stats.procs if one.crash_loop]
        if not drift:
            peer.drift_since_s = None
        elif peer.drift_since_s is None:
            peer.drift_since_s = time.monotonic()
        lasted = peer.drift_since_s is not None and time.monotonic() - peer.drift_since_s > DRIFT_S
        return drift if lasted else []

    def _frontend(self, name: str, peer: Peer) -> dict[str, object]:
        doc, stats = self._ledger.frontends.get(name), peer.frontend
        return {
            "state": peer.state.value,
            "version": doc.version if doc else 0,
            "have": stats.have if stats else 0,
            "handlers": stats.handlers if stats else {},
            "inflight": stats.inflight if stats else {},
        }

    def _processes(self) -> list[dict[str, object]]:
        """What the nodes that are heard say they run."""
        return [
            {**msgspec.structs.asdict(one), "node": name}
            for name, peer in sorted(self._peers.items())
            if peer.node is not None and peer.state in {NodeState.UP, NodeState.SUSPECT}
            for one in peer.node.procs
        ]


def read_desired(path: Path) -> tuple[bytes, Desired]:
    """The document at `path` and its bytes, checked whole. Raises BarekuError."""
    try:
        if path.stat().st_size > documents.MAX_DOCUMENT_BYTES:
            raise BarekuError(f"cannot read {path}: it is too large")
        raw = path.read_bytes()
    except OSError as exc:
        raise BarekuError(f"cannot read {path}: {exc.strerror}") from exc
    desired = documents.decode(raw, Desired, name=str(path))
    expand.check(desired)
    if desired.curve_key is None:
        curve.server_keys(None, (desired.updates, desired.stats))
    return raw, desired


def _gist(stats: wire.NodeStats) -> tuple[object, ...]:
    """What of a node's stats matters at once; load and memory can wait for the next write."""
    return (
        stats.epoch,
        stats.have,
        stats.applied,
        stats.error,
        [(p.id, p.gen, p.state, p.ready, p.pid, p.port, p.restarts, p.error) for p in stats.procs],
    )
