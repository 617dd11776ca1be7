"""The folder of one process below `<run>/i/`: what a new worker needs to take it over.

`lock` and `pid` are the launcher's, the rest is the worker's. It lies in /run and ends with the
boot, as the process does, so nothing here is fsynced.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bareku.files import try_lock, write_atomic
from diprocd.spec import Process


class Record(Struct):
    """What must outlive the worker. `phase` is "live", "backoff" or "exited"."""

    phase: str = "live"
    fails: int = 0
    restarts: int = 0
    launches: int = 0
    is_ready: bool = False
    port: int | None = None
    retry_at_s: float = 0.0  # CLOCK_BOOTTIME
    exit: dict[str, Any] | None = None
    error: str | None = None
    ready_file: str = ""
    user: str = ""
    has_mounts: bool = False
    oom_kills: int = 0


class StateDir:
    """Reads and writes the files of one folder."""

    __slots__ = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, process: Process) -> None:
        """Make the folder and note the entry the process is started from."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._put("spec.json", msgspec.json.encode(process), 0o600)

    def save(self, record: Record) -> None:
        self._put("stat.json", msgspec.json.encode(record), 0o644)

    def process(self) -> Process | None:
        """The entry, or None when it cannot be read."""
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return msgspec.json.decode((self.path / "spec.json").read_bytes(), type=Process)
        return None

    def record(self) -> Record:
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return msgspec.json.decode((self.path / "stat.json").read_bytes(), type=Record)
        return Record()

    def pid(self) -> tuple[int, int] | None:
        """(pid, start time) as the launcher noted them; None when it has not (yet)."""
        with contextlib.suppress(OSError, ValueError):
            text = (self.path / "pid").read_text()
            pid, start = text.split()
            if text.endswith("\n"):
                return int(pid), int(start)
        return None

    def launcher_error(self) -> str | None:
        """What the last launcher complained of."""
        with contextlib.suppress(OSError):
            return (self.path / "error").read_text(errors="replace").strip()[:300] or None
        return None

    def is_locked(self) -> bool:
        """True while a launcher or the tree it became holds the lock."""
        with contextlib.suppress(OSError):
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return not try_lock(fd)
            finally:
                os.close(fd)
        return False

    def remove(self) -> None:
        """Remove the folder. A launcher that is late finds its lock file gone and gives up."""
        import shutil  # brings all compressors along, which a restart need not wait for

        shutil.rmtree(self.path, ignore_errors=True)

    def _put(self, name: str, data: bytes, mode: int) -> None:
        write_atomic(self.path / name, data, mode=mode, durable=False)
