"""Fabricated run folders: the files that the other verbs write, with numbers chosen by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

HOSTILE = "<script>alert(1)</script>"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def score(case: str, subject: str, name: str, dice: float | str) -> dict[str, Any]:
    volumes = {"reference_ml": 2.0, "prediction_ml": 2.5}
    return {
        "case": case,
        "subject": subject,
        "class": name,
        "dice": dice,
        "hd95": 3.25,
        "nsd": 0.9,
        "asd": 1.0,
    } | volumes


def write_run(path: Path, verb: str, config: str = "") -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"# all settings\nverb: {verb}\nstore: gone/store\n{config}")
    return path


def write_training(path: Path, verb: str) -> None:
    rows = [
        {"step": s, "loss": 2.0 / s, "lr": 1e-4, "samples_per_s": 3.0, "data_wait": 0.01} for s in range(10, 110, 10)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 110, "lo')
    summary = {"verb": verb, "steps": 100, "seconds": 754.0, "images": 7, "subjects": 5, "finished": True}
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "split.json").write_text(json.dumps({"train": list("abcdefg"), "validation": ["x", "y"]}))
    environment = {"command": f"prevox {verb} --out run", "packages": {"torch": "2.13.0"}, "gpu": None}
    (path / "environment.json").write_text(json.dumps(environment))


def write_scores(path: Path, dice: dict[str, tuple[str, float, float]]) -> None:
    """Case -> (subject, Dice of class one, Dice of class two)."""
    rows = [score(case, subject, "one", first) for case, (subject, first, _) in dice.items()]
    rows += [score(case, subject, "two", second) for case, (subject, _, second) in dice.items()]
    write_rows(path / "evaluation" / "scores.csv", rows)
    content = {"tolerance_mm": 1.0, "one_empty": 1, "both_empty": 0, "trained_on": [], "not_predicted": ["z"]}
    (path / "evaluation" / "summary.json").write_text(json.dumps(content))


def write_predictions(path: Path, cases: list[str]) -> None:
    """Labelled boxes in LPI order: a canonical slice must be found in spite of it. One voxel is 1 × 1 × 2 mm."""
    scans = path / "scans"
    scans.mkdir()
    (path / "predictions").mkdir()
    affine = np.diag([-1.0, -1.0, -2.0, 1.0])
    rows, evaluated = [], []
    for number, case in enumerate(cases):
        image = np.random.default_rng(number).normal(100, 10, (12, 16, 8)).astype(np.float32)
        label = np.zeros((12, 16, 8), np.uint8)
        label[2:6, 3:9, 2:4] = 1
        label[2:8, 3:11, 1] = 2  # 48 voxels: the largest slice
        for name, array in (("image", image), ("label", label)):
            nib.save(nib.Nifti1Image(array, affine), scans / f"{name}{number}.nii.gz")
        label[2:4] = 0
        nib.save(nib.Nifti1Image(label, affine), path / "predictions" / f"{number}.nii.gz")
        files = {"source": scans / f"image{number}.nii.gz", "label": scans / f"label{number}.nii.gz"}
        rows.append({"image": case, "file": f"{number}.nii.gz", **files, "seconds": 1.5})
        where = {"prediction": f"../predictions/{number}.nii.gz", "reference": files["label"], "image": files["source"]}
        evaluated.append({"case": case, **where})
    write_rows(path / "predictions" / "predictions.csv", rows)
    write_rows(path / "evaluation" / "cases.csv", evaluated)


DICE = {HOSTILE: ("s1", 0.5, 0.7), "b": ("s1", 0.6, 0.8), "c": ("s2", 0.7, 0.9), "d": ("s3", 0.8, 1.0)}


def make_full(folder: Path) -> Path:
    """A fine-tuning run with everything in it, and one case whose id is hostile."""
    path = write_run(folder / "seg", "finetune", "pretrained: runs/mae\nlabels: 3\noptim: {lr: 0.001}\n")
    write_training(path, "finetune")
    write_scores(path, DICE)
    write_predictions(path, list(DICE))
    (path / "classes.json").write_text(json.dumps({"one": [1], "two": [2]}))
    transfer = {"loaded": ["a.weight", "b.weight"], "adapted": {"positions": "interpolated"}, "missing": ["c.weight"]}
    (path / "transfer.json").write_text(json.dumps(transfer | {"unexpected": []}))
    return path


def make_other(folder: Path) -> Path:
    """The same cases, class by class 0.1 worse."""
    path = write_run(folder / "scratch", "finetune", "pretrained: runs/mae\nscratch: true\noptim: {lr: 0.002}\n")
    write_training(path, "finetune")
    write_scores(path, {case: (subject, one - 0.1, two - 0.1) for case, (subject, one, two) in DICE.items()})
    return path


def make_empty(folder: Path) -> Path:
    """A pre-training run that has just begun, with pictures of three steps."""
    from matplotlib.image import imsave

    path = write_run(folder / "mae", "pretrain", "method: {name: mae, mask_ratio: 0.75}\n")
    for step in (100, 200, 300):
        (path / "pictures" / f"step_{step:08d}").mkdir(parents=True)
        imsave(path / "pictures" / f"step_{step:08d}" / "reconstruction.png", np.full((4, 4), step), vmin=0, vmax=400)
    return path


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    return make_full(tmp_path)


@pytest.fixture
def other_run(tmp_path: Path) -> Path:
    return make_other(tmp_path)


@pytest.fixture
def empty_run(tmp_path: Path) -> Path:
    return make_empty(tmp_path)


@pytest.fixture
def arm_paths(tmp_path: Path) -> tuple[Path, ...]:
    """Two numbers of labels, each from scratch and pre-trained; the pre-trained arms have their own rate."""
    paths = []
    for labels, dice in (("null", 0.6), ("10", 0.4)):
        for arm, gain in (("scratch", 0.0), ("pretrained", 0.05)):
            name = f"{arm}-{'all' if labels == 'null' else labels}"
            start = f"pretrained: runs/mae\nscratch: {str(arm == 'scratch').lower()}\nout: {name}\n"
            lr = 0.001 if arm == "scratch" else 0.0005
            config = f"{start}labels: {labels}\noptim: {{lr: {lr}, name: adamw}}\n"
            path = write_run(tmp_path / name, "finetune", config)
            write_scores(path, {case: (case, dice + gain, dice + gain) for case in "abcd"})
            paths.append(path)
    return tuple(paths)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report about all three."""
    from prevox.config.runs import ReportConfig
    from prevox.reporting.report import report

    folder = tmp_path_factory.mktemp("report")
    runs = (make_full(folder), make_other(folder), make_empty(folder))
    return report(ReportConfig(runs=runs, title="A & B")).read_text()
