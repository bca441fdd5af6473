"""Classifications compared: against brute force, simulation and hand-made tables."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.evaluation.made import evaluation as masks

from prevox.config.runs import CompareConfig, EvaluateConfig, ReportConfig
from prevox.errors import ConfigError, DataError
from prevox.evaluation.cases import MEAN
from prevox.evaluation.class_comparison import exchange_p
from prevox.evaluation.classified import resampled_values
from prevox.evaluation.compare import compare
from prevox.evaluation.evaluate import evaluate
from prevox.evaluation.probability_tables import Classified
from prevox.evaluation.statistics import tail_share
from prevox.reporting.class_figures import binned, roc_points
from prevox.reporting.report import report

pytestmark = pytest.mark.unit


def classified(probabilities, truths, subjects):
    p, t = (np.asarray(values, float).reshape(len(subjects), -1) for values in (probabilities, truths))
    cases, classes = [f"c{n}" for n in range(len(p))], [f"k{k}" for k in range(p.shape[1])]
    return Classified(cases, [str(s) for s in subjects], classes, p, t, False, True, [], [])


def slow_auc(p, y):
    pairs = [(a > b) + (a == b) / 2 for a in p[y == 1] for b in p[y == 0]]
    return np.mean(pairs)


def slow_ranks(values):
    return np.array([np.mean([(v > w) + (v == w) / 2 for w in values]) for v in values])


def test_exchange_of_two_runs_against_every_pattern():
    """Five subjects of one to three cases: all 32 exchanges written out, AUC by pairs, ranks by counting."""
    rng = np.random.default_rng(3)
    subjects = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])
    y = np.array([1, 0, 1, 0, 0, 1, 0, 1, 0])
    first, second = rng.random(9) + 0.4 * y, rng.random(9)
    a, b = slow_ranks(first), slow_ranks(second)
    differences = []
    for pattern in itertools.product((False, True), repeat=5):
        swapped = np.array(pattern)[subjects]
        differences.append(slow_auc(np.where(swapped, b, a), y) - slow_auc(np.where(swapped, a, b), y))
    expected = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-9)
    runs = [classified(p / 2, y, subjects) for p in (first, second)]
    assert exchange_p(*runs, "auc") == pytest.approx(expected)
    assert exchange_p(*runs[::-1], "auc") == pytest.approx(expected)


def test_exchange_of_brier_scores_equals_the_sign_flip_test():
    """The Brier score is a mean over cases, so exchanging predictions flips the sign of a subject's sum."""
    rng = np.random.default_rng(4)
    y, first, second = rng.integers(0, 2, 7), rng.random(7), rng.random(7)
    d = (first - y) ** 2 - (second - y) ** 2
    sums = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=7)]
    found = exchange_p(classified(first, y, range(7)), classified(second, y, range(7)), "brier")
    assert found == pytest.approx(np.mean(np.array(sums) >= abs(d.sum()) - 1e-9))


def test_scales_of_runs_do_not_matter_to_auc():
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 30)
    first, second = classified(rng.random(30), y, range(30)), classified(rng.random(30), y, range(30))
    squeezed = classified(second.probabilities_NK[:, 0] ** 5 / 100, y, range(30))
    assert exchange_p(first, squeezed, "auc") == exchange_p(first, second, "auc")
    assert exchange_p(first, squeezed, "brier") != exchange_p(first, second, "brier")


def test_false_positives_of_the_exchange_are_at_the_nominal_level():
    """Two equally good runs, two classes, ten subjects of one to four cases that resemble each other."""
    rng, found = np.random.default_rng(6), []
    for _ in range(400):
        subjects = np.repeat(np.arange(10), rng.integers(1, 5, 10))
        y = rng.integers(0, 2, (len(subjects), 2))
        runs = []
        for _ in range(2):
            noise = rng.normal(0, 1, (10, 2))[subjects] + rng.normal(0, 0.5, y.shape)
            runs.append(classified(1 / (1 + np.exp(-(noise + y))), y, subjects))
        found.append(exchange_p(*runs, "auc"))
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.085  # 0.05 ± 3 standard errors of 0.011


def test_coverage_of_a_difference_in_auc_with_twenty_subjects_of_several_cases():
    """Two equally good runs, so the true difference is 0; the interval as in `compare`, with fewer resamples."""
    rng, hits, trials = np.random.default_rng(1), 0, 1000
    tail = tail_share(20, 0.95)
    for trial in range(trials):
        subjects = np.repeat(np.arange(20), rng.integers(2, 6, 20))
        y = rng.integers(0, 2, (len(subjects), 1))
        noise = rng.normal(0, 1, (2, 20, 1))[:, subjects] + rng.normal(0, 0.5, (2, *y.shape))
        runs = [classified(1 / (1 + np.exp(-(own + y))), y, subjects) for own in noise]
        first, second = (drawn[MEAN, "auc"] for _, drawn in resampled_values(runs, ["auc"], 300, trial))
        low, high = np.quantile(first - second, [tail, 1 - tail])
        hits += low <= 0 <= high
    assert 0.91 <= hits / trials <= 0.97


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_a_run_against_itself_is_never_told_apart(seed):
    rng = np.random.default_rng(seed)
    subjects, y = rng.integers(0, 6, 12), rng.integers(0, 2, 12)
    run = classified(rng.random(12), y, subjects)
    p = exchange_p(run, run, "auc")
    assert p == 1 or (np.isnan(p) and len({*y}) < 2) or len({*subjects}) < 2


def test_a_class_that_a_draw_leaves_without_positives_keeps_its_value_in_the_mean():
    """Class k1 has one positive subject of three: 8 of 27 draws miss it, and k0 is there in every draw."""
    y = np.array([[1, 1], [0, 0], [1, 0], [0, 0], [1, 0], [0, 0]])
    p = np.array([[0.9, 0.9], [0.1, 0.1], [0.9, 0.2], [0.1, 0.3], [0.9, 0.1], [0.1, 0.95]])
    run = classified(p, y, [0, 0, 1, 1, 2, 2])
    ((now, drawn),) = resampled_values([run], ["auc"], 4000, 0)
    assert now["k0", "auc"][0] == 1
    assert now["k1", "auc"][0] == pytest.approx(4 / 5)
    missing = np.isnan(drawn["k1", "auc"])
    assert missing.mean() == pytest.approx(8 / 27, abs=0.03)
    np.testing.assert_allclose(drawn[MEAN, "auc"][missing], (1 + 4 / 5) / 2)
    np.testing.assert_allclose(drawn[MEAN, "auc"][~missing], (1 + drawn["k1", "auc"][~missing]) / 2)


def test_a_copied_subject_narrows_no_interval_of_a_difference(tmp_path):
    """Every case five times under its subject's name: the same interval as once."""
    one = compared(tmp_path / "one", copies=1)
    many = compared(tmp_path / "many", copies=5)
    for key in ("mean", "low", "high", "subjects"):
        assert many.differences[-1][key] == pytest.approx(one.differences[-1][key]), key
    assert many.differences[-1]["cases"] == 5 * one.differences[-1]["cases"]


def write_tables(folder, copies=1, seed=7, strength=(2.0, 0.5)):
    """Two runs on 15 subjects of two cases, two findings; the second run knows less."""
    rng, rows = np.random.default_rng(seed), []
    for subject in range(15):
        for scan in range(2):
            y = rng.integers(0, 2, 2)
            p = [1 / (1 + np.exp(-(s * (2 * y - 1) + rng.normal(size=2)))) for s in strength]
            rows += [(f"{subject}-{scan}-{copy}", f"s{subject}", *y, *p[0], *p[1]) for copy in range(copies)]
    names = ["image", "subject", "nodule", "mass"]
    table = pd.DataFrame(rows, columns=[*names, "a", "b", "c", "d"])
    folder.mkdir(parents=True)
    table[names].to_csv(folder / "labels.csv", index=False)
    for run, columns in {"strong": ["a", "b"], "weak": ["c", "d"]}.items():
        own = table[["image", *columns]].set_axis(["image", "nodule", "mass"], axis=1)
        own.to_csv(folder / f"{run}.csv", index=False)
        score(folder, run)
    return table


def score(folder, run, references="labels.csv"):
    evaluate(EvaluateConfig(predictions=folder / f"{run}.csv", references=folder / references, out=folder / run))


def call(folder, **over):
    runs = (str(folder / "weak"), str(folder / "strong"))
    return compare(CompareConfig(**{"runs": runs, "out": folder / "out", **over}))


def compared(folder, copies):
    write_tables(folder, copies)
    return call(folder).comparison


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes") / "made"
    write_tables(root)
    call(root)
    return root


def test_classes_by_hand_and_the_same_numbers_as_evaluate(folder):
    content = json.loads((folder / "out" / "comparison.json").read_text())
    assert content["metric"] == "auc"
    means = {(e["run"], e["class"]): e for e in content["scores"]}
    labels = pd.read_csv(folder / "labels.csv")
    for run in ("weak", "strong"):
        p = pd.read_csv(folder / f"{run}.csv")
        for name in ("nodule", "mass"):
            expected = slow_auc(p[name].to_numpy(), labels[name].to_numpy())
            assert means[run, name]["mean"] == pytest.approx(expected)
            assert means[run, name]["positives"] == labels[name].sum()
        own = pd.read_csv(folder / run / "classification.csv").set_index(["class", "metric"])
        for name in ("nodule", "mass", "mean"):
            assert means[run, name]["low"] == pytest.approx(own.loc[(name, "auc"), "low"])
            assert means[run, name]["high"] == pytest.approx(own.loc[(name, "auc"), "high"])
    (entry,) = [e for e in content["differences"] if e["class"] == "mean"]
    assert entry["mean"] == pytest.approx(means["strong", "mean"]["mean"] - means["weak", "mean"]["mean"])
    assert entry["low"] > 0
    assert entry["permutation_p"] == entry["permutation_p_holm"] < 0.05
    assert content["verdicts"][0].startswith("strong is better than weak (strong minus weak +")
    assert [e["rank"] for e in content["ranks"]] == [2, 1, 2, 1]
    table = pd.read_parquet(folder / "out" / "comparison.parquet")
    assert set(table["metric"]) == {"auc"}


def test_tables_name_positives_and_have_no_median(folder):
    text = (folder / "out" / "tables.md").read_text()
    positives = int(pd.read_csv(folder / "labels.csv")["nodule"].sum())
    assert re.search(rf"\| nodule \| .* \| {positives} \| 30 \|", text)
    assert "median" not in text
    assert "Wilcoxon" not in text
    assert "exchanges what two runs said" in text


def test_the_page_has_roc_reliability_and_every_probability(folder):
    page = (folder / "out" / "report.html").read_text()
    headings = re.findall(r"<figcaption><strong>(.*?)</strong>", page)
    assert headings == [
        "Differences in AUC, paired",
        "Ranks when other subjects are drawn",
        "AUC by class",
        "ROC curves",
        "Reliability of the probabilities",
    ]
    assert page.count('<tr><th scope="row">0-0-0</th>') == 2  # both findings of the first case
    out = folder / "figures"
    report(ReportConfig(comparison=folder / "out", out=folder / "page.html", figures=out))
    assert {"differences-auc.pdf", "roc-by-class.pdf", "reliability.svg", "ranks-all.svg"} <= {
        p.name for p in out.iterdir()
    }


def test_a_report_of_classifications(folder):
    page = report(ReportConfig(runs=(folder / "strong", folder / "weak"), out=folder / "runs.html")).read_text()
    own = pd.read_csv(folder / "strong" / "classification.csv").set_index(["class", "metric"])
    mean = own.loc[("mean", "auc"), "value"]
    assert f"strong: AUC {mean:.3f} [" in page
    assert "Nothing is evaluated yet" not in page
    assert "probabilities of classes" in page
    for heading in ("ROC curves", "Reliability of the probabilities", "Calibration error", "Average precision"):
        assert heading in page


def test_errors_of_calibration_are_better_when_lower(folder):
    found = call(folder, metric="brier", out=folder / "brier").comparison
    assert [e["rank"] for e in found.ranks if e["dataset"] is None] == [2, 1]
    assert found.verdicts[0].startswith("strong is better than weak (strong minus weak −")
    none = call(folder, describe=True, out=folder / "described").comparison
    assert (none.differences, none.verdicts) == ([], [])


def test_a_metric_of_the_other_kind_and_a_mixture_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="metric: found dice; expected one of auc, average_precision, ece, brier"):
        call(folder, metric="dice")
    runs = tuple(str(masks(tmp_path / name, {"a_1": (0.5, 0.5)})) for name in ("x", "y"))
    with pytest.raises(ConfigError, match="metric: found auc; expected one of dice, hd95"):
        compare(CompareConfig(runs=runs, out=tmp_path / "out", metric="auc"))
    with pytest.raises(ConfigError, match=r"x does not; expected either of all|expected either of all"):
        compare(CompareConfig(runs=(runs[0], str(folder / "weak")), out=tmp_path / "out"))
    with pytest.raises(ConfigError, match="baseline: 'other' is none of the runs"):
        call(folder, baseline="other")
    assert not (tmp_path / "out").exists()


def altered(tmp_path, change):
    write_tables(tmp_path / "t")
    labels = pd.read_csv(tmp_path / "t" / "labels.csv")
    change(labels)
    labels.to_csv(tmp_path / "t" / "other.csv", index=False)
    score(tmp_path / "t", "strong", "other.csv")
    return tmp_path / "t"


def test_runs_must_agree_on_truth_and_subject_and_the_case_is_named(tmp_path):
    def truth(labels):
        labels.loc[4, "mass"] = 1 - labels.loc[4, "mass"]

    with pytest.raises(DataError, match=r"case 2-0-0: found mass: (yes|no) in run 'weak' and (yes|no) in run 'strong'"):
        call(altered(tmp_path / "truth", truth))

    def subject(labels):
        labels.loc[6, "subject"] = "nobody"

    with pytest.raises(DataError, match="case 3-0-0: found subject 's3' in run 'weak' and 'nobody' in run 'strong'"):
        call(altered(tmp_path / "subject", subject))

    def unknown(labels):
        labels["mass"] = labels["mass"].astype(float)
        labels.loc[0, "mass"] = np.nan

    with pytest.raises(DataError, match=r"mass: (yes|no) in run 'weak' and unknown in run 'strong'"):
        call(altered(tmp_path / "unknown", unknown))


def test_what_is_missing_is_accounted_for(tmp_path):
    write_tables(tmp_path / "t")
    fewer = pd.read_csv(tmp_path / "t" / "strong.csv").iloc[2:].drop(columns="mass")
    fewer.to_csv(tmp_path / "t" / "strong.csv", index=False)
    score(tmp_path / "t", "strong")
    found = call(tmp_path / "t").comparison
    assert found.left_out == {case: {"strong": "not predicted"} for case in ("0-0-0", "0-1-0")}
    assert found.datasets[0]["cases"] == 28
    assert found.datasets[0]["classes"] == ["nodule"]
    assert found.datasets[0]["classes_left_out"] == ["mass"]
    fewer.assign(image="x" + fewer["image"]).to_csv(tmp_path / "t" / "strong.csv", index=False)
    table = pd.read_parquet(tmp_path / "t" / "strong" / "classification.parquet")
    table.assign(case="x" + table["case"]).to_parquet(tmp_path / "t" / "strong" / "classification.parquet")
    with pytest.raises(DataError, match="no case that all of them have"):
        call(tmp_path / "t")
    pd.concat([table, table.head(1)]).to_parquet(tmp_path / "t" / "strong" / "classification.parquet")
    with pytest.raises(DataError, match="case 1-0-0: found class nodule twice in run 'strong'"):
        call(tmp_path / "t")
    table.drop(columns="probability").to_parquet(tmp_path / "t" / "strong" / "classification.parquet")
    with pytest.raises(DataError, match="a table that cannot be used"):
        call(tmp_path / "t")
    table.assign(probability=2.0).to_parquet(tmp_path / "t" / "strong" / "classification.parquet")
    with pytest.raises(DataError, match=r"case 1-0-0, .*found probability 2.0"):
        call(tmp_path / "t")


def test_a_class_without_positives_is_named_and_in_no_mean(tmp_path):
    write_tables(tmp_path / "t")
    labels = pd.read_csv(tmp_path / "t" / "labels.csv").assign(mass=0)
    labels.to_csv(tmp_path / "t" / "labels.csv", index=False)
    for run in ("weak", "strong"):
        score(tmp_path / "t", run)
    found = call(tmp_path / "t").comparison
    means = {(e["run"], e["class"]): e["mean"] for e in found.scores}
    assert means["weak", "mean"] == means["weak", "nodule"]
    assert np.isnan(means["weak", "mass"])
    assert "no AUC of mass: no positive" in (tmp_path / "t" / "out" / "tables.md").read_text()


def test_roc_by_hand():
    """Thresholds 0.9, 0.5 (a tie of a positive and a negative), 0.1: areas 0.25 · … sum to the AUC of 0.875."""
    x, y = roc_points(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    assert (list(x), list(y)) == ([0, 0, 0.5, 1], [0, 0.5, 1, 1])
    assert np.trapezoid(y, x) == pytest.approx(0.875)


def test_bins_of_the_reliability_by_hand():
    found = binned(np.array([0.0, 1 / 15, 0.1, 1.0]), np.array([0, 1, 0, 1]))
    assert found["cases"].tolist() == [1, 2, 1]
    assert found["positive"].tolist() == [0, 0.5, 1]
    assert found["probability"].tolist() == pytest.approx([0, (1 / 15 + 0.1) / 2, 1])
