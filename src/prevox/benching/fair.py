"""Whether the arms of a bench are treated alike; judged before anything runs."""

from collections.abc import Callable, Sequence
from typing import Any

from prevox.benching.cells import Cell, Settings
from prevox.config.base import section
from prevox.config.bench import BenchFile
from prevox.config.data import NormaliseConfig, ViewsConfig
from prevox.config.train import TrainConfig
from prevox.errors import ConfigError


def check_fair(cells: Sequence[Cell]) -> None:
    """Arms that are compared have the same length and number of trials; on one backbone also batches and intensities.

    Args:
        cells: Of one dataset, label fraction, point of the axes, fold and seed.

    Raises:
        ConfigError: If not; both arms are named.
    """
    for number, first in enumerate(cells):
        for other in cells[number + 1 :]:
            _same(first, other, "fine-tune for", _length)
            _same(first, other, "have learning rates to try:", lambda cell: max(1, len(cell.rates)))
            if first.backbone == other.backbone:
                _same(first, other, "fine-tune with views in a step:", _views)
                _same(first, other, "fine-tune on intensities normalised by", _normalise)


def check_unseen(bench: BenchFile, cells: Sequence[Cell]) -> None:
    """What a dataset is tested on is not what was pre-trained on.

    Raises:
        ConfigError: If it is.
    """
    for cell in cells:
        source = cell.pretraining.dataset if cell.pretraining else None
        if source != cell.dataset and source in bench.test_on.get(cell.dataset, ()):
            raise ConfigError(
                f"test_on: '{source}' is what '{cell.arm}' is pre-trained on, so it would not be unseen. Test on "
                "another dataset."
            )


def _same(first: Cell, other: Cell, what: str, found: Callable[[Cell], Any]) -> None:
    here, there = found(first), found(other)
    if here != there:
        raise ConfigError(
            f"arms would be treated unequally: '{first.arm}' and '{other.arm}' {what} {here} and {there}. "
            f"Give all arms the same, in backbones.{first.backbone}.finetune for those on it."
        )


def _length(cell: Cell) -> str:
    train = cell.settings["train"]
    return f"{train['steps']} steps" if train.get("steps") is not None else f"{train.get('epochs')} epochs"


def _views(cell: Cell) -> int:
    train = TrainConfig.parse(section(cell.settings, "train"))
    return train.batch * train.accumulation * ViewsConfig.parse(section(cell.settings, "views")).count


def _normalise(cell: Cell) -> Settings:
    """Of fine-tuning: its own, else the pre-training's, else the default."""
    pretrained = cell.pretraining.settings if cell.pretraining else {}
    return NormaliseConfig.parse(cell.settings.get("normalise") or pretrained.get("normalise") or {}).plain()
