"""Which prediction belongs to which reference, and which classes are scored: everything before a voxel is read."""

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prevox.config.base import read_yaml
from prevox.config.runs import EvaluateConfig
from prevox.data.readers import SUFFIXES, Reading, stem_of, suffix_of
from prevox.errors import ConfigError, DataError, RunError

Regions = dict[str, tuple[int, ...]]
CATALOGUE_COLUMNS = ("image", "subject", "root", "label_path", "class_names")
LARGEST_LABEL = 65535
MEAN = "mean"  # of classes, in the summary; no class can have that name


@dataclass(frozen=True)
class Case:
    """One prediction with its reference.

    Attributes:
        case: Id.
        subject: Who the case belongs to; the unit of resampling.
        prediction: Mask file.
        reference: Mask file.
        regions: Label values of each class; None scores every value that occurs.
        strict: Whether a label value that no region names is an error (else it counts as background).
        dataset: Name of the dataset that the case comes from; "" where nothing says.
        image: The scan itself (its first file, where channels have one each); None where nothing says, or
            the catalogue's choices decide what of it is meant. Not read.
        reading: How the reference is read, as the catalogue says.
    """

    case: str
    subject: str
    prediction: Path
    reference: Path
    regions: Regions | None
    strict: bool
    dataset: str = ""
    image: Path | None = None
    reading: Reading = Reading()  # noqa: RUF009  # immutable


@dataclass(frozen=True)
class Matching:
    """Cases to score, and what could not be matched.

    Attributes:
        cases: In the order of the references.
        failed: Ids of cases with a reference that `predict` could not segment (failures.csv beside the masks).
        not_predicted: Ids of other references without a prediction; where a run says how it divided the images, those
            of the parts that were predicted.
        without_reference: Ids of predictions without a reference.
        trained_on: Ids of the cases that the run was trained on, as far as it says.
        subjects_known: False where each case counts as a subject of its own because nothing says more.
    """

    cases: list[Case]
    failed: list[str] = field(default_factory=list)
    not_predicted: list[str] = field(default_factory=list)
    without_reference: list[str] = field(default_factory=list)
    trained_on: list[str] = field(default_factory=list)
    subjects_known: bool = True


@dataclass(frozen=True)
class _Reference:
    case: str
    subject: str | None
    path: Path
    classes: Regions | None
    dataset: str = ""
    image: Path | None = None
    reading: Reading = Reading()  # noqa: RUF009  # immutable


def match_cases(config: EvaluateConfig) -> Matching:
    """Pair predictions with references by case id and settle the classes of each pair.

    Classes are, first come first served: `config.regions`; the run's regions or classes; the catalogue's class names;
    every label value that occurs.

    Raises:
        DataError: If a folder or catalogue cannot be used, an id occurs twice, or nothing matches.
        RunError: If a run has no predictions.
        ConfigError: If a region holds values that no class can have, a class is called "mean", or one whose lesions
            are asked for does not exist.
    """
    folder = predictions_folder(config.predictions)
    predictions = masks_in(folder)
    references = _catalogued(config.references) if config.references.is_file() else _in_folder(config.references)
    failures = _failures(folder)  # a mask that lies there all the same is an older one
    matched = [
        reference for reference in references if reference.case in predictions and reference.case not in failures
    ]
    if not matched:
        raise DataError(
            folder,
            found=f"{len(predictions)} masks ({_few(predictions)}), none with a reference",
            expected=f"names that equal the ids of {config.references} ({_few(r.case for r in references)})",
            remedy="Name each mask <case id>.nii.gz.",
        )
    sources = _sources(folder)
    regions = _checked(config.regions) or _run_regions(folder.parent)  # chosen sets: other values are background
    given = regions or _run_classes(folder.parent)
    cases = [
        Case(
            case=reference.case,
            subject=reference.subject or reference.case,
            prediction=predictions[reference.case],
            reference=reference.path,
            regions=given or reference.classes,
            strict=regions is None,
            dataset=reference.dataset,
            image=None if reference.reading.text() else reference.image or sources.get(reference.case),
            reading=reference.reading.of_label(),
        )
        for reference in matched
    ]
    _refuse_mean(cases)
    _refuse_unknown(config.lesions, cases)
    part = _parts(folder.parent)
    predicted = {part.get(case) for case in (*predictions, *failures)}
    known = {reference.case for reference in references}
    return Matching(
        cases=cases,
        failed=[reference.case for reference in references if reference.case in failures],
        not_predicted=[
            reference.case
            for reference in references
            if reference.case not in predictions
            and reference.case not in failures
            and part.get(reference.case) in predicted
        ],
        without_reference=[case for case in predictions if case not in known],
        trained_on=[case.case for case in cases if part.get(case.case) == "train"],
        subjects_known=any(reference.subject is not None for reference in matched),
    )


def predictions_folder(path: Path) -> Path:
    """The folder of masks that `--predictions` means, absolute: a run's predictions, or the folder itself.

    Raises:
        RunError: If the path is a run without predictions.
        DataError: If it is no folder.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - "." and ".." must go, lest `parent` miss the run; links stay
    if (path / "config.yaml").is_file():
        if not (path / "predictions").is_dir():
            raise RunError(
                f"{path}: the run has no predictions. Make them with: prevox predict --run {path} --images ..."
            )
        return path / "predictions"
    if not path.is_dir():
        raise DataError(
            path, found="no such folder", expected="a folder of masks or a fine-tuning run", remedy="Check the path."
        )
    return path


def masks_in(folder: Path) -> dict[str, Path]:
    """Masks of a folder by case id (file name without suffix), sorted.

    Raises:
        DataError: If the folder holds no mask, or two files have one id.
    """
    if not folder.is_dir():
        raise DataError(
            folder,
            found="no such file or folder",
            expected="a folder of masks, or a catalogue (.parquet)",
            remedy="Check the path.",
        )
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if suffix_of(path) is None or path.name.startswith("."):
            continue
        if stem_of(path) in masks:
            raise _twice(stem_of(path), f"{masks[stem_of(path)]} and {path}")
        masks[stem_of(path)] = path
    if not masks:
        raise DataError(folder, found="no mask", expected=f"files that end in {', '.join(SUFFIXES)}")
    return masks


def _in_folder(folder: Path) -> list[_Reference]:
    return [_Reference(case, None, path, None) for case, path in masks_in(folder).items()]


def _catalogued(path: Path) -> list[_Reference]:
    """References of a catalogue: its rows that have a label."""
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(path, found=f"a file that is no table ({reason})", expected="a catalogue (.parquet)") from None
    missing = [name for name in CATALOGUE_COLUMNS if name not in table]
    if missing:
        raise DataError(
            path,
            found=f"a table without {', '.join(missing)}",
            expected="a catalogue",
            remedy="Write it with: prevox catalogue.",
        )
    twice = table["image"][table["image"].duplicated()]
    if len(twice):
        raise _twice(str(twice.iloc[0]), f"{int((table['image'] == twice.iloc[0]).sum())} rows of {path}")
    labelled = table[table["label_path"].notna()]
    if labelled.empty:
        raise DataError(
            path,
            found=f"{len(table)} images without a label",
            expected="images with labels to compare with",
            remedy="Catalogue a folder with labels, or give a folder of masks as --references.",
        )
    datasets = labelled["dataset"].fillna("").astype(str).tolist() if "dataset" in labelled else [""] * len(labelled)
    paths = labelled["paths"].tolist() if "paths" in labelled else [()] * len(labelled)
    readings = labelled["reading"].tolist() if "reading" in labelled else [None] * len(labelled)
    rows = zip(*(labelled[name].tolist() for name in CATALOGUE_COLUMNS), datasets, paths, readings, strict=True)
    return [
        _Reference(
            case=str(image),
            subject=str(subject) if pd.notna(subject) else None,
            path=Path(root) / label_path,
            classes=_named_classes(names) if pd.notna(names) else None,
            dataset=dataset,
            image=Path(root) / files[0] if len(files) else None,
            reading=Reading.from_text(reading),
        )
        for image, subject, root, label_path, names, dataset, files, reading in rows
    ]


def _named_classes(names: str) -> Regions:
    """Classes of a catalogue's JSON {"1": "Anterior"}; the background is none. Equal names share a class."""
    regions: Regions = {}
    for value, name in sorted(json.loads(names).items(), key=lambda item: int(item[0])):
        if int(value) != 0:
            regions[name] = (*regions.get(name, ()), int(value))
    return regions


def _run_regions(run: Path) -> Regions | None:
    """Regions that a run was trained for; None where it does not say."""
    found = read_yaml(run / "config.yaml").get("regions") if (run / "config.yaml").is_file() else None
    return _scored(found or {})


def _run_classes(run: Path) -> Regions | None:
    """Classes that a run was trained for; None where it does not say."""
    path = run / "classes.json"
    return _scored(json.loads(path.read_text())) if path.is_file() else None


def _scored(named: Mapping[str, Sequence[int]]) -> Regions | None:
    """Without the background, which is not scored; None where nothing is left."""
    regions = {name: tuple(int(value) for value in values) for name, values in named.items()}
    return {name: values for name, values in regions.items() if 0 not in values} or None


def _checked(regions: Regions | None) -> Regions | None:
    for name, values in (regions or {}).items():
        if not values or min(values) < 1 or max(values) > LARGEST_LABEL:
            raise ConfigError(f"regions: '{name}' is {list(values)}; expected label values of 1 to {LARGEST_LABEL}.")
    return regions


def _refuse_mean(cases: Iterable[Case]) -> None:
    if any(MEAN in (case.regions or {}) for case in cases):
        raise ConfigError(
            f"a class is called '{MEAN}', which is the row of the mean over classes in the summary. Name the "
            "classes with --regions, e.g. --regions organ=1."
        )


def _refuse_unknown(lesions: Sequence[str], cases: Sequence[Case]) -> None:
    """Classes whose lesions are asked for must exist; where classes have no names, they are called by their value."""
    known = list(dict.fromkeys(name for case in cases for name in case.regions or {}))
    unnamed = any(case.regions is None for case in cases)
    for name in lesions:
        if name not in known and not (unnamed and name.isdigit() and 1 <= int(name) <= LARGEST_LABEL):
            raise ConfigError(
                f"lesions: found no class '{name}'; expected some of "
                f"{', '.join(known) or 'the label values, as 1'}. Name classes with --regions, e.g. --regions lesion=1."
            )


def _failures(folder: Path) -> set[str]:
    """Ids that `predict` could not segment in its latest call."""
    path = folder / "failures.csv"
    if not path.is_file():
        return set()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["image"] for row in csv.DictReader(file)}
    except (KeyError, ValueError, csv.Error) as error:
        raise DataError(
            path, found=f"a table that cannot be read ({error!r})", expected="columns image and reason",
            remedy="Predict again.",
        ) from None  # fmt: skip


def _sources(folder: Path) -> dict[str, Path]:
    """The scan of each mask that `predict` wrote: the first path of predictions.csv's column `source`."""
    path = folder / "predictions.csv"
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["image"]: Path(json.loads(row["source"])[0]) for row in csv.DictReader(file)}
    except (KeyError, ValueError, IndexError, TypeError, csv.Error):
        return {}  # only pictures of the cases want it


def _parts(run: Path) -> dict[str, str]:
    """`train` or `validation` for each image that a run's split.json names."""
    split = run / "split.json"
    content: Mapping[str, list[str]] = json.loads(split.read_text()) if split.is_file() else {}
    return {case: part for part, cases in content.items() for case in cases}


def _twice(case: str, where: str) -> DataError:
    return DataError(case, found=f"the case twice ({where})", expected="one file for each case", remedy="Remove one.")


def _few(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
