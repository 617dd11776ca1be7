"""What a machine has left: processor, memory, disk, straight from /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class Load:
    """Reads the machine's load; processor use is that since the last read."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._busy = self._total = 0.0

    def read(self) -> dict[str, float]:
        """cpu (share of all cores, 0 to 1), load1, memory and disk in bytes."""
        found = {"cpu": self._cpu(), "load1": os.getloadavg()[0]}
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path("/proc/meminfo").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in {"MemTotal", "MemAvailable"}:
                    key = "mem_total" if name == "MemTotal" else "mem_free"
                    found[key] = int(rest.split()[0]) * 1024
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._disk)
            found["disk_free"] = disk.f_bavail * disk.f_frsize
        return found

    def _cpu(self) -> float:
        with contextlib.suppress(OSError, ValueError):
            with Path("/proc/stat").open() as file:
                fields = [float(word) for word in file.readline().split()[1:9]]
            total, idle = sum(fields), fields[3] + fields[4]
            busy = total - idle
            share = (busy - self._busy) / max(1.0, total - self._total)
            self._busy, self._total = busy, total
            return round(share, 3)
        return 0.0
