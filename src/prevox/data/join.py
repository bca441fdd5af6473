"""Join a CSV file of subjects to the catalogue; its case column is found by its values, not by its name."""

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from prevox.console import warn
from prevox.data.readers import stem_of
from prevox.errors import DataError

_SUBJECT_COLUMNS = {
    "subject",
    "subjectid",
    "patient",
    "patientid",
    "participantid",
}  # without case, spaces, hyphens and underscores


def join_table(
    catalogue: pd.DataFrame,
    cases: Sequence[str],
    path: Path,
    group: str | None,
    *,
    subjects: Sequence[str] = (),
    found: bool = False,
) -> pd.DataFrame:
    """Add the columns of a CSV (or TSV) file to the rows of the images it describes; `group` replaces `subject`.

    Args:
        catalogue: One row per image.
        cases: Each row's id within its collection; matched where `image`, which may carry a prefix, is not.
        path: File with one row per case; several images may share a row. Rows without image are ignored.
        group: Column that says which cases belong to one subject.
        subjects: Each row's subject as its layout knows it; matched where ids are not (a table of subjects, or of 4D
            files of which each volume is an image).
        found: Whether the file was found, not given: of columns that the catalogue has as well, its own stay.

    Raises:
        DataError: If the file or a column is missing, no column holds the ids, an image has no row or a case two, a
            group is empty, or a column of a given file is called as one of the catalogue's own.
    """
    text, typed = _read(path)
    columns = [str(column) for column in text]
    if group is not None and group not in columns:
        raise DataError(path, found=f"no column '{group}'", expected=_one_of(group, columns), remedy="Correct --group.")
    keys, case = _case_column([list(catalogue["image"]), list(cases), list(subjects)], text)
    if case is None:
        raise DataError(
            path,
            found=f"no column with the ids of the images (columns: {', '.join(columns)})",
            expected=f"a column with values such as {', '.join(catalogue['image'].head(3))}",
            remedy="Give the table that describes these images.",
        )
    ids = text[case].map(_bare)
    twice = sorted(ids[ids.duplicated() & ids.isin(keys)].unique())
    if twice:
        raise DataError(path, found=f"several rows for {_some(twice)} in column '{case}'", expected="one row per case")
    absent = sorted(set(keys) - set(ids))
    if absent:
        raise DataError(
            path,
            found=f"no row for {len(absent)} of {len(catalogue)} images: {_some(absent)}",
            expected=f"every image's id in column '{case}'",
            remedy="Complete the table, or catalogue only the images that it describes.",
        )
    position = {name: row for row, name in enumerate(ids)}
    rows = [position[key] for key in keys]
    if group is not None:
        groups = text[group].iloc[rows].str.strip()
        if groups.eq("").any():
            empty = _some(list(ids.iloc[rows][groups.eq("")]))
            alone = f"or give --table {path} without --group: each image then counts as its own subject."
            raise DataError(
                path, found=f"empty '{group}' for {empty}", expected="a subject for every case",
                remedy=f"Fill it in, {alone}",
            )  # fmt: skip
        catalogue = catalogue.assign(subject=groups.to_numpy())
    extra = typed.drop(columns=[case, *(["subject"] if group == "subject" else [])])
    conflicts = [str(name) for name in extra if name in catalogue]
    if conflicts and found:
        warn(f"{path}: columns that the catalogue has as well are not joined: {', '.join(conflicts)}")
        extra = extra.drop(columns=conflicts)
    elif conflicts:
        hint = " --group subject takes the subjects from it." if "subject" in conflicts else ""
        raise DataError(
            path,
            found=f"columns that the catalogue has as well: {', '.join(conflicts)}",
            expected="other names",
            remedy=f"Rename them in the table.{hint}",
        )
    extra = extra.iloc[rows].set_index(catalogue.index)
    return pd.concat([catalogue, extra], axis=1)


def listed(images: Sequence[str], path: Path) -> set[str]:
    """Those of the images that have a row in a table; none if it cannot be read, or has several for one."""
    try:
        text, _ = _read(path)
    except DataError:
        return set()
    keys, case = _case_column([list(images)], text)
    if case is None:
        return set()
    ids = text[case].map(_bare)
    mine = ids[ids.isin(keys)]
    return set() if mine.duplicated().any() else set(mine)


def subject_column(path: Path) -> str | None:
    """The only column of a table whose name says without doubt that it holds subjects: patient_id, Subject ..."""
    text, _ = _read(path)
    found = [str(name) for name in text if names_subjects(str(name))]
    return found[0] if len(found) == 1 else None


def names_subjects(column: str) -> bool:
    """Whether a column's name says without doubt that it holds subjects."""
    return re.sub(r"[\s_-]", "", column).lower() in _SUBJECT_COLUMNS


def describe_table(images: Sequence[str], path: Path) -> str | None:
    """Say how a table could be joined if it has a row for each of these images, else None.

    The example for --group is the column with the most values among those whose values repeat.
    """
    try:
        text, _ = _read(path)
    except DataError:
        return None
    for name in text:
        ids = text[name].map(_bare)
        if not set(images) <= set(ids):
            continue
        mine = text[ids.isin(list(images))]
        counts = {other: mine[other].nunique() for other in text if other != name}
        repeating = {other: count for other, count in counts.items() if 1 < count < len(mine)}
        most = str(max(repeating, key=lambda other: repeating[other])) if repeating else ""
        group = f" --group {shlex.quote(most)}" if most else ""
        return f"{path.name} describes these cases; add --table {shlex.quote(str(path))}{group}"
    return None


def _read(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table as text (ids keep leading zeros) and with numbers as numbers."""
    if not path.is_file():
        raise DataError(path, found="no such file", expected="a CSV file with one row per case", remedy="Fix --table.")
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.readline()
        separator = max("\t;,", key=head.count)
        text = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        return text, pd.read_csv(path, sep=separator, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise DataError(path, found=f"a file that cannot be read ({error})", expected="a CSV file") from None


def _case_column(candidates: list[list[str]], text: pd.DataFrame) -> tuple[list[str], str | None]:
    """The ids and the table's column that have most values in common; None where none has any."""
    best: tuple[int, list[str], str | None] = (0, candidates[0], None)
    for keys in candidates:
        for name in text:
            common = len(set(keys) & set(text[name].map(_bare)))
            if common > best[0]:
                best = (common, keys, str(name))
    return best[1], best[2]


def _bare(value: str) -> str:
    """A cell as an id: file names count without folder and suffix."""
    return stem_of(Path(value.strip())) if value.strip() else ""


def _one_of(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"'{near[0]}'?" if near else f"one of {', '.join(known)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
