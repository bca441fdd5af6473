"""Every quality rule on files: one that breaks it, one just inside; what exclusion does, and what it does not."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.unit.data.scans_of_rules import CASES, PLAIN, mask, noise, one_off, save

from prevox.config.data import CatalogueConfig, PlanConfig, PrepareConfig
from prevox.config.rules import RulesConfig
from prevox.data.catalogue import CatalogueResult, catalogue, read_catalogue
from prevox.data.layouts import recognise
from prevox.data.measure import measure
from prevox.data.prepare import prepare
from prevox.data.readers import read_image
from prevox.data.rules import RULES, count, rule_of
from prevox.data.store import Store
from prevox.errors import ConfigError, DataError
from prevox.verbs.plan import plan

pytestmark = pytest.mark.unit


def listed(folder: Path, **rules: object) -> CatalogueResult:
    out = folder.parent / "c.parquet"
    return catalogue(CatalogueConfig(paths=(folder,), out=out, rules=RulesConfig(**rules), volumes="channels"))


def first(result: CatalogueResult) -> pd.Series:
    assert result.failures == []
    return result.table.sort_values("image").iloc[0]


def test_every_rule_has_its_cases() -> None:
    assert list(CASES) == list(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_broken_and_just_inside(rule: str, tmp_path: Path) -> None:
    breaks, told, inside = CASES[rule]
    breaks(tmp_path / "breaks")
    inside(tmp_path / "inside")
    row = first(listed(tmp_path / "breaks"))
    assert rule in row["flags"]
    assert f"{rule}{told}" in row["reasons"]
    assert row["excluded"] == []
    assert rule not in first(listed(tmp_path / "inside"))["flags"]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_named_excludes_and_says_why(rule: str, tmp_path: Path) -> None:
    breaks, _, inside = CASES[rule]
    breaks(tmp_path / "breaks")
    inside(tmp_path / "inside")
    table = listed(tmp_path / "breaks", exclude=(rule,)).table
    reasons = {rule_of(reason) for reasons in table["excluded"] for reason in reasons}
    assert reasons == {rule}
    kept = table["excluded"].map(len).eq(0).sum()
    assert kept == (rule in ("duplicate_image", "near_duplicate"))  # one of two copies stays
    assert not listed(tmp_path / "inside", exclude=(rule,)).table["excluded"].map(bool).any()


@pytest.mark.parametrize("rule", [name for name in RulesConfig.model_fields if name != "exclude"])
def test_a_threshold_of_none_switches_a_rule_off(rule: str, tmp_path: Path) -> None:
    CASES[rule][0](tmp_path / "breaks")
    assert rule not in first(listed(tmp_path / "breaks", **{rule: None}))["flags"]


def test_a_plain_scan_breaks_no_rule(tmp_path: Path) -> None:
    save(tmp_path / "s", PLAIN)
    save(tmp_path / "s", mask(1), name="labels/a.nii")
    row = first(listed(tmp_path / "s"))
    assert (row["flags"], row["reasons"], row["excluded"], row["sequence"]) == ([], [], [], None)
    assert (row["foreground"], row["file_bytes"], row["label_off_image"]) == (
        pytest.approx(np.mean(np.median(PLAIN[:, :, :]) != PLAIN), abs=0.01),
        216_000 * 2 + 352,
        0.0,
    )


def test_rows_can_be_written_as_json(tmp_path: Path) -> None:
    """Workers send them, and they are kept beside the catalogue."""
    save(tmp_path / "s", PLAIN.astype(np.float32))
    save(tmp_path / "s", mask(1), name="labels/a.nii")
    (entry,) = recognise(tmp_path / "s")
    images = [read_image(entry.paths[0])]
    measured = measure(entry, images, images[0].array_CIJK, read_image(entry.label))
    assert json.loads(json.dumps(measured)) == measured


def test_single_slices_have_no_field_of_view_across(tmp_path: Path) -> None:
    save(tmp_path / "s", noise((60, 60, 1)), np.diag([0.5, 0.5, 8, 1]))  # 30 × 30 mm, one slice of 8 mm, 7 kB
    assert first(listed(tmp_path / "s"))["flags"] == ["no_label"]


def test_a_code_that_nifti_does_not_know(tmp_path: Path) -> None:
    with save(tmp_path / "s", PLAIN).open("r+b") as file:
        file.seek(254)  # sform_code
        file.write(b"\x09\0")
    assert "orientation" in first(listed(tmp_path / "s"))["flags"]


def test_micrometres_taken_for_millimetres(tmp_path: Path) -> None:
    save(tmp_path / "s", PLAIN, np.diag([1000, 1000, 1000, 1]))
    assert "affine: a field of view of 6e+04 mm" in first(listed(tmp_path / "s"))["reasons"]


def test_one_empty_channel_is_seen_beside_a_full_one(tmp_path: Path) -> None:
    save(tmp_path / "s", np.stack([PLAIN, np.zeros_like(PLAIN)], axis=-1))
    row = first(listed(tmp_path / "s"))
    assert (row["channels"], row["foreground"]) == (2, 0)
    assert "near_empty" in row["flags"]


def test_size_of_detached_voxels_counts(tmp_path: Path) -> None:
    import SimpleITK as sitk

    (tmp_path / "s").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(PLAIN), tmp_path / "s" / "a.mhd")
    row = first(listed(tmp_path / "s"))
    assert row["file_bytes"] == sum(path.stat().st_size for path in (tmp_path / "s").iterdir()) > 432_000
    assert row["flags"] == ["no_label"]


class TestCopies:
    def test_the_labelled_one_stays(self, tmp_path: Path) -> None:
        for name in "abc":
            save(tmp_path / "s", PLAIN, name=f"{name}.nii")
        save(tmp_path / "s", mask(1), name="labels/b.nii")
        table = listed(tmp_path / "s", exclude=("duplicate_image",)).table.set_index("image")
        assert table["excluded"].map(bool).to_dict() == {"a": True, "b": False, "c": True}
        assert all("duplicate_image" in flags for flags in table["flags"])
        assert table.loc["a", "excluded"] == ["duplicate_image: the voxels of b"]

    def test_one_that_another_rule_excludes_does_not_stay(self, tmp_path: Path) -> None:
        save(tmp_path / "s", PLAIN)
        save(tmp_path / "s", PLAIN, np.diag([1, 1, 9, 1]), "0.nii")  # comes first
        table = listed(tmp_path / "s", exclude=("spacing", "duplicate_image")).table.set_index("image")
        assert table["excluded"].map(bool).to_dict() == {"0": True, "a": False}

    def test_equal_images_that_are_like_a_third_leave_one_of_three(self, tmp_path: Path) -> None:
        for name, array in (("a", PLAIN), ("b", PLAIN), ("c", one_off(PLAIN))):
            save(tmp_path / "s", array, name=f"{name}.nii")
        table = listed(tmp_path / "s", exclude=("duplicate_image", "near_duplicate")).table.set_index("image")
        assert table["excluded"].map(bool).to_dict() == {"a": False, "b": True, "c": True}
        assert table["excluded"]["c"] == ["near_duplicate: 1.0000 with a"]

    def test_constant_images_are_no_copies_of_each_other(self, tmp_path: Path) -> None:
        for name in "ab":
            save(tmp_path / "s", np.full_like(PLAIN, 3), name=f"{name}.nii")
        assert first(listed(tmp_path / "s"))["flags"] == ["constant", "no_label"]


class TestWhatFollows:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name, side in (("a", 60), ("b", 20), ("c", 60)):
            save(tmp_path / "s", noise((side, 60, 60), seed=ord(name)), name=f"{name}.nii")
        return tmp_path / "s"

    def test_prepare_skips_what_is_excluded_and_says_how_many(self, folder: Path, capsys) -> None:
        path = listed(folder, exclude=("field_of_view", "no_geometry")).path
        capsys.readouterr()
        result = prepare(PrepareConfig(catalogue=path, out=folder.parent / "store", workers=1))
        assert "1 of 3 images are excluded by rules of the catalogue (field_of_view 1)" in capsys.readouterr().out
        assert (result.prepared, result.exit_code) == (2, 0)
        assert list(Store(folder.parent / "store").index.index) == ["a", "c"]

    def test_prepare_takes_them_on_request(self, folder: Path, capsys) -> None:
        path = listed(folder, exclude=("field_of_view",)).path
        result = prepare(PrepareConfig(catalogue=path, out=folder.parent / "store", workers=1, excluded=True))
        assert result.prepared == 3
        index = Store(folder.parent / "store").index
        assert index.loc["b", "excluded"].tolist() == ["field_of_view: 20 mm"]

    def test_an_image_that_is_excluded_later_leaves_the_index(self, folder: Path) -> None:
        store = folder.parent / "store"
        prepare(PrepareConfig(catalogue=listed(folder).path, out=store, workers=1))
        path = listed(folder, exclude=("field_of_view",)).path
        assert prepare(PrepareConfig(catalogue=path, out=store, workers=1)).prepared == 0
        assert list(Store(store).index.index) == ["a", "c"]

    def test_nothing_is_left(self, folder: Path) -> None:
        path = listed(folder, exclude=("no_label", "field_of_view")).path
        with pytest.raises(
            DataError, match=r"only images that its rules exclude \(no_label 3, field_of_view 1\).*--excluded"
        ):
            prepare(PrepareConfig(catalogue=path, out=folder.parent / "store", workers=1))
        assert not (folder.parent / "store").exists()

    def test_plan_leaves_them_out(self, folder: Path, capsys) -> None:
        path = listed(folder, exclude=("field_of_view",)).path
        capsys.readouterr()
        plan(PlanConfig(catalogue=path, out=folder.parent / "plan.yaml", size="S"))
        assert "1 of 3 images are excluded" in capsys.readouterr().out

    def test_rows_and_reasons_stay_in_the_file(self, folder: Path, capsys) -> None:
        path = listed(folder, exclude=("field_of_view",)).path
        table = read_catalogue(path).set_index("image")
        assert table["excluded"].to_dict() == {"a": [], "b": ["field_of_view: 20 mm"], "c": []}
        assert table.loc["b", "reasons"] == ["field_of_view: 20 mm", "file_size: 141 kB", "no_label"]
        assert "1 of 3 images are excluded; their rows stay and say why" in capsys.readouterr().out


def test_counts(tmp_path: Path) -> None:
    for name, side in (("a", 60), ("b", 20), ("c", 30)):
        save(tmp_path / "s", noise((side, 60, 60), seed=ord(name)), name=f"{name}.nii")
    rules = RulesConfig(exclude=("field_of_view",), field_of_view=25)
    table = listed(tmp_path / "s", **rules.model_dump()).table
    # 20 · 60 · 60 · 2 + 352 bytes are 141 kB, 30 slices 211 kB
    assert [tuple(found) for found in count(table, rules)] == [
        ("field_of_view", "at least 25 mm", 1, 1),
        ("file_size", "at least 200 kB", 1, 0),
        ("no_label", "", 3, 0),
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"exclude": ("field-of-view",)}, "'rules.exclude' is 'field-of-view'"),
        ({"spacing": -1}, "'rules.spacing' is -1"),
        ({"near_duplicate": 1.0}, "'rules.near_duplicate' is 1.0"),
        ({"fov": 3}, "unknown key 'rules.fov'"),
        ({"sequence": ("T3",)}, "'rules.sequence'"),
    ],
)
def test_wrong_settings_are_named(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CatalogueConfig.parse({"paths": ["x"], "rules": settings})
