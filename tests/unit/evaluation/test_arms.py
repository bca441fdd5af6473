"""Alignment of runs by case: what is common, what is accounted for, what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.unit.evaluation.made import evaluation

from prevox.errors import ConfigError, DataError, RunError
from prevox.evaluation.alignment import align
from prevox.evaluation.arms import read_arms
from prevox.evaluation.named import short_names

pytestmark = pytest.mark.unit
DICE = {"a_1": (0.8, 0.4), "a_2": (0.6, 0.2), "b_1": (1.0, 0.0)}


def aligned(*folders, metric="dice"):
    arms = read_arms([str(folder) for folder in folders], metric)
    return align(arms, metric)


def pair(tmp_path, first=DICE, second=DICE, left=None, right=None):
    a = evaluation(tmp_path / "a" / "evaluation", first, **(left or {}))
    b = evaluation(tmp_path / "b" / "evaluation", second, **(right or {}))
    return a, b


def test_runs_and_evaluation_folders_are_the_same(tmp_path):
    pair(tmp_path)
    arms = read_arms([str(tmp_path / "a"), str(tmp_path / "b" / "evaluation")], "dice")
    assert [arm.name for arm in arms] == ["a", "b"]
    pd.testing.assert_frame_equal(arms[0].scores, arms[1].scores)


def test_names(tmp_path):
    for folder in ("x/seg", "y/seg", "k=v"):
        evaluation(tmp_path / folder, DICE)
    given = [tmp_path / "x/seg", tmp_path / "y/seg", tmp_path / "k=v", f"mine={tmp_path / 'x/seg'}"]
    assert [arm.name for arm in read_arms([str(path) for path in given], "dice")][-1] == "mine"
    assert [arm.name for arm in read_arms([str(path) for path in given[:2]], "dice")] == ["x/seg", "y/seg"]
    assert [arm.name for arm in read_arms([str(given[0]), str(given[2])], "dice")] == ["seg", "k=v"]
    assert short_names((Path("/r"), Path("/r"))) == ["r (1)", "r (2)"]


def test_cases_are_matched_by_id_not_by_row(tmp_path):
    first = {case: DICE[case] for case in ("b_1", "a_1", "a_2")}
    second = {"a_2": (0.2, 0.4), "b_1": (0.1, 0.3), "a_1": (0.5, 0.7)}
    (dataset,) = aligned(*pair(tmp_path, first, second)).datasets
    assert dataset.cases == ["b_1", "a_1", "a_2"]  # the first run's order
    assert dataset.subjects == ["b", "a", "a"]
    assert dataset.classes == ["front", "back", "mean"]
    np.testing.assert_allclose(dataset.values[0], [[1.0, 0.1], [0.8, 0.5], [0.6, 0.2]])
    np.testing.assert_allclose(dataset.values[2], [[0.5, 0.2], [0.6, 0.6], [0.4, 0.3]])


def test_missing_cases_are_listed_with_their_reason(tmp_path):
    first = DICE | {"c_1": (1.0, 1.0), "d_1": (1.0, 1.0)}
    second = DICE | {"e_1": (1.0, 1.0)}
    right = {"failed": ["c_1", "f_1"], "not_predicted": ["d_1"]}
    found = aligned(*pair(tmp_path, first, second, right=right))
    assert found.datasets[0].cases == list(DICE)
    assert found.left_out == {
        "c_1": {"b": "failed"},
        "d_1": {"b": "not predicted"},
        "e_1": {"a": "not scored"},
        "f_1": {"a": "not scored", "b": "failed"},
    }


def test_no_common_case(tmp_path):
    with pytest.raises(DataError, match=r"no case that all of them have \(a: a_1, a_2, b_1; b: z_1\)"):
        aligned(*pair(tmp_path, second={"z_1": (1.0, 1.0)}))


def test_classes_that_not_every_run_has_are_left_out_of_the_mean(tmp_path):
    found = aligned(*pair(tmp_path, right={"classes": ("back", "extra")})).datasets[0]
    assert found.classes == ["back", "mean"]
    assert found.classes_left_out == ["extra", "front"]
    np.testing.assert_array_equal(found.values[0], found.values[1])
    with pytest.raises(DataError, match="no class that every run has"):
        aligned(*pair(tmp_path, right={"classes": ("other", "extra")}))


def test_uncounted_classes_leave_the_cases_mean(tmp_path):
    nan = float("nan")
    (dataset,) = aligned(*pair(tmp_path, second=DICE | {"a_1": (0.8, nan), "a_2": (nan, nan)})).datasets
    np.testing.assert_allclose(dataset.values[2], [[0.6, 0.8], [0.4, nan], [0.5, 0.5]])


def test_datasets_come_from_whoever_names_them(tmp_path):
    evaluation(tmp_path / "a1", DICE, dataset="liver")
    evaluation(tmp_path / "a2", {"c_1": (0.5, 0.5)}, dataset="spleen")
    evaluation(tmp_path / "old", DICE | {"c_1": (0.5, 0.5)})  # written before there was such a column
    found = aligned(f"a={tmp_path / 'a1'}", f"a={tmp_path / 'a2'}", tmp_path / "old")
    assert [(dataset.name, dataset.cases) for dataset in found.datasets] == [("liver", list(DICE)), ("spleen", ["c_1"])]
    assert aligned(*pair(tmp_path)).datasets[0].name == "unnamed"


def test_datasets_may_have_classes_of_their_own(tmp_path):
    for arm in "ab":
        evaluation(tmp_path / arm / "1", DICE, dataset="liver")
        evaluation(tmp_path / arm / "2", {"c_1": (0.5,)}, dataset="spleen", classes=("organ",))
    found = aligned(*(f"{arm}={tmp_path / arm / part}" for arm in "ab" for part in "12"))
    assert [dataset.classes for dataset in found.datasets] == [["front", "back", "mean"], ["organ", "mean"]]


def test_disagreements_name_the_case(tmp_path):
    with pytest.raises(DataError, match=r"^case a_1: found subject 'a' in run 'a' and 'z' in run 'b'"):
        aligned(*pair(tmp_path, right={"subject": "z"}))
    with pytest.raises(DataError, match=r"^case a_1: found dataset 'x' in run 'a' and 'y' in run 'b'"):
        aligned(*pair(tmp_path, left={"dataset": "x"}, right={"dataset": "y"}))
    with pytest.raises(DataError, match=r"^case a_1: found class front with 1 ml in the reference of 'a' and 2 ml"):
        aligned(*pair(tmp_path, right={"volume": 2.0}))
    assert aligned(*pair(tmp_path, left={"volume": 0.0}, right={"volume": 0.0})).datasets


def test_nsd_at_two_tolerances_is_not_comparable(tmp_path):
    folders = pair(tmp_path, right={"tolerance": 2.0})
    with pytest.raises(DataError, match=r"different tolerances \(a: 1 mm; b: 2 mm\).*--tolerance"):
        aligned(*folders, metric="nsd")
    assert aligned(*folders).datasets  # Dice has none


def test_doubles_name_the_case(tmp_path):
    a, b = pair(tmp_path)
    with pytest.raises(DataError, match=r"^case a_1: found it twice in run 'x'"):
        aligned(f"x={a}", f"x={b}", b)
    table = pd.read_parquet(a / "scores.parquet")
    pd.concat([table, table[2:3]]).to_parquet(a / "scores.parquet")
    with pytest.raises(DataError, match=r"^case a_2: found class front twice"):
        aligned(a, b)


def test_what_is_no_evaluation_is_refused(tmp_path):
    a, b = pair(tmp_path)
    with pytest.raises(ConfigError, match=r"found one run \(a\); expected at least two"):
        aligned(a)
    with pytest.raises(ConfigError, match=r"'=x' has no name; expected PATH or NAME=PATH"):
        aligned("=x", b)
    with pytest.raises(RunError, match="nowhere: no such folder"):
        aligned(a, tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(RunError, match=r"bare: holds no scores\. Make them with: prevox evaluate"):
        aligned(a, tmp_path / "bare")
    (tmp_path / "bare" / "classification.parquet").write_text("")
    with pytest.raises(RunError, match="bare: holds probabilities of classes"):
        aligned(a, tmp_path / "bare")
    pd.read_parquet(b / "scores.parquet").drop(columns=["subject", "dice"]).to_parquet(b / "scores.parquet")
    with pytest.raises(DataError, match="without subject, dice"):
        aligned(a, b)
    (b / "scores.parquet").write_text("case,dice")
    with pytest.raises(DataError, match="no table"):
        aligned(a, b)


def test_lesions_of_the_classes_that_have_them(tmp_path):
    """`front` is asked for; in b_1 it has no lesion in the reference. `back` is not asked for."""
    nan = float("nan")
    folders = pair(tmp_path)
    for folder in folders:
        with pytest.raises(DataError, match=r"without lesion_sensitivity.*with --lesions CLASS"):
            aligned(*folders, metric="lesion_sensitivity")
        table = pd.read_parquet(folder / "scores.parquet")
        table["lesion_sensitivity"] = [1.0, nan, 0.5, nan, nan, nan]
        table["lesion_false_positives"] = [0.0, nan, 2.0, nan, 3.0, nan]
        table.to_parquet(folder / "scores.parquet")
    found = aligned(*folders, metric="lesion_sensitivity").datasets[0]
    assert found.classes == ["front", "mean"]
    np.testing.assert_array_equal(found.values[0], [[1.0, 1.0], [0.5, 0.5], [nan, nan]])
    np.testing.assert_array_equal(aligned(*folders, metric="lesion_false_positives").datasets[0].values[1, 2], [3, 3])
    table["lesion_false_positives"] = nan
    table.to_parquet(folders[1] / "scores.parquet")
    with pytest.raises(DataError, match=r"without rows.*with --lesions CLASS"):
        aligned(*folders, metric="lesion_false_positives")


def test_torn_summary_and_class_called_mean(tmp_path):
    a, b = pair(tmp_path, right={"classes": ("front", "mean")})
    with pytest.raises(DataError, match="a class called 'mean'"):
        aligned(a, b)
    evaluation(b, DICE)
    (b / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json: found no valid JSON"):
        aligned(a, b)
    (b / "summary.json").write_text(json.dumps([]))
    assert aligned(a, b).datasets
    (b / "summary.json").unlink()
    assert aligned(a, b).datasets
