"""Log files stay bounded: cut at the head as they grow, removed with releases long gone.

The head is copied to `NAME.1` and removed by FALLOC_FL_COLLAPSE_RANGE, which moves no byte and
loses none, even under a writer at full speed (O_APPEND goes on at the new end). File systems
without it (tmpfs) get a copy and a truncation, which may lose what is written in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Collection
from pathlib import Path

_COLLAPSE_RANGE = 0x08
_NAME = re.compile(r"v([0-9]+)\..+\.log(?:\.[0-9]+)?")


def rotate_if_large(path: Path, max_bytes: int, kept: int) -> bool:
    """Rotate when the file is larger than `max_bytes`; True when it was. Errors leave it as is."""
    try:
        if path.stat().st_size < max_bytes:
            return False
        _rotate(path, kept)
    except OSError:
        return False
    return True


def prune(folder: Path, running: Collection[int], kept: int) -> list[Path]:
    """Remove the logs of an app's releases but for the newest `kept` and those `running`."""
    logs: dict[int, list[Path]] = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            found = _NAME.match(entry.name)
            if found and entry.is_file(follow_symlinks=False):
                logs.setdefault(int(found[1]), []).append(Path(entry.path))
    old = sorted(logs.keys() - set(running), reverse=True)
    spared = max(0, kept - len(logs.keys() & set(running)))
    removed = [path for release in old[spared:] for path in logs[release]]
    for path in removed:
        with contextlib.suppress(OSError):
            path.unlink()
    return removed


def _rotate(path: Path, kept: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        block = max(4096, os.fstatvfs(fd).f_bsize)
        head = (found.st_size - 1) // block * block  # the call refuses to reach the end
        fresh = path.with_name(f".{path.name}.new")
        try:
            _copy(fd, fresh, head)
            for number in range(kept - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(f"{path.name}.{number}").replace(
                        path.with_name(f"{path.name}.{number + 1}")
                    )
            if not _collapse(fd, head):
                _copy(fd, fresh, os.fstat(fd).st_size)
                os.ftruncate(fd, 0)
            fresh.replace(path.with_name(f"{path.name}.1"))
        finally:
            fresh.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _copy(source: int, target: Path, size: int) -> None:
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        offset = 0
        while offset < size:
            sent = os.sendfile(out, source, offset, size - offset)
            if sent == 0:
                break
            offset += sent
    finally:
        os.close(out)


def _collapse(fd: int, length: int) -> bool:
    """Remove the first `length` bytes; False where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    offset = ctypes.c_int64(0)
    return int(libc.fallocate64(fd, _COLLAPSE_RANGE, offset, ctypes.c_int64(length))) == 0
