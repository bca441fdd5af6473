"""The page about a comparison, against numbers by hand."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.unit.evaluation.made import evaluation
from tests.unit.reporting.compared import DICE, HOSTILE, make_experiment

from prevox.config.runs import CompareConfig, ReportConfig
from prevox.errors import ConfigError, RunError
from prevox.evaluation.compare import compare
from prevox.reporting import comparison_figures as figures
from prevox.reporting.comparison_folder import read_comparison
from prevox.reporting.comparison_page import choose, headline
from prevox.reporting.drawing import run_stroke
from prevox.reporting.report import report

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison of three runs, with its page."""
    root = tmp_path_factory.mktemp("comparison")
    runs = make_experiment(root)
    compare(CompareConfig(runs=runs, out=root / "out"))
    return root / "out"


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text()


def test_cases_are_kept_with_every_metric(folder):
    cases = pd.read_parquet(folder / "cases.parquet")
    assert len(cases) == 3 * 5 * 3  # runs, cases, two classes and their mean
    mean = cases[(cases["run"] == "mae-5") & (cases["class"] == "mean")].set_index("case")
    assert mean.loc["c", "dice"] == pytest.approx((0.4 + 0.3) / 2)
    assert mean.loc["c", "hd95"] == pytest.approx(6)
    assert mean.loc[HOSTILE, "subject"] == "s1"


def test_overview_says_what_on_what_how_well_and_how_sure(folder, page):
    first, second = headline(read_comparison(folder).found)
    assert first == "3 runs compared by Dice (higher is better) on the same cases: 5 cases of 4 subjects of set."
    # organ: (0.6 + 0.7 + 0.8 + 0.9 + 0.95) / 5 = 0.79, and the mean over classes is 0.05 lower
    assert second.startswith("scratch-20 has the best mean, 0.740 [")
    assert re.search(r"it is first in \d+ % of the bootstrap resamples", second)
    for text in (
        "mae-5 and scratch-5 cannot be told apart by these cases",
        "HD95 (mm)",
        "Rank stability, %",
    ):
        assert text in page


def test_runs_that_tie_share_the_lead(folder):
    found = read_comparison(folder).found
    tied = [entry | {"rank": 1.5} if entry["run"] != "mae-5" else entry for entry in found.ranks]
    assert headline(type(found)(**{**vars(found), "ranks": tied}))[1] == "scratch-5 and scratch-20 share the best mean."


def test_cases_worth_a_look(folder):
    cases = read_comparison(folder).cases
    # sums over runs: 1.75, 2.0, 1.9, 2.6, 2.8; ranges 0.15, 0.1, 0.4, 0.1, 0.05
    assert choose(cases, "dice") == {"e": "best", "b": "median", HOSTILE: "worst", "c": "most disputed"}
    # distances fall with Dice, so the same cases are best and worst
    assert choose(cases, "hd95") == {"e": "best", "b": "median", HOSTILE: "worst", "c": "most disputed"}


def test_every_figure_is_there_and_a_curve_over_labels_where_runs_differ_in_them(folder, page):
    headings = re.findall(r"<figcaption><strong>(.*?)</strong>", page)
    assert headings == [
        "Differences in Dice, paired",
        "Ranks when other subjects are drawn",
        "Dice over labelled subjects",
        "Dice of every case",
        "HD95 (mm) of every case",
        "NSD of every case",
        "ASD (mm) of every case",
    ]
    assert "labelled subjects (logarithmic)" in page


def test_scores_alone_make_a_page(tmp_path):
    """As scores that are put together from those of several runs: a Parquet file, no masks, no settings."""
    runs = tuple(
        evaluation(tmp_path / name, {"a_1": (dice,), "b_1": (0.8,), "c_1": (0.7,)}, classes=("organ",))
        for name, dice in (("x", 0.5), ("y", 0.6))
    )
    compare(CompareConfig(runs=runs, out=tmp_path / "out"))
    text = (tmp_path / "out" / "report.html").read_text()
    assert "cannot be shown" not in text
    assert 'id="viewer"' not in text
    assert "ASD (mm) of every case" in text


def test_a_curve_has_a_band_and_a_level_is_dashed():
    def point(line, x, run, mean):
        where = {"over": "pre-training steps", "line": line, "x": x, "runs": [run]}
        return where | {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}

    entries = [point("mae", 100.0, "mae-100", 0.6), point("mae", 400.0, "mae-400", 0.8), point("new", None, "new", 0.5)]
    (drawing,) = figures.curves(entries, "dice")
    (axes,) = drawing.figure.axes
    assert drawing.name == "curve dice over pre-training steps"
    assert axes.get_xlabel() == "pre-training steps (logarithmic)"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["100", "400"]
    mae, new = (line for line in axes.lines if line.get_linewidth() > 1)
    assert (list(mae.get_xdata()), list(mae.get_ydata())) == ([100, 400], [0.6, 0.8])
    assert (list(new.get_xdata()), list(new.get_ydata()), new.get_linestyle()) == ([100, 400], [0.5, 0.5], "--")
    band = axes.collections[0].get_paths()[0].vertices
    assert {(100.0, 0.5), (100.0, 0.7), (400.0, 0.7), (400.0, 0.9)} <= {(x, round(y, 9)) for x, y in band}


@pytest.mark.parametrize("arms", [2, 10])
def test_lines_differ_in_colour_and_their_names_lie_on_none_of_them(arms):
    where = {"over": "labelled subjects", "low": 0.1, "high": 0.9}
    entries = [
        where | {"line": f"arm {arm}", "x": x, "runs": [f"arm {arm} {seed} {x}" for seed in range(4)], "mean": 0.5}
        for arm in range(arms) for x in (10.0, 20.0)
    ]  # fmt: skip
    (drawing,) = figures.curves(entries, "dice")
    lines = [line for line in drawing.figure.axes[0].lines if line.get_linewidth() > 1]
    assert len(lines) == len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == arms
    assert {line.get_linestyle() for line in lines} == {"-"}
    (names,) = drawing.figure.legends
    assert [text.get_text() for text in names.get_texts()] == [f"arm {arm}" for arm in range(arms)]
    drawing.figure.draw_without_rendering()
    assert names.get_window_extent().y1 <= drawing.figure.axes[0].get_tightbbox().y0
    assert drawing.figure.bbox.contains(*names.get_window_extent().min)
    assert drawing.figure.bbox.contains(*names.get_window_extent().max)


def test_differences_are_drawn_by_subject():
    """Subject s1 has two cases: its dot is their mean."""
    cases = pd.DataFrame(
        [("set", c, s, run, value) for run in ("a", "b") for (c, s), value in zip(
            {"1": "s1", "2": "s1", "3": "s2"}.items(), {"a": (0.9, 0.7, 0.5), "b": (0.6, 0.6, 0.6)}[run], strict=True)],
        columns=["dataset", "case", "subject", "run", "dice"],
    )  # fmt: skip
    entry = {"dataset": "set", "run": "a", "other": "b", "mean": 0.1, "low": -0.1, "high": 0.3}
    strokes = {"a": run_stroke(0), "b": run_stroke(1)}
    (axes,) = figures.differences([entry], cases, "dice", strokes).figure.axes
    _, dots, interval, mean = axes.lines
    assert list(dots.get_xdata()) == pytest.approx([-0.1, 0.2])
    assert list(interval.get_xdata()) == [-0.1, 0.3]
    assert list(mean.get_xdata()) == [0.1]


def test_boxes_are_quartiles_and_whiskers_stop_before_outliers():
    cases = pd.DataFrame({"dataset": "set", "run": "a", "dice": [0.0, 0.5, 0.6, 0.7, 0.8]})
    (axes,) = figures.strips(cases, "dice", {"a": run_stroke(0)}).figure.axes
    (box,) = axes.patches
    assert (box.get_x(), box.get_width()) == pytest.approx((0.5, 0.2))
    whiskers, median, dots, mean = axes.lines
    assert list(whiskers.get_xdata()) == pytest.approx([0.5, 0.8])  # 0 lies more than 1.5 box widths below
    assert list(median.get_xdata()) == pytest.approx([0.6, 0.6])
    assert list(dots.get_xdata()) == pytest.approx([0.0, 0.5, 0.6, 0.7, 0.8])
    assert list(mean.get_xdata()) == pytest.approx([0.52])


def test_area_of_a_circle_is_the_share_of_a_place():
    entries = [
        {"run": "a", "rank": 2.0, "low": 1.0, "high": 2.0, "shares": [0.25, 0.75]},
        {"run": "b", "rank": 1.0, "low": 1.0, "high": 2.0, "shares": [0.75, 0.25]},
    ]
    (axes,) = figures.ranks(entries, {"a": run_stroke(0), "b": run_stroke(1)}, "all").figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "a"]  # the best on top
    first, second = (circles.get_sizes() for circles in axes.collections)
    assert first[0] / first[1] == pytest.approx(3)
    assert np.allclose(first, second[::-1])


def test_names_from_data_are_escaped(page):
    assert HOSTILE not in page
    assert page.count("<script") == 2
    data = json.loads(re.search(r'<script type="application/json" id="volumes">(.*?)</script>', page, re.DOTALL)[1])
    assert HOSTILE in [case["case"] for case in data["cases"]]
    assert [entry["run"] for entry in data["cases"][0]["predictions"]] == list(DICE)
    assert [label["name"] for label in data["labels"]] == ["organ", "rest"]


def test_equal_scores_give_an_equal_page(folder, page, tmp_path):
    again = report(ReportConfig(comparison=folder, out=tmp_path / "again.html"))
    assert again.read_text() == page


def test_figures_are_written_as_pdf_and_svg(folder, tmp_path):
    report(ReportConfig(comparison=folder, out=tmp_path / "page.html", figures=tmp_path / "figures"))
    stems = {"differences-dice", "ranks-all", "curve-dice-over-labelled-subjects"} | {
        f"cases-{m}" for m in ("dice", "hd95", "nsd", "asd")
    }
    files = sorted((tmp_path / "figures").iterdir())
    assert {file.name for file in files} == {f"{stem}.{end}" for stem in stems for end in ("pdf", "svg")}
    for file in files:
        assert file.read_bytes().startswith(b"%PDF-" if file.suffix == ".pdf" else b"<?xml")
    svg = (tmp_path / "figures" / "differences-dice.svg").read_text()
    assert "mae-5 − scratch-5" in svg  # text stays text
    assert "<image" not in svg  # nothing is pixels


def test_masks_that_moved_are_said_and_do_not_stop_the_page(tmp_path):
    runs = make_experiment(tmp_path)
    shutil.rmtree(runs[2] / "predictions")
    compare(CompareConfig(runs=runs, out=tmp_path / "out"))
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("is not in the viewer") == 4
    shutil.rmtree(runs[2])
    text = report(ReportConfig(comparison=tmp_path / "out")).read_text()
    assert "mae-5 cannot be shown." in text
    assert 'id="viewer"' in text  # with the masks of the other runs


def test_folders_that_are_no_comparison_are_refused(folder, tmp_path):
    with pytest.raises(RunError, match=r"holds no comparison\.json, so it is no comparison"):
        read_comparison(tmp_path)
    shutil.copytree(folder, tmp_path / "torn")
    (tmp_path / "torn" / "comparison.json").write_text("{}")
    with pytest.raises(RunError, match=r"torn: cannot be read as a comparison.*Repeat prevox compare"):
        read_comparison(tmp_path / "torn")
    (tmp_path / "torn" / "cases.parquet").unlink()
    shutil.copy(folder / "comparison.json", tmp_path / "torn")
    with pytest.raises(RunError, match=r"holds no cases\.parquet"):
        read_comparison(tmp_path / "torn")


def test_runs_or_a_comparison():
    for settings in ({}, {"runs": (Path("a"),), "comparison": Path("b")}):
        with pytest.raises(ConfigError, match="of --runs and --comparison"):
            ReportConfig.parse(settings, "settings")


def test_several_datasets_have_columns_of_their_own(tmp_path):
    runs = make_experiment(tmp_path)
    for run in runs:
        path = run / "evaluation" / "scores.parquet"
        table = pd.read_parquet(path)
        table.assign(dataset=table["case"].map(lambda case: "first" if case in ("b", "c") else "second")).to_parquet(
            path
        )
    compare(CompareConfig(runs=runs, out=tmp_path / "out"))
    text = (tmp_path / "out" / "report.html").read_text()
    # subject s1 has a case in both
    assert "on the same cases: 3 cases of 3 subjects of second and 2 cases of 2 subjects of first." in text
    assert "has the best average rank" in text or "share the best average rank" in text
    assert '<th scope="col" class="number">first</th>' in text


def test_scores_that_are_means_over_seeds_say_whose_masks_are_shown(tmp_path):
    """And that versions differ, where they do."""
    runs = make_experiment(tmp_path)
    for run in runs:
        path = run / "evaluation" / "summary.json"
        content = json.loads(path.read_text()) | {"seeds": [3, 5], "shown_seed": 3, "versions": ["0.1.0", "0.2.0"]}
        path.write_text(json.dumps(content))
    compare(CompareConfig(runs=runs, out=tmp_path / "out"))
    text = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert (
        "Scores are means over the seeds 3 and 5, also those beside the volumes; the masks are those of seed 3" in text
    )
    assert "made by different versions of Prevox (0.1.0, 0.2.0)" in text
    assert "mean over the seeds 3 and 5" in text
