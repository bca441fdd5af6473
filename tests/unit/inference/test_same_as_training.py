"""What the network sees in prediction is what it saw in training: the loader on one side, `predict` on the other."""

import nibabel as nib
import numpy as np
import pytest
import torch

import prevox
from prevox.config.data import NormaliseConfig
from prevox.config.runs import PredictConfig
from prevox.data.dataset import ViewLoader, to_device
from prevox.data.place import PrepareSettings
from prevox.data.store import Store
from prevox.finetuning.labels import LabelScheme
from prevox.finetuning.network_io import LoadedNetwork
from prevox.inference.cases import find_cases
from prevox.inference.predict import predict_case
from prevox.task import ViewGroup

pytestmark = pytest.mark.unit

SIZE = (16, 16, 16)  # larger than the images: one window, with padding


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    affine = np.array([[0, -1.5, 0, 9.0], [1.0, 0, 0, -4], [0, 0, 2.0, 3], [0, 0, 0, 1]])
    for name in ("a", "b"):
        image = rng.normal(500, 100, (13, 9, 8)).astype(np.float32)
        image[:2] = 0
        for kind, array in (("images", image), ("labels", (image > 600).astype(np.uint8))):
            (folder / "scans" / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), folder / "scans" / kind / f"{name}.nii.gz")
    prevox.catalogue(paths=[folder / "scans"], out=folder / "scans.parquet")
    prevox.prepare(catalogue=folder / "scans.parquet", out=folder / "store", spacing=[1.25, 1.25, 1.25], workers=1)
    return folder


@pytest.mark.parametrize("kind", ["zscore", "zscore_nonzero", "percentile"])
def test_the_network_sees_the_same_voxels(prepared, tmp_path, kind):
    store = Store(prepared / "store")
    normalise = NormaliseConfig(name=kind)
    spec = {"view": ViewGroup(SIZE, labels=True)}
    loader = ViewLoader(store, ["a"], spec, seed=0, batch=1)
    raw = next(loader.batches())
    trained = to_device(raw, store, spec, normalise, torch.device("cpu"), torch.Generator().manual_seed(0))
    seen = []

    class Spy(torch.nn.Module):
        def parts(self):
            return self, None

        def forward(self, x):
            seen.append(x.clone())
            return torch.cat([x, x], dim=1)

    settings = PrepareSettings.from_info(store.info)
    scheme = LabelScheme({"a": (1,)})
    loaded = LoadedNetwork(Spy(), scheme, 1, SIZE, normalise, settings, prepared, prepared)  # type: ignore[arg-type]
    case = next(case for case in find_cases(prepared / "store") if case.image == "a")
    config = PredictConfig(run=prepared, images=prepared)
    predict_case(case, loaded, config, tmp_path, torch.device("cpu"))
    assert len(seen) == 1
    # the store rounds to 1 / 65535 of the image's range, about 7 standard deviations
    torch.testing.assert_close(seen[0], trained.views["view"].x_BCDHW, rtol=0, atol=2e-3)


def test_catalogue_store_and_folder_name_the_same_cases(prepared):
    found = [find_cases(prepared / name) for name in ("scans.parquet", "store", "scans")]
    assert [case.image for case in found[0]] == ["a", "b"]
    assert found[0] == found[1] == found[2]
    assert found[0][0].label == prepared / "scans" / "labels" / "a.nii.gz"
