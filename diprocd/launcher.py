"""Starting one process: its command, folders and environment, then launch.sh by posix_spawn.

posix_spawn costs the same however large the worker is; everything slow (mounts, exec) happens
in the child. The child makes its own record, see launch.sh.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import signal
from pathlib import Path

from msgspec import Struct

from bareku.errors import BarekuError
from bareku.files import write_atomic
from diprocd import uids
from diprocd.isolation import Isolation
from diprocd.spec import NodeConfig, Process

MARK = "diprocd-launch"  # in the command line of a launcher until it has become the process
KEY = "DIPROC_KEY"  # in the environment of everything a process starts: `id.gen@run`
NOBODY = "nobody"  # the user of whoever asks for none
EXIT_LOCKED = 75
EXIT_FAILED = 71

_TEXT = Path(__file__).with_name("launch.sh").read_text()
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESET = [signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2]


class Launch(Struct, frozen=True):
    """What a process was started with, beside its entry."""

    uid: int | None
    gid: int | None
    user: str
    has_mounts: bool
    ready_file: Path


def prepare(
    process: Process,
    name: str,
    folder: Path,
    port: int | None,
    config: NodeConfig,
    means: Isolation,
) -> tuple[Launch, list[str]]:
    """Make the folders and the environment file; the launcher's arguments after the cgroups.

    Raises BarekuError or OSError when the process cannot be started as things are.
    """
    uid, gid, user = _account(process, config, means)
    data = Path(config.data) / process.app
    _own(data, 0o700, uid, gid)
    writable = folder / "ready.d"
    _own(writable, 0o755, uid, gid)
    slug, root = _slug(process, config, means)
    has_mounts = slug is not None
    ready = Path("/tmp/.ready") if has_mounts else writable / "ready"  # noqa: S108 - private there
    home = root if root is not None else data
    cwd = home if root is not None and process.cwd is None else Path(process.cwd or "/")
    if root is not None and process.cwd is not None:
        cwd = root / process.cwd
    environment = {
        "PATH": _PATH,
        "HOME": str(home),
        **process.env,
        "DYNO": f"{process.type}.{process.index}",
        "BAREKU_APP": process.app,
        "BAREKU_RELEASE": str(process.release),
        "BAREKU_PROCESS": f"{process.type}.{process.index}",
        "DATA_DIR": "/data" if has_mounts else str(data),
        "DIPROC_READY": str(ready),
        KEY: name,
    }
    if process.token:
        environment["BAREKU_TOKEN"] = process.token
    if port is not None:
        environment["PORT"] = str(port)
    write_atomic(folder / "env", render(environment), mode=0o600, durable=False)
    arguments = [
        str(slug) if slug is not None else "-",
        str(data) if has_mounts else "-",
        str(cwd),
        "-" if uid is None else str(uid),
        "-" if gid is None else str(gid),
        *process.cmd,
    ]
    launch = Launch(uid, gid, user, has_mounts, ready if not has_mounts else Path("tmp/.ready"))
    return launch, arguments


def render(environment: dict[str, str]) -> bytes:
    """The environment as shell text. Raises BarekuError for a name that no shell can export."""
    lines = []
    for name, value in environment.items():
        if not _NAME.fullmatch(name) or "\0" in value:
            raise BarekuError(f"cannot set the environment variable {name[:80]!r}: a bad name")
        lines.append(f"export {name}={shlex.quote(value)}\n")
    return "".join(lines).encode()


def spawn(
    folder: Path, name: str, nofile: int, groups: list[Path], arguments: list[str], log: Path
) -> int:
    """Start the launcher in a session of its own; its pid is the process's pid. Raises OSError."""
    argv = ["/bin/sh", "-c", _TEXT, MARK, _TEXT, "outside", str(folder), str(nofile)]
    argv += [":".join(map(str, groups)) or "-", *arguments]
    if any("\0" in word for word in argv):
        raise BarekuError("cannot run a command with a NUL byte in it")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        argv[0],
        argv,
        {"PATH": _PATH, KEY: name},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o640),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=_RESET,
    )


def _account(
    process: Process, config: NodeConfig, means: Isolation
) -> tuple[int | None, int | None, str]:
    """(uid, gid, name); with `uid_base` who asks for no user in particular gets its app's own."""
    name = process.user
    if not means.user:
        return None, None, pwd.getpwuid(os.geteuid()).pw_name
    if config.uid_base is not None and name == NOBODY:
        uid = uids.uid_of(process.app, config.uid_base, Path(config.data))
        return uid, uid, str(uid)
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise BarekuError(f"cannot run as {name!r}: there is no such user") from None
    return entry.pw_uid, entry.pw_gid, name


def _own(folder: Path, mode: int, uid: int | None, gid: int | None) -> None:
    """Make the folder, the user's own."""
    folder.mkdir(parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_mode & 0o7777 != mode:
        folder.chmod(mode)
    if uid is not None and gid is not None and (found.st_uid, found.st_gid) != (uid, gid):
        os.chown(folder, uid, gid)


def _slug(
    process: Process, config: NodeConfig, means: Isolation
) -> tuple[Path | None, Path | None]:
    """(what to mount at /app, the root folder of the app as the process sees it)."""
    if process.slug is None:
        return None, None
    image = Path(config.slugs) / f"{process.slug}.sqsh"
    unpacked = Path(config.slugs) / process.slug
    if means.mounts and means.images and image.is_file():
        return image, Path("/app")
    if unpacked.is_dir():
        return (unpacked, Path("/app")) if means.mounts else (None, unpacked)
    raise BarekuError(f"cannot run the slug {process.slug}: it is not in {config.slugs}")
