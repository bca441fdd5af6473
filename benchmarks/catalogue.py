"""How `prevox catalogue` and `prevox prepare` grow with the number of images: time, memory, size of the files.

    python benchmarks/catalogue.py                                   # generated files only, about eight minutes
    python benchmarks/catalogue.py --real sts_ct nnUNet_raw/Dataset101_STSPET   # and real scans, for their rate

No other tool is measured here: this is what a hundred thousand images would take of ours. Each call is a process of its
own with the default number of workers (Linux). The files are NIfTI volumes of 16³ voxels of noise (10 kB; a quarter
have a label map, four belong to a subject), so what is measured is the cost of an image beside its voxels; noise is the
worst case of near duplicates, for which every image is compared with every other, and of thumbnails, which it makes
large.

`seconds` is the first call and `again_s` one that finds nothing new; `peak_mb` and `again_mb` are the largest resident
memory of the process that leads, `worker_mb` that of its largest worker. `fit` rows are straight lines, of the time of
`catalogue` parabolas, through the calls with more than 400 images, as many as the page shows, and what they say of
100,000.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from harness import show

FAR = 100_000  # images that are extrapolated to
SHOWN = 400  # images on the page beside a catalogue
CALL = """
import json, re, resource, sys, time
from pathlib import Path
import prevox
from prevox.console import console
verb, settings = sys.argv[1], json.loads(sys.argv[2])
if __name__ == "__main__":
    console.quiet = True
    began = time.perf_counter()
    result = getattr(prevox, verb)(**settings)
    seconds = time.perf_counter() - began
    assert not result.failures, result.failures[:3]
    # ru_maxrss of this process would count what the benchmark had when it started it
    own = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps([seconds, int(own[1]) / 2**10, worker / 2**10]))
"""


def generate(folder: Path, images: int) -> None:
    """Write that many volumes of noise, and label maps for a quarter of them."""
    rng = np.random.default_rng(images)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(images):
        name = f"sub{number // 4:06d}_{number % 4}.nii"
        noise = (rng.standard_normal((16, 16, 16)) * 40 + 100).astype(np.int16)
        nib.save(nib.Nifti1Image(noise, np.diag([2.0, 2.0, 2.0, 1.0])), folder / "images" / name)
        if number % 4 == 0:
            label = np.zeros((16, 16, 16), np.uint8)
            label[4:12, 4:12, 4 : 5 + number % 9] = 1 + rng.integers(0, 2, label[4:12, 4:12, 4 : 5 + number % 9].shape)
            nib.save(nib.Nifti1Image(label, np.diag([2.0, 2.0, 2.0, 1.0])), folder / "labels" / name)


def call(script: Path, verb: str, **settings: Any) -> list[float]:
    """Seconds, peak of the process in MB, and peak of its largest worker."""
    words = [sys.executable, str(script), verb, json.dumps(settings, default=str)]
    found: list[float] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return found


def twice(script: Path, verb: str, images: int, name: str, **settings: Any) -> dict[str, Any]:
    """Call a verb, and call it again when there is nothing left to do."""
    seconds, peak, worker = call(script, verb, **settings)
    again, again_peak, _ = call(script, verb, **settings)
    return {
        "name": f"{verb}, {name}",
        "verb": verb,
        "images": images,
        "seconds": round(seconds, 2),
        "per_second": round(images / seconds, 1),
        "again_s": round(again, 2),
        "peak_mb": round(peak),
        "worker_mb": round(worker),
        "again_mb": round(again_peak),
    }


def catalogued(script: Path, scans: Path, out: Path, images: int, name: str) -> dict[str, Any]:
    """Catalogue a folder twice."""
    row = twice(script, "catalogue", images, name, paths=[scans], out=out)
    files = {ending: out.with_suffix(f".{ending}") for ending in ("parquet", "rows.jsonl", "html")}
    sizes = {ending: round(path.stat().st_size / 1e6, 2) for ending, path in files.items()}
    return row | {"input_mb": megabytes(scans), "files_mb": sizes}


def prepared(script: Path, out: Path, store: Path, images: int, name: str, **settings: Any) -> dict[str, Any]:
    """Prepare a catalogue's images twice."""
    row = twice(script, "prepare", images, name, catalogue=out, out=store, **settings)
    return row | {"store_mb": megabytes(store)}


def megabytes(folder: Path) -> float:
    """Size of all files in a folder."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def fitted(rows: Sequence[dict[str, Any]], quantity: str, degree: int = 1) -> dict[str, Any] | None:
    """A straight line, or a parabola, through the calls with more images than the page shows; how far they are off."""
    used = [row for row in rows if row["images"] > SHOWN]
    if len(used) < degree + 2:
        return None
    images, values = (np.array([row[key] for row in used], float) for key in ("images", quantity))
    line = np.polynomial.Polynomial.fit(images / 1000, values, degree).convert()
    start, slope, *curve = (round(float(number), 4) for number in line.coef)
    return {
        "name": f"fit: {rows[0]['verb']}, {quantity}",
        "verb": "fit",
        "start": start,
        "per_1000": slope,
        "per_1000_squared": curve[0] if curve else 0.0,
        "farthest": round(float(np.abs(values - line(images / 1000)).max()), 3),
        "images": [int(number) for number in images],
        f"at_{FAR}": round(float(line(FAR / 1000)), 1),
    }


def grown(script: Path, work: Path, sizes: Sequence[int], volumes: Sequence[int]) -> None:
    """Both verbs on generated files."""
    rows: dict[str, list[dict[str, Any]]] = {"catalogue": [], "prepare": []}
    for images in sorted({*sizes, *volumes}):
        folder = work / str(images)
        generate(folder / "scans", images)
        found = catalogued(script, folder / "scans", folder / "c.parquet", images, f"{images} small files")
        if images in sizes:
            rows["catalogue"].append(found)
            show(found)
        if images in volumes:
            name = f"{images} small files"
            rows["prepare"].append(prepared(script, folder / "c.parquet", folder / "store", images, name))
            show(rows["prepare"][-1])
        shutil.rmtree(folder)
    lines = [
        fitted(rows["catalogue"], "seconds", 2),
        fitted(rows["catalogue"], "again_s", 2),  # near duplicates
        fitted(rows["catalogue"], "peak_mb"),
        fitted(rows["prepare"], "seconds"),
        fitted(rows["prepare"], "peak_mb"),
    ]
    for line in lines:
        if line is not None:
            show(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[100, 500, 2000, 5000, 20_000], help="to catalogue")
    parser.add_argument("--volumes", type=int, nargs="*", default=[100, 500, 2000, 5000, 10_000], help="to prepare")
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="folders of scans, for their rate")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        script = work / "call.py"  # a file, for the workers run it again
        script.write_text(CALL)
        for folder in given.real:
            out = work / f"{folder.name}.parquet"
            call(script, "catalogue", paths=[folder], out=work / "warm.parquet")  # files into memory
            images = len(pd.read_parquet(work / "warm.parquet"))
            show(catalogued(script, folder, out, images, f"{images} scans of {folder.name}"))
            name = f"{images} scans of {folder.name}"
            show(prepared(script, out, work / f"{folder.name}-store", images, name, spacing="median"))
        grown(script, work, given.sizes, given.volumes)


if __name__ == "__main__":
    main()
