"""Dice, HD95 and NSD of one 13-class case: Prevox against MONAI, in one process, interleaved.

    python benchmarks/metrics.py                        # 512 × 512 × 200, one run each (minutes: MONAI's)
    python benchmarks/metrics.py --shape 80 200 200 --runs 3

Both start from the same two label maps (uint8). MONAI gets boolean one-hot tensors, its smallest input, and making them
is part of its time and memory, as it would be for a user. `equal` is the largest deviation of Dice and NSD (MONAI's NSD
with subvoxels follows the same definition). HD95 differs by design (MONAI does not weight by area) and is not compared.
"""

import argparse

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

from harness import compared, interleaved, show
from prevox.evaluation.scoring import score_labels

CLASSES, SPACING, TOLERANCE = 13, (2.5, 0.8, 0.8), 1.0


def organs(shape: tuple[int, ...], seed: int, moved: float) -> np.ndarray:
    """Thirteen balls of different size, labels 1 to 13; `moved` shifts them by voxels and roughens their surface."""
    rng, noise = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    labels, spacing = np.zeros(shape, np.uint8), np.array(SPACING)
    extent = np.array(shape) * spacing
    for value in range(1, CLASSES + 1):
        centre, radius = rng.uniform(0.2, 0.8, 3) * extent, rng.uniform(0.03, 0.12) * extent.max()
        low = np.maximum(0, (centre - 1.3 * radius) // spacing).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, ((centre + 1.3 * radius) // spacing + 2).astype(int), strict=True))
        part = labels[box]
        axes = [np.arange(start, start + size) for start, size in zip(low, part.shape, strict=True)]
        squares = [((a - moved) * s - c) ** 2 for a, s, c in zip(axes, spacing, centre, strict=True)]
        distance = sum(np.ix_(*squares)) + moved * radius * noise.normal(size=part.shape)
        part[distance < radius**2] = value
    return labels


def ours(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    scores = score_labels(prediction, reference, {str(v): (v,) for v in range(1, CLASSES + 1)}, SPACING, TOLERANCE)
    return np.array([[score.dice, score.nsd] for score in scores.values()])


def monai(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    maps = [torch.from_numpy(labels) for labels in (prediction, reference)]
    p, r = (torch.stack([labels == value for value in range(CLASSES + 1)])[None] for labels in maps)
    dice = compute_dice(p, r, include_background=False)
    compute_hausdorff_distance(p, r, include_background=False, percentile=95, spacing=SPACING)
    thresholds = [TOLERANCE] * CLASSES
    nsd = compute_surface_dice(p, r, thresholds, include_background=False, spacing=SPACING, use_subvoxels=True)
    return torch.stack([dice[0], nsd[0]], dim=1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[200, 512, 512], help="voxels along z y x")
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    shape = tuple(args.shape)
    reference, prediction = organs(shape, 0, 0.0), organs(shape, 0, 1.0)
    small = [organs((40, 100, 100), 0, moved) for moved in (1.0, 0.0)]
    ours(*small), monai(*small)  # imports, lookup tables
    arms = {"ours": lambda: ours(prediction, reference), "peer": lambda: monai(prediction, reference)}
    found = interleaved(arms, args.runs, warm=0)
    name = f"Dice, HD95 and NSD of a {CLASSES}-class case of {'×'.join(map(str, shape))} voxels, against MONAI"
    equal = float(np.nanmax(np.abs(found["ours"][0].result - found["peer"][0].result)))
    share = round(float((reference > 0).mean()), 4)
    show(compared(name, found["ours"], found["peer"], equal, labelled_share=share))


if __name__ == "__main__":
    main()
