"""What silence means."""

from __future__ import annotations

import pytest

from diprocd.health import NodeState, is_mass_outage, is_open, is_silent, node_state
from diprocd.spec import Timing

TIMING = Timing(beat_s=2, suspect_s=15, lost_s=60)
UP, SUSPECT, LOST, UNKNOWN = NodeState


@pytest.mark.parametrize(
    ("heard_s", "now_s", "state"),
    [
        (100.0, 114.9, UP),
        (100.0, 115.0, SUSPECT),
        (100.0, 159.9, SUSPECT),
        (100.0, 160.0, LOST),
        (None, 59.9, UNKNOWN),
        (None, 60.0, LOST),
    ],
)
def test_state_follows_the_length_of_the_silence(
    heard_s: float | None, now_s: float, state: NodeState
) -> None:
    assert node_state(heard_s, 0.0, now_s, TIMING) is state


def test_master_that_has_just_started_takes_nobody_for_lost() -> None:
    assert node_state(None, 1000.0, 1059.0, TIMING) is UNKNOWN


def test_node_that_was_never_heard_loses_its_lease_before_it_is_taken_for_lost() -> None:
    assert not is_silent(None, 0.0, 14.9, TIMING)
    assert is_silent(None, 0.0, 15.0, TIMING)


@pytest.mark.parametrize(
    ("states", "is_outage"),
    [
        ([], False),
        ([LOST], True),
        ([LOST, UP], False),
        ([LOST, LOST, UP], True),
        ([LOST, LOST, UP, UP], False),
        ([SUSPECT, SUSPECT, UP], False),
        ([LOST, SUSPECT, UP], True),
    ],
)
def test_more_than_half_of_the_nodes_lost_is_an_outage(
    states: list[NodeState], is_outage: bool
) -> None:
    assert is_mass_outage(states) is is_outage


def test_node_that_comes_and_goes_gets_nothing_new_before_it_has_stayed() -> None:
    assert not is_open(UP, 100.0, 114.0, TIMING)
    assert is_open(UP, 100.0, 115.0, TIMING)
    assert is_open(UP, None, 0.0, TIMING)
    assert not is_open(SUSPECT, None, 0.0, TIMING)
