"""Which node runs which process. Pure and deterministic.

Running processes stay where they are (sticky); new ones go to the node with the fewest of their
own kind, then the least reserved memory, then the fewest processes, then by name.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Host:
    """A node as placement sees it. `is_open` is False while it takes nothing new."""

    name: str
    memory_bytes: int | None = None
    labels: frozenset[str] = frozenset()
    is_open: bool = True
    is_kept: bool = True  # False: what runs there must leave (drained, lost)


@dataclass(frozen=True, slots=True)
class Item:
    """A process to place. `kind` is what should be spread: app, release and process type."""

    id: str
    kind: str
    index: int
    memory_bytes: int = 0
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Placed:
    """`assign`: id -> node. `unplaced`: id -> why not. What must leave but cannot is in both."""

    assign: dict[str, str]
    unplaced: dict[str, str]


@dataclass(slots=True)
class _Load:
    memory: int = 0
    count: int = 0
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, item: Item) -> None:
        self.memory += item.memory_bytes
        self.count += 1
        self.kinds[item.kind] += 1


def place(
    hosts: Mapping[str, Host], items: Mapping[str, Item], current: Mapping[str, str]
) -> Placed:
    """Assign every item to a host; `current` is where they are now.

    An item whose node must be left and that fits nowhere else stays assigned to its old node if
    that is still in `hosts`, and is reported.
    """
    assign: dict[str, str] = {}
    unplaced: dict[str, str] = {}
    loads = {name: _Load() for name in hosts}
    movers: dict[tuple[int, str, frozenset[str]], list[Item]] = defaultdict(list)
    for id_, item in items.items():
        host = hosts.get(current.get(id_, ""))
        if host is not None and host.is_kept and item.labels <= host.labels:
            assign[id_] = host.name
            loads[host.name].add(item)
        else:
            movers[(-item.memory_bytes, item.kind, item.labels)].append(item)
    for (_, kind, labels), group in sorted(
        movers.items(), key=lambda pair: (pair[0][0], pair[0][1], sorted(pair[0][2]))
    ):
        _spread(hosts, loads, kind, labels, group, assign, unplaced)
    for id_ in unplaced:
        if current.get(id_) in hosts:
            assign[id_] = current[id_]
    return Placed(assign, unplaced)


def _spread(
    hosts: Mapping[str, Host],
    loads: Mapping[str, _Load],
    kind: str,
    labels: frozenset[str],
    group: list[Item],
    assign: dict[str, str],
    unplaced: dict[str, str],
) -> None:
    """Place one kind; within it only the chosen host's rank changes, so a heap stays exact."""
    usable = [host for host in hosts.values() if host.is_open and host.is_kept]
    fitting = [host for host in usable if labels <= host.labels]
    heap = [_rank(host, loads[host.name], kind) for host in fitting]
    heapq.heapify(heap)
    for item in sorted(group, key=lambda one: (one.index, one.id)):
        full: list[tuple[int, float, int, str]] = []
        while heap and not _fits(hosts[heap[0][3]], loads[heap[0][3]], item):
            full.append(heapq.heappop(heap))
        if heap:
            name = heap[0][3]
            assign[item.id] = name
            loads[name].add(item)
            heapq.heapreplace(heap, _rank(hosts[name], loads[name], kind))
        else:
            unplaced[item.id] = _reason(hosts, usable, fitting, labels, item)
        for rank in full:
            heapq.heappush(heap, rank)


def _rank(host: Host, load: _Load, kind: str) -> tuple[int, float, int, str]:
    used = load.memory / host.memory_bytes if host.memory_bytes else 0.0
    return (load.kinds.get(kind, 0), used, load.count, host.name)


def _fits(host: Host, load: _Load, item: Item) -> bool:
    return host.memory_bytes is None or load.memory + item.memory_bytes <= host.memory_bytes


def _reason(
    hosts: Mapping[str, Host],
    usable: list[Host],
    fitting: list[Host],
    labels: frozenset[str],
    item: Item,
) -> str:
    if not hosts:
        return "there are no nodes"
    if not usable:
        return "no node takes new processes"
    if not fitting:
        missing = ", ".join(sorted(labels))
        return f"no node that takes new processes has the labels {missing}"
    return f"no node has {item.memory_bytes} bytes of memory left"
