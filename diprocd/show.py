"""`diprocd status`: the status files of the daemons of one machine, for people and programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bareku.daemon import is_fresh
from bareku.errors import BarekuError
from bareku.files import read_json

DAEMONS = ("master", "client", "worker")


def show(config: Path | None, *, as_json: bool) -> int:
    """Print it; 0 when every daemon that ever ran here is up and well, else 1."""
    found = collect(run_folder(config))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(lines(found)))
    known = [one for one in found.values() if one is not None]
    return 0 if known and all(one["fresh"] and one["health"] == "ok" for one in known) else 1


def run_folder(config: Path | None) -> Path:
    """The `run` key of any daemon's configuration."""
    if config is None:
        return Path("/run/diprocd")
    try:
        document = read_json(config)
    except OSError as exc:
        raise BarekuError(f"cannot read {config}: {exc.strerror}") from exc
    run = document.get("run", "/run/diprocd") if isinstance(document, dict) else None
    if not isinstance(run, str):
        raise BarekuError(f"cannot read {config}: it is no configuration of diprocd")
    return Path(run)


def collect(run: Path) -> dict[str, dict[str, Any] | None]:
    """Daemon -> its status with `fresh` added, None when it never ran."""
    found: dict[str, dict[str, Any] | None] = {}
    for name in DAEMONS:
        path = run / f"{name}.json"
        try:
            document = read_json(path)
        except (OSError, BarekuError):
            document = None
        found[name] = {**document, "fresh": is_fresh(path)} if isinstance(document, dict) else None
    return found


def lines(found: dict[str, dict[str, Any] | None]) -> list[str]:
    """The same as text: a line a daemon, a line a process."""
    text = []
    for name, one in found.items():
        if one is None:
            text.append(f"{name:8} never ran here")
            continue
        state = one["health"] if one["fresh"] else "not running"
        error = f"  {one['error']}" if one.get("error") else ""
        text.append(f"{name:8} {state}  pid {one['pid']}{error}")
    master, worker = found.get("master"), found.get("worker")
    for name, node in sorted((master or {}).get("nodes", {}).items()):
        text.append(f"node {name}: {node['state']}, version {node['applied']}/{node['version']}")
    processes = (worker or master or {}).get("processes", [])
    for one in processes:
        flag = "  crash loop" if one["crash_loop"] else ""
        error = f"  {one['error']}" if one.get("error") else ""
        where = f"  {one['node']}" if "node" in one else ""
        text.append(
            f"{one['id']:32} {one['state']:9} pid {one['pid'] or '-'}"
            f"  restarts {one['restarts']}{where}{flag}{error}"
        )
    for one in (master or {}).get("unplaced", []):
        text.append(f"{one['id']:32} unplaced  {one['reason']}")
    return text
