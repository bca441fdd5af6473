"""Thumbnails: which way is up, how large they are, and that nothing odd breaks them."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prevox.data.thumbnail import SIDE, thumbnail_of

pytestmark = pytest.mark.unit


def pixels(array: np.ndarray, affine: np.ndarray, **settings: bool) -> np.ndarray:
    picture = Image.open(io.BytesIO(base64.b64decode(thumbnail_of(array[None], affine, **settings))))
    assert (picture.format, picture.mode) == ("PNG", "L")
    return np.asarray(picture)


def brightest(plane: np.ndarray) -> tuple[float, float]:
    """Row and column of the brightest place, as shares of the sides."""
    rows, columns = np.nonzero(plane == plane.max())
    return rows.mean() / plane.shape[0], columns.mean() / plane.shape[1]


@pytest.mark.parametrize("flip", [1, -1])
def test_superior_and_anterior_are_up_and_right_is_left(flip: int) -> None:
    # a bright ball towards right, anterior, superior of the centre; the first axis runs to the right or to the left
    array = np.zeros((32, 32, 32), np.float32)
    array[22:26, 14:18, 14:18] = array[14:18, 22:26, 14:18] = array[14:18, 14:18, 22:26] = (
        100  # right, anterior, superior
    )
    if flip < 0:
        array = array[::-1]
    shown = pixels(array, np.diag([flip, 1, 1, 1]))
    assert shown.shape == (64, 3 * 64 + 4)
    axial, coronal, sagittal = shown[:, :64], shown[:, 66:130], shown[:, 132:]
    # axial: right (left of the middle) and anterior (above it) are seen, the sum of the two lies up and left
    for plane, up, left in ((axial, True, True), (coronal, True, True), (sagittal, True, True)):
        row, column = brightest(plane)
        assert (row < 0.5) == up
        assert (column < 0.5) == left


def test_planes_are_on_one_scale_in_mm() -> None:
    # 40 × 20 voxels of 1 mm in plane, 10 slices of 2 mm: 40 mm are 64 pixels, 20 mm are 32
    shown = pixels(np.random.default_rng(0).normal(size=(40, 20, 10)), np.diag([1, 1, 2, 1]))
    assert shown.shape == (32, 64 + 2 + 64 + 2 + 32)  # axial 32 high 64 wide, coronal 32 × 64, sagittal 32 × 32


def test_a_picture_is_shown_as_it_is() -> None:
    from prevox.data.readers.picture import _AFFINE

    array = np.zeros((40, 20, 1), np.uint8)  # columns, rows
    array[:10, :5] = 255  # above left
    shown = pixels(array, _AFFINE, picture=True)
    assert shown.shape == (32, 64)
    assert shown[4, 8] == 255
    assert (shown[4, 50], shown[28, 8], shown[28, 50]) == (0, 0, 0)


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(1, 90)] * 3),
    st.tuples(*[st.floats(1e-3, 1e4)] * 3),
    st.sampled_from(["noise", "constant", "nan", "spike", "bool"]),
)
def test_every_image_has_a_small_picture(shape: tuple[int, ...], spacing: tuple[float, ...], kind: str) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if kind == "constant":
        array[:] = 7
    elif kind == "nan":
        array[:] = np.nan
    elif kind == "spike":
        array[:] = 0
        array[0, 0, 0] = np.inf
    shown = pixels(array > 0 if kind == "bool" else array, np.diag([*spacing, 1.0]))
    assert shown.shape[0] <= SIDE
    assert shown.shape[1] <= 3 * SIDE + 4
