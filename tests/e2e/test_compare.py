"""Runs and other tools' masks side by side, through the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import prevox as package
from tests.e2e.conftest import Chain, prevox

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def perfect(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks as another tool would leave them, scored: the references themselves under the cases' names."""
    folder = tmp_path_factory.mktemp("other") / "perfect"
    (folder / "masks").mkdir(parents=True)
    catalogue = pd.read_parquet(chain.catalogue).set_index("image")
    for mask in (chain.seg / "predictions").glob("*.nii.gz"):
        row = catalogue.loc[mask.name.removesuffix(".nii.gz")]
        shutil.copy(Path(row["root"]) / row["label_path"], folder / "masks" / mask.name)
    prevox("evaluate", "--predictions", folder / "masks", "--references", chain.catalogue)
    return folder


def test_a_run_against_another_tools_masks(chain: Chain, perfect: Path, tmp_path: Path) -> None:
    text = prevox("compare", "--runs", chain.seg, perfect, "--out", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (dataset,) = content["datasets"]
    assert (dataset["cases"], dataset["subjects"], dataset["name"]) == (2, 2, chain.phantoms.name)
    means = {(e["run"], e["class"]): e["mean"] for e in content["scores"]}
    own = json.loads((chain.seg / "evaluation" / "summary.json").read_text())["summary"]
    for row in own:  # the verbs agree on every mean
        if row["metric"] == "dice":
            assert means["seg", row["class"]] == pytest.approx(row["mean"])
    assert means["perfect", "mean"] == 1.0
    assert [e["rank"] for e in content["ranks"]] == [2, 1, 2, 1]
    assert " ".join(content["verdicts"][0].split()) in " ".join(text.split())
    assert (tmp_path / "out" / "tables.tex").read_text().count(r"\begin{tabular}") == 6


def test_a_run_against_itself(chain: Chain, tmp_path: Path) -> None:
    words = ["--runs", chain.seg, f"again={chain.seg / 'evaluation'}", "--metric", "hd95"]
    text = prevox("compare", *words, "--out", tmp_path / "out")
    assert "again and seg cannot be told apart by these cases" in " ".join(text.split())
    table = pd.read_parquet(tmp_path / "out" / "comparison.parquet")
    assert set(table["metric"]) == {"hd95"}
    assert (table.loc[table["quantity"] == "difference", "value"] == 0).all()


def test_missing_cases_are_accounted_for_and_none_left_is_an_error(chain: Chain, perfect: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(perfect, fewer)
    gone = sorted((fewer / "masks").iterdir())[0]
    gone.unlink()
    prevox("evaluate", "--predictions", fewer / "masks", "--references", chain.catalogue)
    case = gone.name.removesuffix(".nii.gz")
    text = prevox("compare", "--runs", chain.seg, fewer, "--out", tmp_path / "out")
    assert f"has them (1): {case} (fewer: not predicted)" in " ".join(text.split())
    assert "one subject says nothing" in text
    scores = pd.read_parquet(fewer / "evaluation" / "scores.parquet")
    scores.assign(case="elsewhere").drop_duplicates("class").to_parquet(fewer / "evaluation" / "scores.parquet")
    text = prevox("compare", "--runs", chain.seg, fewer, "--out", tmp_path / "none", code=2)
    assert "no case that all of them have" in text
    assert not (tmp_path / "none").exists()


def test_masks_on_another_grid_stop_the_evaluation(chain: Chain, perfect: Path, tmp_path: Path) -> None:
    shutil.copytree(perfect / "masks", tmp_path / "masks")
    mask = sorted((tmp_path / "masks").iterdir())[0]
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj)[::2], image.affine @ np.diag([2, 1, 1, 1])), mask)
    words = ["--predictions", tmp_path / "masks", "--references", chain.catalogue, "--out", tmp_path / "out"]
    assert f"case {mask.name.removesuffix('.nii.gz')}" in prevox("evaluate", *words, code=2)


def test_the_python_function_gives_the_files(chain: Chain, perfect: Path, tmp_path: Path) -> None:
    result = package.compare(runs=[chain.seg, perfect], out=tmp_path / "out", baseline="seg")
    pd.testing.assert_frame_equal(pd.read_parquet(result.path / "comparison.parquet"), result.table)
    assert [(e["run"], e["other"]) for e in result.comparison.differences if e["class"] == "mean"] == [
        ("perfect", "seg")
    ]


def test_a_reader_of_the_first_lines_costs_no_file(chain: Chain, perfect: Path, tmp_path: Path) -> None:
    words = ["compare", "--runs", chain.seg, perfect, "--out", tmp_path / "out"]
    shell = ["bash", "-c", 'set -o pipefail; "$@" | head -n 1', "bash", sys.executable, "-u", "-m", "prevox"]
    done = subprocess.run([*shell, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (141, "", 1)
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
