"""Write sections of docs/results.md from the run folders of finished studies, and from what benchmarks printed.

    python benchmarks/results.py docs/results.md hippocampus=OUT sts-pet=OUT2    # study=its folder
    python benchmarks/results.py docs/results.md speed=FILE dry-run=FILE growth=FILE   # what benchmarks printed
    python benchmarks/results.py docs/results.md bench-hippocampus-cpu=OUT       # a folder of `prevox bench`

No number in it is typed. Sections that are not named stay as they are.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from bench_section import bench_section
from prevox.config.base import read_yaml
from prevox.evaluation.statistics import Interval, paired_difference
from study import STUDIES, Study

NOTES = Path(__file__).with_name("notes")  # what a reader must know beside the numbers, one Markdown file a study
HEAD = """# Results

Made by `python benchmarks/results.py` from run folders and from what benchmarks printed; the tables are not typed.
Scores are on the original grid, without background, from the last checkpoint; intervals are 95 % bootstrap intervals
over subjects. What was compared is written in `benchmarks/study.py` and was written before it was run.
"""


def interval(row: dict[str, Any] | Interval, digits: int = 3) -> str:
    mean, low, high = (row[k] if isinstance(row, dict) else getattr(row, k) for k in ("mean", "low", "high"))
    ends = "" if low is None or low != low else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f}{ends}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def found(run: Path, name: str, metric: str) -> dict[str, Any]:
    rows = json.loads((run / "evaluation" / "summary.json").read_text())["summary"]
    return next(row for row in rows if row["class"] == name and row["metric"] == metric)


def arms_of(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("*/network.json"))


def arms_table(out: Path) -> str:
    rows = []
    for run in arms_of(out):
        config, summary = read_yaml(run / "config.yaml"), json.loads((run / "summary.json").read_text())
        classes = json.loads((run / "classes.json").read_text())
        mean = found(run, "mean", "dice")
        rows.append(
            [
                run.name,
                str(summary["subjects"]),
                f"{config['optim']['lr']:g}",
                f"**{interval(mean)}**",
                "; ".join(f"{name} {interval(found(run, name, 'dice'))}" for name in classes),
                interval(found(run, "mean", "hd95"), 2),
                interval(found(run, "mean", "nsd")),
                f"{mean['cases']} / {mean['subjects']}",
                str(summary["steps"]),
                f"{summary['seconds']:.0f}",
            ]
        )
    head = ["arm", "labelled subjects", "lr", "mean Dice", "Dice per class", "HD95 (mm)", "NSD at 1 mm"]
    return table([*head, "scored cases / subjects", "steps", "training (s)"], rows)


def per_case(run: Path) -> pd.DataFrame:
    scores = pd.read_parquet(run / "evaluation" / "scores.parquet")
    return scores.groupby("case").agg(subject=("subject", "first"), dice=("dice", "mean"))


def difference_table(study: Study, out: Path) -> str:
    rows = []
    for labels in study.labels:
        for arm, other in study.differences:
            both = per_case(out / f"{arm}-{labels}").merge(per_case(out / f"{other}-{labels}"), on=["case", "subject"])
            gain = paired_difference(both["dice_x"], both["dice_y"], both["subject"])
            rows.append([labels, f"{arm} minus {other}", interval(gain), str(gain.subjects)])
    return table(["labelled subjects", "arms", "difference of mean Dice (paired)", "subjects"], rows)


def trials_table(out: Path) -> str:
    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    if not trials:
        return "Every arm had one learning rate, the same for all; nothing was chosen.\n"
    rows = [[trial["arm"], trial["lr"], f"{trial['dice']:.3f}"] for trial in trials]
    return "All learning-rate trials (shorter runs, inner split of the training subjects):\n\n" + table(
        ["arm", "lr", "mean Dice, inner validation"], rows
    )


SCALES = {
    "mae": "normalised target: predicting zero gives 1",
    "s3d": "squared error of z-scored hidden voxels",
    "glmae": "sum of its terms",
}


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def pretraining_line(run: Path) -> str:
    summary = json.loads((run / "summary.json").read_text())
    rows = [row for row in log_of(run) if "loss" in row]  # the probe has rows of its own
    return (
        f"Pre-training `{run.name}`: {summary['images']} images of {summary['subjects']} subjects without labels, "
        f"{summary['steps']} steps in {summary['seconds']:.0f} s; loss ({SCALES[run.name]}) "
        f"from {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f}.\n"
    )


def probe_table(runs: list[Path]) -> str:
    """The probe's curve of each run that has one, at eleven steps (all, where it has fewer)."""
    rows = []
    for run in runs:
        found = [row for row in log_of(run) if "probe_dice" in row]
        shown = sorted({round(i * (len(found) - 1) / 10) for i in range(11)}) if found else []
        curve = ", ".join(f"{found[i]['step']}: {found[i]['probe_dice']:.3f}" for i in shown)
        rows += [[run.name, curve, f"{found[-1]['probe_floor']:.3f}"]] if found else []
    return table(["pre-training", "probe's Dice by step", "raw voxels"], rows)


def watch_line(run: Path) -> str:
    """Between what bounds the teacher of GL-MAE stayed after its warm-up."""
    rows = [row for row in log_of(run) if row.get("progress", 0) > 0.1 and "teacher_entropy" in row]
    if not rows:
        return ""
    spans = (
        f"{name} {min(row[name] for row in rows):.2f} to {max(row[name] for row in rows):.2f}"
        for name in ("teacher_entropy", "kl", "information", "rank", "collapse")
    )
    return f"After a tenth of the run, from row to row of the log: {', '.join(spans)} (nats; rank of class tokens).\n"


def minutes_of(out: Path) -> tuple[float, float]:
    """Minutes of training (trials included), and of everything from the catalogue to the report."""
    folders = [path.parent for path in out.rglob("summary.json") if path.parent.name != "evaluation"]
    training = sum(json.loads((folder / "summary.json").read_text())["seconds"] for folder in folders)
    whole = (out / "report.html").stat().st_mtime - (out / "catalogue.parquet").stat().st_mtime
    return training / 60, whole / 60


def note_of(name: str) -> str:
    """What a reader must know beside the numbers of a section."""
    file = NOTES / f"{name}.md"
    return file.read_text() if file.is_file() else ""


def section(name: str, out: Path) -> str:
    study = STUDIES[name]
    runs = [out / run for run in study.pretrain]
    environment = json.loads((runs[0] / "environment.json").read_text())
    date = json.loads((runs[0] / "summary.json").read_text())["date"]
    root = pd.read_parquet(out / "catalogue.parquet")["root"].iloc[0]
    commands = (out / "commands.txt").read_text().replace(root, "DATA")
    training, whole = minutes_of(out)
    note = note_of(name)
    return "\n".join(
        [
            f"## {name}\n",
            f"{date}, {environment['processor']}, {environment['cores']} cores, "
            f"torch {environment['packages']['torch']}, revision {environment['git']}; {whole:.0f} minutes from "
            f"catalogue to report, {training:.0f} of them training, trials included.\n",
            *(line for run in runs for line in (pretraining_line(run), watch_line(run)) if line),
            *([probe_table(runs)] if any("probe_dice" in row for run in runs for row in log_of(run)) else []),
            *((arms_table(out), difference_table(study, out), trials_table(out)) if study.arms else ()),
            note,
            f"<details><summary>All commands (`python benchmarks/study.py {name} DATA OUT`)</summary>\n",
            f"```\n{commands}```\n\n</details>\n",
        ]
    )


def speed_section(lines: Path) -> str:
    """One row a comparison, in the order in which they were run; what explains them stands in the note."""
    found = [json.loads(line) for line in lines.read_text().splitlines() if line.startswith("{")]
    head = ["what", "ours (s)", "peer (s)", "peer / ours", "ours (MB)", "peer (MB)", "largest deviation", "runs"]
    rows = [
        [
            row["name"],
            f"{row['ours_s']:.3f}",
            f"{row['peer_s']:.3f}",
            f"**{row['ratio']:.2f}**",
            f"{row['ours_peak_mb']:.0f}",
            f"{row['peer_peak_mb']:.0f}",
            f"{row['equal']:.2g}",
            str(row["runs"]),
        ]
        for row in found
    ]
    commands = "\n".join(dict.fromkeys(row["command"] for row in found))
    return "\n".join(
        [
            "## speed\n",
            "; ".join(dict.fromkeys(row["where"] for row in found)) + ". Medians of runs in turn in one process.\n",
            table(head, rows),
            (NOTES / "speed.md").read_text(),
            f"<details><summary>Commands and everything they printed</summary>\n\n```\n{commands}\n```\n",
            "```json\n" + "\n".join(json.dumps(row, ensure_ascii=False) for row in found) + "\n```\n\n</details>\n",
        ]
    )


def dry_run_section(lines: Path) -> str:
    """What `benchmarks/dry_run.py` printed: runs against their estimates."""
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    head = [
        "recipe",
        "steps",
        "estimate (s)",
        "run (s)",
        "run / estimate",
        "estimate (MB)",
        "run (MB)",
        "run / estimate",
    ]
    keys = ("name", "steps", "estimate_s", "run_s", "time_ratio", "estimate_mb", "run_mb", "memory_ratio")
    rows = [[str(row[key]) for key in keys] for row in found]
    return "\n".join(
        [
            "## dry-run\n",
            "; ".join(dict.fromkeys(row["where"] for row in found))
            + "; `python benchmarks/dry_run.py DATA`, one run of each: what\n`--dry-run` estimated, and what the run "
            "then took.\n",
            table(head, rows),
        ]
    )


def _is_real(row: dict[str, Any]) -> bool:
    return row["verb"] == "catalogue" and " scans of " in row["name"]


def _at_rate(row: dict[str, Any], prepared: dict[str, Any]) -> list[str]:
    """What a hundred thousand scans would take at the rate of these."""
    assert prepared["name"] == row["name"].replace("catalogue", "prepare"), "both verbs of a folder in turn"
    hours = [100_000 * found["seconds"] / found["images"] / 3600 for found in (row, prepared)]
    size = 100_000 * prepared["store_mb"] / prepared["images"] / 1000
    name = row["name"].partition(" scans of ")[2]
    return [name, f"{row['input_mb'] / row['images']:.2g}", *(f"{h:.1f}" for h in hours), f"{size:.0f}"]


def growth_section(lines: Path) -> str:
    """What `benchmarks/catalogue.py` printed: calls by their number of images, and the lines through them."""
    found = [json.loads(line) for line in lines.read_text().splitlines() if line.startswith("{")]
    calls = [row for row in found if row["verb"] != "fit"]
    fits = [row for row in found if row["verb"] == "fit"]
    keys = ("name", "seconds", "per_second", "again_s", "peak_mb", "again_mb", "worker_mb")
    head = ["what", "first call (s)", "images a second", "second call (s)", "peak (MB)", "second call (MB)"]
    (far,) = {key for row in fits for key in row if key.startswith("at_")}
    names = ("name", "start", "per_1000", "per_1000_squared", "farthest", far)
    return "\n".join(
        [
            "## growth\n",
            "; ".join(dict.fromkeys(row["where"] for row in found)) + ". One call of each, a process of its own.\n",
            table([*head, "largest worker (MB)"], [[str(row[key]) for key in keys] for row in calls]),
            f"Lines through the calls with more than 400 images (n in thousands), and what they say of {far[3:]}:\n",
            table(
                ["line", "constant", "× n", "× n²", "farthest point", f"at {far[3:]} images"],
                [[str(row[name]) for name in names] for row in fits],
            ),
            (NOTES / "growth.md").read_text(),
            table(
                ["100,000 scans like", "MB a scan", "catalogue (h)", "prepare (h)", "store (GB)"],
                [_at_rate(row, prepared) for row, prepared in pairwise(calls) if _is_real(row)],
            ),
            "<details><summary>Everything that was printed</summary>\n",
            "```json\n" + "\n".join(json.dumps(row, ensure_ascii=False) for row in found) + "\n```\n\n</details>\n",
        ]
    )


PRINTED = {"speed": speed_section, "dry-run": dry_run_section, "growth": growth_section}


def main(target: Path, given: list[str]) -> None:
    _, *old = target.read_text().split("\n## ") if target.is_file() else [HEAD]
    sections = {text.partition("\n")[0]: f"## {text}" for text in old}
    for name, _, path in (word.partition("=") for word in given):
        if name.startswith("bench-"):
            file = name.removeprefix("bench-")
            sections[file] = bench_section(file, Path(path), note_of(file))
        else:
            sections[name] = PRINTED[name](Path(path)) if name in PRINTED else section(name, Path(path))
    target.write_text("\n".join([HEAD, *(text.rstrip("\n") + "\n" for text in sections.values())]))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
