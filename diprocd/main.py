"""`diprocd master|client|worker --config F`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bareku import config, log
from bareku.errors import BarekuError
from diprocd import spec


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the three daemons."""
    parser = argparse.ArgumentParser(prog="diprocd", description="Distributed process control.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("master", "client", "worker"):
        one = verbs.add_parser(verb)
        one.add_argument("--config", type=Path, required=True)
        if verb == "worker":
            one.add_argument("--stop-all", action="store_true")
    options = parser.parse_args(argv)
    log.setup()
    try:
        if options.verb == "master":
            from diprocd.master import Master

            Master(options.config).run()
        elif options.verb == "client":
            from diprocd.client import Client

            Client(config.load(options.config, spec.NodeConfig)).run()
        else:
            from diprocd.worker import Worker

            worker = Worker(config.load(options.config, spec.NodeConfig))
            if options.stop_all:
                worker.stop_all()
            else:
                worker.run()
    except BarekuError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
