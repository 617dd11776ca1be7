"""Which processes are served, by the worker's word."""

from __future__ import annotations

from typing import Any

from appnode.census import Process, plan
from appnode.greeting import TABLE, Event, Say, State, step


def process(name: str = "shop.v1.web.1", **fields: Any) -> Process:
    base = {"id": name, "gen": "g", "app": "shop", "type": "web", "index": 1, "release": 1}
    return Process(**{**base, "state": "running", "ready": True, "pid": 7, "port": 5, **fields})


def test_only_ready_running_processes_with_a_port_are_added() -> None:
    found = plan(
        {},
        [
            process("a"),
            process("b", ready=False),
            process("c", port=None),
            process("d", state="starting"),
            process("e", state="draining"),
            process("f", state="backoff"),
        ],
    )
    assert [one.id for one in found.add] == ["a"]
    assert [one.id for one in found.drained] == ["e"]


def test_new_pid_or_port_or_generation_is_another_process() -> None:
    served = {process().key: False}
    for change in ({"pid": 8}, {"port": 6}, {"gen": "h"}):
        found = plan(served, [process(**change)])
        assert list(found.remove) == [process().key]
        assert len(found.add) == 1


def test_draining_leaves_once_and_gone_is_removed() -> None:
    one = process()
    draining = process(state="draining")
    assert plan({one.key: False}, [draining]).leave == [one.key]
    assert plan({one.key: True}, [draining]).leave == []
    assert plan({one.key: True}, [draining]).drained == []
    assert plan({one.key: True}, []).remove == [one.key]
    assert plan({one.key: False}, [process(state="exited", pid=None)]).remove == [one.key]


def test_stopping_process_may_still_answer() -> None:
    one = process()
    found = plan({one.key: False}, [process(state="stopping")])
    assert (found.leave, found.remove) == ([one.key], [])


def test_every_way_leads_to_left_after_a_farewell_or_a_loss() -> None:
    for state in State:
        after, _ = step(state, Event.LEAVE)
        after, _ = step(after, Event.FAREWELL)
        assert after is State.LEFT, state


def test_nothing_is_said_without_a_connection() -> None:
    for (state, event), (_, say) in TABLE.items():
        if state is State.AWAY and event is not Event.UP:
            assert say is Say.NOTHING
