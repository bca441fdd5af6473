"""How near `--dry-run` comes: its estimate against what the run then took, for three recipes, through the command line.

    python benchmarks/dry_run.py ../shared/data                # about ten minutes on two cores
    python benchmarks/dry_run.py ../shared/data --steps 600

The folder holds the MSD hippocampus (Task04_Hippocampus) and chest X-rays (nih_cxr). Each command is a process of its
own; estimate and run follow each other, so that both see the same machine. Ratios are run / estimate: of the time that
summary.json has, of the memory that it has, and of the process's largest resident memory from start to end.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import where

SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


def prevox(*words: object) -> tuple[str, float]:
    """What the command printed, and its largest resident memory in MB."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "prevox", *map(str, words)], stdout=said, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        sys.exit(f"prevox {' '.join(map(str, words))}\n{text}")
    return text, used.ru_maxrss / 2**10


def compare(name: str, run: Path, words: list[object]) -> dict[str, Any]:
    """One recipe: the estimate, then the run."""
    text, resident = prevox(*words, "--out", run, "--dry-run")
    number, unit = re.search(r"whole run\s*│\s*([\d.]+) (\w+)", text).groups()
    estimated = float(number) * SECONDS[unit]
    memory = float(re.search(r"peak memory\s*│\s*(\d+) MB", text)[1])
    _, run_resident = prevox(*words, "--out", run)
    took = json.loads((run / "summary.json").read_text())
    return {
        "name": name,
        "steps": took["steps"],
        "estimate_s": estimated,
        "run_s": round(took["seconds"], 1),
        "time_ratio": round(took["seconds"] / estimated, 3),
        "estimate_mb": memory,
        "run_mb": round(took["peak_mb"]),
        "memory_ratio": round(took["peak_mb"] / memory, 3),
        "resident_ratio": round(run_resident / resident, 3),
        "where": where(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with Task04_Hippocampus and nih_cxr")
    parser.add_argument("--steps", type=int, default=120, help="of each run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, source, options in (
            ("hippocampus", "Task04_Hippocampus", ["--spacing", 1, 1, 1]),
            ("xrays", "nih_cxr", ["--crop", "none"]),
        ):
            prevox("catalogue", args.data / source, "--out", root / f"{name}.parquet")
            prevox("prepare", "--catalogue", root / f"{name}.parquet", "--out", root / name, *options)
        length = ["--train.steps", args.steps, "--train.picture-every", 50, "--train.checkpoint-every", 50]
        volumes = ["--store", root / "hippocampus", *length]
        flat = ["--views.size", 64, 64, "--model.patch", 8, 8, "--store", root / "xrays", *length]
        runs = {
            "mae-vit-cpu": ["pretrain", "--recipe", "mae-vit-cpu", *volumes],
            "unetr-vit-cpu": ["finetune", "--recipe", "unetr-vit-cpu", "--pretrained", root / "mae-vit-cpu", *volumes],
            "mae-vit-cpu, 64 x 64 of X-rays": ["pretrain", "--recipe", "mae-vit-cpu", *flat],
        }
        for name, words in runs.items():
            print(json.dumps(compare(name, root / name, words)), flush=True)


if __name__ == "__main__":
    main()
