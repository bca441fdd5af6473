"""Scans that are the same but for noise, rounding or a linear change of intensity: found by their coarse picture.

A signature is the means of 8 × 8 × 8 blocks (22 × 22 in single slices) as bytes. Correlation of signatures told copies
from other scans better than bits above or below the median did: see docs/decisions.md.
"""

import base64
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

_SIDE = {True: 22, False: 8}  # blocks along an axis, of a single slice and of a volume
_SAMPLES = 64  # voxels along an axis that are looked at
_BLOCK = 512  # images that are compared with their neighbours at a time
_ROUNDING = 1e-6  # of correlations in float32


def signature_of(channel_IJK: np.ndarray) -> str | None:
    """Means of blocks, scaled to 0–255, in base64; None if all are equal.

    Args:
        channel_IJK: Voxels; what is not finite counts as 0.
    """
    sampled = channel_IJK[tuple(slice(None, None, -(-size // _SAMPLES)) for size in channel_IJK.shape)]
    means = np.nan_to_num(sampled.astype(np.float64), posinf=0, neginf=0)
    blocks = _SIDE[1 in sampled.shape]
    for axis, size in enumerate(means.shape):
        starts = np.arange(min(size, blocks)) * size // min(size, blocks)
        counts = np.diff([*starts, size]).reshape([-1 if other == axis else 1 for other in range(3)])
        means = np.add.reduceat(means, starts, axis) / counts
    low, high = means.min(), means.max()
    if low == high:
        return None
    return base64.b64encode(np.round((means - low) / (high - low) * 255).astype(np.uint8).tobytes()).decode()


def near_duplicates(
    signatures: Sequence[str | None], kinds: Sequence[Hashable], rank: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each image the best ranked other one of its kind whose signature correlates with its own.

    Signatures of a kind are sorted along the direction in which they differ most. Two that correlate cannot lie far
    apart there, so each is compared with its neighbours only; none is missed by that.

    Args:
        signatures: Of `signature_of`; images without one have no duplicates.
        kinds: Only images of one kind (shape, sequence) are compared.
        rank: Distinct whole numbers; the lower, the rather an image is kept.
        least: Correlation from which on images are near duplicates.

    Returns:
        Position of the other image, or -1; and the correlation with it, or 0.
    """
    partner, correlation = np.full(len(signatures), -1), np.zeros(len(signatures))
    of_kind = defaultdict(list)
    for position, (signature, kind) in enumerate(zip(signatures, kinds, strict=True)):
        if signature is not None:
            of_kind[kind, len(signature)].append(position)
    for members in of_kind.values():
        if len(members) > 1:
            _compare(
                np.array(members), _vectors([signatures[m] or "" for m in members]), rank, least, partner, correlation
            )
    return partner, correlation


def _vectors(signatures: Sequence[str]) -> np.ndarray:
    """Signatures without mean, of length 1: their products are correlations; (N, blocks) float32."""
    vectors = np.array([np.frombuffer(base64.b64decode(text), np.uint8) for text in signatures], np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _compare(
    members: np.ndarray,
    vectors: np.ndarray,
    rank: np.ndarray,
    least: float,
    partner: np.ndarray,
    correlation: np.ndarray,
) -> None:
    """Fill in `partner` and `correlation` of one kind's members."""
    centred = vectors - vectors.mean(axis=0)
    place = vectors @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
    order = np.argsort(place)
    members, vectors, place = members[order], vectors[order], place[order]
    reach = np.sqrt(2 * (1 - least)) + _ROUNDING  # distance of two unit vectors with that product
    for start in range(0, len(members), _BLOCK):
        stop = min(start + _BLOCK, len(members))
        low, high = np.searchsorted(place, [place[start] - reach, place[stop - 1] + reach], "left")
        products = vectors[start:stop] @ vectors[low:high].T
        products[np.arange(stop - start), np.arange(start - low, stop - low)] = 0  # itself
        close = products >= least - _ROUNDING
        best = np.where(close, rank[members[low:high]], len(rank)).argmin(axis=1)
        rows = np.flatnonzero(close.any(axis=1))
        partner[members[start + rows]] = members[low + best[rows]]
        correlation[members[start + rows]] = products[rows, best[rows]]
