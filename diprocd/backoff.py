"""How long a failed process waits before its next start. Pure.

Never gives up: an app that heals by itself (a database back, a slug arrived) is up again within
a minute, and one that does not costs one start a minute.
"""

from __future__ import annotations

FIRST_S = 0.25
CAP_S = 60.0
HEALTHY_S = 10.0  # a run this long proves that the process can run: failures are forgotten
CRASH_LOOP_FAILS = 5
SPREAD = 0.1  # of the delay, both ways, so that what failed together is not started together


def count_fails(fails: int, up_s: float) -> int:
    """Failures in a row after a run of `up_s` that ended; a healthy run starts again at zero."""
    return 0 if up_s >= HEALTHY_S else fails + 1


def delay_s(fails: int, chance: float) -> float:
    """Seconds to wait after `fails` failures in a row; `chance` in [0, 1) spreads them."""
    if fails <= 0:
        return 0.0
    doubled = FIRST_S * 2.0 ** min(fails - 1, 16)
    return min(CAP_S, doubled) * (1 - SPREAD + 2 * SPREAD * chance)


def is_crash_loop(fails: int) -> bool:
    """True when so many starts in a row failed that a person should look."""
    return fails >= CRASH_LOOP_FAILS
