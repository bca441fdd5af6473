from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from prevox.config.data import NormaliseConfig
from prevox.data.dataset import RawBatch, ViewLoader, to_device
from prevox.data.store import Store
from prevox.errors import DataError
from prevox.task import ViewGroup

pytestmark = pytest.mark.unit
IMAGES = [f"case_{number}" for number in range(1, 7)]
WINDOW = NormaliseConfig(name="window", window=(0.0, 10000.0))  # keeps the known values readable


def loader(store: Path, size=(4, 5, 6), batch=2, count=1, foreground=0.0, labels=True, seed=0, **kwargs) -> ViewLoader:
    spec = {"view": ViewGroup(size, count, labels, foreground)}
    return ViewLoader(Store(store), IMAGES, spec, seed=seed, batch=batch, **kwargs)


def first(made: ViewLoader, number: int, start: int = 0) -> list[RawBatch]:
    return list(islice(made.batches(start), number))


def same(a: RawBatch, b: RawBatch) -> bool:
    left, right = a.groups["view"], b.groups["view"]
    return (
        (a.images, a.first_sample, a.number) == (b.images, b.first_sample, b.number)
        and np.array_equal(left.voxels_BCDHW, right.voxels_BCDHW)
        and np.array_equal(left.label_BDHW, right.label_BDHW)
        and left.boxes == right.boxes
    )


def test_views_are_what_the_image_holds_at_their_box(tiny_store: Path) -> None:
    made = loader(tiny_store, count=2)
    for raw in first(made, 6):
        batch = to_device(raw, made.store, made.spec, WINDOW, torch.device("cpu"), torch.Generator())
        view = batch.views["view"]
        owners = [image for image in batch.images for _ in range(2)]
        for row, image in enumerate(owners):
            z, y, x = (np.arange(a, b) for a, b in view.box_B23[row].T.tolist())
            wanted = 1000 * int(image[-1]) + 100 * z[:, None, None] + 10 * y[:, None] + x
            found = view.x_BCDHW[row, 0].double() * 10000
            torch.testing.assert_close(found, torch.tensor(wanted).double(), rtol=0, atol=0.01)
            label = np.broadcast_to((z == 3)[:, None, None], wanted.shape).astype(int)
            special = (z[:, None, None] == 5) & (y[:, None] == 4) & (x == 6)
            assert np.array_equal(view.label_B1DHW[row, 0].numpy(), np.where(special, 2, label))
        assert view.valid_B1DHW.all()


def test_padding_is_invalid_zero_and_unlabelled(tiny_store: Path) -> None:
    made = loader(tiny_store, size=(14, 5, 12))
    raw = first(made, 1)[0]
    view = to_device(raw, made.store, made.spec, WINDOW, torch.device("cpu"), torch.Generator()).views["view"]
    for row, image in enumerate(raw.images):
        depth = made.store.shape(image)[0]
        before = (14 - depth) // 2
        valid = view.valid_B1DHW[row, 0]
        assert valid.sum() == depth * 5 * 10
        assert valid[before : before + depth, :, 1:11].all()
        assert (view.x_BCDHW[row, 0][~valid] == 0).all()
        assert (view.label_B1DHW[row, 0][~valid] == 0).all()
        assert (view.x_BCDHW[row, 0][valid] > 0).all()


def test_batches_do_not_depend_on_the_reads_in_flight(tiny_store: Path) -> None:
    one, many = first(loader(tiny_store, reads_ahead=1), 8), first(loader(tiny_store, reads_ahead=40), 8)
    assert all(same(a, b) for a, b in zip(one, many, strict=True))
    other = first(loader(tiny_store, seed=1), 8)
    assert not all(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("reads_ahead", [1, 5])
def test_reads_are_in_flight_while_the_caller_works(tiny_store: Path, reads_ahead: int) -> None:
    made = loader(tiny_store, batch=4, labels=False, reads_ahead=reads_ahead)
    started = 0
    read = made.store.read

    def counted(*args):
        nonlocal started
        started += 1
        return read(*args)

    made.store.read = counted
    for number, _ in enumerate(islice(made.batches(), 3), 1):
        assert started == 4 * number + reads_ahead + 4  # what was yielded, and what is on its way


def test_images_with_other_channels_are_named(tiny_store: Path) -> None:
    store = Store(tiny_store)
    store.index.loc["case_4", "channels"] = 2
    spec = {"view": ViewGroup((4, 4, 4))}
    with pytest.raises(DataError, match=r"1 of 6 chosen images with other channels \(case_4 has 2\)"):
        ViewLoader(store, IMAGES, spec, seed=0, batch=1)
    ViewLoader(store, IMAGES[:3], spec, seed=0, batch=1)
    with pytest.raises(DataError, match="nearest name is 'case_5'"):
        ViewLoader(store, ["case_5", "case_5x"], spec, seed=0, batch=1)


def test_each_channel_has_its_own_scale(tiny_store: Path, monkeypatch) -> None:
    made = loader(tiny_store, batch=3)
    raw = first(made, 1)[0]
    view = raw.groups["view"]
    view.voxels_BCDHW = np.concatenate([view.voxels_BCDHW, view.voxels_BCDHW], axis=1)
    scales = {image: np.array([[1 + n, 7.0], [0.5, n]]) for n, image in enumerate(raw.images)}
    monkeypatch.setattr(made.store, "slope_intercept", scales.__getitem__)
    monkeypatch.setattr(made.store, "statistics", lambda image: [{}, {}])
    batch = to_device(raw, made.store, made.spec, WINDOW, torch.device("cpu"), torch.Generator())
    for row in range(3):
        stored = view.voxels_BCDHW[row, 0].astype(np.float64)
        wanted = torch.tensor(np.stack([stored * (1 + row) + 7, stored * 0.5 + row])) / 10000
        torch.testing.assert_close(batch.views["view"].x_BCDHW[row].double(), wanted.clamp(0, 1), rtol=0, atol=1e-6)


def test_starting_later_skips_exactly_the_batches_before(tiny_store: Path) -> None:
    whole, tail = first(loader(tiny_store), 9), first(loader(tiny_store), 4, start=5)
    assert all(same(a, b) for a, b in zip(whole[5:], tail, strict=True))


def test_two_devices_share_what_one_would_see(tiny_store: Path) -> None:
    alone = first(loader(tiny_store), 8)
    shared = [first(loader(tiny_store, rank=rank, world=2), 4) for rank in (0, 1)]
    assert all(same(a, shared[number % 2][number // 2]) for number, a in enumerate(alone))


def test_the_batch_size_does_not_change_the_samples(tiny_store: Path) -> None:
    small, large = first(loader(tiny_store, batch=1), 6), first(loader(tiny_store, batch=3), 2)
    joined = np.concatenate([raw.groups["view"].voxels_BCDHW for raw in small])
    assert np.array_equal(joined, np.concatenate([raw.groups["view"].voxels_BCDHW for raw in large]))


def test_foreground_views_hold_the_rare_class(tiny_store: Path) -> None:
    raws = first(loader(tiny_store, size=(1, 3, 3), foreground=1.0), 60)
    labels = np.concatenate([raw.groups["view"].label_BDHW for raw in raws])
    assert (labels > 0).any(axis=(1, 2, 3)).all()
    rare = (labels == 2).any(axis=(1, 2, 3)).mean()
    assert 0.35 < rare < 0.65  # the class is drawn first: one voxel is met as often as a whole slice


def test_two_numbers_cut_slices(tiny_store: Path) -> None:
    made = loader(tiny_store, size=(5, 6))
    raw = first(made, 1)[0]
    view = to_device(raw, made.store, made.spec, WINDOW, torch.device("cpu"), torch.Generator()).views["view"]
    assert view.x_BCDHW.shape == (2, 1, 5, 6)
    assert view.label_B1DHW.shape == view.valid_B1DHW.shape == (2, 1, 5, 6)
    assert (view.box_B23[:, 1, 0] - view.box_B23[:, 0, 0] == 1).all()


def test_an_image_without_label_is_named(tiny_store: Path) -> None:
    store = Store(tiny_store)
    store.has_label = lambda image: image != "case_4"
    with pytest.raises(DataError, match="case_4"):
        ViewLoader(store, IMAGES, {"view": ViewGroup((4, 4, 4), labels=True)}, seed=0, batch=1)
