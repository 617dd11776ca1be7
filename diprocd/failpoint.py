"""Faults on demand, for tests: `DIPROC_FAIL="spawned=exit;written=delay(0.2)"`.

A place that is named there kills its daemon or sleeps as it is passed; without the variable a
place costs a look into an empty dict. Places: `spawned` (a launcher is started), `signalled` (a
process got its stop signal).
"""

from __future__ import annotations

import os
import re
import signal
import time

_DELAY = re.compile(r"delay\(([0-9.]+)\)")


def parse(text: str) -> dict[str, str]:
    """place -> what happens there. Raises ValueError for anything but `exit` and `delay(S)`."""
    faults = dict(part.split("=", 1) for part in text.split(";") if part)
    for fault in faults.values():
        if fault != "exit" and not _DELAY.fullmatch(fault):
            raise ValueError(f"{fault!r} is neither exit nor delay(SECONDS)")
    return faults


_faults = parse(os.environ.pop("DIPROC_FAIL", ""))


def hit(place: str) -> None:
    """Fail here, if that is asked for."""
    fault = _faults.get(place)
    if fault is None:
        return
    if fault == "exit":
        os.kill(os.getpid(), signal.SIGKILL)
    found = _DELAY.fullmatch(fault)
    assert found
    time.sleep(float(found[1]))
