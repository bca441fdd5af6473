import json
from pathlib import Path

import pytest

from prevox.config.runs import pretrain_schema
from prevox.errors import ConfigError, RunError
from prevox.train.run_folder import check_run, write_run

pytestmark = pytest.mark.unit
SPLIT = {"train": ["a"], "validation": ["b"]}


def config(out: Path, **more):
    return pretrain_schema().parse({"store": "s", "out": out, "train": {"steps": 3}, **more})


def test_a_folder_with_foreign_files_is_refused_with_and_without_resume(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    for resume in (False, True):
        with pytest.raises(RunError, match="is not empty and not a run"):
            check_run(config(tmp_path, resume=resume), "pretrain", SPLIT)


def test_a_folder_of_a_run_killed_while_it_was_made_is_free(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.partial").write_text("verb: pre")
    check_run(config(tmp_path), "pretrain", SPLIT)
    check_run(config(tmp_path, resume=True), "pretrain", SPLIT)


def test_a_run_without_its_split_can_be_resumed(tmp_path: Path) -> None:
    write_run(config(tmp_path), "pretrain", {})
    check_run(config(tmp_path, resume=True), "pretrain", SPLIT)
    with pytest.raises(RunError, match="Add --resume"):
        check_run(config(tmp_path), "pretrain", SPLIT)


def test_another_division_is_refused(tmp_path: Path) -> None:
    write_run(config(tmp_path), "pretrain", {"split.json": SPLIT})
    assert json.loads((tmp_path / "split.json").read_text()) == SPLIT
    with pytest.raises(RunError, match="another division"):
        check_run(config(tmp_path, resume=True), "pretrain", {"train": ["b"], "validation": ["a"]})


@pytest.mark.parametrize(
    ("verb", "more", "difference"),
    [
        ("finetune", {}, "a run of `prevox pretrain`; `prevox finetune` cannot go on with it"),
        ("pretrain", {"method": {"mask_ratio": 0.5}}, "method.mask_ratio: the run has 0.75, this call 0.5"),
        ("pretrain", {"model": {"size": "S"}}, "model.size"),
    ],
)
def test_another_method_or_model_is_named(verb: str, more: dict, difference: str, tmp_path: Path) -> None:
    write_run(config(tmp_path), "pretrain", {})
    with pytest.raises(ConfigError, match=difference):
        check_run(config(tmp_path, resume=True, **more), verb, SPLIT)


def test_what_does_not_change_the_result_may_change(tmp_path: Path) -> None:
    write_run(config(tmp_path), "pretrain", {})
    other = {
        "train": {"steps": 3, "reads_ahead": 2, "checkpoint_every": 5, "checkpoint_activations": True},
        "store": "moved",
    }
    check_run(config(tmp_path, resume=True, **other), "pretrain", SPLIT)
