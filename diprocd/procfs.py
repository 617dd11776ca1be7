"""What the kernel says about a process: identity, end, tree, use of memory and processor.

A process is named by pid and start time; a pid alone may be someone else's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import time

from msgspec import Struct

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PIDFD_GET_INFO = 0xC048FF0B  # _IOWR(0xFF, 11, 72 bytes), kernel 6.15 and later tell the exit code
_PIDFD_INFO_EXIT = 8
_DEAD = frozenset("ZXx")


class Stat(Struct, frozen=True):
    """The fields of /proc/PID/stat that matter here."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_ticks: int
    cpu_s: float
    rss_bytes: int
    wait_status: int | None

    @property
    def is_alive(self) -> bool:
        return self.state not in _DEAD


class Exit(Struct, frozen=True):
    """How a process ended, as far as could be observed."""

    code: int | None = None
    signal: int | None = None
    known: bool = False
    oom: bool = False

    def as_dict(self) -> dict[str, object]:
        return {"code": self.code, "signal": self.signal, "known": self.known, "oom": self.oom}


def parse_stat(text: str) -> Stat:
    """The line of /proc/PID/stat; the command in it may hold blanks and brackets."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Stat(
        pid=int(head.split(" ", 1)[0]),
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
        rss_bytes=int(fields[21]) * _PAGE,
        wait_status=int(fields[49]) if len(fields) > 49 else None,
    )


def read_stat(pid: int) -> Stat | None:
    """The process now, or None when there is none (or only its shadow is being removed)."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return parse_stat(os.read(fd, 4096).decode(errors="replace"))
    except (OSError, ValueError, IndexError):
        return None
    finally:
        os.close(fd)


def uptime_s(start_ticks: int) -> float:
    """Seconds since a start time, in the clock the kernel counts it in."""
    return max(0.0, boottime_s() - start_ticks / _TICKS)


def boottime_s() -> float:
    """Seconds since boot, the same for every process and untouched by clock changes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def open_process(pid: int, start_ticks: int) -> int | None:
    """A pidfd of exactly that process, zombie or not; None when it is gone or another's pid.

    The identity is checked after opening, so the descriptor can never mean a stranger.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    found = read_stat(pid)
    if found is None or found.start_ticks != start_ticks:
        os.close(pidfd)
        return None
    return pidfd


def send(pidfd: int, number: int) -> None:
    """Signal through a pidfd; a process that is gone already is no error."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def has_ended(pidfd: int, pid: int) -> bool:
    """True when the process of the pidfd runs no more, reaped or not."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if poll.poll(0):
        return True
    found = read_stat(pid)
    return found is not None and not found.is_alive


def exit_of(pidfd: int, pid: int) -> Exit:
    """How it ended: as its parent, else from its zombie, else from the pidfd, else not known.

    Reaps nothing: while the zombie stands, its pid and process group cannot become another's.
    """
    with contextlib.suppress(OSError):
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is not None:
            if info.si_code == os.CLD_EXITED:
                return Exit(code=info.si_status, known=True)
            return Exit(signal=info.si_status, known=True)
    found = read_stat(pid)
    if (
        found is not None
        and found.state == "Z"
        and os.geteuid() == 0
        and found.wait_status is not None
    ):
        return decode_status(found.wait_status)
    buffer = bytearray(struct.pack("Q", _PIDFD_INFO_EXIT) + bytes(64))
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
        if struct.unpack_from("Q", buffer)[0] & _PIDFD_INFO_EXIT:
            return decode_status(struct.unpack_from("i", buffer, 60)[0])
    return Exit()


def reap(pidfd: int) -> None:
    """Let the zombie go, if it is our child."""
    with contextlib.suppress(OSError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


def decode_status(status: int) -> Exit:
    """A wait status as code or signal."""
    if os.WIFSIGNALED(status):
        return Exit(signal=os.WTERMSIG(status), known=True)
    return Exit(code=os.waitstatus_to_exitcode(status), known=True)


def everyone() -> list[Stat]:
    """Every process of the machine that runs."""
    names = os.listdir("/proc")  # noqa: PTH208 - thousands of them
    found = (read_stat(int(name)) for name in names if name.isdigit())
    return [one for one in found if one is not None and one.is_alive]


def environment(pid: int) -> bytes:
    """What it was started with: `NAME=value` between NULs; empty when that is not for us."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - one open, no Path
            return b"\0" + file.read()
    except OSError:
        return b""


def command_line(pid: int) -> list[bytes]:
    """Its argv; empty for a zombie or a stranger's process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 - one open, no Path
            return file.read().split(b"\0")[:-1]
    except OSError:
        return []


def has_open(pid: int, path: str) -> bool:
    """True when the process has the file open."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) == path:  # noqa: PTH115 - thousands of them
                    return True
    return False
