"""The documents of diprocd as types: desired state, node document, route table, node config.

Pure: no file, socket or clock. docs/reference/formats.md shows each with an example.
What people write forbids unknown keys; what daemons send to each other tolerates them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

PROTOCOL = 1

Seconds = Annotated[float, Meta(ge=0, le=86400)]
Interval = Annotated[float, Meta(gt=0, le=86400)]
Count = Annotated[int, Meta(ge=0, le=10_000)]
Restart = Literal["always", "never"]


class Stop(Struct, frozen=True, forbid_unknown_fields=True):
    """How a process ends: drain (a port process is told no more requests), signal, grace, KILL."""

    signal: Literal["TERM", "INT", "QUIT", "HUP", "USR1", "USR2"] = "TERM"
    grace_s: Seconds = 10.0
    drain_s: Seconds = 0.0


class Ready(Struct, frozen=True, forbid_unknown_fields=True):
    """When a process counts as ready: some seconds up, its port listens, its file is there.

    All that are asked for must hold; not ready within `timeout_s` is a failed start.
    """

    after_s: Seconds = 0.0
    port: bool = False
    file: bool = False
    timeout_s: Seconds = 30.0


class Template(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process type of a release: what to run, how many, within which limits."""

    cmd: Annotated[list[str], Meta(min_length=1)]
    count: Count = 1
    env: dict[str, str] = {}
    cwd: str | None = None
    user: str = "nobody"
    port: bool = False
    memory_bytes: Annotated[int, Meta(ge=1)] | None = None
    pids: Annotated[int, Meta(ge=1)] | None = None
    cpu: Annotated[float, Meta(gt=0)] | None = None
    nofile: Annotated[int, Meta(ge=16)] = 1024
    stop: Stop = Stop()
    ready: Ready = Ready()
    restart: Restart = "always"
    exclusive: bool = False
    priority: int = 0
    labels: list[str] = []


class Release(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One release of an app that shall run: slug, environment, process types.

    `slug` is the uuid of an image in each node's slug folder, or None for programs of the host.
    `token` is what a handler shows in its hello, so that no other app can answer for it.
    """

    slug: str | None = None
    env: dict[str, str] = {}
    token: str = ""
    processes: dict[str, Template]


class App(Struct, frozen=True, forbid_unknown_fields=True):
    """The releases of an app that shall run now: one, or two while one replaces the other."""

    releases: dict[str, Release]


class Node(Struct, frozen=True, forbid_unknown_fields=True):
    """A node that may run processes."""

    memory_bytes: Annotated[int, Meta(ge=1)] | None = None
    labels: list[str] = []
    drain: bool = False
    curve: str | None = None


class Route(Struct, frozen=True, forbid_unknown_fields=True):
    """Requests for `host` (exact, `*.suffix`, `*` for the rest) under `prefix` go to a release."""

    host: str
    app: str
    release: int
    prefix: str = "/"
    token: str = ""


class Timing(Struct, frozen=True, forbid_unknown_fields=True):
    """When the master beats, and after which silence it doubts a node and gives it up.

    `lost_s` must leave a silent node's lease (NodeConfig.lease_s after `suspect_s`) and the grace
    of its exclusive processes time to end.
    """

    beat_s: Interval = 2.0
    suspect_s: Interval = 15.0
    lost_s: Interval = 60.0


class Desired(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`diprocd-master.json`: the sockets of the master and everything that shall run."""

    updates: str
    stats: str
    format: Literal[1] = 1
    cluster: str = "bareku"
    run: str = "/run/diprocd"
    nodes: dict[str, Node] = {}
    frontends: list[str] = []
    apps: dict[str, App] = {}
    routes: list[Route] = []
    curve_key: str | None = None
    frontend_curve: dict[str, str] = {}
    timing: Timing = Timing()


class Process(Struct, frozen=True, kw_only=True):
    """One process of a node document. `id` is `<app>.v<release>.<type>.<index>`."""

    id: str
    app: str
    type: str
    index: int
    release: int
    cmd: list[str]
    slug: str | None = None
    token: str = ""
    env: dict[str, str] = {}
    cwd: str | None = None
    user: str = "nobody"
    port: bool = False
    memory_bytes: int | None = None
    pids: int | None = None
    cpu: float | None = None
    nofile: int = 1024
    stop: Stop = Stop()
    ready: Ready = Ready()
    restart: Restart = "always"
    exclusive: bool = False
    priority: int = 0


class NodeDocument(Struct, frozen=True, kw_only=True):
    """Everything one node shall run: the body of `n/<node>/` and, byte for byte, the worker's file.

    `empty` must be true when `processes` is empty: a lost list is not an empty one.
    """

    node: str
    epoch: int
    version: int
    processes: list[Process]
    p: int = PROTOCOL
    cluster: str = "bareku"
    empty: bool = False


class RouteDocument(Struct, frozen=True, kw_only=True):
    """The whole route table of one frontend: the body of `f/<frontend>/`."""

    frontend: str
    epoch: int
    version: int
    routes: list[Route]
    p: int = PROTOCOL
    cluster: str = "bareku"


class Doc(Struct, frozen=True):
    """The last document of one node or frontend: its version and the digest of what it says."""

    version: int
    sha256: str


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`diprocd-client.json`: six keys of the 2012 note, then ours; client and worker read it.

    `%H` in `node_name` is the host name, `%%` a percent sign.
    """

    master_stats: str
    master_updates: str
    node_name: str = "%H"
    conf_file: str = "/var/lib/bareku/diprocd-worker.json"
    pid_file: str | None = None
    log_file: str | None = None
    run: str = "/run/diprocd"
    slugs: str = "/home/slugs"
    logs: str = "/var/log/bareku"
    data: str = "/var/lib/bareku/data"
    ports: tuple[int, int] = (31200, 32699)
    isolation: Literal["auto", "none"] = "auto"
    curve_key: str | None = None
    curve_master: str | None = None
    log_max_bytes: Annotated[int, Meta(ge=65_536)] = 10 * 2**20  # then it is rotated
    log_rotated: Annotated[int, Meta(ge=1, le=1000)] = 5  # files kept beside each log
    log_releases: Annotated[int, Meta(ge=1)] = 10  # of each app; older logs are removed
    uid_base: Annotated[int, Meta(ge=1000, le=2**31)] | None = None
    interval_s: Interval = 5.0
    lease_s: Interval = 30.0


def process_id(app: str, release: int, kind: str, index: int) -> str:
    """`hello.v3.web.1`"""
    return f"{app}.v{release}.{kind}.{index}"


def encode(document: Struct) -> bytes:
    """The document as JSON bytes, keys in field order: equal documents give equal bytes."""
    return msgspec.json.encode(document)
