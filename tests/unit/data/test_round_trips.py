"""From files to the store and back, on random grids: places, channels and intensities."""

import json
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracle import affine_of, make_store, whole
from tests.unit.data.strategies import affines, shapes
from tests.unit.data.way_back import scores_to_source, to_source

from prevox.data.place import PrepareSettings, prepare_image
from prevox.data.readers import read_image

pytestmark = pytest.mark.unit

seeds = st.integers(0, 2**32 - 1)


@st.composite
def sheared(draw):
    """Any grid of `affines`, left-handed ones among them, with axes up to some 17 degrees off their right angles."""
    shear = np.eye(4)
    shear[0, 1], shear[0, 2], shear[1, 2] = (draw(st.floats(-0.3, 0.3)) for _ in range(3))
    return draw(affines()) @ shear


def places(shape, affine):
    """World position of every voxel, (*shape, 3)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def padded(rng, array):
    return np.pad(array, rng.integers(0, 3, (3, 2)))


@given(sheared(), shapes, seeds)
@settings(max_examples=40, deadline=None)
def test_placed_voxels_and_labels_come_back_exactly_without_resampling(affine, shape, seed):
    rng = np.random.default_rng(seed)
    label = padded(rng, rng.integers(0, 4, shape).astype(np.uint8))
    image = np.where(label > 0, rng.normal(1000, 300, label.shape), 0)
    made = prepare_image(image[None], affine, label, PrepareSettings())
    here = places(made.grid.shape, made.grid.affine)[made.label_ZYX > 0]
    there = places(label.shape, affine)[label > 0]
    # the same places; rounded, lest the last bit of one coordinate decide about their order
    here, there = (sorted(map(tuple, where.round(6))) for where in (here, there))
    np.testing.assert_allclose(here, there, atol=2e-6)
    assert (scores_to_source(made.array_CZYX, made.grid, made.source)[0] == image.astype(np.float32)).all()
    one_hot = np.stack([made.label_ZYX == value for value in range(4)])
    assert (to_source(one_hot, made.grid, made.source) == label).all()


@pytest.mark.parametrize(("order", "margin", "atol"), [(1, 1.0, 1e-3), (3, 6.0, 2e-2)])
@given(sheared(), st.tuples(*[st.integers(16, 20)] * 3), st.tuples(*[st.floats(0.6, 1.8)] * 3))
@settings(max_examples=15, deadline=None)
def test_a_linear_function_of_the_world_stays_one_and_comes_back(order, margin, atol, affine, shape, factors):
    """Exact but for the border, where smoothing and splines meet repeated voxels: `margin` and 4 sigma are left out."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    affine = affine @ np.diag([*1 / spacing, 1])  # voxels of 1 mm, so that the tolerance has a meaning
    affine[:3, 3] /= 10
    slopes = np.array([[0.3, -0.2, 0.5], [-1.0, 0.4, 0.1]])
    image = np.moveaxis(places(shape, affine) @ slopes.T, -1, 0)
    made = prepare_image(image, affine, None, PrepareSettings(factors, "none", order))
    expected = np.moveaxis(places(made.grid.shape, made.grid.affine) @ slopes.T, -1, 0)
    on_source = places(made.grid.shape, np.linalg.inv(affine) @ made.grid.affine)  # in voxels of the source
    edge = margin + 4 * max(0.0, max(factors) - 1)
    inner = ((on_source >= edge) & (on_source <= np.array(shape) - 1 - edge)).all(-1)
    np.testing.assert_allclose(made.array_CZYX[:, inner], expected[:, inner], atol=atol)
    back = scores_to_source(expected, made.grid, made.source)
    on_made = places(shape, np.linalg.inv(made.grid.affine) @ affine)
    inner = ((on_made >= 0) & (on_made <= np.array(made.grid.shape) - 1)).all(-1)
    np.testing.assert_allclose(back[:, inner], image[:, inner], atol=1e-3)


def test_channels_stay_registered_from_one_file_or_several(tmp_path):
    """Four channels that are one function of the world: on the store's grid they still are, and both layouts agree."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [1.5, 1.0, 0.8], [30, -20, 10]
    shape = (17, 21, 23)
    x, y, z = np.moveaxis(places(shape, affine), -1, 0)
    base = np.sin(x / 5) + np.cos(y / 4) * np.sin(z / 6) + 3
    scales, shifts = (1.0, 50.0, -2000.0, 0.5), (0.0, 7.0, 9000.0, 1.0)
    channels = [(base * a + b).astype(np.float32) for a, b in zip(scales, shifts, strict=True)]
    (tmp_path / "one" / "images").mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.stack(channels, -1), affine), tmp_path / "one" / "images" / "case.nii.gz")
    (tmp_path / "several" / "imagesTr").mkdir(parents=True)
    for number, channel in enumerate(channels):
        path = tmp_path / "several" / "imagesTr" / f"case_{number:04d}.nii.gz"
        nib.save(nib.Nifti1Image(channel, affine), path)
    names = {"channel_names": {str(n): f"c{n}" for n in range(4)}, "labels": {"background": 0, "a": 1}}
    (tmp_path / "several" / "dataset.json").write_text(
        json.dumps({**names, "numTraining": 1, "file_ending": ".nii.gz"})
    )
    stored = {}
    for layout in ("one", "several"):
        (tmp_path / f"{layout}-made").mkdir()
        store = make_store(tmp_path / layout, tmp_path / f"{layout}-made", spacing=(1.0, 1.2, 1.1))
        stored[layout] = store.read("case", 0, whole(store, "case")).result()
        slope, intercept = store.slope_intercept("case").T[:, :, None, None, None]
        errors = np.array(store.row("case")["max_error"])
    assert np.array_equal(stored["one"], stored["several"])
    voxels = stored["one"] * slope + intercept
    plain = [(v - b) / a for v, a, b in zip(voxels, scales, shifts, strict=True)]
    for channel, error, scale in zip(plain[1:], errors[1:], scales[1:], strict=True):
        # quantisation of both, and the last digits of float32
        assert np.abs(channel - plain[0]).max() <= errors[0] + error / abs(scale) + 1e-5
    inner = (slice(3, -3),) * 3
    x, y, z = np.moveaxis(places(voxels.shape[1:], affine_of(store, "case")), -1, 0)
    expected = np.sin(x / 5) + np.cos(y / 4) * np.sin(z / 6) + 3
    np.testing.assert_allclose(plain[0][inner], expected[inner], atol=0.02)  # in its place, not only equal


KINDS = ("uint8", "int16", "uint16", "int32", "float32", "float64", "scaled")


@st.composite
def sources(draw, integral):
    """An image as a NIfTI file holds it: voxel type, values, and (for "scaled") slope and intercept."""
    kind, rng = draw(st.sampled_from(KINDS if integral else ("float32", "float64", "scaled"))), draw(seeds)
    rng = np.random.default_rng(rng)
    shape = draw(shapes)
    if kind == "scaled":
        raw = rng.integers(-32768, 32768, shape).astype(np.int16)
        if integral:
            raw //= 8
        slope = draw(st.sampled_from([1, 2, -3, 7] if integral else [0.37, 1.5e-3, 22.4]))
        return raw, slope, draw(st.sampled_from([0, -1024, 1_000_000_000] if integral else [0, -1024.25]))
    if not integral:
        return (rng.normal(size=shape) * 10 ** draw(st.floats(-4, 6)) + draw(st.floats(-1e3, 1e3))).astype(kind), 1, 0
    low, high = {"uint8": (0, 256), "int16": (-32768, 32768), "uint16": (0, 65536)}.get(kind, (0, 65536))
    offset = draw(st.sampled_from([0, -40000, 2**23])) if kind in ("int32", "float32", "float64") else 0
    return (rng.integers(low, high, shape) + offset).astype(kind), 1, 0


def through_the_store(source):
    """Voxels of the file by nibabel (float64) and as read, stored ones, the error that the store says, its step."""
    raw, slope, inter = source
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scans").mkdir()
        image = nib.Nifti1Image(raw, np.eye(4))
        content = bytearray(image.to_bytes())
        header = image.header.copy()
        header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, slope, inter
        content[:348] = header.binaryblock  # as it is: nibabel would choose slope and intercept by itself
        (folder / "scans" / "a.nii").write_bytes(content)
        truth = nib.load(folder / "scans" / "a.nii").get_fdata().T
        store = make_store(folder / "scans", folder, crop="none")
        ((step, intercept),) = store.slope_intercept("a")
        stored = store.read("a", 0, whole(store, "a")).result()[0] * step + intercept
        read = read_image(folder / "scans" / "a.nii").array_CIJK[0].T.astype(np.float64)
        return truth, read, stored, float(store.row("a")["max_error"][0]), step


@given(sources(integral=True))
@settings(max_examples=30, deadline=None)
def test_whole_numbers_come_back_exactly_from_any_type(source):
    truth, _, stored, error, _ = through_the_store(source)
    assert error == 0
    assert np.array_equal(truth.reshape(stored.shape), stored)


@given(sources(integral=False))
@settings(max_examples=30, deadline=None)
def test_the_largest_error_of_floats_is_what_the_store_says(source):
    truth, read, stored, error, step = through_the_store(source)
    truth, read = truth.reshape(stored.shape), read.reshape(stored.shape)
    assert np.abs(stored - read).max() == pytest.approx(error, rel=1e-6, abs=1e-12 * np.abs(read).max())
    assert error <= step / 2 * (1 + 1e-6)
    # against the file itself: scaled integers are read as float32, whose last digit comes on top
    assert np.abs(stored - truth).max() <= error + np.spacing(np.float32(np.abs(truth).max()))
