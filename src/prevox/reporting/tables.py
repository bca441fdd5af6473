"""The numbers of the report: runs in words, scores with intervals, paired differences."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prevox.evaluation.statistics import Interval, bootstrap_mean, paired_difference
from prevox.reporting.folders import Run

METRICS = {  # column of scores.csv -> (heading, decimals)
    "dice": ("Dice", 3),
    "hd95": ("HD95 (mm)", 2),
    "nsd": ("NSD", 3),
    "volume_error": ("Volume error (ml)", 2),  # predicted - reference, added by `read_runs`
}
MEAN = "mean of classes"
# may differ between a run and its arm from scratch: how it starts, and what that asks of the first steps
ARM_SETTINGS = {
    *("scratch", "pretrained", "transfer", "decoder_first", "schedule.warmup"),
    *("optim.lr", "out", "resume"),
}


@dataclass(frozen=True)
class Row:
    """One line of a table of scores: a metric of a class, one cell per run."""

    metric: str
    decimals: int
    class_name: str
    cells: list[Interval | None]


def per_case(run: Run, metric: str) -> pd.DataFrame:
    """Values of one metric, one row per case and one column per class, with the mean over classes last.

    Classes that are not counted in a case (empty in reference and prediction) are left out of the case's mean.
    """
    if run.scores.empty or metric not in run.scores:
        return pd.DataFrame()
    wide = run.scores.pivot(index="case", columns="class", values=metric)[list(dict.fromkeys(run.scores["class"]))]
    return wide.assign(**{MEAN: wide.mean(axis=1)}) if wide.shape[1] > 1 else wide


def subjects_of(run: Run, cases: pd.Index) -> list[str]:
    """The subject of each case."""
    return run.scores.drop_duplicates("case").set_index("case")["subject"].loc[cases].tolist()


def score_rows(runs: Sequence[Run]) -> list[Row]:
    """Every metric and class, with the mean and its interval over subjects for every run."""
    return _rows(runs, lambda run, _, values: bootstrap_mean(values.to_numpy(), subjects_of(run, values.index)))


def difference_rows(first: Run, others: Sequence[Run]) -> list[Row]:
    """Every metric and class, with the paired difference of each other run to the first over the same cases.

    NSD at one tolerance says nothing about NSD at another, so there is no difference between such runs.
    """

    def difference(run: Run, metric: str, values: pd.Series) -> Interval | None:
        before = per_case(first, metric)
        if values.name not in before or (metric == "nsd" and tolerance(run) != tolerance(first)):
            return None
        aligned = before[values.name].loc[values.index]
        return paired_difference(values.to_numpy(), aligned.to_numpy(), subjects_of(run, values.index))

    return _rows(others, difference)


def tolerance(run: Run) -> float | None:
    """Tolerance of a run's NSD in mm, None where its evaluation does not say."""
    found = run.scored.get("tolerance_mm")
    return None if found is None else float(found)


def nsd_heading(runs: Sequence[Run]) -> str:
    """NSD with its tolerance, or with each run's where they differ."""
    texts = ["unknown tolerance" if (found := tolerance(run)) is None else f"{found:g} mm" for run in runs]
    if len(set(texts)) == 1:
        return f"NSD at {texts[0]}"
    return "NSD at " + ", ".join(f"{text} ({run.name})" for run, text in zip(runs, texts, strict=True))


def _rows(runs: Sequence[Run], measure: Callable[[Run, str, pd.Series], Interval | None]) -> list[Row]:
    rows = []
    for metric, (heading, decimals) in METRICS.items():
        found = [per_case(run, metric) for run in runs]
        names = list(dict.fromkeys(name for table in found for name in map(str, table) if name != MEAN))
        if any(MEAN in table for table in found) and metric != "volume_error":
            names.append(MEAN)
        for name in names:
            cells = [
                measure(run, metric, table[name]) if name in table else None
                for run, table in zip(runs, found, strict=True)
            ]
            if any(cell is not None for cell in cells):
                rows.append(Row(heading, decimals, name, cells))
    return rows


def case_table(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Every case and class as a table that sorts: of one run all metrics, of several their Dice.

    Returns:
        Heads as the template's macro `sortable` takes them, and rows of cells.
    """
    metrics = METRICS if len(runs) == 1 else {"dice": METRICS["dice"]}
    columns: list[tuple[str, int, dict[Any, Any]]] = []
    for run in runs:
        for metric, (heading, decimals) in metrics.items():
            wide = per_case(run, metric)
            if metric == "volume_error":
                wide = wide.drop(columns=MEAN, errors="ignore")  # volumes of classes are not averaged
            values = wide.stack(future_stack=True).to_dict()
            columns.append((heading if len(runs) == 1 else run.name, decimals, values))
    rows: dict[tuple[str, str], list[Any]] = {}
    for case, class_name in dict.fromkeys(key for _, _, values in columns for key in values):
        rows[case, class_name] = [
            value_cell(values.get((case, class_name)), decimals) for _, decimals, values in columns
        ]
    subjects = {case: subject for run in runs for case, subject in run.scores[["case", "subject"]].to_numpy()}
    classes = {class_name for _, class_name in rows}
    heads: list[dict[str, Any]] = [
        {"name": "Case", "number": False},
        {"name": "Subject", "number": False},
        {"name": "Class", "number": False, "menu": MEAN if MEAN in classes else ""},
        *({"name": name if len(runs) == 1 else f"Dice of {name}", "number": True} for name, _, _ in columns),
    ]
    return heads, [[case, subjects[case], class_name, *cells] for (case, class_name), cells in rows.items()]


def value_cell(value: float | None, decimals: int) -> dict[str, str]:
    """A cell that sorts by its number; empty where there is none."""
    if value is None or np.isnan(value):
        return {"text": "–", "value": ""}
    return {"text": format(value, f".{decimals}f").replace("-", "−"), "value": repr(float(value))}


def same_cases(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of at least two runs that were evaluated on exactly the same cases."""
    groups: dict[frozenset[str], list[Run]] = {}
    for run in runs:
        if not run.scores.empty:
            groups.setdefault(frozenset(run.scores["case"]), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def comparisons(runs: Sequence[Run]) -> list[tuple[Run, list[Run]]]:
    """What is compared with what, among runs on the same cases: (run to compare with, the others).

    Runs whose settings differ in nothing but how the encoder starts (`ARM_SETTINGS`) are the arms of one experiment:
    each pre-trained arm is compared with its arm from scratch. Without such arms, all are compared with the first run.
    """
    result = []
    for group in same_cases(runs):
        arms = [
            (scratch, [run for run in group if _pretrained(run) and _experiment(run) == _experiment(scratch)])
            for scratch in group
            if scratch.verb == "finetune" and not _pretrained(scratch)
        ]
        arms = [(scratch, others) for scratch, others in arms if others]
        result += arms or [(group[0], group[1:])]
    return result


def _pretrained(run: Run) -> bool:
    return run.config.get("pretrained") is not None and not run.config.get("scratch")


def _experiment(run: Run) -> dict[str, str]:
    """Settings that the arms of one experiment share."""
    settings = {key: _text(value) for key, value in _flat(run.config) if value is not None}
    return {key: value for key, value in settings.items() if key not in ARM_SETTINGS}


def mean_dice(run: Run) -> pd.Series:
    """Mean Dice over classes, by case."""
    table = per_case(run, "dice")
    return table.iloc[:, -1] if table.shape[1] else pd.Series(dtype=float)


def mean_interval(run: Run) -> Interval | None:
    """Mean Dice over classes and cases with its interval; None if the run was not evaluated."""
    dice = mean_dice(run)
    return bootstrap_mean(dice.to_numpy(), subjects_of(run, dice.index)) if len(dice) else None


def headline(runs: Sequence[Run]) -> list[str]:
    """How well, how sure and in what time, in sentences."""
    sentences = []
    alarms = [alarm for run in runs if (alarm := _collapse(run))]
    for run in runs:
        interval = mean_interval(run)
        if interval is not None:
            mean, spread = cell(interval, 3)
            sure = f"95 % interval {spread}; " if interval.subjects > 1 else ""
            counts = f"{_count(interval.subjects, 'subject')}, {_count(interval.cases, 'case')}"
            sentences.append(f"{run.name}: mean Dice {mean} ({sure}{counts}).")
    for first, others in comparisons(runs):
        for run in others:
            dice = mean_dice(run)
            interval = paired_difference(
                dice.to_numpy(), mean_dice(first).loc[dice.index].to_numpy(), subjects_of(run, dice.index)
            )
            mean, spread = cell(interval, 3, signed=True)
            if interval.subjects < 2:
                continue
            apart = interval.low > 0 or interval.high < 0
            verdict = "the interval excludes 0" if apart else "it contains 0, so these cases cannot tell them apart"
            sentences.append(f"{run.name} minus {first.name}, case by case: {mean} ({spread}); {verdict}.")
    seconds = [run.summary["seconds"] for run in runs if run.summary.get("seconds") is not None]
    if not sentences and all(run.classified.empty for run in runs):
        sentences.append("Nothing is evaluated yet: this page shows training only.")
    if seconds:
        sentences.append(f"Training took {duration(sum(seconds))} in all.")
    return [*alarms, *sentences]


def _collapse(run: Run) -> str | None:
    """Warning about a teacher that says the same of every view, by the column `collapse` that a method may log."""
    if "collapse" not in run.metrics:
        return None
    logged = run.metrics.loc[run.metrics["progress"] >= 0.1].dropna(subset=["collapse"])  # before, all views look alike
    steps = logged.loc[logged["collapse"] > 0.5, "step"]
    if steps.empty:
        return None
    return (
        f"Warning: in {len(steps)} of {len(logged)} rows of the log, the last at step {steps.iloc[-1]}, {run.name} had "
        "collapsed: teacher and student said the same of every view, so consistency taught nothing. See the curves of "
        "teacher_entropy, kl and information."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def cautions(run: Run) -> list[str]:
    """What a reader must know before trusting a run's scores, one sentence each."""
    found, sentences = run.scored, []
    if found.get("trained_on"):
        sentences.append(
            f"{run.name} was trained on {len(found['trained_on'])} of the scored cases: their scores say nothing about "
            "new ones."
        )
    if found.get("failed"):
        failed = _count(len(found["failed"]), "case")
        sentences.append(f"{run.name} could not segment {failed} with a reference; its means leave them out.")
    if found.get("not_predicted"):
        missing = _count(len(found["not_predicted"]), "reference")
        sentences.append(f"{run.name} is not scored on {missing} for want of a prediction.")
    if found.get("one_empty"):
        sentences.append(
            f"{run.name}: pairs of case and class with only one of reference and prediction empty: "
            f"{found['one_empty']}. They count with Dice 0, NSD 0 and the diagonal of the grid as distance."
        )
    if found.get("both_empty"):
        sentences.append(f"{run.name}: pairs of case and class empty in both, not counted: {found['both_empty']}.")
    return sentences


def cell(interval: Interval | None, decimals: int, signed: bool = False) -> tuple[str, str]:
    """A mean and its interval as text: ("0.812", "0.790 to 0.831"); dashes where there is none."""

    def number(value: float) -> str:
        shown = round(value, decimals)
        sign = "+" if signed and shown else ""
        return format(shown or 0.0, f"{sign}.{decimals}f").replace("-", "−")  # 0.0 without a sign

    if interval is None or interval.cases == 0:
        return "–", ""
    if interval.subjects < 2:
        return number(interval.mean), "no interval: one subject"
    return number(interval.mean), f"{number(interval.low)} to {number(interval.high)}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that are needed."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"


def describe(run: Run) -> str:
    """What the run trained, in one phrase."""
    config = run.config
    if run.verb == "evaluate":
        return "masks that were only scored" if run.classified.empty else "probabilities of classes"
    if run.verb == "pretrain":
        method, model = config.get("method") or {}, config.get("model") or {}
        parts = [f"{method.get('name', 'method')} on {_network(model)}"]
        if "mask_ratio" in method:
            ratios = np.atleast_1d(method["mask_ratio"])
            parts.append(" to ".join(f"{100 * ratio:g}" for ratio in ratios) + " % masked")
        return ", ".join(parts)
    source = config.get("pretrained")
    kind = ((run.network or config).get("decoder") or {}).get("name", "network")
    kind = {"unetr": "UNETR", "resenc": "residual encoder U-Net"}.get(kind, kind)
    if source is None:
        encoder = config.get("encoder") or {}
        on = f" on {_network(encoder)}" if encoder.get("name") == "vit" else ""
        start = f"{kind}{on} from scratch"
    elif config.get("scratch"):
        start = f"{kind} from scratch, architecture of {Path(source).name}"
    else:
        both = " with its decoder" if config.get("transfer") == "encoder_decoder" else ""
        start = f"{kind} from {Path(source).name}{both}"
    if config.get("decoder_first"):
        start += f", decoder alone for {100 * config['decoder_first']:g} % of the steps"
    return start + (", encoder frozen" if config.get("freeze_encoder") else "")


def _network(model: dict[str, Any]) -> str:
    patch = model.get("patch")
    kind = {"vit": "ViT", "resenc": "ResEnc"}.get(str(model.get("name")), "network")
    name = f"{kind}-{model['size']}" if model.get("size") else kind
    return f"{name} with {'×'.join(map(str, patch))} patches" if patch else name


def label_names(run: Run) -> dict[int, str]:
    """Names of label values: its store's if that is still there, else those of the run's classes of one value."""
    classes = run.classes or run.scored.get("classes") or {}
    names = {values[0]: name for name, values in classes.items() if len(values) == 1}
    path = Path(str(run.config.get("store", ""))) / "store.json"
    try:
        found = json.loads(path.read_text()).get("class_names") or {}
    except (OSError, ValueError):
        return names
    return names | {int(value): str(name) for value, name in found.items() if str(value).isdigit()}


def labelled(run: Run) -> int | None:
    """Labelled subjects that a run was fine-tuned on; None where that is not known or not asked."""
    count = run.summary.get("subjects") or run.config.get("labels")
    return int(count) if run.verb == "finetune" and count is not None else None


def changed_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings in which runs of one verb differ: (dotted key, value in each run)."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings if key not in {"out", "resume"}))
    rows = [(key, [_text(settings.get(key)) for settings in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for key, value in settings.items():
        result.extend(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)])
    return result


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
