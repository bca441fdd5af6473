"""The parts of a page that are about classes of whole images: sentences, figures, tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prevox.evaluation.cases import MEAN
from prevox.evaluation.classified import HEADINGS
from prevox.evaluation.comparison import Comparison
from prevox.evaluation.comparison_tables import LABELS, interval, metric_label
from prevox.reporting import class_figures, comparison_figures, figures, tables
from prevox.reporting.drawing import INK, Drawing, Stroke
from prevox.reporting.folders import Run

MOST_ROWS = 3000  # of the table of cases; a page with more of them is slow
ROC_NOTE = "Share of positives found over share of negatives called positive. In brackets the number of positives. "
RELIABILITY_NOTE = (
    "All pairs of case and class in 15 bins of probability, those of fewer than ten pairs left out; on the diagonal "
    "probabilities can be taken at their word."
)
Strokes = Mapping[str, Stroke]
Wanted = list[tuple[str, str, Drawing | None]]


def comparison_sections(found: Comparison, probabilities: pd.DataFrame, strokes: Strokes) -> list[dict[str, Any]]:
    """Drawings of a comparison with their headings and what they show."""
    label = metric_label(found)
    wanted: Wanted = [
        (f"Differences in {label}, paired",
         "The mean over classes of both runs on the same cases, with the 95 % bootstrap interval over subjects. Right "
         "of 0 the run named first has the higher value.",
         _differences(found, strokes)),
        ("Ranks when other subjects are drawn",
         "The area of a circle is the share of bootstrap resamples in which the run has that place; the cross is its "
         "rank on these cases, the line the 95 % interval of the rank.",
         comparison_figures.ranks([e for e in found.ranks if e["dataset"] is None], strokes, "all")),
        (f"{label} by class",
         "With 95 % bootstrap intervals over subjects; in brackets the number of positives.",
         figures.intervals(_rows(found.scores, strokes), comparison_figures.metric_name(found.metric))),
    ]  # fmt: skip
    return _sections([*wanted, *_curves(probabilities, strokes)])


def comparison_rows(found: Comparison, cases: pd.DataFrame) -> tuple[list[dict[str, Any]], list[list[Any]], str]:
    """The table of all cases and classes: truth, each run's probability, and how far the runs are apart.

    Returns:
        Heads, rows, and what the reader must know of them.
    """
    index = ["case", "subject", "class", "reference"]
    truth = cases["reference"].map({1.0: "yes", 0.0: "no"}).fillna("–")
    wide = cases.assign(reference=truth).pivot(index=index, columns="run", values="probability")[list(found.runs)]
    wide = wide.assign(apart=wide.max(axis=1) - wide.min(axis=1))
    note = "Probability of every case and class."
    if len(wide) > MOST_ROWS:
        note = f"The {MOST_ROWS} of {len(wide)} pairs of case and class in which the runs are furthest apart."
        wide = wide.sort_values("apart", ascending=False, kind="stable").head(MOST_ROWS)
    rows = [
        [*keys, *(tables.value_cell(value, 3) for value in values)]
        for keys, values in zip(wide.index, wide.to_numpy(float), strict=True)
    ]
    words = [{"name": "Case"}, {"name": "Subject"}, {"name": "Class", "menu": ""}, {"name": "Truth", "menu": ""}]
    numbers = [{"name": name, "number": True} for name in (*found.runs, "largest difference")]
    return [*({**head, "number": False} for head in words), *numbers], rows, note


def run_sentences(runs: Sequence[Run]) -> list[str]:
    """How well and how sure, of every classification."""
    sentences = []
    for run in runs:
        for row in run.classified.to_dict("records"):
            if (row["class"], row["metric"]) == (MEAN, "auc"):
                counts = f"{row['subjects']:.0f} subjects, {row['cases']:.0f} cases"
                sentences.append(f"{run.name}: AUC {_value(row)} as the mean over classes ({counts}).")
        for name, reason in (run.scored_classes.get("undefined") or {}).items():
            sentences.append(f"{run.name}: no AUC and no average precision of {name}, which has {reason}.")
    return sentences


def run_section(runs: Sequence[Run], strokes: Strokes) -> dict[str, Any] | None:
    """Tables by class and figures of all classifications of a page; None if it has none."""
    members = [run for run in runs if not run.classified.empty]
    if not members:
        return None
    probabilities = pd.concat([run.probabilities.assign(run=run.name) for run in members])
    own = {run.name: strokes[run.name] for run in members}
    grids = []
    for metric, heading in HEADINGS.items():
        found = {
            run.name: {row["class"]: row for row in run.classified.to_dict("records") if row["metric"] == metric}
            for run in members
        }
        rows = []
        for name in dict.fromkeys(name for values in found.values() for name in values):
            some = next(values[name] for values in found.values() if name in values)
            positives = "" if np.isnan(some["positives"]) else f"{some['positives']:.0f}"
            values = [_value(entries[name]) if name in entries else "–" for entries in found.values()]
            rows.append([name, *values, positives, f"{some['cases']:.0f}"])
        header = ["Class", *found, "positives", "cases"]
        grids.append({"title": heading[:1].upper() + heading[1:], "header": header, "rows": rows})
    entries: list[dict[str, Any]] = [
        {**{str(key): value for key, value in row.items()}, "run": run.name, "mean": row["value"]}
        for run in members
        for row in run.classified.to_dict("records")
        if row["metric"] == "auc"
    ]
    wanted: Wanted = [
        ("AUC by class", "With 95 % bootstrap intervals over subjects; in brackets the number of positives.",
         figures.intervals(_rows(entries, strokes), "AUC")),
        *_curves(probabilities, own),
    ]  # fmt: skip
    legend = [{"name": name, "stroke": stroke} for name, stroke in own.items()]
    return {"grids": grids, "sections": _sections(wanted), "legend": legend}


def _curves(probabilities: pd.DataFrame, strokes: Strokes) -> Wanted:
    classes = probabilities["class"].nunique()
    most = f"The {class_figures.MOST} classes with the most positives." if classes > class_figures.MOST else ""
    return [
        ("ROC curves", ROC_NOTE + most, class_figures.roc(probabilities, strokes)),
        ("Reliability of the probabilities", RELIABILITY_NOTE, class_figures.reliability(probabilities, strokes)),
    ]


def _differences(found: Comparison, strokes: Strokes) -> Drawing | None:
    rows = [
        {**entry, "group": f"{entry['run']} − {entry['other']}", "stroke": strokes[entry["run"]]}
        for entry in found.differences
        if entry["class"] == MEAN
    ]
    drawing = figures.intervals(rows, f"difference in {comparison_figures.metric_name(found.metric)}")
    if drawing is not None:
        drawing.figure.axes[0].axvline(0, color=INK, linewidth=0.8, alpha=0.6)
    return drawing and Drawing(f"differences {found.metric}", drawing.figure)


def _rows(entries: Sequence[Mapping[str, Any]], strokes: Strokes) -> list[dict[str, Any]]:
    """Entries of classes as rows of a figure of intervals, classes together, the mean last."""
    names = list(dict.fromkeys(entry["class"] for entry in entries))
    ordered = sorted(entries, key=lambda entry: (entry["class"] == MEAN, names.index(entry["class"])))
    return [
        {**entry, "stroke": strokes[entry["run"]], "group": _group(entry["class"], entry["positives"])}
        for entry in ordered
    ]


def _group(name: str, positives: float | None) -> str:
    return "mean of classes" if name == MEAN else f"{name} ({positives:.0f})"


def _value(row: Mapping[Any, Any]) -> str:
    return interval({**row, "mean": row["value"]}, LABELS["auc"][1])


def _sections(wanted: Wanted) -> list[dict[str, Any]]:
    return [{"heading": h, "note": note, "drawing": drawing} for h, note, drawing in wanted if drawing is not None]
