from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diprocd import backoff

CHANCE = st.floats(0, 1, exclude_max=True)


def test_delays_double_up_to_a_minute() -> None:
    delays = [backoff.delay_s(fails, 0.5) for fails in range(12)]
    assert delays == [0, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


@given(st.integers(1, 100_000), CHANCE)
def test_a_delay_is_spread_by_a_tenth_and_never_longer_than_that_over_a_minute(
    fails: int, chance: float
) -> None:
    middle = backoff.delay_s(fails, 0.5)
    assert 0.9 * middle <= backoff.delay_s(fails, chance) <= min(1.1 * middle, 66)


@given(st.integers(0, 100), st.floats(0, 1e6))
def test_only_a_healthy_run_forgets_failures(fails: int, up_s: float) -> None:
    counted = backoff.count_fails(fails, up_s)
    assert counted == (0 if up_s >= 10 else fails + 1)


def test_five_failures_in_a_row_are_a_crash_loop() -> None:
    assert [backoff.is_crash_loop(fails) for fails in range(7)] == [False] * 5 + [True] * 2
