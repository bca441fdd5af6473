"""Preparing scans for training: one core of `prevox prepare` against one core of nnU-Net v2's own preprocessor.

    python benchmarks/prepare.py --env NNUNET                # generated CT-like scans, about five minutes
    python benchmarks/prepare.py --env NNUNET --raw nnUNet_raw/Dataset101_STSPET --spacing 3 2.5 2.5

NNUNET is a folder with nnunetv2 in an environment of its own; where there is none it is made (a package index, 3 GB).
Both get the same NIfTI files with labels, in nnU-Net's raw layout, and the same target spacing. Both read them, crop to
what is not zero, resample images with cubic splines and labels linearly class by class, look for foreground voxels and
write what their training reads: nnU-Net normalised float32 in blosc2, we int16 with a pyramid in OME-Zarr. Each arm is
a process of its own with one thread on the same core; they take turns, and each turn is all cases. Starting, planning
and cataloguing are not counted.

`equal` is the mean absolute difference of the resampled images in standard deviations, after the straight line that
undoes nnU-Net's normalisation; `dice` the mean Dice of the resampled labels; both over the cases whose grids have one
shape (`same_shape`). nnU-Net resamples thick slices (spacing above 3 : 1) by nearest neighbour along z, we never do.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from harness import Run, compared, show
from prevox.data.geometry import canonical_axes, reorient
from prevox.data.store import Store
from store import ct_like

DATASET = "Dataset901_Benchmark"
SOURCE = (2.0, 0.8, 0.8)  # mm, of the generated scans
OURS = """
import json, shutil, sys, time, resource
from pathlib import Path
from prevox.allocator import keep_freed_memory
from prevox.config.data import CatalogueConfig, PrepareConfig
from prevox.console import console
from prevox.data.catalogue import catalogue
from prevox.data.prepare import prepare
raw, work, *spacing = sys.argv[1:]
console.quiet = True
keep_freed_memory()
made = Path(work) / "c.parquet"
catalogue(CatalogueConfig(paths=(Path(raw),), out=made))
for _ in sys.stdin:
    shutil.rmtree(Path(work) / "store", ignore_errors=True)
    config = PrepareConfig(catalogue=made, out=Path(work) / "store", spacing=tuple(map(float, spacing)), workers=1)
    began = time.perf_counter()
    assert not prepare(config).failures
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10]), flush=True)
"""
PEER = """
import json, os, sys, time, resource
from pathlib import Path
import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
raw, work, *spacing = sys.argv[1:]
dataset = json.loads((Path(raw) / "dataset.json").read_text())
path = next((Path(work) / "preprocessed").glob("*/nnUNetPlans.json"))
plans = json.loads(path.read_text())
plans["configurations"]["3d_fullres"]["spacing"] = [float(spacing[axis]) for axis in plans["transpose_forward"]]
manager = PlansManager(plans)
settings = manager.get_configuration("3d_fullres")
preprocessor = settings.preprocessor_class(verbose=False)
cases = get_filenames_of_train_images_and_targets(raw, dataset)
out = Path(work) / "out"
out.mkdir()
for line in sys.stdin:
    if line.strip() == "dump":
        for case, files in cases.items():
            found = preprocessor.run_case(files["images"], files["label"], manager, settings, dataset)
            back = [0, *(axis + 1 for axis in manager.transpose_backward)]
            np.savez(out / f"{case}.npz", *(np.asarray(array).transpose(back) for array in found[:2]))
    for old in [*out.glob("*.b2nd"), *out.glob("*.pkl")]:
        old.unlink()
    began = time.perf_counter()
    for case, files in cases.items():
        preprocessor.run_case_save(str(out / case), files["images"], files["label"], manager, settings, dataset)
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10]), flush=True)
"""


class Arm:
    """A process that prepares all cases each time it is told to."""

    def __init__(self, python: Path | str, script: str, raw: Path, work: Path, spacing: Sequence[float]) -> None:
        words = [str(python), "-c", script, str(raw), str(work), *map(str, spacing)]
        core = min(os.sched_getaffinity(0))
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(work),
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def run(self, word: str = "go") -> Run:
        """Prepare once; peak is the whole process's so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        seconds, peak = json.loads(self.process.stdout.readline())
        return Run(None, seconds, peak)


def environment(work: Path) -> dict[str, str]:
    """One thread everywhere, and nnU-Net's folders."""
    threads = ("OMP", "OPENBLAS", "MKL", "BLOSC", "NUMEXPR")
    one = {f"{name}_NUM_THREADS": "1" for name in threads} | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    folders = {f"nnUNet_{name}": str(work / name) for name in ("raw", "preprocessed", "results")}
    return {**os.environ, **one, **folders}


def write_scans(raw: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Scans and labels (lung, bone) in nnU-Net's raw layout."""
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    affine = np.diag([*reversed(SOURCE), 1.0])
    for n in range(count):
        hu = ct_like(shape, seed=n)
        label = (hu < -600).astype(np.uint8) + 2 * (hu > 300).astype(np.uint8)
        nib.save(nib.Nifti1Image(hu.T, affine), raw / "imagesTr" / f"scan{n}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label.T, affine), raw / "labelsTr" / f"scan{n}.nii.gz")
    labels = {"background": 0, "lung": 1, "bone": 2}
    told = {"channel_names": {"0": "zscore"}, "labels": labels, "numTraining": count, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(told))


def agreement(raw: Path, store: Store, dumped: Path) -> dict[str, Any]:
    """How far the two results are apart."""
    apart, dice, same = [], [], 0
    for image in store.index.index:
        with np.load(dumped / f"{image}.npz") as arrays:
            theirs_CZYX, label_CZYX = arrays["arr_0"], arrays["arr_1"]
        source = nib.load(next((raw / "imagesTr").glob(f"{image}_0000.*")))
        axes = canonical_axes(source.affine, source.shape)
        theirs, label = (
            reorient(array.transpose(0, 3, 2, 1), source.affine, *axes)[0][0] for array in (theirs_CZYX, label_CZYX)
        )
        shape = store.shape(image)
        box = tuple((0, n) for n in shape)
        if shape != theirs.shape:
            continue
        same += 1
        slope, intercept = store.slope_intercept(image)[0]
        ours = store.read(image, 0, box).result()[0] * float(slope) + float(intercept)
        line = np.polyfit(theirs.ravel()[::7], ours.ravel()[::7], 1)
        apart.append(np.abs(np.polyval(line, theirs) - ours).mean() / ours.std())
        mine = store.read_label(image, 0, box).result()
        for value in np.unique(mine[mine > 0]):
            a, b = mine == value, label == value
            dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return {
        "equal": float(np.mean(apart)) if apart else None,
        "dice": float(np.mean(dice)) if dice else None,
        "same_shape": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, required=True, help="environment with nnunetv2, made if it is missing")
    parser.add_argument("--raw", type=Path, help="a data set in nnU-Net's raw layout instead of generated scans")
    parser.add_argument("--spacing", type=float, nargs=3, default=[1.5, 1.0, 1.0], help="target, z y x in mm")
    parser.add_argument("--scans", type=int, default=4, help="generated ones")
    parser.add_argument("--shape", type=int, nargs=3, default=[120, 320, 320], help="of a generated one, z y x")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    tools = args.env / "bin"
    if not (tools / "nnUNetv2_plan_experiment").exists():
        venv.create(args.env, with_pip=True)
        subprocess.run([tools / "python", "-m", "pip", "install", "--quiet", "torch==2.13.0", "nnunetv2"], check=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        raw = work / "raw" / (args.raw.name if args.raw else DATASET)
        if args.raw:
            shutil.copytree(args.raw, raw)
        else:
            write_scans(raw, args.scans, tuple(args.shape))
        number = raw.name.removeprefix("Dataset").partition("_")[0]
        for tool in ("extract_fingerprint", "plan_experiment"):
            command = [tools / f"nnUNetv2_{tool}", "-d", number]
            subprocess.run(command, check=True, env=environment(work), stdout=subprocess.DEVNULL)
        arms = {
            "ours": Arm(sys.executable, OURS, raw, work, args.spacing),
            "peer": Arm(tools / "python", PEER, raw, work, args.spacing),
        }
        arms["ours"].run()
        arms["peer"].run("dump")
        found: dict[str, list[Run]] = {arm: [] for arm in arms}
        for _ in range(args.runs):
            for arm, process in arms.items():
                found[arm].append(process.run())
        store = Store(work / "store")
        count = len(store.index)
        told = agreement(raw, store, work / "out")
        sizes = {arm: folder_mb(folder) for arm, folder in (("ours", work / "store"), ("peer", work / "out"))}
        row = compared(
            f"preparing {count} scans of {raw.name}, spacing {'×'.join(f'{n:g}' for n in args.spacing)} mm, one core",
            found["ours"],
            found["peer"],
            told.pop("equal"),
            **told,
            **{
                f"{arm}_scans_per_minute": round(60 * count / float(np.median([r.seconds for r in runs])), 1)
                for arm, runs in found.items()
            },
            ours_mb=sizes["ours"],
            peer_mb=sizes["peer"],
        )
        show(row)
        for process in arms.values():
            process.process.kill()


def folder_mb(folder: Path) -> float:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".npz")
    return round(sum(path.stat().st_size for path in files) / 1e6, 1)


if __name__ == "__main__":
    main()
