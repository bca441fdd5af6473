"""The verb: what is matched, refused, written, and how the summary is made."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from prevox.config.runs import EvaluateConfig
from prevox.errors import ConfigError, DataError, RunError
from prevox.evaluation.evaluate import evaluate, summarise

pytestmark = pytest.mark.unit
CLASSES = '{"0": "background", "1": "front", "2": "back"}'


def save(path, *boxes):
    """A mask of 12³ voxels; each box is (label value, first, last + 1) along every axis."""
    labels = np.zeros((12, 12, 12), np.uint8)
    for value, start, stop in boxes:
        labels[start:stop, start:stop, start:stop] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), path)


def catalogue(path, root, subjects, classes=CLASSES):
    rows = [
        {
            "image": case,
            "subject": subject,
            "root": str(root),
            "label_path": f"labels/{case}.nii.gz",
            "class_names": classes,
        }
        for case, subject in subjects.items()
    ]
    rows.append({"image": "unlabelled", "subject": "z", "root": str(root), "label_path": None, "class_names": None})
    pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture
def scans(tmp_path):
    """Three references of two subjects and their predictions: perfect; `back` missed; `front` half as large."""
    for case in ("a", "b", "c"):
        save(tmp_path / "labels" / f"{case}.nii.gz", (1, 1, 5), (2, 7, 9))
    save(tmp_path / "run" / "predictions" / "a.nii.gz", (1, 1, 5), (2, 7, 9))
    save(tmp_path / "run" / "predictions" / "b.nii.gz", (1, 1, 5))
    save(tmp_path / "run" / "predictions" / "c.nii.gz", (1, 1, 3), (2, 7, 9))
    catalogue(tmp_path / "catalogue.parquet", tmp_path, {"a": "s1", "b": "s1", "c": "s2", "d": "s3"})
    return tmp_path


def run_on(scans, **settings):
    paths = {"predictions": scans / "run" / "predictions", "references": scans / "catalogue.parquet"}
    return evaluate(EvaluateConfig(**(paths | {"workers": 1} | settings)))


def value(summary, name, metric, column="mean"):
    return summary.set_index(["class", "metric"]).loc[(name, metric), column]


def test_end_to_end_with_a_catalogue(scans, capsys):
    result = run_on(scans)
    assert list(result.scores["case"]) == ["a", "a", "b", "b", "c", "c"]
    assert list(result.scores["class"]) == ["front", "back"] * 3
    dice = result.scores.set_index(["case", "class"])["dice"]
    assert dice[("c", "front")] == pytest.approx(2 * 8 / (64 + 8))
    assert dice[("b", "back")] == 0.0
    assert value(result.summary, "back", "dice") == pytest.approx(2 / 3)
    assert value(result.summary, "back", "dice", "one_empty") == 1
    assert value(result.summary, "back", "hd95") == pytest.approx(12 * np.sqrt(3) / 3)
    front, back = (1 + 1 + 2 / 9) / 3, 2 / 3
    assert value(result.summary, "mean", "dice") == pytest.approx((front + back) / 2)
    assert tuple(result.summary.iloc[0][["cases", "subjects"]]) == (3, 2)
    said = capsys.readouterr().out
    assert "3 cases of 2 subjects" in said
    assert "not predicted: 1 (d)" in said
    assert "1 have only one of prediction and reference empty" in said


def test_files_hold_what_the_result_holds(scans):
    result = run_on(scans, tolerance=2.0)
    assert result.path == scans / "run" / "evaluation"
    pd.testing.assert_frame_equal(pd.read_parquet(result.path / "scores.parquet"), result.scores)
    csv = pd.read_csv(result.path / "scores.csv", keep_default_na=False)
    assert list(csv["empty"]) == list(result.scores["empty"])
    pd.testing.assert_frame_equal(pd.read_csv(result.path / "summary.csv"), result.summary)
    content = json.loads((result.path / "summary.json").read_text())
    assert (content["cases"], content["subjects"], content["tolerance_mm"]) == (3, 2, 2.0)
    assert (content["one_empty"], content["both_empty"], content["not_predicted"]) == (1, 0, ["d"])
    assert content["summary"][0]["mean"] == pytest.approx(result.summary["mean"][0])
    assert run_on(scans, out=scans / "elsewhere").path == scans / "elsewhere"
    assert (scans / "elsewhere" / "scores.parquet").is_file()


def test_processes_give_the_same_scores(scans):
    pd.testing.assert_frame_equal(run_on(scans, workers=2).scores, run_on(scans).scores)


def test_lesions_of_named_classes(scans, capsys):
    """`back` of b is missed; c's `back` is found, but two voxels elsewhere are not there; `front` is not asked for."""
    save(scans / "run" / "predictions" / "c.nii.gz", (1, 1, 3), (2, 7, 9), (2, 0, 1), (2, 11, 12))
    result = run_on(scans, lesions=("back",))
    rows = result.scores.set_index(["case", "class"])
    columns = ["lesions", "lesions_found", "lesion_sensitivity", "lesion_false_positives"]
    assert rows.loc[("b", "back"), columns].tolist() == [1, 0, 0, 0]
    assert rows.loc[("c", "back"), columns].tolist() == [1, 1, 1, 2]
    assert rows.loc[("a", "front"), columns].isna().all()
    for name in ("back", "mean"):  # the only class that has lesions
        assert value(result.summary, name, "lesion_sensitivity") == pytest.approx(2 / 3)
        assert value(result.summary, name, "lesion_false_positives") == pytest.approx(2 / 3)
    assert ("front", "lesion_sensitivity") not in result.summary.set_index(["class", "metric"]).index
    said = capsys.readouterr().out
    assert "lesions found" in said
    assert "lesions" not in run_on(scans).scores


def test_lesions_where_there_are_none(scans, capsys):
    """Healthy cases count for false positives, not for sensitivity; classes without names are called by their value."""
    save(scans / "labels" / "c.nii.gz", (1, 1, 5))
    for predicted, false_positives in (((2, 7, 9),), 1 / 3), ((), 0.0):
        save(scans / "run" / "predictions" / "c.nii.gz", (1, 1, 5), *predicted)
        result = run_on(scans, references=scans / "labels", lesions=("2", "9"))
        assert value(result.summary, "2", "lesion_sensitivity", "cases") == 2
        assert value(result.summary, "2", "lesion_false_positives", "cases") == 3
        assert value(result.summary, "2", "lesion_false_positives") == pytest.approx(false_positives)
        assert value(result.summary, "2", "ravd", "cases") == 2  # relative to nothing
        assert value(result.summary, "2", "rvd") == pytest.approx(-0.5)  # b: nothing predicted, −1
    assert "no mask holds the label value 9" in capsys.readouterr().out


def test_lesions_of_a_class_that_does_not_exist(scans):
    with pytest.raises(ConfigError, match=r"lesions: found no class 'bakc'; expected some of front, back\..*--regions"):
        run_on(scans, lesions=("bakc",))
    with pytest.raises(ConfigError, match=r"no class 'tumour'; expected some of the label values, as 1"):
        run_on(scans, references=scans / "labels", lesions=("tumour",))


def test_run_folder_brings_its_regions_and_training_cases(scans, capsys):
    run = scans / "run"
    (run / "config.yaml").write_text("regions: {all: [1, 2], back: [2]}\n")
    (run / "split.json").write_text(json.dumps({"train": ["b", "x"], "validation": ["a", "c"]}))
    result = run_on(scans, predictions=run)
    assert list(result.scores["class"].unique()) == ["all", "back"]
    assert result.path == run / "evaluation"
    assert "trained on 1 of these cases" in capsys.readouterr().out
    (run / "config.yaml").write_text("regions: null\n")
    (run / "classes.json").write_text(json.dumps({"background": [0], "vorn": [1], "hinten": [2]}))
    assert list(run_on(scans, predictions=run).scores["class"].unique()) == ["vorn", "hinten"]
    asked = run_on(scans, predictions=run, regions={"only": (2,)})  # the user's word comes first
    assert list(asked.scores["class"].unique()) == ["only"]


def test_run_without_predictions(tmp_path, scans):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.yaml").write_text("regions: null\n")
    with pytest.raises(RunError, match="prevox predict"):
        run_on(scans, predictions=tmp_path / "bare")


def test_folder_of_references(scans, capsys):
    result = run_on(scans, references=scans / "labels")
    assert list(result.scores["class"].unique()) == ["1", "2"]
    assert list(result.scores["subject"].unique()) == ["a", "b", "c"]
    assert "each case counts as its own" in capsys.readouterr().out


def test_without_names_absent_classes_are_rows_too(scans):
    save(scans / "labels" / "c.nii.gz", (1, 1, 5))
    save(scans / "run" / "predictions" / "c.nii.gz", (1, 1, 5))
    result = run_on(scans, references=scans / "labels")
    row = result.scores.set_index(["case", "class"]).loc[("c", "2")]
    assert row["empty"] == "both"
    assert np.isnan(row["dice"])
    assert value(result.summary, "2", "dice", "cases") == 2
    assert value(result.summary, "2", "dice", "both_empty") == 1
    # case c's mean over classes is that of its one counted class
    assert value(result.summary, "mean", "dice") == pytest.approx((1 + 0.5 + 1) / 3)


def test_value_that_only_predictions_have_is_refused(scans):
    save(scans / "run" / "predictions" / "b.nii.gz", (1, 1, 5), (5, 7, 9))
    with pytest.raises(DataError, match=r"case b, .*label value 5, .*expected label values among 1, 2\."):
        run_on(scans, references=scans / "labels")
    with pytest.raises(DataError, match=r"case b, prediction.*\[5\]"):
        run_on(scans)
    result = run_on(scans, references=scans / "labels", regions={"front": (1,), "new": (5,)})
    assert value(result.summary, "new", "dice", "one_empty") == 1


def faulty(path, fault):
    """A mask of the fixture's shape and place, but for one fault."""
    labels, affine = np.zeros((12, 12, 12), np.float32), np.eye(4)
    labels[1:5, 1:5, 1:5] = {"values": 7, "fraction": 0.5}.get(fault, 1)
    if fault == "place":
        affine[0, 3] = 3.0
    if fault == "spacing":
        affine[1, 1] = 1.1
    nib.save(nib.Nifti1Image(labels[:, :, 1:] if fault == "shape" else labels, affine), path)
    if fault == "torn":
        path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("shape", "12×12×11 voxels; expected the reference's 12×12×12"),
        ("place", "corners lie up to 3 mm off"),
        ("spacing", "corners lie up to 1.1 mm off"),
        ("values", r"label values \[7\]"),
        ("fraction", "the value 0.5; expected integer label values"),
        ("torn", "found "),
    ],
)
@pytest.mark.parametrize("role", ["prediction", "reference"])
def test_every_fault_names_its_case(scans, fault, found, role):
    """The references' files are named otherwise than the cases, so that the message cannot live on the path."""
    for case in "abc":
        (scans / "labels" / f"{case}.nii.gz").rename(scans / "labels" / f"{ord(case)}.nii.gz")
    table = pd.read_parquet(scans / "catalogue.parquet")
    table["label_path"] = [f"labels/{ord(case)}.nii.gz" if len(case) == 1 else None for case in table["image"]]
    table.to_parquet(scans / "catalogue.parquet")
    faulty(scans / (f"labels/{ord('b')}.nii.gz" if role == "reference" else "run/predictions/b.nii.gz"), fault)
    # grids are compared, and the prediction is the one to resample
    blamed = "prediction" if fault in ("shape", "place", "spacing") else role
    if role == "reference" and fault == "shape":
        found = "12×12×12 voxels; expected the reference's 12×12×11"
    with pytest.raises(DataError, match=rf"^case b, {blamed} .*: found .*{found.removeprefix('found ')}"):
        run_on(scans)


def test_the_catalogues_dataset_goes_with_the_scores(scans):
    assert set(run_on(scans).scores["dataset"]) == {""}
    table = pd.read_parquet(scans / "catalogue.parquet")
    table.assign(dataset=["x", "y", None, "y", "y"]).to_parquet(scans / "catalogue.parquet")
    scores = run_on(scans).scores
    assert dict(zip(scores["case"], scores["dataset"], strict=True)) == {"a": "x", "b": "y", "c": ""}


def test_all_faults_are_told(scans, capsys):
    for case in ("a", "b"):
        save(scans / "run" / "predictions" / f"{case}.nii.gz", (9, 1, 5))
    (scans / "run" / "predictions" / "c.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="case a"):
        run_on(scans)
    said = " ".join(capsys.readouterr().out.split())
    assert "also: case b" in said
    assert "3 cases cannot be scored: a, b, c" in said
    assert list((scans / "run" / "evaluation").iterdir()) == []


def test_matching_refusals(scans):
    save(scans / "other" / "x_0001.nii.gz", (1, 1, 5))
    (scans / "nothing").mkdir()
    with pytest.raises(DataError, match=r"3 masks \(a, b, c\).*x_0001"):
        run_on(scans, references=scans / "other")
    with pytest.raises(DataError, match="no mask"):
        run_on(scans, predictions=scans / "nothing")
    with pytest.raises(DataError, match="no such file or folder"):
        run_on(scans, references=scans / "nowhere")
    save(scans / "run" / "predictions" / "a.nii", (1, 1, 5))
    with pytest.raises(DataError, match=r"^a: found the case twice"):
        run_on(scans)


def test_catalogue_refusals(scans):
    path = scans / "catalogue.parquet"
    table = pd.read_parquet(path)
    pd.concat([table, table[:1]]).to_parquet(path)
    with pytest.raises(DataError, match=r"^a: found the case twice \(2 rows of"):
        run_on(scans)
    table.drop(columns="label_path").to_parquet(path)
    with pytest.raises(DataError, match="without label_path"):
        run_on(scans)
    path.write_text("case,label\n")
    with pytest.raises(DataError, match="no table"):
        run_on(scans)


def test_background_is_no_region(scans):
    with pytest.raises(ConfigError, match="'bg' is \\[0\\]"):
        run_on(scans, regions={"bg": (0,)})


def test_predictions_without_reference_are_told(scans, capsys):
    save(scans / "run" / "predictions" / "e.nii.gz", (1, 1, 5))
    save(scans / "run" / "predictions" / "probabilities" / "a.nii.gz", (1, 1, 5))  # folders are no masks
    result = run_on(scans)
    assert "1 predictions have no reference: e" in capsys.readouterr().out
    assert json.loads((result.path / "summary.json").read_text())["without_reference"] == ["e"]


def test_summary_of_a_hand_made_table():
    scores = pd.DataFrame(
        {
            "case": ["a", "a", "b", "b", "c", "c"],
            "subject": ["s", "s", "s", "s", "t", "t"],
            "class": ["x", "y"] * 3,
            "dice": [0.8, 0.4, 0.6, np.nan, 0.1, 0.0],
            "hd95": [1.0, 2.0, 3.0, np.nan, 5.0, 90.0],
            "nsd": [1.0, 1.0, 1.0, np.nan, 1.0, 0.0],
            "asd": [1.0, 1.0, 1.0, np.nan, 1.0, 90.0],
            "rvd": [0.5, -0.5, 0.1, np.nan, -0.3, np.nan],
            "ravd": [0.5, 0.5, 0.1, np.nan, 0.3, np.nan],
            "empty": ["", "", "", "both", "", "prediction"],
        }
    )
    summary = summarise(scores)
    assert value(summary, "x", "dice") == pytest.approx(0.5)
    assert value(summary, "x", "dice", "median") == pytest.approx(0.6)
    assert value(summary, "y", "dice") == pytest.approx(0.2)
    assert [value(summary, "y", "dice", c) for c in ("cases", "subjects", "one_empty", "both_empty")] == [2, 2, 1, 1]
    assert value(summary, "mean", "dice") == pytest.approx((0.6 + 0.6 + 0.05) / 3)
    assert value(summary, "mean", "hd95") == pytest.approx((1.5 + 3.0 + 47.5) / 3)
    assert value(summary, "mean", "rvd") == pytest.approx((0 + 0.1 - 0.3) / 3)
    assert value(summary, "y", "ravd", "cases") == 1
    assert value(summary, "x", "dice", "low") >= 0.1
    pd.testing.assert_frame_equal(summary, summarise(scores))


def test_failed_predictions_are_told_and_fail_the_verb(scans, capsys):
    folder = scans / "run" / "predictions"
    assert (run_on(scans).failed, run_on(scans).exit_code) == ([], 0)
    (folder / "failures.csv").write_text("image,reason\nb,out of memory\nnowhere,no label\n")
    result = run_on(scans)  # b's mask is an older one
    assert list(result.scores["case"].unique()) == ["a", "c"]
    assert (result.failed, result.exit_code) == (["b"], 1)
    assert "1 cases could not be segmented and are in NO mean above: b" in " ".join(capsys.readouterr().out.split())
    content = json.loads((result.path / "summary.json").read_text())
    assert (content["failed"], content["not_predicted"]) == (["b"], ["d"])


def test_only_the_part_that_was_predicted_is_missed(scans):
    folder = scans / "run" / "predictions"
    catalogue(scans / "catalogue.parquet", scans, dict.fromkeys(["a", "b", "c", "d", "t1", "new"], "s"))
    split = {"train": ["t1", "t2"], "validation": ["a", "b", "c", "d"]}
    (scans / "run" / "split.json").write_text(json.dumps(split))

    def missed():
        return json.loads((run_on(scans).path / "summary.json").read_text())["not_predicted"]

    assert missed() == ["d"]
    save(folder / "t2.nii.gz", (1, 1, 5))
    assert missed() == ["d", "t1"]
    save(folder / "elsewhere.nii.gz", (1, 1, 5))
    assert missed() == ["d", "t1", "new"]


def files_of(path):
    table = pd.read_csv(path / "cases.csv", keep_default_na=False)
    assert list(table) == ["case", "prediction", "reference", "image"]
    return table.set_index("case")


def test_which_files_were_compared_is_written(scans):
    table = pd.read_parquet(scans / "catalogue.parquet")
    paths = [["images/a_0000.nii.gz", "images/a_0001.nii.gz"], *([f"images/{case}.nii.gz"] for case in "bcdz")]
    table.assign(paths=paths).to_parquet(scans / "catalogue.parquet")
    files = files_of(run_on(scans).path)
    assert list(files.index) == ["a", "b", "c"]
    assert files.loc["a", "prediction"] == "../predictions/a.nii.gz"  # the run may be moved
    assert files.loc["a", "reference"] == str(scans / "labels" / "a.nii.gz")
    assert files.loc["a", "image"] == str(scans / "images" / "a_0000.nii.gz")  # the first channel


def test_scans_are_those_that_predict_named_where_references_name_none(scans):
    rows = 'image,source\na,"[""/scans/a.nii.gz"", ""/scans/a2.nii.gz""]"\n'
    (scans / "run" / "predictions" / "predictions.csv").write_text(rows)
    files = files_of(run_on(scans, references=scans / "labels", out=scans / "elsewhere" / "scores").path)
    assert list(files["image"]) == ["/scans/a.nii.gz", "", ""]
    assert files.loc["b", "prediction"] == str(scans / "run" / "predictions" / "b.nii.gz")
    (scans / "run" / "predictions" / "predictions.csv").write_text("torn")
    assert list(files_of(run_on(scans, references=scans / "labels").path)["image"]) == ["", "", ""]


def test_a_relative_folder_finds_its_run(scans, monkeypatch):
    (scans / "run" / "config.yaml").write_text("regions: {all: [1, 2]}\n")
    expected = scans / "run" / "evaluation"
    for inside, path in (("run/predictions", "."), ("run/predictions/sub", ".."), ("run", ".")):
        (scans / inside).mkdir(exist_ok=True)
        monkeypatch.chdir(scans / inside)
        result = run_on(scans, predictions=path)
        assert (result.path, list(result.scores["class"].unique())) == (expected, ["all"])


def test_a_place_that_cannot_be_written_is_told_before_the_work(scans, monkeypatch):
    (scans / "file").write_text("")
    monkeypatch.setattr("prevox.evaluation.evaluate._score_all", lambda *_: pytest.fail("work was done"))
    with pytest.raises(RunError, match=r"file.scores: cannot be written \(Not a directory\)"):
        run_on(scans, out=scans / "file" / "scores")


def test_files_of_an_earlier_evaluation_are_replaced_whole(scans, monkeypatch):
    path = run_on(scans).path
    before = (path / "scores.csv").read_bytes()

    def torn(self, target, **_):
        target.write_text("torn")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", torn)
    with pytest.raises(RunError, match=r"scores\.csv: cannot be written \(No space left"):
        run_on(scans)
    assert (path / "scores.csv").read_bytes() == before
    assert not list(path.glob(".*"))


def test_a_class_called_mean_is_refused(scans):
    with pytest.raises(ConfigError, match=r"called 'mean'.*--regions"):
        run_on(scans, regions={"mean": (1,), "back": (2,)})
    catalogue(scans / "catalogue.parquet", scans, {"a": "s"}, '{"1": "mean", "2": "back"}')
    with pytest.raises(ConfigError, match=r"called 'mean'.*--regions"):
        run_on(scans)
