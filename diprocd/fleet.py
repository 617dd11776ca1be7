"""The master's decisions: who runs what, from the desired state and what the nodes say. Pure.

Moves keep the process count: the old place is given up when the new one is ready, and for an
exclusive process the new one starts when the old one is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diprocd.placement import Host, Item, place
from diprocd.spec import Process

Wanted = Mapping[str, tuple[Process, frozenset[str]]]


@dataclass(frozen=True, slots=True)
class Assignment:
    """id -> node, id -> the node it has to leave yet, id -> why it has no proper place."""

    assign: dict[str, str] = field(default_factory=dict)
    leaving: dict[str, str] = field(default_factory=dict)
    unplaced: dict[str, str] = field(default_factory=dict)


def assign(
    wanted: Wanted, hosts: Mapping[str, Host], before: Assignment, gone: frozenset[str]
) -> Assignment:
    """Place everything; `gone` are the nodes from which nothing is expected any more."""
    items = {
        id_: Item(
            id_,
            f"{one.app}.v{one.release}.{one.type}",
            one.index,
            one.memory_bytes or 0,
            labels,
        )
        for id_, (one, labels) in wanted.items()
    }
    placed = place(hosts, items, before.assign)
    leaving = {
        id_: node
        for id_, node in before.leaving.items()
        if id_ in wanted and node in hosts and node not in gone and placed.assign.get(id_) != node
    }
    for id_, node in before.assign.items():
        moved = id_ in placed.assign and placed.assign[id_] != node
        if moved and id_ not in leaving and node in hosts and node not in gone:
            leaving[id_] = node
    return Assignment(placed.assign, leaving, placed.unplaced)


def shares(
    wanted: Wanted, now: Assignment, nodes: Mapping[str, object]
) -> dict[str, list[Process]]:
    """What each node shall run, moves included, in the order of ids."""
    found: dict[str, list[Process]] = {node: [] for node in nodes}
    for id_ in sorted(now.assign):
        process = wanted[id_][0]
        old = now.leaving.get(id_)
        if not (process.exclusive and old is not None):
            found[now.assign[id_]].append(process)
        if old is not None and not process.exclusive and old != now.assign[id_]:
            found[old].append(process)
    return found


def moved(
    wanted: Wanted, now: Assignment, ready: Mapping[str, set[str]], absent: Mapping[str, set[str]]
) -> Assignment:
    """`now` without the moves that are done.

    `ready`: node -> ids ready there; `absent`: node -> ids in `leaving` that it, having the newest
    document, no longer has.
    """
    leaving = {}
    for id_, old in now.leaving.items():
        if wanted[id_][0].exclusive:
            is_done = id_ in absent.get(old, ())
        else:
            is_done = id_ in ready.get(now.assign[id_], ())
        if not is_done:
            leaving[id_] = old
    return Assignment(now.assign, leaving, now.unplaced)
