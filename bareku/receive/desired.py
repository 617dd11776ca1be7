"""What shall run, told to diprocd: `diprocd-master.json`, derived whole from ledger and journal.

Nothing here is remembered between calls: the same files on disk always give the same document,
so publishing again is harmless and a lost file can be made again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from bareku import app as apps
from bareku import settings as settings_file
from bareku.app import Release
from bareku.files import locked, write_atomic
from bareku.paths import Root
from bareku.receive import journal, ledger
from bareku.receive.journal import Phase
from bareku.settings import Settings
from diprocd import spec

# sources .profile.d in name order, then runs the command as Heroku does: `bash -c`
RUN = """\
for part in .profile.d/*.sh; do [ -r "$part" ] && . "$part"; done
unset part
exec bash -c "$1"
"""

PREPARE = "release"  # Heroku's name for the command that runs before a release, migrations mostly
FRONTEND = "frontend1"  # the one-machine shape has one


def publish(root: Root) -> None:
    """Write the desired state if it changed."""
    with locked(root.journal / ".desired.lock", holder="publish", timeout_s=10.0):
        data = render(root, settings_file.load(root))
        try:
            is_changed = root.desired.read_bytes() != data
        except FileNotFoundError:
            is_changed = True
        if is_changed:
            write_atomic(root.desired, data, mode=0o600)


def digest(root: Root) -> str:
    """The sha256 of the desired state, which the master repeats when it has read it."""
    return hashlib.sha256(root.desired.read_bytes()).hexdigest()


def render(root: Root, settings: Settings) -> bytes:
    """The document for everything in the ledger and the journal, as JSON bytes."""
    running: dict[str, spec.App] = {}
    routes: list[spec.Route] = []
    for app in apps.names(root):
        releases, served = releases_of(root, app)
        if releases:
            running[app] = spec.App(releases=releases)
        if served and served.formation.get("web", 0):
            routes += [
                spec.Route(host=host, app=app, release=served.number, token=served.token)
                for host in served.hosts
            ]
    document = spec.Desired(
        updates=settings.updates,
        stats=settings.stats,
        run=str(root.run / "diprocd"),
        nodes={settings.node: spec.Node()},
        frontends=[FRONTEND],
        apps=running,
        routes=routes,
    )
    return msgspec.json.format(spec.encode(document), indent=1) + b"\n"


def releases_of(root: Root, app: str) -> tuple[dict[str, spec.Release], Release | None]:
    """What of the app's releases runs now, by number, and which of them is served."""
    entry = journal.read(root, app)
    if entry is None:
        now = ledger.current(root, app)
        return ({str(now.number): to_spec(now, running_types(now))} if now else {}), now
    old = None if entry.previous is None else ledger.load(root, app, entry.previous)
    new = ledger.load(root, app, entry.release)
    is_preparing = entry.phase is Phase.PREPARING
    running = {str(old.number): to_spec(old, running_types(old))} if old else {}
    types = {PREPARE: command(new)} if is_preparing else running_types(new)
    running[str(new.number)] = to_spec(new, types)
    return running, new if entry.phase is Phase.SWITCHED else old


def to_spec(release: Release, types: dict[str, spec.Template]) -> spec.Release:
    """A release as diprocd runs it."""
    env = {**release.env, "GIT_REV": release.commit}
    return spec.Release(slug=release.slug, env=env, token=release.token, processes=types)


def running_types(release: Release) -> dict[str, spec.Template]:
    """The process types of the formation. `web` is ready when it listens, others after a while."""
    options = release.settings
    return {
        kind: spec.Template(
            cmd=_argv(release, kind),
            count=count,
            user=options.user,
            port=kind == "web",
            memory_bytes=options.memory_bytes,
            ready=spec.Ready(
                port=kind == "web",
                after_s=0.0 if kind == "web" else options.checks.alive_s,
                timeout_s=options.checks.timeout_s,
            ),
            stop=spec.Stop(
                grace_s=options.grace_s, drain_s=options.drain_s if kind == "web" else 0.0
            ),
        )
        for kind, count in release.formation.items()
    }


def command(release: Release) -> spec.Template:
    """The `release` process type: run once, before anything else of the release."""
    options = release.settings
    return spec.Template(
        cmd=_argv(release, PREPARE),
        user=options.user,
        memory_bytes=options.memory_bytes,
        restart="never",
        ready=spec.Ready(after_s=0.0, timeout_s=options.checks.timeout_s),
        stop=spec.Stop(grace_s=options.grace_s),
    )


def _argv(release: Release, kind: str) -> list[str]:
    return ["bash", "-c", RUN, "bareku", release.commands[kind]]


def status_path(root: Root) -> Path:
    """Where the master says what it knows."""
    return root.run / "diprocd" / "master.json"
