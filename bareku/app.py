"""An app's settings (`apps/<app>.yml`) and its releases (`releases/<app>/<n>.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from bareku import config, envfile
from bareku.errors import BarekuError, nearest
from bareku.paths import Root

Timeout = Annotated[float, Meta(gt=0, le=3600)]


class Checks(Struct, frozen=True, forbid_unknown_fields=True):
    """When a release counts as up: its `web` listens on $PORT, its others live for `alive_s`."""

    timeout_s: Timeout = 30.0
    alive_s: Timeout = 1.0


class AppSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`apps/<app>.yml`, edited by people."""

    branch: str = "master"
    domains: list[str] = []
    buildpacks: list[str] = []
    formation: dict[str, Annotated[int, Meta(ge=0, le=1000)]] = {}
    checks: Checks = Checks()
    drain_s: Timeout = 30.0
    grace_s: Timeout = 10.0
    memory_bytes: Annotated[int, Meta(ge=2**20)] | None = None
    user: str = "nobody"
    keep_releases: Annotated[int, Meta(ge=1, le=1000)] = 10


class Release(Struct, frozen=True, kw_only=True):
    """`v42`: everything that ran under that number; never changed once written."""

    app: str
    number: int
    slug: str
    commit: str
    tree: str
    env: dict[str, str]
    commands: dict[str, str]
    formation: dict[str, int]
    hosts: list[str]
    settings: AppSettings
    buildpack: str
    runtime: str
    size_bytes: int
    token: str
    created_at: str
    created_by: str
    reason: str
    format: int = 1


def formation(app: str, types: Mapping[str, str], options: AppSettings) -> dict[str, int]:
    """How many of each process type run: `web` once and the others not, unless the settings say.

    Raises BarekuError when a setting names no type of the app, or when nothing would run.
    """
    running = {kind: 1 if kind == "web" else 0 for kind in types if kind != "release"}
    for kind, count in options.formation.items():
        if kind not in running:
            near = nearest(kind, running)
            raise BarekuError(
                f"cannot scale {app}: apps/{app}.yml sets a formation for {kind!r}, "
                f"and the Procfile has no such process type",
                hint=f"did you mean {near!r}?" if near else f"it has: {', '.join(running)}",
            )
        running[kind] = count
    if "web" not in running and not any(running.values()):
        found = f"only {', '.join(sorted(types))}" if types else "no process type at all"
        raise BarekuError(
            f"cannot deploy {app}: it has no `web` process type ({found}), so nothing would run",
            hint="add a line to its Procfile, such as: web: gunicorn app:app\n"
            f"or, for an app without web, set how many run in apps/{app}.yml: "
            "formation: {worker: 1}",
        )
    return {kind: count for kind, count in running.items() if count or kind == "web"}


def exists(root: Root, app: str) -> bool:
    """True when the app has been created."""
    return root.repository(app).is_dir()


def names(root: Root) -> list[str]:
    """Every app, sorted."""
    return sorted(path.stem for path in root.repositories.glob("*.git"))


def require(root: Root, app: str) -> None:
    """Raise BarekuError (exit code 20) naming the nearest app when this one does not exist."""
    if exists(root, app):
        return
    near = nearest(app, names(root))
    raise BarekuError(
        f"cannot find the app {app!r}: no app has this name",
        hint=f"did you mean {near!r}?" if near else f"create it with `bareku apps:create {app}`",
        exit_code=20,
    )


def load_settings(root: Root, app: str) -> AppSettings:
    """The app's settings; the defaults when the file does not exist."""
    path = root.app_settings(app)
    return config.load(path, AppSettings) if path.exists() else AppSettings()


def load_env(root: Root, app: str) -> dict[str, str]:
    """The app's env file; empty when there is none. Raises BarekuError with the line number."""
    path = root.app_env(app)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as exc:
        raise BarekuError(f"cannot read apps/{path.name}: not UTF-8 at byte {exc.start}") from exc
    return envfile.parse(text, name=f"apps/{path.name}")
