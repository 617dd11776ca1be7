"""A build's confinement: a private root, pid namespace and limits, as an argv. Runs nothing itself.

`ROOT` (we are root): the build is uid 32767 in its own mount, pid, ipc and uts namespaces.
`USER`: the same inside a user namespace. `NONE` (the kernel or a container forbids both): only
limits and a clean environment; the build could read what we can read.

The work folder becomes the build's `/`, so that `/app` and `/cache` share one mount: links and
renames between them stay cheap. The host's programs are bound into it read-only; nothing else
of the host (homes, repositories, keys, other builds) is there.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

BUILD_UID = 32767  # the largest uid that every tool accepts; in no one's passwd but the build's

_HOST = ("/usr", "/etc", "/opt", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_HIDDEN = ("/etc/bareku",)

_PASSWD = f"root:x:0:0:root:/root:/bin/sh\nbuild:x:{BUILD_UID}:{BUILD_UID}:build:/app:/bin/bash\n"
_GROUP = f"root:x:0:\nbuild:x:{BUILD_UID}:\n"

# pid 1 of the build's namespaces; $1 is the work folder, then `how path [target]` up to --
_INIT = r"""
set -eu
work=$1; shift
mount --bind "$work" "$work"
cd "$work"
while [ "$1" != -- ]; do
    case "$1" in
        ro) mount --rbind "$2" "$3"; mount -o remount,ro,nosuid,nodev,bind "$3"; shift ;;
        dev) mount --bind "$2" ".$2" ;;
        hide) mount -t tmpfs -o ro,size=4k,mode=000 tmpfs ".$2" ;;
        shm) mount -t tmpfs -o nosuid,nodev,size=256m,mode=1777 tmpfs ".$2" ;;
    esac
    shift 2
done
shift
mount -t proc -o nosuid,nodev,noexec proc proc 2>/dev/null || mount --rbind /proc proc
pivot_root . .host
cd /
umount -l /.host
set +e
"$@"
exit $?
"""


class Kind(StrEnum):
    """How far a build is kept apart from the machine."""

    ROOT = "root"
    USER = "user"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Quotas:
    """What the kernel holds each process of a build to."""

    processes: int = 1024
    files: int = 8192
    file_bytes: int = 2 * 2**30
    data_bytes: int = 4 * 2**30


@functools.cache
def available() -> Kind:
    """The strongest kind that this machine lets us have; tried, not guessed."""
    wanted = (Kind.ROOT, Kind.USER) if os.geteuid() == 0 else (Kind.USER,)
    return next((kind for kind in wanted if is_possible(kind)), Kind.NONE)


def is_possible(kind: Kind) -> bool:
    """True when builds can be confined so; found out by doing it."""
    if kind is Kind.NONE:
        return True
    mounts = "mount -t tmpfs tmpfs /tmp && mount -t proc proc /proc"
    done = subprocess.run(
        [*_namespaces(kind), "sh", "-c", mounts],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One build's confinement around `work`, whose `app` is the tree to build."""

    kind: Kind
    work: Path
    quotas: Quotas
    mounts: tuple[str, ...]

    def inside(self, path: Path) -> str:
        """`work/app` as the build sees it: `/app`, or the same path when there is no root."""
        if self.kind is Kind.NONE:
            return str(path)
        return "/" + str(path.relative_to(self.work))

    def argv(self, command: Sequence[str], *, cwd: Path) -> list[str]:
        """The command that runs `command` confined."""
        quotas = self.quotas
        confined = [
            "prlimit", f"--nproc={quotas.processes}", f"--nofile={quotas.files}", "--core=0",
            f"--fsize={quotas.file_bytes}", f"--data={quotas.data_bytes}",
            "env", f"--chdir={self.inside(cwd)}", "nice", "-n", "5", *command,
        ]  # fmt: skip
        unprivileged = ["setpriv", "--no-new-privs", "--"]
        if self.kind is Kind.NONE:
            return [*unprivileged, *confined]
        if self.kind is Kind.ROOT:
            unprivileged = [
                "setpriv", f"--reuid={BUILD_UID}", f"--regid={BUILD_UID}", "--clear-groups",
                "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--",
            ]  # fmt: skip
        else:
            ids = [f"--map-user={BUILD_UID}", f"--map-group={BUILD_UID}"]
            unprivileged = ["unshare", "--user", *ids, "--", *unprivileged]
        return [
            "setpriv", "--pdeathsig", "KILL", "--",
            *_namespaces(self.kind), "sh", "-c", _INIT, "init", str(self.work),
            *self.mounts, "--", *unprivileged, *confined,
        ]  # fmt: skip


def prepare(
    work: Path,
    *,
    kind: Kind,
    quotas: Quotas,
    programs: Mapping[str, Path],
    readable: Sequence[Path] = (),
    hidden: Sequence[Path] = (),
) -> Sandbox:
    """Lay out `work` as the root of a build.

    `programs` (name -> file) appear in `/bareku/bin`, `readable` files under their own path;
    `hidden` folders of the host are masked.
    """
    tools = work / "bareku" / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    _folder(work / "tmp", 0o1777)
    if kind is Kind.NONE:
        for name, program in programs.items():
            (tools / name).unlink(missing_ok=True)
            (tools / name).symlink_to(program)
        return Sandbox(kind, work, quotas, ())
    mounts: list[str] = []
    for folder in map(Path, _HOST):
        here = work / folder.relative_to("/")
        if folder.is_symlink():
            if not here.is_symlink():
                here.symlink_to(folder.readlink())
        elif folder.is_dir():
            _folder(here)
            mounts += ["ro", str(folder), f".{folder}"]
    for name, text in (("passwd", _PASSWD), ("group", _GROUP)):
        (work / "bareku" / name).write_text(text)
        mounts += ["ro", str(work / "bareku" / name), f"./etc/{name}"]
    for folder in (*map(Path, _HIDDEN), *hidden):
        if folder.is_dir() and _is_bound(folder):
            mounts += ["hide", str(folder)]
    for device in _DEVICES:
        _file(work / "dev" / device)
        mounts += ["dev", f"/dev/{device}"]
    _folder(work / "dev" / "shm")
    mounts += ["shm", "/dev/shm"]  # noqa: S108 - the build's own
    for link, end in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"),
                      ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")):  # fmt: skip
        if not (work / "dev" / link).is_symlink():
            (work / "dev" / link).symlink_to(end)
    for name, program in programs.items():
        _file(tools / name)
        mounts += ["ro", str(program.resolve()), f"./bareku/bin/{name}"]
    for file in {Path("/etc/resolv.conf").resolve(), *readable}:
        if file.is_file() and not _is_bound(file):
            _file(work / file.relative_to("/"))
            mounts += ["ro", str(file), f".{file}"]
    for name in ("proc", ".host", "run", "var"):
        _folder(work / name)
    if not (work / "var" / "tmp").is_symlink():
        (work / "var" / "tmp").symlink_to("../tmp")
    return Sandbox(kind, work, quotas, tuple(mounts))


def give(folder: Path, kind: Kind) -> None:
    """Make everything below `folder` the build user's; links themselves, never their ends.

    A folder that is his is taken to be his whole: a cache may hold 100 000 files.
    """
    if kind is not Kind.ROOT or folder.stat().st_uid == BUILD_UID:
        return
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(f"{here}/{name}", BUILD_UID, BUILD_UID, follow_symlinks=False)
    os.chown(folder, BUILD_UID, BUILD_UID)


def _namespaces(kind: Kind) -> list[str]:
    private = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    if kind is Kind.USER:
        private = ["--user", "--map-root-user", *private]
    return (
        ["unshare", *private, "--propagation", "private", "--"]
        if kind is Kind.ROOT
        else ["unshare", *private, "--"]
    )


def _is_bound(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _HOST)


def _folder(path: Path, mode: int = 0o755) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)


def _file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def uv_program() -> Path | None:
    """The `uv` of our own environment, else one on PATH."""
    import sys

    beside = Path(sys.prefix) / "bin" / "uv"
    if beside.is_file():
        return beside
    found = shutil.which("uv")
    return Path(found) if found else None
