"""`prevox demo`: the whole chain on generated phantoms, through the same verbs that users call."""

from pathlib import Path
from time import perf_counter
from typing import Any

from prevox.cli.main import run as run_verb
from prevox.config.tools import DemoConfig
from prevox.console import console
from prevox.data.phantom import write_phantoms
from prevox.errors import RunError

SPACING = (2.0, 2.0, 2.0)  # mm; coarse, so that a demo of minutes sees each phantom often enough
SIZE = (32, 32, 32)
RATE = 4e-3  # of both fine-tunings: few steps need large ones


def demo(config: DemoConfig) -> Path:
    """Generate phantoms, pre-train on all training images, fine-tune from it and from scratch, score, report.

    Both fine-tunings get the same few labels, the same steps and the same settings; the report shows both with
    intervals, whichever wins.

    Returns:
        The report.
    """
    out = config.out
    out.mkdir(parents=True, exist_ok=True)
    began = perf_counter()
    scans = out / f"phantoms-{config.images}-seed{config.seed}"
    if not (scans / "dataset.json").is_file():
        _say(f"1/7 generating {config.images} phantoms")
        write_phantoms(scans, config.images, seed=config.seed)
    _say("2/7 catalogue and prepare")
    run_verb("catalogue", {"paths": [scans], "out": out / "catalogue.parquet"})
    run_verb("prepare", {"catalogue": out / "catalogue.parquet", "out": out / "store", "spacing": SPACING})
    common: dict[str, Any] = {"store": out / "store", "resume": True}
    _say("3/7 pre-training on the training subjects' images, without labels")
    _train(
        "pretrain",
        {
            **common,
            "out": out / "pretrain",
            "recipe": "mae-vit-cpu",
            "views": {"size": SIZE},
            "train": {"steps": config.pretrain_steps, "seed": config.seed},
        },
    )
    arms = {"scratch": True, "pretrained": False}  # the report shows the difference of the later to the first
    for number, (arm, scratch) in enumerate(arms.items(), start=4):
        _say(f"{number}/7 fine-tuning with {config.labels} labelled phantoms: {arm}")
        _train(
            "finetune",
            {
                **common,
                "out": out / arm,
                "recipe": "unetr-vit-cpu",
                "pretrained": out / "pretrain",
                "scratch": scratch,
                "labels": config.labels,
                "views": {"size": SIZE},
                "optim": {"lr": RATE},
                "train": {"steps": config.finetune_steps, "seed": config.seed},
            },
        )
    _say("6/7 predicting and scoring the held-out phantoms")
    for arm in arms:
        run_verb("predict", {"run": out / arm, "images": out / "catalogue.parquet", "split": "validation"})
        run_verb("evaluate", {"predictions": out / arm, "references": out / "catalogue.parquet"})
    _say("7/7 report")
    runs = [out / arm for arm in arms] + [out / "pretrain"]
    page: Path = run_verb("report", {"runs": runs, "out": out / "report.html", "title": "Prevox demo"})
    console.print(f"\ndemo: done in {perf_counter() - began:.0f} s. Open {page}")
    return page


def _train(verb: str, settings: dict[str, Any]) -> None:
    """Run a verb that trains; one that a signal has stopped must not be built upon.

    Raises:
        RunError: If a signal has stopped it.
    """
    if not run_verb(verb, settings).finished:
        raise RunError(f"{settings['out']}: stopped by a signal; its state is saved. Repeat the call to go on.")


def _say(what: str) -> None:
    console.print(f"\n[bold]{what}[/bold]", markup=True)
