"""Scans that are the same but for noise, rounding or a linear change of intensity: found by their coarse picture.

A signature is the means of 8 × 8 × 8 blocks (22 × 22 in single slices) as bytes. Correlation of signatures told copies
from other scans better than bits above or below the median did: see docs/decisions.md.
"""

import base64
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

_SIDE = {True: 22, False: 8}  # blocks along an axis, of a single slice and of a volume
_SAMPLES = 64  # voxels along an axis that are looked at
_BLOCK = 512  # images that are compared with their neighbours at a time
_PART = 1024  # images whose signatures are vectors at a time
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
            blocks_NB = _bytes(signatures, members)
            _compare(np.array(members), blocks_NB, rank, least, partner, correlation)
    return partner, correlation


def _bytes(signatures: Sequence[str | None], members: Sequence[int]) -> np.ndarray:
    first = base64.b64decode(signatures[members[0]] or "")
    blocks_NB = np.empty((len(members), len(first)), np.uint8)
    for n, member in enumerate(members):
        blocks_NB[n] = np.frombuffer(base64.b64decode(signatures[member] or ""), np.uint8)
    return blocks_NB


def _vectors(blocks_NB: np.ndarray) -> np.ndarray:
    """Signatures without mean, of length 1: their products are correlations; float32."""
    vectors_NB = blocks_NB.astype(np.float32)
    vectors_NB -= vectors_NB.mean(axis=1, keepdims=True)
    return vectors_NB / np.linalg.norm(vectors_NB, axis=1, keepdims=True)


def _compare(
    members: np.ndarray,
    blocks_NB: np.ndarray,
    rank: np.ndarray,
    least: float,
    partner: np.ndarray,
    correlation: np.ndarray,
) -> None:
    """Fill in `partner` and `correlation` of one kind's members.

    Signatures stay bytes but for those that are compared: as vectors, a hundred thousand would take half a gigabyte.
    """
    direction_B = _main_direction(blocks_NB)
    place = np.concatenate([_vectors(some_NB) @ direction_B for some_NB in _parts(blocks_NB)])
    order = np.argsort(place, kind="stable")
    members, place = members[order], place[order]
    of_rank = np.argsort(rank)  # its inverse
    reach = np.sqrt(2 * (1 - least)) + _ROUNDING  # distance of two unit vectors with that product
    for start in range(0, len(members), _BLOCK):
        stop = min(start + _BLOCK, len(members))
        low, high = np.searchsorted(place, [place[start] - reach, place[stop - 1] + reach], "left")
        these_NB = _vectors(blocks_NB[order[start:stop]])
        best, product = np.full(stop - start, len(rank)), np.zeros(stop - start)
        for first in range(low, high, _PART):
            others = np.arange(first, min(first + _PART, high))
            products = these_NB @ _vectors(blocks_NB[order[others]]).T
            close = (products >= least - _ROUNDING) & (others != np.arange(start, stop)[:, None])
            ranks = np.where(close, rank[members[others]], len(rank))
            nearest = ranks.argmin(axis=1)
            found = ranks.min(axis=1)
            better = np.flatnonzero(found < best)
            best[better], product[better] = found[better], products[better, nearest[better]]
        rows = np.flatnonzero(best < len(rank))
        partner[members[start + rows]] = of_rank[best[rows]]
        correlation[members[start + rows]] = product[rows]


def _main_direction(blocks_NB: np.ndarray) -> np.ndarray:
    """The direction in which the vectors differ most: first principal axis, (blocks,)."""
    sums_B, squares_BB = 0.0, 0.0
    for some_NB in _parts(blocks_NB):
        vectors_NB = _vectors(some_NB)
        sums_B = sums_B + vectors_NB.sum(axis=0, dtype=np.float64)
        squares_BB = squares_BB + (vectors_NB.T @ vectors_NB).astype(np.float64)
    mean_B = sums_B / len(blocks_NB)
    direction_B: np.ndarray = np.linalg.eigh(squares_BB - len(blocks_NB) * np.outer(mean_B, mean_B))[1][:, -1]
    return direction_B


def _parts(blocks_NB: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(blocks_NB), _PART):
        yield blocks_NB[first : first + _PART]
