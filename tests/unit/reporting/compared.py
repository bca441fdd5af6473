"""Fabricated runs of one experiment, evaluated and with masks, for comparisons."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

HOSTILE = "<script>alert(1)</script>"
SHAPE = (20, 24, 16)


def write_case(folder: Path, number: int, runs: list[Path]) -> None:
    """A noisy scan with a box of label 1 and one of label 2; each run's mask is shifted by as much as its number."""
    rng = np.random.default_rng(number)
    image = rng.normal(100, 20, SHAPE).astype(np.float32)
    label = np.zeros(SHAPE, np.uint8)
    label[5:12, 6:14, 4:9] = 1
    label[5:12, 6:14, 9:12] = 2
    image[label > 0] += 60
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{name}{number}.nii.gz")
    for shift, run in enumerate(runs):
        (run / "predictions").mkdir(exist_ok=True)
        moved = np.roll(label, shift, axis=1)
        nib.save(nib.Nifti1Image(moved, np.eye(4)), run / "predictions" / f"{number}.nii.gz")


def make_runs(
    folder: Path,
    names: dict[str, str],
    cases: dict[str, str],
    dice: dict[str, list[float]],
    masks: bool = True,
) -> list[Path]:
    """Evaluated fine-tuning runs.

    Args:
        folder: For everything.
        names: Of each run the text of its config.yaml.
        cases: Case → subject.
        dice: Of each run the Dice of class organ by case; class rest is 0.1 lower.
        masks: Whether scans and masks are made too.
    """
    runs = [folder / name for name in names]
    for run, config in zip(runs, names.values(), strict=True):
        (run / "evaluation").mkdir(parents=True)
        (run / "config.yaml").write_text(config)
        (run / "classes.json").write_text(json.dumps({"organ": [1], "rest": [2]}))
        rows = [
            {
                **{"case": case, "subject": subject, "dataset": "set", "class": name, "dice": value - less},
                **{"hd95": 10 * (1 - value), "nsd": value, "asd": 1 - value},
                **{"reference_ml": 1.0, "prediction_ml": 1.0, "empty": ""},
            }
            for (case, subject), value in zip(cases.items(), dice[run.name], strict=True)
            for name, less in (("organ", 0.0), ("rest", 0.1))
        ]
        pd.DataFrame(rows).to_parquet(run / "evaluation" / "scores.parquet")
        pd.DataFrame(rows).to_csv(run / "evaluation" / "scores.csv", index=False)
        (run / "evaluation" / "summary.json").write_text(json.dumps({"tolerance_mm": 1.0}))
        with (run / "evaluation" / "cases.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case", "prediction", "reference", "image"])
            for number, case in enumerate(cases):
                where = (f"../predictions/{number}.nii.gz", folder / f"label{number}.nii.gz")
                writer.writerow([case, *where, folder / f"image{number}.nii.gz"])
    for number in range(len(cases) if masks else 0):
        write_case(folder, number, runs)
    return runs


CASES = {HOSTILE: "s1", "b": "s1", "c": "s2", "d": "s3", "e": "s4"}
DICE = {  # by hand: organ of each case; means over classes are 0.05 lower
    "scratch-5": [0.50, 0.60, 0.70, 0.80, 0.90],
    "scratch-20": [0.60, 0.70, 0.80, 0.90, 0.95],
    "mae-5": [0.65, 0.70, 0.40, 0.90, 0.95],
}


def make_experiment(folder: Path) -> list[Path]:
    """Two numbers of labels from scratch, one pre-trained; case c is the most disputed: 0.7, 0.8 and 0.4."""
    start = {"scratch": "encoder: {name: resenc}", "mae": "pretrained: runs/mae"}
    configs = {}
    for name in DICE:
        arm, labels = name.split("-")
        configs[name] = f"verb: finetune\n{start[arm]}\nlabels: {labels}\nout: {name}\n"
    return make_runs(folder, configs, CASES, DICE)
