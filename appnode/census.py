"""Who runs on this node, from the worker's status file; which of them take requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from msgspec import Struct


class Process(Struct, frozen=True, kw_only=True):
    """One process as the worker reports it; only what matters for its requests."""

    id: str
    gen: str
    app: str
    type: str
    index: int
    release: int
    state: str
    token: str = ""
    ready: bool = False
    pid: int | None = None
    port: int | None = None
    dir: str | None = None

    @property
    def key(self) -> Key:
        return (self.id, self.gen, self.pid, self.port)

    @property
    def takes_requests(self) -> bool:
        return self.state == "running" and self.ready and self.port is not None

    @property
    def may_answer(self) -> bool:
        """It lives, so what it was sent before may still be answered."""
        return self.state in ("starting", "running", "draining", "stopping")


class Worker(Struct, frozen=True, kw_only=True):
    """The worker's status file."""

    node: str
    processes: list[Process]


# a process that died and came back is another one, even on the same port
Key: TypeAlias = tuple[str, str, int | None, int | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about the processes on the node."""

    add: Sequence[Process]
    leave: Sequence[Key]
    remove: Sequence[Key]
    drained: Sequence[Process]  # draining, and nothing was ever forwarded to it


def plan(served: Mapping[Key, bool], processes: Sequence[Process]) -> Plan:
    """Compare those we serve (key → is leaving) with what runs.

    A process that stops being ready leaves, and comes back as a new handler.
    """
    now = {process.key: process for process in processes}
    gone = [key for key in served if key not in now or not now[key].may_answer]
    leave = [
        key
        for key, is_leaving in served.items()
        if key in now and now[key].may_answer and not now[key].takes_requests and not is_leaving
    ]
    add = [process for key, process in now.items() if process.takes_requests and key not in served]
    drained = [
        process
        for key, process in now.items()
        if process.state == "draining" and process.port is not None and key not in served
    ]
    return Plan(add, leave, gone, drained)
