"""What pre-training buys on the hippocampus scans, by the command line alone.

    python benchmarks/hippocampus.py DATA OUT        # DATA: the folder Task04_Hippocampus with subjects.csv

Written down before it is run: subjects are split 80 % / 20 % with seed 0; the encoder is pre-trained on the training
subjects' images without labels; four arms (pre-trained, scratch × all labels, 10 labelled subjects) are fine-tuned with
the same settings, steps and seed. For each arm the learning rate is chosen among the same RATES by the mean Dice on an
inner split of the training subjects, with shorter runs; all trials are listed in OUT/trials.jsonl. The last checkpoint
is scored once on the 20 %. What is finished is not done again. `benchmarks/results.py` makes the tables.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

RATES = ("5e-4", "1e-3", "2e-3")
LABELS = {"all": [], "10": ["--labels", "10"]}
WEIGHTS = {"pretrained": [], "scratch": ["--scratch"]}
TRIAL_STEPS, STEPS = "100", "700"


def run(out: Path, *words: object, done: Path) -> None:
    """Run one command unless its result is there; the commands are listed in OUT/commands.txt."""
    command = ["prevox", *map(str, words)]
    shown = shlex.join(command).replace(f"{out}/", "")
    log = out / "commands.txt"
    known = log.read_text().splitlines() if log.is_file() else []
    if shown not in known:
        log.write_text("\n".join([*known, shown]) + "\n")
    if done.exists():
        return
    print(f"$ {shown}", flush=True)
    subprocess.run([sys.executable, "-m", "prevox", *command[1:]], check=True)


def score(out: Path, arm: Path, catalogue: Path) -> float:
    """Predict and score an arm's held-out images; its mean Dice."""
    run(out, "predict", "--run", arm, "--images", catalogue, "--split", "validation", done=arm / "predictions.done")
    (arm / "predictions.done").touch()
    summary = arm / "evaluation" / "summary.json"
    run(out, "evaluate", "--predictions", arm, "--references", catalogue, done=summary)
    rows = json.loads(summary.read_text())["summary"]
    return float(next(row["mean"] for row in rows if row["class"] == "mean" and row["metric"] == "dice"))


def main(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    catalogue, store, mae = out / "hippocampus.parquet", out / "store", out / "mae"
    table = ["--table", data / "subjects.csv", "--group", "subject_group"]
    run(out, "catalogue", data, *table, "--out", catalogue, done=catalogue)
    spacing = ["--spacing", 1, 1, 1]
    run(out, "prepare", "--catalogue", catalogue, "--out", store, *spacing, done=store / "index.parquet")
    base = ["--store", store, "--resume"]
    run(out, "pretrain", "--recipe", "mae-vit-cpu", *base, "--out", mae, done=mae / "summary.json")
    tune = ["finetune", "--recipe", "unetr-vit-cpu", *base, "--pretrained", mae]
    trials = []
    for weights, scratch in WEIGHTS.items():
        for labels, few in LABELS.items():
            dice = {}
            for rate in RATES:
                arm = out / "trials" / f"{weights}-{labels}-{rate}"
                words = [*scratch, *few, "--optim.lr", rate, "--train.steps", TRIAL_STEPS, "--split.inner"]
                run(out, *tune, *words, "--out", arm, done=arm / "summary.json")
                dice[rate] = score(out, arm, catalogue)
                trials.append({"arm": f"{weights}-{labels}", "lr": rate, "steps": int(TRIAL_STEPS), "dice": dice[rate]})
            best = max(RATES, key=lambda rate: dice[rate])
            arm = out / f"{weights}-{labels}"
            words = [*scratch, *few, "--optim.lr", best, "--train.steps", STEPS]
            run(out, *tune, *words, "--out", arm, done=arm / "summary.json")
            score(out, arm, catalogue)
    (out / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    arms = [out / f"{weights}-{labels}" for labels in LABELS for weights in WEIGHTS]
    run(out, "report", "--runs", *arms, mae, "--out", out / "report.html", done=out / "report.html")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
