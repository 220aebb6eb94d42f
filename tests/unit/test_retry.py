"""Failures are retried when that may help, and hold up others no longer than they must."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving import errors
from aiquery_serving.retry import Cooldown, RetryPolicy, Window, decide, fallback_worthy, terminal

DOWN = errors.ProviderUnavailableError("down")
BUSY = errors.ProviderRateLimitError("busy")


@given(st.integers(0, 9), st.floats(0, 1))
def test_back_off_is_a_random_part_of_a_bound_that_doubles_up_to_ten_seconds(attempt, draw):
    wait = decide(DOWN, attempt, draw)
    assert wait == pytest.approx(draw * min(10.0, 0.1 * 2**attempt))


def test_ten_retries_are_enough():
    assert decide(DOWN, 9, 1.0) is not None
    assert decide(DOWN, 10, 1.0) is None


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_a_429_never_uses_up_the_budget(attempt, draw):
    assert decide(BUSY, attempt, draw) == 0.0


def test_a_budget_without_end_does_not_overflow():
    assert decide(DOWN, 5000, 1.0, RetryPolicy(max_retries=10_000)) == 10.0


@pytest.mark.parametrize(
    ("error", "retried", "falls_back", "is_terminal"),
    [
        (errors.ProviderTimeoutError("late"), True, True, False),
        (errors.ProviderUnavailableError("down"), True, True, False),
        (errors.ProviderRateLimitError("busy"), True, True, False),
        (errors.ProviderQuotaError("empty"), False, True, True),
        (errors.ProviderAccessError("no"), False, False, True),
        (errors.ProviderRequestError("bad"), False, False, False),
        (errors.RequestTooLargeError("big"), False, False, False),
        (errors.ProviderResponseError("cut"), False, True, False),
        (errors.ModelError("raised"), False, False, False),
        (errors.InvalidRequestError("wrong"), False, False, False),
        (errors.JobStoppedError("cancelled"), False, False, False),
        (errors.BudgetReachedError("spent"), False, False, False),
    ],
)
def test_each_error_has_its_treatment(error, retried, falls_back, is_terminal):
    assert (decide(error, 0, 0.5) is not None) == retried
    assert fallback_worthy(error) == falls_back
    assert terminal(error) == is_terminal


def test_nobody_sends_before_the_instant_a_provider_named():
    cooldown = Cooldown()
    cooldown.refused(100.0, 5.0, probe=False)
    assert cooldown.wait(100.0) == 5.0
    assert cooldown.wait(104.0) == 1.0
    assert cooldown.wait(105.0) == 0.0


def test_one_probe_goes_and_its_answer_opens_the_way():
    cooldown = Cooldown()
    cooldown.refused(0.0, 5.0, probe=False)
    assert cooldown.enter()
    assert cooldown.wait(6.0) == math.inf
    cooldown.answered(probe=False)  # a call from before the pause
    assert cooldown.wait(6.0) == math.inf
    cooldown.answered(probe=True)
    assert cooldown.wait(6.0) == 0.0
    assert not cooldown.enter()


def test_a_probe_that_told_nothing_lets_another_go():
    cooldown = Cooldown()
    cooldown.refused(0.0, 5.0, probe=False)
    cooldown.enter()
    cooldown.abandoned(probe=True)
    assert cooldown.wait(6.0) == 0.0
    assert cooldown.enter()


def test_pauses_grow_only_with_refused_probes_and_up_to_two_minutes():
    cooldown, now, pauses = Cooldown(), 0.0, []
    cooldown.refused(now, None, probe=False)
    for _ in range(9):
        for _late in range(5):
            cooldown.refused(now, None, probe=False)
        pauses.append(cooldown.wait(now))
        now += pauses[-1]
        cooldown.enter()
        cooldown.refused(now, None, probe=True)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 120, 120]


def test_a_late_429_can_only_lengthen_a_pause():
    cooldown = Cooldown()
    cooldown.refused(0.0, 10.0, probe=False)
    cooldown.refused(1.0, 2.0, probe=False)
    assert cooldown.wait(1.0) == 9.0
    cooldown.refused(1.0, 20.0, probe=False)
    assert cooldown.wait(1.0) == 20.0


def test_a_retry_after_of_nothing_is_no_instant():
    cooldown = Cooldown()
    cooldown.refused(0.0, 0.0, probe=False)
    assert cooldown.wait(0.0) == 1.0


def test_the_window_halves_down_to_one_and_grows_back_to_its_most():
    window = Window(8)
    for _ in range(9):
        window.refused()
    assert window.size == 1
    for _ in range(100):
        window.answered()
    assert window.size == 8
