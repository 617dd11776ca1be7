"""Deadlines of all connections on one coarse wheel: a move costs two set operations. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Entry(Protocol):
    """What can have a deadline. `deadline` is when; the others are the wheel's (0 at first).

    A deadline at or after `due`, when it is not 0, may be assigned without asking the wheel.
    """

    deadline: float
    due: float
    slot: int


class Wheel:
    """Entries by the tick in which they are looked at; never early, at most one tick late."""

    def __init__(self, now: float, tick_s: float = 0.25) -> None:
        self._tick_s = tick_s
        self._at = int(now / tick_s)
        self._slots: dict[int, set[Entry]] = {}

    def set(self, entry: Entry, deadline: float) -> None:
        """Give `entry` a deadline, later or earlier than the one it had.

        A later one moves nothing: the entry is put on when its old slot comes.
        """
        entry.deadline = deadline
        slot = int(deadline / self._tick_s) + 1
        if entry.slot and entry.slot <= slot:
            return
        self.forget(entry)
        self._put(entry, max(slot, self._at + 1))

    def forget(self, entry: Entry) -> None:
        """Take `entry` off."""
        if entry.slot:
            entries = self._slots.get(entry.slot)
            if entries is not None:
                entries.discard(entry)
            entry.slot = 0
            entry.due = 0.0

    def _put(self, entry: Entry, slot: int) -> None:
        entry.slot = slot
        entry.due = slot * self._tick_s
        entries = self._slots.get(slot)
        if entries is None:
            entries = self._slots[slot] = set()
        entries.add(entry)

    def expired(self, now: float) -> Iterator[Entry]:
        """The entries whose deadline has passed; they are off the wheel then."""
        until = int(now / self._tick_s)
        while self._at < until:
            self._at += 1
            for entry in self._slots.pop(self._at, ()):
                entry.slot = 0
                entry.due = 0.0
                if entry.deadline <= now:
                    yield entry
                else:
                    self._put(entry, max(int(entry.deadline / self._tick_s) + 1, self._at + 1))
