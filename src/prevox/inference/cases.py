"""Which images `predict` is asked for: from a catalogue, a store, a folder of scans, or one file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prevox.data.readers import Reading
from prevox.errors import DataError, RunError


@dataclass(frozen=True)
class Case:
    """One image.

    Attributes:
        image: Id; the mask's file name.
        paths: Files, one per channel or one that holds all.
        label: Reference label map, where there is one (not read, but named in predictions.csv).
        problem: Why the image cannot be used; None if nothing speaks against it yet.
        reading: How the files are read, as the catalogue says.
    """

    image: str
    paths: tuple[Path, ...]
    label: Path | None
    problem: DataError | None = None
    reading: Reading = Reading()  # noqa: RUF009  # immutable


def find_cases(images: Path) -> list[Case]:
    """List the images of a catalogue (.parquet), a store, a folder of scans or one file.

    Raises:
        DataError: If there is none, or two have one id (their masks would have one name).
    """
    if images.suffix == ".parquet":
        from prevox.data.catalogue import read_catalogue

        cases = [_from_row(row) for row in read_catalogue(images).to_dict("records")]
    elif (images / "store.json").is_file():
        from prevox.data.store import Store

        cases = [_from_row(row) for row in Store(images).index.reset_index().to_dict("records")]
    else:
        from prevox.data.layouts import recognise

        cases = [Case(entry.image, tuple(entry.paths), entry.label, entry.problem) for entry in recognise(images)]
    seen: dict[str, Case] = {}
    for case in cases:
        if (other := seen.setdefault(case.image, case)) is not case:
            raise DataError(
                images,
                found=f"two images with the id '{case.image}': {other.paths[0]} and {case.paths[0]}",
                expected="an id of its own for each image, since it names the mask",
                remedy="Make a catalogue of the folder, which tells them apart, and give that.",
            )
    return cases


def _from_row(row: dict[Any, Any]) -> Case:
    root, label = Path(row["root"]), row["label_path"]
    paths = tuple(root / path for path in row["paths"])
    reading = Reading.from_text(row.get("reading"))
    return Case(str(row["image"]), paths, root / label if isinstance(label, str) else None, reading=reading)


def of_split(cases: list[Case], run: Path, part: str, images: Path) -> list[Case]:
    """Keep the images of one part of the run's split.json.

    Raises:
        RunError: If the run has no split, or none of the images is in that part.
    """
    try:
        split = json.loads((run / "split.json").read_text())
        wanted = set(split[part])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run / 'split.json'}: cannot be read ({error}); --split {part} needs it.") from None
    kept = [case for case in cases if case.image in wanted]
    if not kept:
        raise RunError(
            f"{images}: none of its {len(cases)} images is among the run's {len(wanted)} {part} images. Give the "
            "catalogue or store that the run was trained from, or --split all."
        )
    return kept
