"""What this node can put between processes: users, mounts, image mounts, cgroups.

Each is tried for real once a boot; what is missing is reported, never assumed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from bareku.files import write_atomic
from diprocd import cgroup

# an empty squashfs (zstd, as slugs are), padded to 4096 bytes when used
_IMAGE = (
    "XmfFM0RR910000000062000001^^KNzyJXN1ONa40000000000pa1{>00000m;e9(00000|NsC0|NsC0U;qFB00000"
    "fB*mh00000fB*mh00000iU0rr000009snq{Fa01OtpET5LIeu%83X_SznqjZ1<&>T@sC9S2!H?p00000004jh0000"
    "0000Dl00000k^"
)
_TRY = ["unshare", "-m", "--propagation", "private", "/bin/sh", "-c"]


class Isolation(Struct, frozen=True):
    """The node's means; the reasons say what is missing and why."""

    user: bool = False
    mounts: bool = False
    images: bool = False
    cgroup: str | None = None
    limits: list[str] = []
    missing: dict[str, str] = {}


def probe(run: Path, wanted: Literal["auto", "none"]) -> tuple[Isolation, cgroup.Cgroups]:
    """Find out what works here; kept in `<run>/isolation.json` until the next boot."""
    if wanted == "none":
        reason = "switched off in the configuration"
        return Isolation(missing=dict.fromkeys(("user", "mounts", "cgroup"), reason)), (
            cgroup.Cgroups()
        )
    groups = cgroup.probe(run)
    known = run / "isolation.json"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    stamp = f"{boot} {os.geteuid()} 1"
    with contextlib.suppress(OSError, msgspec.MsgspecError, ValueError):
        head, _, body = known.read_bytes().partition(b"\n")
        if head.decode() == stamp and _has_mount_points():
            return msgspec.json.decode(body, type=Isolation), groups
    found = _try_all(run, groups)
    if _has_mount_points() or not found.mounts:
        with contextlib.suppress(OSError):
            write_atomic(known, f"{stamp}\n".encode() + msgspec.json.encode(found), durable=False)
    return found, groups


def _try_all(run: Path, groups: cgroup.Cgroups) -> Isolation:
    import shutil

    missing: dict[str, str] = {}
    is_root = os.geteuid() == 0
    has_user = is_root and bool(shutil.which("setpriv"))
    if not has_user:
        missing["user"] = "setpriv is not installed" if is_root else "not root"
    has_mounts = has_images = False
    if not is_root:
        missing["mounts"] = missing["images"] = "not root"
    else:
        problem = _make_mount_points() or _run("mount -t tmpfs tmpfs /tmp")
        has_mounts = problem is None
        if problem:
            missing["mounts"] = missing["images"] = problem
        else:
            problem = _try_image(run)
            has_images = problem is None
            if problem:
                missing["images"] = problem
    if groups.kind is None:
        missing["cgroup"] = "no writable cgroup hierarchy"
    for name in cgroup.LIMITS:
        if name not in groups.limits:
            missing[name] = "no writable cgroup controller"
    return Isolation(has_user, has_mounts, has_images, groups.kind, groups.limits, missing)


def _has_mount_points() -> bool:
    return Path("/app").is_dir() and Path("/data").is_dir()


def _make_mount_points() -> str | None:
    try:
        for name in ("/app", "/data"):
            Path(name).mkdir(exist_ok=True)
    except OSError as exc:
        return f"cannot make {name}: {exc.strerror}"
    return None


def _try_image(run: Path) -> str | None:
    import base64

    image = run / ".probe.sqsh"
    try:
        image.write_bytes(base64.b85decode(_IMAGE).ljust(4096, b"\0"))
        return _run('mount -t squashfs -o loop,ro "$1" /app', str(image))
    except OSError as exc:
        return str(exc)
    finally:
        image.unlink(missing_ok=True)


def _run(script: str, *arguments: str) -> str | None:
    """None when the script works in a mount namespace of its own, else its complaint."""
    import subprocess  # here, as above: once a boot, not at every start

    try:
        done = subprocess.run(
            [*_TRY, script, "probe", *arguments], capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError) as exc:
        return str(exc)
    if done.returncode == 0:
        return None
    return " ".join(done.stderr.decode(errors="replace").split())[:200] or "it fails"
