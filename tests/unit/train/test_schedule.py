import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prevox.config.train import ScheduleConfig
from prevox.train.schedule import decoder_steps, lr_factor

pytestmark = pytest.mark.unit


def test_ramp_by_hand() -> None:
    schedule = ScheduleConfig(name="constant", warmup=0.4)
    assert [lr_factor(step, 10, schedule) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_by_hand() -> None:
    schedule = ScheduleConfig(name="cosine", warmup=0.2, floor=0.1)
    # 10 steps, ramp of 2; t = (step - 2) / 8
    assert lr_factor(2, 10, schedule) == 1.0
    assert lr_factor(6, 10, schedule) == pytest.approx(0.1 + 0.9 * 0.5)
    assert lr_factor(9, 10, schedule) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_poly_by_hand() -> None:
    schedule = ScheduleConfig(name="poly", power=0.9)
    assert lr_factor(0, 1000, schedule) == 1.0
    assert lr_factor(750, 1000, schedule) == pytest.approx(0.25**0.9)


@given(
    name=st.sampled_from(["cosine", "poly", "constant"]),
    steps=st.integers(1, 500),
    warmup=st.floats(0, 0.9),
    floor=st.floats(0, 1),
)
def test_rises_to_the_peak_then_never_rises_again(name: str, steps: int, warmup: float, floor: float) -> None:
    schedule = ScheduleConfig(name=name, warmup=warmup, floor=floor)
    factors = [lr_factor(step, steps, schedule) for step in range(steps)]
    ramp = round(warmup * steps)
    assert all(a < b for a, b in pairwise(factors[:ramp]))
    assert all(a >= b - 1e-12 for a, b in pairwise(factors[ramp:]))
    assert max(factors) == pytest.approx(1.0)
    assert min(factors) > 0 or floor == 0


def test_two_phases_at_their_borders() -> None:
    """DESIGN: decoder alone on a ramp to the peak, then everything on a ramp, then poly to the end."""
    schedule = ScheduleConfig(name="poly", warmup=0.05, power=0.9)
    rate = [lr_factor(step, 1000, schedule, decoder_first=0.05) for step in range(1000)]
    assert [rate[0], rate[24], rate[49]] == [1 / 50, 25 / 50, 1.0]  # decoder alone, the peak with its last step
    assert [rate[50], rate[74], rate[99]] == [1 / 50, 25 / 50, 1.0]  # everything
    assert rate[100] == 1.0
    assert rate[550] == pytest.approx((1 - 450 / 900) ** 0.9)
    assert rate[999] == pytest.approx((1 - 899 / 900) ** 0.9)


def test_the_papers_schedule_in_steps() -> None:
    schedule = ScheduleConfig(name="poly", warmup=0.05)
    assert decoder_steps(0.05, 250_000) == 12_500
    assert lr_factor(12_499, 250_000, schedule, 0.05) == 1.0
    assert lr_factor(12_500, 250_000, schedule, 0.05) == 1 / 12_500
    assert lr_factor(25_000, 250_000, schedule, 0.05) == 1.0
    assert lr_factor(25_001, 250_000, schedule, 0.05) < 1.0
