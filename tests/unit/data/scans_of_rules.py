"""For every quality rule scans that break it and scans just inside its threshold, worked out by hand.

A plain scan is 60 × 60 × 60 voxels of 1 mm with values from 100 to 999, written as `.nii`: 216,000 voxels, 60 mm along
each axis, 216,000 · 2 + 352 bytes = 422 kB.
"""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

SIDE, VOXELS = 60, 60**3
Scans = Callable[[Path], None]  # writes into a folder with images/ and perhaps labels/


def noise(shape: tuple[int, ...] = (SIDE, SIDE, SIDE), seed: int = 0, dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(seed).integers(100, 1000 if dtype != np.uint8 else 256, shape).astype(dtype)


def save(folder: Path, array: np.ndarray, affine: np.ndarray | None = None, name: str = "a.nii") -> Path:
    """Write `images/NAME` (or `labels/NAME` if the name says so); qform and sform are the affine."""
    path = folder / (name if "/" in name else f"images/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1, strip_shears=True)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


def shaped(*shape: int, dtype: type = np.int16, spacing: tuple[float, ...] = (1, 1, 1)) -> Scans:
    return lambda folder: save(folder, noise(shape, dtype=dtype), np.diag([*spacing, 1.0])) and None


def placed(affine: np.ndarray) -> Scans:
    return lambda folder: save(folder, noise(), affine) and None


def at(x: float) -> np.ndarray:
    """An affine that puts the centre of a plain scan (voxel 29.5 along each axis) at x mm, 0, 0."""
    affine = np.eye(4)
    affine[:3, 3] = x - 29.5, -29.5, -29.5
    return affine


def tilted(degrees: float) -> np.ndarray:
    """The second axis leans towards the first."""
    affine = np.eye(4)
    affine[:2, 1] = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return affine


def named(name: str, description: str = "") -> Scans:
    def write(folder: Path) -> None:
        path = save(folder, noise(), name=f"{name}.nii")
        with path.open("r+b") as file:
            file.seek(148)  # descrip
            file.write(description.encode())

    return write


def valued(count: int, value: int, rest: np.ndarray) -> Scans:
    """The first voxels of `rest` get a value."""

    def write(folder: Path) -> None:
        array = rest.copy()
        array.ravel()[:count] = value
        save(folder, array)

    return write


def with_field(offset: int, content: bytes) -> Scans:
    def write(folder: Path) -> None:
        with save(folder, noise()).open("r+b") as file:
            file.seek(offset)
            file.write(content)

    return write


def with_forms(qform_x: float) -> Scans:
    """Codes 1 and 1; the sform's first axis runs to the right, the qform's to qform_x."""

    def write(folder: Path) -> None:
        image = nib.Nifti1Image(noise(), np.eye(4))
        image.set_sform(np.eye(4), 1)
        image.set_qform(np.diag([qform_x, 1, 1, 1]), 1)
        (folder / "images").mkdir(parents=True)
        nib.save(image, folder / "images" / "a.nii")

    return write


def two(first: np.ndarray, second: np.ndarray, affine: np.ndarray | None = None) -> Scans:
    def write(folder: Path) -> None:
        save(folder, first)
        save(folder, second, affine, "b.nii.gz")

    return write


def labelled(image: np.ndarray, *labels: np.ndarray) -> Scans:
    """Cases of an image (with another seed's noise on top from the second on) and its label."""

    def write(folder: Path) -> None:
        for number, label in enumerate(labels):
            name = "abc"[number]
            save(folder, image if number == 0 else noise(seed=number), name=f"{name}.nii")
            save(folder, label, name=f"labels/{name}.nii")

    return write


def mask(*values: int, dtype: type = np.uint8) -> np.ndarray:
    """A label map whose first voxels have these values."""
    array = np.zeros((SIDE, SIDE, SIDE), dtype)
    array.ravel()[: len(values)] = values
    return array


def one_off(array: np.ndarray) -> np.ndarray:
    other = array.copy()
    other[0, 0, 0] += 1
    return other


def half_dark() -> np.ndarray:
    """0 everywhere but in the first five voxels, and enough others for it not to be near empty."""
    array = np.zeros((SIDE, SIDE, SIDE), np.int16)
    array.ravel()[:5] = 500
    array[30:40] = noise((10, SIDE, SIDE))
    return array


ZEROS, PLAIN = np.zeros((SIDE, SIDE, SIDE), np.int16), noise()
NAN = noise().astype(np.float32)
NAN[5, 5, 5] = np.nan

# rule: (scans that break it, what is told of image a, scans just inside)
CASES: dict[str, tuple[Scans, str, Scans]] = {
    "field_of_view": (shaped(49, 60, 60), ": 49 mm", shaped(50, 60, 60)),
    "spacing": (shaped(60, 60, 60, spacing=(1, 1, 6.75)), ": 6.75 mm", shaped(60, 60, 60, spacing=(1, 1, 6.5))),
    # 58 · 59 · 59 + 352 = 202,250 bytes, 59³ + 352 = 205,731; 200 kB are 204,800
    "file_size": (
        shaped(58, 59, 59, dtype=np.uint8),
        ": 197.5 kB",
        shaped(59, 59, 59, dtype=np.uint8),
    ),
    "sequence": (named("a_dwi"), ": DWI", named("a_t1w")),
    "constant": (valued(VOXELS, 7, ZEROS), ": 7 everywhere", valued(1, 7, ZEROS)),
    "nan": (
        lambda folder: save(folder, NAN) and None,
        "",
        lambda folder: save(folder, noise().astype(np.float32)) and None,
    ),
    # 1 % of 216,000 voxels are 2,160
    "near_empty": (valued(2159, 50, ZEROS), ": 0.01 differs from the background", valued(2160, 50, ZEROS)),
    "clipped": (valued(2161, 2000, PLAIN), ": 0.01 of the voxels at the maximum", valued(2160, 2000, PLAIN)),
    "tiny": (shaped(60, 60, 7), ": 7 voxels", shaped(60, 60, 8)),
    "few_values": (valued(30000, 16, ZEROS), ": 0 to 16", valued(30000, 17, ZEROS)),
    "no_geometry": (with_field(252, bytes(4)), "", with_field(252, b"\1\0\0\0")),  # qform_code, sform_code
    # a voxel size of -1 along the second axis, which counts where there is no sform
    "negative_size": (
        with_field(76, np.array([1, 1, -1, 1], "<f4").tobytes() + bytes(160) + b"\1\0\0\0"),
        "",
        with_field(76, np.array([1, 1, 1, 1], "<f4").tobytes() + bytes(160) + b"\1\0\0\0"),
    ),
    "orientation": (with_forms(-1), "", with_forms(1)),
    "affine": (placed(at(3001)), ": 3001 mm from the origin", placed(at(3000))),
    "sheared": (placed(tilted(1.1)), ": 1.1°", placed(tilted(0.9))),
    # the same voxels in another file with another affine; one voxel off makes another scan, if a near duplicate
    "duplicate_image": (two(PLAIN, PLAIN, at(0)), ": the voxels of b", two(PLAIN, one_off(PLAIN))),
    "near_duplicate": (two(PLAIN, one_off(PLAIN)), ": 1.0000 with b", two(PLAIN, noise(seed=1))),
    "duplicate_label": (labelled(PLAIN, mask(1), mask(1)), ": that of b", labelled(PLAIN, mask(1), mask(1, 1))),
    "no_label": (lambda folder: save(folder, PLAIN) and None, "", labelled(PLAIN, mask(1))),
    "empty_label": (labelled(PLAIN, mask()), "", labelled(PLAIN, mask(1))),
    "many_values": (
        labelled(PLAIN, mask(*range(1, 258), dtype=np.uint16)),
        ": 257 values",
        labelled(PLAIN, mask(*range(1, 257), dtype=np.uint16)),
    ),
    # of 11 labelled voxels 6 lie on zeros, of 10 half of them
    "label_off_image": (
        labelled(half_dark(), mask(*[1] * 11)),
        ": 0.55 of its voxels",
        labelled(half_dark(), mask(*[1] * 10)),
    ),
}
