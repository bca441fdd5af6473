"""The page about runs and evaluations: at a glance, results, cases, volumes, training, settings."""

from pathlib import Path
from typing import Any

import pandas as pd

from prevox.evaluation.curves import curves as points
from prevox.evaluation.run_settings import settings_of
from prevox.reporting import class_page, figures, page, tables, volumes, wording
from prevox.reporting.comparison_figures import curves
from prevox.reporting.drawing import Drawing, Stroke, label_colour, run_stroke
from prevox.reporting.folders import Run
from prevox.reporting.overlays import choose, overlays

CURVES = {  # column of metrics.jsonl -> heading
    "loss": "Loss",
    "probe_dice": "Dice of a linear probe on frozen features (thin line: on raw voxels)",
    "lr": "Learning rate",
    "samples_per_s": "Throughput (images per second)",
    "data_wait": "Share of time spent waiting for data",
}
Strokes = dict[str, Stroke]  # by the name of the run
FLOORS = {"probe_dice": "probe_floor"}  # column of a curve -> column of the level that it has to rise above
NOT_DRAWN = {"step", "progress", "seconds", *CURVES}
MAX_PICTURES = 4  # of a step
MAX_SCALARS = 6  # further scalars of a method that get a curve


def render(runs: list[Run], title: str) -> tuple[str, list[Drawing]]:
    """The page as text (whatever comes from data is escaped), and its drawings."""
    strokes = {run.name: run_stroke(number) for number, run in enumerate(runs)}
    scored = [run for run in runs if not run.scores.empty]
    rows = tables.score_rows(scored)
    heads, case_rows = tables.case_table(scored)
    dice_figure = _dice_figure(rows, scored, strokes)
    curves = _curves(runs, strokes)
    over_settings = _over_settings(runs)
    classes = class_page.run_section(runs, strokes)
    text = page.render(
        "report.html.j2",
        {"duration": wording.duration},
        title=title,
        volumes=_volumes(runs),
        runs=[_overview(run, strokes[run.name]) for run in runs],
        headline=[*class_page.run_sentences(runs), *wording.headline(runs)],
        classes=classes,
        scored=[
            {**_head(run, strokes), "count": f"{run.scores['subject'].nunique()} / {run.scores['case'].nunique()}"}
            for run in scored
        ],
        scores=_score_table(rows, tables.nsd_heading(scored)),
        dice_figure=dice_figure,
        over_settings=over_settings,
        differences=[_differences(first, others, strokes) for first, others in tables.comparisons(runs)],
        cautions=[sentence for run in scored for sentence in wording.cautions(run)],
        case_heads=heads,
        case_rows=case_rows,
        mean_name=tables.MEAN,
        curves=curves,
        changed=_changed(runs),
        sections=[_section(run, strokes[run.name]) for run in runs],
        pictures=_kinds_of_pictures(runs),
    )
    drawings = [figure["drawing"] for group in curves for figure in group["figures"]]
    first = [] if dice_figure is None else [dice_figure]
    first += [part["drawing"] for part in [*over_settings, *(classes["sections"] if classes else [])]]
    return text, [*first, *drawings]


def _volumes(runs: list[Run]) -> dict[str, Any] | None:
    """Best, median and worst case of every run for the viewer, each with the masks of all runs that have it."""
    scores = {run.name: tables.mean_dice(run) for run in runs}
    why: dict[str, list[str]] = {}
    for run in runs:
        dice = scores[run.name]
        for rank, case in choose(dice[dice.index.isin(list(run.files))]):
            why.setdefault(case, []).append(f"{rank} of {run.name}" if len(runs) > 1 else rank)
    cases = []
    for case, reasons in why.items():
        having = [run for run in runs if case in run.files]
        files = {run.name: run.files[case] for run in having}
        own = {run.name: f"Dice {scores[run.name][case]:.3f}" for run in having if case in scores[run.name]}
        cases.append(volumes.Case(case, ", ".join(reasons), files, own))
    names = {value: name for run in reversed(runs) for value, name in wording.label_names(run).items()}
    packed, _ = volumes.pack(cases, names)  # what cannot be read is told in the section of its run
    return packed if packed["cases"] else None


def _overview(run: Run, stroke: Stroke) -> dict[str, Any]:
    """One line of the first table: what, on which data, how well, how long."""
    mean, spread = tables.cell(tables.mean_interval(run), 3)
    return {
        "name": run.name,
        "stroke": stroke,
        "verb": run.verb,
        "what": wording.describe(run),
        "store": Path(str(run.config.get("store", "–"))).name,
        "images": run.summary.get("images", len(run.split.get("train", []))),
        "subjects": run.summary.get("subjects"),
        "held_out": len(run.split.get("validation", [])),
        "labels": run.config.get("labels"),
        "steps": run.summary.get("steps", int(run.metrics["step"].max()) if "step" in run.metrics else None),
        "finished": run.summary.get("finished"),
        "seconds": run.summary.get("seconds"),
        "peak_mb": run.summary.get("peak_mb"),
        "parameters": run.summary.get("parameters"),
        "predict_seconds": float(run.predictions["seconds"].sum()) if "seconds" in run.predictions else None,
        "predicted": len(run.predictions),
        "mean": mean,
        "spread": spread,
        "date": run.summary.get("date"),
    }


def _score_table(rows: list[tables.Row], nsd: str, signed: bool = False) -> list[dict[str, Any]]:
    """Rows as text, with the metric's name on the first row of each metric only."""
    result: list[dict[str, Any]] = []
    for row in rows:
        texts = [tables.cell(interval, row.decimals, signed) for interval in row.cells]
        distinct = [bool(signed and interval and (interval.low > 0 or interval.high < 0)) for interval in row.cells]
        first = not result or all(earlier["metric"] != row.metric for earlier in result)
        result.append(
            {
                "metric": row.metric,
                "heading": nsd if row.metric == "NSD" else row.metric,
                "first": first,
                "class_name": row.class_name,
                "is_mean": row.class_name == tables.MEAN,
                "cells": [
                    {"mean": mean, "spread": spread, "distinct": clear}
                    for (mean, spread), clear in zip(texts, distinct, strict=True)
                ],
            }
        )
    return result


def _head(run: Run, strokes: Strokes) -> dict[str, Any]:
    return {"name": run.name, "stroke": strokes[run.name]}


def _dice_figure(rows: list[tables.Row], scored: list[Run], strokes: Strokes) -> Drawing | None:
    drawn = [
        {
            "group": row.class_name,
            "stroke": strokes[run.name],
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
        }
        for row in rows
        if row.metric == "Dice"
        for run, interval in zip(scored, row.cells, strict=True)
        if interval is not None
    ]
    return figures.intervals(drawn, "Dice")


def _over_settings(runs: list[Run]) -> list[dict[str, Any]]:
    """Mean Dice over the numbers that runs differ in, of those that were scored on the same cases."""
    members = next(iter(tables.same_cases(runs)), [])
    if not members:
        return []
    dice = pd.concat({run.name: tables.mean_dice(run) for run in members}, axis=1)
    settings = {run.name: settings_of(run.path) for run in members}
    entries = points(settings, dice.to_numpy(), tables.subjects_of(members[0], dice.index))
    return [
        {"heading": f"Mean Dice over {drawing.name.partition(' over ')[2]}", "drawing": drawing}
        for drawing in curves(entries, "dice")
    ]


def _differences(first: Run, others: list[Run], strokes: Strokes) -> dict[str, Any]:
    return {
        "first": first.name,
        "others": [_head(run, strokes) for run in others],
        "cases": first.scores["case"].nunique(),
        "rows": _score_table(tables.difference_rows(first, others), tables.nsd_heading([first]), signed=True),
    }


def _curves(runs: list[Run], strokes: Strokes) -> list[dict[str, Any]]:
    """Curves of all runs of a verb, overlaid."""
    result = []
    for verb in dict.fromkeys(run.verb for run in runs):
        members = [run for run in runs if run.verb == verb and not run.metrics.empty]
        series = [(strokes[run.name], run.metrics) for run in members]
        extra = dict.fromkeys(
            str(column)
            for run in members
            for column in run.metrics
            if column not in NOT_DRAWN
            and not str(column).startswith("probe_")
            and pd.api.types.is_numeric_dtype(run.metrics[column])
        )
        wanted = CURVES | {column: column.replace("_", " ") for column in list(extra)[:MAX_SCALARS]}
        drawn = [
            (
                heading,
                figures.curve(
                    series,
                    column,
                    verb,
                    logarithmic=column == "loss",
                    smooth=column != "lr",
                    floor=FLOORS.get(column),
                ),
            )
            for column, heading in wanted.items()
        ]
        shown = [{"heading": heading, "drawing": drawing} for heading, drawing in drawn if drawing is not None]
        if shown:
            legend = [_head(run, strokes) for run in members]
            result.append({"verb": verb, "legend": legend, "figures": shown})
    return result


def _changed(runs: list[Run]) -> list[dict[str, Any]]:
    """Settings in which the runs of a verb differ."""
    result = []
    for verb in dict.fromkeys(run.verb for run in runs):
        members = [run for run in runs if run.verb == verb]
        rows = tables.changed_settings(members) if len(members) > 1 else []
        if rows:
            result.append({"verb": verb, "names": [run.name for run in members], "rows": rows})
    return result


def _section(run: Run, stroke: Stroke) -> dict[str, Any]:
    """Everything about one run: pictures, transfer, overlays, settings, environment."""
    shown, problems = overlays(run, tables.mean_dice(run))
    names = wording.label_names(run)
    return {
        "name": run.name,
        "stroke": stroke,
        "path": str(run.path),
        "verb": run.verb,
        "pictures": [
            {"step": step, "name": name.replace("_", " "), "uri": figures.png_uri(path)}
            for step, name, path in _first_and_last(run)
        ],
        "transfer": _transfer(run.transfer),
        "overlays": [
            {
                "rank": overlay.rank,
                "image": overlay.image,
                "score": f"{overlay.score:.3f}",
                "slice": f"{overlay.slice_number} of {overlay.slices}",
                "panels": figures.panels(overlay),
                "volumes": [
                    {
                        "name": names.get(value, f"label {value}"),
                        "colour": label_colour(value),
                        "reference": f"{reference:.2f}",
                        "prediction": f"{prediction:.2f}",
                    }
                    for value, (reference, prediction) in overlay.volumes.items()
                ],
            }
            for overlay in shown
        ],
        "problems": problems,
        "config": run.config_text,
        "environment": _environment(run.environment),
        "command": run.environment.get("command"),
    }


def _kinds_of_pictures(runs: list[Run]) -> str:
    """Heading of the section of pictures: what they show, in the plural."""
    names = dict.fromkeys(name.replace("_", " ") for run in runs for _, name, _ in _first_and_last(run))
    return " and ".join(f"{name}s" for name in names).capitalize() if len(names) < 3 else "Pictures"


def _first_and_last(run: Run) -> list[tuple[int, str, Path]]:
    """Pictures of the first and of the newest step that drew any."""
    steps = sorted({step for step, _, _ in run.pictures})
    wanted = dict.fromkeys([*steps[:1], *steps[-1:]])
    return [picture for step in wanted for picture in [p for p in run.pictures if p[0] == step][:MAX_PICTURES]]


def _transfer(transfer: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of the pre-trained weights: kind, number, names."""
    meaning = {
        "loaded": "taken over unchanged",
        "adapted": "taken over after a change",
        "missing": "not in the pre-trained weights; start anew",
        "unexpected": "in the pre-trained weights only; not used",
    }
    rows = []
    for kind, words in meaning.items():
        found = transfer.get(kind) or []
        names = [f"{name}: {what}" for name, what in found.items()] if isinstance(found, dict) else list(found)
        rows.append({"kind": kind, "meaning": words, "count": len(names), "names": names})
    return rows if transfer else []


def _environment(environment: dict[str, Any]) -> list[tuple[str, str]]:
    packages = environment.get("packages")
    rows = [(key.replace("_", " "), value) for key, value in environment.items() if key not in {"packages", "command"}]
    if isinstance(packages, dict):
        rows.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)))
    return [(key, "none" if value is None else str(value)) for key, value in rows]
