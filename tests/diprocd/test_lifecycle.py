from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diprocd.lifecycle import ALIVE, LEAVING, TABLE, Action, Event, State, drawing, shown, step

EVENTS = st.lists(st.sampled_from(list(Event)), max_size=40)


def reachable(start: State) -> set[State]:
    found, todo = {start}, [start]
    while todo:
        state = todo.pop()
        for (before, _), (after, _) in TABLE.items():
            if before is state and after not in found:
                found.add(after)
                todo.append(after)
    return found


def test_every_state_can_be_reached() -> None:
    assert reachable(State.NEW) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_life_can_end(state: State) -> None:
    assert State.GONE in reachable(state)


@pytest.mark.parametrize("state", sorted(ALIVE - LEAVING))
def test_what_is_no_longer_wanted_is_never_started_again(state: State) -> None:
    after, _ = step(state, Event.UNWANT)
    while_unwanted = {after}
    todo = [after]
    while todo:
        now = todo.pop()
        for event in set(Event) - {Event.WANT}:
            following, action = step(now, event)
            assert action is not Action.LAUNCH, (now, event)
            if following not in while_unwanted:
                while_unwanted.add(following)
                todo.append(following)
    if state not in {State.CLEARING, State.FAILING, State.STARTING}:
        assert while_unwanted <= LEAVING


@pytest.mark.parametrize(("state", "event"), TABLE)
def test_nothing_is_launched_beside_a_living_process(state: State, event: Event) -> None:
    if TABLE[state, event][1] is Action.LAUNCH:
        assert state not in ALIVE


@given(EVENTS)
def test_a_life_has_at_most_one_tree_at_a_time(events: list[Event]) -> None:
    state, has_tree = State.NEW, False
    for event in events:
        state, action = step(state, event)
        assert not (has_tree and action is Action.LAUNCH)
        has_tree = (has_tree or action is Action.LAUNCH) and state in ALIVE
        assert action is not Action.FORGET or not has_tree


@given(EVENTS)
def test_only_a_ready_process_is_drained(events: list[Event]) -> None:
    state = State.NEW
    for event in events:
        before = state
        state, action = step(state, event)
        if action is Action.DRAIN:
            assert before is State.RUNNING


@given(st.sampled_from(list(State)), st.sampled_from(list(Event)))
def test_an_event_without_meaning_changes_nothing(state: State, event: Event) -> None:
    if (state, event) not in TABLE:
        assert step(state, event) == (state, Action.NONE)


def test_the_status_file_knows_only_the_documented_states() -> None:
    words = {"starting", "running", "draining", "stopping", "backoff", "exited", "gone"}
    assert {shown(state) for state in State} == words


def test_the_drawing_has_every_transition() -> None:
    lines = drawing().splitlines()
    assert len(lines) == len(TABLE) + 3
    assert "    running --> draining: unwant / drain" in lines
