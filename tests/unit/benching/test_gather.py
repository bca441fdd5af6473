"""Scores of seeds and folds put together, by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.unit.benching.bench_files import content

from prevox.benching.folder import Folder
from prevox.benching.gather import average, averaged, groups, versions
from prevox.benching.plan import plan
from prevox.config.bench import BenchFile
from prevox.reporting.folders import read_run

pytestmark = pytest.mark.unit


def scores(dice: dict[tuple[str, str], float]) -> pd.DataFrame:
    rows = [
        {
            "case": case,
            "subject": f"subject of {case}",
            "dataset": "folder name",
            "class": name,
            "dice": value,
            "hd95": 10 * value,
            "nsd": value,
            "asd": value,
            "reference_ml": 2.0,
            "prediction_ml": 3.0,
            "empty": "",
        }
        for (case, name), value in dice.items()
    ]
    return pd.DataFrame(rows)


def test_seeds_are_averaged_case_by_case_and_folds_are_put_together() -> None:
    one = scores({("a", "x"): 0.2, ("a", "y"): 0.4})
    other = scores({("a", "x"): 0.4, ("a", "y"): np.nan})
    fold = scores({("b", "x"): 0.9, ("b", "y"): 0.7})
    found = averaged([one, other, fold], "d").set_index(["case", "class"])
    assert found["dice"].to_dict() == pytest.approx(
        {("a", "x"): 0.3, ("a", "y"): 0.4, ("b", "x"): 0.9, ("b", "y"): 0.7}
    )
    assert found.loc[("a", "x"), "hd95"] == pytest.approx(3.0)
    assert set(found["dataset"]) == {"d"}
    assert found.loc[("b", "x"), "subject"] == "subject of b"


def test_cases_of_two_datasets_stay_apart() -> None:
    found = averaged([scores({("a", "x"): 0.2})], "d", prefix="d/")
    assert (found.loc[0, "case"], found.loc[0, "subject"]) == ("d/a", "d/subject of a")


def bench(**over) -> BenchFile:
    methods = {"scratch": {}, "voco": {"absent": "no"}}
    backbones = {"vit": content()["backbones"]["vit"]}
    datasets = {"a": {}, "b": {}, "unseen": {"role": "test"}}
    over = {"methods": methods, "backbones": backbones, "datasets": datasets, "seeds": [0, 1], **over}
    return BenchFile.parse(content(**over), "file")


def test_label_fractions_and_unseen_datasets_are_comparisons_of_their_own() -> None:
    file = bench(labels=[2, "all"], test_on={"a": ["unseen"]})
    found = groups(file, plan(file))
    assert {name: len(members) for name, members in found.items()} == {
        "labels-2": 2 * 2,  # datasets × seeds; what cannot be run is not there
        "labels-all": 2 * 2,
        "labels-2.on-unseen": 2,
        "labels-all.on-unseen": 2,
    }


def test_an_unseen_dataset_of_two_sources_is_not_pooled() -> None:
    """Its subjects would count twice: once after training on a, once after training on b."""
    file = bench(test_on={"a": ["unseen"], "b": ["unseen"]})
    found = groups(file, plan(file))
    assert {name: {cell.dataset for cell, _ in members} for name, members in found.items()} == {
        "labels-all": {"a", "b"},
        "labels-all.a-on-unseen": {"a"},
        "labels-all.b-on-unseen": {"b"},
    }


def test_an_arm_takes_part_only_with_all_its_seeds(tmp_path: Path) -> None:
    file = bench()
    cells = plan(file)
    folder = Folder(tmp_path)

    def finish(cell, dice: float) -> None:
        place = folder.run(cell) / "evaluation"
        place.mkdir(parents=True)
        scores({("case", "x"): dice}).to_parquet(place / "scores.parquet")
        summary = {"tolerance_mm": 1.0, "failed": [f"broken {cell.seed}"], "not_predicted": [], "trained_on": []}
        (place / "summary.json").write_text(json.dumps(summary))

    members = groups(file, cells)["labels-all"]
    runnable = [cell for cell, _ in members]
    for cell, dice in zip(runnable, (0.1, 0.5, 0.3), strict=False):  # one of four is missing
        finish(cell, dice)
    done = {cell.dataset for cell in runnable[:3]}
    arms, left_out = average(file, folder, members, "labels-all")
    (place,) = arms["scratch.vit"]
    whole = next(name for name in done if sum(cell.dataset == name for cell in runnable[:3]) == 2)
    assert place.name == whole
    own = [dice for cell, dice in zip(runnable, (0.1, 0.5, 0.3), strict=False) if cell.dataset == whole]
    table = pd.read_parquet(place / "scores.parquet")
    assert list(table["dice"]) == pytest.approx([np.mean(own)])
    assert list(table["case"]) == [f"{whole}/case"]
    assert json.loads((place / "summary.json").read_text())["failed"] == [f"{whole}/broken 0", f"{whole}/broken 1"]
    (reason,) = left_out
    assert "1 of 2 runs are not finished" in reason


def test_a_case_that_failed_with_one_seed_has_no_score(tmp_path: Path) -> None:
    file = bench()
    folder = Folder(tmp_path)
    members = [(cell, on) for cell, on in groups(file, plan(file))["labels-all"] if cell.dataset == "a"]
    for (cell, _), failed in zip(members, ([], ["odd"]), strict=True):
        place = folder.run(cell) / "evaluation"
        place.mkdir(parents=True)
        kept = {(case, "x"): 0.5 for case in ("even", "odd") if case not in failed}
        scores(kept).to_parquet(place / "scores.parquet")
        (place / "summary.json").write_text(json.dumps({"failed": failed}))
    arms, _ = average(file, folder, members, "labels-all")
    (place,) = arms["scratch.vit"]
    assert list(pd.read_parquet(place / "scores.parquet")["case"]) == ["even"]
    assert json.loads((place / "summary.json").read_text())["failed"] == ["odd"]


def test_versions_that_made_the_runs(tmp_path: Path) -> None:
    for name, made in (("one", {"prevox": "0.1.0", "git": "abc"}), ("two", {"prevox": "0.2.0"}), ("three", None)):
        (tmp_path / name).mkdir()
        if made:
            (tmp_path / name / "environment.json").write_text(json.dumps(made))
    assert versions([tmp_path / name for name in ("one", "two", "two", "three")]) == ["0.1.0 (abc)", "0.2.0"]


def write_cell(folder: Folder, cell, dice: float, steps: int = 5) -> None:
    """A finished cell with a mask, as `prevox evaluate` names it: relative to its table."""
    run = folder.run(cell)
    (run / "evaluation").mkdir(parents=True)
    (run / "predictions").mkdir()
    (run / "predictions" / "c1.nii.gz").write_bytes(b"")
    rows = [["c1", "../predictions/c1.nii.gz", "/elsewhere/c1.nii.gz", ""]]
    columns = ["case", "prediction", "reference", "image"]
    pd.DataFrame(rows, columns=columns).to_csv(run / "evaluation" / "cases.csv", index=False)
    scores({("c1", "x"): dice}).to_parquet(run / "evaluation" / "scores.parquet")
    (run / "evaluation" / "summary.json").write_text(json.dumps({"classes": {"x": [1]}, "tolerance_mm": 1.0}))
    labels = 3 if cell.labels == "all" else cell.labels
    (run / "summary.json").write_text(json.dumps({"finished": True, "subjects": labels}))
    config = {"verb": "finetune", "train": {"steps": steps, "seed": cell.seed}, "out": str(run)}
    (run / "config.yaml").write_text(json.dumps(config))
    (run / "environment.json").write_text(json.dumps({"prevox": f"0.{cell.seed}", "git": None}))


def test_the_masks_of_the_first_seed_stand_for_an_arm_and_may_be_moved_with_the_bench(tmp_path: Path) -> None:
    file = bench(datasets={"a": {}}, seeds=[4, 1])
    folder = Folder(tmp_path / "out")
    members = groups(file, plan(file))["labels-all"]
    for (cell, _), dice in zip(members, (0.2, 0.6), strict=True):
        write_cell(folder, cell, dice)
    arms, _ = average(file, folder, members, "labels-all")
    summary = json.loads((arms["scratch.vit"][0] / "summary.json").read_text())
    assert (summary["seeds"], summary["shown_seed"], summary["classes"]) == ([4, 1], 4, {"x": [1]})
    assert summary["settings"] == {"train.steps": 5, "train.seed": 4, "labels": 3}
    assert summary["versions"] == ["0.1", "0.4"]
    (tmp_path / "out").rename(tmp_path / "moved")
    place = tmp_path / "moved" / arms["scratch.vit"][0].relative_to(tmp_path / "out")
    files = read_run(place, "scratch.vit").files["c1"]
    (first,) = [cell for cell, _ in members if cell.seed == 4]
    assert files.prediction.resolve() == tmp_path / "moved" / "cells" / first.name / "predictions" / "c1.nii.gz"
    assert files.reference == Path("/elsewhere/c1.nii.gz")
    assert files.image is None


def test_an_evaluation_of_an_older_version_has_no_masks_to_show(tmp_path: Path) -> None:
    file = bench(datasets={"a": {}}, seeds=[0])
    folder = Folder(tmp_path / "out")
    ((cell, _),) = members = groups(file, plan(file))["labels-all"]
    write_cell(folder, cell, 0.5)
    (folder.run(cell) / "evaluation" / "cases.csv").unlink()
    arms, _ = average(file, folder, members, "labels-all")
    assert read_run(arms["scratch.vit"][0], "x").files == {}
