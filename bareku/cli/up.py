"""`up` and `down`: the one-machine Bareku."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import msgspec

from bareku import log
from bareku import settings as settings_file
from bareku.cli import parent
from bareku.cli.command import Command, Context
from bareku.errors import BarekuError
from bareku.files import locked
from bareku.receive import deploy
from bareku.settings import Settings

DETACH_S = 30.0
DOWN_S = 120.0  # apps may take their drain and grace times


def up(context: Context, options: argparse.Namespace) -> int:
    root = context.root
    root.path.mkdir(mode=0o711, parents=True, exist_ok=True)
    settings = _settings(context, options)
    if options.detach:
        return _detach(context, options)
    log.setup()
    if running := parent.running(root, "up"):
        raise BarekuError(
            f"cannot start: this Bareku is already up (pid {running})",
            hint="see `bareku status`; end it with `bareku down`",
        )

    def say(line: str) -> None:
        print(line or _where(context, settings), flush=True)

    parent.Parent(root, settings, keep_apps=options.keep_apps).run(
        say, when_up=lambda: _settle(context)
    )
    print("Bareku is down.")
    return 0


def down(context: Context, options: argparse.Namespace) -> int:
    settings = context.settings()
    pid = parent.running(context.root, "up")
    if pid:
        os.kill(pid, signal.SIGUSR1 if options.keep_apps else signal.SIGTERM)
        if parent.wait_ended([pid], DOWN_S):
            raise BarekuError(f"cannot stop: pid {pid} does not end", hint="see its log: up.log")
    found = parent.running_daemons(context.root, settings)
    if found or not pid:  # their parent had died
        parent.stop_all(context.root, found, keep_apps=options.keep_apps)
    if not pid and not found:
        print("Bareku was not up.")
    else:
        print("Bareku is down; the apps run on." if options.keep_apps else "Bareku is down.")
    return 0


def _settle(context: Context) -> None:
    """End what a power cut or a kill left open; a deploy that is still worked on keeps its lock."""
    for path in sorted(context.root.journal.glob("*.json")):
        with (
            contextlib.suppress(BarekuError),
            locked(path.with_suffix(".lock"), holder="bareku up is settling"),
        ):
            deploy.settle(context.root, path.stem)


def _settings(context: Context, options: argparse.Namespace) -> Settings:
    """bareku.yml; made at the first start from the options and the defaults."""
    chosen = {key: value for key in ("http", "ssh", "domain") if (value := getattr(options, key))}
    if not context.root.settings.exists():
        free = _free_ports() if options.free_ports else {}
        settings_file.create(context.root, msgspec.convert({**free, **chosen}, Settings))
    settings = context.settings()
    for key, value in chosen.items():
        if getattr(settings, key) != value:
            raise BarekuError(
                f"cannot use --{key} {value}: {context.root.settings} says {getattr(settings, key)}",
                hint=f"edit that file; the git remotes of your apps may name the old {key} address",
                exit_code=2,
            )
    return settings


def _free_ports() -> dict[str, object]:
    """Settings with ports that are free now and from which the kernel gives none by itself."""
    found: list[int] = []
    while len(found) < 5:
        port = random.randrange(20_000, 31_000)  # noqa: S311 - no secret
        if port not in found and settings_file.is_free(port):
            found.append(port)
    first = random.randrange(10_000, 19_000)  # noqa: S311 - no secret
    return {
        "http": f"127.0.0.1:{found[0]}",
        "ssh": f"127.0.0.1:{found[1]}",
        "updates": f"tcp://127.0.0.1:{found[2]}",
        "stats": f"tcp://127.0.0.1:{found[3]}",
        "link": f"tcp://127.0.0.1:{found[4]}",
        "app_ports": (first, first + 500),
    }


def _detach(context: Context, options: argparse.Namespace) -> int:
    """Start `up` in a session of its own and wait until it says that all is up."""
    if pid := parent.running(context.root, "up"):
        print(f"Bareku is already up (pid {pid}).")
        return 0
    context.root.logs.mkdir(parents=True, exist_ok=True)
    path = context.root.logs / "up.log"
    argv = [sys.executable, "-P", "-m", "bareku.cli.main", "--root", str(context.root.path), "up"]
    if options.keep_apps:
        argv.append("--keep-apps")
    start = path.stat().st_size if path.exists() else 0
    with path.open("ab") as out:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    deadline = time.monotonic() + DETACH_S
    while time.monotonic() < deadline and child.poll() is None:
        text = path.read_bytes()[start:].decode(errors="replace")
        if "git pushes to" in text and text.endswith("\n"):
            print(text, end="")
            child.returncode = 0  # it goes on without us: Popen shall not complain
            return 0
        time.sleep(0.02)
    lines = path.read_bytes()[start:].decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith(("error:", "hint:"))] or lines[-1:]
    if child.poll() is None:
        os.kill(child.pid, signal.SIGTERM)
    message, *hints = [line.partition(": ")[2] or line for line in errors] or ["it said nothing"]
    raise BarekuError(message, hint="\n".join(hints))


def _where(context: Context, settings: Settings) -> str:
    return (
        f"\nEverything is in {context.root.path}.\n"
        f"Apps answer at {settings.url('APP')} and git pushes to {settings.remote('APP')}"
    )


def _up_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detach", "-d", action="store_true", help="go to the background when up")
    parser.add_argument(
        "--keep-apps", action="store_true", help="leave the apps running at the end"
    )
    parser.add_argument("--http", metavar="HOST:PORT", default="", help="where visitors come in")
    parser.add_argument("--ssh", metavar="HOST:PORT", default="", help="where git push comes in")
    parser.add_argument("--domain", default="", help="apps answer at APP.DOMAIN")
    parser.add_argument(
        "--free-ports", action="store_true", help="at the first start, take ports that are free"
    )


def _down_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep-apps", action="store_true", help="leave the apps running")


COMMANDS = {
    "up": Command(
        "Start the one-machine Bareku: all daemons under one parent.",
        up,
        _up_arguments,
        example="bareku up --root ~/bareku --http 127.0.0.1:8080",
    ),
    "down": Command("Stop the daemons, and the apps too.", down, _down_arguments),
}
