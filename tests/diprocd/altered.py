"""diprocd with a part exchanged: delays that widen races, clocks that jump, and the mutants that
the chaos suite must catch. usage: altered.py CHANGE[,CHANGE...] DIPROCD-ARGUMENTS
"""

from __future__ import annotations

import os
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

from diprocd import failpoint, launcher
from diprocd.main import main

LOCK = 'exec 9>>"$dir/lock"\n'
FLOCK = "    flock -n 9 || exit 75\n"


def delay_before_lock() -> None:
    """Long enough for another worker to start meanwhile."""
    _replace(LOCK, f"sleep 1.5\n    {LOCK}")


def slow_launcher() -> None:
    _replace(LOCK, f"sleep 0.5\n    {LOCK}")


def delay_after_lock() -> None:
    _replace(FLOCK, f"{FLOCK}    sleep 0.15\n")


def no_flock() -> None:
    """Mutant: nothing keeps a second launcher out."""
    _replace(FLOCK, "    sleep 0.5\n")


def parent_writes_pid() -> None:
    """Mutant: the classic supervisor notes the pid after it has forked."""
    _replace(FLOCK, "")
    launcher._TEXT = re.sub(r"    printf '%s %s\\n' .*\n", "", launcher._TEXT)
    spawn = launcher.spawn

    def spawn_and_note(folder: Path, *arguments: Any) -> int:
        (folder / "pid").unlink(missing_ok=True)
        pid = spawn(folder, *arguments)
        failpoint.hit("spawned")
        stat = Path(f"/proc/{pid}/stat").read_text()
        start = stat.rpartition(")")[2].split()[19]
        (folder / "pid").write_text(f"{pid} {start}\n")
        return pid

    launcher.spawn = spawn_and_note  # type: ignore[assignment]


def jumping_clock() -> None:
    """Each look at the wall clock is up to a day early or late."""
    now = time.time
    chance = random.Random(os.getpid())
    time.time = lambda: now() + chance.uniform(-86400, 86400)


def _replace(old: str, new: str) -> None:
    assert old in launcher._TEXT
    launcher._TEXT = launcher._TEXT.replace(old, new)


if __name__ == "__main__":
    for change in sys.argv[1].split(","):
        globals()[change]()
    sys.exit(main(sys.argv[2:]))
