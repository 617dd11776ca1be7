"""The `diprocd` command: the three daemons, their status, their keys."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bareku import __version__
from bareku.errors import BarekuError


def main(argv: list[str] | None = None) -> int:
    """Run a daemon until it is told to end; the exit status."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    try:
        return _run(options)
    except BarekuError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        return exc.exit_code


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="diprocd", description="The distributed process control daemon."
    )
    parser.add_argument("--version", action="version", version=f"diprocd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("master", "publish to each node what it shall run; FILE is the desired state"),
        ("client", "bring the node its document and the master its state"),
        ("worker", "run the processes of this node"),
    ):
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("--config", metavar="FILE", type=Path, required=True)
        one.add_argument("--check-config", action="store_true", help="read FILE, say if it is good")
        one.add_argument("--verbose", action="store_true", help="log decisions, too")
        if name == "worker":
            one.add_argument(
                "--stop-all", action="store_true", help="stop every process of the node and exit"
            )
        if name == "master":
            one.add_argument(
                "--takeover",
                action="store_true",
                help="become the master of nodes that follow another or a lost one",
            )
    status = commands.add_parser("status", help="how the daemons here are, and what runs")
    status.add_argument("--config", metavar="FILE", type=Path, help="any daemon's FILE")
    status.add_argument("--json", action="store_true", help="the status files as one document")
    keys = commands.add_parser("keys", help="make a CURVE key file, print its public key")
    keys.add_argument("file", metavar="FILE", type=Path)
    return parser.parse_args(argv)


def _run(options: argparse.Namespace) -> int:
    if options.command == "status":
        from diprocd.show import show

        return show(options.config, as_json=options.json)
    if options.command == "keys":
        from bareku import curve

        print(curve.make(options.file).public)
        return 0
    from bareku import log

    log.setup(verbose=options.verbose)
    if options.command == "master":
        return _master(options)
    return _node(options)


def _master(options: argparse.Namespace) -> int:
    from diprocd.master import Master, read_desired

    if options.check_config:
        read_desired(options.config)
        print(f"{options.config} is good")
        return 0
    Master(options.config, takeover=options.takeover).run()
    return 0


def _node(options: argparse.Namespace) -> int:
    if options.command == "worker":
        # msgspec only tries this one; without it a worker is back a quarter sooner
        sys.modules.setdefault("typing_extensions", None)  # type: ignore[arg-type]
    from bareku.config import load
    from diprocd.names import expand_name
    from diprocd.spec import NodeConfig

    config = load(options.config, NodeConfig)
    name = expand_name(config.node_name)
    if options.check_config:
        print(f"{options.config} is good: this is node {name}")
        return 0
    if options.command == "client":
        from diprocd.client import Client

        Client(config).run()
        return 0
    from diprocd.worker import Worker

    worker = Worker(config)
    if options.stop_all:
        worker.stop_all()
    else:
        worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
