"""`keys`, `keys:add`, `keys:remove`: who may come in."""

from __future__ import annotations

import argparse
import sys

from bareku.cli.command import Command, Context, add_json, print_json, print_table
from bareku.door import keys
from bareku.errors import BarekuError


def show(context: Context, options: argparse.Namespace) -> int:
    context.settings()
    found = list(keys.people(context.root))
    if options.json:
        print_json(
            [
                {"user": user, "type": k.kind, "fingerprint": k.fingerprint, "comment": k.comment}
                for user, k in found
            ]
        )
    else:
        print_table([(user, key.fingerprint, key.kind, key.comment) for user, key in found])
    return 0


def add(context: Context, options: argparse.Namespace) -> int:
    context.settings()
    if sys.stdin.isatty():
        raise BarekuError(
            "cannot add a key: none on standard input",
            hint=f"bareku keys:add {options.name} < ~/.ssh/id_ed25519.pub",
            exit_code=2,
        )
    key = keys.add(context.root, options.name, sys.stdin.read(keys.MAX_LINE + 1))
    print(f"Added {key.fingerprint} for {options.name}.")
    return 0


def remove(context: Context, options: argparse.Namespace) -> int:
    context.settings()
    count = keys.remove(context.root, options.name, options.fingerprint)
    print(f"Removed {count} {'key' if count == 1 else 'keys'} of {options.name}.")
    return 0


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the user")


def _remove_arguments(parser: argparse.ArgumentParser) -> None:
    _name(parser)
    parser.add_argument("fingerprint", nargs="?", default="", help="SHA256:…; all keys without it")


COMMANDS = {
    "keys": Command("List the keys that may come in.", show, add_json),
    "keys:add": Command(
        "Let a user in with the public key on standard input.",
        add,
        _name,
        example="bareku keys:add ada < ~/.ssh/id_ed25519.pub",
    ),
    "keys:remove": Command("Take keys from a user.", remove, _remove_arguments),
}
