"""Signatures and their comparison: by hand, against comparing all pairs, and on real scans."""

import base64
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prevox.data.layouts import recognise
from prevox.data.near_duplicates import near_duplicates, signature_of
from prevox.data.phantom import phantom
from prevox.data.readers import read_image

pytestmark = pytest.mark.unit
DATA = Path(__file__).parents[3].parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="real scans are not beside the repository (../shared/data)")
LEAST = 0.995


def encoded(values: np.ndarray) -> str:
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()


def decoded(signature: str | None) -> np.ndarray:
    return np.frombuffer(base64.b64decode(signature or ""), np.uint8).astype(float)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(decoded(signature_of(a)), decoded(signature_of(b)))[0, 1])


def compare(signatures: list[str | None], least: float = LEAST, kinds: list | None = None) -> list[int]:
    n = len(signatures)
    return near_duplicates(signatures, kinds or [0] * n, np.arange(n), least)[0].tolist()


def test_means_of_blocks_by_hand() -> None:
    # 16³ voxels are 8³ blocks of 2³; block (1, 0, 0) has the mean 8, all others 0, one of them 2 (a half of it 4)
    array = np.zeros((16, 16, 16))
    array[2:4, :2, :2] = 8
    array[0, 2:4, 2:4] = 4
    expected = np.zeros((8, 8, 8))
    expected[1, 0, 0] = 255
    expected[0, 1, 1] = round(2 / 8 * 255)
    assert decoded(signature_of(array)).reshape(8, 8, 8).tolist() == expected.tolist()


def test_long_axes_are_sampled_and_short_ones_have_fewer_blocks() -> None:
    assert len(decoded(signature_of(np.random.default_rng(0).normal(size=(200, 65, 3))))) == 8 * 8 * 3
    assert len(decoded(signature_of(np.random.default_rng(0).normal(size=(90, 40, 1))))) == 22 * 22
    assert signature_of(np.full((9, 9, 9), 4)) is None
    assert signature_of(np.full((9, 9, 9), np.nan)) is None


def test_the_threshold_by_hand() -> None:
    # 256 blocks of 0 and 256 of 255; exchanging one of each leaves 508 equal signs and 4 - 2 = 2 different: 1 - 4 / 512
    first = np.repeat([0, 255], 256)
    second = first.copy()
    second[[0, 511]] = second[[511, 0]]
    partner, found = near_duplicates([encoded(first), encoded(second)], [0, 0], np.array([1, 0]), 0.992)
    assert partner.tolist() == [1, 0]
    assert found == pytest.approx([1 - 4 / 512] * 2, abs=1e-6)
    assert compare([encoded(first), encoded(second)], 0.993) == [-1, -1]


def test_only_images_of_one_kind_are_compared() -> None:
    signature = encoded(np.arange(512) // 2)
    assert compare([signature, signature, None], kinds=["a", "b", "a"]) == [-1, -1, -1]
    assert compare([signature, None, signature], kinds=["a", "b", "a"]) == [2, -1, 0]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 60), st.floats(0.9, 0.999), st.integers(1, 4))
def test_nothing_is_missed_by_comparing_neighbours_only(seed: int, n: int, least: float, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 255, (clusters, 512))
    vectors = centres[rng.integers(0, clusters, n)] + rng.normal(0, rng.uniform(0, 40), (n, 512))
    vectors = np.clip(vectors, 0, 255).astype(np.uint8)
    products = np.corrcoef(vectors.astype(float))
    np.fill_diagonal(products, 0)
    if (np.abs(products - least) < 1e-5).any():  # rounding may decide
        return
    rank = rng.permutation(n)
    with patch("prevox.data.near_duplicates._BLOCK", 2):
        partner, _ = near_duplicates([encoded(v) for v in vectors], [0] * n, rank, least)
    for i in range(n):
        like = np.flatnonzero(products[i] >= least)
        assert partner[i] == (like[np.argmin(rank[like])] if len(like) else -1)


def test_neighbours_are_sought_as_far_as_they_can_be() -> None:
    # images on an arc, 0.03 rad apart: three steps are cos 0.09 = 0.99595, four are cos 0.12 = 0.99281
    first, second = np.tile([1, -1], 256), np.repeat([1, -1], 256)  # without mean, at right angles
    angles = 0.03 * np.arange(40)
    vectors = [np.round(127.5 + 90 * (np.cos(a) * first + np.sin(a) * second)) for a in angles]
    with patch("prevox.data.near_duplicates._BLOCK", 1):
        assert compare([encoded(v) for v in vectors]) == [max(0, n - 3) if n else 1 for n in range(40)]


def test_more_images_than_are_compared_at_a_time() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.uniform(0, 255, (1500, 512)).astype(np.uint8)
    vectors[1400] = vectors[3]
    partner = compare([encoded(v) for v in vectors])
    assert {i: p for i, p in enumerate(partner) if p >= 0} == {3: 1400, 1400: 3}


@pytest.mark.parametrize(
    "change",
    [
        lambda a, rng: a + rng.normal(0, 0.03 * np.ptp(np.percentile(a, [1, 99])), a.shape),
        lambda a, rng: a * 2.5 - 300,  # another window: gain and offset
        lambda a, rng: (a // 4).astype(np.int8 if a.max() < 500 else np.int16),  # fewer bits
        lambda a, rng: a.astype(np.float32) / 7,
    ],
    ids=["noise", "window", "rounding", "floats"],
)
def test_a_changed_copy_of_a_phantom_is_found(change) -> None:
    rng = np.random.default_rng(0)
    for seed in range(3):
        array = phantom(seed).array_CZYX[0].astype(float)
        assert correlation(array, change(array, rng)) >= LEAST


def test_phantoms_of_one_shape_are_different() -> None:
    arrays = [phantom(seed, (48, 48, 48), (2, 2, 2)).array_CZYX[0] for seed in range(12)]
    assert compare([signature_of(array) for array in arrays]) == [-1] * 12


@real
@pytest.mark.parametrize("folder", ["Task04_Hippocampus", "nih_cxr", "sts_ct"])
def test_real_scans_are_different_and_their_noisy_copies_are_not(folder: str) -> None:
    """Also the two sides of one subject (hippocampus) and visits of one patient (X-rays); kinds are not told apart."""
    rng = np.random.default_rng(0)
    signatures, copies = [], []
    for entry in recognise(DATA / folder):
        array = read_image(entry.paths[0]).array_CIJK[0].astype(float)
        signatures.append(signature_of(array))
        deviation = 0.02 * np.ptp(np.percentile(array, [1, 99]))
        copies.append(signature_of(1.5 * (array + rng.normal(0, deviation, array.shape)) + 10))
    n = len(signatures)
    assert n > 15
    assert compare(signatures) == [-1] * n
    assert compare(signatures + copies) == [*range(n, 2 * n), *range(n)]
