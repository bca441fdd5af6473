"""What pre-training buys on a data set, by the command line alone; written down before it is run.

    python benchmarks/study.py hippocampus DATA OUT     # DATA: Task04_Hippocampus with subjects.csv
    python benchmarks/study.py sts-pet DATA OUT         # DATA: nnUNet_raw/Dataset101_STSPET
    python benchmarks/study.py s3d-hippocampus DATA OUT
    python benchmarks/study.py s3d-sts-pet DATA OUT
    python benchmarks/study.py glmae-hippocampus DATA OUT
    python benchmarks/study.py glmae-sts-ct DATA OUT        # DATA: a folder of CT scans; pre-training only

Subjects are split 80 % / 20 % with seed 0. The encoder is pre-trained on the training subjects' images without labels.
The arms (at each number of labelled subjects) are fine-tuned with the same settings, steps and
seed. Where a study names several learning rates, each arm's is chosen among the same ones by the mean Dice on an inner
split of the training subjects, with shorter runs; all trials are listed in OUT/trials.jsonl, in the order in which they
were run. The last checkpoint is scored once on the 20 %. What is finished is not done again. Arms with another seed
have other labelled subjects, initial weights and crops; they take the rate chosen with seed 0.

S3D: the pre-trained arms are fine-tuned in two phases (decoder first, encoder transferred), the arms from scratch on
the plain schedule, which is the paper's fixed baseline. GL-MAE: end-to-end and with the encoder frozen (the paper's
"linear"), against scratch and against plain MAE whose pre-training takes as many operations.
`benchmarks/results.py` makes docs/results.md from OUT.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Study:
    """A data set and the budget spent on it."""

    labels: tuple[str, ...]  # numbers of labelled subjects, or "all"; "10@1" takes seed 1
    rates: tuple[str, ...]
    steps: str
    pretrain: dict[str, str]  # a run's folder: recipe and flags; {store} is the store's folder
    recipe: str  # of the fine-tuning
    trial_steps: str = "100"
    catalogue: str = ""  # further flags of each verb; {data} is the data folder
    prepare: str = ""
    finetune: str = ""
    arms: dict[str, tuple[str, str]] = field(default_factory=dict)  # the pre-training run taken, and flags
    differences: tuple[tuple[str, str], ...] = (("pretrained", "scratch"),)  # pairs of arms


def scratch_and(run: str, scratch: str = "") -> dict[str, tuple[str, str]]:
    """The two arms of a study with one pre-training run; architecture and normalisation of both are its."""
    return {"pretrained": (run, ""), "scratch": (run, f"--scratch {scratch}")}


HIPPOCAMPUS = {"catalogue": "--table {data}/subjects.csv --group subject_group", "prepare": "--spacing 1 1 1"}
PLAIN = "--decoder-first 0 --schedule.warmup 0"  # in place of the recipe's two phases
PROBE = "--probe.store {store} --probe.images 64 --probe.every 200"
STUDIES = {
    "hippocampus": Study(
        labels=("all", "10"),
        rates=("5e-4", "1.5e-3"),
        steps="600",
        trial_steps="80",
        pretrain={"mae": "--recipe mae-vit-cpu"},
        recipe="unetr-vit-cpu",
        arms=scratch_and("mae"),
        **HIPPOCAMPUS,
    ),
    "sts-pet": Study(  # a tiny budget: shows that the second layout goes through the same chain
        labels=("all",),
        rates=("1e-3",),
        steps="150",
        prepare="--spacing median",
        pretrain={"mae": "--recipe mae-vit-cpu --views.size 32 32 32 --train.steps 400"},
        recipe="unetr-vit-cpu",
        finetune="--views.size 32 32 32",
        arms=scratch_and("mae"),
    ),
    "s3d-hippocampus": Study(
        labels=("all", "10", "10@1"),
        rates=("1e-3", "1e-2"),
        steps="600",
        trial_steps="150",
        pretrain={"s3d": "--recipe s3d-resenc-s-cpu"},
        recipe="resenc-s-cpu",
        arms=scratch_and("s3d", PLAIN),
        **HIPPOCAMPUS,
    ),
    "s3d-sts-pet": Study(
        labels=("10",),
        rates=("1e-3", "1e-2"),
        steps="400",
        trial_steps="100",
        prepare="--spacing median",
        pretrain={"s3d": "--recipe s3d-resenc-s-cpu --views.size 32 32 32 --train.steps 800"},
        recipe="resenc-s-cpu",
        finetune="--views.size 32 32 32",
        arms=scratch_and("s3d", PLAIN),
    ),
    # A step of glmae-vit-t-cpu takes 22.5 GFLOP and one of mae-vit-cpu 8.6, so mae has 2.6 times the steps.
    "glmae-hippocampus": Study(
        labels=("all", "22"),  # 22 of 88: 25 %
        rates=("5e-4", "1.5e-3"),
        steps="500",
        trial_steps="80",
        pretrain={
            "glmae": f"--recipe glmae-vit-t-cpu {PROBE}",
            "mae": f"--recipe mae-vit-cpu --train.steps 5200 {PROBE}",
        },
        recipe="unetr-vit-cpu",
        arms={
            "glmae": ("glmae", ""),
            "mae": ("mae", ""),
            "scratch": ("mae", "--scratch"),
            "glmae-linear": ("glmae", "--freeze-encoder"),
            "mae-linear": ("mae", "--freeze-encoder"),
        },
        differences=(
            ("glmae", "scratch"),
            ("mae", "scratch"),
            ("glmae", "mae"),
            ("glmae-linear", "mae-linear"),
            ("glmae-linear", "scratch"),
        ),
        **HIPPOCAMPUS,
    ),
    "glmae-sts-ct": Study(  # pre-training only, on every scan of the pool
        labels=(),
        rates=(),
        steps="0",
        prepare="--spacing median",
        pretrain={
            "glmae": "--recipe glmae-vit-t-cpu --use all --normalise.name window --normalise.window -1000 1000 "
            "--views.size 32 32 32 --method.global-size 64 64 64 --method.local-count 8 --train.batch 2 "
            "--train.steps 400 --train.picture-every 100"
        },
        recipe="unetr-vit-cpu",
    ),
}


def run(out: Path, *words: object, done: Path) -> None:
    """Run one command unless its result is there; the commands are listed in OUT/commands.txt."""
    command = ["prevox", *map(str, words)]
    shown = shlex.join(command).replace(f"{out}/", "")
    log = out / "commands.txt"
    known = log.read_text().splitlines() if log.is_file() else []
    if shown not in known:
        log.write_text("\n".join([*known, shown]) + "\n")
    if is_done(done):
        return
    print(f"$ {shown}", flush=True)
    subprocess.run([sys.executable, "-m", "prevox", *command[1:]], check=True)
    if done.exists() and not is_done(done):
        sys.exit("told to stop; the same call goes on")


def is_done(path: Path) -> bool:
    """Whether a result is there; a run that was told to stop says in its summary that it is not finished."""
    return path.exists() and (path.name != "summary.json" or json.loads(path.read_text()).get("finished", True))


def score(out: Path, arm: Path, catalogue: Path) -> float:
    """Predict and score an arm's held-out images; its mean Dice."""
    summary = arm / "evaluation" / "summary.json"
    predicted = arm / "predictions.done"
    run(out, "predict", "--run", arm, "--images", catalogue, "--split", "validation", done=predicted)
    predicted.touch()
    run(out, "evaluate", "--predictions", arm, "--references", catalogue, done=summary)
    rows = json.loads(summary.read_text())["summary"]
    return float(next(row["mean"] for row in rows if row["class"] == "mean" and row["metric"] == "dice"))


def main(study: Study, data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    catalogue, store = out / "catalogue.parquet", out / "store"
    run(out, "catalogue", data, *study.catalogue.format(data=data).split(), "--out", catalogue, done=catalogue)
    run(out, "prepare", "--catalogue", catalogue, "--out", store, *study.prepare.split(), done=store / "index.parquet")
    base = ["--store", store, "--resume"]
    for name, words in study.pretrain.items():
        given = [*words.format(store=store).split(), *base, "--out", out / name]
        run(out, "pretrain", *given, done=out / name / "summary.json")
    trials = []
    for name, (handed, flags) in study.arms.items():
        tune = ["finetune", "--recipe", study.recipe, *study.finetune.split(), *base, "--pretrained", out / handed]
        tune += flags.split()
        best = dict.fromkeys(study.labels, study.rates[0])
        for labels in study.labels:
            number, _, seed = labels.partition("@")
            few = [] if number == "all" else ["--labels", number]
            few += ["--train.seed", seed, "--label-seed", seed] if seed else []
            dice = {}
            for rate in study.rates if len(study.rates) > 1 and not seed else ():
                arm = out / "trials" / f"{name}-{labels}-{rate}"
                words = [*few, "--optim.lr", rate, "--train.steps", study.trial_steps, "--split.inner"]
                run(out, *tune, *words, "--out", arm, done=arm / "summary.json")
                dice[rate] = score(out, arm, catalogue)
                trials.append({"arm": f"{name}-{labels}", "lr": rate, "dice": dice[rate]})
            best[number] = max(dice, key=lambda rate: dice[rate]) if dice else best.get(number, study.rates[0])
            arm = out / f"{name}-{labels}"
            words = [*few, "--optim.lr", best[number], "--train.steps", study.steps]
            run(out, *tune, *words, "--out", arm, done=arm / "summary.json")
            score(out, arm, catalogue)
    (out / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    arms = [out / f"{name}-{labels}" for labels in study.labels for name in study.arms]
    runs = [*arms, *(out / name for name in study.pretrain)]
    run(out, "report", "--runs", *runs, "--out", out / "report.html", done=out / "report.html")


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in STUDIES:
        sys.exit(__doc__)
    main(STUDIES[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3]))
