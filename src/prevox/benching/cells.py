"""What a bench file comes to: cells, and the pre-trainings and trials behind them."""

from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Pretraining:
    """A pre-training run, shared by all cells that start from it.

    Attributes:
        name: Folder.
        dataset: Where its images come from.
        settings: Of `prevox pretrain`, without store and out.
    """

    name: str
    dataset: str
    settings: Settings


@dataclass(frozen=True)
class Cell:
    """A fine-tuning run and what is scored of it.

    Attributes:
        name: Folder.
        dataset: What it is fine-tuned on.
        method: Name in the file.
        backbone: Name in the file.
        labels: "all", a number of labelled subjects or a fraction of them.
        point: Axis of `vary` → value, for axes that change this arm.
        seed: Of fine-tuning.
        fold: Of the cross-validation; None without.
        settings: Of `prevox finetune`, without store, out, pretrained, labels, and the rate where it is chosen.
        pretraining: What it starts from; None from scratch.
        rates: Learning rates to choose from; fewer than two leave nothing to choose.
        absent: Why it cannot be run; None if it can.
    """

    name: str
    dataset: str
    method: str
    backbone: str
    labels: int | float | str
    point: dict[str, str]
    seed: int
    fold: int | None
    settings: Settings = field(repr=False)
    pretraining: Pretraining | None = field(repr=False)
    rates: tuple[float, ...]
    absent: str | None

    @property
    def arm(self) -> str:
        """What is compared: method, backbone and settings, whatever dataset, labels, fold and seed."""
        return " ".join([f"{self.method}.{self.backbone}", *(f"{k}-{v}" for k, v in self.point.items())])


@dataclass(frozen=True)
class Trial:
    """A short fine-tuning on the inner split, for one learning rate.

    Attributes:
        name: Folder.
        cell: The first seed's cell; it has the settings of the others too.
        lr: Learning rate.
        settings: Of `prevox finetune`.
    """

    name: str
    cell: Cell
    lr: float
    settings: Settings = field(repr=False)
