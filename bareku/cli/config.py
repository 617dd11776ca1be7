"""`config`, `config:get`, `config:set`, `config:unset`: an app's environment."""

from __future__ import annotations

import argparse
import sys

from bareku import app as apps
from bareku import names
from bareku.cli.command import Command, Context, add_app, add_json, print_json
from bareku.errors import BarekuError, nearest
from bareku.receive import change
from bareku.receive.transcript import Transcript


def show(context: Context, options: argparse.Namespace) -> int:
    env = _env(context, options)
    if options.json:
        print_json(env)
    else:
        for key, value in env.items():
            print(f"{key}={value}")
    return 0


def get(context: Context, options: argparse.Namespace) -> int:
    env = _env(context, options)
    _require(env, options.key, options.app)
    print(env[options.key])
    return 0


def set_(context: Context, options: argparse.Namespace) -> int:
    added = {}
    for pair in options.pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BarekuError(
                f"cannot set {pair!r}: it is not KEY=value",
                hint=f"bareku config:set {options.app} {pair}=VALUE",
                exit_code=2,
            )
        added[key] = value
    return _change(context, options, lambda env: {**env, **added}, f"Set {', '.join(added)}")


def unset(context: Context, options: argparse.Namespace) -> int:
    def edit(env: dict[str, str]) -> dict[str, str]:
        for key in options.keys:
            _require(env, key, options.app)
        return {key: value for key, value in env.items() if key not in options.keys}

    return _change(context, options, edit, f"Unset {', '.join(options.keys)}")


def _change(context: Context, options: argparse.Namespace, edit: change.Edit, reason: str) -> int:
    context.settings()
    app = names.parse_app(options.app)
    plan = change.environment(context.root, app, edit)
    release = change.make(
        context.root, app, plan, user=context.user, reason=reason, out=Transcript(sys.stderr)
    )
    print(f"{reason} on {app}; it runs v{release.number}.")
    return 0


def _env(context: Context, options: argparse.Namespace) -> dict[str, str]:
    context.settings()
    app = names.parse_app(options.app)
    apps.require(context.root, app)
    return apps.load_env(context.root, app)


def _require(env: dict[str, str], key: str, app: str) -> None:
    if key not in env:
        near = nearest(key, env)
        raise BarekuError(
            f"cannot find {key!r}: apps/{app}.env does not set it",
            hint=f"did you mean {near!r}?" if near else f"`bareku config {app}` lists what it sets",
        )


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    add_app(parser)
    add_json(parser)


def _get_arguments(parser: argparse.ArgumentParser) -> None:
    add_app(parser)
    parser.add_argument("key", metavar="KEY")


def _set_arguments(parser: argparse.ArgumentParser) -> None:
    add_app(parser)
    parser.add_argument("pairs", metavar="KEY=VALUE", nargs="+")


def _unset_arguments(parser: argparse.ArgumentParser) -> None:
    add_app(parser)
    parser.add_argument("keys", metavar="KEY", nargs="+")


COMMANDS = {
    "config": Command("Print an app's env file.", show, _show_arguments),
    "config:get": Command("Print one variable.", get, _get_arguments),
    "config:set": Command(
        "Set variables; the app goes to a new release with them, or nothing changes.",
        set_,
        _set_arguments,
        example="bareku config:set hello GREETING='good day'",
    ),
    "config:unset": Command("Remove variables, as a new release.", unset, _unset_arguments),
}
