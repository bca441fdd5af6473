"""Recognise how a folder of scans is organised.

A layout is a module with `recognise(root) -> list[Entry] | None`; the first that answers is taken. DICOM is looked for
beside the last two, for one stray DICOM file must not hide a folder of NIfTI, nor the other way round.
"""

from collections import Counter
from pathlib import Path

from prevox.console import warn
from prevox.data.layouts import bids, dicom, folder, msd, nnunet, pictures, stacks
from prevox.data.layouts.base import Entry, as_text, image_files, is_text, readable, refuse_duplicates
from prevox.data.layouts.dicom import DicomSource
from prevox.data.readers import SUFFIXES, foreign, is_picture, suffix_of
from prevox.errors import DataError

__all__ = ["LAYOUTS", "DicomSource", "Entry", "recognise", "refuse_duplicates"]

# the first line of a module's docstring says what it reads
LAYOUTS = {"msd": msd, "nnunet": nnunet, "bids": bids, "pictures": pictures, "folder": folder, "dicom": dicom}
_SHOWN = 10  # names in a warning
_CATALOGUE_FIRST = " DICOM must be catalogued first: give the file that `prevox catalogue` writes."


def recognise(path: Path, source: DicomSource | None = None, stack: bool = False) -> list[Entry]:
    """List the images of a folder, a `dataset.json`, or one file; a folder of datasets gives the images of all of them.

    Args:
        path: What the user gives.
        source: How DICOM is catalogued; None where it is not looked for.
        stack: Whether the pictures of a folder that no dataset.json describes are the slices of a volume.

    Raises:
        DataError: If the path does not exist or holds no image, if a dataset.json makes no sense, or if two images
            have one id.
    """
    path = path.expanduser().absolute()
    if not is_text(path):
        raise DataError(
            as_text(path), found="a path that is no UTF-8 text", expected="names in UTF-8", remedy="Rename the folder."
        )
    if path.name == "dataset.json":
        path = path.parent
    if not path.exists():
        raise DataError(path, found="no such file or folder", expected="a folder of scans", remedy="Check the path.")
    if path.is_file() and suffix_of(path) is None:
        entries = dicom.recognise(path, source) if source else []
        if not entries and not (source and source.met):
            raise foreign(path) or DataError(
                path, found="a file of unknown kind", expected=f"DICOM, or one of {', '.join(SUFFIXES)}"
            )
    else:
        entries = [entry for root in _nested_datasets(path) or [path] for entry in _all(root, source, stack)]
    if not entries:
        if source is not None and source.met:
            met = ", ".join(f"{count} × {kind}" for kind, count in sorted(source.met.items()))
            raise DataError("DICOM", found=f"no image, but {met}", expected="series of images")
        raise DataError(
            path,
            found=f"no image{_other_files(path)}",
            expected=f"files ending in {', '.join(SUFFIXES)}, at any depth, a dataset.json (MSD or nnU-Net), BIDS, or "
            "DICOM",
            remedy=f"Check the path; hidden files are skipped.{'' if source else _CATALOGUE_FIRST}",
        )
    return [readable(entry) for entry in entries]


def _other_files(path: Path) -> str:
    """The kinds of files that a folder without images holds."""
    kinds = Counter(file.suffix.lower() or "no suffix" for file in path.rglob("*") if file.is_file())
    counted = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common(4))
    return f" ({counted})" if counted else " (no file at all)"


def _all(root: Path, source: DicomSource | None, stack: bool) -> list[Entry]:
    """The images of the first layout that answers, and DICOM where nothing describes the folder."""
    layouts = (msd, nnunet, bids, *([stacks] if stack else []), pictures, folder)
    found = (layout.recognise(root) for layout in layouts)
    entries: list[Entry] = next((entries for entries in found if entries is not None), [])
    if source is None or (entries and entries[0].layout not in ("pictures", "folder")) or root.is_file():
        return entries
    series = dicom.recognise(root, source)
    if series and entries:
        if all(is_picture(entry.paths[0]) for entry in entries):
            warn(f"{len(entries)} PNG, JPEG or TIFF files beside DICOM are left out: they show scans, and are none")
            return series
        warn(
            f"{len(entries)} images of other kinds beside DICOM: both are listed, though some may be the same scans. "
            "Paths of the others stay readable in the catalogue"
        )
    return [*entries, *series]


def _nested_datasets(path: Path) -> list[Path]:
    """Sub-folders that are described datasets, where the folder itself is none (nnUNet_raw, a folder of MSD tasks)."""
    if path.is_file() or (path / "dataset.json").is_file() or bids.is_dataset(path):
        return []
    inner = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    datasets = [child for child in inner if (child / "dataset.json").is_file() or bids.is_dataset(child)]
    others = [child.name for child in [*inner, *image_files(path)] if child not in datasets]
    if datasets and others:
        named = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
        warn(f"{path}: only its datasets (dataset.json, BIDS) are read here; skipped: {named}")
    return datasets
