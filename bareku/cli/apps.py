"""`apps`, `apps:create`, `apps:destroy`."""

from __future__ import annotations

import argparse
import shutil

from bareku import app as apps
from bareku import names
from bareku.cli.command import Command, Context, add_json, print_json, print_table
from bareku.errors import BarekuError
from bareku.files import write_atomic
from bareku.receive import deploy, desired, ledger, lock, repository


def show(context: Context, options: argparse.Namespace) -> int:
    settings = context.settings()
    rows = [
        (app, ledger.current_number(context.root, app), settings.url(app))
        for app in apps.names(context.root)
    ]
    if options.json:
        print_json([{"app": app, "release": number, "url": url} for app, number, url in rows])
    else:
        print_table([(app, f"v{n}" if n else "not deployed", url) for app, n, url in rows])
    return 0


def create(context: Context, options: argparse.Namespace) -> int:
    settings = context.settings()
    app = names.parse_app(options.name)
    if apps.exists(context.root, app):
        raise BarekuError(
            f"cannot create {app}: there is an app of this name",
            hint=f"push to it with: git remote add bareku {settings.remote(app)}",
        )
    env = context.root.app_env(app)
    if not env.exists():
        write_atomic(env, f"# Environment of {app}: KEY=value lines.\n".encode(), mode=0o600)
    repository.create(context.root.repository(app), apps.load_settings(context.root, app).branch)
    print(f"Created {app}. In its git repository:")
    print(f"  git remote add bareku {settings.remote(app)}")
    print("  git push bareku master")
    return 0


def destroy(context: Context, options: argparse.Namespace) -> int:
    root = context.root
    context.settings()
    app = names.parse_app(options.name)
    apps.require(root, app)
    if options.confirm != app:
        raise BarekuError(
            f"cannot destroy {app}: it takes its repository, releases and settings with it",
            hint=f"to go on: bareku apps:destroy {app} --confirm {app}",
            exit_code=2,
        )
    with lock.held(root, app, f"{context.user} is destroying {app}", print):
        deploy.settle(root, app)
        gone = root.repositories / f".{app}.destroyed"
        root.repository(app).rename(gone)  # from here on the app is no more
        desired.publish(root)
        for path in root.apps.glob(f"{app}.*"):
            if path.stem == app:
                path.unlink()
        for folder in (root.releases, root.cache, root.builds):
            shutil.rmtree(folder / app, ignore_errors=True)
        shutil.rmtree(gone, ignore_errors=True)
    print(f"Destroyed {app}.")
    return 0


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the app")


def _destroy_arguments(parser: argparse.ArgumentParser) -> None:
    _name(parser)
    parser.add_argument("--confirm", default="", metavar="NAME", help="the app's name once more")


COMMANDS = {
    "apps": Command("List the apps.", show, add_json),
    "apps:create": Command(
        "Make an app: its repository and its env file.",
        create,
        _name,
        example="bareku apps:create hello",
    ),
    "apps:destroy": Command("Stop an app and remove all of it.", destroy, _destroy_arguments),
}
