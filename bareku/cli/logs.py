"""`logs`: what the processes of an app wrote."""

from __future__ import annotations

import argparse

from bareku import app as apps
from bareku import names
from bareku.cli.command import Command, Context, add_app
from bareku.errors import BarekuError
from bareku.receive import ledger, nodes, ship


def show(context: Context, options: argparse.Namespace) -> int:
    settings = context.settings()
    app = names.parse_app(options.app)
    apps.require(context.root, app)
    release = ledger.current(context.root, app)
    if release is None:
        raise BarekuError(
            f"cannot show logs of {app}: nothing was deployed yet",
            hint=f"git remote add bareku {settings.remote(app)} && git push bareku master",
        )
    processes = [
        f"{kind}.{n}" for kind, count in release.formation.items() for n in range(1, count + 1)
    ]
    chosen = [name for name in processes if options.process in {None, name, name.split(".")[0]}]
    if not chosen:
        raise BarekuError(
            f"cannot show logs of {options.process}: {app} has no such process",
            hint=f"it has: {', '.join(processes)}",
        )
    with nodes.connecting(context.root, settings) as opening:
        for connection in opening.result():
            for name in chosen:
                text = ship.run(
                    connection, ["logs", app, f"v{release.number}.{name}", "-n", str(options.lines)]
                )
                for line in text.splitlines():
                    print(f"{name} | {line}")
    return 0


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_app(parser)
    parser.add_argument("-n", "--lines", type=int, default=100, help="how many of each process")
    parser.add_argument("-p", "--process", metavar="NAME", help="only `web` or only `web.1`")


COMMANDS = {"logs": Command("Show the last lines that an app's processes wrote.", show, _arguments)}
