"""An oracle in the network's place: `predict` on real files, answering with the labels that `prepare` has stored.

Everything else is the real thing: reading, placing, normalising, windows, the way back, the files. What comes out can
thus be compared with the label files voxel by voxel.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prevox.config.data import CatalogueConfig, NormaliseConfig, PrepareConfig
from prevox.config.runs import PredictConfig
from prevox.data.catalogue import catalogue
from prevox.data.place import PrepareSettings, prepare_image
from prevox.data.prepare import prepare
from prevox.data.store import Store
from prevox.finetuning.labels import LabelScheme
from prevox.finetuning.network_io import LoadedNetwork
from prevox.inference.predict import PredictResult, predict

LARGEST = 255  # label value that the oracle can name


class Naming(torch.nn.Module):
    """Hard 0/1 scores: all of the weight on the class whose value the "image" holds, scaled by 1 / LARGEST."""

    def __init__(self, values: list[int]) -> None:
        super().__init__()
        self.values = values

    def parts(self):
        return self, None

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        label = (x_BCDHW[:, :1] * LARGEST).round()
        return 50.0 * torch.cat([label == value for value in (0, *self.values)], dim=1).float()


def make_store(scans: Path, folder: Path, **settings: object) -> Store:
    """Catalogue and prepare a folder of scans."""
    catalogue(CatalogueConfig(paths=(scans,), out=folder / "c.parquet", volumes="channels"))
    given = {"catalogue": folder / "c.parquet", "out": folder / "store", "workers": 1, **settings}
    assert prepare(PrepareConfig.parse(given)).exit_code == 0
    return Store(folder / "store")


def whole(store: Store, image: str) -> tuple[tuple[int, int], ...]:
    """The box of all voxels of an image."""
    return tuple((0, size) for size in store.shape(image))


def affine_of(store: Store, image: str) -> np.ndarray:
    """(4, 4) of an image's prepared grid."""
    return np.reshape(store.row(image)["affine"], (4, 4))


def predict_stored_labels(store: Store, out: Path, monkeypatch: pytest.MonkeyPatch) -> PredictResult:
    """Run `predict` over a store's images with the oracle, which also sees that `predict` places them as `prepare`."""

    def prepare_label(image_CIJK, affine, label, settings, where):  # in place of the voxels: the stored label
        placed = prepare_image(image_CIJK, affine, label, settings, where)
        stored = store.read_label(str(where), 0, whole(store, str(where))).result()
        assert stored.shape == placed.grid.shape
        np.testing.assert_array_equal(affine_of(store, str(where)), placed.grid.affine)
        return replace(placed, array_CZYX=np.stack([stored.astype(np.float32)] * len(placed.array_CZYX)))

    values = sorted({int(value) for row in store.index["label_values"] for value in row})
    scheme = LabelScheme({str(value): (value,) for value in values})
    loaded = LoadedNetwork(
        network=Naming(values),
        scheme=scheme,
        channels=int(store.info["channels"]),
        size=(40, 48, 48),
        normalise=NormaliseConfig(name="window", window=(0, LARGEST)),
        prepare=PrepareSettings.from_info(store.info),
        run=out.parent,
        checkpoint=out.parent / "oracle" / "none",
    )
    with monkeypatch.context() as patch:
        patch.setattr("prevox.inference.predict.load_network", lambda path: loaded)
        patch.setattr("prevox.inference.predict.prepare_image", prepare_label)
        config = {"run": out.parent, "images": store.path, "out": out, "overlap": 0.1, "device": "cpu"}
        return predict(PredictConfig.parse(config))
