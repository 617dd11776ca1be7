"""A release without a push: the current one with another environment or formation, an older one
again, or the same once more. It goes through the same checks and the same switch as a push."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from bareku import app as apps
from bareku import envfile
from bareku import settings as settings_file
from bareku.app import Release
from bareku.errors import BarekuError
from bareku.files import write_atomic
from bareku.paths import Root
from bareku.receive import deploy, ledger, lock, nodes, slug
from bareku.receive.slug import Slug
from bareku.receive.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Change:
    """What somebody wants: the files that say so, and the release they lead to."""

    release: Release
    files: Mapping[Path, bytes]


Plan = Callable[[Release], Change]
Edit = Callable[[dict[str, str]], dict[str, str]]


def make(root: Root, app: str, plan: Plan, *, user: str, reason: str, out: Transcript) -> Release:
    """Take `plan(current)` live; returns the new release.

    The files of the plan are written when the new release has been found good, so that a bad
    change leaves them as they were. Raises BarekuError; everything is as before then.
    """
    apps.require(root, app)
    with lock.held(root, app, f"{user} is changing {app}", out.step):
        deploy.settle(root, app)
        deploy.require_master(root)
        now = ledger.current(root, app)
        if now is None:
            raise BarekuError(
                f"cannot change {app}: nothing was deployed yet",
                hint=f"push first: git push bareku {apps.load_settings(root, app).branch}",
            )
        change = plan(now)
        release = replace(
            change.release,
            number=ledger.next_number(root, app),
            token=secrets.token_hex(16),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            created_by=user,
            reason=reason,
        )
        with deploy.taken_back_on_error(root, app):
            with _shipped(root, now, release, out) as console:
                deploy.begin(root, release, ref="", console=console, run_command=False)
            for path, data in change.files.items():
                write_atomic(path, data, mode=0o600 if path.suffix == ".env" else 0o644)
        deploy.settle(root, app)
    return release


def environment(root: Root, app: str, edit: Edit) -> Plan:
    """The current release with the env file as `edit` makes it."""

    def plan(now: Release) -> Change:
        path = root.app_env(app)
        env = edit(apps.load_env(root, app))
        for key, value in env.items():
            envfile.check(key, value, name=f"apps/{path.name}")
        release = replace(now, env={**_defaults(root, now), **env})
        return Change(release, {path: _env_text(path, env)})

    return plan


def formation(root: Root, app: str, counts: Mapping[str, int]) -> Plan:
    """The current release with other numbers of processes, kept in the app's settings."""

    def plan(now: Release) -> Change:
        path = root.app_settings(app)
        options = apps.load_settings(root, app)
        options = replace(options, formation={**now.formation, **options.formation, **counts})
        running = apps.formation(app, now.commands, options)
        release = replace(now, formation=running, settings=options)
        return Change(release, {path: settings_text(path, options.formation)})

    return plan


def again(now: Release) -> Change:
    """The current release once more: new processes."""
    return Change(now, {})


def earlier(root: Root, app: str, number: int | None) -> Plan:
    """An earlier release as it was: slug, environment, formation; the one before by default."""

    def plan(now: Release) -> Change:
        known = [n for n in ledger.numbers(root, app) if n != now.number]
        wanted = known[-1] if number is None and known else number
        if wanted not in known:
            listed = ", ".join(f"v{n}" for n in known[-10:]) or "there is none"
            raise BarekuError(
                f"cannot go back to {f'v{wanted}' if wanted else 'a release'} of {app}: "
                "it is not among the earlier releases",
                hint=f"the earlier ones: {listed}",
            )
        old = ledger.load(root, app, wanted)
        defaults = _defaults(root, old)
        env = {key: value for key, value in old.env.items() if defaults.get(key) != value}
        env_path, settings_path = root.app_env(app), root.app_settings(app)
        files = {env_path: _env_text(env_path, env)}
        if old.formation != now.formation:
            files[settings_path] = settings_text(settings_path, old.formation)
        return Change(old, files)

    return plan


def _defaults(root: Root, release: Release) -> Mapping[str, str]:
    """What the buildpack sets unless the env file does."""
    return slug.load(root.slugs, release.slug).built.config_vars


def _env_text(path: Path, env: Mapping[str, str]) -> bytes:
    text = path.read_text() if path.exists() else ""
    return envfile.change(text, env, name=f"apps/{path.name}").encode()


def settings_text(path: Path, counts: Mapping[str, int]) -> bytes:
    """The settings file with this formation; everything else in it stays, notes too."""
    import yaml

    text = path.read_text() if path.exists() else ""
    line = "formation: {" + ", ".join(f"{kind}: {n}" for kind, n in counts.items()) + "}"
    document = yaml.compose(text)
    for key, value in document.value if document else ():
        if key.value == "formation":
            # the end of a block mapping is the next token, behind the notes in between
            end = value if value.flow_style else value.value[-1][1]
            return (text[: key.start_mark.index] + line + text[end.end_mark.index :]).encode()
    if text and not text.endswith("\n"):
        text += "\n"
    return f"{text}{line}\n".encode()


@contextmanager
def _shipped(
    root: Root, now: Release, release: Release, out: Transcript
) -> Iterator[deploy.Console]:
    """The release's slug is on the nodes; connections are made only when something is to be sent
    or a log is to be read."""
    settings = settings_file.load(root)
    if release.slug == now.slug:
        yield nodes.LateConsole(root, settings, release, out)
        return
    made: Slug = slug.load(root.slugs, release.slug)
    with nodes.connecting(root, settings) as opening:
        connections = opening.result()
        nodes.deliver(connections, made, out)
        yield nodes.Console(out, connections, release)
        nodes.define(connections, release.app, release.slug)
