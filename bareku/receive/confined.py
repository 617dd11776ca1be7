"""Run a program of a build and read what it says, within time, disk and memory of our own."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_KEPT = 256 * 2**10  # bytes of stdout and of stderr that are kept when nobody listens
_TICK_S = 0.5
_LAST_WORDS_S = 2.0  # how long we read on when the program has ended and others hold its pipe
_TOKEN = "BUILD_TOKEN"  # noqa: S105 - a mark in the environment by which stragglers are found


class StoppedError(Exception):
    """We ended the program: it ran too long or wrote too much."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def ending(self) -> str:
        """`exit code 3`, `signal KILL`"""
        number = -self.code if self.code < 0 else self.code - 128
        if self.code < 0 or 0 < number < 32:
            return f"signal {signal.Signals(number).name.removeprefix('SIG')}"
        return f"exit code {self.code}"

    @property
    def last_line(self) -> str:
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return "".join(c for c in lines[-1] if c.isprintable()).lstrip(" !") if lines else ""


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout_s: float,
    on_output: Callable[[bytes | None], None] | None = None,
    watch: Path | None = None,
    disk_bytes: int = 0,
    is_alone: bool = True,
) -> Done:
    """Run `argv` to its end, and end everything that it has started.

    With `on_output` both streams go there, block by block and None at the end; else they are
    kept. `is_alone` says that a pid namespace ends with the program; without one, what it left
    behind is hunted down. Raises StoppedError after `timeout_s`, or when `watch` has grown by more
    than `disk_bytes`.
    """
    mark = {} if is_alone else {_TOKEN: uuid.uuid4().hex}
    merged = subprocess.STDOUT if on_output else subprocess.PIPE
    process = subprocess.Popen(
        argv, env={**env, **mark}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=merged, start_new_session=True,
    )  # fmt: skip
    disk = _Disk(watch, disk_bytes) if watch else None
    try:
        return _read(process, time.monotonic() + timeout_s, timeout_s, on_output, disk)
    finally:
        _end(process)
        if mark:
            _hunt(f"{_TOKEN}={mark[_TOKEN]}".encode())


def _read(
    process: subprocess.Popen[bytes],
    deadline: float,
    timeout_s: float,
    on_output: Callable[[bytes | None], None] | None,
    disk: _Disk | None,
) -> Done:
    kept = {"out": bytearray(), "err": bytearray()}
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            for pipe, name in ((process.stdout, "out"), (process.stderr, "err")):
                if pipe:
                    selector.register(pipe, selectors.EVENT_READ, name)
            selector.register(ended, selectors.EVENT_READ, "end")
            is_over = False
            while True:
                ready = selector.select(0 if is_over else _TICK_S)
                if is_over and time.monotonic() > deadline:
                    break
                if time.monotonic() > deadline:
                    raise StoppedError(
                        f"it took longer than {timeout_s:g} s",
                        "does the build wait for something? it has no terminal and no input",
                    )
                if disk:
                    disk.check()
                names = {str(key.data) for key, _ in ready} - {"end"}
                if is_over and not names:
                    break  # whoever still holds the pipe outlived the build, and ends now
                for key, _ in ready:
                    if key.data == "end":
                        is_over = True
                        deadline = min(deadline, time.monotonic() + _LAST_WORDS_S)
                        selector.unregister(ended)
                        continue
                    block = os.read(key.fd, 1 << 16)
                    if not block:
                        selector.unregister(key.fileobj)
                    elif on_output:
                        on_output(block)
                    else:
                        keep = kept[str(key.data)]
                        keep += block[: MAX_KEPT - len(keep)]
    finally:
        os.close(ended)
    if on_output:
        on_output(None)
    text = {name: bytes(data).decode(errors="replace") for name, data in kept.items()}
    return Done(process.wait(), text["out"], text["err"])


def _end(process: subprocess.Popen[bytes]) -> None:
    inner = _pidfds_of_children(process.pid)
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for fd in inner:  # pid 1 of a namespace is gone when the last process in it is
            select.select([fd], [], [], _LAST_WORDS_S)
    finally:
        for fd in inner:
            os.close(fd)
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def _pidfds_of_children(pid: int) -> list[int]:
    fds = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                fds.append(os.pidfd_open(int(child)))
    return fds


def _hunt(mark: bytes) -> None:
    """Kill every process whose environment holds the mark; more than once, for they may fork."""
    for _ in range(50):
        found = False
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found = True
                    os.kill(int(entry.name), signal.SIGKILL)
        if not found:
            return
        time.sleep(0.01)  # the killed are gone when the kernel has had its turn


class _Disk:
    """Notices that a folder's file system loses room, and then asks the folder itself."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._before = self._free()
        self._asked_at = 0.0

    def check(self) -> None:
        now = time.monotonic()
        if now - self._asked_at < _TICK_S:
            return
        self._asked_at = now
        if self._before - self._free() < self._limit // 2:
            return
        used = _usage(self._folder)
        if used > self._limit:
            raise StoppedError(
                f"it wrote more than {self._limit // 2**20} MiB",
                "remove what the app does not need at run time",
            )

    def _free(self) -> int:
        fs = os.statvfs(self._folder)
        return fs.f_bavail * fs.f_frsize


def _usage(folder: Path) -> int:
    """Bytes on disk below `folder`, on its own file system."""
    device = folder.stat().st_dev
    used = 0
    for here, folders, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                used += os.lstat(f"{here}/{name}").st_blocks * 512
        folders[:] = [n for n in folders if _device(f"{here}/{n}") == device]
    return used


def _device(path: str) -> int | None:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return None
