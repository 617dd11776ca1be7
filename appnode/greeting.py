"""How a handler stands with a frontend: the table of its hellos and goodbyes. Pure."""

from __future__ import annotations

from enum import StrEnum

HELLO_AGAIN_S = 0.5  # an unanswered hello, a rejected one, an unanswered goodbye
HELLO_MOST_S = 2.0  # between the hellos of a handler that is rejected again and again
BEAT_S = 1.0


class State(StrEnum):
    AWAY = "away"  # no connection to the frontend
    GREETING = "greeting"  # said hello
    WELCOME = "welcome"
    REJECTED = "rejected"  # the route table does not fit (yet)
    LEAVING = "leaving"  # said goodbye
    LEFT = "left"  # no request will come


class Event(StrEnum):
    UP = "up"
    DOWN = "down"
    WELCOME = "welcome"
    REJECT = "reject"
    SILENCE = "silence"  # no echo for too long
    LEAVE = "leave"
    FAREWELL = "farewell"
    TICK = "tick"  # HELLO_AGAIN_S after the last word


class Say(StrEnum):
    NOTHING = ""
    HELLO = "hello"
    GOODBYE = "goodbye"


TABLE: dict[tuple[State, Event], tuple[State, Say]] = {
    (State.AWAY, Event.UP): (State.GREETING, Say.HELLO),
    (State.AWAY, Event.LEAVE): (State.LEFT, Say.NOTHING),
    (State.GREETING, Event.WELCOME): (State.WELCOME, Say.NOTHING),
    (State.GREETING, Event.REJECT): (State.REJECTED, Say.NOTHING),
    (State.GREETING, Event.TICK): (State.GREETING, Say.HELLO),
    (State.GREETING, Event.DOWN): (State.AWAY, Say.NOTHING),
    (State.GREETING, Event.LEAVE): (State.LEAVING, Say.GOODBYE),
    (State.WELCOME, Event.REJECT): (State.GREETING, Say.HELLO),
    (State.WELCOME, Event.SILENCE): (State.GREETING, Say.HELLO),
    (State.WELCOME, Event.DOWN): (State.AWAY, Say.NOTHING),
    (State.WELCOME, Event.LEAVE): (State.LEAVING, Say.GOODBYE),
    (State.REJECTED, Event.WELCOME): (State.WELCOME, Say.NOTHING),
    (State.REJECTED, Event.TICK): (State.GREETING, Say.HELLO),
    (State.REJECTED, Event.DOWN): (State.AWAY, Say.NOTHING),
    (State.REJECTED, Event.LEAVE): (State.LEAVING, Say.GOODBYE),
    (State.LEAVING, Event.FAREWELL): (State.LEFT, Say.NOTHING),
    (State.LEAVING, Event.REJECT): (State.LEFT, Say.NOTHING),
    (State.LEAVING, Event.DOWN): (State.LEFT, Say.NOTHING),
    (State.LEAVING, Event.TICK): (State.LEAVING, Say.GOODBYE),
}


def step(state: State, event: Event) -> tuple[State, Say]:
    """The next state and what to say; an event that means nothing here changes nothing."""
    return TABLE.get((state, event), (state, Say.NOTHING))
