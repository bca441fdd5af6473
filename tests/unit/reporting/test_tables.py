import dataclasses
import math

import pandas as pd
import pytest

from prevox.errors import RunError
from prevox.evaluation.evaluate import summarise
from prevox.evaluation.statistics import Interval
from prevox.reporting import tables, wording
from prevox.reporting.folders import read_runs

pytestmark = pytest.mark.unit


def test_scores_are_means_over_cases_with_the_classes_mean_last(full_run):
    (run,) = read_runs((full_run,))
    rows = [row for row in tables.score_rows([run]) if row.metric == "Dice"]
    assert [row.class_name for row in rows] == ["one", "two", "mean of classes"]
    assert [row.cells[0].mean for row in rows] == pytest.approx([0.65, 0.85, 0.75])
    assert [row.cells[0].subjects for row in rows] == [3, 3, 3]
    assert [row.cells[0].cases for row in rows] == [4, 4, 4]


def test_scores_equal_the_summary_of_evaluate(full_run):
    (run,) = read_runs((full_run,))
    summary = summarise(run.scores.assign(empty="")).set_index(["class", "metric"])
    for row in tables.score_rows([run]):
        key = {"Dice": "dice", "HD95 (mm)": "hd95", "NSD": "nsd"}.get(row.metric)
        if key is not None:
            expected = summary.loc[("mean" if row.class_name == tables.MEAN else row.class_name, key)]
            assert (row.cells[0].low, row.cells[0].high) == pytest.approx((expected["low"], expected["high"]))


def test_class_that_is_not_counted_is_left_out_of_the_cases_mean(full_run):
    scores = full_run / "evaluation" / "scores.csv"
    table = pd.read_csv(scores)
    table.loc[(table["case"] == "d") & (table["class"] == "one"), "dice"] = math.nan
    table.to_csv(scores, index=False)
    (run,) = read_runs((full_run,))
    assert tables.mean_dice(run)["d"] == pytest.approx(1.0)


def test_class_names_that_look_like_numbers_or_gaps_stay_names(full_run):
    scores = full_run / "evaluation" / "scores.csv"
    scores.write_text(scores.read_text().replace(",one,", ",NA,").replace(",two,", ",1,"))
    (run,) = read_runs((full_run,))
    assert {row.class_name for row in tables.score_rows([run])} == {"NA", "1", "mean of classes"}


def test_volume_error_is_predicted_minus_reference(full_run):
    (run,) = read_runs((full_run,))
    volumes = [row for row in tables.score_rows([run]) if row.metric.startswith("Volume")]
    assert [row.cells[0].mean for row in volumes] == pytest.approx([0.5, 0.5])


def test_paired_difference_needs_exactly_the_same_cases(full_run, other_run):
    first, other = read_runs((full_run, other_run))
    assert tables.same_cases([first, other]) == [[first, other]]
    rows = {(row.metric, row.class_name): row.cells[0] for row in tables.difference_rows(first, [other])}
    assert rows["Dice", "one"].mean == pytest.approx(-0.1)
    assert (rows["Dice", "one"].low, rows["Dice", "one"].high) == pytest.approx((-0.1, -0.1))
    assert rows["NSD", "two"].mean == pytest.approx(0)
    other.scores = other.scores[other.scores["case"] != "d"]
    assert tables.same_cases([first, other]) == []


@pytest.mark.parametrize(
    ("interval", "signed", "expected"),
    [
        (Interval(0.8125, 0.79, 0.8312, 20, 30), False, ("0.812", "0.790 to 0.831")),
        (Interval(-0.01, -0.02, 0.005, 20, 30), True, ("−0.010", "−0.020 to +0.005")),
        (Interval(-0.0001, -0.02, 0.02, 20, 30), True, ("0.000", "−0.020 to +0.020")),
        (Interval(0.5, math.nan, math.nan, 1, 3), False, ("0.500", "no interval: one subject")),
        (Interval(math.nan, math.nan, math.nan, 0, 0), False, ("–", "")),
        (None, False, ("–", "")),
    ],
)
def test_cell(interval, signed, expected):
    assert tables.cell(interval, 3, signed) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (3.21, "3.2 s"), (59, "59 s"), (754.9, "12 min 34 s"), (7260, "2 h 1 min")]
)
def test_duration(seconds, text):
    assert wording.duration(seconds) == text


def test_settings_that_differ_are_named_once_each(full_run, other_run):
    runs = read_runs((full_run, other_run))
    changed = dict(tables.changed_settings(runs))
    assert changed == {"labels": ["3", "none"], "optim.lr": ["0.001", "0.002"], "scratch": ["none", "true"]}


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    for parent in "ab":
        (tmp_path / parent / "seg").mkdir(parents=True)
        (tmp_path / parent / "seg" / "config.yaml").write_text("verb: finetune\n")
    assert [run.name for run in read_runs((tmp_path / "a" / "seg", tmp_path / "b" / "seg"))] == ["a/seg", "b/seg"]


def test_missing_folder_and_folder_without_a_run_are_refused(tmp_path):
    with pytest.raises(RunError, match="absent: no such folder"):
        read_runs((tmp_path / "absent",))
    with pytest.raises(RunError, match=r"holds neither config\.yaml nor scores"):
        read_runs((tmp_path,))


def test_unreadable_scores_are_named(full_run):
    (full_run / "evaluation" / "scores.csv").write_text("case,dice\nx,high\n")
    with pytest.raises(RunError, match=r"scores\.csv: not the table that is expected"):
        read_runs((full_run,))


def named(comparisons):
    return [(first.name, [run.name for run in others]) for first, others in comparisons]


def test_pretrained_arms_are_compared_with_their_own_scratch_arm(arm_paths):
    arms = read_runs(arm_paths)
    expected = [("scratch-all", ["pretrained-all"]), ("scratch-10", ["pretrained-10"])]
    assert named(tables.comparisons(arms)) == expected
    said = " ".join(wording.headline(arms))
    assert "pretrained-10 minus scratch-10, case by case: +0.050" in said
    assert "pretrained-all minus scratch-all, case by case: +0.050" in said
    assert said.count("minus") == 2


def test_without_arms_all_are_compared_with_the_first(arm_paths):
    arms = read_runs(arm_paths)
    runs = [arms[1], arms[2]]  # differ in labels as well
    assert named(tables.comparisons(runs)) == [("pretrained-all", ["scratch-10"])]
    assert named(tables.comparisons([arms[1], arms[3]])) == [("pretrained-all", ["pretrained-10"])]
    assert tables.comparisons(arms[:1]) == []


def test_no_difference_of_nsd_at_different_tolerances(full_run, other_run):
    first, other = read_runs((full_run, other_run))
    assert any(row.metric == "NSD" for row in tables.difference_rows(first, [other]))
    other.scored["tolerance_mm"] = 2.0
    rows = tables.difference_rows(first, [other])
    assert not any(row.metric == "NSD" for row in rows)
    assert any(row.metric == "Dice" for row in rows)


def test_a_collapsed_teacher_is_warned_of_first(full_run):
    (run,) = read_runs((full_run,))
    assert "collapsed" not in " ".join(wording.headline([run]))
    rows = {"step": [5, 50, 60, 100], "progress": [0.05, 0.5, 0.6, 1.0], "collapse": [1.0, 0.0, 1.0, 0.0]}
    run = dataclasses.replace(run, metrics=pd.DataFrame(rows))
    warning = wording.headline([run])[0]
    assert warning.startswith(f"Warning: in 1 of 3 rows of the log, the last at step 60, {run.name} had collapsed")
