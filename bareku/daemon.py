"""What every daemon does alike: claim its name, say how it is, hear TERM.

A daemon owns `<run>/<name>.lock` (flock, so at most one lives) and writes `<run>/<name>.json`,
its status document; the common head is described in docs/reference/formats.md.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from bareku import __version__
from bareku.errors import BarekuError
from bareku.files import read_holder, try_lock, write_atomic

Health = Literal["starting", "ok", "degraded"]

FRESH_S = 15.0  # a status file older than this says nothing about now; daemons touch it every 5 s


class Presence:
    """A running daemon's lock and status file in its run folder."""

    def __init__(self, run: Path, name: str, *, mode: int = 0o644) -> None:
        self.status_path = run / f"{name}.json"
        self._name = name
        self._mode = mode
        self._started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        run.mkdir(parents=True, exist_ok=True)
        lock = run / f"{name}.lock"
        self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not try_lock(self._fd):
            holder = read_holder(lock)
            os.close(self._fd)
            raise BarekuError(
                f"cannot start {name}: another {name} holds the lock {lock} (pid {holder})",
                hint="stop that one first",
            )
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def write(self, health: Health, error: str | None = None, **fields: object) -> None:
        """Write the status document: the common head, then the daemon's own fields.

        Not fsynced: it speaks of now, and a daemon's loop must not wait for a disk.
        """
        document = {
            "format": 1,
            "daemon": self._name,
            "version": __version__,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "health": health,
            "error": error,
            **fields,
        }
        data = msgspec.json.format(msgspec.json.encode(document), indent=1)
        write_atomic(self.status_path, data + b"\n", mode=self._mode, durable=False)

    def touch(self) -> None:
        """Say that the document as written still holds."""
        os.utime(self.status_path)

    def close(self) -> None:
        """Give the name back."""
        os.close(self._fd)


def is_fresh(status_path: Path) -> bool:
    """True when the daemon has vouched for its status within FRESH_S."""
    try:
        return time.time() - status_path.stat().st_mtime < FRESH_S
    except OSError:
        return False
