"""The life of one process as a table: (state, event) -> (next state, action). Pure.

One life belongs to one generation of one process. The worker turns what it observes into events
and carries the actions out; docs/explanation/process-lifecycle.md is drawn from TABLE.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a process is in its life."""

    NEW = "new"  # wanted, never launched
    STARTING = "starting"  # launched, not ready yet
    RUNNING = "running"  # ready
    DRAINING = "draining"  # unwanted, still answering the requests it has
    STOPPING = "stopping"  # unwanted, told to go
    FAILING = "failing"  # wanted, but not ready in time: told to go, to be started anew
    CLEARING = "clearing"  # wanted, main process gone, the rest of its tree is being removed
    BACKOFF = "backoff"  # wanted, waits for its next start
    EXITED = "exited"  # wanted to run once, and did
    GONE = "gone"  # nothing is left of it


class Event(StrEnum):
    """What happens to a process."""

    WANT = "want"  # the desired state names it
    UNWANT = "unwant"  # the desired state no longer names it, and nothing waits for it
    READY = "ready"
    LATE = "late"  # not ready within its time
    LOCKED = "locked"  # the launcher found another launcher at work
    UNSPAWNED = "unspawned"  # it could not be launched at all
    EXIT = "exit"  # the main process is gone
    DRAINED = "drained"  # its last request is answered, or the drain time is over
    TIMER = "timer"  # grace over, backoff over
    EMPTY = "empty"  # no process of the tree is left
    ENDED = "ended"  # the same, for a process that is to run only once


class Action(StrEnum):
    """What the worker does on a transition."""

    NONE = ""
    LAUNCH = "launch"
    PROMOTE = "promote"  # note that it is ready
    DRAIN = "drain"  # ask for no new requests, start the drain timer
    UNDRAIN = "undrain"
    SIGNAL = "signal"  # stop signal and CONT to the main process, start the grace timer
    KILL = "kill"  # KILL the whole tree, again each second until it is empty
    CLEAR = "clear"  # the main process ended by itself: what is left of the tree gets a second
    HURRY = "hurry"  # stopping: what is left of the tree gets the stop signal, grace runs on
    RESTART = "restart"  # count the failure, start the backoff timer
    RETRY = "retry"  # not its fault: try again in a second, count nothing
    FINISH = "finish"  # note that it has run
    FORGET = "forget"  # remove its folder and cgroup


S, E, A = State, Event, Action

TABLE: dict[tuple[State, Event], tuple[State, Action]] = {
    (S.NEW, E.WANT): (S.STARTING, A.LAUNCH),
    (S.NEW, E.UNWANT): (S.GONE, A.FORGET),
    (S.STARTING, E.READY): (S.RUNNING, A.PROMOTE),
    (S.STARTING, E.LATE): (S.FAILING, A.SIGNAL),
    (S.STARTING, E.LOCKED): (S.BACKOFF, A.RETRY),
    (S.STARTING, E.UNSPAWNED): (S.BACKOFF, A.RESTART),
    (S.STARTING, E.EXIT): (S.CLEARING, A.CLEAR),
    (S.STARTING, E.UNWANT): (S.STOPPING, A.SIGNAL),
    (S.RUNNING, E.EXIT): (S.CLEARING, A.CLEAR),
    (S.RUNNING, E.UNWANT): (S.DRAINING, A.DRAIN),
    (S.DRAINING, E.WANT): (S.RUNNING, A.UNDRAIN),
    (S.DRAINING, E.DRAINED): (S.STOPPING, A.SIGNAL),
    (S.DRAINING, E.EXIT): (S.STOPPING, A.CLEAR),
    (S.STOPPING, E.EXIT): (S.STOPPING, A.HURRY),
    (S.STOPPING, E.TIMER): (S.STOPPING, A.KILL),
    (S.STOPPING, E.EMPTY): (S.GONE, A.FORGET),
    (S.STOPPING, E.ENDED): (S.GONE, A.FORGET),
    (S.FAILING, E.EXIT): (S.FAILING, A.CLEAR),
    (S.FAILING, E.TIMER): (S.FAILING, A.KILL),
    (S.FAILING, E.EMPTY): (S.BACKOFF, A.RESTART),
    (S.FAILING, E.ENDED): (S.EXITED, A.FINISH),
    (S.FAILING, E.UNWANT): (S.STOPPING, A.NONE),
    (S.CLEARING, E.TIMER): (S.CLEARING, A.KILL),
    (S.CLEARING, E.EMPTY): (S.BACKOFF, A.RESTART),
    (S.CLEARING, E.ENDED): (S.EXITED, A.FINISH),
    (S.CLEARING, E.UNWANT): (S.STOPPING, A.NONE),
    (S.BACKOFF, E.TIMER): (S.STARTING, A.LAUNCH),
    (S.BACKOFF, E.UNWANT): (S.STOPPING, A.SIGNAL),  # an earlier worker's launcher may be at work
    (S.EXITED, E.UNWANT): (S.GONE, A.FORGET),
}

# with a process behind it, as far as anyone knows
ALIVE = frozenset({S.STARTING, S.RUNNING, S.DRAINING, S.STOPPING, S.FAILING, S.CLEARING})
# on its way out for good
LEAVING = frozenset({S.DRAINING, S.STOPPING, S.GONE})

_SHOWN = {S.NEW: "starting", S.FAILING: "stopping", S.CLEARING: "backoff"}


def step(state: State, event: Event) -> tuple[State, Action]:
    """The transition; an event that means nothing in this state changes nothing."""
    return TABLE.get((state, event), (state, Action.NONE))


def shown(state: State) -> str:
    """The state in the words of the worker's status file."""
    return _SHOWN.get(state, state.value)


def drawing() -> str:
    """TABLE as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {S.NEW}"]
    for (state, event), (after, action) in TABLE.items():
        label = f"{event} / {action}" if action else event.value
        lines.append(f"    {state} --> {after}: {label}")
    return "\n".join([*lines, f"    {S.GONE} --> [*]"])
