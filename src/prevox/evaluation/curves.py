"""Scores over a numeric setting: labels, length of pre-training or fine-tuning, any other number that runs differ in.

Runs are points of one curve if their settings differ in nothing but that number, in what goes with it, and in what is
repetition or chosen anew for each run. Runs at one point (seeds, say) are averaged case by case, so that the band stays
one over subjects. Nothing is tested here: a curve describes.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prevox.evaluation.statistics import bootstrap_mean

PRETRAINING = "pretraining."  # before the settings of the pre-training that a run starts from
NAMES = {
    "labels": "labelled subjects",
    "train.steps": "fine-tuning steps",
    "train.epochs": "fine-tuning epochs",
    f"{PRETRAINING}train.steps": "pre-training steps",
    f"{PRETRAINING}train.epochs": "pre-training epochs",
}
# repetitions, and what is chosen anew for each run
REPEATED = {"optim.lr", "train.seed", "label_seed", "split.seed", "split.fold"}
REPEATED |= {f"{PRETRAINING}{key}" for key in ("train.seed", "split.seed", "split.fold")}
# shares of a run that are set with its length
GOES_WITH = {key: {"decoder_first", "schedule.warmup"} for key in ("train.steps", "train.epochs")}
GOES_WITH |= {f"{PRETRAINING}{key}": {f"{PRETRAINING}schedule.warmup"} for key in ("train.steps", "train.epochs")}

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """Runs that differ in one number.

    Attributes:
        setting: Dotted key.
        name: What the runs' names share.
        points: Value of the setting → runs that have it, in rising order; a level, which has no such setting (training
            from scratch has no pre-training), stands at None.
    """

    setting: str
    name: str
    points: dict[float | None, list[str]]


def lines(settings: Mapping[str, Settings]) -> list[Line]:
    """All curves among runs, the settings in the order of `NAMES`, others behind them.

    Args:
        settings: Of each run, flat; runs without any are on no curve.
    """
    known = {run: {k: v for k, v in own.items() if k not in REPEATED} for run, own in settings.items() if own}
    keys = dict.fromkeys(key for own in known.values() for key in own)
    varied = [key for key in keys if len({_text(own.get(key)) for own in known.values()}) > 1]
    order = [*(key for key in NAMES if key in varied), *(key for key in varied if key not in NAMES)]
    return [line for key in order for line in _lines_over(key, known, varied)]


def curves(
    settings: Mapping[str, Settings],
    values: np.ndarray,
    subjects: Sequence[Hashable],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """The points of all curves, with intervals over subjects.

    Args:
        settings: Of each run, in the order of the columns of `values`.
        values: (cases, runs); NaN is not counted.
        subjects: The subject of each case.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.
        level: Nominal coverage of the intervals.

    Returns:
        One entry per point: setting, over (the setting in words), line, x (None: a level), runs, mean, low, high,
        subjects, cases.
    """
    place = {run: column for column, run in enumerate(settings)}
    entries = []
    for line in lines(settings):
        for x, runs in line.points.items():
            point = values[:, [place[run] for run in runs]].mean(axis=1)
            found = bootstrap_mean(point, subjects, resamples, seed, level)
            where = {"setting": line.setting, "over": NAMES.get(line.setting, line.setting), "line": line.name}
            entries.append(where | {"x": x, "runs": runs} | asdict(found))
    return entries


def common(names: Sequence[str]) -> str:
    """What names share: their common words; of single words the beginning, without separators and digits."""
    words = [word for word in names[0].split() if all(word in name.split() for name in names)]
    if words:
        return " ".join(words)
    shared = names[0]
    for name in names[1:]:
        while not name.startswith(shared):
            shared = shared[:-1]
    return shared.rstrip("-_/.= 0123456789") or names[0]


def _lines_over(key: str, known: Mapping[str, Settings], varied: Sequence[str]) -> list[Line]:
    apart = [other for other in varied if other != key and other not in GOES_WITH.get(key, ())]
    groups: dict[tuple[str, ...], dict[float | None, list[str]]] = {}
    for run, own in known.items():
        x = _number(own.get(key))
        if x is not None or _is_level(key, own):
            others = ("level" if x is None else "", *(_text(own.get(other)) for other in apart))
            groups.setdefault(others, {}).setdefault(x, []).append(run)
    found = [group for group in groups.values() if len(group) > 1]
    if not found:
        return []
    found += [group for group in groups.values() if list(group) == [None]]
    names = [common([run for runs in group.values() for run in runs]) for group in found]
    return [
        Line(
            key,
            name if names.count(name) == 1 else next(iter(group.values()))[0],
            {x: group[x] for x in sorted(group, key=lambda x: -np.inf if x is None else x)},
        )
        for name, group in zip(names, found, strict=True)
    ]


def _is_level(key: str, own: Settings) -> bool:
    return key.startswith(PRETRAINING) and not any(other.startswith(PRETRAINING) for other in own)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    """What two settings are compared by; a whole number equals the same one with a decimal point."""
    number = _number(value)
    return repr(value) if number is None else repr(number)
