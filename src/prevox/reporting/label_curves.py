"""Which runs are points of one curve over the number of labelled subjects."""

from collections.abc import Mapping, Sequence
from typing import Any

from prevox.evaluation.statistics import Interval
from prevox.reporting import tables
from prevox.reporting.comparison_figures import CurvePoint
from prevox.reporting.drawing import Stroke
from prevox.reporting.folders import Run

# settings that differ within a curve: the number of labels, what is chosen anew for each number, and repetitions
WITHIN = {"labels", "out", "resume", "optim.lr", "train.seed", "split.seed", "split.fold"}


def labelled(run: Run) -> int | None:
    """Labelled subjects that a run was fine-tuned on; None where that is not known or not asked."""
    count = run.summary.get("subjects") or run.config.get("labels")
    return int(count) if run.verb == "finetune" and count is not None else None


def curve_points(
    runs: Mapping[str, Run], means: Mapping[str, Interval], strokes: Mapping[str, Stroke]
) -> list[CurvePoint]:
    """Put runs that differ in nothing but the number of labels, and in what goes with it, on one curve.

    Args:
        runs: By name; only fine-tuned ones that are in `means` count.
        means: Score of each run.
        strokes: Of the runs; a curve takes that of its first run.
    """
    groups: dict[Any, list[str]] = {}
    for name, run in runs.items():
        if name in means and labelled(run) is not None:
            settings = {key: value for key, value in tables.settings(run).items() if key not in WITHIN}
            groups.setdefault(tuple(sorted(settings.items())), []).append(name)
    return [
        CurvePoint(method, labels, means[name].mean, means[name].low, means[name].high, strokes[names[0]])
        for names in groups.values()
        for method in [common(names)]
        for name in names
        if (labels := labelled(runs[name])) is not None
    ]


def common(names: Sequence[str]) -> str:
    """What the names of a method's runs begin with, without separators and digits; the first name if nothing."""
    shared = names[0]
    for name in names[1:]:
        while not name.startswith(shared):
            shared = shared[:-1]
    return shared.rstrip("-_/.= 0123456789") or names[0]
