"""The connector's file as types; docs/reference/handler.md shows every key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from bareku import config
from bareku.curve import Keys, client_keys
from bareku.errors import BarekuError

Seconds = Annotated[float, Meta(gt=0, le=86400)]


class Timeouts(Struct, frozen=True, forbid_unknown_fields=True):
    """How long an app may take; docs/reference/handler.md."""

    connect_s: Seconds = 5.0
    first_byte_s: Seconds = 60.0
    idle_s: Seconds = 600.0
    drain_s: Seconds = 30.0


class Pool(Struct, frozen=True, forbid_unknown_fields=True):
    """Idle connections kept to each process."""

    size: Annotated[int, Meta(ge=0, le=10_000)] = 100
    idle_s: Seconds = 4.0


class Mongrel2(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Mongrel2 `Handler` whose requests one app answers; `release` null is the newest there is."""

    app: str
    send_spec: str
    recv_spec: str
    release: int | None = None
    hold_s: Seconds = 30.0


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The connector's file."""

    node: str
    frontends: list[str] = []
    mongrel2: list[Mongrel2] = []
    curve_key: str | None = None
    curve_frontends: dict[str, str] = {}
    worker: str = "/run/diprocd/worker.json"
    run: str = "/run/bareku"
    capacity: Annotated[int, Meta(ge=1, le=10_000)] = 100
    timeouts: Timeouts = Timeouts()
    pool: Pool = Pool()


def load_config(path: Path) -> Config:
    """Raises BarekuError naming the file, the key and the reason."""
    found = config.load(path, Config)
    if not found.frontends and not found.mongrel2:
        raise BarekuError(
            f"cannot read {path}: it names no frontend", hint="add frontends: [tcp://ADDRESS:PORT]"
        )
    for endpoint in found.frontends:
        if not endpoint.startswith(("tcp://", "ipc://")) or endpoint.endswith("://"):
            raise BarekuError(
                f"cannot read {path}: {endpoint!r} is not the endpoint of a frontend",
                hint="write it as tcp://ADDRESS:PORT or ipc://PATH",
            )
    if len(set(found.frontends)) != len(found.frontends):
        raise BarekuError(f"cannot read {path}: a frontend is there twice")
    for key in found.curve_frontends:
        if key not in found.frontends:
            raise BarekuError(
                f"cannot read {path}: curve_frontends names {key!r}, no frontend does"
            )
    for endpoint in found.frontends:
        keys_for(found, endpoint)
    for pair in found.mongrel2:
        client_keys(None, None, [pair.send_spec, pair.recv_spec])
    return found


def keys_for(conf: Config, endpoint: str) -> Keys | None:
    """The keys for a frontend; BarekuError when it is on another machine and there are none."""
    server = conf.curve_frontends.get(endpoint)
    return client_keys(conf.curve_key if server else None, server, [endpoint])
