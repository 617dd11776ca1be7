"""Files that survive a crash: atomic writes, JSON documents, locks with a holder.

Every write goes to a temporary name in the same folder, is fsynced, renamed, and the folder
fsynced; a reader sees the old content or the new, never a mixture.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bareku.errors import BarekuError


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace `path` by `data` so that a crash leaves the old or the new content.

    `durable=False` leaves out the fsyncs: for what a reboot makes void anyway. Raises OSError (disk full, no permission); the old file is untouched then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            os.fchmod(fd, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, document: object, *, mode: int = 0o644) -> None:
    """Write `document` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(document, indent=1) + "\n").encode(), mode=mode)


def read_json(path: Path) -> Any:
    """The JSON document at `path`.

    Raises FileNotFoundError when absent, BarekuError when it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as exc:
        raise BarekuError(f"cannot read {path}: not valid JSON ({exc})") from exc


@contextlib.contextmanager
def locked(path: Path, *, holder: str, timeout_s: float = 0.0) -> Iterator[int]:
    """Hold an exclusive flock on `path` and write into it who holds it; yields the descriptor.

    The lock dies with the process, so it is never stale. Raises BarekuError (exit code 11)
    naming the holder when it cannot be had within `timeout_s`.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + timeout_s
        while not try_lock(fd):
            if time.monotonic() >= deadline:
                raise BarekuError(
                    f"cannot lock {path.name}: held by {read_holder(path) or 'another process'}",
                    exit_code=11,
                )
            time.sleep(0.02)
        os.ftruncate(fd, 0)
        os.pwrite(fd, holder.encode(), 0)
        yield fd
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Take the exclusive flock of an open file; False when someone else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_holder(path: Path) -> str:
    """Who wrote himself into the lock file last; empty when nobody did."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""
