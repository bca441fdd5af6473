"""Evaluation folders made by hand."""

import json
from pathlib import Path

import pandas as pd


def evaluation(folder: Path, dice: dict[str, tuple[float, ...]], **settings) -> Path:
    """A folder as `prevox evaluate` writes it.

    Args:
        folder: Made if missing.
        dice: Case → Dice of each class; the case's subject is the part of its id before "_".
        settings: classes (names), dataset, tolerance, volume (of each class in the reference, ml), subject (of all
            cases), and keys of summary.json.
    """
    names = settings.pop("classes", ("front", "back"))
    dataset, volume = settings.pop("dataset", None), settings.pop("volume", 1.0)
    subject = settings.pop("subject", None)
    rows = [
        {
            **{"case": case, "subject": subject or case.partition("_")[0], "class": name, "dice": value},
            **{"hd95": 10 * (1 - value), "nsd": value, "asd": 1 - value, "reference_ml": volume, "prediction_ml": 1.0},
            "empty": "",
        }
        for case, values in dice.items()
        for name, value in zip(names, values, strict=True)
    ]
    table = pd.DataFrame(rows)
    if dataset is not None:
        table.insert(2, "dataset", dataset)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "scores.parquet")
    content = {"tolerance_mm": settings.pop("tolerance", 1.0)} | settings
    (folder / "summary.json").write_text(json.dumps(content))
    return folder
