"""BIDS: `sub-ID/[ses-ID/]DATATYPE/sub-ID_..._SUFFIX.nii.gz`; derivatives are left out, but for label maps.

The suffix is the modality, `sub-` the subject, `ses-` the session; other entities (task, acq, run, echo ...) and a few
acquisition parameters of the JSON sidecars become columns, and `participants.tsv` is joined.

A segmentation in `derivatives/` (`_dseg`, or a `_mask` with a `label-`) becomes an image's label map where both leave
no doubt: it lies on the image's own grid by name (no `space-`, or `space-orig`), all its other entities are the
image's, and no other image or segmentation has as good a claim.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from prevox.console import warn
from prevox.data.acquisition import sequence_of_sidecar
from prevox.data.join import listed
from prevox.data.layouts.base import Entry, foreign_entries, image_files, read_sidecar, refuse_duplicates
from prevox.data.readers import is_picture, stem_of
from prevox.errors import DataError

_NAME = re.compile(r"sub-[A-Za-z0-9]+(?:_[A-Za-z]+-[A-Za-z0-9+]+)*_[A-Za-z0-9]+")
_FOLDERS = re.compile(r"sub-[A-Za-z0-9]+(?:/ses-[A-Za-z0-9]+)?/(anat|func|dwi|fmap|perf|pet|swi|ct|mr|mrs|micr)")
_OF_DERIVATIVES = ("desc", "label", "atlas", "seg", "scale", "res", "den", "hemi")  # say nothing of the source
_NO_IMAGES = ("dseg", "probseg", "mask", "defacemask")  # suffixes of what is made from images
_NO_MR = ("pet", "ct", "micr")
# what a model or a filter may need; sidecars hold names and dates as well, which stay where they are
_PARAMETERS = (
    *("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "PulseSequenceType", "ScanningSequence"),
    *("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "SliceThickness", "ContrastBolusIngredient"),
    *("TracerName", "TracerRadionuclide", "Units"),
)


@dataclass(frozen=True)
class _File:
    """A file by its name: entities in order, suffix, datatype (the folder)."""

    path: Path
    entities: Mapping[str, str]
    suffix: str
    datatype: str

    def source(self) -> tuple[Any, ...]:
        """What this and the file it was made from have in common."""
        space = self.entities.get("space", "orig")
        shared = {(k, v) for k, v in self.entities.items() if k not in (*_OF_DERIVATIVES, "space")}
        return self.datatype, space, frozenset(shared)


def is_dataset(root: Path) -> bool:
    """Whether a folder says that it is a BIDS dataset."""
    return (root / "dataset_description.json").is_file()


def recognise(root: Path) -> list[Entry] | None:
    """Read the folder if it is a BIDS dataset (or derivative) with images, else None.

    Raises:
        DataError: If the dataset's description is not JSON, or two images have one name.
    """
    if not root.is_dir() or not (is_dataset(root) or any(root.glob("sub-*"))):
        return None
    files = [path for path in image_files(root, recursive=True) if not is_picture(path)]
    named = [(path, _parsed(path, root)) for path in files]
    images = [file for _, file in named if file is not None and file.suffix not in _NO_IMAGES]
    if not images or (not is_dataset(root) and len(images) < len(files)):
        return None
    made = [file for path in files if (file := _derived(path, root)) is not None]
    made += [file for _, file in named if file is not None and file.suffix in _NO_IMAGES]
    labels = _labels(images, made, root)
    used = {file.path for file in images} | {file.path for file in labels.values()}
    _tell_rest([path for path in files if path not in used], root)
    name = _collection(root)
    sidecars = _Sidecars(root)
    entries = [_entry(file, labels.get(file.path), name, sidecars, root) for file in images]
    refuse_duplicates(entries, "Keep one of the two files.")
    return [*_with_table(entries, root), *foreign_entries(root)]


def _parsed(path: Path, root: Path) -> _File | None:
    """The file by its name if it lies where the raw data of BIDS lie, else None."""
    folder = _FOLDERS.fullmatch(path.parent.relative_to(root).as_posix())
    stem = stem_of(path)
    if folder is None or not _NAME.fullmatch(stem):
        return None
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs)
    place = dict(part.split("-", 1) for part in path.parent.relative_to(root).parts[:-1])
    if any(entities.get(key) != value for key, value in place.items()):
        return None
    return _File(path, entities, suffix, folder[1])


def _derived(path: Path, root: Path) -> _File | None:
    """A segmentation below `derivatives/` by its name, None for everything else there."""
    parts = path.relative_to(root).parts
    if parts[0] != "derivatives":
        return None
    for depth in range(1, len(parts) - 1):  # derivatives/PIPELINE/sub-..., or nested deeper
        if parts[depth].startswith("sub-"):
            return _parsed(path, root.joinpath(*parts[:depth]))
    return None


def _labels(images: Sequence[_File], made: Sequence[_File], root: Path) -> dict[Path, _File]:
    """Image path to the one segmentation that belongs to it without doubt; the others are told."""
    sources = defaultdict(list)
    for image in images:
        sources[image.source()].append(image)
    claims = defaultdict(list)
    for file in made:
        if file.suffix == "dseg" or (file.suffix == "mask" and "label" in file.entities):
            claims[file.source()].append(file)
    labels, doubtful = {}, []
    for source, files in claims.items():
        mine = sources.get(source, [])
        maps = [file for file in files if file.suffix == "dseg"] or files
        if len(mine) == 1 and len(maps) == 1:
            labels[mine[0].path] = maps[0]
        elif mine:
            doubtful.append(maps[0].path)
    if doubtful:
        warn(
            f"{root}: {len(doubtful)} times several segmentations or several images have the same entities, so none is "
            f"taken as a label map (the first: {doubtful[0].relative_to(root)})"
        )
    return labels


def _tell_rest(rest: Sequence[Path], root: Path) -> None:
    """Say which images below the root are not listed."""
    counts: dict[str, int] = {}
    for path in rest:
        top = path.relative_to(root).parts[0]
        place = f"{top}/" if top in ("derivatives", "sourcedata", "code", "stimuli") else "other places"
        counts[place] = counts.get(place, 0) + 1
    for place, count in counts.items():
        example = next(path for path in rest if (path.relative_to(root).parts[0] + "/" == place) or place[-1] != "/")
        warn(f"{root}: {count} image files in {place} are left out (such as {example.relative_to(root)})")


def _collection(root: Path) -> str:
    """The name in dataset_description.json, else the folder's."""
    path = root / "dataset_description.json"
    if not path.is_file():
        return root.name
    content = read_sidecar(path)
    if content is None:
        raise DataError(path, found="text that is no JSON object", expected="a description of the dataset")
    name = content.get("Name")
    return name.strip() if isinstance(name, str) and name.strip() else root.name


class _Sidecars:
    """JSON files beside images and in the folders above, which apply to all below whose entities they name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[Path, list[tuple[frozenset[str], str, dict[str, Any]]]] = {}

    def of(self, file: _File) -> dict[str, Any]:
        """What is said of an image: files further down win, and of those in one folder the closer name."""
        own = {f"{key}-{value}" for key, value in file.entities.items()}
        found: dict[str, Any] = {}
        folders = [folder for folder in file.path.parents if folder.is_relative_to(self.root)]
        for folder in reversed(folders):
            for entities, suffix, content in sorted(self._in(folder), key=lambda sidecar: len(sidecar[0])):
                if suffix == file.suffix and entities <= own:
                    found |= content
        return found

    def _in(self, folder: Path) -> list[tuple[frozenset[str], str, dict[str, Any]]]:
        if folder not in self.known:
            parsed = []
            for path in sorted(folder.glob("*.json")):
                *entities, suffix = path.stem.split("_")
                content = read_sidecar(path) if all("-" in part for part in entities) else None
                parsed += [(frozenset(entities), suffix, content)] if content else []
            self.known[folder] = parsed
        return self.known[folder]


def _fits_a_column(value: Any) -> bool:
    """Whether a sidecar's value is text or a number that a table can hold."""
    return isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**63)


def _entry(file: _File, label: _File | None, collection: str, sidecars: _Sidecars, root: Path) -> Entry:
    others = {key: value for key, value in file.entities.items() if key not in ("sub", "ses")}
    session, said = file.entities.get("ses"), sidecars.of(file)
    parameters = {key: value for key, value in said.items() if key in _PARAMETERS and _fits_a_column(value)}
    return Entry(
        image=stem_of(file.path),
        paths=(file.path,),
        label=None if label is None else label.path,
        subject=f"sub-{file.entities['sub']}",
        modality=file.suffix,
        class_names=None if label is None else _class_names(label, root),
        layout="bids",
        root=root,
        collection=collection,
        dataset=root.name,
        session=None if session is None else f"ses-{session}",
        details={"datatype": file.datatype, **others, **parameters},
        sequence=sequence_of_sidecar(said) if file.datatype not in _NO_MR else None,
    )


def _class_names(label: _File, root: Path) -> dict[int, str] | None:
    """Names of a segmentation's values, from the table beside it or at the top of its pipeline's folder."""
    if label.suffix == "mask":
        return {1: label.entities["label"]}
    own = {f"{key}-{value}" for key, value in label.entities.items()}
    stem = stem_of(label.path)
    for folder in (folder for folder in label.path.parents if folder.is_relative_to(root)):
        tables = [path for path in folder.glob("*dseg.tsv") if set(path.stem.split("_")[:-1]) <= own]
        for path in sorted(tables, key=lambda path: (path.stem != stem, -len(path.stem))):
            if (names := _table_of_names(path)) is not None:
                return names
    return None


def _table_of_names(path: Path) -> dict[int, str] | None:
    """Columns `index` and `name` of a table, background left out; None if it has not these."""
    try:
        table = pd.read_csv(path, sep="\t")
        pairs = zip(table["index"].tolist(), table["name"].tolist(), strict=True)
        return {int(value): str(name) for value, name in pairs if int(value) != 0}
    except (ValueError, KeyError, OSError):
        return None


def _with_table(entries: list[Entry], root: Path) -> list[Entry]:
    """Entries whose subject has a row in participants.tsv, with that table."""
    path = root / "participants.tsv"
    if not path.is_file():
        return entries

    known = listed([entry.subject for entry in entries], path)
    absent = sorted({entry.subject for entry in entries} - known)
    if absent:
        warn(
            f"{path}: no row of its own for {len(absent)} subjects ({', '.join(absent[:3])}): nothing is joined to them"
        )
    return [replace(entry, table=path) if entry.subject in known else entry for entry in entries]
