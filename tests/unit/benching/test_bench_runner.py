"""What is run, what is not run again, and what a failure costs; files stand in for the verbs that would leave them."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
from tests.unit.benching.bench_files import content

from prevox.benching.commands import Outcome
from prevox.benching.folder import Folder, read_lines
from prevox.benching.plan import plan
from prevox.benching.run import Runner
from prevox.benching.sources import check_sources, given_paths
from prevox.config.base import read_yaml
from prevox.config.bench import BenchFile
from prevox.errors import ConfigError, NotFiniteError, RunError
from prevox.verbs.bench import _compare

pytestmark = pytest.mark.unit

DIVERGED = Outcome(NotFiniteError.exit_code, "the loss became nan at step 3. Last good checkpoint: none yet.")
CRASHED = Outcome(-9, "killed by SIGKILL (out of memory, perhaps)")


class Stand:
    """In place of the verbs: leaves what they leave; 12 images of 12 subjects, all labelled but the last two.

    Args:
        ends: What a run ends in, by its name and its learning rate; None lets it succeed.
        dice: Score of a run by its learning rate.
    """

    def __init__(
        self,
        ends: Callable[[str, float], Outcome | None] = lambda name, lr: None,
        dice: Callable[[float], float] = float,
    ):
        self.ends, self.dice, self.ran = ends, dice, []

    def run(self, *commands: Sequence[object], log: str, of: str) -> Outcome:
        for verb, *words in commands:
            option = {word: words[place + 1] for place, word in enumerate(words) if str(word).startswith("--")}
            if verb in ("pretrain", "finetune"):
                settings = read_yaml(option["--recipe"])
                lr = settings.get("optim", {}).get("lr", 0)
                self.ran.append((verb, of))
                if (outcome := self.ends(of, lr)) is not None:
                    return outcome
                option["--out"].mkdir(parents=True)
                (option["--out"] / "summary.json").write_text(json.dumps({"finished": True, "lr": lr}))
            elif verb == "prepare":
                labels = [f"l{n}" if n < 10 else None for n in range(12)]
                rows = {"image": [f"i{n}" for n in range(12)], "subject": [f"s{n}" for n in range(12)]}
                option["--out"].mkdir(parents=True)
                pd.DataFrame({**rows, "label_path": labels}).to_parquet(option["--out"] / "index.parquet")
            elif verb == "catalogue":
                option["--out"].parent.mkdir(parents=True)
            elif verb == "evaluate":
                run = option["--predictions"]
                lr = json.loads((run / "summary.json").read_text())["lr"]
                (run / "evaluation").mkdir()
                row = {"class": "mean", "metric": "dice", "mean": self.dice(lr)}
                (run / "evaluation" / "summary.json").write_text(json.dumps({"summary": [row]}))
        return Outcome(0)


@pytest.fixture
def bench_of(tmp_path: Path) -> Callable[..., tuple[Runner, list]]:
    (tmp_path / "scans").mkdir()

    def make(stand: Stand, **over) -> tuple[Runner, list]:
        bench = BenchFile.parse(content(**{"datasets": {"a": {}}} | over), "file")
        folder = Folder(tmp_path / "out")
        folder.out.mkdir(exist_ok=True)
        runner = Runner(bench, {"a": [tmp_path / "scans"]}, folder, stand)
        cells = plan(bench)
        for cell in cells:
            runner.cell(cell)
        return runner, cells

    return make


def test_one_pretraining_for_many_cells_and_nothing_twice(bench_of) -> None:
    stand = Stand()
    runner, cells = bench_of(stand, labels=[2, "all"], seeds=[0, 1])
    assert [verb for verb, _ in stand.ran].count("pretrain") == 2  # mae and s3d
    assert [verb for verb, _ in stand.ran].count("finetune") == 4 * 2 * 2 == len(cells)
    assert not runner.failures
    again = Stand()
    bench_of(again, labels=[2, "all"], seeds=[0, 1])
    assert again.ran == []
    more = Stand()
    bench_of(more, labels=[2, 3, "all"], seeds=[0, 1])
    assert [verb for verb, _ in more.ran] == ["finetune"] * 4 * 2, "only what is new"


def test_labels_are_counted_among_the_training_subjects(bench_of) -> None:
    scratch = {"scratch": {"backbones": ["vit"]}}
    labels = [0.25, 0.01, 7, 9, "all"]
    runner, cells = bench_of(Stand(), methods=scratch, labels=labels, rates=[1e-3, 1e-2], trial_steps=2)
    settings = {path.stem: read_yaml(path) for path in (runner.folder.out / "settings").glob("*.yaml")}
    found = {cell.labels: settings[cell.name].get("labels") for cell in cells if cell.name in settings}
    index = pd.read_parquet(next((runner.folder.out / "data").glob("*/store/index.parquet"))).set_index("image")
    from prevox.config.data import SplitConfig
    from prevox.data.splits import split_images

    train = split_images(index, SplitConfig())["train"]
    inner = split_images(index, SplitConfig(inner=True))["train"]
    outer, own = (int(index.loc[part, "label_path"].notna().sum()) for part in (train, inner))
    assert len(train) == 10  # of 12 subjects, 20 % (2) are held out
    assert found == {0.25: round(outer / 4), 0.01: 1, 7: 7, "all": None} | ({9: 9} if outer >= 9 else {})
    tried = {name: chosen["labels"] for name, chosen in settings.items() if "labels-7.lr" in name}
    assert set(tried.values()) == {min(7, own)}, "a trial has no more labels than the inner split"
    assert own < outer
    if outer < 9:
        (reason,) = runner.failures.values()
        assert f"only {outer} labelled training subjects" in reason


def test_the_best_rate_is_taken_by_all_seeds(bench_of) -> None:
    stand = Stand(dice=lambda lr: {1e-3: 0.5, 1e-2: 0.7, 1e-1: 0.6}[lr])
    runner, cells = bench_of(stand, rates=[1e-3, 1e-2, 1e-1], trial_steps=2, seeds=[0, 1])
    for cell in cells:
        assert read_yaml(runner.folder.out / "settings" / f"{cell.name}.yaml")["optim"]["lr"] == 1e-2
    listed = read_lines(runner.folder.out / "trials.jsonl")
    assert len(listed) == len({row["trial"] for row in listed}) == 4 * 3
    assert {row["dice"] for row in listed} == {0.5, 0.6, 0.7}


def test_a_rate_that_diverges_is_a_trial_like_any_other(bench_of) -> None:
    stand = Stand(lambda name, lr: DIVERGED if lr == 1.0 else None)
    runner, cells = bench_of(stand, rates=[1e-3, 1.0], trial_steps=2)
    assert all(runner.folder.state(cell) == "done" for cell in cells)
    assert [row["dice"] for row in read_lines(runner.folder.out / "trials.jsonl")] == [1e-3, None] * 4
    assert not runner.failures
    again = Stand()
    bench_of(again, rates=[1e-3, 1.0], trial_steps=2)
    assert again.ran == [], "its outcome is known"


def test_divergence_is_known_by_the_exit_code_not_by_words(bench_of) -> None:
    over = {"rates": [1e-3, 1.0], "trial_steps": 2, "methods": {"scratch": {"backbones": ["vit"]}}}
    wordless = Outcome(NotFiniteError.exit_code, "said nothing")
    runner, (cell,) = bench_of(Stand(lambda name, lr: wordless if lr == 1.0 else None), **over)
    assert runner.folder.state(cell) == "done"
    assert [row["diverged"] for row in read_lines(runner.folder.out / "trials.jsonl")] == [False, True]
    liar = Outcome(2, "Last good checkpoint: none yet.")
    runner, (cell,) = bench_of(Stand(lambda name, lr: liar if lr == 2.0 else None), **{**over, "rates": [1e-3, 2.0]})
    assert "no rate is chosen fairly" in runner.failures[cell.name]


def test_a_diverged_trial_of_an_older_version_is_known(bench_of) -> None:
    """Whose trials.jsonl has no column `diverged`."""
    over = {"rates": [1e-3, 1.0], "trial_steps": 2, "methods": {"scratch": {"backbones": ["vit"]}}}
    runner, (cell,) = bench_of(Stand(lambda name, lr: DIVERGED if lr == 1.0 else None), **over)
    path = runner.folder.out / "trials.jsonl"
    old = [{key: value for key, value in row.items() if key != "diverged"} for row in read_lines(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in old))
    shutil.rmtree(runner.folder.run(cell))
    again = Stand()
    bench_of(again, **over)
    assert again.ran == [("finetune", cell.name)]


def test_a_trial_that_fails_is_listed_once_in_a_call_whatever_the_number_of_seeds(bench_of) -> None:
    scratch = {"scratch": {"backbones": ["vit"]}}
    over = {"rates": [1e-3, 1e-2], "trial_steps": 2, "methods": scratch, "seeds": [0, 1, 2]}
    runner, cells = bench_of(Stand(lambda name, lr: CRASHED if lr == 1e-2 else None), **over)
    assert [row["lr"] for row in read_lines(runner.folder.out / "trials.jsonl")] == [1e-3, 1e-2]
    assert set(runner.failures) >= {cell.name for cell in cells}
    again, _ = bench_of(Stand(lambda name, lr: CRASHED if lr == 1e-2 else None), **over)
    assert [row["lr"] for row in read_lines(again.folder.out / "trials.jsonl")] == [1e-3, 1e-2, 1e-2], "tried again"


def test_where_every_rate_diverges_the_cell_fails(bench_of) -> None:
    over = {"rates": [1.0, 2.0], "trial_steps": 2, "methods": {"scratch": {"backbones": ["vit"]}}}
    runner, (cell,) = bench_of(Stand(lambda name, lr: DIVERGED), **over)
    assert runner.failures == {cell.name: "no rate of [1.0, 2.0] gave a finite loss"}


def test_a_trial_that_crashes_leaves_its_cell_for_the_next_call(bench_of) -> None:
    over = {"rates": [1e-3, 1e-2], "trial_steps": 2, "methods": {"scratch": {}}}
    stand = Stand(lambda name, lr: CRASHED if ".vit." in name and lr == 1e-2 else None)
    runner, (vit, unet) = bench_of(stand, **over)
    assert "no rate is chosen fairly" in runner.failures[vit.name]
    assert runner.folder.state(vit) == "missing"
    assert runner.folder.state(unet) == "done"
    again = Stand()
    runner, _ = bench_of(again, **over)
    assert [verb for verb, _ in again.ran] == ["finetune"] * 2, "the trial, then the cell"
    assert runner.folder.state(vit) == "done"
    assert len(read_lines(runner.folder.out / "trials.jsonl")) == 5, "the crash stays listed"


def test_a_crash_in_one_arm_costs_its_own_cells_only_and_is_not_repeated(bench_of) -> None:
    stand = Stand(lambda name, lr: CRASHED if name.startswith("a.mae.vit-") else None)
    runner, cells = bench_of(stand, seeds=[0, 1])
    states = {(cell.arm, cell.seed): runner.folder.state(cell) for cell in cells}
    assert {arm for (arm, _), state in states.items() if state != "done"} == {"mae.vit"}
    assert len([name for verb, name in stand.ran if verb == "pretrain" and ".mae." in name]) == 1
    for cell in cells:
        if cell.arm == "mae.vit":
            assert runner.failures[cell.name].startswith("a.mae.vit-")
            assert "SIGKILL" in runner.failures[cell.name]


def test_a_comparison_of_an_earlier_call_does_not_stay_where_its_runs_are_gone(bench_of) -> None:
    runner, cells = bench_of(Stand(lambda name, lr: CRASHED))
    stale = runner.folder.out / "comparison" / "labels-all.dice"
    stale.mkdir(parents=True)
    _compare(runner.bench, cells, runner)
    assert not stale.exists()


def test_a_trial_without_a_score_is_named(bench_of) -> None:
    over = {"rates": [1e-3, 1e-2], "trial_steps": 2, "methods": {"scratch": {"backbones": ["vit"]}}}
    runner, (cell,) = bench_of(Stand(dice=lambda lr: None), **over)
    assert "trial of rate 0.001: its mean Dice is no number" in runner.failures[cell.name]


def test_a_dataset_that_fails_is_to_blame_for_its_cells(bench_of, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand()
    monkeypatch.setattr(stand, "run", lambda *commands, log, of: Outcome(2, "no images"))
    runner, cells = bench_of(stand)
    assert {runner.failures[cell.name] for cell in cells} == {"dataset a: no images"}


def test_paths_must_name_the_files_datasets(tmp_path: Path) -> None:
    bench = BenchFile.parse(content(), "file")
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    given = given_paths(bench, (f"a={tmp_path / 'x'}", f"a={tmp_path / 'y'}"))
    assert given == {"a": [tmp_path / "x", tmp_path / "y"]}
    for word, message in (("c=x", "'c' is no dataset"), ("a", "no NAME=PATH"), ("a=nowhere", "no such folder")):
        with pytest.raises(ConfigError, match=message):
            given_paths(bench, (word,))


def test_other_scans_are_refused(bench_of, tmp_path: Path) -> None:
    (tmp_path / "scans" / "one.nii").write_bytes(b"12")
    runner, _ = bench_of(Stand())
    check_sources(runner.bench, runner.paths, runner.folder.out)
    (tmp_path / "scans" / "two.nii").write_bytes(b"1")
    with pytest.raises(RunError, match=r"1 files below .* \(two.nii, for example\)"):
        check_sources(runner.bench, runner.paths, runner.folder.out)
    (tmp_path / "scans" / "two.nii").unlink()
    (tmp_path / "scans" / "one.nii").write_bytes(b"123")
    with pytest.raises(RunError, match=r"one\.nii"):
        check_sources(runner.bench, runner.paths, runner.folder.out)
    (tmp_path / "scans" / "one.nii").unlink()
    with pytest.raises(RunError, match=r"one\.nii"):
        check_sources(runner.bench, runner.paths, runner.folder.out)
    with pytest.raises(RunError, match="was begun with"):
        check_sources(runner.bench, {"a": [tmp_path]}, runner.folder.out)


def test_label_fractions_are_described_together_after_each_was_compared(bench_of, tmp_path: Path) -> None:
    """Arms of two label fractions are points of curves, not rivals: no test is made between them."""
    runner, cells = bench_of(Stand(), labels=[2, "all"], metrics=["dice", "nsd"])
    for cell in cells:
        table = {"case": ["c"], "subject": ["s"], "class": ["x"], "dice": [0.5]}
        pd.DataFrame(table).to_parquet(runner.folder.run(cell) / "evaluation" / "scores.parquet")
    called = []
    runner.commands.run = lambda *commands, log, of: called.append((of, commands[0])) or Outcome(0)
    _compare(runner.bench, cells, runner)
    assert [of for of, _ in called] == [
        f"{group}.{metric}" for group in ("labels-2", "labels-all", "over-labels") for metric in ("dice", "nsd")
    ]
    words = {of: [str(word) for word in command] for of, command in called}
    assert "--describe" not in words["labels-2.dice"]
    assert "--describe" in words["over-labels.dice"]
    named = [word.partition("=")[0] for word in words["over-labels.dice"] if "=" in word]
    assert {"mae.vit labels-2", "mae.vit labels-all", "s3d.unet labels-2"} <= set(named)
    assert len(named) == len(cells)


def test_one_label_fraction_needs_no_curve(bench_of) -> None:
    runner, cells = bench_of(Stand())
    for cell in cells:
        table = {"case": ["c"], "subject": ["s"], "class": ["x"], "dice": [0.5]}
        pd.DataFrame(table).to_parquet(runner.folder.run(cell) / "evaluation" / "scores.parquet")
    called = []
    runner.commands.run = lambda *commands, log, of: called.append(of) or Outcome(0)
    _compare(runner.bench, cells, runner)
    assert called == ["labels-all.dice"]
