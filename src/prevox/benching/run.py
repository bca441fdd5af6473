"""Run what is missing of a plan. A command that fails costs only what needs it; it is named, and the rest goes on."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prevox.benching.cells import Cell, Pretraining, Trial
from prevox.benching.commands import Commands, Outcome
from prevox.benching.folder import Folder, append_line, mean_dice, read_json, read_lines
from prevox.benching.plan import dataset_folder, trials
from prevox.benching.sources import fingerprint
from prevox.config.base import section, write_yaml
from prevox.config.bench import BenchFile
from prevox.config.data import SplitConfig
from prevox.console import console, warn
from prevox.errors import DataError
from prevox.output import replacing

if TYPE_CHECKING:
    import pandas as pd

OLD_WORDS = "Last good checkpoint"  # of a diverged trial, where trials.jsonl has no column that says so


class CellFailedError(Exception):
    """Something that a cell needs has failed.

    Args:
        reason: What and why.
        diverged: Whether a training was no longer finite: for a trial an outcome like any other.
    """

    def __init__(self, reason: str, *, diverged: bool = False) -> None:
        super().__init__(reason)
        self.diverged = diverged


@dataclass
class Runner:
    """Runs cells with all that they need, each thing once.

    Attributes:
        failures: Name → reason of what failed, in the order in which it did.
        warnings: What a reader of the results must know, each once.
    """

    bench: BenchFile
    paths: dict[str, list[Path]]
    folder: Folder
    commands: Commands
    failures: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def cell(self, cell: Cell) -> None:
        """Train and score a cell, after its dataset, pre-training and trials; a failure is noted, not raised."""
        try:
            self._cell(cell)
        except (CellFailedError, DataError) as error:
            self._note(cell.name, str(error))

    def dataset(self, name: str) -> Path:
        """Catalogue and prepare a dataset.

        Returns:
            Its folder.
        """
        config, folder = self.bench.datasets[name], self.catalogue(name)
        spacing = config.spacing if isinstance(config.spacing, tuple) else [config.spacing]
        if not (folder / "store" / "index.parquet").is_file():
            words = ["--catalogue", folder / "catalogue.parquet", "--out", folder / "store"]
            words += ["--spacing", *spacing, "--crop", config.crop]
            self._must(self.commands.run(["prepare", *words], log=folder.name, of=name), f"dataset {name}")
        return folder

    def catalogue(self, name: str) -> Path:
        """Catalogue a dataset; its files are noted first, so that later calls know whether they are the same.

        Returns:
            Its folder.
        """
        config, paths = self.bench.datasets[name], self.paths[name]
        folder = self.folder.out / "data" / dataset_folder(name, config)
        self._once(f"dataset {name}")
        if not (folder / "source.json").is_file():
            found = fingerprint(paths)
            words = [*paths, *(["--table", paths[0] / config.table] if config.table else [])]
            words += ["--group", config.group] if config.group else []
            words += ["--out", folder / "catalogue.parquet"]
            self._must(self.commands.run(["catalogue", *words], log=folder.name, of=name), f"dataset {name}")
            with replacing(folder / "source.json") as path:
                path.write_text(json.dumps(found))
        return folder

    def _cell(self, cell: Cell) -> None:
        tested_on = self.bench.test_on.get(cell.dataset, ())
        if self.folder.state(cell, tested_on) == "done":
            return
        data, run = self.dataset(cell.dataset), self.folder.run(cell)
        settings = None
        start = [] if cell.pretraining is None else ["--pretrained", self._pretraining(cell.pretraining)]
        if not self.folder.trained(cell):
            settings = self.with_labels(cell.settings, cell, data)
            rate = self._rate(cell, data, start)
            if rate is not None:
                settings = {**settings, "optim": {**section(settings, "optim"), "lr": rate}}
        self._run(cell, settings, data, start)
        seen = read_json(run / "split.json").get("seen_in_pretraining")
        if seen:
            self._warn(
                f"{cell.arm}: its pre-training has learnt from {len(seen)} of the images of {cell.dataset} that are "
                "held out here (without labels)"
            )
        for name in tested_on:
            self._test(cell, name)

    def _pretraining(self, pretraining: Pretraining) -> Path:
        run = self.folder.run(pretraining)
        if not self.folder.trained(pretraining):
            self._once(pretraining.name)
            train = self._train("pretrain", pretraining, pretraining.settings, self.dataset(pretraining.dataset), [])
            self._must(self.commands.run(train, log=pretraining.name, of=pretraining.name), pretraining.name)
            self._ended(pretraining)
        return run

    def _run(self, of: Cell | Trial, settings: dict[str, Any] | None, data: Path, start: list[Any]) -> None:
        """Fine-tune if settings are given, and predict and score the held-out images, if that is not done."""
        run, catalogue = self.folder.run(of), data / "catalogue.parquet"
        commands = [] if settings is None else [self._train("finetune", of, settings, data, start)]
        if not (run / "evaluation" / "summary.json").is_file():
            commands.append(["predict", "--run", run, "--images", catalogue, "--split", "validation"])
            commands.append(["evaluate", "--predictions", run, "--references", catalogue])
        if commands:
            self._must(self.commands.run(*commands, log=of.name, of=of.name), of.name)
            self._ended(of)

    def _train(
        self, verb: str, of: Cell | Trial | Pretraining, settings: dict[str, Any], data: Path, start: list[Any]
    ) -> list[Any]:
        """The command that trains; its settings are written as a recipe."""
        recipe = self.folder.out / "settings" / f"{of.name}.yaml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        write_yaml(recipe, json.loads(json.dumps(settings)))
        return [verb, "--recipe", recipe, "--store", data / "store", "--resume", *start, "--out", self.folder.run(of)]

    def _ended(self, of: Cell | Trial | Pretraining) -> None:
        if not self.folder.trained(of):
            self._fail(of.name, "stopped by a signal before its end")

    def _test(self, cell: Cell, dataset: str) -> None:
        """Predict and score all images of an unseen dataset, once, by the run's classes."""
        place = self.folder.tested(cell, dataset)
        if (place / "evaluation" / "summary.json").is_file():
            return
        catalogue, run = self.catalogue(dataset) / "catalogue.parquet", self.folder.run(cell)
        classes = read_json(run / "classes.json")
        regions = [f"{name}={','.join(map(str, values))}" for name, values in classes.items()]
        predict = ["predict", "--run", run, "--images", catalogue, "--out", place / "predictions"]
        evaluate = ["evaluate", "--predictions", place / "predictions", "--references", catalogue]
        evaluate += ["--out", place / "evaluation", "--regions", *regions]
        outcome = self.commands.run(predict, evaluate, log=cell.name, of=f"{cell.name} on {dataset}")
        self._must(outcome, cell.name)

    def _rate(self, cell: Cell, data: Path, start: list[Any]) -> float | None:
        """The learning rate with the best mean Dice on the inner split; None where there is nothing to choose."""
        scores: dict[float, float] = {}
        planned = trials(self.bench, cell)
        for trial in planned:
            row = self._trial(trial, data, start)
            if row["dice"] is not None:
                scores[trial.lr] = row["dice"]
            elif not row["diverged"]:
                why = row["reason"] or "its mean Dice is no number, so no held-out case of the inner split has a class"
                raise CellFailedError(f"trial of rate {trial.lr:g}: {why}; without it no rate is chosen fairly")
        if planned and not scores:
            raise CellFailedError(f"no rate of {[trial.lr for trial in planned]} gave a finite loss")
        return max(scores, key=lambda rate: scores[rate]) if scores else None

    def _trial(self, trial: Trial, data: Path, start: list[Any]) -> dict[str, Any]:
        """Run a trial unless its outcome is known, and list it; what has failed in this call is listed once.

        Returns:
            Its row of trials.jsonl.
        """
        path, run, cell = self.folder.out / "trials.jsonl", self.folder.run(trial), trial.cell
        known = {row["trial"]: row for row in read_lines(path)}.get(trial.name)
        if known is not None:
            known.setdefault("diverged", OLD_WORDS in known["reason"])
            scored = (run / "evaluation" / "summary.json").is_file()
            if scored or known["diverged"] or trial.name in self.failures:
                return {**known, "dice": mean_dice(run / "evaluation")}
        reason, diverged = "", False
        try:
            settings = self.with_labels(trial.settings, cell, data)
            self._run(trial, None if self.folder.trained(trial) else settings, data, start)
        except CellFailedError as error:
            reason, diverged = str(error), error.diverged
            if diverged:  # an outcome, not a failure
                self.failures.pop(trial.name, None)
            else:
                self._note(trial.name, reason)
        row = {
            "trial": trial.name,
            "dataset": cell.dataset,
            "arm": cell.arm,
            "labels": cell.labels,
            "fold": cell.fold,
            "lr": trial.lr,
            "steps": self.bench.trial_steps,
            "dice": mean_dice(run / "evaluation"),
            "diverged": diverged,
            "reason": reason,
            "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        append_line(path, row)
        return row

    def with_labels(self, settings: dict[str, Any], cell: Cell, data: Path) -> dict[str, Any]:
        """Settings with the number of labelled subjects; in a trial not more than the inner split has."""
        if cell.labels == "all":
            return settings
        import pandas as pd

        from prevox.data.splits import split_images

        index = pd.read_parquet(data / "store" / "index.parquet").set_index("image")
        split = SplitConfig.parse(settings["split"])
        outer, own = (
            _labelled(index, split_images(index, part)["train"])
            for part in (split.model_copy(update={"inner": False}), split)
        )
        wanted = max(1, round(cell.labels * outer)) if isinstance(cell.labels, float) else int(cell.labels)
        if wanted > outer:
            raise CellFailedError(f"labels {cell.labels}: {cell.dataset} has only {outer} labelled training subjects")
        return {**settings, "labels": min(wanted, own)}

    def _once(self, name: str) -> None:
        """What has failed in this call is not tried again in it."""
        if name in self.failures:
            raise CellFailedError(f"{name}: {self.failures[name]}")

    def _must(self, outcome: Outcome, name: str) -> None:
        if outcome.failed:
            self._fail(name, outcome.reason, outcome.diverged)
        elif outcome.code:
            self._warn(f"{name}: some cases failed: {outcome.reason}")

    def _fail(self, name: str, reason: str, diverged: bool = False) -> None:
        self._note(name, reason)
        raise CellFailedError(f"{name}: {reason}", diverged=diverged)

    def _note(self, name: str, reason: str) -> None:
        if name not in self.failures:
            self.failures[name] = reason
            console.print(f"failed: {name}: {reason}", markup=False, style="red")

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            warn(message)


def _labelled(index: "pd.DataFrame", images: list[str]) -> int:
    """Subjects with a label."""
    rows = index.loc[images]
    return int(rows.loc[rows["label_path"].notna(), "subject"].astype(str).nunique())
