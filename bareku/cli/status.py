"""`status`: each daemon's health, version, pid, memory and uptime, and each app's URL."""

from __future__ import annotations

import argparse
import time
from typing import Any

import psutil

from bareku import app as apps
from bareku.cli import machine, parent
from bareku.cli.command import Command, Context, add_json, print_json, print_table
from bareku.daemon import is_fresh
from bareku.files import read_json
from bareku.paths import Root
from bareku.receive import ledger


def show(context: Context, options: argparse.Namespace) -> int:
    settings = context.settings()
    names = ["up", *(daemon.name for daemon in machine.daemons(context.root, settings))]
    daemons = [of_daemon(context.root, name) for name in names]
    found = [
        {
            "app": app,
            "release": ledger.current_number(context.root, app),
            "url": settings.url(app),
            "remote": settings.remote(app),
        }
        for app in apps.names(context.root)
    ]
    is_well = all(daemon["health"] == "ok" for daemon in daemons)
    if options.json:
        print_json({"root": str(context.root.path), "daemons": daemons, "apps": found})
        return 0 if is_well else 1
    print_table([_row(daemon) for daemon in daemons])
    if found:
        print()
        print_table(
            [
                (a["app"], f"v{a['release']}" if a["release"] else "not deployed", a["url"])
                for a in found
            ]
        )
    return 0 if is_well else 1


def of_daemon(root: Root, name: str) -> dict[str, Any]:
    """What can be known of a daemon; `health` is `down` when it does not run, `silent` when it
    runs but has not vouched for itself lately."""
    pid = parent.running(root, name)
    if not pid:
        return {"daemon": name, "health": "down"}
    status = read_json(parent.status_path(root, name))
    process = psutil.Process(pid)
    health = status["health"] if is_fresh(parent.status_path(root, name)) else "silent"
    return {
        "daemon": name,
        "health": health,
        "error": status.get("error"),
        "version": status["version"],
        "pid": pid,
        "memory_bytes": process.memory_info().rss,
        "uptime_s": round(time.time() - process.create_time(), 1),
    }


def _row(daemon: dict[str, Any]) -> tuple[object, ...]:
    if daemon["health"] == "down":
        return (daemon["daemon"], "down", "", "", "", "", "")
    return (
        daemon["daemon"],
        daemon["health"],
        daemon["version"],
        f"pid {daemon['pid']}",
        f"{daemon['memory_bytes'] / 2**20:.0f} MiB",
        f"up {daemon['uptime_s']:.0f} s",
        daemon["error"] or "",
    )


COMMANDS = {
    "status": Command("Show how the daemons are and where the apps answer.", show, add_json),
}
