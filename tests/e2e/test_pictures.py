"""A folder of X-rays with a table, from catalogue to a pre-trained 2D transformer, on 699 real images."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.e2e.conftest import prevox

pytestmark = pytest.mark.e2e


def test_xrays_are_catalogued_packed_and_trained_on(real_data: Path, tmp_path: Path) -> None:
    said = prevox("catalogue", real_data / "nih_cxr", "--out", tmp_path / "c.parquet")
    assert "189 subjects by its column 'patient_id'" in said
    prevox("prepare", "--catalogue", tmp_path / "c.parquet", "--out", tmp_path / "store", "--workers", 1)
    index = pd.read_parquet(tmp_path / "store" / "index.parquet").set_index("image")
    listed = pd.read_csv(real_data / "nih_cxr" / "labels.csv", dtype=str).set_index("image")
    listed.index = listed.index.str.removesuffix(".png")
    assert set(index.index) == set(listed.index)
    assert len(index) == 699
    assert set(index["channels"]) == {1}
    assert set(index["max_error"].explode()) == {0}
    assert index["Effusion"].to_dict() == listed["Effusion"].astype(int).to_dict()  # labels stay with their images
    assert sum(path.is_file() for path in (tmp_path / "store").rglob("*")) < 15

    words = ["--views.size", 64, 64, "--model.size", "T", "--model.patch", 8, 8, "--model.depth", 2]
    words += ["--method.decoder-width", 48, "--method.decoder-depth", 1, "--method.decoder-heads", 3]
    words += ["--train.steps", 6, "--train.batch", 8, "--train.log-every", 2]
    prevox("pretrain", "--store", tmp_path / "store", *words, "--out", tmp_path / "mae")
    assert json.loads((tmp_path / "mae" / "summary.json").read_text())["finished"]
    rows = [json.loads(line) for line in (tmp_path / "mae" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) >= 3
    assert all(np.isfinite(row["loss"]) for row in rows)
    split = json.loads((tmp_path / "mae" / "split.json").read_text())
    sides = [set(listed.loc[split[side], "patient_id"]) for side in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 189
    assert len(split["train"]) + len(split["validation"]) == 699
    assert list((tmp_path / "mae" / "pictures").rglob("reconstruction.png"))
