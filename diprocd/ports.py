"""Ports of processes: choosing a free one, and knowing who listens on it."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Collection, Iterable
from pathlib import Path

_LISTEN = "0A"
# how /proc/net/tcp{,6} writes the addresses on which 127.0.0.1 is answered
_LOCAL = frozenset(
    {
        "00000000",
        "0100007F",
        "0" * 32,
        "0" * 24 + "01000000",
        "0000000000000000FFFF00000100007F",
    }
)


def choose(bounds: tuple[int, int], taken: Collection[int]) -> int | None:
    """A port within `bounds` (both included) that nobody listens on; None when all are in use."""
    first, last = bounds
    size = last - first + 1
    start = random.randrange(size)  # noqa: S311 - spreads workers that share a machine
    for step in range(size):
        port = first + (start + step) % size
        if port not in taken and _is_free(port):
            return port
    return None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))  # noqa: S104 - never listened on
            return True
    return False


def listeners() -> dict[int, set[str]]:
    """port -> the inodes of sockets that listen on it for 127.0.0.1."""
    found: dict[int, set[str]] = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/net", name).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, port = fields[1].partition(":")
                if fields[3] == _LISTEN and address in _LOCAL:
                    found.setdefault(int(port, 16), set()).add(fields[9])
    return found


def holds_one(pids: Iterable[int], inodes: Collection[str]) -> bool:
    """True when one of the processes has one of the sockets open."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path) in wanted:  # noqa: PTH115 - thousands of them
                        return True
    return False
