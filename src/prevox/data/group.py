"""Write one image as an OME-Zarr 0.5 group: quantisation, pyramid, shards, metadata.

Shape suffixes: C channels, Z Y X canonical axes.
"""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from prevox.data.geometry import spacing_of, values_of
from prevox.data.temporary import temporary_path
from prevox.errors import DataError

_SIDE = 32  # no axis of the coarsest level need be shorter
# what a read decodes at least: 32 KB of 16-bit voxels, so that a chunk stays in the processor's first cache
_INNER = (16, 32, 32)
_LEVELS = 5  # at most, the finest included
_CHUNK = 1 << 22  # voxels that are quantised at a time
_PER_CLASS = 1000  # rows of foreground.npy
# no fsync per file: it takes three times as long as the rest, and a killed process loses no page that it has written
_CONTEXT = {"file_io_sync": False}
_EXACT_FLOAT = 2.0**53  # below this every whole number is a float64

Factors = tuple[int, int, int]


def quantise_channels(array_CZYX: np.ndarray) -> tuple[np.ndarray, list[float], list[float], list[float]]:
    """`quantise` every channel by itself: a map of 0 to 0.003 beside one of 0 to 4000 keeps its own 16 bits.

    Returns:
        The int16 (C, Z, Y, X) array, and slope, intercept and largest error of each channel.

    Raises:
        DataError: As `quantise`.
    """
    stored_CZYX = np.empty(array_CZYX.shape, np.int16)
    slopes, intercepts, errors = [], [], []
    for channel, array_ZYX in enumerate(array_CZYX):
        stored_CZYX[channel], slope, intercept, max_error = quantise(array_ZYX)
        slopes.append(slope)
        intercepts.append(intercept)
        errors.append(max_error)
    return stored_CZYX, slopes, intercepts, errors


def quantise(array: np.ndarray) -> tuple[np.ndarray, float, float, float]:
    """Store real numbers as int16: voxel = stored * slope + intercept.

    Whole numbers whose range fits into 16 bits are exact: slope 1, intercept 0 where they already fit int16, else a
    whole offset. Anything else is spread over the array's own range, so the error is at most half of range / 65535.

    Args:
        array: Any real type and shape.

    Returns:
        The int16 array, slope, intercept, and the largest error that was made, as measured.

    Raises:
        DataError: If there are values that are not finite, or their range is beyond float64.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    low, high = finite_range(flat, "voxels")
    whole = high - low <= 65535 and max(-low, high) < _EXACT_FLOAT and _all_whole(flat)
    if whole:
        slope, intercept = 1.0, 0.0 if low >= -32768 and high <= 32767 else low + 32768.0
    else:
        slope = (high - low) / 65535
        intercept = low + 32768 * slope if slope > 0 else low
        slope = slope or 1.0
    stored = np.empty(flat.shape, np.int16)
    max_error = 0.0
    for start in range(0, flat.size, _CHUNK):
        values = flat[start : start + _CHUNK].astype(np.float64)
        steps = np.clip(np.rint((values - intercept) / slope), -32768, 32767)
        stored[start : start + _CHUNK] = steps
        max_error = max(max_error, float(np.abs(steps * slope + intercept - values).max()))
    return stored.reshape(array.shape), slope, intercept, max_error


def _all_whole(flat: np.ndarray) -> bool:
    if flat.dtype.kind in "biu":
        return True
    return all((flat[i : i + _CHUNK] == np.rint(flat[i : i + _CHUNK])).all() for i in range(0, flat.size, _CHUNK))


def finite_range(array: np.ndarray, where: object) -> tuple[float, float]:
    """Smallest and largest value.

    Raises:
        DataError: If there are values that are not finite, or their range is beyond float64.
    """
    low, high = float(array.min()), float(array.max())  # NaN wins both
    if math.isfinite(high - low):
        return low, high
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    raise DataError(
        where,
        found=f"{nan} NaN and {infinite} infinite voxels" if nan or infinite else f"values from {low} to {high}",
        expected="finite voxels with a range that a float64 can hold",
        remedy="Repair the scan (say, set them to the background's value), or leave it out.",
    )


def pyramid_factors(shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[Factors]:
    """Cumulative downsampling factors (z, y, x) of each level, (1, 1, 1) first.

    Each level halves the axes whose voxel size is less than sqrt(2) times the smallest, so thick slices are halved in
    plane first. Axes of one voxel take no part. Ends when no axis has more than 32 voxels, or with the fifth level.
    """
    size, step, factors = list(shape), list(spacing), [1, 1, 1]
    result: list[Factors] = [(1, 1, 1)]
    while len(result) < _LEVELS and max(size) > _SIDE:
        smallest = min(step[axis] for axis in range(3) if size[axis] > 1)
        for axis in range(3):
            if size[axis] > 1 and step[axis] < math.sqrt(2) * smallest:
                size[axis], step[axis], factors[axis] = (size[axis] + 1) // 2, 2 * step[axis], 2 * factors[axis]
        result.append((factors[0], factors[1], factors[2]))
    return result


def image_levels(array_CZYX: np.ndarray, factors: list[Factors]) -> Iterator[np.ndarray]:
    """Levels of an int16 image: means of 2× blocks, odd ends repeated; rounded once, at each level's end."""
    yield array_CZYX
    mean = array_CZYX
    for ratio in _ratios(factors):
        mean = _halve(mean.astype(np.float32, copy=False), ratio)
        yield np.rint(mean).astype(array_CZYX.dtype)


def label_levels(label_ZYX: np.ndarray, factors: list[Factors]) -> list[np.ndarray]:
    """Levels of a label map: the class with the largest share of each block; the smaller value where two are level."""
    levels = [label_ZYX]
    shares: list[np.ndarray] = []
    for value in values_of(label_ZYX):
        share = (label_ZYX == value).astype(np.float32)
        for level, ratio in enumerate(_ratios(factors), 1):
            share = _halve(share, ratio)
            if level == len(levels):
                levels.append(np.full(share.shape, value, label_ZYX.dtype))
                shares.append(share)
            else:
                np.copyto(levels[level], value, where=share > shares[level - 1])
                np.maximum(shares[level - 1], share, out=shares[level - 1])
    return levels


def _ratios(factors: list[Factors]) -> Iterator[Factors]:
    for finer, coarser in itertools.pairwise(factors):
        z, y, x = (big // small for big, small in zip(coarser, finer, strict=True))
        yield z, y, x


def _halve(x: np.ndarray, ratio: Factors) -> np.ndarray:
    """Mean over pairs along the last three axes whose ratio is 2."""
    for axis, step in enumerate(ratio, x.ndim - 3):
        if step == 2:
            even = [slice(None)] * x.ndim
            odd = list(even)
            even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
            result = x[tuple(even)].copy()
            pairs = [slice(None)] * x.ndim
            pairs[axis] = slice(0, x.shape[axis] // 2)
            result[tuple(pairs)] += x[tuple(odd)]
            result[tuple(pairs)] /= 2
            x = result
    return x


def foreground_voxels(label_ZYX: np.ndarray, seed: int) -> np.ndarray:
    """Draw up to 1000 voxels of each class but 0.

    Returns:
        (n, 4) int32 rows (class value, z, y, x), ordered by class and place.
    """
    generator = np.random.default_rng(seed)
    flat = label_ZYX.reshape(-1)
    rows = [np.zeros((0, 4), np.int32)]
    for value in values_of(label_ZYX):
        if value == 0:
            continue
        voxels = np.flatnonzero(flat == value)
        if len(voxels) > _PER_CLASS:
            voxels = np.sort(generator.choice(voxels, _PER_CLASS, replace=False))
        places = np.stack(np.unravel_index(voxels, label_ZYX.shape), axis=1)
        rows.append(np.column_stack([np.full(len(places), value), places]).astype(np.int32))
    return np.concatenate(rows)


def write_image_group(
    path: Path,
    stored_CZYX: np.ndarray,
    label_ZYX: np.ndarray | None,
    affine: np.ndarray,
    attributes: dict[str, Any],
    seed: int = 0,
) -> None:
    """Write an image, its labels and their pyramids. The caller gives a temporary path and renames it.

    Args:
        path: Folder of the group; made here.
        stored_CZYX: int16 voxels.
        label_ZYX: Unsigned integer labels on the same grid, or None.
        affine: (4, 4) of the arrays, canonical order.
        attributes: JSON-able; kept under "prevox", together with the affine, the levels and the bytes written.
        seed: For drawing foreground.npy.
    """
    spacing = spacing_of(affine)
    factors = pyramid_factors(stored_CZYX.shape[1:], spacing)
    path.mkdir(parents=True)
    for level, voxels in enumerate(image_levels(stored_CZYX, factors)):
        write_array(path / str(level), voxels, ["c", "z", "y", "x"])
    if label_ZYX is not None:
        reference = path / "labels" / "reference"
        for level, labels in enumerate(label_levels(label_ZYX, factors)):
            write_array(reference / str(level), labels, ["z", "y", "x"])
        write_group(path / "labels", {"ome": {"version": "0.5", "labels": ["reference"]}})
        image_label = {"image-label": {"source": {"image": "../../"}}}
        write_group(reference, {"ome": {**_multiscales("reference", "zyx", factors, spacing), **image_label}})
        np.save(path / "foreground.npy", foreground_voxels(label_ZYX, seed))
    levels: dict[str, Any] = {"affine": affine.ravel().tolist(), "levels": [{"factors": list(f)} for f in factors]}
    levels["bytes"] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    ome = _multiscales(path.stem, "czyx", factors, spacing)
    write_group(path, {"ome": ome, "prevox": {**attributes, **levels}})


def _multiscales(name: str, axes: str, factors: list[Factors], spacing: tuple[float, ...]) -> dict[str, Any]:
    """OME-Zarr metadata: mm per level, and the shift of a coarse voxel's centre against the first fine one's."""
    channel = [1.0] if axes.startswith("c") else []
    datasets = []
    for level, factor in enumerate(factors):
        scale = [*channel, *(f * s for f, s in zip(factor, spacing, strict=True))]
        shift = [*(0.0 for _ in channel), *((f - 1) / 2 * s for f, s in zip(factor, spacing, strict=True))]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    kinds = {"c": {"name": "c", "type": "channel"}}
    described = [kinds.get(axis, {"name": axis, "type": "space", "unit": "millimeter"}) for axis in axes]
    return {"version": "0.5", "multiscales": [{"name": name, "axes": described, "datasets": datasets}]}


def write_group(path: Path, attributes: dict[str, Any]) -> None:
    """Write the metadata of a Zarr group."""
    node = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (path / "zarr.json").write_text(json.dumps(node, indent=1, allow_nan=False))


def read_attributes(path: Path) -> dict[str, Any] | None:
    """The "prevox" attribute of a group; None if there is no group of ours."""
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]["prevox"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return attributes if isinstance(attributes, dict) else None


def update_attributes(path: Path, changes: dict[str, Any]) -> None:
    """Change entries of a group's "prevox" attribute, atomically."""
    node = json.loads((path / "zarr.json").read_text())
    node["attributes"]["prevox"].update(changes)
    temporary = temporary_path(path / "zarr.json")
    temporary.write_text(json.dumps(node, indent=1, allow_nan=False))
    temporary.replace(path / "zarr.json")


def write_array(path: Path, array: np.ndarray, names: list[str], chunk: tuple[int, ...] = _INNER) -> None:
    """Write one shard file, lz4 with byte shuffle; chunks that are zero take no room.

    Args:
        path: Folder of the array.
        array: int16 or unsigned.
        names: Of its axes.
        chunk: Most voxels of an inner chunk along the last axes; along the others it is one thick.
    """
    sides = [min(side, size) for side, size in zip(chunk, array.shape[-len(chunk) :], strict=True)]
    inner = [1] * (array.ndim - len(chunk)) + sides
    shard = [math.ceil(size / side) * side for size, side in zip(array.shape, inner, strict=True)]
    blosc = {"cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": array.itemsize, "blocksize": 0}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    plain = little if array.itemsize > 1 else {"name": "bytes"}
    sharding = {
        "chunk_shape": inner,
        "codecs": [plain, {"name": "blosc", "configuration": blosc}],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    metadata = {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "dimension_names": names,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    kvstore = {"driver": "file", "path": str(path)}
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, "create": True}
    ts.open(spec, context=ts.Context(_CONTEXT)).result().write(np.ascontiguousarray(array)).result()
