"""Anatomy-like labelled volumes, drawn from a seed: for the demo, for tests, and where real scans may not go.

A torso of about 80 × 65 mm with a large organ on the right, a pair of organs of one texture on either side, a segmented
column behind, and small lesions of low contrast inside the large organ; bowel loops, a stomach and a vessel of similar
intensity are there but not labelled, so neither a threshold nor texture alone finds the classes: place does. Shapes,
pose, contrast, bias field, noise and voxel size vary from case to case.

Axes: C channels, Z Y X towards Superior, Anterior, Right; body coordinates are (x, y, z) in mm, towards Right,
Anterior, Superior.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from prevox.errors import ConfigError

CLASS_NAMES = {1: "liver", 2: "left kidney", 3: "right kidney", 4: "spine", 5: "lesion"}
_FIELD_OF_VIEW = ((78.0, 90.0), (72.0, 84.0), (88.0, 100.0))  # mm along z y x, unless the voxel size is given
_SIDES = (48, 64)  # voxels of an axis, unless the shape is given
_TILT = 8.0  # degrees; largest rotation of the scanner's grid and of the body
_LIVER = 1.02  # brightness relative to muscle and fat below
_EDGE = 0.7  # mm over which neighbouring tissues blend (partial volume)


@dataclass(eq=False)
class Phantom:
    """A generated case.

    Attributes:
        array_CZYX: Voxels, int16 or float32.
        label_ZYX: Values of `CLASS_NAMES`, 0 elsewhere (uint8).
        affine: (4, 4), indices (z, y, x, 1) to RAS+ mm; oblique by a few degrees.
    """

    array_CZYX: np.ndarray
    label_ZYX: np.ndarray
    affine: np.ndarray


@dataclass(eq=False)
class _Tissue:
    """One part of the body: where it is, what it is called, how it looks."""

    depth: np.ndarray  # mm below its surface, negative outside; (Z, Y, X)
    label: int
    brightness: float  # relative to muscle, in the first channel's ideal contrast
    grain: float  # mm; scale of its texture
    roughness: float  # strength of its texture


def phantom(
    seed: int,
    shape: tuple[int, int, int] | None = None,
    spacing: tuple[float, float, float] | None = None,
    channels: int = 1,
) -> Phantom:
    """Generate one case, a pure function of its arguments.

    Args:
        seed: Seed of everything.
        shape: Voxels along z y x; None draws 48 to 64 a side.
        spacing: Voxel size in mm along z y x; None fits the body into the field of view.
        channels: Contrasts of the same body, as of several MR sequences.
    """
    rng = np.random.default_rng(seed)
    if shape is None:
        z, y, x = (int(n) for n in rng.integers(_SIDES[0], _SIDES[1] + 1, 3))
        shape = (z, y, x)
    if spacing is None:
        z_mm, y_mm, x_mm = (rng.uniform(*view) / n for view, n in zip(_FIELD_OF_VIEW, shape, strict=True))
        spacing = (z_mm, y_mm, x_mm)
    affine = _oblique(rng, shape, spacing)
    points = _body_coordinates(rng, affine, shape)
    tissues = _anatomy(rng, points)
    label_ZYX = np.zeros(shape, np.uint8)
    for tissue in tissues:
        if tissue.label:
            label_ZYX[tissue.depth > 0] = tissue.label
    clean_CZYX = _paint(rng, tissues, spacing, channels)
    return Phantom(_scan(rng, clean_CZYX), label_ZYX, affine)


def write_phantoms(
    folder: Path,
    count: int,
    seed: int = 0,
    shape: tuple[int, int, int] | None = None,
    layout: str = "msd",
    unlabelled: int = 0,
) -> Path:
    """Write phantoms as a dataset in the layout of the Medical Segmentation Decathlon.

    Some files store their axes flipped (LPS instead of RAS), as scans do.

    Args:
        folder: Folder to write; `dataset.json` is written last.
        count: Labelled cases, each a subject.
        seed: Case n has the seed (seed, n).
        shape: As for `phantom`.
        layout: Only "msd".
        unlabelled: Further cases without labels, listed under "test".

    Returns:
        The folder.

    Raises:
        ConfigError: If the layout is another one.
    """
    if layout != "msd":
        raise ConfigError(f"layout '{layout}': phantoms are written as 'msd' only.")
    training, test = [], []
    for number in range(count + unlabelled):
        name = f"phantom_{number:03d}.nii.gz"
        case = phantom(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]), shape)
        flips = np.random.default_rng([seed, number, 1]).random(2) < 0.4  # of x and y
        labelled = number < count
        image = f"./images{'Tr' if labelled else 'Ts'}/{name}"
        _save(folder / image, case.array_CZYX[0], case.affine, flips)
        if labelled:
            _save(folder / f"labelsTr/{name}", case.label_ZYX, case.affine, flips)
            training.append({"image": image, "label": f"./labelsTr/{name}"})
        else:
            test.append(image)
    description = {
        "name": "Phantoms",
        "description": "Generated volumes; no patient was scanned",
        "tensorImageSize": "3D",
        "modality": {"0": "phantom"},
        "labels": {"0": "background"} | {str(value): name for value, name in CLASS_NAMES.items()},
        "numTraining": count,
        "numTest": unlabelled,
        "training": training,
        "test": test,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1))
    return folder


def _save(path: Path, array_ZYX: np.ndarray, affine: np.ndarray, flips: np.ndarray) -> None:
    """Write as (x, y, z), x and y reversed where asked, with the affine that says so."""
    import nibabel as nib

    array_XYZ, affine_xyz = array_ZYX.T, affine[:, [2, 1, 0, 3]]
    for axis, flip in enumerate(flips):
        if flip:
            array_XYZ = np.flip(array_XYZ, axis)
            affine_xyz[:, 3] += affine_xyz[:, axis] * (array_XYZ.shape[axis] - 1)
            affine_xyz[:, axis] *= -1
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_XYZ, affine_xyz), path)


def _rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Rotation by up to `degrees` about each axis."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(rng.uniform(-degrees, degrees, 3))):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    return matrix


def _oblique(rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """Affine (z, y, x, 1) to world of a slightly tilted grid whose centre lies near the world's origin."""
    affine = np.eye(4)
    affine[:3, :3] = _rotation(rng, _TILT)[:, ::-1] * spacing
    affine[:3, 3] = rng.uniform(-4, 4, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _body_coordinates(rng: np.random.Generator, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(3, Z, Y, X) coordinates x y z in the body's frame: pose, size and smooth deformation undone."""
    pose = _rotation(rng, _TILT) / rng.uniform(0.92, 1.06, (3, 1))
    matrix, offset = pose @ affine[:3, :3], pose @ affine[:3, 3]
    indices = np.indices(shape, np.float32).reshape(3, -1)
    points = (matrix @ indices + offset[:, None]).astype(np.float32).reshape(3, *shape)
    for axis in range(3):
        points[axis] += 1.8 * _smooth(rng, shape, knots=4)
    return points


def _anatomy(rng: np.random.Generator, points: np.ndarray) -> list[_Tissue]:
    """All tissues, from the outside in: later ones lie over earlier ones."""
    x, y, z = points
    body = _ellipsoid(points, (0, 0, 0), _near(rng, (39, 31, 62), 1), power=2.6)
    wall = rng.uniform(2.5, 5)
    cavity = np.minimum(body - wall - 3, y + 17)  # organs stay before the column and behind the wall
    tissues = [
        _Tissue(body, 0, 1.5, 2.5, 0.05),  # fat under the skin
        _Tissue(body - wall, 0, 0.85, 1.5, 0.05),  # muscle
        _Tissue(cavity, 0, 1.4, 3.0, 0.08),  # fat between the organs
    ]
    for _ in range(rng.integers(9, 14)):
        bowel = np.minimum(_ellipsoid(points, rng.uniform((-26, -8, -34), (26, 20, 4)), rng.uniform(4, 8.5, 3)), cavity)
        tissues.append(_Tissue(bowel, 0, rng.uniform(0.75, 1.3), rng.uniform(1, 2.5), 0.12))
    stomach = _ellipsoid(points, _near(rng, (-15, 8, 15), 2), _near(rng, (12, 10, 13), 1))
    tissues.append(_Tissue(np.minimum(stomach, cavity), 0, rng.uniform(0.85, 1.2), 2.0, 0.10))
    bend_x, bend_y, segment, bend = *rng.uniform(-3, 3, 2), rng.uniform(11, 15), rng.uniform(-4, 4)
    vessel = rng.uniform(3.2, 4.4) - np.hypot(x + 4 + bend_x * np.sin(z / 15), y + 11 + bend_y * np.cos(z / 18))
    tissues.append(_Tissue(vessel, 0, rng.uniform(0.7, 1.3), 1.5, 0.04))
    liver = _ellipsoid(points, _near(rng, (11, 3, 15), 2), _near(rng, (21, 18, 17), 1.5), power=2.4)
    slope = rng.uniform(0.3, 0.8)  # its lower left edge is cut obliquely
    edge = (z - 2 + slope * (x - 2) + 0.2 * y + 4 * _smooth(rng, x.shape, 4)) / np.hypot(1, slope)
    liver = np.minimum(np.minimum(liver, edge), cavity)
    tissues.append(_Tissue(liver, 1, _LIVER, 1.2, 0.09))
    for label, side in ((2, -1), (3, 1)):
        centre = _near(rng, (side * 18, -8, -7 - side * 3), 1.5)
        kidney = _ellipsoid(points, centre, _near(rng, (8.5, 8, 12.5), 0.7))
        kidney = np.minimum(kidney, -_ellipsoid(points, centre - (side * 8.5, -2, 0), (5, 5, 5)))
        tissues += [_Tissue(kidney, label, 1.12, 2.2, 0.08), _Tissue(kidney - 3.5, label, 0.92, 2.2, 0.08)]
    bulge = 6.5 + 1.1 * np.cos(2 * np.pi * (z / segment + rng.random()))
    spine = bulge - np.hypot((x - bend * np.sin(z / 30)) / 1.15, y + 22)
    tissues += [_Tissue(spine, 4, 0.6, 1.0, 0.05), _Tissue(spine - 1.3, 4, 1.1, 1.0, 0.14)]
    return tissues + _lesions(rng, points, liver)


def _lesions(rng: np.random.Generator, points: np.ndarray, organ: np.ndarray) -> list[_Tissue]:
    """One to four blobs well inside an organ, darker or brighter by little."""
    inside = np.argwhere(organ > 4)
    count = int(rng.integers(1, 5)) if len(inside) else 0
    contrast = rng.uniform(0.14, 0.22) * rng.choice([-1, -1, 1])
    found = []
    for place in rng.permutation(len(inside))[:count]:
        centre = points[(slice(None), *inside[place])]
        blob = _ellipsoid(points, centre, rng.uniform(3, 6) * rng.uniform(0.8, 1.2, 3))
        found.append(_Tissue(np.minimum(blob, organ), 5, _LIVER + contrast, 1.5, 0.06))
    return found


def _near(rng: np.random.Generator, values: tuple[float, ...], deviation: float) -> np.ndarray:
    return np.asarray(values) + rng.normal(0, deviation, len(values))


def _ellipsoid(points: np.ndarray, centre: ArrayLike, radii: ArrayLike, power: float = 2.0) -> np.ndarray:
    """Depth in mm (nearly) below the surface of a superellipsoid."""
    centre, radii = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    total = np.zeros(points.shape[1:], np.float32)
    for axis in range(3):
        total += np.abs((points[axis] - centre[axis]) / radii[axis]) ** np.float32(power)
    return (1 - total ** np.float32(1 / power)) * radii.min()


def _paint(rng: np.random.Generator, tissues: list[_Tissue], spacing: tuple[float, ...], channels: int) -> np.ndarray:
    """(C, Z, Y, X) brightness without noise: every tissue with its texture, edges blended; air is 0."""
    shape = tissues[0].depth.shape
    gains = np.concatenate([rng.uniform(0.8, 1.2, 1), rng.uniform(-1.0, 1.0, channels - 1)])
    canvas = np.zeros((channels, *shape), np.float32)
    shifts: dict[tuple[int, float], np.ndarray] = {}  # parts of one label share their contrast in a case
    for tissue in tissues:
        shift = shifts.setdefault((tissue.label, tissue.brightness), rng.normal(0, 0.04, channels))
        cover = 1 / (1 + np.exp(np.clip(-4 * tissue.depth / _EDGE, -30, 30)))
        texture = tissue.roughness * _grain(rng, shape, tissue.grain, spacing)
        for channel in range(channels):
            colour = 1 + gains[channel] * (tissue.brightness - 1) + shift[channel] + texture
            canvas[channel] += cover * (colour - canvas[channel])
    return canvas


def _scan(rng: np.random.Generator, clean_CZYX: np.ndarray) -> np.ndarray:
    """Bias field, Rician noise, and a scale that differs from case to case; some cases are integers, some are not."""
    bias = np.exp(0.12 * _smooth(rng, clean_CZYX.shape[1:], knots=4))
    sigma = rng.uniform(0.04, 0.08)
    noise = rng.normal(0, sigma, (2, *clean_CZYX.shape)).astype(np.float32)
    magnitude = np.hypot(clean_CZYX * bias + noise[0], noise[1])
    scaled = magnitude ** rng.uniform(0.85, 1.2) * np.exp(rng.uniform(np.log(150), np.log(2500)))
    return np.round(scaled).astype(np.int16) if rng.random() < 0.6 else scaled.astype(np.float32)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> np.ndarray:
    """Smooth random field of about unit deviation: a few random values, interpolated by cubic splines."""
    field = rng.normal(size=(knots,) * 3).astype(np.float32)
    for n in shape:  # axis by axis, as a matrix: much faster than a 3D zoom
        spline = ndimage.zoom(np.eye(knots, dtype=np.float32), (n / knots, 1), order=3, mode="nearest", grid_mode=True)
        field = np.tensordot(field, spline, axes=(0, 1))  # takes the first axis, appends the new one
    return field


def _grain(rng: np.random.Generator, shape: tuple[int, ...], scale: float, spacing: tuple[float, ...]) -> np.ndarray:
    """Random texture of unit deviation whose grains are about `scale` mm wide."""
    field = rng.normal(size=shape).astype(np.float32)
    field = ndimage.gaussian_filter(field, [scale / mm for mm in spacing], mode="wrap", truncate=3)
    return field / max(float(field.std()), 1e-6)
