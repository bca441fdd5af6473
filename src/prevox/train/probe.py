"""The online probe: while a method trains, how well its frozen features segment, by a linear classifier.

A pre-training loss falls whether or not the features become useful. Every so many steps a linear voxel classifier is
solved in closed form on the features of a few labelled images, and scored on images of other subjects. Ridge
regression instead of logistic regression: it has no rate and no number of iterations that would suit one method's
features and not another's, and gives the same numbers each time. Its scores decide after offsets that are chosen for
Dice on the images it is fitted on; without, Dice tells more about the frequency of the classes than about the features.

Nothing of it reaches the training: no gradient, no random state, no mode of a layer.

Shape suffixes: C features, N voxels, D H W voxels along z y x (D is absent in 2D).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from prevox.config.data import NormaliseConfig
from prevox.config.train import ProbeConfig
from prevox.data.dataset import RawBatch, ViewLoader, to_device
from prevox.data.sampler import generator
from prevox.data.splits import split_subjects
from prevox.data.store import Store
from prevox.errors import DataError, RunError
from prevox.evaluation.overlap import overlap
from prevox.task import PretrainMethod, ViewGroup
from prevox.train.linear import at_voxels, best_offsets, classify, raw_maps, ridge

Features = Callable[[Tensor], list[Tensor]]
VIEW = "probe"


@dataclass(frozen=True)
class Crop:
    """One labelled crop on the device: voxels (1, C, D, H, W), class of each voxel (D, H, W), True inside the image."""

    x_BCDHW: Tensor
    class_DHW: Tensor
    valid_DHW: Tensor
    number: int


class Probe:
    """A segmentation probe with fixed crops.

    Args:
        store: Labelled store.
        images: Ids to choose from; those whose label map is empty are left out.
        size: Voxels of a crop, which is centred on a labelled voxel.
        normalise: Intensity normalisation.
        settings: How often, how many images and voxels.
        seed: Decides about images, crops and voxels.

    Attributes:
        every: Steps between two probes.
        fit: Images that the classifier learns from.
        test: Images of other subjects that it is scored on.

    Raises:
        DataError: If the images have no labels, or are of fewer than two subjects.
    """

    def __init__(
        self,
        store: Store,
        images: Sequence[str],
        size: tuple[int, ...],
        normalise: NormaliseConfig,
        settings: ProbeConfig,
        seed: int,
    ) -> None:
        self.store, self.size, self.normalise, self.seed = store, size, normalise, seed
        self.every, self.voxels = settings.every, settings.voxels
        self.fit, self.test = choose(store, images, settings.images, seed)
        values = {int(v) for image in (*self.fit, *self.test) for v in store.row(image)["label_values"]}
        self.values = sorted(values - {0})
        self.floor: float | None = None

    def described(self) -> dict[str, Any]:
        """What makes two probes the same, JSON-able."""
        settings = {"every": self.every, "voxels": self.voxels, "store_hash": str(self.store.info["hash"])}
        return {**settings, "fit": self.fit, "test": self.test}

    def check_same(self, file: Path) -> None:
        """Check that a run which goes on is probed as before, if it was at all.

        Args:
            file: What `described` gave before; may be missing.

        Raises:
            RunError: If settings or images are others now.
        """
        before = json.loads(file.read_text()) if file.is_file() else {}
        differing = [key for key, now in self.described().items() if before and before.get(key) != now]
        if differing:
            raise RunError(
                f"{file}: the run was probed with other {', '.join(differing)} than this call asks for; its curve "
                "would be made of two. Repeat the probe's settings and store, or give no --probe.store."
            )

    def __call__(self, method: PretrainMethod, device: torch.device) -> dict[str, float]:
        """Probe a method as it is now.

        Args:
            method: On the device; left as it was.
            device: Where its weights are.

        Returns:
            Mean Dice (`probe_dice`), Dice of each class that occurs in the test crops (`probe_dice_1` ...), the mean
            Dice of raw voxels (`probe_floor`), seconds (`probe_seconds`).
        """
        began = perf_counter()
        with _frozen(method, device):
            if self.floor is None:
                self.floor = _mean(self._scores(raw_maps, device))
            scores = self._scores(lambda x: [m.float() for m, _ in method.features(x)], device)
        row = {"probe_dice": _mean(scores)} | {f"probe_dice_{v}": float(d) for v, d in scores.mean().dropna().items()}
        return {**row, "probe_floor": self.floor, "probe_seconds": perf_counter() - began}

    def _scores(self, features: Features, device: torch.device) -> pd.DataFrame:
        """Dice on the test crops after a fit on the others: one row per crop, one column per label value."""
        x, y, weight = [], [], []
        for crop in self._crops(self.fit, device):
            voxels_NA, weight_N = sample(crop, self.voxels, generator(self.seed, "probe voxels", crop.number))
            x.append(at_voxels(features(crop.x_BCDHW), voxels_NA, self.size))
            y.append(crop.class_DHW[tuple(voxels_NA.T)])
            weight.append(weight_N)
        x_NC, y_N, weight_N = torch.cat(x), torch.cat(y), torch.cat(weight)
        weight_KC, bias_K = ridge(x_NC, y_N, balance(y_N, weight_N), len(self.values) + 1)
        score_NK = x_NC.double() @ weight_KC.T + bias_K
        classifier = weight_KC, bias_K + best_offsets(score_NK.cpu(), y_N.cpu(), weight_N.cpu()).to(bias_K)
        return pd.DataFrame(
            self._overlap(classify(features(crop.x_BCDHW), *classifier, self.size), crop)
            for crop in self._crops(self.test, device)
        )

    def _overlap(self, found_DHW: Tensor, crop: Crop) -> dict[int, float]:
        """Dice of each label value within the image; NaN where both are empty."""
        found, reference = (t.masked_fill(~crop.valid_DHW, 0).cpu().numpy() for t in (found_DHW, crop.class_DHW))
        return {v: overlap(found == k, reference == k).dice for k, v in enumerate(self.values, start=1)}

    @cached_property
    def _raw(self) -> dict[str, tuple[RawBatch, int]]:
        """Every image's crop and number as read once from the store, by the image."""
        images = [*self.fit, *self.test]
        loader = ViewLoader(self.store, images, self._spec, seed=self.seed, batch=1)
        batches = islice(loader.batches(), len(images))  # one pass over all images
        return {raw.images[0]: (raw, number) for number, raw in enumerate(batches)}

    @property
    def _spec(self) -> dict[str, ViewGroup]:
        return {VIEW: ViewGroup(self.size, labels=True, foreground=1.0)}

    def _crops(self, images: list[str], device: torch.device) -> Iterator[Crop]:
        """Crops on the device, one by one, normalised as the training's."""
        table = torch.zeros(max(self.values) + 1, dtype=torch.int64)
        table[self.values] = torch.arange(1, len(self.values) + 1)
        for image in images:
            raw, number = self._raw[image]
            batch = to_device(raw, self.store, self._spec, self.normalise, device, torch.Generator())
            views = batch.views[VIEW]
            assert views.label_B1DHW is not None
            class_DHW = table.to(device)[views.label_B1DHW[0, 0]]
            yield Crop(views.x_BCDHW, class_DHW, views.valid_B1DHW[0, 0], number)


def choose(store: Store, images: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """Images to fit on and images to test on, of different subjects: a pure function of the seed.

    Args:
        store: Labelled store.
        images: Ids to choose from.
        count: Images of both halves together.
        seed: Decides which subjects, and which of their images.

    Raises:
        DataError: If no image has a label, or all that have one are of one subject.
    """
    labelled = [image for image in images if store.has_label(image) and any(store.row(image)["label_values"])]
    subjects = {image: str(store.row(image)["subject"]) for image in labelled}
    if len(set(subjects.values())) < 2:
        raise DataError(
            store.path,
            found=f"labels of {len(set(subjects.values()))} subject(s) among the {len(images)} training images",
            expected="at least two labelled subjects: one to fit the probe on, one to test it on",
            remedy="Name a store with labels (--probe.store), hold out fewer subjects (--split.validation), or leave "
            "the probe out.",
        )
    halves = []
    for number, half in enumerate(split_subjects(list(subjects.values()), 0.5, seed)):
        of_half = sorted(image for image in labelled if subjects[image] in half)
        order = generator(seed, "probe images", number).permutation(len(of_half))
        halves.append(sorted(of_half[position] for position in order[: (count + 1 - number) // 2]))
    return halves[0], halves[1]


def sample(crop: Crop, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Voxels of a crop to fit on: of each class the same number, as far as it has so many.

    Args:
        crop: Padding is left out.
        count: Voxels of all classes together, at most.
        rng: Source of randomness.

    Returns:
        voxels_NA (int64), and weight_N: how many of the crop's voxels each stands for.
    """
    class_N = crop.class_DHW[crop.valid_DHW].cpu().numpy()
    present = np.unique(class_N)
    chosen, weights = [], []
    for one in present:
        members = np.flatnonzero(class_N == one)
        taken = rng.permutation(members)[: max(1, count // len(present))]
        chosen.append(taken)
        weights.append(np.full(len(taken), len(members) / len(taken)))
    device = crop.x_BCDHW.device
    voxels_NA = crop.valid_DHW.nonzero()[torch.from_numpy(np.concatenate(chosen)).to(device)]
    return voxels_NA, torch.from_numpy(np.concatenate(weights)).to(device)


def balance(y_N: Tensor, weight_N: Tensor) -> Tensor:
    """Weights with which each class counts by the square root of its share of the voxels.

    At its own share a small class would hardly be fitted; with equal shares the background would hardly be.
    """
    total_K = torch.zeros(int(y_N.max()) + 1, dtype=weight_N.dtype, device=y_N.device)
    for one in range(len(total_K)):  # a sum by index would be in another order each time on a GPU
        total_K[one] = weight_N[y_N == one].sum()
    return weight_N / total_K[y_N].sqrt()


def _mean(scores: pd.DataFrame) -> float:
    """As `prevox evaluate` takes it: each crop's mean over its classes that count, then the mean over crops."""
    return float(scores.mean(axis=1).mean())


@contextmanager
def _frozen(method: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode and the random state come back."""
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes:
            module.training = training
