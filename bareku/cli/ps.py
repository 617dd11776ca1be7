"""`ps`, `ps:scale`, `ps:restart`: the processes of an app."""

from __future__ import annotations

import argparse
import re
import sys

from bareku import app as apps
from bareku import names
from bareku.cli.command import Command, Context, add_app, add_json, print_json, print_table
from bareku.errors import BarekuError
from bareku.files import read_json
from bareku.receive import change, desired, ledger
from bareku.receive.transcript import Transcript


def show(context: Context, options: argparse.Namespace) -> int:
    context.settings()
    app = names.parse_app(options.app)
    apps.require(context.root, app)
    path = desired.status_path(context.root)
    status = read_json(path) if path.exists() else {}
    found = [p for p in status.get("processes", []) if p["app"] == app]
    found.sort(key=lambda p: (p["type"], p["index"], p["release"]))
    if options.json:
        print_json(found)
        return 0
    print_table(
        [
            (
                f"{p['type']}.{p['index']}",
                f"v{p['release']}",
                p["state"],
                f"pid {p['pid']}" if p.get("pid") else "-",
                f"up {p['uptime_s']:.0f} s" if p.get("uptime_s") is not None else "-",
                f"{p.get('restarts', 0)} restarts",
                p.get("node", ""),
            )
            for p in found
        ]
    )
    return 0


def scale(context: Context, options: argparse.Namespace) -> int:
    context.settings()
    app = names.parse_app(options.app)
    apps.require(context.root, app)
    now = ledger.current(context.root, app)
    if not options.counts:
        print(" ".join(f"{kind}={n}" for kind, n in (now.formation if now else {}).items()))
        return 0
    before = dict(now.formation) if now else {}
    counts = dict(_count(word, before) for word in options.counts)
    plan = change.formation(context.root, app, counts)
    reason = "Scale " + ", ".join(
        f"{kind} {before.get(kind, 0)} -> {n}" for kind, n in counts.items()
    )
    return _release(context, app, plan, reason)


def restart(context: Context, options: argparse.Namespace) -> int:
    return _release(context, names.parse_app(options.app), change.again, "Restart")


def _release(context: Context, app: str, plan: change.Plan, reason: str) -> int:
    context.settings()
    release = change.make(
        context.root, app, plan, user=context.user, reason=reason, out=Transcript(sys.stderr)
    )
    print(f"{reason} on {app}: done, v{release.number}.")
    return 0


def _count(word: str, before: dict[str, int]) -> tuple[str, int]:
    """`web=3`, `web+1`, `worker-1` as type and count."""
    found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_-]*?)(=|\+|-)([0-9]{1,4})", word)
    if not found:
        raise BarekuError(
            f"cannot scale by {word!r}: it is not like web=2, web+1 or web-1", exit_code=2
        )
    kind, sign, number = found[1], found[2], int(found[3])
    if sign == "=":
        return kind, number
    return kind, max(0, before.get(kind, 0) + (number if sign == "+" else -number))


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_app(parser)
    add_json(parser)


def _scale_arguments(parser: argparse.ArgumentParser) -> None:
    add_app(parser)
    parser.add_argument("counts", metavar="TYPE=N", nargs="*", help="web=3, web+1 or web-1")


COMMANDS = {
    "ps": Command("List an app's processes.", show, _arguments),
    "ps:scale": Command(
        "Run so many of each process type; without arguments, print how many run.",
        scale,
        _scale_arguments,
        example="bareku ps:scale hello web=3 worker+1",
    ),
    "ps:restart": Command("Replace all processes by new ones, without a gap.", restart, add_app),
}
