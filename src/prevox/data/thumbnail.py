"""Three planes of a volume as one small picture, made while the voxels are in memory."""

import base64
import io

import numpy as np
from PIL import Image as Pillow

from prevox.data.geometry import canonical_axes, reorient, spacing_of

SIDE = 64  # pixels of the longest side of a plane
_GAP = 2  # pixels between planes
_PERCENTILES = (0.5, 99.5)  # shown as black and white
_SAMPLES = 64  # along each axis, for the percentiles


def thumbnail_of(array_CIJK: np.ndarray, affine: np.ndarray, picture: bool = False) -> str:
    """The middle axial, coronal and sagittal plane of the first channel, side by side on one scale.

    Superior and anterior are up, the subject's right is on the left. A single slice, or a picture, is one plane.

    Args:
        array_CIJK: Voxels in the file's order.
        affine: (4, 4), indices (i, j, k, 1) to RAS+ mm.
        picture: Whether the file is a picture, which does not say where right is and is shown as it is.

    Returns:
        A grey PNG in base64.
    """
    axes = canonical_axes(affine, array_CIJK.shape[1:])
    turned, turned_affine = reorient(array_CIJK[:1], affine, *axes)
    volume_ZYX = turned[0, :, :, ::-1] if picture else turned[0]
    shape, spacing = volume_ZYX.shape, spacing_of(turned_affine)
    z, y, x = (size // 2 for size in shape)
    planes = [(volume_ZYX[z], (1, 2)), (volume_ZYX[:, y], (0, 2)), (volume_ZYX[:, :, x], (0, 1))]
    if 1 in shape:
        planes = planes[:1]
    low, high = _window(volume_ZYX)
    sizes = [[shape[axis] * spacing[axis] for axis in of] for _, of in planes]
    scale = SIDE / max(max(size) for size in sizes)
    shown = [
        _drawn(plane, low, high, max(1, round(height * scale)), max(1, round(width * scale)))
        for (plane, _), (height, width) in zip(planes, sizes, strict=True)
    ]
    sheet = Pillow.new("L", (sum(p.width for p in shown) + _GAP * (len(shown) - 1), max(p.height for p in shown)))
    left = 0
    for plane in shown:
        sheet.paste(plane, (left, (sheet.height - plane.height) // 2))
        left += plane.width + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _window(volume_ZYX: np.ndarray) -> tuple[float, float]:
    """Values that are shown as black and white."""
    sample = volume_ZYX[tuple(slice(None, None, -(-size // _SAMPLES)) for size in volume_ZYX.shape)]
    finite = sample[np.isfinite(sample)].astype(np.float64)
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, _PERCENTILES)
    if low == high:  # little but background
        low, high = finite.min(), finite.max()
    return float(low), float(max(high, low + 1e-6 * max(1.0, abs(low))))


def _drawn(plane_YX: np.ndarray, low: float, high: float, height: int, width: int) -> Pillow.Image:
    """A plane with rows from top to bottom, in pixels of one size."""
    voxels = plane_YX[::-1, ::-1].astype(np.float64)
    grey = np.nan_to_num(np.clip((voxels - low) / (high - low), 0, 1) * 255)
    return Pillow.fromarray(grey.round().astype(np.uint8)).resize((width, height), Pillow.Resampling.BILINEAR)
