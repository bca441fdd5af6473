"""Lesions and classification through the command line."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.e2e.conftest import Chain, prevox

pytestmark = pytest.mark.e2e


def test_lesions_are_counted_and_compared(chain: Chain, tmp_path: Path) -> None:
    classes = [name for name in json.loads((chain.seg / "classes.json").read_text()) if name != "background"]
    words = ["--predictions", chain.seg, "--references", chain.catalogue, "--lesions", *classes]
    text = prevox("evaluate", *words, "--out", tmp_path / "scores")
    assert "lesions found" in text
    scores = pd.read_csv(tmp_path / "scores" / "scores.csv")
    assert (scores["lesions_found"] <= scores["lesions"]).all()
    found = scores["lesions"] > 0
    assert (scores["lesion_sensitivity"] == scores["lesions_found"] / scores["lesions"])[found].all()
    runs = ["--runs", f"a={tmp_path / 'scores'}", f"b={tmp_path / 'scores'}", "--out", tmp_path / "out"]
    text = prevox("compare", *runs, "--metric", "lesion_false_positives")
    said = "b and a cannot be told apart by these cases (b minus a 0.00 [0.00, 0.00] false-positive lesions)"
    assert said in " ".join(text.split())
    text = prevox("evaluate", *words, "nothing", "--out", tmp_path / "none", code=2)
    assert "lesions: found no class 'nothing'" in text


def test_probabilities_are_scored(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,mass\na.png,0.9\nb.png,0.8\nc.png,0.3\nd.png,0.1\n")
    (tmp_path / "r.csv").write_text("case,patient,mass\na,1,1\nb,2,0\nc,3,1\nd,4,0\n")
    text = prevox("evaluate", "--predictions", tmp_path / "p.csv", "--references", tmp_path / "r.csv")
    assert "4 cases of 4 subjects" in text
    summary = pd.read_csv(tmp_path / "evaluation" / "classification.csv").set_index(["class", "metric"])
    assert summary.loc[("mass", "auc"), "value"] == pytest.approx(3 / 4)
    (tmp_path / "p.csv").write_text("image,mass\na.png,0.9\nb.png,8\n")
    text = prevox("evaluate", "--predictions", tmp_path / "p.csv", "--references", tmp_path / "r.csv", code=2)
    assert "case b: found '8' as mass in" in " ".join(text.split())
