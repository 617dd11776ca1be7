"""A control group around one build: memory and processes of all that it starts, together.

Without root, or where the kernel lets us make none, only the limits of each process hold.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diprocd import cgroup

_OURS = Path("builds")  # all builds of this machine share one parent group

_JOIN = r"""
for group in $1; do echo 0 >"$group/cgroup.procs" || exit 125; done
shift
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Group:
    """The groups of a build, none where there can be none."""

    groups: cgroup.Cgroups
    key: str
    folders: tuple[Path, ...]

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command that joins the groups and then is `command`."""
        if not self.folders:
            return list(command)
        return ["sh", "-c", _JOIN, "join", " ".join(map(str, self.folders)), *command]

    @property
    def has_run_out_of_memory(self) -> bool:
        return bool(self.folders) and cgroup.count_oom(self.groups, self.key) > 0


@contextlib.contextmanager
def around_a_build(memory_bytes: int, processes: int) -> Iterator[Group]:
    """Groups with these limits; nothing that joined them outlives the block."""
    key = uuid.uuid4().hex
    groups = cgroup.probe(_OURS) if os.geteuid() == 0 else cgroup.Cgroups()
    folders: list[Path] = []
    try:
        with contextlib.suppress(OSError):
            folders = cgroup.create(groups, key, memory_bytes, processes, None)
        yield Group(groups, key, tuple(folders))
    finally:
        if folders:
            cgroup.kill(groups, key)
            cgroup.remove(groups, key)


def machine_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
