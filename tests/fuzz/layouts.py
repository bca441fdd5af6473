"""Damage the texts and names of datasets at random, catalogue each in a child process, and count what comes of it.

`python -m tests.fuzz.layouts --count 600 --seed 0` prints counts as JSON and exits with 1 if a catalogue ends its
process, hangs, raises what is no message to the user, lists an image whose id leads out of a folder, or changes a file
outside of its own folder. Damaged are `dataset.json` of MSD and nnU-Net and the texts of a BIDS tree: values that are
paths, half characters, of another type or very long, besides all that `tests.fuzz.readers` does to bytes; trees have
links in circles and names that are no UTF-8.
"""

import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from prevox.config.data import CatalogueConfig
from prevox.data.catalogue import catalogue
from prevox.data.encode import is_file_name
from prevox.data.readers import Reading
from prevox.errors import PrevoxError
from tests.fuzz.readers import BAD, Reader, command, damaged, listing

LISTED, REFUSED = "listed", "refused with a message"
VALUES: tuple[Any, ...] = (
    *("../../x", "/etc/passwd", "../../x.nii.gz", "", "..", ".", "a\0b", "\ud800", "a" * 5000, "a/../../b"),
    *(None, [], {}, True, -1, 1e308, 10**30, ["../../x"], {"image": "../../x.nii.gz", "label": "../../y.nii.gz"}),
)
MSD = {
    "name": "odd", "modality": {"0": "MR"}, "labels": {"0": "background", "1": "x"},
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}], "test": ["./imagesTs/b.nii.gz"],
}  # fmt: skip
NNUNET = {"name": "odd", "channel_names": {"0": "MR"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
BIDS = {
    "dataset_description.json": b'{"Name": "odd", "BIDSVersion": "1.9.0"}',
    "participants.tsv": b"participant_id\tage\nsub-1\t30\nsub-2\t40\n",
    "T1w.json": b'{"EchoTime": 0.003, "Manufacturer": "x"}',
    "derivatives/made/dseg.tsv": b"index\tname\n0\tbackground\n1\tx\n",
}


def write_dataset(number: int, seed: int, folder: Path) -> None:
    """Write the dataset of this number into an empty folder."""
    rng = np.random.default_rng([seed, number])
    image, label = folder.parent / "image.nii.gz", folder.parent / "label.nii.gz"
    if number % 3 == 2:
        _write_bids(folder, image, label, rng)
        return
    sound, channel = (MSD, "") if number % 3 == 0 else (NNUNET, "_0000")
    for place, source in ((f"imagesTr/a{channel}", image), ("labelsTr/a", label), (f"imagesTs/b{channel}", image)):
        _copy(source, folder / f"{place}.nii.gz")
    text = json.dumps(_changed(sound, rng)).encode() if rng.integers(3) else damaged(json.dumps(sound).encode(), rng)
    (folder / "dataset.json").write_bytes(text)


def _write_bids(folder: Path, image: Path, label: Path, rng: np.random.Generator) -> None:
    for subject in ("sub-1", "sub-2"):
        _copy(image, folder / subject / "anat" / f"{subject}_T1w.nii.gz")
    _copy(label, folder / "derivatives/made/sub-1/anat/sub-1_dseg.nii.gz")
    hit = list(BIDS)[rng.integers(len(BIDS))]
    for name, content in BIDS.items():
        text = content
        if name == hit:
            is_json = name.endswith(".json") and rng.integers(2)
            text = json.dumps(_changed(json.loads(content), rng)).encode() if is_json else damaged(content, rng)
        (folder / name).write_bytes(text)
    anat, kind = folder / "sub-1" / "anat", rng.integers(6)
    if kind == 0:
        (anat / "loop").symlink_to(folder)
    elif kind == 1:
        (anat / "sub-1_T2w.nii.gz").symlink_to(anat / "sub-1_T2w.nii.gz")
    elif kind == 2:
        _copy(image, anat / os.fsdecode(b"sub-1_acq-\xe9_T1w.nii.gz"))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _changed(sound: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A copy with another value, or another key, in one place."""
    content: dict[str, Any] = json.loads(json.dumps(sound))
    places = list(_places(content))
    holder, key = places[rng.integers(len(places))]
    value = VALUES[rng.integers(len(VALUES))]
    if isinstance(holder, dict) and isinstance(value, str) and rng.integers(4) == 0:
        holder[value] = holder.pop(key)
    else:
        holder[key] = value
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or list below the content, with each of its keys."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


def outcome(folder: Path, reading: Reading) -> str:
    """Catalogue a folder into `out` beside it; what is no message to the user is a fault."""
    try:
        config = CatalogueConfig(paths=(folder,), out=folder.parent / "out" / "c.parquet")
        table = catalogue(config).table
    except PrevoxError:
        return REFUSED
    assert all(map(is_file_name, table["image"])), "an id that leads out of a folder"
    return LISTED


def fuzz(count: int, seed: int, keep: Path | None = None) -> dict[str, Any]:
    """Catalogue `count` damaged datasets; counts of outcomes, and each fault."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        voxels = np.random.default_rng(0).integers(1, 900, (10, 9, 8)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / "image.nii.gz")
        nib.save(nib.Nifti1Image((voxels > 450).astype(np.uint8), np.eye(4)), root / "label.nii.gz")
        reader = Reader(outcome)
        for number in range(count):
            folder = root / "set"
            folder.mkdir()
            write_dataset(number, seed, folder)
            before = listing(root)
            kind, words = reader.read(folder, Reading())
            shutil.rmtree(root / "out", ignore_errors=True)
            if listing(root) != before:
                kind, words = "wrote elsewhere", "files changed"
            counts[kind] += 1
            if kind in BAD:
                faults.append(f"{number}: {kind}: {words[:200]}")
                if keep is not None:
                    shutil.copytree(folder, keep / str(number), symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder)
        reader.close()
    return {"datasets": count, "seed": seed, "outcomes": dict(sorted(counts.items())), "faults": faults}


if __name__ == "__main__":
    sys.exit(command(__doc__ or "", fuzz, 600))
