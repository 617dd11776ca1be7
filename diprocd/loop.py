"""One thread, one epoll: file descriptors, timers and signals of a daemon.

No callback may block for more than about 10 ms. All times are CLOCK_MONOTONIC.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

Callback = Callable[[], None]


class Timer:
    """A call that will be made; `cancel` takes it back."""

    __slots__ = ("callback", "when_s")

    def __init__(self, when_s: float, callback: Callback) -> None:
        self.when_s = when_s
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Runs callbacks for readable descriptors, due timers and signals until `stop`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._soon: deque[Callback] = deque()
        self._serial = 0
        self._is_stopped = False
        self._signals: dict[int, Callback] = {}
        self._pair: tuple[socket.socket, socket.socket] | None = None

    def watch(self, fd: int, callback: Callback) -> None:
        """Call when `fd` is readable (or hung up)."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; call before closing it."""
        if self._callbacks.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def soon(self, callback: Callback) -> None:
        """Call in this turn, after what runs now."""
        self._soon.append(callback)

    def after(self, delay_s: float, callback: Callback) -> Timer:
        """Call once, `delay_s` from now."""
        timer = Timer(time.monotonic() + delay_s, callback)
        self._serial += 1
        heapq.heappush(self._timers, (timer.when_s, self._serial, timer))
        return timer

    def every(self, interval_s: float, callback: Callback) -> None:
        """Call again and again, first after `interval_s`."""

        def again() -> None:
            self.after(interval_s, again)
            callback()

        self.after(interval_s, again)

    def on_signal(self, number: int, callback: Callback) -> None:
        """Call in the loop's thread when the signal has come."""
        if self._pair is None:
            self._pair = socket.socketpair()
            for end in self._pair:
                end.setblocking(False)
            signal.set_wakeup_fd(self._pair[1].fileno(), warn_on_full_buffer=False)
            self.watch(self._pair[0].fileno(), self._signalled)
        self._signals[number] = callback
        signal.signal(number, lambda _number, _frame: None)

    def stop(self) -> None:
        """Leave `run` after this turn."""
        self._is_stopped = True

    def run(self) -> None:
        """Turn until stopped."""
        while not self._is_stopped:
            self._turn()

    def close(self) -> None:
        """Give the descriptors back."""
        if self._pair is not None:
            signal.set_wakeup_fd(-1)
            for end in self._pair:
                end.close()
        self._epoll.close()

    def _turn(self) -> None:
        for fd, _ in self._epoll.poll(self._timeout_s()):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            due = heapq.heappop(self._timers)[2].callback
            if due is not None:
                due()
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    def _timeout_s(self) -> float:
        if self._soon or self._is_stopped:
            return 0.0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return -1.0
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _signalled(self) -> None:
        assert self._pair is not None
        with contextlib.suppress(BlockingIOError):
            for number in self._pair[0].recv(64):
                if number in self._signals:
                    self._signals[number]()


def raise_file_limit() -> tuple[int, int]:
    """Raise the soft limit of open files to the hard one; returns what it was before."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def close_on_exec() -> None:
    """Mark every inherited descriptor above 2, so that no process we start gets it."""
    for entry in Path("/proc/self/fd").iterdir():
        fd = int(entry.name)
        if fd > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(fd, False)
