"""From finished cells to a comparison: scores averaged over seeds, folds side by side, arms compared on the same cases.

Seeds are repetitions on the same cases, so a case's score is the mean over them; averaging first keeps the subject the
unit of every test. The folds of a cross-validation hold different cases, which are put one below the other.
Masks cannot be averaged: pictures show those of the first seed.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prevox.benching.cells import Cell
from prevox.benching.folder import Folder, read_json
from prevox.config.bench import BenchFile
from prevox.evaluation.run_settings import settings_of
from prevox.output import replacing

if TYPE_CHECKING:
    import pandas as pd

LISTS = ("failed", "not_predicted", "trained_on")


def groups(bench: BenchFile, cells: Sequence[Cell]) -> dict[str, list[tuple[Cell, str | None]]]:
    """What is compared with each other: cells of one label fraction, on held-out cases or on an unseen dataset.

    An unseen dataset of several sources gives a comparison for each of them: the same subjects, scored after training
    on A and on B, are no further subjects.

    Returns:
        Name of the comparison → cells, each with the unseen dataset that it was tested on (None: its held-out cases).
    """
    sources = Counter(name for names in bench.test_on.values() for name in names)
    found: dict[str, list[tuple[Cell, str | None]]] = {}
    for cell in cells:
        if cell.absent is not None:
            continue
        found.setdefault(f"labels-{cell.labels}", []).append((cell, None))
        for name in bench.test_on.get(cell.dataset, ()):
            source = f"{cell.dataset}-" if sources[name] > 1 else ""
            found.setdefault(f"labels-{cell.labels}.{source}on-{name}", []).append((cell, name))
    return found


def average(
    bench: BenchFile, folder: Folder, members: Sequence[tuple[Cell, str | None]], group: str
) -> tuple[dict[str, list[Path]], list[str]]:
    """Write the averaged scores of every arm of a comparison that has all its seeds and folds.

    Returns:
        Arm → evaluation folders, one for each dataset; and what is left out, in words.
    """
    parts: dict[tuple[str, str], list[tuple[Cell, str | None]]] = {}
    for cell, tested in members:
        parts.setdefault((cell.arm, cell.dataset), []).append((cell, tested))
    several = len({dataset for _, dataset in parts}) > 1
    arms: dict[str, list[Path]] = {}
    left_out = []
    for (arm, dataset), found in parts.items():
        places = [folder.run(cell) if on is None else folder.tested(cell, on) for cell, on in found]
        missing = [cell.name for (cell, _), place in zip(found, places, strict=True) if not _scored(place)]
        if missing:
            left_out.append(f"{arm} on {dataset}: {len(missing)} of {len(found)} runs are not finished ({missing[0]})")
            continue
        out = folder.out / "averaged" / group / arm.replace(" ", ".") / dataset
        label = dataset if found[0][1] is None else f"{dataset} to {found[0][1]}"
        _write(out, bench, found, places, label, prefix=f"{dataset}/" if several else "", folder=folder)
        arms.setdefault(arm, []).append(out)
    return arms, left_out


def _write(
    out: Path,
    bench: BenchFile,
    found: Sequence[tuple[Cell, str | None]],
    places: Sequence[Path],
    label: str,
    prefix: str,
    folder: Folder,
) -> None:
    """Write an arm's averaged scores, what is said of all its runs, and which masks stand for them in pictures."""
    import pandas as pd

    summaries = [read_json(place / "evaluation" / "summary.json") for place in places]
    runs = [folder.run(cell) for cell, _ in found]
    starts = {cell.pretraining.name: folder.run(cell.pretraining) for cell, _ in found if cell.pretraining}
    shown = bench.seeds[0]
    content: dict[str, Any] = {
        "tolerance_mm": summaries[0].get("tolerance_mm"),
        "classes": summaries[0].get("classes"),
        "seeds": list(bench.seeds),
        "shown_seed": shown,
        "settings": settings_of(runs[0]),
        "versions": versions([*runs, *starts.values()]),
    }
    for key in LISTS:
        ids = {str(case) for summary in summaries for case in summary.get(key) or []}
        content[key] = sorted(f"{prefix}{case}" for case in ids)
    table = averaged([_read(place) for place in places], label, prefix)
    table = table[~table["case"].isin(content["failed"])]  # one seed's score alone would hide the other's failure
    masks = [_masks(place, out, prefix) for (cell, _), place in zip(found, places, strict=True) if cell.seed == shown]
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "scores.parquet") as path:
        table.to_parquet(path, index=False)
    with replacing(out / "cases.csv") as path:
        pd.concat(masks).to_csv(path, index=False)
    with replacing(out / "summary.json") as path:
        path.write_text(json.dumps(content, indent=1))


def _masks(place: Path, out: Path, prefix: str) -> "pd.DataFrame":
    """Where the cases of an evaluation lie, as seen from `out`; empty where an older version has not said."""
    import pandas as pd

    evaluation = place / "evaluation"
    if not (evaluation / "cases.csv").is_file():
        return pd.DataFrame(columns=["case", "prediction", "reference", "image"])
    table = pd.read_csv(evaluation / "cases.csv", dtype=str, keep_default_na=False)

    def seen_from_out(text: str) -> str:
        beside = not Path(text).is_absolute() and (evaluation / text).exists()
        return os.path.relpath(evaluation / text, out) if beside else text

    moved = {key: table[key].map(seen_from_out) for key in ("prediction", "reference")}
    return table.assign(case=prefix + table["case"], **moved)


def averaged(tables: "Sequence[pd.DataFrame]", dataset: str, prefix: str = "") -> "pd.DataFrame":
    """One row per case and class: the mean over the runs that scored it.

    A class that is empty in reference and prediction of a case is not counted; where only some seeds have it so, the
    mean is over the others.

    Args:
        tables: Scores of `prevox evaluate`, of all seeds and folds.
        dataset: Name to give them.
        prefix: Put before cases and subjects, so that those of two datasets stay apart.
    """
    import pandas as pd

    rows = pd.concat(tables, ignore_index=True)
    means = dict.fromkeys(rows.select_dtypes("number").columns, "mean")
    found = rows.groupby(["case", "class"], sort=False, as_index=False).agg({"subject": "first", **means})
    found["case"], found["subject"] = prefix + found["case"].astype(str), prefix + found["subject"].astype(str)
    return found.assign(dataset=dataset)


def versions(runs: Sequence[Path]) -> list[str]:
    """Versions of Prevox that made these runs, with the revision where they came from a repository."""
    found = {
        (str(made.get("prevox")), made.get("git")) for run in runs if (made := read_json(run / "environment.json"))
    }
    return sorted(f"{version} ({git})" if git else version for version, git in found)


def _scored(place: Path) -> bool:
    return (place / "evaluation" / "summary.json").is_file()


def _read(place: Path) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_parquet(place / "evaluation" / "scores.parquet")
