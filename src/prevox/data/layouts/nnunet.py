"""nnU-Net raw: `imagesTr/CASE_0000.ext` (one file per channel), `labelsTr/CASE.ext`, `imagesTs` without labels."""

import re
from pathlib import Path

from prevox.data.layouts.base import (
    Entry,
    channel_names_of,
    class_names_of,
    image_files,
    read_description,
    refuse_duplicates,
)
from prevox.data.readers import stem_of
from prevox.errors import DataError

_CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")


def recognise(root: Path) -> list[Entry] | None:
    """Read the folder if it is laid out this way, else None."""
    description = read_description(root)
    if description is None or not (root / "imagesTr").is_dir():
        return None
    channels = channel_names_of(description)
    if not channels:
        return None
    class_names = class_names_of(description.get("labels"), root / "dataset.json")
    entries = []
    for part in ("Tr", "Ts"):
        labels = {stem_of(path): path for path in image_files(root / f"labels{part}")}
        cases = _cases(root / f"images{part}")
        for case in sorted(cases.keys() | labels.keys()):
            files = cases.get(case, {})
            entries.append(
                Entry(
                    image=case,
                    paths=tuple(files[channel] for channel in sorted(files)) or (root / f"images{part}" / case,),
                    label=labels.get(case),
                    subject=case,
                    modality=",".join(channels[number] for number in sorted(channels)),
                    class_names=class_names,
                    layout="nnunet",
                    root=root,
                    collection=str(description.get("name") or root.name),
                    dataset=root.name,
                    problem=_problem(case, files, channels),
                )
            )
    refuse_duplicates(entries, "Rename one of the two cases.")
    return entries


def _cases(folder: Path) -> dict[str, dict[int, Path]]:
    """Case to channel number to file."""
    cases: dict[str, dict[int, Path]] = {}
    for path in image_files(folder):
        match = _CHANNEL_FILE.match(stem_of(path))
        if match is None:
            raise DataError(
                path,
                found="a file name without channel number",
                expected="CASE_0000, CASE_0001, ... as nnU-Net names its images",
                remedy="Rename it, or catalogue the folder without its dataset.json.",
            )
        files = cases.setdefault(match["case"], {})
        other = files.setdefault(int(match["channel"]), path)
        if other is not path:
            raise DataError(folder, found=f"the same channel twice: {other} and {path}", expected="one file")
    return cases


def _problem(case: str, files: dict[int, Path], channels: dict[int, str]) -> DataError | None:
    if files.keys() == channels.keys():
        return None
    return DataError(
        case,
        found=f"channels {sorted(files) or 'none'}",
        expected=f"channels {sorted(channels)} ({', '.join(channels.values())}), as dataset.json says",
        remedy="Restore the missing file or take the case out.",
    )
