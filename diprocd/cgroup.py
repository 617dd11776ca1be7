"""Control groups of v2 and v1: one folder a process and controller, limits, the kill of all in it.

With both versions mounted (hybrid) v2 says who is in the tree and kills it, v1 holds the limits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from pathlib import Path

from msgspec import Struct

from diprocd.procfs import open_process, read_stat, send

MOUNT = Path("/sys/fs/cgroup")
LIMITS = ("memory", "pids", "cpu")


class Cgroups(Struct, frozen=True):
    """Where this worker makes its groups; None and empty where the host has none for us."""

    v2: Path | None = None
    v2_limits: frozenset[str] = frozenset()
    v1: tuple[tuple[str, Path], ...] = ()

    @property
    def kind(self) -> str | None:
        """`v2`, `v1` or None: which kind the limits come from."""
        if self.v2_limits:
            return "v2"
        if self.v1:
            return "v1"
        return "v2" if self.v2 else None

    @property
    def limits(self) -> list[str]:
        """The limits that can be set here."""
        return sorted(self.v2_limits | {name for name, _ in self.v1})

    def folders(self, key: str) -> list[Path]:
        """The groups of one process."""
        return ([self.v2 / key] if self.v2 else []) + [folder / key for _, folder in self.v1]


def probe(run: Path) -> Cgroups:
    """Make our folders where the host lets us. Workers with other run folders have others."""
    ours = "bareku-" + hashlib.sha256(str(run).encode()).hexdigest()[:8]
    v2 = None
    v2_limits: frozenset[str] = frozenset()
    base = _v2_base()
    if base is not None:
        folder = base / ours
        if _can_make(folder):
            v2 = folder
            v2_limits = _delegate(base, folder)
    v1 = []
    for name in LIMITS:
        if name not in v2_limits and (MOUNT / name / "cgroup.procs").exists():
            folder = MOUNT / name / ours
            if _can_make(folder):
                v1.append((name, folder))
    return Cgroups(v2, v2_limits, tuple(v1))


def create(
    groups: Cgroups, key: str, memory_bytes: int | None, pids: int | None, cpu: float | None
) -> list[Path]:
    """Make the groups of a process and set its limits; the folders it shall join."""
    for folder in groups.folders(key):
        folder.mkdir(exist_ok=True)
    if groups.v2 and groups.v2_limits:
        folder = groups.v2 / key
        if "memory" in groups.v2_limits:
            _set(folder / "memory.max", "max" if memory_bytes is None else str(memory_bytes))
            _set(folder / "memory.swap.max", "0" if memory_bytes else "max")
            _set(folder / "memory.oom.group", "1")
        if "pids" in groups.v2_limits:
            _set(folder / "pids.max", "max" if pids is None else str(pids))
        if "cpu" in groups.v2_limits:
            _set(folder / "cpu.max", f"{int(cpu * 100_000)} 100000" if cpu else "max 100000")
    for name, parent in groups.v1:
        folder = parent / key
        if name == "memory":
            _set(folder / "memory.limit_in_bytes", str(memory_bytes or -1))
        elif name == "pids":
            _set(folder / "pids.max", "max" if pids is None else str(pids))
        elif name == "cpu":
            _set(folder / "cpu.cfs_quota_us", str(int(cpu * 100_000) if cpu else -1))
    return groups.folders(key)


def members(groups: Cgroups, key: str) -> list[int]:
    """The pids in the groups that still run."""
    found: set[int] = set()
    for folder in groups.folders(key):
        with contextlib.suppress(OSError):
            found |= {int(word) for word in (folder / "cgroup.procs").read_text().split()}
    stats = (read_stat(pid) for pid in found)
    return [one.pid for one in stats if one is not None and one.is_alive]


def kill(groups: Cgroups, key: str) -> None:
    """KILL everything in the groups; where one write cannot do it, forks are forbidden first."""
    for folder in groups.folders(key):
        with contextlib.suppress(OSError):
            (folder / "cgroup.kill").write_text("1")
            continue
        _set(folder / "pids.max", "0")
    for pid in members(groups, key):
        found = read_stat(pid)
        pidfd = open_process(pid, found.start_ticks) if found else None
        if pidfd is not None:
            if pid in members(groups, key):
                send(pidfd, signal.SIGKILL)
            os.close(pidfd)


def count_oom(groups: Cgroups, key: str) -> int:
    """How often the kernel killed something in the group for want of memory."""
    for folder in groups.folders(key):
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                for line in (folder / name).read_text().splitlines():
                    word, _, number = line.partition(" ")
                    if word == "oom_kill":
                        return int(number)
    return 0


def remove(groups: Cgroups, key: str) -> bool:
    """Remove the groups of a process; False when something in them lives."""
    is_clean = True
    for folder in groups.folders(key):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            is_clean = False
    return is_clean


def leftovers(groups: Cgroups) -> set[str]:
    """The keys that have groups here."""
    parents = ([groups.v2] if groups.v2 else []) + [folder for _, folder in groups.v1]
    found: set[str] = set()
    for parent in parents:
        with contextlib.suppress(OSError):
            found |= {entry.name for entry in os.scandir(parent) if entry.is_dir()}
    return found


def _v2_base() -> Path | None:
    """The v2 group below which we may make ours: our own unit's, else the root."""
    root = next(
        (p for p in (MOUNT, MOUNT / "unified") if (p / "cgroup.controllers").exists()), None
    )
    if root is None:
        return None
    own = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = line[3:].strip("/")
    if own.endswith("/supervisor"):
        own = own.removesuffix("/supervisor")
    return root / own


def _delegate(base: Path, folder: Path) -> frozenset[str]:
    """Hand the controllers down to `folder`'s children; a unit's own group must be empty first."""
    try:
        have = set((base / "cgroup.controllers").read_text().split()) & set(LIMITS)
        if not have:
            return frozenset()
        if (base / "cgroup.type").exists():  # not the root
            leaf = base / "supervisor"
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text("0")
        for parent in (base, folder):
            for name in sorted(have):
                _set(parent / "cgroup.subtree_control", f"+{name}")
        return frozenset(set((folder / "cgroup.subtree_control").read_text().split()) & have)
    except OSError:
        return frozenset()


def _can_make(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
        return os.access(folder / "cgroup.procs", os.W_OK)
    except OSError:
        return False


def _set(path: Path, value: str) -> None:
    with contextlib.suppress(OSError):
        path.write_text(value)
