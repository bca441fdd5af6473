from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prevox.data.sampler import Sampler, crop_box, foreground_centre, generator, torch_seed

pytestmark = pytest.mark.unit
IMAGES = [f"case_{number}" for number in range(7)]


def test_every_pass_shows_every_image_once_in_another_order() -> None:
    sampler = Sampler(IMAGES, seed=1)
    passes = [[sampler.image(7 * epoch + position) for position in range(7)] for epoch in range(4)]
    assert all(sorted(one) == IMAGES for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_a_sample_is_a_function_of_seed_and_number() -> None:
    forward = [Sampler(IMAGES, seed=1).image(sample) for sample in range(30)]
    backward = [Sampler(IMAGES[::-1], seed=1).image(sample) for sample in reversed(range(30))][::-1]
    assert forward == backward
    assert forward != [Sampler(IMAGES, seed=2).image(sample) for sample in range(30)]


def test_streams_of_different_purposes_and_numbers_differ() -> None:
    draws = {generator(seed, purpose, n).random() for seed in (0, 1) for purpose in ("a", "b") for n in (0, 1)}
    assert len(draws) == 8
    assert generator(5, "a", 9).random() == generator(5, "a", 9).random()
    assert 0 <= torch_seed(0, "a", 0) < 2**63


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    size=st.tuples(*[st.integers(1, 40)] * 3),
    seed=st.integers(0, 1000),
    where=st.tuples(*[st.floats(0, 0.999)] * 3),
    centred=st.booleans(),
)
def test_views_lie_inside_or_hold_the_image_in_their_middle(shape, size, seed, where, centred) -> None:
    centre = np.array([int(w * n) for w, n in zip(where, shape, strict=True)])
    box = crop_box(shape, size, np.random.default_rng(seed), centre if centred else None)
    for (start, stop), length, wanted, middle in zip(box, shape, size, centre, strict=True):
        assert stop - start == wanted
        if wanted <= length:
            assert start >= 0
            assert stop <= length
            assert not centred or start <= middle < stop
        else:
            before, after = -start, stop - length
            assert before in (after, after - 1)


def test_crop_starts_are_uniform() -> None:
    starts = Counter(crop_box((10,), (8,), np.random.default_rng(seed))[0][0] for seed in range(3000))
    assert set(starts) == {0, 1, 2}
    assert all(abs(count - 1000) < 120 for count in starts.values())  # 4.6 standard deviations


def test_a_rare_class_is_drawn_as_often_as_a_common_one() -> None:
    rows = np.array([[1, 0, 0, n] for n in range(99)] + [[4, 5, 5, 5]])
    rng = np.random.default_rng(0)
    drawn = [tuple(foreground_centre(rows, rng)) for _ in range(1000)]
    assert 430 < sum(centre == (5, 5, 5) for centre in drawn) < 570
    assert foreground_centre(np.zeros((0, 4), int), rng) is None
