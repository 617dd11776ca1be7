"""The app's lock: one deploy at a time, and who waits is told for whom."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from bareku.errors import BarekuError
from bareku.files import read_holder, try_lock
from bareku.paths import Root

WAIT_S = 1800.0
FIRST_TOLD_AGAIN_S = 10.0


@contextlib.contextmanager
def held(root: Root, app: str, what: str, tell: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock of `app`; yields its descriptor.

    `what` is what others are told meanwhile; `tell` hears for whom we wait. The lock dies with the
    last process that has the descriptor. Raises BarekuError (exit code 11) after WAIT_S.
    """
    path = root.journal / f"{app}.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        began_s = told_s = time.monotonic()
        pause_s = 0.0
        while not try_lock(fd):
            now_s = time.monotonic()
            if now_s - began_s > WAIT_S:
                raise BarekuError(
                    f"cannot deploy {app}: {read_holder(path)}, still",
                    hint="try again later",
                    exit_code=11,
                )
            if now_s - told_s >= pause_s:
                tell(f"Waiting: {read_holder(path)} ({now_s - began_s:.0f} s so far).")
                told_s, pause_s = now_s, max(FIRST_TOLD_AGAIN_S, pause_s * 2)
            time.sleep(0.02)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{what} (pid {os.getpid()})".encode(), 0)
        yield fd
    finally:
        os.close(fd)
