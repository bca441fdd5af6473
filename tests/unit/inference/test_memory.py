"""What `predict` holds at a time, counted tensor by tensor: resident memory would depend on the machine."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from prevox.config.data import NormaliseConfig
from prevox.config.runs import PredictConfig
from prevox.data import restore
from prevox.data.place import PrepareSettings
from prevox.finetuning.labels import LabelScheme
from prevox.finetuning.network_io import LoadedNetwork
from prevox.inference.cases import Case
from prevox.inference.predict import predict_case

pytestmark = pytest.mark.unit

PLANE = (24, 20)  # x y


class Held(TorchDispatchMode):
    """Bytes of the storages that operations returned and that are still alive; their largest sum is `peak`."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, torch.Tensor):
                storage = item.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


class Network(torch.nn.Module):
    """Four features, as many outputs as asked for."""

    def __init__(self, outputs):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.outputs = torch.randn(outputs, 4), outputs

    def parts(self):
        return self.body, lambda x_FDHW: torch.einsum("kf,fzyx->kzyx", self.mix, x_FDHW)

    def body(self, x_BCDHW):
        return torch.cat([(rate * x_BCDHW).sin() for rate in (3, 7, 20, 50)], dim=1)


def peak(tmp_path, depth, classes, spacing):
    image = np.random.default_rng(0).uniform(0.1, 1, (*PLANE, depth)).astype(np.float32)
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(image, np.diag([1.0, 1, 1, 1])), path)
    scheme = LabelScheme({str(value): (value,) for value in range(1, classes)})
    unit = NormaliseConfig(name="window", window=(0, 1))
    prepare = PrepareSettings(spacing, "none", 1)
    loaded = LoadedNetwork(Network(classes), scheme, 1, (8, 8, 8), unit, prepare, Path("run"), Path("file"))  # type: ignore[arg-type]
    config = PredictConfig.parse({"run": "run", "images": "images", "device": "cpu"})
    with Held() as held:
        predict_case(Case("case", (path,), None), loaded, config, tmp_path, torch.device("cpu"))
    assert len(np.unique(np.asarray(nib.load(tmp_path / "case.nii.gz").dataobj))) > 1
    return held.peak


@pytest.mark.parametrize("spacing", [None, (1.5, 0.8, 1.3)])
def test_memory_grows_neither_with_depth_times_features_nor_with_classes(tmp_path, monkeypatch, spacing):
    block = 1 << 14
    monkeypatch.setitem(restore._BLOCK, "cpu", block)
    shallow, deep, wide = (peak(tmp_path, d, k, spacing) for d, k in ((30, 5), (120, 5), (120, 50)))
    added = 4 * np.prod(PLANE) * (120 - 30)  # bytes of an image of the planes that came in addition
    assert deep - shallow < 4 * added  # the image, normalised and in between; all four features would be as much again
    assert wide - deep < 10 * 4 * block  # a few blocks; 45 scores of all voxels would be 158
