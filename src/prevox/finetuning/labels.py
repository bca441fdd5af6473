"""What a segmentation network's outputs mean: exclusive classes, or regions that overlap.

Shape suffixes: B views, K outputs, D H W voxels of a view, Z Y X voxels of an image.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prevox.data.restore import best_class
from prevox.errors import ConfigError, DataError
from prevox.evaluation.cases import MEAN


@dataclass(frozen=True)
class LabelScheme:
    """Names of the outputs and the label values behind them; the background (value 0) is not listed.

    Args:
        classes: Name to label values, in the order of the outputs. Exclusive classes have one value each and output 0
            is the background; a region has several values, and regions come outermost first.
        overlapping: Whether these are regions (one sigmoid each) instead of exclusive classes (one softmax).

    Raises:
        ConfigError: If the regions cannot be painted back into one label map, or a class is called "mean".
    """

    classes: dict[str, tuple[int, ...]]
    overlapping: bool = False

    def __post_init__(self) -> None:
        if not self.classes:
            raise ConfigError("classes: there is none; a segmentation needs at least one label value above 0.")
        if MEAN in self.classes:
            raise ConfigError(
                f"classes: one is called '{MEAN}', which in the scores is the row of the mean over classes. Rename it "
                "in the dataset's description and prepare again, or name the classes with --regions."
            )
        if self.overlapping:
            self.painted()
        else:
            assert all(len(values) == 1 for values in self.classes.values()), "exclusive classes have one value each"

    @property
    def outputs(self) -> int:
        """Channels of the network's result."""
        return len(self.classes) + (not self.overlapping)

    def painted(self) -> list[int]:
        """Label value that each class writes into a label map; later classes paint over earlier ones.

        A region writes what it has and no later region has: WT [1, 2, 3], TC [2, 3], ET [3] write 1, 2, 3.

        Raises:
            ConfigError: If a region is left with no value or with several.
        """
        values = []
        names = list(self.classes)
        for number, name in enumerate(names):
            inner = {value for later in names[number + 1 :] for value in self.classes[later]}
            own = sorted(set(self.classes[name]) - (inner if self.overlapping else set()))
            if len(own) != 1 or own[0] < 1:
                raise ConfigError(
                    f"regions: '{name}' {list(self.classes[name])} without the regions after it leaves {own}; expected "
                    "exactly one label value above 0, which is what it paints. List regions from the outermost to the "
                    "innermost, e.g. WT: [1, 2, 3], TC: [2, 3], ET: [3]."
                )
            values.append(own[0])
        return values

    def encode_classes(self, label_B1DHW: Tensor, where: object) -> Tensor:
        """Output number of each voxel (int64) for exclusive classes.

        Args:
            label_B1DHW: Label values (int64).
            where: Images in question, for the message.

        Raises:
            DataError: If a voxel has a value that is no class.
        """
        values = self.painted()
        table = torch.full((max(values) + 2,), -1, dtype=torch.int64)  # the last entry catches everything larger
        table[0] = 0
        table[values] = torch.arange(1, len(values) + 1)
        table = table.to(label_B1DHW.device)
        index = table[label_B1DHW.clamp(0, len(table) - 1)].masked_fill_(label_B1DHW < 0, -1)
        if bool((index < 0).any()):
            unknown = label_B1DHW[index < 0].unique().tolist()
            known = [f"{value} ({name})" for value, name in zip(values, self.classes, strict=True)]
            raise DataError(
                where,
                found=f"label value(s) {', '.join(map(str, unknown))}",
                expected=f"0 (background), {', '.join(known)}",
                remedy="Correct the label map, or name the value in the dataset's class names and prepare again.",
            )
        return index

    def encode_regions(self, label_B1DHW: Tensor) -> Tensor:
        """1 where a voxel is in a region, (B, K, D, H, W) float32; values in no region are background."""
        regions = [torch.tensor(values, device=label_B1DHW.device) for values in self.classes.values()]
        return torch.cat([torch.isin(label_B1DHW, values) for values in regions], dim=1).float()

    def probabilities(self, logits_KDHW: Tensor) -> Tensor:
        """Softmax over classes, or sigmoid of each region."""
        return logits_KDHW.sigmoid() if self.overlapping else logits_KDHW.softmax(0)

    def decode(self, scores_KZYX: Tensor) -> np.ndarray:
        """Label map of probabilities, in the smallest unsigned type.

        Exclusive classes: the most probable one, the earlier where two are level. Regions: each that is more probable
        than not, painted in order.
        """
        values = self.painted()
        kind = np.min_scalar_type(max(values))
        if not self.overlapping:
            return np.array([0, *values], kind)[best_class(scores_KZYX)]
        label_ZYX = np.zeros(scores_KZYX.shape[1:], kind)
        for value, score_ZYX in zip(values, scores_KZYX.cpu().numpy(), strict=True):
            label_ZYX[score_ZYX > 0.5] = value
        return label_ZYX


def exclusive_scheme(class_names: Mapping[str, str], label_values: Iterable[int], where: object) -> LabelScheme:
    """Classes of a store, in the order of their label values, which need not be contiguous.

    Args:
        class_names: Label value (as text) to name; empty names the classes after the values that occur.
        label_values: Values that occur in the store's label maps.
        where: The store, for messages.

    Raises:
        DataError: If there is no label, or two values have the same name.
    """
    names = {int(value): str(name) for value, name in class_names.items()} or {v: str(v) for v in label_values}
    names.pop(0, None)
    if not names:
        raise DataError(
            where,
            found="no label value above 0",
            expected="label maps with at least one class",
            remedy="Fine-tuning for segmentation needs labels; check label_path in the catalogue.",
        )
    if len(set(names.values())) < len(names):
        raise DataError(
            where,
            found=f"class names {names}",
            expected="a different name for each label value",
            remedy="Rename them in the dataset's description, or join the values with --regions.",
        )
    return LabelScheme({names[value]: (value,) for value in sorted(names)})


def region_scheme(regions: Mapping[str, tuple[int, ...]], label_values: Iterable[int]) -> LabelScheme:
    """Regions as the user names them.

    Raises:
        ConfigError: If a region has a value that no label map of the store holds, or the order cannot be painted.
    """
    present = set(label_values)
    for name, values in regions.items():
        if absent := sorted(set(values) - present):
            raise ConfigError(
                f"regions: '{name}' names label value(s) {', '.join(map(str, absent))}; the store's label maps hold "
                f"{', '.join(map(str, sorted(present - {0})))}. Use values that occur."
            )
    return LabelScheme({name: tuple(values) for name, values in regions.items()}, overlapping=True)
