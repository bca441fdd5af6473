"""Views that are cut as a share of the image and resized, read from the level of the pyramid that suffices."""

from itertools import islice
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prevox.config.data import CatalogueConfig, NormaliseConfig, PrepareConfig
from prevox.data.catalogue import catalogue
from prevox.data.dataset import ViewLoader, level_window, to_device
from prevox.data.prepare import prepare
from prevox.data.sampler import scaled_box
from prevox.data.store import Store
from prevox.task import ViewGroup

pytestmark = pytest.mark.unit
SHAPE = (20, 96, 80)  # 4 × 1 × 1 mm: the pyramid halves in plane first
SLOPES = (50.0, 7.0, -3.0)  # voxel = Σ slope · index: linear, so every correct resizing gives the same line


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("ramp")
    voxels = np.tensordot(SLOPES, np.indices(SHAPE), 1) + 1000
    nib.save(nib.Nifti1Image(voxels.astype(np.int16).T, np.diag([1.0, 1.0, 4.0, 1.0])), root / "ramp.nii.gz")
    catalogue(CatalogueConfig(paths=(root / "ramp.nii.gz",), out=root / "c.parquet"))
    prepare(PrepareConfig(catalogue=root / "c.parquet", out=root / "store", workers=1))
    return Store(root / "store")


@given(
    shape=st.tuples(*[st.integers(1, 60)] * 3),
    low=st.floats(0.01, 1),
    high=st.floats(0.01, 1),
    joint=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_boxes_stay_inside_and_have_their_share(shape, low, high, joint, seed) -> None:
    scale = (min(low, high), max(low, high))
    box = scaled_box(shape, scale, "joint" if joint else "independent", np.random.default_rng(seed))
    for (start, stop), length in zip(box, shape, strict=True):
        assert 0 <= start < stop <= length
        assert max(1, round(length * scale[0])) <= stop - start <= max(1, round(length * scale[1]))


def test_joint_axes_share_one_draw_and_independent_ones_do_not() -> None:
    def shares(axes):
        boxes = [scaled_box((1000, 1000, 1000), (0.25, 0.5), axes, np.random.default_rng(n)) for n in range(50)]
        return np.array([[stop - start for start, stop in box] for box in boxes])

    joint, independent = shares("joint"), shares("independent")
    assert (np.ptp(joint, axis=1) == 0).all()
    assert (np.ptp(independent, axis=1) > 0).all()
    assert joint.min() >= 250
    assert joint.max() <= 500
    assert joint.std() > 50  # uniform: 250 / sqrt(12) = 72


def test_every_level_shows_the_same_place(store: Store) -> None:
    """A linear image, resized from whatever level, has at each target's centre the value of the image there."""
    assert store.levels("ramp") == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    levels = set()
    for size in ((10, 48, 40), (12, 24, 20), (5, 8, 6)):
        spec = {"view": ViewGroup(size, count=4, scale=(0.5, 1.0), axes="independent")}
        loader = ViewLoader(store, ["ramp"], spec, seed=3, batch=1, reads_ahead=2)
        for raw in islice(loader.batches(), 3):
            window = NormaliseConfig(name="window", window=(0.0, 10000.0))
            batch = to_device(raw, store, spec, window, torch.device("cpu"), torch.Generator())
            view = batch.views["view"]
            assert view.valid_B1DHW.all()
            assert view.x_BCDHW.shape == (4, 1, *size)
            for row in range(4):
                box = [tuple(edge) for edge in view.box_B23[row].T.tolist()]
                assert all(0 <= a < b <= n for (a, b), n in zip(box, SHAPE, strict=True))
                levels.add(level_window(store, "ramp", tuple(box), size)[1])
                centres = [a - 0.5 + (np.arange(n) + 0.5) * (b - a) / n for (a, b), n in zip(box, size, strict=True)]
                wanted = 1000 + sum(
                    slope * axis.reshape([-1 if other == number else 1 for other in range(3)])
                    for number, (slope, axis) in enumerate(zip(SLOPES, centres, strict=True))
                )
                inner = (slice(1, -1),) * 3  # at a border the triangle is cut off
                got = view.x_BCDHW[row, 0].numpy()[inner] * 10000
                # an asymmetrically sampled triangle is off by less than an eighth of a sample of the level
                np.testing.assert_allclose(got, wanted[inner], atol=sum(map(abs, SLOPES)) * 0.25)
    assert levels >= {0, 1, 2}


def test_what_is_read_covers_the_box_and_little_more(store: Store) -> None:
    box = ((3, 19), (5, 91), (7, 74))
    inside, level, window = level_window(store, "ramp", box, (16, 20, 16))
    assert level == 2  # 86 voxels along y are 21.5 there, 67 along x 16.75: still 20 and 16
    assert inside == ((3, 19), (1, 23), (1, 19))
    assert window == ((0.0, 16.0), (0.25, 21.75), (0.75, 17.5))
    assert level_window(store, "ramp", box, (16, 22, 16))[1] == 1


def test_a_sample_is_the_same_whatever_is_in_flight(store: Store) -> None:
    spec = {"view": ViewGroup((6, 6, 6), count=2, scale=(0.3, 0.9))}

    def boxes(reads_ahead: int):
        loader = ViewLoader(store, ["ramp"], spec, seed=1, batch=2, reads_ahead=reads_ahead)
        return [raw.groups["view"].boxes for raw in islice(loader.batches(), 4)]

    assert boxes(1) == boxes(9)
    assert len({tuple(box) for batch in boxes(1) for box in batch}) == 16


def test_slices_of_volumes_are_scaled_in_their_plane(store: Store) -> None:
    spec = {"view": ViewGroup((12, 10), count=3, scale=(0.5, 1.0))}
    raw = next(ViewLoader(store, ["ramp"], spec, seed=0, batch=1).batches())
    batch = to_device(raw, store, spec, NormaliseConfig(), torch.device("cpu"), torch.Generator())
    assert batch.views["view"].x_BCDHW.shape == (3, 1, 12, 10)
    assert all(stop - start == 1 for (start, stop), _, _ in raw.groups["view"].boxes)


def test_pretraining_takes_the_scale_and_finetuning_refuses_it(store: Store, tmp_path: Path) -> None:
    import prevox
    from prevox.errors import ConfigError

    small = {"size": "T", "patch": (4, 8, 8), "depth": 1}
    views = {"size": (8, 24, 16), "scale": (0.5, 1.0)}
    decoder = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
    settings = {"store": store.path, "views": views, "train": {"steps": 2}, "split": {"validation": 0.0}}
    prevox.pretrain(out=tmp_path / "run", model=small, method=decoder, **settings)
    assert (tmp_path / "run" / "summary.json").is_file()
    with pytest.raises(ConfigError, match=r"HIGH"):
        prevox.pretrain(out=tmp_path / "b", model=small, method=decoder, **{**settings, "views": {"scale": (1, 0.5)}})
