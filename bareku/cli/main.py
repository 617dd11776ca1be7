"""`bareku VERB …`: finds the verb's module, parses, runs, turns errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from pathlib import Path

from bareku import __version__
from bareku.cli.command import Command, Context, print_json
from bareku.errors import BarekuError, nearest
from bareku.paths import Root, default_root

# verb -> module of bareku.cli that has it in COMMANDS; only that module is loaded
VERBS = {
    "up": "up",
    "down": "up",
    "status": "status",
    "apps": "apps",
    "apps:create": "apps",
    "apps:destroy": "apps",
    "config": "config",
    "config:get": "config",
    "config:set": "config",
    "config:unset": "config",
    "releases": "releases",
    "releases:rollback": "releases",
    "builds:output": "releases",
    "logs": "logs",
    "ps": "ps",
    "ps:scale": "ps",
    "ps:restart": "ps",
    "keys": "keys",
    "keys:add": "keys",
    "keys:remove": "keys",
}


def main(argv: list[str] | None = None) -> None:
    """Run one verb and exit."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `bareku apps | head` ends quietly
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = run(words)
    except BarekuError as exc:
        if "--json" in words:
            print_json({"error": exc.message, "hint": exc.hint, "code": exc.exit_code})
        print(f"error: {exc.message}", file=sys.stderr)
        for line in exc.hint.splitlines():
            print(f"hint: {line}", file=sys.stderr)
        status = exc.exit_code
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def run(words: list[str]) -> int:
    """The exit code of `bareku` with these words. Raises BarekuError."""
    root = default_root()
    while words and words[0] in {"--root", "-r"} and len(words) > 1:
        root, words = Path(words[1]), words[2:]
    if words and words[0].startswith("--root="):
        root, words = Path(words[0].removeprefix("--root=")), words[1:]
    if not words or words[0] in {"help", "-h", "--help"}:
        return show_help(words[1:])
    verb, *rest = words
    if verb in {"--version", "version"}:
        print(f"bareku {__version__}")
        return 0
    command = find(verb)
    parser = make_parser(verb, command)
    options = parser.parse_args(rest)
    user = os.environ.get("BAREKU_USER", "local")
    return command.run(Context(Root((options.root or root).resolve()), user), options)


def find(verb: str) -> Command:
    """The verb. Raises BarekuError (exit code 2) naming the nearest when there is none."""
    if verb not in VERBS:
        near = nearest(verb, VERBS)
        raise BarekuError(
            f"cannot run {verb!r}: no such verb",
            hint=f"did you mean `bareku {near}`?" if near else "`bareku help` lists the verbs",
            exit_code=2,
        )
    module = importlib.import_module(f"bareku.cli.{VERBS[verb]}")
    commands: dict[str, Command] = module.COMMANDS
    return commands[verb]


def make_parser(verb: str, command: Command) -> argparse.ArgumentParser:
    """The verb's own parser; `--root` may also stand behind the verb."""
    parser = argparse.ArgumentParser(
        prog=f"bareku {verb}",
        description=command.help,
        epilog=f"example: {command.example}" if command.example else None,
        allow_abbrev=False,
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="the folder of this Bareku")
    command.arguments(parser)
    return parser


def show_help(words: list[str]) -> int:
    """All verbs with a line each, or one verb's options."""
    if words:
        make_parser(words[0], find(words[0])).print_help()
        return 0
    print("usage: bareku [--root DIR] VERB [options]\n")
    width = max(map(len, VERBS)) + 2
    for verb in VERBS:
        print(f"  {verb:<{width}}{find(verb).help}")
    print("\n`bareku help VERB` shows the options of a verb.")
    return 0


if __name__ == "__main__":
    main()
