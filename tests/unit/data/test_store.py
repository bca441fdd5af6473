import json
import math
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prevox.data.geometry import spacing_of
from prevox.data.group import (
    foreground_voxels,
    image_levels,
    label_levels,
    pyramid_factors,
    quantise,
    quantise_channels,
    read_attributes,
    update_attributes,
    write_image_group,
)
from prevox.data.store import SCHEMA, Store
from prevox.errors import DataError

pytestmark = pytest.mark.unit

AFFINE = np.array([[0.1, 0, 0.8, -7], [0, 0.8, 0, 8], [5, 0, 0, 9], [0, 0, 0, 1.0]])


@given(hnp.arrays(np.int32, (3, 4, 5), elements=st.integers(-(10**9), 10**9)), st.integers(-(10**6), 10**6))
@settings(max_examples=50, deadline=None)
def test_whole_numbers_in_range_are_exact(array, offset):
    values = array % 65536 + offset
    for given_type in (values.astype(np.int32), values.astype(np.float64)):
        stored, slope, intercept, error = quantise(given_type)
        assert stored.dtype == np.int16
        assert (slope, error) == (1, 0)
        assert intercept == round(intercept)
        assert (stored.astype(np.int64) + int(intercept) == values).all()


def test_int16_is_stored_as_it_is():
    values = np.array([-32768, -1024, 0, 3071, 32767], np.int16)
    stored, slope, intercept, error = quantise(values)
    assert (stored == values).all()
    assert (slope, intercept, error) == (1, 0, 0)


finite = st.floats(-1.7e6, 1.7e6)


@given(hnp.arrays(np.float64, (2, 3, 4), elements=finite))
@settings(max_examples=80, deadline=None)
def test_largest_error_is_what_is_said_and_at_most_half_a_step(array):
    stored, slope, intercept, error = quantise(array)
    actual = np.abs(stored.astype(np.float64) * slope + intercept - array).max()
    assert error == actual
    assert actual <= (array.max() - array.min()) / 65535 / 2 * (1 + 1e-6) + 1e-9


def test_quantisation_of_large_floats_by_hand():
    array = np.linspace(0, 1.7e6, 1001) + 0.25
    _, slope, _, error = quantise(array)
    assert slope == pytest.approx(1.7e6 / 65535)
    assert 5 < error <= slope / 2 * (1 + 1e-9)
    constant = quantise(np.full((2, 2), 0.3))
    assert constant[3] == 0
    assert constant[0][0, 0] * constant[1] + constant[2] == 0.3


def test_every_channel_is_spread_over_its_own_range():
    t2, adc = np.linspace(0, 4000.5, 60).reshape(3, 4, 5), np.linspace(0, 0.003, 60).reshape(3, 4, 5)
    array = np.stack([t2, adc, np.arange(60.0).reshape(3, 4, 5)])
    stored, slopes, intercepts, errors = quantise_channels(array)
    assert stored.dtype == np.int16
    assert slopes == pytest.approx([4000.5 / 65535, 0.003 / 65535, 1])
    assert (intercepts[2], errors[2]) == (0, 0)
    back = stored * np.reshape(slopes, (3, 1, 1, 1)) + np.reshape(intercepts, (3, 1, 1, 1))
    assert np.abs(back - array).max(axis=(1, 2, 3)).tolist() == errors
    assert 0 < errors[1] <= 0.003 / 65535 / 2 * (1 + 1e-6)


@pytest.mark.parametrize(("bad", "words"), [(np.nan, "1 NaN and 0 infinite"), (-np.inf, "0 NaN and 1 infinite")])
def test_values_that_are_not_finite_are_refused(bad, words):
    array = np.ones((3, 3))
    array[1, 1] = bad
    with pytest.raises(DataError, match=words):
        quantise(array)
    with pytest.raises(DataError, match="values from"):
        quantise(np.array([-1.7e308, 1.7e308]))


def test_pyramid_factors_by_hand():
    # thick slices: in plane until 6.4 mm; 3.2 mm * sqrt(2) < 5 mm, so slices are halved only with the last level
    expected = [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (2, 16, 16)]
    assert pyramid_factors((60, 600, 600), (5, 0.8, 0.8)) == expected
    assert pyramid_factors((100, 100, 100), (1, 1, 1)) == [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    assert pyramid_factors((32, 32, 20), (1, 1, 1)) == [(1, 1, 1)]
    assert pyramid_factors((1, 128, 128), (1, 1, 1)) == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    assert pyramid_factors((64, 33, 33), (1, 1.4, 1.5)) == [(1, 1, 1), (2, 2, 1), (4, 2, 2)]


def slow_mean(array, factors):
    """Mean over blocks by loops; the last voxel is repeated where a block sticks out (odd sizes, one halving)."""
    shape = [math.ceil(n / f) for n, f in zip(array.shape, factors, strict=True)]
    padded = np.pad(array, [(0, m * f - n) for n, m, f in zip(array.shape, shape, factors, strict=True)], mode="edge")
    result = np.zeros(shape)
    for index in np.ndindex(*shape):
        block = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))
        result[index] = padded[block].mean()
    return result


def test_levels_are_block_means_and_majorities():
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, (2, 7, 8, 12)).astype(np.int16)
    levels = list(image_levels(image, [(1, 1, 1), (2, 2, 1), (2, 4, 2)]))
    assert [level.dtype for level in levels] == [np.int16] * 3
    for channel in range(2):
        first = slow_mean(image[channel], (2, 2, 1))
        assert (levels[1][channel] == np.rint(first)).all()
        assert (levels[2][channel] == np.rint(slow_mean(first, (1, 2, 2)))).all()  # from means that were not rounded
    label = rng.choice(np.array([0, 3, 7], np.uint8), (7, 8, 12))
    coarse = label_levels(label, [(1, 1, 1), (2, 2, 1)])[1]
    shares = np.stack([slow_mean(label == value, (2, 2, 1)) for value in (0, 3, 7)])
    assert coarse.dtype == np.uint8
    assert (coarse == np.array([0, 3, 7])[shares.argmax(0)]).all()


def test_foreground_rows_are_voxels_of_their_class():
    label = np.zeros((20, 20, 20), np.uint8)
    label[2:18, 2:18, 2:18] = 2  # 4096 voxels minus those below
    label[5, 5, 5:8] = 9
    rows = foreground_voxels(label, seed=3)
    assert rows.dtype == np.int32
    assert (rows[:, 0] == 2).sum() == 1000
    assert rows[rows[:, 0] == 9][:, 1:].tolist() == [[5, 5, 5], [5, 5, 6], [5, 5, 7]]
    assert (label[tuple(rows[:, 1:].T)] == rows[:, 0]).all()
    assert len(np.unique(rows, axis=0)) == 1003
    assert (rows == foreground_voxels(label, seed=3)).all()
    assert (rows != foreground_voxels(label, seed=4)).any()
    assert foreground_voxels(np.zeros((2, 2, 2), np.uint8), 0).shape == (0, 4)


@pytest.fixture
def written(tmp_path):
    """A store of one two-channel image with labels, written by hand around the group."""
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, (2, 9, 70, 41)).astype(np.int16)
    label = (rng.random((9, 70, 41)) > 0.8).astype(np.uint16) * 300
    write_image_group(tmp_path / "images" / "a.zarr", image, label, AFFINE, {"hello": 1}, seed=5)
    write_image_group(tmp_path / "images" / "b.zarr", image[:, :, :9, :9], None, AFFINE, {})
    (tmp_path / "store.json").write_text(json.dumps({"schema": SCHEMA, "channels": 2}))
    rows = []
    for name in "ab":
        attributes = read_attributes(tmp_path / "images" / f"{name}.zarr")
        values = [300] if name == "a" else None
        levels, statistics = json.dumps(attributes["levels"]), json.dumps([{"mean": 1.0}] * 2)
        rows.append(
            {"image": name, "slope": [0.5, 2.0], "intercept": [3.0, 0.0], "levels": levels, "statistics": statistics}
        )
        rows[-1]["label_values"] = values
    pd.DataFrame(rows).to_parquet(tmp_path / "index.parquet")
    return tmp_path, image, label


def test_store_reads_back_what_was_written(written):
    path, image, label = written
    store = Store(path)
    box = ((2, 9), (30, 70), (0, 41))
    first, second = store.read("a", 0, box), store.read_label("a", 0, box)
    assert (first.result() == image[:, 2:9, 30:70, 0:41]).all()
    assert first.result().dtype == np.int16
    assert (second.result() == label[2:9, 30:70, 0:41]).all()
    assert store.levels("a") == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    assert store.shape("a", 1) == (9, 35, 21)
    coarse = list(image_levels(image, store.levels("a")))[1]
    assert (store.read("a", 1, ((0, 9), (3, 35), (0, 21))).result() == coarse[:, :, 3:]).all()
    assert store.slope_intercept("a").tolist() == [[0.5, 3], [2, 0]]
    assert store.statistics("a") == [{"mean": 1.0}] * 2
    assert store.has_label("a")
    assert not store.has_label("b")
    assert store.foreground("b").shape == (0, 4)
    assert set(store.foreground("a")[:, 0]) == {300}
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.read("a", 0, box).result() == first.result()).all()


def test_one_shard_file_per_level(written):
    chunks = [p for p in (written[0] / "images" / "a.zarr").rglob("c/*") if p.is_file()]
    chunks += [p for p in (written[0] / "images" / "a.zarr").rglob("*/0/0/0") if p.is_file() and p not in chunks]
    assert len(chunks) == 6  # three levels of the image, three of the labels


def test_level_for_takes_the_coarsest_that_is_fine_enough(written):
    store = Store(written[0])  # factors (1, 1, 1), (1, 2, 2), (1, 4, 4)
    assert store.level_for("a", (9, 64, 40), (9, 16, 10)) == 2
    assert store.level_for("a", (9, 64, 40), (9, 17, 10)) == 1
    assert store.level_for("a", (9, 64, 40), (9, 33, 10)) == 0
    assert store.level_for("a", (8, 64, 40), (9, 8, 8)) == 2  # z is never halved: what it lacks, it lacks everywhere
    assert store.level_for("a", (9, 8, 8), (9, 9, 8)) == 0  # nothing is fine enough: the finest


def test_group_is_valid_ome_zarr(written):
    import zarr
    from ome_zarr_models.v05.image import Image
    from ome_zarr_models.v05.image_label import ImageLabel

    path, image, label = written
    group = zarr.open_group(path / "images" / "a.zarr", mode="r")
    assert (group["0"][:] == image).all()
    assert (group["labels/reference/0"][:] == label).all()
    assert group["0"].metadata.dimension_names == ("c", "z", "y", "x")
    assert group["labels"].attrs["ome"]["labels"] == ["reference"]
    parsed = Image.from_zarr(group)
    assert parsed.attributes.ome.multiscales[0].ndim == 4
    assert ImageLabel.from_zarr(group["labels/reference"]).attributes.ome.image_label.source.image == "../../"


def test_metadata_by_hand(written):
    attributes = json.loads((written[0] / "images" / "a.zarr" / "zarr.json").read_text())["attributes"]
    level = attributes["ome"]["multiscales"][0]["datasets"][2]  # factors (1, 4, 4): centres move by 1.5 fine voxels
    z = math.hypot(0.1, 5)
    scale, translation = level["coordinateTransformations"]
    assert scale["type"] == "scale"
    assert scale["scale"] == pytest.approx([1, z, 3.2, 3.2])
    assert translation["translation"] == pytest.approx([0, 0, 1.2, 1.2])
    assert attributes["prevox"]["hello"] == 1
    assert np.array_equal(np.reshape(attributes["prevox"]["affine"], (4, 4)), AFFINE)
    assert spacing_of(AFFINE) == pytest.approx((z, 0.8, 0.8))


def test_update_attributes_keeps_the_rest(written):
    folder = written[0] / "images" / "a.zarr"
    before = read_attributes(folder)
    update_attributes(folder, {"hello": 2})
    assert read_attributes(folder) == {**before, "hello": 2}
    assert read_attributes(written[0]) is None


def test_wrong_folders_and_names(written, tmp_path):
    path = written[0]
    with pytest.raises(DataError, match="no such folder"):
        Store(path / "nowhere")
    with pytest.raises(DataError, match=r"without store\.json"):
        Store(path / "images")
    with pytest.raises(DataError, match=r"no image 'aa'.*nearest name is 'a'"):
        Store(path).read("aa", 0, ((0, 1),) * 3)
    with pytest.raises(DataError, match="prepared without a label"):
        Store(path).read_label("b", 0, ((0, 1),) * 3)
    (path / "images" / "b.zarr").rename(path / "gone")
    with pytest.raises(DataError, match=r"no folder for 1 of 2 images \(b"):
        Store(path)
    (path / "index.parquet").unlink()
    with pytest.raises(DataError, match=r"index\.parquet"):
        Store(path)
    (path / "store.json").write_text('{"schema": 99}')
    with pytest.raises(DataError, match="newer Prevox"):
        Store(path)
    (path / "store.json").write_text('{"schema": 1}')
    with pytest.raises(DataError, match=r"schema 1; expected schema 2\. .*older Prevox.*another --out"):
        Store(path)
    (path / "store.json").write_text("{")
    with pytest.raises(DataError, match="JSON of a store"):
        Store(path)
