"""`releases` and `builds:output`: what went live when, and what a push printed."""

from __future__ import annotations

import argparse
import re
import sys

from bareku import app as apps
from bareku import names
from bareku.cli.command import Command, Context, add_app, add_json, print_json, print_table
from bareku.errors import BarekuError
from bareku.receive import change, ledger
from bareku.receive.transcript import Transcript


def show(context: Context, options: argparse.Namespace) -> int:
    context.settings()
    app = names.parse_app(options.app)
    apps.require(context.root, app)
    found = [ledger.load(context.root, app, n) for n in ledger.numbers(context.root, app)]
    now = ledger.current_number(context.root, app)
    if options.json:
        print_json(
            [
                {
                    "release": r.number,
                    "is_current": r.number == now,
                    "commit": r.commit,
                    "slug": r.slug,
                    "created_at": r.created_at,
                    "created_by": r.created_by,
                    "reason": r.reason,
                    "formation": r.formation,
                }
                for r in found
            ]
        )
        return 0
    print_table(
        [
            (
                f"v{r.number}",
                "current" if r.number == now else "",
                r.commit[:8],
                r.created_at,
                r.created_by,
                r.reason,
            )
            for r in reversed(found)
        ]
    )
    return 0


def output(context: Context, options: argparse.Namespace) -> int:
    context.settings()
    app = names.parse_app(options.app)
    apps.require(context.root, app)
    logs = sorted((context.root.builds / app).glob("*.log"))
    chosen = [path for path in logs if path.stem == options.id] if options.id else logs[-1:]
    if not chosen:
        known = ", ".join(path.stem for path in logs[-5:]) or "there is none"
        raise BarekuError(
            f"cannot show the build {options.id or 'of ' + app}: not found",
            hint=f"the last builds: {known}",
        )
    sys.stdout.write(chosen[0].read_text(errors="replace"))
    return 0


def rollback(context: Context, options: argparse.Namespace) -> int:
    settings = context.settings()
    app = names.parse_app(options.app)
    before = ledger.current_number(context.root, app)
    number = int(options.release.removeprefix("v")) if options.release else None
    plan = change.earlier(context.root, app, number)
    reason = f"Go back to {options.release or 'the release before'}"
    release = change.make(
        context.root, app, plan, user=context.user, reason=reason, out=Transcript(sys.stderr)
    )
    print(f"{app} runs v{release.number}, the same as {options.release or 'the release before'}.")
    print(f"To undo this: bareku releases:rollback {app} v{before}")
    print(f"The branch still holds the newer code; see {settings.url(app)}")
    return 0


def _rollback_arguments(parser: argparse.ArgumentParser) -> None:
    add_app(parser)
    parser.add_argument(
        "release",
        nargs="?",
        type=_release,
        metavar="vN",
        help="default: the one before",
    )


def _release(text: str) -> str:
    if not re.fullmatch(r"v?[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not like v41")
    return f"v{text.removeprefix('v')}"


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_app(parser)
    add_json(parser)


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    add_app(parser)
    parser.add_argument("id", nargs="?", default="", help="the last build without it")


COMMANDS = {
    "releases": Command("List an app's releases, the newest first.", show, _arguments),
    "releases:rollback": Command(
        "Run an earlier release again: its code, environment and formation.",
        rollback,
        _rollback_arguments,
        example="bareku releases:rollback hello v41",
    ),
    "builds:output": Command("Print what a push printed.", output, _output_arguments),
}
