"""Runs in words: how well and how sure, what to be careful of, what was trained, for how long."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prevox.evaluation.statistics import paired_difference
from prevox.reporting.folders import Run
from prevox.reporting.tables import cell, comparisons, mean_dice, mean_interval, subjects_of


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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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


def labelled(run: Run) -> int | None:
    """Labelled subjects that a run was fine-tuned on; None where that is not known or not asked."""
    count = run.summary.get("subjects") or run.config.get("labels")
    return int(count) if run.verb == "finetune" and count is not None else None


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
