"""What the silence of nodes means, and when their processes are moved. Pure.

Only fresh knowledge moves anything: a master that has just started has heard nobody, and when
most nodes fall silent at once it is the network or the master that is ill.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from diprocd.spec import Timing


class NodeState(StrEnum):
    """A node as the master hears it."""

    UP = "up"
    SUSPECT = "suspect"
    LOST = "lost"
    UNKNOWN = "unknown"  # not heard since the master started, which was not long ago


def node_state(heard_s: float | None, started_s: float, now_s: float, timing: Timing) -> NodeState:
    """The state of a node last heard at `heard_s`, by a master that listens since `started_s`."""
    silent_s = now_s - (started_s if heard_s is None else heard_s)
    if silent_s >= timing.lost_s:
        return NodeState.LOST
    if heard_s is None:
        return NodeState.UNKNOWN
    return NodeState.SUSPECT if silent_s >= timing.suspect_s else NodeState.UP


def is_silent(heard_s: float | None, started_s: float, now_s: float, timing: Timing) -> bool:
    """True when a node must not renew its lease: its processes may soon run elsewhere."""
    return now_s - (started_s if heard_s is None else heard_s) >= timing.suspect_s


def is_mass_outage(states: Collection[NodeState]) -> bool:
    """True when more than half of the nodes are silent and the first of them lost.

    Those that fell silent together are not noticed in the same moment, so suspects count.
    """
    silent = [state for state in states if state in {NodeState.LOST, NodeState.SUSPECT}]
    return NodeState.LOST in silent and 2 * len(silent) > len(states)


def is_open(state: NodeState, back_s: float | None, now_s: float, timing: Timing) -> bool:
    """May a node get new processes? One that was lost must first stay for a while (`back_s`)."""
    if state not in {NodeState.UP, NodeState.UNKNOWN}:
        return False
    return back_s is None or now_s - back_s >= timing.suspect_s
