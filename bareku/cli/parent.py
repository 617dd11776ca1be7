"""The parent of the one-machine daemons: starts them, starts them again, ends them in order.

It keeps the two listening sockets, so that a daemon that is being restarted refuses nobody. It
adopts daemons that outlived an earlier parent. It does nothing else.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path

import psutil

from bareku import listen
from bareku.cli import machine
from bareku.cli.machine import Daemon
from bareku.daemon import Presence
from bareku.errors import BarekuError
from bareku.files import read_json
from bareku.log import event
from bareku.paths import Root
from bareku.settings import Settings, address

logger = getLogger("bareku.up")

START_S = 20.0  # until a daemon says it is well
STOP_S = 10.0  # from TERM to KILL for a daemon
RESTART_S = (0.05, 5.0)  # first and longest pause before a restart
STEADY_S = 10.0  # a daemon that ran so long begins again with the short pause

TAKE_SOCKET = 'LISTEN_PID=$$ exec "$@"'  # only the new process knows its pid


@dataclass
class Child:
    """A daemon as the parent sees it."""

    daemon: Daemon
    listener: socket.socket | None = None
    pid: int = 0
    pidfd: int = -1
    started_s: float = 0.0
    pause_s: float = 0.0
    due_s: float = 0.0  # monotonic; when to start it again

    @property
    def is_running(self) -> bool:
        return self.pidfd >= 0


@dataclass
class Parent:
    """Runs the daemons of one root until a signal says how to end."""

    root: Root
    settings: Settings
    keep_apps: bool = False
    children: list[Child] = field(default_factory=list)

    def run(self, say: Callable[[str], None], when_up: Callable[[], None]) -> None:
        """Start everything, say one line a daemon, keep it running, end on INT, TERM or USR1.

        Raises BarekuError when a port is taken, before anything is started, or when a daemon
        does not come up; what was started is ended then.
        """
        presence = Presence(self.root.run, "up")
        wakeup = _signals()
        keep_apps = True  # a start that fails leaves the apps as they were
        try:
            self.children = [self._child(daemon) for daemon in self._daemons()]
            machine.prepare(self.root, self.settings)
            presence.write("starting")
            for child in self.children:
                if not child.is_running:
                    self._start(child)
            for child in self.children:
                say(self._wait(child))
            when_up()
            presence.write("ok")
            say("")
            ending = self._watch(wakeup, presence)
            keep_apps = self.keep_apps or ending == signal.SIGUSR1
        finally:
            self._stop(keep_apps)
            presence.close()
            presence.status_path.unlink(missing_ok=True)

    def _stop(self, keep_apps: bool) -> None:
        """End the daemons and, unless they are to be kept, the apps."""
        running = {c.daemon.name: c.pid for c in self.children if c.is_running}
        stop_all(self.root, running, keep_apps=keep_apps)
        for child in self.children:
            if child.listener:
                child.listener.close()
            if child.is_running:
                os.close(child.pidfd)
                child.pidfd = -1

    def _daemons(self) -> Sequence[Daemon]:
        return machine.daemons(self.root, self.settings)

    def _child(self, daemon: Daemon) -> Child:
        """A daemon that runs already is adopted; for the others their port is taken now."""
        child = Child(daemon)
        pid = running(self.root, daemon.name)
        if pid:
            child.pid = pid
            child.pidfd = os.pidfd_open(pid)
            child.started_s = time.monotonic()
            return child
        if daemon.address:
            host, port = address(daemon.address)
            child.listener = listen.bind(host, port, what=daemon.name)
        for endpoint in daemon.endpoints:
            host, port = address(endpoint.removeprefix("tcp://"))
            listen.bind(host, port, what=daemon.name).close()  # only to see that it is free
        return child

    def _start(self, child: Child) -> None:
        daemon = child.daemon
        log = self.root.logs / f"{daemon.name.replace('/', '-')}.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions: list[tuple[object, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        argv = list(daemon.argv)
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if daemon.address and child.listener is None:
            with contextlib.suppress(BarekuError):  # the daemon itself says who has the port
                host, port = address(daemon.address)
                child.listener = listen.bind(host, port, what=daemon.name)
        if child.listener:
            actions.append((os.POSIX_SPAWN_DUP2, child.listener.fileno(), listen.FIRST_FD))
            env["LISTEN_FDS"] = "1"
            argv = ["/bin/sh", "-c", TAKE_SOCKET, "sh", *argv]
        child.pid = _spawn(argv, env, actions)
        child.pidfd = os.pidfd_open(child.pid)
        child.started_s = time.monotonic()

    def _wait(self, child: Child) -> str:
        """The line about a daemon that has come up."""
        name = child.daemon.name
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if running(self.root, name) == child.pid:
                status = read_json(status_path(self.root, name))
                if status["health"] != "starting":
                    return f"{name:<16}{child.daemon.address or 'up':<18}pid {child.pid}"
            if select.select([child.pidfd], [], [], 0.02)[0]:
                break
        log = self.root.logs / f"{name.replace('/', '-')}.log"
        raise BarekuError(f"cannot start {name}: {last_line(log)}", hint=f"its whole log: {log}")

    def _watch(self, wakeup: int, presence: Presence) -> int:
        """Restart what ends, until a signal comes; that signal."""
        touched_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            waiting = [child for child in self.children if not child.is_running]
            for child in waiting:
                if child.due_s <= now_s:
                    self._start(child)
                    logger.info(event("daemon restarted", name=child.daemon.name, pid=child.pid))
            if now_s - touched_s > 5.0:
                presence.touch()
                touched_s = now_s
            fds = {child.pidfd: child for child in self.children if child.is_running}
            pause_s = min([1.0, *(max(0.0, c.due_s - now_s) for c in waiting if not c.is_running)])
            ready = select.select([wakeup, *fds], [], [], pause_s)[0]
            if wakeup in ready and (number := _last_signal(wakeup)):
                return number
            for fd in ready:
                if fd in fds:
                    self._ended(fds[fd])

    def _ended(self, child: Child) -> None:
        os.close(child.pidfd)
        child.pidfd = -1
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child.pid, os.WNOHANG)
        now_s = time.monotonic()
        if now_s - child.started_s > STEADY_S:
            child.pause_s = 0.0
        child.pause_s = min(max(RESTART_S[0], child.pause_s * 2), RESTART_S[1])
        child.due_s = now_s + child.pause_s
        logger.warning(event("daemon ended", name=child.daemon.name, pid=child.pid))


def status_path(root: Root, name: str) -> Path:
    """`run/diprocd/worker.json`"""
    return root.run / f"{name}.json"


def running(root: Root, name: str) -> int:
    """The pid of a daemon that lives, 0 when it does not.

    The pid in the status file counts only when that process began before the file said so.
    """
    try:
        status = read_json(status_path(root, name))
        process = psutil.Process(status["pid"])
        written_s = status_path(root, name).stat().st_mtime
        if process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written_s + 1.0:
            return int(status["pid"])
    except (OSError, BarekuError, psutil.Error, KeyError):
        pass
    return 0


def stop_all(root: Root, pids: Mapping[str, int], *, keep_apps: bool) -> None:
    """End the daemons in `pids` and, unless they are to be kept, the apps.

    The handler ends last: it answers what the apps still work on, and tells when they are idle.
    """
    _end([pid for name, pid in pids.items() if name != "handler"])
    if not keep_apps and (root.node / "diprocd-client.json").exists():
        with (root.logs / "diprocd-worker.log").open("ab") as log:
            argv = machine.stop_apps_argv(root)
            subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    _end([pid for name, pid in pids.items() if name == "handler"])


def running_daemons(root: Root, settings: Settings) -> dict[str, int]:
    """Name and pid of each daemon that runs."""
    names = [daemon.name for daemon in machine.daemons(root, settings)]
    return {name: pid for name in names if (pid := running(root, name))}


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return "it wrote no log"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")


def wait_ended(pids: Sequence[int], timeout_s: float) -> list[int]:
    """Wait for processes to end, our children or not; those that still run after `timeout_s`.

    By pidfd: a process that has ended counts, even while nobody has reaped it.
    """
    deadline = time.monotonic() + timeout_s
    running = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            running[os.pidfd_open(pid)] = pid
    while running and (left_s := deadline - time.monotonic()) > 0:
        for fd in select.select(list(running), [], [], left_s)[0]:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(running.pop(fd), os.WNOHANG)
            os.close(fd)
    for fd in running:
        os.close(fd)
    return list(running.values())


def _end(pids: Sequence[int]) -> None:
    """TERM to all, KILL to those that are still there after STOP_S."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        pids = wait_ended(pids, STOP_S)


def _spawn(argv: list[str], env: Mapping[str, str], actions: list[tuple[object, ...]]) -> int:
    return os.posix_spawn(
        argv[0],
        argv,
        env,
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
    )


def _signals() -> int:
    """A descriptor that becomes readable with INT, TERM and USR1 (each byte is the number)."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    return read


def _last_signal(wakeup: int) -> int:
    try:
        numbers = os.read(wakeup, 64)
    except BlockingIOError:
        return 0
    return numbers[-1]
