"""The slug store of an app node: verified images, unpacked only where they cannot be mounted.

`<uuid>.sqsh` exists only whole and checked; `<uuid>/` beside it when this node unpacks. Speaks no
protocol and starts no process of an app.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from bareku.contents import objection
from bareku.errors import BarekuError
from bareku.files import fsync_folder
from bareku.names import parse_slug

_CHUNK = 1 << 20
_STALE_S = 3600.0  # a transfer that was cut off leaves its part behind only when the node died
_SBIN = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# mounts $1 at $2 in a namespace of its own; says what it holds that no slug may hold, and the links
_LOOK = r"""
set -eu
mount -t squashfs -o loop,ro,nodev,nosuid "$1" "$2"
cd "$2"
find . \( ! -type f ! -type d ! -type l -o ! -type l -perm /6000 \) -printf 'x%P\0%m\0%y\0' -quit
find . -type l -printf 'l%P\0%l\0\0'
"""


class Store:
    """The images of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def image(self, uuid: str) -> Path:
        return self.folder / f"{parse_slug(uuid)}.sqsh"

    def missing(self, uuids: Iterable[str]) -> list[str]:
        """Those that are not here, in the order asked."""
        return [uuid for uuid in uuids if not self.image(uuid).is_file()]

    def put(self, uuid: str, size_bytes: int, sha256: str, stream: IO[bytes]) -> None:
        """Read an image from `stream` and keep it once size, digest and content are right.

        Raises BarekuError, and leaves nothing behind then.
        """
        image = self.image(uuid)
        part = self.folder / f".{uuid}.{os.getpid()}.part"
        with _cleaned(uuid, part):
            self._receive(part, size_bytes, stream, sha256)
            self._keep(part, image)

    def patch(
        self,
        uuid: str,
        size_bytes: int,
        sha256: str,
        base: str,
        delta_bytes: int,
        stream: IO[bytes],
    ) -> None:
        """As `put`, of what `zstd --patch-from` made between the image `base` and this one."""
        image = self.image(uuid)
        part = self.folder / f".{uuid}.{os.getpid()}.part"
        delta = self.folder / f".{uuid}.{os.getpid()}.delta.part"
        with _cleaned(uuid, part, delta):
            self._receive(delta, delta_bytes, stream)
            self._room(part, size_bytes)
            _apply(self.image(base), delta, part, size_bytes)
            if part.stat().st_size != size_bytes or _digest(part) != sha256:
                raise BarekuError(
                    f"cannot store {uuid}: the difference does not make it from {base}"
                )
            with part.open("rb") as file:
                os.fsync(file.fileno())
            self._keep(part, image)

    def _keep(self, part: Path, image: Path) -> None:
        self._admit(part, image.stem)
        part.replace(image)
        fsync_folder(self.folder)

    def collect(self, keep: Iterable[str]) -> list[str]:
        """Remove the slugs that are not in `keep` and that no process uses; says which."""
        kept = {parse_slug(uuid) for uuid in keep} | set(self._in_use())
        removed = []
        for image in sorted(self.folder.glob("*.sqsh")):
            if image.stem not in kept:
                image.unlink()
                shutil.rmtree(self.folder / image.stem, ignore_errors=True)
                removed.append(image.stem)
        for part in (*self.folder.glob(".*.part"), *self.folder.glob(".*.unpack")):
            with contextlib.suppress(OSError):
                if time.time() - part.stat().st_mtime > _STALE_S:
                    shutil.rmtree(part) if part.is_dir() else part.unlink()
        return removed

    def digest(self, uuid: str) -> str:
        """sha256 of the image as it is on disk now."""
        try:
            return _digest(self.image(uuid))
        except OSError as exc:
            raise BarekuError(f"cannot read slug {uuid}: {exc.strerror}") from exc

    def _room(self, part: Path, size_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < size_bytes:
            raise BarekuError(
                f"cannot store {_name(part)}: {size_bytes} bytes do not fit into {free} free bytes",
                hint="make room on the node's disk, or remove old releases",
            )

    def _receive(
        self, part: Path, size_bytes: int, stream: IO[bytes], sha256: str | None = None
    ) -> None:
        """Read exactly `size_bytes` into `part`, and check their digest when it is known."""
        self._room(part, size_bytes)
        digest = hashlib.sha256()
        left = size_bytes
        with part.open("xb", buffering=0) as file:
            while left and (block := stream.read(min(left, _CHUNK))):
                digest.update(block)
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]
                left -= len(block)
            if left:
                raise BarekuError(
                    f"cannot store {_name(part)}: it ended after {size_bytes - left} of "
                    f"{size_bytes} bytes"
                )
            if sha256 is not None and digest.hexdigest() != sha256:
                raise BarekuError(
                    f"cannot store {_name(part)}: its sha256 is not the one announced"
                )
            os.fsync(file.fileno())

    def _admit(self, part: Path, uuid: str) -> None:
        """Look into the image; on a node that cannot mount, unpack it."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".", suffix=".unpack") as private:
            mountpoint = Path(private) / "tree"
            mountpoint.mkdir()
            entries: Iterable[tuple[str, int, str]] | None = _mounted(part, mountpoint)
            if entries is None:
                mountpoint.rmdir()
                _unsquash(part, mountpoint, uuid)
                entries = _walked(mountpoint)
            for path, mode, link in entries:
                if why := objection(path, mode, link):
                    raise BarekuError(f"cannot store {uuid}: {why}")
            if (mountpoint / ".").exists() and any(mountpoint.iterdir()):
                target = self.folder / uuid
                if target.exists():  # of an earlier image of that name; who runs in it keeps it
                    target.rename(Path(private) / "old")
                mountpoint.rename(target)

    def _in_use(self) -> Iterator[str]:
        """Slugs that a process stands in, or that are mounted."""
        for link in (*Path("/proc").glob("[0-9]*/cwd"), *Path("/proc").glob("[0-9]*/root")):
            with contextlib.suppress(OSError, ValueError):
                yield link.readlink().relative_to(self.folder.resolve()).parts[0]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                file = Path(backing.read_text().rstrip("\n"))
                if file.parent == self.folder.resolve():
                    yield file.stem


def _mounted(image: Path, mountpoint: Path) -> list[tuple[str, int, str]] | None:
    """What stands out in the image, by mounting it; None when this node cannot mount."""
    if os.geteuid() != 0:
        return None
    argv = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _LOOK, "look"]
    done = subprocess.run(
        [*argv, str(image), str(mountpoint)],
        env={"PATH": _SBIN, "LC_ALL": "C"}, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return None
    fields = os.fsdecode(done.stdout).split("\0")
    kinds = {"b": 0o060000, "c": 0o020000, "p": 0o010000, "s": 0o140000, "d": 0o040000}
    entries = []
    for first, second, third in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        if first.startswith("l"):
            entries.append((first[1:], 0o120777, second))
        else:
            entries.append((first[1:], kinds.get(third, 0o100000) | int(second, 8), ""))
    return entries


def _unsquash(image: Path, target: Path, uuid: str) -> None:
    argv = ["unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-d", str(target), str(image)]
    try:
        done = subprocess.run(
            argv, env={"PATH": _SBIN, "LC_ALL": "C"}, capture_output=True, text=True,
            errors="replace", check=False,
        )  # fmt: skip
    except FileNotFoundError as exc:
        raise BarekuError(
            f"cannot store {uuid}: unsquashfs is missing", hint="apt-get install squashfs-tools"
        ) from exc
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BarekuError(
            f"cannot store {uuid}: it cannot be unpacked: {said[-1] if said else done.returncode}"
        )


def _walked(tree: Path) -> Iterator[tuple[str, int, str]]:
    """Path, mode and link of everything below `tree`."""
    pending = [str(tree)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                link = os.readlink(entry.path) if entry.is_symlink() else ""  # noqa: PTH115
                yield entry.path[len(str(tree)) + 1 :], mode, link
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


@contextlib.contextmanager
def _cleaned(uuid: str, *parts: Path) -> Iterator[None]:
    """Whatever happens, no part stays; the system's errors become ours."""
    try:
        yield
    except OSError as exc:
        raise BarekuError(f"cannot store {uuid}: {exc.strerror}") from exc
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _apply(base: Path, delta: Path, target: Path, size_bytes: int) -> None:
    """Make `target` of `base` and the difference; it cannot grow beyond `size_bytes`."""
    unpack = [
        "zstd",
        "-q",
        "-d",
        "--long=31",
        f"--patch-from={base}",
        str(delta),
        "-o",
        str(target),
    ]
    done = subprocess.run(
        ["prlimit", f"--fsize={size_bytes}", "--", *unpack],
        env={"PATH": _SBIN, "LC_ALL": "C"}, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines()
        why = said[-1] if said else f"zstd ended with {done.returncode}"
        raise BarekuError(f"cannot store {_name(delta)}: its difference cannot be applied: {why}")


def _name(part: Path) -> str:
    return part.name.split(".")[1]
