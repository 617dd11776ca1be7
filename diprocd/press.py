"""From shares and routes to publications: a new version where the content is new. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from diprocd import wire
from diprocd.spec import Doc, NodeDocument, Process, Route, RouteDocument, encode


@dataclass(slots=True)
class Edition:
    """What shall be known of every document, and the publications that are new."""

    docs: dict[str, Doc]
    frontends: dict[str, Doc]
    fresh: list[bytes] = field(default_factory=list)
    frames: dict[bytes, list[bytes]] = field(default_factory=dict)


def print_edition(
    cluster: str,
    epoch: int,
    shares: Mapping[str, list[Process]],
    routes: Mapping[str, list[Route]],
    docs: Mapping[str, Doc],
    frontends: Mapping[str, Doc],
    held: Mapping[bytes, list[bytes]],
) -> Edition:
    """Every document in its current version; `frames` has those that `held` lacks or has older.

    A node of `docs` without a share was taken out, and is told that it shall run nothing.
    """
    made = Edition(dict(docs), dict(frontends))
    for name in shares.keys() | docs.keys():
        processes = shares.get(name, [])
        node = NodeDocument(
            cluster=cluster,
            node=name,
            epoch=0,
            version=0,
            empty=not processes,
            processes=processes,
        )
        _print(made, made.docs, name, wire.node_topic(name), "desired", node, epoch, held)
    for name, table in routes.items():
        route = RouteDocument(cluster=cluster, frontend=name, epoch=0, version=0, routes=table)
        _print(made, made.frontends, name, wire.frontend_topic(name), "routes", route, epoch, held)
    return made


def _print(
    made: Edition,
    known: dict[str, Doc],
    name: str,
    topic: bytes,
    kind: Literal["desired", "routes"],
    draft: NodeDocument | RouteDocument,
    epoch: int,
    held: Mapping[bytes, list[bytes]],
) -> None:
    content = wire.digest(encode(draft))
    before = known.get(name)
    if before is None or before.sha256 != content:
        known[name] = Doc(before.version + 1 if before else 1, content)
        made.fresh.append(topic)
    elif topic in held:
        return
    version = known[name].version
    body = encode(msgspec.structs.replace(draft, epoch=epoch, version=version))
    header = wire.Header(t=kind, epoch=epoch, version=version, sha256=wire.digest(body))
    made.frames[topic] = wire.frames(topic, header, body)
