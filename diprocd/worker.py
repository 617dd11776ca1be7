"""The worker: makes the processes of this node be what its document says. No network.

It may be killed at any line: processes, their state folders and the document are enough for the
next one to go on. What it cannot read changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bareku.config import MAX_DOCUMENT_BYTES
from bareku.daemon import Presence
from bareku.errors import BarekuError
from bareku.log import event
from bareku.watch import LOOK_S, Watcher
from diprocd import isolation, ports, procfs, rotate
from diprocd.instance import Instance
from diprocd.lifecycle import ALIVE, Event, State
from diprocd.loop import Loop, Timer, close_on_exec, raise_file_limit
from diprocd.names import expand_name
from diprocd.reconcile import Present, generation, plan
from diprocd.spec import NodeConfig, NodeDocument, Process
from diprocd.statedir import StateDir
from diprocd.wire import check_document

log = logging.getLogger("diprocd.worker")

SAMPLE_S = 5.0
MAX_STARTING = 4  # starts at once: more only make each other late
KEPT_EVENTS = 50
EVERYONE_S = 0.01  # how long one look at /proc serves everybody
LEASE_LOOK_S = 0.5


class Worker:
    """One run of the worker daemon."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.node = expand_name(config.node_name)
        self.run_folder = Path(config.run)
        self.folder = self.run_folder / "i"
        self.presence = Presence(self.run_folder, "worker", mode=0o600)
        self.loop = Loop()
        self.watcher = Watcher()
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        raise_file_limit()
        close_on_exec()
        self.means, self.groups = isolation.probe(self.run_folder, config.isolation)
        self._instances: dict[tuple[str, str], Instance] = {}
        self._document: NodeDocument | None = None
        self._wanted: dict[str, tuple[Process, str]] = {}
        self._is_read = False
        self._config_error: str | None = None
        self._counts = {"adopted": 0, "starts": 0, "locked": 0}
        self._events, self._last_event = self._old_events()
        self._stats: tuple[float, list[procfs.Stat], dict[int, bytes]] | None = None
        self._listeners: tuple[float, dict[int, set[str]]] | None = None
        self._write_timer: Timer | None = None
        self._written_at_s = 0.0
        self._write_cost_s = 0.0
        self._is_reconciling = self._is_pumping = False
        self._is_stopping_all = False
        self._has_old_logs = True
        self._had_lease = True

    def run(self) -> None:
        """Supervise until TERM or INT; the processes go on."""
        self._start()
        self.watcher.file(Path(self.config.conf_file), self._read_document)
        self.watcher.folder(Path(self.config.slugs), self._slug_came)
        self.loop.every(LEASE_LOOK_S, self._look_at_lease)
        self._read_document()
        self._serve()

    def stop_all(self) -> None:
        """Stop everything that runs here, in parallel, and return when it is gone."""
        self._is_stopping_all = True
        self._start()
        self._document = None
        self._reconcile()
        self._serve()

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        os.umask(0o022)
        self.loop.watch(self.watcher.fd, self.watcher.read)
        self.loop.every(LOOK_S, self.watcher.look)
        self.loop.every(SAMPLE_S, self._sample)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.on_signal(number, self.loop.stop)
        for number in (signal.SIGHUP, signal.SIGUSR2):
            self.loop.on_signal(number, self._upgrade)
        self._adopt()

    def _serve(self) -> None:
        log.info(
            event(
                "worker started",
                adopted=self._counts["adopted"],
                isolation=",".join(sorted(self.means.missing)) or "full",
            )
        )
        self._write()
        self.loop.run()
        self._write()
        for instance in self._instances.values():
            instance.close()
        self.watcher.close()
        os.close(self._spare)
        self.loop.close()
        self.presence.close()
        log.info(event("worker ended"))

    def _upgrade(self) -> None:
        """Become the program as it is on disk now; children stay children, their ends known."""
        log.info(event("worker upgrading"))
        self._write()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves

    # what an instance asks for

    def changed(self, instance: Instance, before: State) -> None:
        """An instance did something: maybe another may go on, surely the status is old."""
        if instance.state is State.GONE:
            self._instances.pop((instance.process.id, instance.gen), None)
        if instance.state is not before:
            self.reconcile_soon()
            self.pump_soon()
        self._write_soon()

    def count(self, what: str) -> None:
        self._counts[what] += 1

    def note(self, what: str, instance: Instance, **fields: object) -> None:
        """Keep an event for the status file."""
        self._last_event += 1
        moment = round(time.time(), 3)
        entry = {"n": self._last_event, "at": moment, "event": what, "id": instance.process.id}
        self._events = [*self._events, {**entry, **fields}][-KEPT_EVENTS:]

    def choose_port(self, instance: Instance) -> int:
        """A free port that no other process of ours has."""
        taken = {one.record.port for one in self._instances.values() if one is not instance}
        port = ports.choose(self.config.ports, {number for number in taken if number})
        if port is None:
            first, last = self.config.ports
            raise BarekuError(f"cannot find a free port between {first} and {last}")
        return port

    def listeners(self) -> dict[int, set[str]]:
        """The machine's listening sockets, at most EVERYONE_S old."""
        now = time.monotonic()
        if self._listeners is None or now - self._listeners[0] > EVERYONE_S:
            self._listeners = (now, ports.listeners())
        return self._listeners[1]

    def everyone(self) -> list[procfs.Stat]:
        """The machine's processes, at most EVERYONE_S old."""
        now = time.monotonic()
        if self._stats is None or now - self._stats[0] > EVERYONE_S:
            self._stats = (now, procfs.everyone(), {})
        return self._stats[1]

    def carries(self, one: procfs.Stat, mark: bytes) -> bool:
        """True when the process has the mark in its environment."""
        assert self._stats is not None
        known = self._stats[2]
        if one.pid not in known:
            known[one.pid] = procfs.environment(one.pid)
        return b"\0" + mark + b"\0" in known[one.pid]

    def pump_soon(self) -> None:
        """Start what waits for a slot."""
        if not self._is_pumping:
            self._is_pumping = True
            self.loop.soon(self._pump)

    def reconcile_soon(self) -> None:
        """Compare desired with actual in this turn."""
        if not self._is_reconciling:
            self._is_reconciling = True
            self.loop.soon(self._reconcile)

    # desired

    def _read_document(self) -> None:
        path = Path(self.config.conf_file)
        try:
            if path.stat().st_size > MAX_DOCUMENT_BYTES:
                raise BarekuError(f"cannot read {path}: it is too large")
            document = msgspec.json.decode(path.read_bytes(), type=NodeDocument)
            check_document(document, self.node)
        except OSError as exc:
            self._set_error(f"cannot read {path}: {exc.strerror}")
            return
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            self._set_error(f"cannot read {path}: {exc}")
            return
        except BarekuError as exc:
            self._set_error(exc.message)
            return
        self._set_error(None)
        self._document = document
        self._has_old_logs = True
        self._wanted = {one.id: (one, generation(one)) for one in document.processes}
        log.info(
            event(
                "document read",
                epoch=document.epoch,
                version=document.version,
                processes=len(document.processes),
            )
        )
        self.reconcile_soon()
        self._write_soon()

    def _set_error(self, error: str | None) -> None:
        if error != self._config_error:
            if error:
                log.warning(event("document refused", error=error))
            self._config_error = error
            self._write_soon()

    def _reconcile(self) -> None:
        self._is_reconciling = False
        desired: dict[str, tuple[str, bool]] | None
        if self._is_stopping_all:
            desired = {}
        elif self._document is None:
            desired = None
        else:
            desired = {id_: (gen, one.exclusive) for id_, (one, gen) in self._wanted.items()}
        present = [
            Present(one.process.id, one.gen, one.state, one.process.exclusive)
            for one in self._instances.values()
        ]
        self._had_lease = self._has_lease()
        decided = plan(desired, present, has_lease=self._had_lease)
        for key in decided.want - self._instances.keys():
            process, gen = self._wanted[key[0]]
            self._instances[key] = Instance(self, process, gen)
            self.pump_soon()
        for key in decided.want & self._instances.keys():
            instance = self._instances[key]
            if instance.state is State.DRAINING:
                instance.feed(Event.WANT)
        for key in decided.unwant:
            held = self._instances.get(key)
            if held is not None:
                held.feed(Event.UNWANT)
        if self._is_stopping_all and not self._instances:
            self.loop.stop()

    def _pump(self) -> None:
        """Launch new processes by priority, a few at once; slow ones stop counting soon."""
        self._is_pumping = False
        new = [one for one in self._instances.values() if one.state is State.NEW]
        if not new or self._is_reconciling:
            if new:
                self.pump_soon()
            return
        slots = MAX_STARTING - sum(1 for one in self._instances.values() if one.holds_slot)
        new.sort(key=lambda one: (one.process.priority, one.process.id))
        for instance in new[: max(0, slots)]:
            instance.feed(Event.WANT)

    def _look_at_lease(self) -> None:
        has = self._has_lease()
        if has != self._had_lease:
            log.warning(event("lease found" if has else "lease lost"))
            self.reconcile_soon()
            self._write_soon()

    def _has_lease(self) -> bool:
        """True while the client heard from its master lately; only exclusive processes ask."""
        if not any(one.exclusive for one, _ in self._wanted.values()) and not any(
            one.process.exclusive for one in self._instances.values()
        ):
            return True
        with contextlib.suppress(OSError, ValueError):
            granted_s = float((self.run_folder / "lease").read_text())
            return procfs.boottime_s() - granted_s < self.config.lease_s
        return False

    def _slug_came(self, name: str) -> None:
        for instance in list(self._instances.values()):
            if instance.process.slug and instance.process.slug == name.removesuffix(".sqsh"):
                instance.wake()

    # actual

    def _adopt(self) -> None:
        """Take over every process that an earlier worker left."""
        for entry in sorted(os.scandir(self.folder), key=lambda found: found.name):
            id_, _, gen = entry.name.rpartition(".")
            if not id_ or not entry.is_dir(follow_symlinks=False):
                continue
            process = StateDir(Path(entry.path)).process() or _unreadable(id_)
            if process.id == id_:
                instance = Instance(self, process, gen)
                self._instances[id_, gen] = instance
                instance.adopt()

    def _sample(self) -> None:
        for instance in self._instances.values():
            if instance.state in ALIVE:
                instance.sample()
        config = self.config
        for path in {one.log_path for one in self._instances.values()}:
            rotate.rotate_if_large(path, config.log_max_bytes, config.log_rotated)
        if self._has_old_logs:
            self._has_old_logs = False
            self._prune_logs()
        self._write_soon()

    def _prune_logs(self) -> None:
        running: dict[str, set[int]] = {}
        for one in self._instances.values():
            running.setdefault(one.process.app, set()).add(one.process.release)
        for app, releases in running.items():
            folder = Path(self.config.logs) / app
            for path in rotate.prune(folder, releases, self.config.log_releases):
                log.info(event("log removed", path=path))

    # status

    def _write_soon(self) -> None:
        """Write at once when it was quiet, else so seldom that writing takes little of the time."""
        if self._write_timer is None:
            rest_s = self._written_at_s + 10 * self._write_cost_s - time.monotonic()
            self._write_timer = self.loop.after(max(0.0, rest_s), self._write)

    def _write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        begun_s = time.monotonic()
        document = self._document
        error = self._config_error
        with self._spare_descriptor(), contextlib.suppress(OSError):  # /run may be full
            self.presence.write(
                "degraded" if error else "ok",
                error,
                node=self.node,
                epoch=document.epoch if document else 0,
                have=document.version if document else 0,
                applied=self._applied(),
                config_error=error,
                lease=self._has_lease(),
                counts=self._counts,
                isolation=msgspec.to_builtins(self.means),
                processes=[
                    one.report()
                    for _, one in sorted(self._instances.items(), key=lambda pair: pair[0])
                ],
                events=self._events,
            )
        self._written_at_s = time.monotonic()
        self._write_cost_s = self._written_at_s - begun_s

    @contextlib.contextmanager
    def _spare_descriptor(self) -> Iterator[None]:
        """Free one that is kept for this, so that `too many open files` can be reported."""
        os.close(self._spare)
        try:
            yield
        finally:
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _applied(self) -> int:
        """The version of which every process was at least tried, and of which none waits."""
        if self._document is None:
            return 0
        for id_, (_, gen) in self._wanted.items():
            instance = self._instances.get((id_, gen))
            if instance is None or instance.state is State.NEW:
                return 0
        return self._document.version

    def _old_events(self) -> tuple[list[dict[str, Any]], int]:
        """The last worker's events, so that their numbers go on."""
        with contextlib.suppress(OSError, msgspec.MsgspecError, KeyError, TypeError, ValueError):
            document = msgspec.json.decode(self.presence.status_path.read_bytes())
            events = list(document["events"])[-KEPT_EVENTS:]
            return events, max((int(one["n"]) for one in events), default=0)
        return [], 0


def _unreadable(id_: str) -> Process:
    """Stands for a process whose entry is damaged: it can be watched and stopped, not restarted."""
    app, _, rest = id_.partition(".v")
    return Process(id=id_, app=app, type=rest, index=0, release=0, cmd=["/"], restart="never")
