"""Classification through the verb: tables that are aligned or refused, the summary, its intervals and files."""

import json

import numpy as np
import pandas as pd
import pytest

from prevox.config.runs import EvaluateConfig
from prevox.errors import ConfigError, DataError, RunError
from prevox.evaluation.classified import summarise
from prevox.evaluation.evaluate import evaluate
from prevox.evaluation.probability_tables import Classified, read_classified

pytestmark = pytest.mark.unit


@pytest.fixture
def tables(tmp_path):
    """Five pictures of three patients: `nodule` known in four, `mass` never there; one not predicted, one unknown."""
    (tmp_path / "labels.csv").write_text(
        "image,patient_id,nodule,mass,hernia\n"
        "f.png,p3,1,0,0\na.png,p1,1,0,0\nb.png,p1,0,0,0\nc.png,p2,1,0,1\nd.png,p3,0,0,0\ne.png,p3,,0,0\n"
    )
    (tmp_path / "probs.csv").write_text(
        "case,mass,nodule,seconds\nd,0.0,0.6,9\na,0.1,0.9,9\nb,0.0,0.2,9\nc,0.3,0.6,9\ne,0.2,0.5,9\nz,0.2,0.5,9\n"
    )
    return tmp_path


@pytest.fixture
def exclusive(tmp_path):
    (tmp_path / "labels.csv").write_text("case,subject,class\na,s,cat\nb,t,dog\nc,u,cow\nd,u,cat\n")
    (tmp_path / "probs.csv").write_text(
        "case,cat,dog,cow\na,0.7,0.2,0.1\nb,0.5,0.3,0.2\nc,0.1,0.1,0.8\nd,0.4,0.3,0.3\n"
    )
    return tmp_path


def run_on(folder, **settings):
    return evaluate(
        EvaluateConfig(
            **(
                {"predictions": folder / "probs.csv", "references": folder / "labels.csv", "out": folder / "o"}
                | settings
            )
        )
    )


def value(summary, name, metric, column="value"):
    return summary.set_index(["class", "metric"]).loc[(name, metric), column]


def test_multi_label_by_hand(tables, capsys):
    result = run_on(tables)
    # nodule: positives 0.9 and 0.6, negatives 0.2 and 0.6: of 4 pairs 3 are won, one is a tie
    assert value(result.summary, "nodule", "auc") == pytest.approx(3.5 / 4)
    assert value(result.summary, "nodule", "average_precision") == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert value(result.summary, "nodule", "brier") == pytest.approx((0.01 + 0.04 + 0.16 + 0.36) / 4)
    # every value in a bin of its own but the two of 0.6: |½ − 0.6|
    assert value(result.summary, "nodule", "ece") == pytest.approx((0.1 + 0.2 + 2 * 0.1) / 4)
    counts = [value(result.summary, "nodule", "auc", c) for c in ("cases", "subjects", "positives")]
    assert counts == [4, 3, 2]
    assert np.isnan(value(result.summary, "mass", "auc"))
    assert value(result.summary, "mass", "brier") == pytest.approx((0.01 + 0.09 + 0.04) / 5)
    assert value(result.summary, "mean", "auc") == pytest.approx(3.5 / 4)  # of the only class that has one
    brier = [value(result.summary, name, "brier") for name in ("mass", "nodule", "mean")]
    assert brier[2] == pytest.approx(np.mean(brier[:2]))
    assert set(result.summary["class"]) == {"mass", "nodule", "mean"}
    said = " ".join(capsys.readouterr().out.split())
    assert "5 cases of 3 subjects" in said
    assert "not predicted: 1 (f)" in said
    assert "1 predictions have no reference: z" in said
    assert "no AUC and no average precision, not counted in their mean: mass (no positive)" in said


def test_files(tables):
    result = run_on(tables)
    assert result.path == tables / "o"
    pd.testing.assert_frame_equal(pd.read_parquet(result.path / "classification.parquet"), result.scores)
    rows = result.scores.set_index(["case", "class"])
    assert rows.loc[("c", "mass")].tolist() == ["p2", 0.3, 0.0]
    assert np.isnan(rows.loc[("e", "nodule"), "reference"])
    content = json.loads((result.path / "classification.json").read_text())
    assert (content["cases"], content["subjects"], content["classes_exclusive"]) == (5, 3, False)
    assert (content["not_predicted"], content["without_reference"]) == (["f"], ["z"])
    assert content["undefined"] == {"mass": "no positive"}
    assert content["summary"][0]["class"] == "mass"
    assert content["summary"][0]["value"] is None
    assert run_on(tables, out=None).path == tables / "evaluation"
    assert not (tables / "evaluation" / "scores.parquet").exists()


def test_exclusive_classes_by_hand(exclusive):
    summary = run_on(exclusive).summary
    assert value(summary, "all", "accuracy") == pytest.approx(3 / 4)  # b is taken for a cat
    squares = [0.3**2 + 0.2**2 + 0.1**2, 0.5**2 + 0.7**2 + 0.2**2, 0.1**2 + 0.1**2 + 0.2**2, 0.6**2 + 0.3**2 + 0.3**2]
    assert value(summary, "all", "brier") == pytest.approx(np.mean(squares))  # Brier's own: over all classes
    # the largest probabilities 0.7, 0.5, 0.8, 0.4 lie in four bins; right, wrong, right, right
    assert value(summary, "all", "ece") == pytest.approx((0.3 + 0.5 + 0.2 + 0.6) / 4)
    # cat against the rest: 0.7, 0.4 against 0.5, 0.1
    assert value(summary, "cat", "auc") == pytest.approx(3 / 4)
    assert value(summary, "mean", "auc") == pytest.approx(np.mean([3 / 4, (1 + 1 + 1 / 2) / 3, 1]))


def test_column_order_row_order_and_file_kind_do_not_matter(exclusive):
    expected = run_on(exclusive).summary.set_index(["class", "metric"]).sort_index()
    probs = pd.read_csv(exclusive / "probs.csv")
    probs[["cow", "case", "dog", "cat"]].iloc[::-1].to_parquet(exclusive / "p.parquet")
    pd.read_csv(exclusive / "labels.csv").to_csv(exclusive / "l.tsv", sep="\t", index=False)
    found = run_on(exclusive, predictions=exclusive / "p.parquet", references=exclusive / "l.tsv").summary
    pd.testing.assert_frame_equal(found.set_index(["class", "metric"]).sort_index(), expected)


def classified(p, y, subjects):
    cases = [str(i) for i in range(len(p))]
    return Classified(cases, subjects, ["it"], np.array(p)[:, None], np.array(y, float)[:, None], False, True, [], [])


def test_interval_covers_the_true_auc():
    """Twenty subjects of two to four cases with a shared part; normal scores one deviation apart: AUC = Φ(1/√2)."""
    rng = np.random.default_rng(3)
    hits, trials = 0, 300
    for trial in range(trials):
        owner = np.repeat(np.arange(20), rng.integers(2, 5, 20))
        y = rng.random(len(owner)) < 0.5
        z = y + np.sqrt(0.5) * rng.normal(size=20)[owner] + np.sqrt(0.5) * rng.normal(size=len(owner))
        summary = summarise(classified(1 / (1 + np.exp(-z)), y, [str(o) for o in owner]), 0.95, 300, trial)
        low, high = (value(summary, "it", "auc", end) for end in ("low", "high"))
        hits += low <= 0.7602 <= high
    assert 0.90 <= hits / trials <= 0.985


def test_subjects_are_the_unit():
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 15)
    p = np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1)
    subjects = [str(i) for i in range(30)]

    def width(*parts):
        summary = summarise(classified(*parts), 0.95, 1000, 0)
        return value(summary, "it", "auc", "high") - value(summary, "it", "auc", "low")

    copied = width(np.tile(p, 4), np.tile(y, 4), subjects * 4)
    assert copied == pytest.approx(width(p, y, subjects))
    assert width(np.tile(p, 4), np.tile(y, 4), [str(i) for i in range(120)]) < 0.6 * copied


def test_no_interval_from_one_subject_on_a_side():
    p, y = [0.9, 0.8, 0.2, 0.3, 0.4], [1, 1, 0, 0, 0]
    found = summarise(classified(p, y, ["a", "a", "b", "c", "d"]), 0.95, 200, 0)
    assert np.isnan(value(found, "it", "auc", "low"))
    assert value(found, "it", "brier", "low") < value(found, "it", "brier") < value(found, "it", "brier", "high")
    alone = summarise(classified(p, y, ["a"] * 5), 0.95, 200, 0)
    assert alone["low"].isna().all()


def text(folder, name, old, new):
    path = folder / name
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "probs.csv",
            "a,0.1,0.9",
            "a,0.1,1.9",
            r"^case a: found '1\.9' as nodule in .*probs\.csv; expected a prob.*sigm",
        ),
        ("probs.csv", "a,0.1,0.9", "a,,0.9", r"^case a: found '' as mass"),
        ("probs.csv", "a,0.1,0.9", "a,x,0.9", r"^case a: found 'x' as mass"),
        ("probs.csv", "\nb,", "\na,", r"^case a: found it twice in .*probs\.csv"),
        ("labels.csv", "b.png", "a.jpg", r"^case a: found it twice in .*labels\.csv"),
        (
            "labels.csv",
            "c.png,p2,1",
            "c.png,p2,0.5",
            r"^case c: found '0\.5' as nodule in .*labels.*expected 1, 0 or noth",
        ),
        ("labels.csv", "c.png,p2,1", "c.png,p2,-1", r"^case c: found '-1' as nodule"),
        ("labels.csv", "image,", "name,", r"labels\.csv: found columns name, patient_id.*column 'image' or 'case'"),
        (
            "probs.csv",
            "mass,nodule",
            "Mass,Nodule",
            r"found columns Mass, Nodule, seconds beside the ids, none of them",
        ),
        ("probs.csv", "mass", "mean", None),
        ("labels.csv", ".png", "_1.png", r"no case of .*labels\.csv \(d, a, b …\); expected ids such as f_1, a_1"),
    ],
)
def test_faults_name_case_and_column(tables, name, old, new, message):
    text(tables, name, old, new)
    if message is None:  # a class with a name that the summary needs
        text(tables, "labels.csv", "mass", "mean")
        message = "a class called 'mean'"
    with pytest.raises(DataError, match=message):
        run_on(tables)
    assert not (tables / "o").exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("probs.csv", "0.7,", "0.9,", r"^case a: found probabilities that sum to 1\.2 .*\(cat, dog, cow\).*softmax"),
        ("labels.csv", "t,dog", "t,Dog", r"^case b: found 'Dog' as class in .*; expected one of cat, dog, cow"),
        ("labels.csv", "t,dog", "t,", r"^case b: found '' as class"),
    ],
)
def test_faults_of_exclusive_classes(exclusive, name, old, new, message):
    text(exclusive, name, old, new)
    with pytest.raises(DataError, match=message):
        run_on(exclusive)


def test_files_that_are_no_tables(tables):
    (tables / "mask.nii.gz").write_bytes(b"\x1f\x8b\xff\x00")
    with pytest.raises(DataError, match=r"mask\.nii\.gz: found a file that is no table"):
        run_on(tables, predictions=tables / "mask.nii.gz")
    with pytest.raises(DataError, match=r"found a file that is no table .*expected CSV, TSV or Parquet"):
        run_on(tables, references=tables)
    (tables / "empty.csv").write_text("image,nodule\n")
    with pytest.raises(DataError, match=r"empty\.csv: found no row"):
        run_on(tables, predictions=tables / "empty.csv")
    with pytest.raises(ConfigError, match="tolerance: given with a table of probabilities"):
        run_on(tables, tolerance=2.0)
    with pytest.raises(ConfigError, match="lesions: given with a table of probabilities"):
        run_on(tables, lesions=("nodule",))
    (tables / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        run_on(tables, out=tables / "file" / "x")


def test_subjects(tables, capsys):
    text(tables, "labels.csv", "patient_id", "who")
    assert run_on(tables).scores["subject"].nunique() == 5
    assert "each case counts as its own" in capsys.readouterr().out


def test_real_references(real_data, tmp_path):
    """The X-rays' own table; probabilities that are the truth are perfect, their opposite is the worst."""
    labels = real_data / "nih_cxr" / "labels.csv"
    truth = pd.read_csv(labels).drop(columns="patient_id")
    truth.to_csv(tmp_path / "p.csv", index=False)
    found = read_classified(tmp_path / "p.csv", labels)
    assert (len(found.cases), len(set(found.subjects)), len(found.classes)) == (699, 189, 14)
    summary = summarise(found, 0.95, 20, 0)
    assert (summary.loc[summary["metric"].isin(["auc", "average_precision"]), "value"] == 1).all()
    assert (summary.loc[summary["metric"].isin(["ece", "brier"]), "value"] == 0).all()
