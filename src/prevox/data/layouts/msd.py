"""Medical Segmentation Decathlon: `dataset.json` lists images with labels ("training") and without ("test").

Lists made for MONAI have the same form, with "validation" as a third part and, at times, absolute paths.
"""

from pathlib import Path
from typing import Any

from prevox.data.layouts.base import (
    Entry,
    channel_names_of,
    class_names_of,
    is_there,
    missing_files,
    read_description,
    refuse_duplicates,
)
from prevox.data.readers import stem_of, suffix_of
from prevox.errors import DataError


def recognise(root: Path) -> list[Entry] | None:
    """Read the folder if it is laid out this way, else None; channels are a file's 4th axis, or a list of files."""
    description = read_description(root)
    if description is None or not isinstance(description.get("training"), list):
        return None
    pairs = _listed(root, description)
    if not pairs or _is_nnunet_1(pairs[0][0][0]):
        return None
    channels = channel_names_of(description, root / "dataset.json")
    modality = ",".join(channels.values()) or None
    class_names = class_names_of(description.get("labels"), root / "dataset.json")
    entries = []
    for paths, label in pairs:
        image = stem_of(paths[0])
        entries.append(
            Entry(
                image=image,
                paths=paths,
                label=label,
                subject=image,
                modality=modality,
                class_names=class_names,
                layout="msd",
                root=root,
                collection=str(description.get("name") or root.name),
                dataset=root.name,
                problem=missing_files(image, [*paths, *([label] if label else [])]),
                channels=len(channels) or None,
            )
        )
    refuse_duplicates(entries, "Rename one of the two files and its line in dataset.json.")
    return entries


def _listed(root: Path, description: dict[str, Any]) -> list[tuple[tuple[Path, ...], Path | None]]:
    """Files and label of every image, each once: some lists name one in two parts, with its label in one of them."""
    lists = {part: description.get(part) or [] for part in ("training", "validation", "test")}
    for part, items in lists.items():
        if not isinstance(items, list):
            raise DataError(root / "dataset.json", found=f"'{part}': {items!r:.80}", expected="a list of images")
    pairs = list(dict.fromkeys(_files(root, item) for items in lists.values() for item in items))
    labelled = {paths for paths, label in pairs if label is not None}
    return [(paths, label) for paths, label in pairs if label is not None or paths not in labelled]


def _files(root: Path, item: Any) -> tuple[tuple[Path, ...], Path | None]:
    """Image files and label of one line of the listing: {"image": ..., "label": ...}, or a name alone."""
    images, label = (item.get("image"), item.get("label")) if isinstance(item, dict) else (item, None)
    images = images if isinstance(images, list) else [images]
    if not images or not all(isinstance(name, str) for name in [*images, label or ""]):
        raise DataError(root / "dataset.json", found=f"the entry {item!r}", expected='{"image": file, "label": file}')
    return tuple(root / name for name in images), root / str(label) if label else None


def _is_nnunet_1(listed: Path) -> bool:
    """Whether the listing leaves out the channel number, as nnU-Net 1 does: CASE.nii.gz stands for CASE_0000.nii.gz."""
    suffix = suffix_of(listed) or ""
    return not is_there(listed) and is_there(listed.with_name(f"{stem_of(listed)}_0000{suffix}"))
