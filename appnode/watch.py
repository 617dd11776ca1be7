"""Tell when a file is replaced: inotify on its folder, and a slow look for what that misses."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLOSE_WRITE, _MOVED_TO, _DELETE_SELF, _MOVE_SELF = 0x8, 0x80, 0x400, 0x800
_POLL_S = 1.0


class FileWatch:
    """Calls `on_change` soon after `path` was replaced, appeared or was written.

    Also when it was not: a call only means to look. The folder need not exist yet.
    """

    def __init__(self, path: Path, on_change: Callable[[], None]) -> None:
        self._path = path
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._seen: tuple[int, int, int] | None = None
        self._folder_seen: tuple[int, int] | None = None
        self._watch_id = -1
        # IN_NONBLOCK and IN_CLOEXEC are the O_ flags
        self._fd: int = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._read)
        self._poll()

    def _read(self) -> None:
        try:
            events = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        if os.fsencode(self._path.name) in events:
            self._seen = _identity(self._path)
            self._on_change()

    def _poll(self) -> None:
        self._timer = self._loop.call_later(_POLL_S, self._poll)
        self._attach()
        seen = _identity(self._path)
        if seen != self._seen:
            self._seen = seen
            self._on_change()

    def _attach(self) -> None:
        """Watch the folder; once more when it is another one by the same name."""
        try:
            found = self._path.parent.stat()
        except OSError:
            return
        identity = (found.st_dev, found.st_ino)
        if self._fd < 0 or identity == self._folder_seen:
            return
        mask = _CLOSE_WRITE | _MOVED_TO | _DELETE_SELF | _MOVE_SELF
        if _LIBC.inotify_add_watch(self._fd, os.fsencode(self._path.parent), mask) >= 0:
            self._folder_seen = identity

    def close(self) -> None:
        self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)
