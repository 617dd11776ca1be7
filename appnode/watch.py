"""A file watched from an asyncio loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from bareku.watch import LOOK_S, Watcher


class FileWatch:
    """Calls `on_change` at once and soon after each time `path` was replaced, written or removed.

    A call only means to look. The folder need not exist yet.
    """

    def __init__(self, path: Path, on_change: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._watcher = Watcher()
        self._watcher.file(path, on_change)
        if self._watcher.fd >= 0:
            self._loop.add_reader(self._watcher.fd, self._watcher.read)
        self._timer = self._loop.call_later(LOOK_S, self._look)
        on_change()

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_S, self._look)
        self._watcher.look()

    def close(self) -> None:
        """Watch no more."""
        self._timer.cancel()
        if self._watcher.fd >= 0:
            self._loop.remove_reader(self._watcher.fd)
        self._watcher.close()
