"""Spatial transforms of whole batches: mirroring, quarter turns, rotation with scaling.

Each transform draws its parameters first (`sample_params`, one row per view, always the same number of draws, so
neither the other views nor the other transforms change what a view gets) and applies them after (`apply`). Labels and
validity follow the image voxel by voxel.

Shape suffixes: B views, C channels, A spatial axes (3: z y x, 2: y x), D H W voxels (D is absent in 2D).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation
from torch import Generator, Tensor

Params = dict[str, Tensor]  # one row per view, on the CPU
Triple = tuple[Tensor, Tensor | None, Tensor]  # voxels, labels, validity


@dataclass(frozen=True)
class Flip:
    """Mirror along each axis by itself.

    Args:
        probability: Of mirroring, for each axis; one number for all of them, or one per axis.
    """

    probability: float | tuple[float, ...]
    name = "flip"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `axes` (B, A), True where the axis is mirrored."""
        return {"axes": torch.rand(num_views, len(size), generator=generator) < torch.tensor(self.probability)}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Mirror the views that drew it; the very same tensors come back if none did."""
        groups = _groups(params["axes"].long())

        def effect(tensor: Tensor) -> Tensor:
            return _per_group(tensor, groups, lambda part, row: part.flip([2 + a for a, on in enumerate(row) if on]))

        return _on_all(effect, x_BCDHW, label_B1DHW, valid_B1DHW) if groups else (x_BCDHW, label_B1DHW, valid_B1DHW)


@dataclass(frozen=True)
class Rotate90:
    """Turn by 90, 180 or 270 degrees in a random plane whose two sides are equal, so that the shape stays.

    Args:
        probability: Of turning a view.
    """

    probability: float
    name = "rotate90"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `turns` (B,), 0 for none, and `plane` (B, 2), the two axes; no equal sides, no turn."""
        planes = [pair for pair in combinations(range(len(size)), 2) if size[pair[0]] == size[pair[1]]]
        u_B3 = torch.rand(num_views, 3, generator=generator)
        if not planes:
            return {"turns": torch.zeros(num_views, dtype=torch.long), "plane": torch.zeros(num_views, 2).long()}
        chosen_B = (u_B3[:, 1] * len(planes)).long()
        turns_B = torch.where(u_B3[:, 0] < self.probability, 1 + (u_B3[:, 2] * 3).long(), 0)
        return {"turns": turns_B, "plane": torch.tensor(planes)[chosen_B]}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Turn the views that drew it; the very same tensors come back if none did."""
        turned_B1 = params["turns"][:, None] > 0
        groups = _groups(torch.cat([params["turns"][:, None], params["plane"]], dim=1) * turned_B1)

        def effect(tensor: Tensor) -> Tensor:
            return _per_group(tensor, groups, lambda part, row: torch.rot90(part, row[0], [2 + row[1], 2 + row[2]]))

        return _on_all(effect, x_BCDHW, label_B1DHW, valid_B1DHW) if groups else (x_BCDHW, label_B1DHW, valid_B1DHW)


@dataclass(frozen=True)
class Affine:
    """Rotate about the view's centre and scale, by one trilinear resampling (labels and validity: nearest voxel).

    Angles and scale are meant in voxels, whatever the view's shape. What comes from outside the view or from its
    padding is 0 and invalid, and never blends into the rest.

    Args:
        probability: One number: of rotating and scaling a view, always both. Two numbers: of rotating, and of scaling,
            each by itself; where both are drawn there is still one resampling.
        rotation: Largest angle about each axis in degrees (2D: in the plane).
        scaling: Range of the scale factor; above 1 enlarges.
        in_plane: Rotate about z only, and scale y and x only.
    """

    probability: float | tuple[float, float]
    rotation: float
    scaling: tuple[float, float]
    in_plane: bool = False
    name = "affine"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `applied` (B,), `degrees` (B, 3) about z y x or (B, 1) in 2D, and `scale` (B,).

        With two probabilities, what a view did not draw is 0 degrees, or scale 1.
        """
        angles = 3 if len(size) == 3 else 1
        u = torch.rand(num_views, 2 + angles, generator=generator)
        low, high = self.scaling
        scale_B, degrees = low + (high - low) * u[:, 1], (2 * u[:, 2:] - 1) * self.rotation
        if self.in_plane:
            degrees = torch.cat([degrees[:, :1], torch.zeros_like(degrees[:, 1:])], dim=1)
        if not isinstance(self.probability, tuple):
            return {"applied": u[:, 0] < self.probability, "scale": scale_B, "degrees": degrees}
        # One number decides both: it cuts [0, 1) into scaled or not, and each part into rotated or not in the same
        # proportion, so that neither says anything about the other and as much is drawn as for one probability.
        rotating, scaling = self.probability
        scaled_B = u[:, 0] < scaling
        rotated_B = u[:, 0] < torch.where(scaled_B, rotating * scaling, scaling + rotating * (1 - scaling))
        return {
            "applied": rotated_B | scaled_B,
            "scale": torch.where(scaled_B, scale_B, 1.0),
            "degrees": torch.where(rotated_B[:, None], degrees, 0.0),
        }

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Resample the views that drew it; the very same tensors come back if none did."""
        rows = params["applied"].nonzero().flatten()
        if not len(rows):
            return x_BCDHW, label_B1DHW, valid_B1DHW
        size = tuple(x_BCDHW.shape[2:])
        scale_NA = params["scale"][rows, None].repeat(1, len(size))
        if self.in_plane:
            scale_NA[:, :-2] = 1
        theta = normalised(backward_matrix(params["degrees"][rows], scale_NA), size)
        rows, theta = rows.to(x_BCDHW.device), theta.to(x_BCDHW)
        grid = F.affine_grid(theta, [len(rows), 1, *size], align_corners=False)
        weight = valid_B1DHW[rows].to(x_BCDHW.dtype)
        valid = F.grid_sample(weight, grid, mode="nearest", align_corners=False) > 0.5
        # Interpolating validity beside the voxels and dividing by it leaves only valid voxels in the mean.
        both = F.grid_sample(torch.cat([x_BCDHW[rows] * weight, weight], dim=1), grid, align_corners=False)
        x = torch.where(valid, both[:, :-1] / both[:, -1:].clamp_min(1e-3), 0.0)
        x_out, valid_out = x_BCDHW.index_copy(0, rows, x), valid_B1DHW.index_copy(0, rows, valid)
        if label_B1DHW is None:
            return x_out, None, valid_out
        nearest = F.grid_sample(label_B1DHW[rows].to(x_BCDHW.dtype), grid, mode="nearest", align_corners=False)
        label = nearest.round().to(label_B1DHW.dtype) * valid
        return x_out, label_B1DHW.index_copy(0, rows, label), valid_out


def backward_matrix(degrees: Tensor, scale: Tensor) -> Tensor:
    """Matrices that take centred output voxels to centred input voxels.

    Args:
        degrees: (N, 3) about z y x, or (N, 1) in the plane y x; +90 is `torch.rot90` in the plane of the other axes.
        scale: (N,), or (N, A) with one factor per axis of the output; above 1 enlarges.

    Returns:
        (N, A, A), rows and columns in array order (z y x, or y x).
    """
    axes = 2 if degrees.shape[1] == 1 else 3
    planes = [(0, 1)] if axes == 2 else [(1, 2), (0, 2), (0, 1)]
    radians = degrees * (math.pi / 180)
    total = torch.eye(axes).repeat(len(degrees), 1, 1)
    for column, (a, b) in enumerate(planes):
        turn = torch.eye(axes).repeat(len(degrees), 1, 1)
        turn[:, a, a] = turn[:, b, b] = radians[:, column].cos()
        turn[:, a, b] = radians[:, column].sin()
        turn[:, b, a] = -radians[:, column].sin()
        total = total @ turn
    return total / (scale[:, None, None] if scale.ndim == 1 else scale[:, None, :])


def normalised(matrix_NAA: Tensor, size: tuple[int, ...]) -> Tensor:
    """Rewrite voxel matrices (array order) for `affine_grid`: coordinates in [-1, 1] per side, in the order x y z.

    Without the division by the sides a rotation of a view that is no cube would shear it.
    """
    half_A = torch.tensor(size, dtype=matrix_NAA.dtype) / 2
    scaled = (matrix_NAA * half_A / half_A[:, None]).flip(1, 2)
    return torch.cat([scaled, torch.zeros(*scaled.shape[:2], 1)], dim=2)


def _groups(rows_BK: Tensor) -> dict[tuple[int, ...], list[int]]:
    """Views by their (non-zero) row of parameters, so that each group takes one launch."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for view, row in enumerate(rows_BK.tolist()):
        if any(row):
            groups.setdefault(tuple(row), []).append(view)
    return groups


def _per_group(
    tensor: Tensor, groups: dict[tuple[int, ...], list[int]], effect: Callable[[Tensor, tuple[int, ...]], Tensor]
) -> Tensor:
    """Copy `tensor` with `effect(part, row)` on the views of each group."""
    result = tensor.clone()
    for row, members in groups.items():
        index = torch.tensor(members, device=tensor.device)
        result[index] = effect(tensor[index], row)
    return result


def _on_all(effect: Callable[[Tensor], Tensor], x: Tensor, label: Tensor | None, valid: Tensor) -> Triple:
    return effect(x), None if label is None else effect(label), effect(valid)
