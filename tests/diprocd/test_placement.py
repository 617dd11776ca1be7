from __future__ import annotations

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from diprocd.placement import Host, Item, place

HOSTS = st.lists(
    st.builds(
        Host,
        st.sampled_from([f"n{i}" for i in range(6)]),
        st.one_of(st.none(), st.integers(1, 8)),
        st.frozensets(st.sampled_from(["php", "gpu"])),
        st.booleans(),
        st.booleans(),
    ),
    max_size=6,
    unique_by=lambda host: host.name,
).map(lambda hosts: {host.name: host for host in hosts})
ITEMS = st.lists(
    st.builds(
        Item,
        st.integers(0, 30).map(str),
        st.sampled_from(["a.1.web", "b.1.web"]),
        st.integers(1, 9),
        st.integers(0, 4),
        st.frozensets(st.sampled_from(["php", "gpu"]), max_size=1),
    ),
    max_size=20,
    unique_by=lambda item: item.id,
).map(lambda items: {item.id: item for item in items})
CURRENT = st.dictionaries(
    st.integers(0, 30).map(str), st.sampled_from([f"n{i}" for i in range(8)]), max_size=20
)


@settings(max_examples=40)
@given(HOSTS, ITEMS, CURRENT)
def test_every_process_is_placed_or_named_with_a_reason(
    hosts: dict[str, Host], items: dict[str, Item], current: dict[str, str]
) -> None:
    placed = place(hosts, items, current)
    assert placed.assign.keys() | placed.unplaced.keys() == items.keys()
    assert all(placed.unplaced.values())
    for id_ in placed.assign.keys() & placed.unplaced.keys():
        assert placed.assign[id_] == current[id_]


@settings(max_examples=40)
@given(HOSTS, ITEMS, CURRENT)
def test_what_runs_on_a_kept_node_that_fits_never_moves(
    hosts: dict[str, Host], items: dict[str, Item], current: dict[str, str]
) -> None:
    placed = place(hosts, items, current)
    for id_, item in items.items():
        host = hosts.get(current.get(id_, ""))
        if host is not None and host.is_kept and item.labels <= host.labels:
            assert placed.assign[id_] == host.name


@settings(max_examples=40)
@given(HOSTS, ITEMS, CURRENT)
def test_what_is_new_on_a_node_fits_its_labels_and_memory(
    hosts: dict[str, Host], items: dict[str, Item], current: dict[str, str]
) -> None:
    placed = place(hosts, items, current)
    for name, host in hosts.items():
        here = [items[id_] for id_, node in placed.assign.items() if node == name]
        new = [item for item in here if current.get(item.id) != name]
        assert all(item.labels <= host.labels and host.is_open and host.is_kept for item in new)
        if new and any(item.memory_bytes for item in new) and host.memory_bytes is not None:
            placed_here = [item for item in here if item.id not in placed.unplaced]
            assert sum(item.memory_bytes for item in placed_here) <= host.memory_bytes


@settings(max_examples=40)
@given(HOSTS, ITEMS, CURRENT, st.randoms())
def test_the_order_of_the_documents_does_not_matter(
    hosts: dict[str, Host],
    items: dict[str, Item],
    current: dict[str, str],
    chance: random.Random,
) -> None:
    shuffled = list(items.items())
    chance.shuffle(shuffled)
    turned = dict(reversed(hosts.items()))
    assert place(hosts, items, current) == place(turned, dict(shuffled), current)


@settings(max_examples=40)
@given(HOSTS, ITEMS, CURRENT)
def test_placing_again_moves_nothing(
    hosts: dict[str, Host], items: dict[str, Item], current: dict[str, str]
) -> None:
    first = place(hosts, items, current)
    again = place(hosts, items, first.assign)
    assert {i: n for i, n in again.assign.items() if i not in first.unplaced} == {
        i: n for i, n in first.assign.items() if i not in first.unplaced
    }


@given(st.integers(1, 12), st.integers(0, 60))
def test_equal_nodes_get_equally_many(nodes: int, count: int) -> None:
    hosts = {f"n{i}": Host(f"n{i}") for i in range(nodes)}
    items = {str(i): Item(str(i), "a.1.web", i) for i in range(count)}
    placed = place(hosts, items, {})
    counts = [list(placed.assign.values()).count(name) for name in hosts]
    assert max(counts) - min(counts) <= 1


def test_a_reason_says_what_is_missing() -> None:
    item = {"x": Item("x", "a.1.web", 1, 100, frozenset({"php"}))}
    reason = {
        "there are no nodes": {},
        "no node takes new processes": {"n": Host("n", is_open=False)},
        "no node that takes new processes has the labels php": {"n": Host("n")},
        "no node has 100 bytes of memory left": {"n": Host("n", 99, frozenset({"php"}))},
    }
    for text, hosts in reason.items():
        assert place(hosts, item, {}).unplaced == {"x": text}


def test_a_drained_node_is_left_for_those_with_room() -> None:
    hosts = {"old": Host("old", is_kept=False), "new": Host("new")}
    items = {str(i): Item(str(i), "a.1.web", i) for i in range(3)}
    assert set(place(hosts, items, dict.fromkeys(items, "old")).assign.values()) == {"new"}


def test_a_thousand_nodes_are_placed_at_once() -> None:
    hosts = {f"n{i}": Host(f"n{i}", 8 << 30) for i in range(1000)}
    items = {f"{a}.{i}": Item(f"{a}.{i}", str(a), i, 1 << 28) for a in range(60) for i in range(50)}
    begun = time.process_time()
    placed = place(hosts, items, {})
    assert time.process_time() - begun < 2
    without = {name: host for name, host in hosts.items() if name != "n7"}
    moved = place(without, items, placed.assign)
    changed = {id_ for id_ in items if moved.assign[id_] != placed.assign[id_]}
    assert changed == {id_ for id_, node in placed.assign.items() if node == "n7"}
