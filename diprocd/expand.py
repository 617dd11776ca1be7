"""From the desired document to single processes: `web: 3` becomes web.1, web.2, web.3. Pure."""

from __future__ import annotations

from bareku.errors import BarekuError
from bareku.names import parse_app, parse_node, parse_process_type, parse_slug
from diprocd.spec import Desired, Process, Release, Template, process_id

MAX_PROCESSES = 20_000


def check(desired: Desired) -> None:
    """Raise BarekuError for what the types cannot say: names, slugs, routes into nothing."""
    for node in (*desired.nodes, *desired.frontends):
        parse_node(node)
    for name, app in desired.apps.items():
        parse_app(name)
        for number, release in app.releases.items():
            if not (number.isascii() and number.isdigit()):
                raise BarekuError(f"cannot run {name}: {number!r} is not a release number")
            if release.slug is not None:
                parse_slug(release.slug)
            for kind in release.processes:
                parse_process_type(kind)
    for route in desired.routes:
        if not route.prefix.startswith("/"):
            raise BarekuError(
                f"cannot route {route.host}: prefix {route.prefix!r} has no leading /"
            )
    total = sum(
        template.count
        for app in desired.apps.values()
        for release in app.releases.values()
        for template in release.processes.values()
    )
    if total > MAX_PROCESSES:
        raise BarekuError(f"cannot run {total} processes: at most {MAX_PROCESSES} are allowed")


def processes(desired: Desired) -> dict[str, tuple[Process, frozenset[str]]]:
    """id -> (the process, the labels its node must have), of everything that shall run."""
    found: dict[str, tuple[Process, frozenset[str]]] = {}
    for name, app in desired.apps.items():
        for number, release in app.releases.items():
            for kind, template in release.processes.items():
                labels = frozenset(template.labels)
                for index in range(1, template.count + 1):
                    one = _process(name, int(number), kind, index, release, template)
                    found[one.id] = (one, labels)
    return found


def _process(
    app: str, number: int, kind: str, index: int, release: Release, template: Template
) -> Process:
    return Process(
        id=process_id(app, number, kind, index),
        app=app,
        type=kind,
        index=index,
        release=number,
        cmd=template.cmd,
        slug=release.slug,
        token=release.token,
        env={**release.env, **template.env},
        cwd=template.cwd,
        user=template.user,
        port=template.port,
        memory_bytes=template.memory_bytes,
        pids=template.pids,
        cpu=template.cpu,
        nofile=template.nofile,
        stop=template.stop,
        ready=template.ready,
        restart=template.restart,
        exclusive=template.exclusive,
        priority=template.priority,
    )
