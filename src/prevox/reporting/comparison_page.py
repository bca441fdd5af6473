"""The page about a comparison: what was compared, on what, how well, how sure; figures, cases, volumes, tables."""

from typing import Any

import pandas as pd

from prevox.evaluation.cases import MEAN
from prevox.evaluation.comparison import HIGHER_IS_BETTER, Comparison
from prevox.evaluation.comparison_tables import LABELS, OF_CLASSES, account, grids, interval, metric_label, number
from prevox.reporting import class_page, page, tables, volumes, wording
from prevox.reporting import comparison_figures as figures
from prevox.reporting.comparison_folder import Compared
from prevox.reporting.drawing import Drawing, Stroke, run_stroke
from prevox.reporting.folders import Run
from prevox.reporting.scans import CaseFiles

NAMED_RUNS = 8  # in the heading
NAMED = 10  # cases in a sentence; comparison.json names all


def render(compared: Compared, title: str | None) -> tuple[str, list[Drawing]]:
    """The page as text (whatever comes from data is escaped), and its drawings."""
    found = compared.found
    strokes = {name: run_stroke(place) for place, name in enumerate(found.runs)}
    of_classes = found.metric in OF_CLASSES
    packed: dict[str, Any] | None = None
    problems: list[str] = []
    if of_classes:
        sections = class_page.comparison_sections(found, compared.cases, strokes)
        heads, rows, case_note = class_page.comparison_rows(found, compared.cases)
    else:
        sections = _figures(compared, strokes)
        packed, problems = _volumes(compared)
        heads, rows = _case_rows(compared)
        case_note = f"{metric_label(found)} of every case and class. “mean” is over the classes that count in a case."
    text = page.render(
        "comparison.html.j2",
        {},
        title=title or f"{_names(found)}: {metric_label(found)}",
        volumes=packed,
        headline=headline(found),
        verdicts=found.verdicts,
        account=account(found, NAMED),
        cautions=[*_cautions(compared), *compared.gone, *problems],
        shown=_shown(compared),
        heads=[{"name": name, "number": True} for name in _metric_heads(compared)],
        overview=[_overview(compared, name, strokes[name]) for name in found.runs],
        several=len(found.datasets) > 1,
        of_classes=of_classes,
        case_note=case_note,
        metric=metric_label(found),
        sections=sections,
        case_heads=heads,
        case_rows=rows,
        grids=[{**vars(grid), "header": [{"name": name} for name in grid.header]} for grid in grids(found)],
        changed=_changed(compared),
    )
    return text, [section["drawing"] for section in sections]


def _names(found: Comparison) -> str:
    return " · ".join(found.runs) if len(found.runs) <= NAMED_RUNS else f"{len(found.runs)} runs"


def headline(found: Comparison) -> list[str]:
    """What was compared, on what, and who leads with what certainty, in sentences."""
    better = "higher" if HIGHER_IS_BETTER[found.metric] else "lower"
    where = " and ".join(f"{d['cases']} cases of {d['subjects']} subjects of {d['name']}" for d in found.datasets)
    what = f"{len(found.runs)} runs {'compared' if found.differences else 'described'} by {metric_label(found)}"
    sentences = [f"{what} ({better} is better) on the same cases: {where}."]
    if not found.differences:
        return sentences
    overall = [entry for entry in found.ranks if entry["dataset"] is None]
    best = min(entry["rank"] for entry in overall)
    leading = [entry for entry in overall if entry["rank"] == best]
    several = len(found.datasets) > 1
    if len(leading) > 1:
        names = " and ".join(entry["run"] for entry in leading)
        return [*sentences, f"{names} share the best {'average rank' if several else 'mean'}."]
    first = leading[0]
    share = f"{100 * first['shares'][0]:.0f} % of the bootstrap resamples of subjects"
    if several:
        return [*sentences, f"{first['run']} has the best average rank, {number(best, 2)}; it is first in {share}."]
    mean = interval(_entry(found, found.datasets[0]["name"], first["run"]), LABELS[found.metric][1])
    return [*sentences, f"{first['run']} has the best mean, {mean}; it is first in {share}."]


def _cautions(compared: Compared) -> list[str]:
    """What makes a run look better than it is, one sentence each."""
    found = compared.found
    cases = set(compared.cases["case"])
    sentences = []
    for name, runs in compared.runs.items():
        failed = [case for case, missing in found.left_out.items() if missing.get(name) == "failed"]
        if failed:
            sentences.append(
                f"{name} could not segment {len(failed)} of the cases that are left out; without them it may look "
                "better than it is."
            )
        seen = len(cases & {case for run in runs for case in run.scored.get("trained_on") or []})
        if seen:
            sentences.append(f"{name} was trained on {seen} of the compared cases; they say nothing about new ones.")
    made = sorted({version for runs in compared.runs.values() for run in runs for version in _versions(run)})
    if len(made) > 1:
        versions = ", ".join(made)
        sentences.append(f"The runs were made by different versions of Prevox ({versions}), whose methods may differ.")
    return sentences


def _versions(run: Run) -> list[str]:
    """What made a run; of scores that are means over seeds, what made all of these."""
    own = f"{run.environment['prevox']} ({run.environment.get('git')})" if run.environment.get("prevox") else None
    return list(run.scored.get("versions") or ([own] if own else []))


def _seeds(run: Run) -> list[str]:
    return [str(seed) for seed in run.scored.get("seeds") or []]


def _shown(compared: Compared) -> str:
    """Which masks the viewer shows where scores are means over seeds; "" where it need not be said."""
    averaged = [run for runs in compared.runs.values() for run in runs if len(_seeds(run)) > 1]
    if not averaged:
        return ""
    seeds = " and ".join(_seeds(averaged[0]))
    return (
        f"Scores are means over the seeds {seeds}, also those beside the volumes; the masks are those of seed "
        f"{averaged[0].scored['shown_seed']} alone."
    )


def _entry(found: Comparison, dataset: str, run: str) -> dict[str, Any]:
    return next(e for e in found.scores if (e["dataset"], e["class"], e["run"]) == (dataset, MEAN, run))


def _metric_heads(compared: Compared) -> list[str]:
    """The metrics that were scored besides the one that is compared."""
    others = [name for name in LABELS if name in compared.cases and name != compared.found.metric]
    return [figures.metric_name(name) for name in others]


def _overview(compared: Compared, name: str, stroke: Stroke) -> dict[str, Any]:
    """One run of the first table; of several datasets means over all their cases."""
    found = compared.found
    rank = next(e for e in found.ranks if e["dataset"] is None and e["run"] == name)
    decimals = LABELS[found.metric][1]
    own = [_entry(found, dataset["name"], name) for dataset in found.datasets]
    rows = compared.cases[(compared.cases["run"] == name) & (compared.cases["class"] == MEAN)]
    run = next(iter(compared.runs[name]), None)
    return {
        "name": name,
        "stroke": stroke,
        "what": _what(run) if run else "",
        "labels": wording.labelled(run) if run else None,
        "folders": found.runs[name],
        "scores": [
            {"dataset": entry["dataset"], "mean": number(entry["mean"], decimals),
             "spread": interval(entry, decimals).partition(" ")[2], "median": number(entry["median"], decimals)}
            for entry in own
        ],
        "rank": number(rank["rank"], 2 if len(found.datasets) > 1 else 1).removesuffix(".0"),
        "rank_spread": f"{number(rank['low'], 1)} to {number(rank['high'], 1)}",
        "others": [
            number(float(rows[metric].mean()), LABELS[metric][1])
            for metric in LABELS
            if metric in rows and metric != found.metric
        ],
    }  # fmt: skip


def _what(run: Run) -> str:
    seeds = _seeds(run)
    return f"mean over the seeds {' and '.join(seeds)}" if len(seeds) > 1 else wording.describe(run)


def _figures(compared: Compared, strokes: dict[str, Stroke]) -> list[dict[str, Any]]:
    """Drawings with their headings and what they show."""
    found = compared.found
    means = compared.cases[compared.cases["class"] == MEAN]
    tested = [entry for entry in found.differences if entry["class"] == MEAN]
    metrics = [found.metric, *(name for name in LABELS if name in means and name != found.metric)]
    label = metric_label(found)
    wanted: list[tuple[str, str, Drawing | None]] = [
        (f"Differences in {label}, paired",
         "A dot is a subject, the line the 95 % bootstrap interval of the mean over subjects. Right of 0 the run named "
         "first has the higher value.",
         figures.differences(tested, means, found.metric, strokes)),
        ("Ranks when other subjects are drawn",
         "The area of a circle is the share of bootstrap resamples in which the run has that place; the cross is its "
         "rank on these cases, the line the 95 % interval of the rank.",
         figures.ranks([e for e in found.ranks if e["dataset"] is None], strokes, "all") if tested else None),
        *((f"{label} over {drawing.name.partition(' over ')[2]}",
           "Means with 95 % bootstrap bands over subjects. Runs of a line differ in this number alone; runs at one "
           "point are averaged case by case. The colour of a line is its own, not that of a run above.",
           drawing) for drawing in _curves(found)),
        *((figures.metric_name(metric) + " of every case",
           "A dot is a case, its mean over classes. Box: quartiles and median; diamond: mean; whiskers: up to 1.5 box "
           "widths.",
           figures.strips(means, metric, strokes)) for metric in metrics),
    ]  # fmt: skip
    drawn = [(heading, note, drawing) for heading, note, drawing in wanted if drawing is not None]
    return [{"heading": heading, "note": note, "drawing": drawing} for heading, note, drawing in drawn]


def _curves(found: Comparison) -> list[Drawing]:
    """Curves of each dataset; named by it where there are several."""
    drawings = []
    for dataset in found.datasets:
        own = [entry for entry in found.curves if entry["dataset"] == dataset["name"]]
        for drawing in figures.curves(own, found.metric):
            where = f", {dataset['name']}" if len(found.datasets) > 1 else ""
            drawings.append(Drawing(drawing.name + where, drawing.figure))
    return drawings


def _case_rows(compared: Compared) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """The table of all cases and classes: each run's value, and how far the runs are apart."""
    found = compared.found
    decimals = LABELS[found.metric][1]
    several = len(found.datasets) > 1
    wide = compared.cases.pivot(
        index=["dataset", "case", "subject", "class"], columns="run", values=found.metric
    )[list(found.runs)]  # fmt: skip
    rows = []
    for keys, values in zip(wide.index, wide.to_numpy(float), strict=True):
        dataset, case, subject, class_name = keys
        apart = float(values.max() - values.min())  # NaN where a run is not counted
        cells = [tables.value_cell(value, decimals) for value in (*values, apart)]
        rows.append([case, subject, *([dataset] if several else []), class_name, *cells])
    heads: list[dict[str, Any]] = [
        {"name": "Case", "number": False},
        {"name": "Subject", "number": False},
        *([{"name": "Dataset", "number": False, "menu": ""}] if several else []),
        {"name": "Class", "number": False, "menu": MEAN},
        *({"name": name, "number": True} for name in (*found.runs, "largest difference")),
    ]
    return heads, rows


def choose(cases: pd.DataFrame, metric: str) -> dict[str, str]:
    """Cases worth a look, with the reason: by the mean over runs, and where the runs are furthest apart.

    Args:
        cases: As `Compared.cases`.
        metric: Column.

    Returns:
        Case → reason, at most four.
    """
    wide = cases[cases["class"] == MEAN].pivot(index="case", columns="run", values=metric).dropna()
    if wide.empty:
        return {}
    order = wide.mean(axis=1).sort_values(ascending=not HIGHER_IS_BETTER[metric], kind="stable").index.tolist()
    apart = (wide.max(axis=1) - wide.min(axis=1)).idxmax()
    chosen: dict[str, list[str]] = {}
    places = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1], "most disputed": apart}
    for reason, case in places.items():
        chosen.setdefault(str(case), []).append(reason)
    return {case: ", ".join(reasons) for case, reasons in chosen.items()}


def _volumes(compared: Compared) -> tuple[dict[str, Any] | None, list[str]]:
    """The chosen cases with the masks of every run for the viewer, and what cannot be shown."""
    found = compared.found
    runs = [(name, run) for name, own in compared.runs.items() for run in own]
    files: dict[str, dict[str, CaseFiles]] = {name: {} for name in found.runs}
    for name, run in runs:
        files[name] |= run.files
    known = {case for own in files.values() for case in own}
    means = compared.cases[(compared.cases["class"] == MEAN) & compared.cases["case"].isin(known)]
    scores = means.set_index(["run", "case"])[found.metric].to_dict()
    label, decimals = LABELS[found.metric]
    cases = [
        volumes.Case(
            case,
            reason,
            {name: own[case] for name, own in files.items() if case in own},
            {name: f"{label} {number(scores[name, case], decimals)}" for name in files},
        )
        for case, reason in choose(means, found.metric).items()
    ]
    names = {value: text for _, run in runs for value, text in wording.label_names(run).items()}
    packed, problems = volumes.pack(cases, names)
    return (packed if packed["cases"] else None), problems


def _changed(compared: Compared) -> dict[str, Any] | None:
    """Settings in which the runs that were trained here differ."""
    runs = [own[0] for own in compared.runs.values() if own and own[0].config]
    rows = tables.changed_settings(runs) if len(runs) > 1 else []
    return {"names": [run.name for run in runs], "rows": rows} if rows else None
