"""The verb: hand-worked comparison, verdicts, files, and the subject as the unit."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from tests.unit.evaluation.made import evaluation

from prevox.config.runs import CompareConfig
from prevox.errors import ConfigError, DataError
from prevox.evaluation.alignment import align
from prevox.evaluation.arms import read_arms
from prevox.evaluation.compare import compare
from prevox.evaluation.comparison import compute, verdict

pytestmark = pytest.mark.unit
# subjects a to d; a has two cases. Differences better − worse by case: 0.1, 0.3, 0.1, 0.3, −0.1
WORSE = {"a_1": (0.5,), "a_2": (0.5,), "b_1": (0.6,), "c_1": (0.4,), "d_1": (0.9,)}
BETTER = {"a_1": (0.6,), "a_2": (0.8,), "b_1": (0.7,), "c_1": (0.7,), "d_1": (0.8,)}
ONE = {"classes": ("organ",)}


def many(seed, shift=0.0, subjects=20, cases=3):
    """Case → Dice; the hard part of a case is the same for every seed."""
    hard, own = np.random.default_rng(99), np.random.default_rng(seed)
    return {
        f"s{subject}_{case}": tuple(0.6 + shift + 0.1 * hard.normal(size=2) + 0.02 * own.normal(size=2))
        for subject in range(subjects)
        for case in range(cases)
    }


def run(tmp_path, runs, **settings):
    out = tmp_path / "out"
    return compare(CompareConfig(runs=runs, out=settings.pop("out", out), **settings))


def two(tmp_path, worse=WORSE, better=BETTER, **settings):
    settings = settings or ONE
    return evaluation(tmp_path / "worse", worse, **settings), evaluation(tmp_path / "better", better, **settings)


def difference(comparison, run, other, class_name="mean"):
    (found,) = [
        e for e in comparison.differences if (e["run"], e["other"], e["class"]) == (run, other, class_name)
    ]  # fmt: skip
    return found


def test_by_hand(tmp_path):
    comparison = run(tmp_path, two(tmp_path)).comparison
    found = difference(comparison, "better", "worse")
    assert (found["cases"], found["subjects"]) == (5, 4)
    assert found["mean"] == pytest.approx(0.7 / 5)  # over cases
    # one difference a subject: 0.2, 0.1, 0.3, −0.1; sum 0.5; of 16 patterns |sum| ≥ 0.5 in those without 0.1 on the
    # other side or with one of the two 0.1 there: 2 · 3
    assert found["permutation_p"] == pytest.approx(6 / 16)
    mean, spread = 0.125, np.sqrt((0.075**2 + 0.025**2 + 0.175**2 + 0.225**2) / 3)
    assert found["cohens_d"] == pytest.approx(mean / spread)
    assert found["rank_biserial"] == pytest.approx((3 + 1.5 + 4 - 1.5) / 10)
    assert found["permutation_p_holm"] == found["permutation_p"]  # one test
    ranks = {(e["dataset"], e["run"]): e["rank"] for e in comparison.ranks}
    assert ranks == {("unnamed", "worse"): 2, ("unnamed", "better"): 1, (None, "worse"): 2, (None, "better"): 1}
    (score,) = [e for e in comparison.scores if (e["run"], e["class"]) == ("better", "organ")]
    assert (score["mean"], score["median"]) == (pytest.approx(3.6 / 5), pytest.approx(0.7))


def test_distances_are_better_when_small(tmp_path):
    runs = two(tmp_path, many(0), many(1, shift=0.1), classes=("x", "y"))
    comparison = run(tmp_path, runs, metric="hd95").comparison
    assert difference(comparison, "better", "worse")["mean"] < 0
    assert comparison.verdicts[0].startswith("better is better than worse (better minus worse −0.9")
    assert comparison.verdicts[0].endswith("mm HD95, p < 0.001 by permutation).")
    assert next(e["rank"] for e in comparison.ranks if e["run"] == "better") == 1


def test_fewer_false_positives_and_smaller_volume_errors_are_better(tmp_path):
    runs = two(tmp_path, many(0), many(1, shift=0.1), classes=("x", "y"))
    for folder in runs:
        table = pd.read_parquet(folder / "scores.parquet")
        values = {"lesion_false_positives": 10 * (1 - table["dice"]), "lesion_sensitivity": table["dice"]}
        table.assign(**values, ravd=1 - table["dice"]).to_parquet(folder / "scores.parquet")
    for metric, said in (
        ("lesion_false_positives", "false-positive lesions"), ("lesion_sensitivity", "lesion sensitivity"),
        ("ravd", "RAVD"),
    ):  # fmt: skip
        (verdict_,) = run(tmp_path, runs, metric=metric).comparison.verdicts
        assert verdict_.startswith("better is better than worse")
        assert f"{said}, p < 0.001" in verdict_


def test_nsd_is_named_with_its_tolerance(tmp_path):
    result = run(tmp_path, two(tmp_path, **ONE, tolerance=2.5), metric="nsd")
    assert "## NSD at 2.5 mm by run" in (result.path / "tables.md").read_text()
    assert json.loads((result.path / "comparison.json").read_text())["tolerance_mm"] == 2.5
    assert run(tmp_path, two(tmp_path)).comparison.tolerance_mm is None


def test_a_dataset_of_one_subject_does_not_count_for_holm(tmp_path):
    for name, shift in (("a", 0.0), ("b", 0.05)):
        evaluation(tmp_path / name / "1", many(0, shift), dataset="liver")
        evaluation(tmp_path / name / "2", {"x_1": (0.5, 0.5)}, dataset="spleen")
    comparison = run(tmp_path, [f"{name}={tmp_path / name / part}" for name in "ab" for part in "12"]).comparison
    liver = next(e for e in comparison.differences if (e["dataset"], e["class"]) == ("liver", "mean"))
    assert liver["permutation_p_holm"] == liver["permutation_p"]
    assert "Holm" not in comparison.verdicts[0]
    assert comparison.verdicts[1] == "spleen: one subject says nothing about b and a."


def test_a_run_cannot_be_told_apart_from_itself(tmp_path, capsys):
    runs = two(tmp_path, many(0), many(0), classes=("x", "y"))
    comparison = run(tmp_path, runs).comparison
    found = difference(comparison, "better", "worse")
    assert [found[key] for key in ("mean", "low", "high", "cohens_d", "rank_biserial")] == [0] * 5
    assert [found[key] for key in ("wilcoxon_p", "permutation_p")] == [1, 1]
    assert comparison.verdicts == [
        "better and worse cannot be told apart by these cases (better minus worse 0.000 [0.000, 0.000] Dice)."
    ]
    assert [e["rank"] for e in comparison.ranks] == [1.5] * 4
    assert "better and worse cannot be told apart by these cases" in " ".join(capsys.readouterr().out.split())


def test_what_the_test_does_not_bear_out_is_said(tmp_path):
    """Four subjects: the interval excludes 0, but no p can be below 2 / 2⁴."""
    worse = {f"s{i}_1": (0.5,) for i in range(4)}
    better = {f"s{i}_1": (0.6 + i / 100,) for i in range(4)}
    (said,) = run(tmp_path, two(tmp_path, worse, better)).comparison.verdicts
    assert said.startswith("better is ahead of worse by its interval, but the test does not bear it out")
    assert said.endswith("p = 0.125 by permutation; with 4 subjects it cannot be smaller than 0.125).")


def test_one_subject_says_nothing(tmp_path):
    comparison = run(tmp_path, two(tmp_path, {"a_1": (0.5,)}, {"a_1": (0.9,)})).comparison
    assert comparison.verdicts == ["one subject says nothing about better and worse."]
    assert np.isnan(difference(comparison, "better", "worse")["wilcoxon_p_holm"])
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["differences"][0]["low"] is None


def test_verdict_agrees_with_interval_and_test():
    entry = {"dataset": "d", "run": "a", "other": "b", "mean": 0.02, "low": 0.01, "high": 0.03, "subjects": 9}
    entry["permutation_p_holm"] = 0.012
    assert verdict(entry, "dice", 3, True) == (
        "d: a is better than b (a minus b +0.020 [+0.010, +0.030] Dice, p = 0.012 by permutation after Holm's "
        "correction for 3 tests)."
    )
    assert verdict(entry, "asd", 1).startswith("b is better than a")
    assert "cannot be told apart" in verdict(entry | {"low": -0.01}, "dice", 1)


def test_pairs_baseline_and_family(tmp_path):
    runs = [evaluation(tmp_path / name, many(i, 0.004 * i)) for i, name in enumerate(("a", "b", "c"))]
    every = run(tmp_path, runs).comparison
    tested = [e for e in every.differences if e["class"] == "mean"]
    assert [(e["run"], e["other"]) for e in tested] == [("b", "a"), ("c", "a"), ("c", "b")]
    smallest = min(tested, key=lambda e: e["wilcoxon_p"])
    assert smallest["wilcoxon_p_holm"] == pytest.approx(min(1, 3 * smallest["wilcoxon_p"]))
    based = run(tmp_path, runs, baseline="b").comparison
    assert [(e["run"], e["other"]) for e in based.differences if e["class"] == "mean"] == [("a", "b"), ("c", "b")]
    with pytest.raises(ConfigError, match=r"baseline: 'd' is none of the runs; expected one of a, b, c"):
        run(tmp_path, runs, baseline="d")


def test_a_duplicated_subject_changes_no_test_and_narrows_no_interval(tmp_path):
    """The same scores once more are no new information, be they of one subject or of all."""
    first, second = many(0), many(1, 0.005)

    def found(who=None):
        def copied(table):
            own = {case: values for case, values in table.items() if who and case.startswith(who)}
            return table | {f"{case}_copy": values for case, values in own.items()}

        runs = [str(path) for path in two(tmp_path, copied(first), copied(second), classes=("x", "y"))]
        arms = read_arms(runs, "dice")
        return difference(compute(align(arms, "dice"), arms, "dice"), "better", "worse")

    once, every, each = found(), found("s"), [found(f"s{subject}_") for subject in range(20)]
    for key in ("wilcoxon_p", "permutation_p", "cohens_d", "rank_biserial", "subjects"):
        assert [entry[key] for entry in (every, *each)] == pytest.approx([once[key]] * 21)
    width = once["high"] - once["low"]
    assert every["high"] - every["low"] == pytest.approx(width)
    # one by one the weights of the mean over cases move a little
    assert np.mean([entry["high"] - entry["low"] for entry in each]) >= width


def test_datasets_are_ranked_apart_and_averaged(tmp_path):
    for name, shifts in {"a": (0.0, 0.05), "b": (0.05, 0.0), "c": (0.1, 0.1)}.items():
        evaluation(tmp_path / name / "1", many(0, shifts[0]), dataset="liver")
        other = {f"x{case}": values for case, values in many(1, shifts[1]).items()}
        evaluation(tmp_path / name / "2", other, dataset="spleen")
    runs = [f"{name}={tmp_path / name / part}" for name in "abc" for part in "12"]
    comparison = run(tmp_path, runs).comparison
    ranks = {(e["dataset"], e["run"]): e["rank"] for e in comparison.ranks}
    assert [ranks["liver", name] for name in "abc"] == [3, 2, 1]
    assert [ranks["spleen", name] for name in "abc"] == [2, 3, 1]
    assert [ranks[None, name] for name in "abc"] == [2.5, 2.5, 1]
    assert comparison.verdicts[0].startswith("liver: b is better than a")
    assert len(comparison.verdicts) == 6


def test_files_agree_with_each_other(tmp_path):
    runs = two(tmp_path, many(0) | {"only_1": (1.0, 1.0)}, many(1, 0.01), classes=("x", "y"))
    result = run(tmp_path, runs)
    content = json.loads((result.path / "comparison.json").read_text())
    assert (content["schema"], content["metric"], content["higher_is_better"]) == (1, "dice", True)
    assert content["left_out"] == {"only_1": {"better": "not scored"}}
    assert content["datasets"][0] | {"not_counted": 0} == {
        **{"name": "unnamed", "cases": 60, "subjects": 20, "classes": ["x", "y"]},
        **{"classes_left_out": [], "not_counted": 0},
    }
    table = pd.read_parquet(result.path / "comparison.parquet")
    pd.testing.assert_frame_equal(table, result.table)
    index = table.set_index(["class", "run", "quantity"])
    (found,) = [e for e in content["differences"] if e["class"] == "mean"]
    for key in ("wilcoxon_p", "permutation_p_holm", "cohens_d", "rank_biserial"):
        assert index.loc[("mean", "better", key), "value"].item() == found[key]
    assert index.loc[("mean", "better", "difference"), "low"].item() == found["low"]
    assert len(table[table["quantity"] == "average_rank_share"]) == 4
    page = (result.path / "tables.md").read_text()
    assert content["verdicts"][0].replace("<", "\\<") in page
    assert "only\\_1 (better: not scored)" in page
    for heading in ("Dice by run", "Differences in Dice", "Ranks", "Rank stability, %", "Dice by class"):
        assert f"## {heading}" in page


def test_every_table_row_has_as_many_cells_as_its_heading_whatever_the_names(tmp_path):
    """Names that mean something to Markdown, LaTeX or the console must not."""
    evil = ["a|b", "100% & $x_1$ {y}~^\\", "[red]new\nline[/red]"]
    classes = ("mean_|_x", "b*&")
    for number, _ in enumerate(evil):
        evaluation(tmp_path / str(number), many(number), classes=classes, dataset="d#_1")
    result = run(tmp_path, [f"{name}={tmp_path / str(number)}" for number, name in enumerate(evil)])
    for block in (result.path / "tables.md").read_text().split("\n\n"):
        if block.startswith("| "):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(counts) == 1
    page = (result.path / "tables.tex").read_text()
    for block in page.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{(l+)\}", block)[1])
        rows = [line for line in block.split(r"\end{tabular}")[0].splitlines() if line.endswith(r" \\")]
        assert rows
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}
        assert r"100\% \& \$x\_1\$ \{y\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in block or "$|$" in block
    assert not re.search(r"(?<!\\)[%#_]", page.partition("\n")[2])
    assert "−" not in page


def test_failed_and_trained_on_are_warned_about(tmp_path, capsys):
    evaluation(tmp_path / "a", BETTER | {"z_1": (1.0,)}, **ONE)
    evaluation(tmp_path / "b", WORSE, **ONE, failed=["z_1"], trained_on=["a_1", "gone"])
    run(tmp_path, [tmp_path / "a", tmp_path / "b"])
    said = " ".join(capsys.readouterr().out.split())
    assert "b could not segment 1 cases" in said
    assert "z_1 (b: failed)" in said
    assert "b was trained on 1 of the compared cases" in said


def test_uncounted_cases_are_named_and_the_same_for_every_run(tmp_path):
    nan = float("nan")
    runs = two(tmp_path, WORSE | {"d_1": (nan,)}, BETTER)
    comparison = run(tmp_path, runs).comparison
    assert comparison.datasets[0]["not_counted"] == {"organ": ["d_1"], "mean": ["d_1"]}
    assert {e["cases"] for e in comparison.scores} == {4}
    assert next(e["mean"] for e in comparison.scores if e["run"] == "better") == pytest.approx(0.7)
    assert "d\\_1" in (tmp_path / "out" / "tables.md").read_text()
    with pytest.raises(DataError, match="no case that is counted in every run"):
        run(tmp_path, two(tmp_path, dict.fromkeys(WORSE, (nan,)), BETTER))


def test_equal_input_gives_equal_output(tmp_path):
    runs = two(tmp_path, many(0), many(1), classes=("x", "y"))
    run(tmp_path, runs)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    run(tmp_path, runs)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    assert set(first) == {
        *("comparison.json", "comparison.parquet", "cases.parquet"),
        *("tables.md", "tables.tex", "report.html"),
    }


def test_order_of_the_runs_turns_differences_only(tmp_path):
    folders = [str(folder) for folder in two(tmp_path)]
    ways = []
    for runs in (folders, folders[::-1]):
        arms = read_arms(runs, "dice")
        ways.append(compute(align(arms, "dice"), arms, "dice"))
    a, b = difference(ways[0], "better", "worse"), difference(ways[1], "worse", "better")
    assert a["mean"] == pytest.approx(-b["mean"])
    assert a["permutation_p"] == b["permutation_p"]
    assert a["rank_biserial"] == pytest.approx(-b["rank_biserial"])
