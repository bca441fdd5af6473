"""nnU-Net raw: `imagesTr/CASE_0000.ext` (one file per channel), `labelsTr/CASE.ext`, `imagesTs` without labels."""

from collections.abc import Sequence
from pathlib import Path

from prevox.data.layouts.base import (
    Entry,
    are_channels,
    cases_of,
    channel_names_of,
    channel_problem,
    class_names_of,
    image_files,
    read_description,
    refuse_duplicates,
    without_previews,
)
from prevox.data.readers import stem_of


def recognise(root: Path) -> list[Entry] | None:
    """Read the folder, or one folder of images of such a dataset, if it is laid out this way, else None."""
    part = root.name.removeprefix("images")
    if part == root.name or not root.is_dir() or (root / "dataset.json").is_file():
        return _read(root, [part for part in ("Tr", "Ts") if (root / f"images{part}").is_dir()])
    labels = {stem_of(path) for path in image_files(root.with_name(f"labels{part}"))}
    return _read(root.parent, [part]) if are_channels(image_files(root), labels) else None


def _read(root: Path, parts: Sequence[str]) -> list[Entry] | None:
    """The images of some parts ("Tr", "Ts") of a dataset; None if its dataset.json is missing or of another kind."""
    description = read_description(root)
    if description is None or not parts:
        return None
    channels = channel_names_of(description, root / "dataset.json")
    if not channels:
        return None
    class_names = class_names_of(description.get("labels"), root / "dataset.json")
    entries = []
    for part in parts:
        labels = {stem_of(path): path for path in image_files(root / f"labels{part}")}
        cases = cases_of(without_previews(image_files(root / f"images{part}"), root / f"images{part}"))
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
                    problem=channel_problem(case, files, channels, "dataset.json says"),
                    channels=len(channels),
                )
            )
    refuse_duplicates(entries, "Rename one of the two cases.")
    return entries
