"""Volumes for the viewer in the page: cut out, made coarser where they must be, 8 bits a voxel, compressed.

A page of five runs must stay below 15 MB, so all images of a page share a number of voxels. A volume that is larger
than its share is first cut to what is labelled in it and around it, then made coarser along its finest axis until it
fits.
"""

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prevox.errors import DataError
from prevox.reporting.drawing import label_colour
from prevox.reporting.scans import CaseFiles, Scan, read_scan

VOXELS = 5_000_000  # of all images of a page; 8-bit noise does not compress, and base64 adds a third
LARGEST = 128**3  # of one image
MARGIN = 0.25  # of the labelled box on each side
LEAST_MARGIN = 12.0  # mm
OTHERS = 255  # stands for all label values beyond the first 254


@dataclass(frozen=True)
class Case:
    """One case of the viewer.

    Attributes:
        case: Id.
        why: Why it is shown, "best of mae, worst of s3d".
        files: Of each run that has a prediction of it.
        scores: Of each of these runs, as text with the metric's name.
    """

    case: str
    why: str
    files: Mapping[str, CaseFiles]
    scores: Mapping[str, str]


def pack(cases: Sequence[Case], names: Mapping[int, str]) -> tuple[dict[str, Any], list[str]]:
    """Everything that the viewer needs, as plain data for JSON.

    Args:
        cases: In the order of the menu.
        names: Of label values.

    Returns:
        {"cases": [...], "labels": [...]}, and one sentence for every case whose files cannot be shown.
    """
    scans: list[tuple[Case, Scan]] = []
    problems = []
    for case in cases:
        try:
            scans.append((case, read_scan(case.case, case.files)))
        except DataError as error:
            problems.append(f"Case {case.case} is not in the viewer. {error}")
    values = sorted({int(v) for _, scan in scans for mask in _masks(scan) for v in np.unique(mask)} - {0})
    share = min(LARGEST, VOXELS // max(1, len(scans)))
    labels = [{"name": names.get(value, f"label {value}"), "colour": label_colour(value)} for value in values[:254]]
    if len(values) > len(labels):
        labels.append({"name": "other labels", "colour": "#bbbbbb"})
    return {"labels": labels, "cases": [_packed(case, scan, values, share) for case, scan in scans]}, problems


def _packed(case: Case, scan: Scan, values: Sequence[int], share: int) -> dict[str, Any]:
    box, steps = plan(scan, share)
    image = coarser(scan.image[box], steps)
    finite = image[np.isfinite(image)]
    low, high, dark, bright = map(float, np.percentile(finite, [0.1, 99.9, 1, 99])) if finite.size else (0, 1, 0, 1)
    high = max(high, low + 1e-6 * max(1.0, abs(low)))
    bytes_ZYX = np.nan_to_num(np.clip((image - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)

    def mask(labels_ZYX: np.ndarray) -> str:
        centre = tuple(slice(step // 2, None, step) for step in steps)
        cut = labels_ZYX[box][centre][tuple(slice(size) for size in image.shape)]
        numbers = np.searchsorted(values, cut) + 1  # by place among the values, since these may exceed a byte
        return compressed(np.where(cut > 0, np.minimum(numbers, OTHERS), 0).astype(np.uint8))

    return {
        "case": case.case,
        "why": case.why,
        "shape": list(image.shape),
        "spacing": [spacing * step for spacing, step in zip(scan.spacing, steps, strict=True)],
        "range": [low, high],
        "window": [dark, max(bright, dark + (high - low) / 255)],
        "integral": bool(np.issubdtype(scan.image.dtype, np.integer)),
        "note": _note(scan, box, steps),
        "image": compressed(bytes_ZYX),
        "reference": mask(scan.reference),
        "predictions": [
            {"run": run, "score": case.scores.get(run, ""), "labels": mask(labels)}
            for run, labels in scan.predictions.items()
        ],
    }


def plan(scan: Scan, share: int) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    """What of a volume is shown so that at most `share` voxels are: a box, and steps along its axes."""
    shape = scan.reference.shape
    box = tuple(slice(0, size) for size in shape)
    if np.prod(shape) > share:
        box = _labelled_box(scan)
    size = np.array([part.stop - part.start for part in box])
    steps = np.ones(3, int)
    while np.prod(-(-size // steps)) > share:
        steps[np.argmin(np.where(size > steps, scan.spacing * steps, np.inf))] += 1
    return box, tuple(int(step) for step in steps)


def coarser(image_ZYX: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """Means over blocks of steps[0] × steps[1] × steps[2] voxels; the last block of an axis may be smaller.

    An axis shorter than half a step past its last whole block loses that rest, as the masks do.
    """
    for axis, step in enumerate(steps):
        size = image_ZYX.shape[axis]
        starts = np.arange(0, size, step)
        starts = starts[starts + step // 2 < size]  # blocks whose middle voxel, which the masks take, exists
        counts = np.diff([*starts, min(size, starts[-1] + step)])
        sums = np.add.reduceat(image_ZYX.take(range(starts[-1] + counts[-1]), axis).astype(np.float32), starts, axis)
        image_ZYX = sums / counts.reshape([-1 if other == axis else 1 for other in range(3)])
    return image_ZYX


def compressed(bytes_ZYX: np.ndarray) -> str:
    """Voxels as gzip in base64, rows from front to back and from the subject's right to left, as the viewer draws."""
    drawn = np.ascontiguousarray(bytes_ZYX[:, ::-1, ::-1])
    return base64.b64encode(gzip.compress(drawn.tobytes(), compresslevel=9, mtime=0)).decode()


def _masks(scan: Scan) -> list[np.ndarray]:
    return [scan.reference, *scan.predictions.values()]


def _labelled_box(scan: Scan) -> tuple[slice, ...]:
    """The box of all labels with a margin; the whole volume if there is none."""
    found = np.argwhere(np.any([mask > 0 for mask in _masks(scan)], axis=0))
    shape = scan.reference.shape
    if not len(found):
        return tuple(slice(0, size) for size in shape)
    low, high = found.min(axis=0), found.max(axis=0) + 1
    margin = np.maximum(np.ceil((high - low) * MARGIN), np.ceil(LEAST_MARGIN / np.array(scan.spacing))).astype(int)
    return tuple(
        slice(max(0, int(a - m)), min(size, int(b + m)))
        for a, b, m, size in zip(low, high, margin, shape, strict=True)
    )  # fmt: skip


def _note(scan: Scan, box: tuple[slice, ...], steps: tuple[int, ...]) -> str:
    """What the reader must know of the shown volume; "" if it is the whole one."""
    shape = scan.reference.shape
    parts = []
    if any(part.stop - part.start < size for part, size in zip(box, shape, strict=True)):
        size = " × ".join(str(part.stop - part.start) for part in reversed(box))
        parts.append(f"cut to {size} of {' × '.join(map(str, reversed(shape)))} voxels around the labels")
    if max(steps) > 1:
        parts.append(f"averaged over blocks of {' × '.join(map(str, reversed(steps)))} voxels")
    return ", ".join(parts)
