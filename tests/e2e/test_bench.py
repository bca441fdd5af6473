"""A bench on phantoms: run, killed, run again, changed; with arms that fail, trials, folds and an unseen dataset."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from prevox.benching.folder import read_lines
from prevox.data.phantom import write_phantoms
from tests.e2e.bench_file import METHOD, MODEL, VIEW, content, write

pytestmark = pytest.mark.e2e
CALM, WILD = 1e-3, 1e30  # learning rates; the second makes the loss infinite


def prevox(*words: object, code: int = 0) -> str:
    """As the other tests' `prevox`, with time for the many processes of a bench."""
    command = [sys.executable, "-m", "prevox", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590)
    assert done.returncode == code, f"{words}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_phantoms(root / "phantoms", 6, seed=3, shape=(28, 32, 30))
    write_phantoms(root / "unseen", 2, seed=4, shape=(28, 32, 30))
    return root


@pytest.fixture(scope="module")
def ran(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Three arms, one of which cannot be built; two rates, one of which diverges; an unseen dataset."""
    root = tmp_path_factory.mktemp("bench")
    whole = content()
    odd = {"model": {**MODEL, "patch": [7, 7, 7]}, "finetune": whole["backbones"]["vit"]["finetune"]}
    methods = {"odd": {"backbones": ["odd"], "pretrain": {"method": METHOD, **VIEW, "train": {"steps": 2}}}}
    finetune = {**odd["finetune"], "train": {"steps": 4, "batch": 1, "log_every": 1}}
    del finetune["optim"]
    file = write(
        root / "bench.yaml",
        datasets={"phantoms": {"spacing": [4, 4, 4]}, "unseen": {"role": "test"}},
        methods={**methods, "scratch": {"backbones": ["vit"]}, **{"mae": whole["methods"]["mae"]}},
        backbones={"odd": {**odd, "finetune": finetune}, "vit": {"model": MODEL, "finetune": finetune}},
        labels=[0.5],
        rates=[CALM, WILD],
        trial_steps=4,
        test_on={"phantoms": ["unseen"]},
    )
    data = [f"phantoms={scans / 'phantoms'}", f"unseen={scans / 'unseen'}"]
    return root / "out", prevox("bench", file, "--data", *data, "--out", root / "out", code=1)


def test_an_arm_that_fails_is_named_and_costs_only_itself(ran: tuple[Path, str]) -> None:
    out, text = ran
    cells = pd.read_csv(out / "cells.csv").set_index("arm")
    assert dict(cells["state"]) == {"odd.odd": "failed", "scratch.vit": "done", "mae.vit": "done"}
    assert cells.loc["odd.odd", "reason"].startswith("phantoms.mae.vit-"), "its pre-training is to blame"
    assert "patch" in cells.loc["odd.odd", "reason"]
    assert "failed: phantoms.odd.odd" in " ".join(text.split())
    assert not [row for row in read_lines(out / "steps.jsonl") if row["code"] < 0]


def test_every_trial_is_listed_and_the_rate_is_chosen_among_them(ran: tuple[Path, str]) -> None:
    out, _ = ran
    listed = read_lines(out / "trials.jsonl")
    assert sorted((row["arm"], row["lr"]) for row in listed) == [
        (arm, lr) for arm in ("mae.vit", "scratch.vit") for lr in (CALM, WILD)
    ]
    for row in listed:
        assert (row["dice"] is None) == (row["lr"] == WILD)
        assert row["diverged"] == (row["lr"] == WILD)
        split = json.loads((out / "trials" / row["trial"] / "split.json").read_text())
        (cell,) = (out / "cells").glob(f"phantoms.{row['arm']}.*")
        outer = json.loads((cell / "split.json").read_text())
        assert not set(split["train"] + split["validation"]) & set(outer["validation"]), "chosen on training subjects"
    cells = pd.read_csv(out / "cells.csv").set_index("arm")
    assert list(cells.loc[["scratch.vit", "mae.vit"], "lr"]) == [CALM, CALM]


def test_both_arms_have_the_same_subjects_and_half_of_them_labelled(ran: tuple[Path, str]) -> None:
    out, _ = ran
    splits = [json.loads((cell / "split.json").read_text()) for cell in sorted((out / "cells").iterdir())]
    assert len(splits) == 2
    assert splits[0]["train"] == splits[1]["train"]
    assert len(splits[0]["train"]) == 2  # half of the 5 that are not held out, rounded to even
    (pretrained,) = (out / "pretrain").glob("phantoms.mae.vit-*")
    learnt_from = set(json.loads((pretrained / "split.json").read_text())["train"])
    assert len(learnt_from) == 5
    assert not learnt_from & set(splits[0]["validation"])


def test_what_was_trained_on_one_dataset_is_scored_on_the_other(ran: tuple[Path, str]) -> None:
    out, _ = ran
    cells = pd.read_csv(out / "cells.csv").set_index("arm")
    for cell in (out / "cells").iterdir():
        scores = pd.read_parquet(cell / "test_on" / "unseen" / "evaluation" / "scores.parquet")
        assert scores["case"].nunique() == 2
        arm = ".".join(cell.name.split(".")[1:3])
        per_case = scores.groupby("case")["dice"].mean().mean()
        assert cells.loc[arm, "dice on unseen"] == pytest.approx(per_case)
    compared = json.loads((out / "comparison" / "labels-0.5.on-unseen.dice" / "comparison.json").read_text())
    assert [dataset["cases"] for dataset in compared["datasets"]] == [2]
    assert {row["run"] for row in compared["scores"]} == {"scratch.vit", "mae.vit"}
    assert (out / "comparison" / "labels-0.5.dice" / "tables.md").is_file()
    assert "mae.vit" in (out / "report.html").read_text()


def begun(out: Path, pattern: str, process: subprocess.Popen) -> None:
    """Wait until a run has logged a step."""
    for _ in range(30_000):
        if any(path.stat().st_size for path in out.glob(f"{pattern}/metrics.jsonl")):
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    raise AssertionError(f"{pattern} never began")


def commands_in(out: Path) -> list[int]:
    """Processes whose command line names the bench's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(out) in words:
                found.append(int(entry.name))
    return found


def finished_files(cell: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cell.rglob("*") if path.is_file()}


def test_killed_it_goes_on_and_redoes_nothing_that_is_finished(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    backbone = content()["backbones"]["vit"]
    finetune = {**backbone["finetune"], "train": {"steps": 20, "batch": 1, "log_every": 1, "checkpoint_every": 5}}
    base = {"methods": {"scratch": {}}, "labels": [2], "folds": 2}
    file = write(tmp_path / "b.yaml", **base, backbones={"vit": {**backbone, "finetune": finetune}})
    words = ["bench", str(file), "--data", f"phantoms={scans / 'phantoms'}", "--out", str(out)]

    budget = prevox(*words, "--budget")
    assert budget.count("missing") >= 2
    assert "still to do: " in budget
    assert not (out / "cells").exists(), "a budget trains nothing"

    process = subprocess.Popen(
        [sys.executable, "-m", "prevox", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    begun(out, "cells/*.fold-1.*", process)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    process.stdout.close()
    for _ in range(200):
        if not commands_in(out):
            break
        time.sleep(0.05)
    assert not commands_in(out), "what it had started must not work on behind its back"
    (first,) = (out / "cells").glob("*.fold-0.*")
    (second,) = (out / "cells").glob("*.fold-1.*")
    before = finished_files(first)
    assert (first / "evaluation" / "summary.json").is_file()
    assert not (second / "summary.json").is_file()

    prevox(*words)
    assert finished_files(first) == before
    steps = [(row["verb"], row["of"]) for row in read_lines(out / "steps.jsonl")]
    assert steps.count(("finetune", first.name)) == 1
    assert steps.count(("predict", first.name)) == 1
    assert steps.count(("catalogue", "phantoms")) == steps.count(("prepare", "phantoms")) == 1
    assert json.loads((second / "summary.json").read_text())["steps"] == 20
    cells = pd.read_csv(out / "cells.csv")
    assert list(cells["state"]) == ["done", "done"]
    held_out = [set(json.loads((cell / "split.json").read_text())["validation"]) for cell in (first, second)]
    assert not held_out[0] & held_out[1]
    assert len(held_out[0] | held_out[1]) == 6

    again = prevox(*words)
    assert finished_files(first) == before
    assert "finetune" not in again

    changed = {**finetune, "train": {**finetune["train"], "steps": 21}}
    write(file, **base, backbones={"vit": {**backbone, "finetune": changed}})
    text = " ".join(prevox(*words, "--budget").split())
    assert "2 of the runs in" in text
    assert "are not used" in text
    assert "2 missing" in text, "no finished run is taken for one with other settings"

    shutil.copytree(scans / "phantoms", tmp_path / "more")
    elsewhere = prevox(*words[:2], "--data", f"phantoms={tmp_path / 'more'}", "--out", out, code=2)
    assert "was begun with" in elsewhere


def test_a_changed_scan_stops_it_before_anything_runs(scans: Path, tmp_path: Path) -> None:
    shutil.copytree(scans / "phantoms", tmp_path / "own")
    file = write(tmp_path / "b.yaml", methods={"scratch": {}}, datasets={"own": {}})
    words = ["bench", file, "--data", f"own={tmp_path / 'own'}", "--out", tmp_path / "out"]
    (folder,) = (tmp_path / "out" / "data" / "own-0").parents[:1]
    folder.mkdir(parents=True)
    (tmp_path / "out" / ".lock").touch()
    from prevox.benching.plan import dataset_folder
    from prevox.benching.sources import fingerprint
    from prevox.config.bench import read_bench

    place = folder / dataset_folder("own", read_bench(str(file)).datasets["own"])
    place.mkdir()
    (place / "source.json").write_text(json.dumps(fingerprint([tmp_path / "own"])))
    image = sorted((tmp_path / "own" / "imagesTr").iterdir())[0]
    image.write_bytes(image.read_bytes() + b"x")
    text = " ".join(prevox(*words, code=2).split())
    assert f"imagesTr/{image.name}" in text
    assert "not mixed" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "phantom=."], "'phantom' is no dataset of the file; expected one of phantoms"),
        (["--data", "phantoms"], "is no NAME=PATH"),
        (["--data", "phantoms=nowhere"], "no such folder"),
        ([], "not given for phantoms. Add --data phantoms=PATH"),
        (["--data", "phantoms=.", "--out", "."], "is not empty and no bench"),
    ],
)
def test_wrong_calls(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b.yaml")
    assert message in " ".join(prevox("bench", "b.yaml", *words, code=2).split())
