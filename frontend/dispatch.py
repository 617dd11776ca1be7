"""Who answers a request: handlers with credit, leases, and requests that are held. Pure.

A request is leased to one handler at a time. Handlers are chosen by the fewest leases, the one
that waited longest first. What finds no handler is held, in order, within bounds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from frontend.router import Key


class Leased(Protocol):
    """What the dispatcher must know of a request."""

    key: Key
    size_bytes: int
    is_gone: bool


R = TypeVar("R", bound=Leased)


class Handler(Generic[R]):
    """One process that answers for a release. `door` is the shell's; nothing here looks at it."""

    __slots__ = (
        "capacity", "door", "is_draining", "is_resting", "key", "leases", "level", "node", "number", "peer",
        "process", "token",
    )  # fmt: skip

    def __init__(
        self,
        key: Key,
        capacity: int,
        *,
        process: str = "",
        node: str = "",
        token: str = "",
        door: object = None,
        peer: object = None,
        number: int = 0,
    ) -> None:
        self.key = key
        self.capacity = capacity
        self.process = process
        self.node = node
        self.token = token
        self.door = door
        self.peer = peer
        self.number = number
        self.is_draining = False
        self.is_resting = False  # it refused a request; nothing until it speaks up again
        self.leases: dict[int, R] = {}
        self.level = -1  # where it stands in its pool; -1 when it takes nothing


class Pool(Generic[R]):
    """The handlers of one release, and the requests that wait for one."""

    __slots__ = ("_levels", "_lowest", "_only", "handlers", "held", "is_paused")

    def __init__(self) -> None:
        self.handlers: dict[Handler[R], None] = {}
        self.held: deque[R] = deque()
        self.is_paused = False
        self._levels: list[dict[Handler[R], None]] = [{}]
        self._lowest = 0
        self._only: Handler[R] | None = None  # a single handler needs no order

    def join(self, handler: Handler[R]) -> None:
        """A handler more."""
        self.handlers[handler] = None
        self._recount()
        self.place(handler)

    def leave(self, handler: Handler[R]) -> None:
        """A handler less."""
        self.handlers.pop(handler, None)
        self._only = None
        self.place(handler)
        self._recount()

    def _recount(self) -> None:
        self._only = None
        for handler in self.handlers:
            self.place(handler)
        if len(self.handlers) == 1:
            self._only = next(iter(self.handlers))

    def place(self, handler: Handler[R]) -> None:
        """Put a handler where its leases and credit say."""
        if self._only is handler:
            return
        level = handler.level
        leases = len(handler.leases)
        levels = self._levels
        if level >= 0:
            del levels[level][handler]
        is_full = leases >= handler.capacity
        if is_full or handler.is_draining or handler.is_resting or handler not in self.handlers:
            handler.level = -1
            return
        while len(levels) <= leases:
            levels.append({})
        levels[leases][handler] = None
        handler.level = leases
        if leases < self._lowest:
            self._lowest = leases

    def choose(self) -> Handler[R] | None:
        """The handler with the fewest leases that takes one more."""
        only = self._only
        if only is not None:
            is_free = len(only.leases) < only.capacity
            return only if is_free and not only.is_draining and not only.is_resting else None
        levels = self._levels
        lowest = self._lowest
        end = len(levels)
        while lowest < end:
            if levels[lowest]:
                self._lowest = lowest
                return next(iter(levels[lowest]))
            lowest += 1
        self._lowest = end
        return None


@dataclass(frozen=True, slots=True)
class HoldLimits:
    """How much may wait: requests of one release, and bytes of all together."""

    requests: int = 1000
    size_bytes: int = 64 * 2**20


class Dispatcher(Generic[R]):
    """The pools of all releases. `send(handler, number, request)` is how a lease leaves."""

    def __init__(
        self,
        send: Callable[[Handler[R], int, R], None],
        limits: HoldLimits | None = None,
        first_number: int = 1,
    ) -> None:
        self._send = send
        self._limits = limits or HoldLimits()
        self._number = first_number
        self.pools: dict[Key, Pool[R]] = {}
        self.paused: set[str] = set()
        self.held = 0
        self.held_bytes = 0

    def pool(self, key: Key) -> Pool[R]:
        """The pool of a release, made when it is not there."""
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = Pool()
            pool.is_paused = key[0] in self.paused
        return pool

    def submit(self, request: R) -> bool:
        """Lease the request to a handler or hold it; False when there is no room to hold it."""
        pool = self.pools.get(request.key) or self.pool(request.key)
        if not pool.held and not pool.is_paused:
            handler = pool.choose()
            if handler is not None:
                self._lease(pool, handler, request)
                return True
        return self._hold(pool, request, first=False)

    def resubmit(self, request: R) -> bool:
        """The same for a request that was leased before: it goes before the others."""
        pool = self.pool(request.key)
        handler = None if pool.is_paused else pool.choose()
        if handler is not None:
            self._lease(pool, handler, request)
            return True
        return self._hold(pool, request, first=True)

    def _lease(self, pool: Pool[R], handler: Handler[R], request: R) -> None:
        number = self._number
        self._number = number + 1 if number < 2**31 - 1 else 1
        handler.leases[number] = request
        pool.place(handler)
        self._send(handler, number, request)

    def _hold(self, pool: Pool[R], request: R, *, first: bool) -> bool:
        if (
            len(pool.held) >= self._limits.requests
            or self.held_bytes + request.size_bytes > self._limits.size_bytes
        ):
            return False
        if first:
            pool.held.appendleft(request)
        else:
            pool.held.append(request)
        self.held += 1
        self.held_bytes += request.size_bytes
        return True

    def unhold(self, request: R) -> bool:
        """Take a request out of the hold; False when it was not there."""
        pool = self.pools.get(request.key)
        if pool is None:
            return False
        try:
            pool.held.remove(request)
        except ValueError:
            return False
        self._unheld(request)
        return True

    def _unheld(self, request: R) -> None:
        self.held -= 1
        self.held_bytes -= request.size_bytes

    def add(self, handler: Handler[R]) -> None:
        """A handler is there; it takes what waits for it."""
        pool = self.pool(handler.key)
        pool.join(handler)
        self._serve(pool)

    def remove(self, handler: Handler[R]) -> list[R]:
        """A handler is gone; returns the requests that were leased to it, oldest first."""
        pool = self.pools[handler.key]
        pool.leave(handler)
        lost = list(handler.leases.values())
        handler.leases.clear()
        self._tidy(handler.key)
        return lost

    def move(self, handler: Handler[R], key: Key) -> None:
        """A handler answers for another release from now on; its leases stay."""
        old = handler.key
        self.pools[old].leave(handler)
        handler.key = key
        self._tidy(old)
        pool = self.pool(key)
        pool.join(handler)
        self._serve(pool)

    def drain(self, handler: Handler[R]) -> None:
        """No new request for this handler."""
        handler.is_draining = True
        self.pools[handler.key].place(handler)

    def rest(self, handler: Handler[R]) -> None:
        """Nothing for this handler until `wake`: it refused, and would refuse again at once."""
        handler.is_resting = True
        self.pools[handler.key].place(handler)

    def wake(self, handler: Handler[R]) -> None:
        """It may get requests again."""
        handler.is_resting = False
        pool = self.pools[handler.key]
        pool.place(handler)
        self._serve(pool)

    def set_capacity(self, handler: Handler[R], capacity: int) -> None:
        """So many leases at once from now on."""
        handler.capacity = capacity
        pool = self.pools[handler.key]
        pool.place(handler)
        self._serve(pool)

    def release(self, handler: Handler[R], number: int) -> R | None:
        """A lease has ended; its place is free. None when there was no such lease."""
        request = handler.leases.pop(number, None)
        if request is not None:
            pool = self.pools[handler.key]
            pool.place(handler)
            if pool.held:
                self._serve(pool)
        return request

    def _serve(self, pool: Pool[R]) -> None:
        """Lease what waits, while there is credit."""
        while pool.held and not pool.is_paused:
            handler = pool.choose()
            if handler is None:
                return
            request = pool.held.popleft()
            self._unheld(request)
            if not request.is_gone:
                self._lease(pool, handler, request)

    def pause(self, app: str) -> None:
        """Hold every request for this app from now on."""
        self.paused.add(app)
        for key, pool in self.pools.items():
            if key[0] == app:
                pool.is_paused = True

    def resume(self, app: str) -> None:
        """Serve it again, beginning with what was held."""
        self.paused.discard(app)
        for key, pool in list(self.pools.items()):
            if key[0] == app:
                pool.is_paused = False
                self._serve(pool)

    def take_held(self) -> list[R]:
        """Everything held, oldest first within a release; nothing is held after this."""
        taken = [request for pool in self.pools.values() for request in pool.held]
        for pool in self.pools.values():
            pool.held.clear()
        self.held = 0
        self.held_bytes = 0
        for key in list(self.pools):
            self._tidy(key)
        return taken

    def _tidy(self, key: Key) -> None:
        """Forget a pool with nothing in it: releases come and go for years."""
        pool = self.pools.get(key)
        if pool is not None and not pool.handlers and not pool.held:
            del self.pools[key]

    def handlers(self) -> Iterator[Handler[R]]:
        """All handlers."""
        for pool in self.pools.values():
            yield from pool.handlers

    def counts(self) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
        """`(handlers that take requests, leases)`, each app → release → number."""
        ready: dict[str, dict[str, int]] = {}
        leased: dict[str, dict[str, int]] = {}
        for (app, release), pool in self.pools.items():
            up = sum(not h.is_draining and h.capacity > 0 for h in pool.handlers)
            if up:
                ready.setdefault(app, {})[str(release)] = up
            leased.setdefault(app, {})[str(release)] = sum(len(h.leases) for h in pool.handlers)
        return ready, leased
