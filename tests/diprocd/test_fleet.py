"""Moves between nodes, decided."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diprocd import fleet
from diprocd.fleet import Assignment
from diprocd.placement import Host
from diprocd.spec import Process

NODES = ["n1", "n2", "n3"]
NONE: frozenset[str] = frozenset()


def wanted(count: int, exclusive: bool = False) -> fleet.Wanted:
    made = (
        Process(
            id=f"app.v1.web.{i}",
            app="app",
            type="web",
            index=i,
            release=1,
            cmd=["x"],
            exclusive=exclusive,
        )
        for i in range(1, count + 1)
    )
    return {one.id: (one, NONE) for one in made}


def hosts(*left: str) -> dict[str, Host]:
    return {n: Host(n, is_open=n not in left, is_kept=n not in left) for n in NODES}


def running(one: Assignment, what: fleet.Wanted) -> dict[str, list[str]]:
    found = fleet.shares(what, one, dict.fromkeys(NODES))
    return {node: [p.id for p in processes] for node, processes in found.items()}


def test_drained_node_keeps_its_process_until_the_new_one_is_ready() -> None:
    what = wanted(1)
    first = fleet.assign(what, hosts(), Assignment(), NONE)
    assert running(first, what)["n1"] == ["app.v1.web.1"]
    moving = fleet.assign(what, hosts("n1"), first, NONE)
    target = moving.assign["app.v1.web.1"]
    assert target != "n1"
    assert running(moving, what)["n1"] == running(moving, what)[target] == ["app.v1.web.1"]
    done = fleet.moved(what, moving, {target: {"app.v1.web.1"}}, {})
    assert running(done, what)["n1"] == []


def test_exclusive_process_starts_on_the_new_node_when_the_old_one_let_it_go() -> None:
    what = wanted(1, exclusive=True)
    first = fleet.assign(what, hosts(), Assignment(), NONE)
    moving = fleet.assign(what, hosts("n1"), first, NONE)
    target = moving.assign["app.v1.web.1"]
    assert running(moving, what) == {"n1": [], "n2": [], "n3": []}
    early = fleet.moved(what, moving, {target: {"app.v1.web.1"}}, {})
    assert early.leaving
    done = fleet.moved(what, moving, {}, {"n1": {"app.v1.web.1"}})
    assert running(done, what)[target] == ["app.v1.web.1"]


def test_lost_node_is_not_waited_for() -> None:
    what = wanted(1, exclusive=True)
    first = fleet.assign(what, hosts(), Assignment(), NONE)
    moved = fleet.assign(what, hosts("n1"), first, frozenset({"n1"}))
    assert moved.leaving == {}
    assert running(moved, what)[moved.assign["app.v1.web.1"]] == ["app.v1.web.1"]


def test_move_is_called_off_when_the_old_node_is_kept_again() -> None:
    what = wanted(1)
    first = fleet.assign(what, hosts(), Assignment(), NONE)
    moving = fleet.assign(what, hosts("n1"), first, NONE)
    back = fleet.assign(what, hosts(*(set(NODES) - {"n1"})), moving, NONE)
    assert running(back, what)["n1"] == ["app.v1.web.1"]


@given(
    st.integers(0, 8),
    st.booleans(),
    st.lists(st.tuples(st.sets(st.sampled_from(NODES)), st.booleans()), max_size=8),
)
def test_every_process_is_somewhere_and_an_exclusive_one_never_twice(
    count: int, exclusive: bool, turns: list[tuple[set[str], bool]]
) -> None:
    what = wanted(count, exclusive)
    now = fleet.assign(what, hosts(), Assignment(), NONE)
    for left, is_lost in turns:
        now = fleet.assign(what, hosts(*left), now, frozenset(left if is_lost else ()))
        places = [id_ for ids in running(now, what).values() for id_ in ids]
        if exclusive:
            assert len(places) == len(set(places))
        elif not (is_lost and len(left) == len(NODES)):
            assert set(places) == set(what)
            assert all(places.count(id_) <= 2 for id_ in places)
