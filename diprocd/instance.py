"""One generation of one process: turns what is observed into events, carries the actions out.

The decisions are diprocd/lifecycle.py's. Signals go only through a pidfd that was opened before
pid and start time were compared, or to the process's own cgroup.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bareku.errors import BarekuError
from bareku.log import event
from diprocd import backoff, cgroup, failpoint, launcher, ports, procfs
from diprocd.lifecycle import LEAVING, Action, Event, State, shown, step
from diprocd.loop import Timer
from diprocd.spec import Process
from diprocd.statedir import Record, StateDir

if TYPE_CHECKING:
    from diprocd.worker import Worker

log = logging.getLogger("diprocd.worker")

CLEAR_S = 1.0  # what a crashed main process leaves behind gets this long
RETRY_S = 1.0
AGAIN_S = 1.0  # between two KILLs of a tree that does not end
SLOT_S = 1.0  # a start that takes longer than this no longer holds others up


class Instance:
    """The life of one generation of a process."""

    def __init__(self, worker: Worker, process: Process, gen: str) -> None:
        self.process = process
        self.gen = gen
        self.key = f"{process.id}.{gen}"
        self._name = f"{self.key}@{worker.run_folder}"  # another worker may have the same key
        self.state = State.NEW
        self.home = StateDir(worker.folder / self.key)
        self.record = Record()
        self.pid: int | None = None
        self.pidfd: int | None = None
        self.start_ticks = 0
        self.escaped = 0
        self.holds_slot = False
        self.cpu_s: float | None = None
        self.rss_bytes: int | None = None
        self._worker = worker
        self._loop = worker.loop
        self._timer: Timer | None = None
        self._poll: Timer | None = None
        self._late: Timer | None = None
        self._healthy: Timer | None = None
        self._ready_at_s = 0.0
        self._launched_at_s = 0.0
        self._is_executed = False
        self._has_exited = False
        self._is_free = False  # the next restart waits for nothing: the end was not seen
        self._actions: dict[Action, Callable[[], None]] = {
            Action.LAUNCH: self._launch,
            Action.PROMOTE: self._promote,
            Action.DRAIN: self._drain,
            Action.UNDRAIN: self._undrain,
            Action.SIGNAL: self._signal,
            Action.KILL: self._kill,
            Action.CLEAR: self._clear,
            Action.HURRY: self._hurry,
            Action.RESTART: self._restart,
            Action.RETRY: self._retry,
            Action.FINISH: self._finish,
            Action.FORGET: self._forget,
        }

    def feed(self, what: Event) -> None:
        """Let something happen to the process."""
        before = self.state
        self.state, action = step(before, what)
        if action is not Action.NONE:
            self._actions[action]()
        if self.state is not before or action is not Action.NONE:
            self._worker.changed(self, before)

    @property
    def is_ready(self) -> bool:
        return self.state in {State.RUNNING, State.DRAINING}

    @property
    def log_path(self) -> Path:
        name = f"v{self.process.release}.{self.process.type}.{self.process.index}.log"
        return Path(self._worker.config.logs) / self.process.app / name

    def report(self) -> dict[str, object]:
        """The process as the worker's status file shows it."""
        one = self.process
        means = self._worker.means
        return {
            "id": one.id,
            "gen": self.gen,
            "app": one.app,
            "type": one.type,
            "index": one.index,
            "release": one.release,
            "token": one.token,
            "state": shown(self.state),
            "ready": self.is_ready,
            "pid": self.pid,
            "port": self.record.port if self.pid is not None else None,
            "uptime_s": round(procfs.uptime_s(self.start_ticks), 2) if self.pid else None,
            "restarts": self.record.restarts,
            "fails": self.record.fails,
            "crash_loop": backoff.is_crash_loop(self.record.fails),
            "exit": self.record.exit,
            "error": self.record.error,
            "escaped": self.escaped,
            "log": str(self.log_path),
            "dir": str(self.home.path),
            "rss_bytes": self.rss_bytes,
            "cpu_s": self.cpu_s,
            "isolation": {
                "user": self.record.user or None,
                "mounts": self.record.has_mounts,
                "cgroup": means.cgroup,
                "limits": self._limits(),
            },
        }

    def sample(self) -> None:
        """Look at what it uses."""
        found = procfs.read_stat(self.pid) if self.pid is not None else None
        if found is not None:
            self.cpu_s, self.rss_bytes = round(found.cpu_s, 2), found.rss_bytes

    # taking over

    def adopt(self) -> None:
        """Enter the life where the state folder says it is; called once, by a new worker."""
        self.record = self.home.record()
        found = self.home.pid()
        pidfd = procfs.open_process(*found) if found else None
        if found and pidfd is not None and not procfs.has_ended(pidfd, found[0]):
            self._take(found[0], found[1], pidfd)
        elif self._is_launching():
            self.state = State.STARTING
            self._await_record()
        elif self.record.phase == "backoff":
            self.state = State.BACKOFF
            self._close(pidfd)
            self._after(self.record.retry_at_s - procfs.boottime_s(), Event.TIMER)
        elif self.record.phase == "exited":
            self.state = State.EXITED
            self._close(pidfd)
        elif found is None:  # launched or not: the lock lets only one in
            self.state = State.BACKOFF
            self._loop.soon(lambda: self.feed(Event.TIMER))
        else:
            self.state = State.CLEARING
            self._is_free = True
            if found:
                self.pid, self.start_ticks = found
                self.pidfd = pidfd
            self._clear()

    def _take(self, pid: int, start_ticks: int, pidfd: int) -> None:
        self.pid, self.start_ticks, self.pidfd = pid, start_ticks, pidfd
        self.state = State.STARTING
        self._worker.count("adopted")
        self._loop.watch(pidfd, self._exited)
        up_s = procfs.uptime_s(start_ticks)
        self._launched_at_s = time.monotonic() - up_s
        if self.record.is_ready:
            self.state = State.RUNNING
            self._ready_at_s = self._launched_at_s
            self._await_health(backoff.HEALTHY_S - up_s)
        else:
            self._await_ready(self.process.ready.timeout_s - up_s)

    def _is_launching(self) -> bool:
        """True when a launcher of an earlier worker is at work on this process."""
        return self.home.is_locked() and any(
            launcher.MARK.encode() in procfs.command_line(one.pid)
            for one in self._worker.everyone()
            if self._worker.carries(one, self._mark)
        )

    def _await_record(self) -> None:
        """An orphaned launcher will note its pid, or go."""
        found = self.home.pid()
        pidfd = procfs.open_process(*found) if found else None
        if self.state in LEAVING:
            self._close(pidfd)
        elif found and pidfd is not None and not procfs.has_ended(pidfd, found[0]):
            self._take(found[0], found[1], pidfd)
            self._worker.changed(self, State.NEW)
        elif self.home.is_locked():
            self._close(pidfd)
            self._poll = self._loop.after(0.02, self._await_record)
        else:
            self._close(pidfd)
            self.feed(Event.LOCKED)

    def _adopt_late(self) -> bool:
        """True when an earlier worker's launcher, not locked when we looked, has got through."""
        found = self.home.pid()
        if found in {None, (self.pid, self.start_ticks)}:
            return False
        assert found
        pidfd = procfs.open_process(*found)
        if pidfd is None or procfs.has_ended(pidfd, found[0]):
            self._close(pidfd)
            return False
        self._cancel()
        self._release()
        self._is_free = False
        self._take(*found, pidfd)
        self._worker.changed(self, State.CLEARING)
        return True

    # starting

    def _launch(self) -> None:
        self._cancel()
        if self.record.launches:
            self.record.restarts += 1
        self.record.launches += 1
        self.record.is_ready = False
        self.record.phase = "live"
        self.record.error = None
        self._is_executed = self._has_exited = False
        self._launched_at_s = time.monotonic()
        try:
            self._spawn()
        except (BarekuError, OSError, ValueError) as exc:
            self.record.error = _explain(exc)
            log.warning(event("process not started", id=self.process.id, error=self.record.error))
            self._loop.soon(lambda: self.feed(Event.UNSPAWNED))
            return
        self.holds_slot = True
        assert self.pidfd is not None
        self._loop.watch(self.pidfd, self._exited)
        self._await_ready(self.process.ready.timeout_s)
        self._worker.count("starts")

    def _spawn(self) -> None:
        one, worker = self.process, self._worker
        self.home.create(one)
        self.record.port = worker.choose_port(self) if one.port else None
        launch, arguments = launcher.prepare(
            one, self._name, self.home.path, self.record.port, worker.config, worker.means
        )
        for name in ("drained", "ready.d/ready", "error"):
            (self.home.path / name).unlink(missing_ok=True)
        groups = cgroup.create(worker.groups, self.key, one.memory_bytes, one.pids, one.cpu)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.record.ready_file = str(launch.ready_file)
        self.record.user, self.record.has_mounts = launch.user, launch.has_mounts
        self.record.oom_kills = cgroup.count_oom(worker.groups, self.key)
        self.home.save(self.record)
        self.pid = launcher.spawn(
            self.home.path, self._name, one.nofile, groups, arguments, self.log_path
        )
        failpoint.hit("spawned")
        self.pidfd = os.pidfd_open(self.pid)
        found = procfs.read_stat(self.pid)
        self.start_ticks = found.start_ticks if found else 0

    def _await_ready(self, timeout_s: float) -> None:
        self._late = self._loop.after(max(0.0, timeout_s), lambda: self.feed(Event.LATE))
        self._poll = self._loop.after(0.004, self._look)

    def _look(self) -> None:
        """Is it ready? Level-triggered, so a new worker finds the same answer."""
        if self.state is not State.STARTING or self.pid is None:
            return
        up_s = time.monotonic() - self._launched_at_s
        if not self._is_executed:
            words = procfs.command_line(self.pid)
            self._is_executed = bool(words) and launcher.MARK.encode() not in words
        ready = self.process.ready
        if self.holds_slot and (
            up_s > SLOT_S or (self._is_executed and not ready.port and not ready.file)
        ):
            self.holds_slot = False
            self._worker.pump_soon()
        if (
            self._is_executed
            and up_s >= ready.after_s
            and (not ready.file or self._has_ready_file())
            and (not ready.port or self._listens())
        ):
            self.feed(Event.READY)
            return
        pause = min(0.1, max(0.004, up_s / 8))
        if self._is_executed and up_s < ready.after_s and not ready.file and not ready.port:
            pause = ready.after_s - up_s
        self._poll = self._loop.after(pause, self._look)

    def _has_ready_file(self) -> bool:
        path = Path(self.record.ready_file)
        if not path.is_absolute():
            path = Path(f"/proc/{self.pid}/root") / path
        return path.exists()

    def _listens(self) -> bool:
        inodes = self._worker.listeners().get(self.record.port or 0)
        return bool(inodes) and ports.holds_one((pid for pid, _ in self._members()), inodes or ())

    def _promote(self) -> None:
        self._cancel()
        self._ready_at_s = time.monotonic()
        self.record.is_ready = True
        self._save()
        self._await_health(backoff.HEALTHY_S)
        log.info(
            event(
                "process ready",
                id=self.process.id,
                pid=self.pid,
                after_s=round(self._ready_at_s - self._launched_at_s, 3),
            )
        )

    def _await_health(self, delay_s: float) -> None:
        if self.record.fails:
            self._healthy = self._loop.after(max(0.0, delay_s), self._heal)

    def _heal(self) -> None:
        self.record.fails = 0
        self._save()
        self._worker.changed(self, self.state)

    # ending

    def _exited(self) -> None:
        """The pidfd says that the main process is gone."""
        assert self.pidfd is not None
        self._loop.unwatch(self.pidfd)
        found = procfs.exit_of(self.pidfd, self.pid or 0)
        is_first = self.state is State.STARTING and found.code == launcher.EXIT_LOCKED
        if is_first and self.home.pid() != (self.pid, self.start_ticks):
            self._release()
            self.record.launches -= 1
            self.record.restarts -= 1 if self.record.launches else 0
            self._worker.count("locked")
            self.feed(Event.LOCKED)
            return
        self._note_exit(found)
        self.feed(Event.EXIT)

    def _note_exit(self, found: procfs.Exit) -> None:
        self._has_exited = True
        kills = cgroup.count_oom(self._worker.groups, self.key)
        oom = kills > self.record.oom_kills
        self.record.oom_kills = kills
        self.record.exit = {**found.as_dict(), "oom": oom}
        if found.code == launcher.EXIT_FAILED or found.code in {126, 127}:
            words = self.home.launcher_error()
            self.record.error = words or (
                None if found.code == launcher.EXIT_FAILED else f"cannot run {self.process.cmd[0]}"
            )
        self._worker.note("oom" if oom else "exited", self, code=found.code, signal=found.signal)
        if self.state not in LEAVING:
            self._save()

    def _clear(self) -> None:
        self._cancel()
        self._after(CLEAR_S, Event.TIMER)
        self._check_empty()

    def _hurry(self) -> None:
        number = getattr(signal, f"SIG{self.process.stop.signal}")
        for pid, start in self._members():
            self._send(pid, start, number)
        if self._timer is None:
            self._after(self.process.stop.grace_s, Event.TIMER)
        self._check_empty()

    def _check_empty(self) -> None:
        """Feed EMPTY once nothing of the tree is left; look again soon otherwise."""
        if self._poll is not None:
            self._poll.cancel()
        if self._is_free and self.state is State.CLEARING and self._adopt_late():
            return
        if self._members() or self.home.is_locked():
            self._poll = self._loop.after(0.02, self._check_empty)
            return
        if self.pid is not None and not self._has_exited:
            found = procfs.exit_of(self.pidfd, self.pid or 0) if self.pidfd is not None else None
            self._note_exit(found or procfs.Exit())
        self._release()
        self._loop.soon(self._emptied)

    def _emptied(self) -> None:
        runs_once = self.process.restart == "never"
        self.feed(Event.ENDED if runs_once else Event.EMPTY)

    def _drain(self) -> None:
        self._cancel()
        if not self.process.port or self.process.stop.drain_s <= 0:
            self._loop.soon(lambda: self.feed(Event.DRAINED))
            return
        self._worker.watcher.folder(self.home.path, self._look_drained)
        self._after(self.process.stop.drain_s, Event.DRAINED)
        log.info(event("process draining", id=self.process.id, pid=self.pid))
        self._loop.soon(lambda: self._look_drained("drained"))

    def _look_drained(self, name: str) -> None:
        if name in {"drained", ""} and (self.home.path / "drained").exists():
            self.feed(Event.DRAINED)

    def _undrain(self) -> None:
        self._cancel()
        (self.home.path / "drained").unlink(missing_ok=True)

    def _signal(self) -> None:
        self._cancel()
        if self.state is State.FAILING:
            self.record.error = f"not ready within {self.process.ready.timeout_s:g} s"
        stop = self.process.stop
        number = getattr(signal, f"SIG{stop.signal}")
        log.info(event("process stopping", id=self.process.id, pid=self.pid, signal=stop.signal))
        self._after(stop.grace_s, Event.TIMER)
        if self.pidfd is not None:
            procfs.send(self.pidfd, number)
            procfs.send(self.pidfd, signal.SIGCONT)
        failpoint.hit("signalled")
        if self.pidfd is None or self._has_exited:
            self._hurry()

    def _kill(self) -> None:
        self._worker.note("killed", self)
        if self._worker.groups.folders(self.key):
            cgroup.kill(self._worker.groups, self.key)
        members = self._members() or self._lock_holders()
        self.escaped = sum(1 for pid, _ in members if pid != self.pid and self._is_out(pid))
        for pid, start in members:
            self._send(pid, start, signal.SIGKILL)
        self._after(AGAIN_S, Event.TIMER)
        if self._has_exited:
            self._check_empty()

    def _restart(self) -> None:
        self._cancel()
        up_s = time.monotonic() - self._ready_at_s if self.record.is_ready else 0.0
        if not self._is_free:
            self.record.fails = backoff.count_fails(self.record.fails, up_s)
        delay_s = 0.0 if self._is_free else backoff.delay_s(self.record.fails, random.random())  # noqa: S311
        self._is_free = False
        self._back_off(delay_s)
        log.warning(
            event(
                "process exited",
                id=self.process.id,
                exit=self.record.exit,
                error=self.record.error,
                fails=self.record.fails,
                retry_s=round(delay_s, 2),
            )
        )

    def _retry(self) -> None:
        """Another launcher has the lock: what it started is there by then, or it is gone."""
        self._cancel()
        self._back_off(RETRY_S)
        self._poll = self._loop.after(0.02, self._adopt_other)

    def _adopt_other(self) -> None:
        found = self.home.pid()
        pidfd = procfs.open_process(*found) if found else None
        if self.state is State.BACKOFF and found and pidfd is not None:
            self._cancel()
            self._take(found[0], found[1], pidfd)
            self._worker.changed(self, State.BACKOFF)
            return
        self._close(pidfd)
        if self.state is State.BACKOFF and self.home.is_locked():
            self._poll = self._loop.after(0.02, self._adopt_other)
        elif self.state is State.BACKOFF:
            self.feed(Event.TIMER)

    def _back_off(self, delay_s: float) -> None:
        self.record.phase = "backoff"
        self.record.is_ready = False
        self.record.retry_at_s = procfs.boottime_s() + delay_s
        self._save()
        if delay_s <= 0:
            self._loop.soon(lambda: self.feed(Event.TIMER))
        else:
            self._after(delay_s, Event.TIMER)

    def wake(self) -> None:
        """What it lacked may have come: do not wait for the end of the backoff."""
        if self.state is State.BACKOFF and self.record.error:
            self.feed(Event.TIMER)

    def _finish(self) -> None:
        self._cancel()
        self.record.phase = "exited"
        self._save()
        log.info(event("process ended", id=self.process.id, exit=self.record.exit))

    def _forget(self) -> None:
        self._cancel()
        self._release()
        self.home.remove()
        cgroup.remove(self._worker.groups, self.key)
        log.info(event("process gone", id=self.process.id, exit=self.record.exit))

    def close(self) -> None:
        """The worker goes, the process stays."""
        self._cancel()
        if self.pidfd is not None:
            self._loop.unwatch(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = None

    # the tree

    @property
    def _mark(self) -> bytes:
        return f"{launcher.KEY}={self._name}".encode()

    def _members(self) -> list[tuple[int, int]]:
        """(pid, start time) of everything that runs of this process."""
        if self._worker.groups.folders(self.key):
            pids = set(cgroup.members(self._worker.groups, self.key))
            if self.pid is not None and not self._has_exited:
                pids.add(self.pid)  # a launcher may not have joined yet
            stats = [procfs.read_stat(pid) for pid in pids]
            return [
                (one.pid, one.start_ticks)
                for one in stats
                if one is not None
                and one.is_alive
                and (one.pid != self.pid or one.start_ticks == self.start_ticks)
            ]
        return [(one.pid, one.start_ticks) for one in self._worker.everyone() if self._is_ours(one)]

    def _is_ours(self, one: procfs.Stat) -> bool:
        if one.pid == self.pid:
            return one.start_ticks == self.start_ticks
        if one.start_ticks < self.start_ticks:
            return False
        if one.session == self.pid:
            leader = procfs.read_stat(one.session)
            if leader is not None and leader.start_ticks == self.start_ticks:
                return True
        return self._worker.carries(one, self._mark)

    def _lock_holders(self) -> list[tuple[int, int]]:
        """Those that left every group and environment of ours, and yet have our lock open."""
        if not self.home.is_locked():
            return []
        path = str(self.home.path / "lock")
        return [
            (one.pid, one.start_ticks)
            for one in self._worker.everyone()
            if one.pid != os.getpid() and procfs.has_open(one.pid, path)
        ]

    def _is_out(self, pid: int) -> bool:
        found = procfs.read_stat(pid)
        return found is not None and found.session != self.pid

    def _send(self, pid: int, start_ticks: int, number: int) -> None:
        pidfd = procfs.open_process(pid, start_ticks)
        if pidfd is not None:
            procfs.send(pidfd, number)
            procfs.send(pidfd, signal.SIGCONT)
            os.close(pidfd)

    def _limits(self) -> str:
        one = self.process
        asked = {"memory": one.memory_bytes, "pids": one.pids, "cpu": one.cpu}
        held = [n for n, value in asked.items() if value and n in self._worker.means.limits]
        return ",".join(held) or "none"

    # small things

    def _after(self, delay_s: float, what: Event) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.after(max(0.0, delay_s), lambda: self._due(what))

    def _due(self, what: Event) -> None:
        self._timer = None
        self.feed(what)

    def _cancel(self) -> None:
        for timer in (self._timer, self._poll, self._late, self._healthy):
            if timer is not None:
                timer.cancel()
        self._timer = self._poll = self._late = self._healthy = None
        self.holds_slot = False
        self._worker.watcher.forget(self.home.path)

    def _release(self) -> None:
        """The main process is gone and so is its tree: let pid and zombie go."""
        if self.pidfd is not None:
            self._loop.unwatch(self.pidfd)
            procfs.reap(self.pidfd)
            os.close(self.pidfd)
        self.pid = self.pidfd = self.cpu_s = self.rss_bytes = None

    def _save(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not harm what runs
            self.home.save(self.record)

    @staticmethod
    def _close(fd: int | None) -> None:
        if fd is not None:
            os.close(fd)


def _explain(exc: Exception) -> str:
    """The error as the status file shows it, with the kernel's name for it where there is one."""
    import errno

    if isinstance(exc, OSError) and exc.errno is not None:
        where = f" ({exc.filename})" if exc.filename else ""
        return f"{errno.errorcode.get(exc.errno, exc.errno)}: {exc.strerror}{where}"
    return str(exc)
