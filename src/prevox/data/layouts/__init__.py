"""Recognise how a folder of scans is organised.

A layout is a module with `recognise(root) -> list[Entry] | None`; the first that answers is taken.
"""

from collections import Counter
from pathlib import Path

from prevox.console import warn
from prevox.data.layouts import folder, msd, nnunet, pictures
from prevox.data.layouts.base import Entry, image_files, refuse_duplicates
from prevox.data.readers import SUFFIXES, suffix_of
from prevox.errors import DataError

__all__ = ["LAYOUTS", "Entry", "recognise", "refuse_duplicates"]

# the first line of a module's docstring says what it reads
LAYOUTS = {"msd": msd, "nnunet": nnunet, "pictures": pictures, "folder": folder}
_SHOWN = 10  # names in a warning


def recognise(path: Path) -> list[Entry]:
    """List the images of a folder, a `dataset.json`, or one file; a folder of datasets gives the images of all of them.

    Raises:
        DataError: If the path does not exist or holds no image, if a dataset.json makes no sense, or if two images
            have one id.
    """
    path = path.expanduser().absolute()
    if path.name == "dataset.json":
        path = path.parent
    if not path.exists():
        raise DataError(path, found="no such file or folder", expected="a folder of scans", remedy="Check the path.")
    if path.is_file() and suffix_of(path) is None:
        raise DataError(path, found="a file of unknown kind", expected=f"one of {', '.join(SUFFIXES)}")
    nested = _nested_datasets(path)
    entries = [entry for root in nested or [path] for entry in _first(root)]
    if not entries:
        raise DataError(
            path,
            found=f"no image{_other_files(path)}",
            expected=f"files ending in {', '.join(SUFFIXES)}, at any depth, or a dataset.json (MSD or nnU-Net)",
            remedy="Check the path; hidden files are skipped. DICOM series become NIfTI files with dcm2niix.",
        )
    return entries


def _other_files(path: Path) -> str:
    """The kinds of files that a folder without images holds."""
    kinds = Counter(file.suffix.lower() or "no suffix" for file in path.rglob("*") if file.is_file())
    counted = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common(4))
    return f" ({counted})" if counted else " (no file at all)"


def _first(root: Path) -> list[Entry]:
    return next((entries for layout in LAYOUTS.values() if (entries := layout.recognise(root)) is not None), [])


def _nested_datasets(path: Path) -> list[Path]:
    """Sub-folders with a dataset.json, where the folder itself has none (nnUNet_raw, a folder of MSD tasks)."""
    if path.is_file() or (path / "dataset.json").is_file():
        return []
    inner = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    datasets = [child for child in inner if (child / "dataset.json").is_file()]
    others = [child.name for child in [*inner, *image_files(path)] if child not in datasets]
    if datasets and others:
        named = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
        warn(f"{path}: only folders with a dataset.json are read here; skipped: {named}")
    return datasets
