"""Ids, paths, names and settings that a catalogue must refuse, tell apart or survive."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from prevox.config.data import CatalogueConfig
from prevox.data.catalogue import CatalogueResult, catalogue, read_catalogue
from prevox.errors import ConfigError, DataError, RunError

pytestmark = pytest.mark.unit


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 500, (9, 10, 11)).astype(np.int16)


def run(tmp_path: Path, *paths: Path) -> CatalogueResult:
    return catalogue(CatalogueConfig(paths=paths, out=tmp_path / "out" / "c.parquet"))


def test_prefixed_ids_are_unique_too(tmp_path):
    one, other = tmp_path / "my scans", tmp_path / "my-scans"
    save(one / "a.nii.gz", noise(1))
    save(other / "a.nii.gz", noise(2))
    with pytest.raises(DataError, match=r"two images with the id 'my-scans_a': .*my scans/a.*my-scans/a.*Rename"):
        run(tmp_path, one, other)
    chinese, greek = (
        save(tmp_path / "数据" / "a.nii.gz", noise(3)).parent,
        save(tmp_path / "δ" / "a.nii.gz", noise(4)).parent,
    )
    assert list(run(tmp_path, chinese, greek).table["image"]) == ["数据_a", "δ_a"]


def test_two_files_of_one_name(tmp_path):
    paths = save(tmp_path / "x" / "a.nii.gz", noise(1)), save(tmp_path / "x" / "a.nii", noise(2))
    with pytest.raises(DataError, match=r"two images with the id 'a': \S+a\.nii\.gz and \S+a\.nii;"):
        run(tmp_path, *paths)


def test_files_outside_of_the_folder_keep_their_whole_path(tmp_path):
    image, label = (
        save(tmp_path / "data" / "a.nii.gz", noise()),
        save(tmp_path / "data" / "la.nii.gz", (noise() > 250).astype(np.uint8)),
    )
    (tmp_path / "list").mkdir()
    training = [{"image": str(image), "label": str(label)}]
    (tmp_path / "list" / "dataset.json").write_text(json.dumps({"training": training}))
    row = read_catalogue(run(tmp_path, tmp_path / "list").path).iloc[0]
    assert (Path(row["root"]) / row["paths"][0], Path(row["root"]) / row["label_path"]) == (image, label)


def test_settings_are_judged_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("prevox.data.catalogue.recognise", lambda path: pytest.fail("work before the check"))
    with pytest.raises(ConfigError, match="'paths'"):
        CatalogueConfig.parse({"paths": []})
    with pytest.raises(ConfigError, match=r"--out \S+ct: must end in \.parquet"):
        catalogue(CatalogueConfig(paths=(tmp_path,), out=tmp_path / "ct"))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file/sub: cannot be written"):
        catalogue(CatalogueConfig(paths=(tmp_path,), out=tmp_path / "file" / "sub" / "c.parquet"))
    (tmp_path / "c.parquet").mkdir()
    with pytest.raises(RunError, match=r"c\.parquet: is a folder"):
        catalogue(CatalogueConfig(paths=(tmp_path,), out=tmp_path / "c.parquet"))


def test_catalogues_in_one_folder_keep_their_own_failures(tmp_path):
    save(tmp_path / "ct" / "a.nii.gz", noise())
    (tmp_path / "ct" / "b.nii.gz").touch()
    save(tmp_path / "mr" / "a.nii.gz", noise())
    for name in ("ct", "mr"):
        catalogue(CatalogueConfig(paths=(tmp_path / name,), out=tmp_path / f"{name}.parquet"))
    assert "0 bytes" in (tmp_path / "ct.failures.csv").read_text()
    assert not (tmp_path / "mr.failures.csv").exists()


def test_odd_folder_names_are_printed_as_they_are(tmp_path, capsys):
    root = tmp_path / "q[/y] z"
    for n in range(2):
        save(root / "images" / f"case_{n:02d}.nii.gz", noise(n))
    (root / "images" / "empty.nii.gz").touch()
    table = root / "people.csv"
    pd.DataFrame({"scan": ["case_00", "case_01"], "age": [1, 2]}).to_csv(table, index=False)
    result = catalogue(CatalogueConfig(paths=(root,), out=tmp_path / "q[/y] z" / "c.parquet"))
    printed = capsys.readouterr().out
    assert f"add --table '{table}'" in printed
    assert result.exit_code == 1
    assert "q[/y] z" in printed
