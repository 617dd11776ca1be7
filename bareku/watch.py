"""Wake-ups when files change: inotify on their folders, with a slow look as the safety net.

A watched file is replaced by rename, so its folder is watched, not its inode. Where there is no
inotify (a limit, an odd file system) `look` finds changes by (inode, mtime, size).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_IGNORED, _OVERFLOW = 0x8000, 0x4000
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE | 0x01000000  # the last: IN_ONLYDIR
_HEAD = struct.Struct("iIII")

LOOK_S = 1.0  # how often to `look`: a missed event is made good after this long

Signature = tuple[int, int, int] | None


class Watcher:
    """Calls back with a path when the file there was replaced, written, made or removed."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._files: dict[Path, tuple[Callable[[], None], Signature]] = {}
        self._folders: dict[Path, Callable[[str], None]] = {}
        self._by_mark: dict[int, Path] = {}
        self._marks: dict[Path, int] = {}

    def file(self, path: Path, callback: Callable[[], None]) -> None:
        """Watch one file, which need not exist."""
        self._files[path] = (callback, signature(path))
        self._mark(path.parent)

    def folder(self, path: Path, callback: Callable[[str], None]) -> None:
        """Watch the names in a folder; the callback gets the name that changed."""
        self._folders[path] = callback
        self._mark(path, _MASK | _CREATE)

    def forget(self, path: Path) -> None:
        """Stop watching a folder."""
        self._folders.pop(path, None)
        mark = self._marks.pop(path, None)
        if mark is not None:
            self._by_mark.pop(mark, None)
            self._libc.inotify_rm_watch(self.fd, mark)

    def read(self) -> None:
        """Take the events that are there and call back."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        changed: dict[tuple[Path, str], None] = {}
        offset = 0
        while offset < len(data):
            mark, mask, _, length = _HEAD.unpack_from(data, offset)
            raw = data[offset + _HEAD.size : offset + _HEAD.size + length]
            offset += _HEAD.size + length
            folder = self._by_mark.get(mark)
            if mask & _OVERFLOW:
                self.look()
            elif folder is not None and mask & _IGNORED:
                del self._by_mark[mark]
                self._marks.pop(folder, None)
            elif folder is not None:
                changed[folder, os.fsdecode(raw.rstrip(b"\0"))] = None
        for folder, name in changed:
            self._changed(folder, name)

    def look(self) -> None:
        """Compare every watched file with what it was, and watch folders that came (back)."""
        for path, (callback, before) in list(self._files.items()):
            self._mark(path.parent)
            now = signature(path)
            if now != before:
                self._files[path] = (callback, now)
                callback()
        for folder in list(self._folders):
            if folder not in self._marks:
                self._mark(folder, _MASK | _CREATE)
                if folder in self._marks and folder in self._folders:
                    self._folders[folder]("")

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _changed(self, folder: Path, name: str) -> None:
        watched = self._files.get(folder / name)
        if watched is not None:
            self._files[folder / name] = (watched[0], signature(folder / name))
            watched[0]()
        if folder in self._folders:
            self._folders[folder](name)

    def _mark(self, folder: Path, mask: int = _MASK) -> None:
        if self.fd < 0 or (folder in self._marks and mask == _MASK):
            return
        mark = self._libc.inotify_add_watch(self.fd, os.fsencode(folder), mask)
        if mark >= 0:
            self._marks[folder] = mark
            self._by_mark[mark] = folder


def signature(path: Path) -> Signature:
    """What tells one content of a file from the next without reading it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)
