"""An app's releases on disk: the manifests, the current number, the note's `VER SHA` lines.

`releases/<app>/<n>.json` is written before a release runs and never changed; `apps/<app>.ver`
says which one is current and is written last: that write is the commit of a deploy.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bareku import config
from bareku.app import Release
from bareku.files import fsync_folder, write_atomic
from bareku.paths import Root


def current_number(root: Root, app: str) -> int | None:
    """The number of the current release, None before the first."""
    try:
        return int((root.apps / f"{app}.ver").read_text())
    except FileNotFoundError:
        return None


def current(root: Root, app: str) -> Release | None:
    """The current release, None before the first."""
    number = current_number(root, app)
    return None if number is None else load(root, app, number)


def load(root: Root, app: str, number: int) -> Release:
    """Release `number`. Raises BarekuError when its manifest is missing or damaged."""
    return config.load(_manifest(root, app, number), Release)


def numbers(root: Root, app: str) -> list[int]:
    """The numbers of every release that became current, oldest first."""
    try:
        lines = (root.apps / f"{app}.versions").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [int(line.split()[0]) for line in lines if line[:1].isdigit()]


def next_number(root: Root, app: str) -> int:
    """One more than any number ever given, so that a failed release's number is not used again
    while its processes may still be going down, and the first is 1."""
    taken = [int(path.stem) for path in (root.releases / app).glob("*.json") if path.stem.isdigit()]
    return max([*taken, current_number(root, app) or 0]) + 1


def write(root: Root, release: Release) -> None:
    """Store a manifest (0600: it holds the environment) before its processes start."""
    path = _manifest(root, release.app, release.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(release), indent=1)
    write_atomic(path, data + b"\n", mode=0o600)


def forget(root: Root, app: str, number: int) -> None:
    """Remove the manifest of a release that never became current."""
    _manifest(root, app, number).unlink(missing_ok=True)


def forget_unborn(root: Root, app: str) -> None:
    """Remove the manifests of releases that never became current."""
    now = current_number(root, app) or 0
    for path in (root.releases / app).glob("*.json"):
        if path.stem.isdigit() and int(path.stem) > now:
            path.unlink()


def make_current(root: Root, release: Release) -> None:
    """Commit: append the note's line (version, commit, time, slug, user), then move the number.

    A crash between the two is repaired by the next call: a line is not written twice.
    """
    if release.number not in numbers(root, release.app):
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        who = release.created_by or "-"
        line = f"{release.number} {release.commit} {stamp} {release.slug} {who}\n"
        fd = os.open(
            root.apps / f"{release.app}.versions", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644
        )
        try:
            os.write(fd, line.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        fsync_folder(root.apps)
    write_atomic(root.apps / f"{release.app}.ver", f"{release.number}\n".encode())


def _manifest(root: Root, app: str, number: int) -> Path:
    return root.releases / app / f"{number}.json"
