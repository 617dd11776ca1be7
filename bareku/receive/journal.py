"""The journal of a deploy in flight: `journal/<app>.json`, from the first start to the commit."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import Struct

from bareku import config
from bareku.files import fsync_folder, write_atomic
from bareku.paths import Root


class Phase(StrEnum):
    """What the processes and routes shall be while the entry lives."""

    PREPARING = "preparing"  # the new release's `release` command runs, nothing else of it
    CHECKING = "checking"  # the new release runs beside; the routes are the old ones
    SWITCHED = "switched"  # the routes are the new ones; the old release still runs


class Entry(Struct, frozen=True, kw_only=True):
    """A deploy in flight. `ref` moves to `commit` when git accepts the push."""

    app: str
    phase: Phase
    release: int
    previous: int | None
    ref: str
    commit: str
    format: int = 1


def read(root: Root, app: str) -> Entry | None:
    """The deploy in flight, None when there is none."""
    path = root.journal / f"{app}.json"
    return config.load(path, Entry) if path.exists() else None


def write(root: Root, entry: Entry) -> None:
    """Begin or advance a deploy; durable when this returns."""
    write_atomic(root.journal / f"{entry.app}.json", msgspec.json.encode(entry) + b"\n")


def clear(root: Root, app: str) -> None:
    """End the deploy."""
    (root.journal / f"{app}.json").unlink(missing_ok=True)
    fsync_folder(root.journal)
