"""Pack a built tree into a slug: one squashfs image, equal bytes for equal trees.

Beside `<uuid>.sqsh` lies `<uuid>.json`, what the build said about it, so that the same tree need
not be built again. Ships nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bareku.contents import objection
from bareku.errors import BarekuError
from bareku.files import fsync_folder, write_atomic
from bareku.names import parse_slug
from bareku.receive.build import Built

MAX_SLUG_BYTES = 2 * 2**30

# uuid5's first argument: any fixed one, so that a slug's name says what it was made from
_NAMESPACE = uuid.UUID("2765e91b-50c4-4d04-b92c-f38f82661b2a")

# Equal trees give equal images only with all of these. zstd 3: the default level 15 takes 20 times
# as long for 12 % less. Everything is root's: processes run as others and may write nothing.
_FLAGS = (
    "-noappend", "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "3",
    "-mkfs-time", "0", "-all-time", "0", "-all-root", "-no-xattrs", "-root-mode", "755",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slug:
    """A packed build: its name, its image, and what the build said."""

    uuid: str
    path: Path
    size_bytes: int
    sha256: str
    built: Built


class _Manifest(msgspec.Struct, kw_only=True):
    format: int = 1
    uuid: str
    sha256: str
    size_bytes: int
    process_types: dict[str, str]
    display_name: str
    config_vars: dict[str, str]
    runtime: str
    isolation: str


def slug_id(tree_sha: str, buildpack_sha: str, stack: str, runtime: str) -> str:
    """The name of the slug that this input makes: same input, same name."""
    return str(uuid.uuid5(_NAMESPACE, f"{tree_sha}\n{buildpack_sha}\n{stack}\n{runtime}\n1"))


def pack(tree: Path, target_dir: Path, *, name: str, built: Built) -> Slug:
    """Write `<target_dir>/<name>.sqsh` and its manifest.

    Modes become 644 and 755; sockets and pipes are left out. Raises BarekuError for a device, for
    a link out of the slug, and when the disk is full; nothing half-made stays behind.
    """
    normalise(tree)
    target_dir.mkdir(parents=True, exist_ok=True)
    image = target_dir / f"{parse_slug(name)}.sqsh"
    part = target_dir / f".{name}.{os.getpid()}.part"
    try:
        _squash(tree, part)
        with part.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        size = part.stat().st_size
        if size > MAX_SLUG_BYTES:
            raise BarekuError(
                f"cannot pack the slug: it has {size} bytes, at most {MAX_SLUG_BYTES} are allowed",
                hint="leave out what the app does not need at run time, with .slugignore",
            )
        slug = Slug(name, image, size, sha256, built)
        part.replace(image)
        fsync_folder(target_dir)
        _save(slug)
        return slug
    finally:
        part.unlink(missing_ok=True)


def find(target_dir: Path, name: str) -> Slug | None:
    """The slug of that name when it is there whole, else None."""
    image = target_dir / f"{parse_slug(name)}.sqsh"
    try:
        found = msgspec.json.decode(image.with_suffix(".json").read_bytes(), type=_Manifest)
        is_whole = image.stat().st_size == found.size_bytes and found.uuid == name
    except (OSError, msgspec.MsgspecError):
        return None
    if not is_whole:
        return None
    built = Built(
        found.process_types, found.display_name, found.config_vars, found.runtime, found.isolation
    )
    return Slug(name, image, found.size_bytes, found.sha256, built)


def load(target_dir: Path, name: str) -> Slug:
    """The slug of a release. Raises BarekuError when it is no longer there."""
    found = find(target_dir, name)
    if found is None:
        raise BarekuError(
            f"cannot use the slug {name}: it is missing or damaged",
            hint="push the commit again: git push bareku COMMIT:master",
        )
    return found


def human_size(size_bytes: int) -> str:
    """`488KB`, `11MB`: as the transcript says it."""
    kib = -(-size_bytes // 1024)
    return f"{kib}KB" if kib < 1024 else f"{size_bytes / 2**20:.0f}MB"


def normalise(tree: Path) -> None:
    """Give every file 644 or 755 and every folder 755; refuse what a slug may not hold."""
    top = os.fspath(tree.resolve())
    pending = [top]
    os.chmod(top, 0o755)  # noqa: S103, PTH101 - the app must be able to enter it
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                    os.unlink(entry.path)  # noqa: PTH108 - a path as text: there are 10 000s
                    continue
                link = os.readlink(entry.path) if stat.S_ISLNK(mode) else ""  # noqa: PTH115
                rights = mode & ~(stat.S_ISUID | stat.S_ISGID)
                if why := objection(entry.path[len(top) + 1 :], rights, link):
                    raise BarekuError(
                        f"cannot pack the slug: {why}", hint="put the file itself into the app"
                    )
                if link:
                    continue
                if stat.S_ISDIR(mode):
                    pending.append(entry.path)
                wanted = 0o755 if stat.S_ISDIR(mode) or mode & 0o111 else 0o644
                if stat.S_IMODE(mode) != wanted:
                    os.chmod(entry.path, wanted)  # noqa: PTH101 - see above


def _squash(tree: Path, target: Path) -> None:
    program = shutil.which(
        "mksquashfs", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    )
    if program is None:
        raise BarekuError(
            "cannot pack the slug: mksquashfs is missing", hint="apt-get install squashfs-tools"
        )
    argv = [program, str(tree), str(target), *_FLAGS]
    done = subprocess.run(
        argv, env={"LC_ALL": "C"}, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BarekuError(
            f"cannot pack the slug: {said[-1] if said else f'exit code {done.returncode}'}"
        )


def _save(slug: Slug) -> None:
    built = slug.built
    manifest = _Manifest(
        uuid=slug.uuid,
        sha256=slug.sha256,
        size_bytes=slug.size_bytes,
        process_types=dict(built.process_types),
        display_name=built.display_name,
        config_vars=dict(built.config_vars),
        runtime=built.runtime,
        isolation=built.isolation,
    )
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    write_atomic(slug.path.with_suffix(".json"), data + b"\n")
