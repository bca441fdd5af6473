import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prevox.config.train import ScheduleConfig
from prevox.train.schedule import lr_factor

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
