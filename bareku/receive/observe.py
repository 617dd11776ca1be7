"""What diprocd says is running, as a deploy needs it: ready, broken, switched, gone.

`verdict` and `is_switched` are pure; `watch` reads the master's status file until they decide.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bareku.app import Release
from bareku.daemon import is_fresh
from bareku.errors import BarekuError
from bareku.files import read_json
from bareku.watch import LOOK_S, Watcher
from diprocd.spec import process_id

WITHOUT_INOTIFY_S = 0.05  # between two looks at the file, where the kernel does not tell

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """A process of the new release that did not come up."""

    name: str
    node: str
    reason: str


def expected(release: Release) -> dict[str, str]:
    """Process id -> `web.1` of everything the release runs."""
    return {
        process_id(release.app, release.number, kind, index): f"{kind}.{index}"
        for kind, count in release.formation.items()
        for index in range(1, count + 1)
    }


def verdict(status: Status, release: Release) -> bool | Broken:
    """True when every process is ready and every frontend reaches them, False when not yet."""
    wanted = expected(release)
    ready = set()
    for process in status.get("processes", []):
        name = wanted.get(process["id"])
        if name is None:
            continue
        if process.get("fails", 0) or process["state"] in {"backoff", "exited"}:
            return Broken(name, process.get("node", "?"), why(process))
        if process["ready"] and process["state"] == "running":
            ready.add(process["id"])
    for entry in status.get("unplaced", []):
        if entry["id"] in wanted:
            return Broken(wanted[entry["id"]], "no node", entry["reason"])
    if len(ready) < len(wanted):
        return False
    webs = release.formation.get("web", 0)
    return all(
        handlers(frontend, release) >= webs
        for frontend in status.get("frontends", {}).values()
        if frontend["state"] == "up"
    )


def command_ended(status: Status, release: Release) -> bool | Broken:
    """True when the release's `release` command has ended well, False while it runs."""
    wanted = process_id(release.app, release.number, "release", 1)
    for process in status.get("processes", []):
        if process["id"] != wanted or process["state"] != "exited":
            continue
        last = process.get("exit") or {}
        if last.get("known") and last.get("code") == 0:
            return True
        return Broken("release.1", process.get("node", "?"), why(process))
    for entry in status.get("unplaced", []):
        if entry["id"] == wanted:
            return Broken("release.1", "no node", entry["reason"])
    return False


def handlers(frontend: Status, release: Release) -> int:
    """How many ready handlers of the release a frontend reports."""
    count: int = frontend.get("handlers", {}).get(release.app, {}).get(str(release.number), 0)
    return count


def is_switched(status: Status, sha256: str) -> bool:
    """True when the master has read that desired state and every live frontend routes by it."""
    return status.get("desired_sha256") == sha256 and all(
        frontend.get("have") == frontend.get("version")
        for frontend in status.get("frontends", {}).values()
        if frontend["state"] == "up"
    )


def is_gone(status: Status, app: str, number: int) -> bool:
    """True when no process of that release is left."""
    return not any(
        process["app"] == app and process["release"] == number
        for process in status.get("processes", [])
    )


def why(process: Status) -> str:
    """In words, how a process ended."""
    last = process.get("exit") or {}
    if process.get("error"):
        return str(process["error"])
    if last.get("oom"):
        return "was killed: it used more memory than it may"
    if last.get("signal"):
        return f"was ended by signal {last['signal']}"
    if last.get("known"):
        return f"exited with code {last.get('code')}"
    return "ended"


def watch(path: Path, timeout_s: float) -> Iterator[Status]:
    """The master's status now and again at each change, until `timeout_s` has passed.

    Raises BarekuError when no master vouches for it.
    """
    deadline = time.monotonic() + timeout_s
    news = [True]
    watcher = Watcher()
    watcher.file(path, lambda: news.append(True))
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            if news and path.exists():
                news.clear()
                yield read_json(path)
                continue
            if not is_fresh(path):
                raise no_master()
            if watcher.fd >= 0:
                select.select([watcher.fd], [], [], min(left_s, LOOK_S))
                watcher.read()
            else:
                time.sleep(WITHOUT_INOTIFY_S)
            watcher.look()
    finally:
        watcher.close()


def no_master() -> BarekuError:
    """What to say when nobody is there to run what a deploy asks for."""
    return BarekuError(
        "cannot deploy: diprocd master is not running",
        hint="start it with `bareku up`, then try again",
    )


def until(path: Path, timeout_s: float, holds: Callable[[Status], bool]) -> bool:
    """True as soon as `holds` does, False when `timeout_s` passes first."""
    return any(holds(status) for status in watch(path, timeout_s))
