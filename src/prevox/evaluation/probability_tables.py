"""Tables of probabilities and of references, aligned by case: what `prevox evaluate` classifies from.

A table has one row per case. The column `image` or `case` holds its id; a file name counts without its suffix.
References have either one column for each class (1 yes, 0 no, empty unknown), or one column `class` with the name of
each case's only class.

Shape suffixes: N cases, K classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from prevox.data.join import names_subjects
from prevox.data.readers import stem_of
from prevox.errors import DataError
from prevox.evaluation.cases import MEAN

IDS = ("image", "case")
ONLY = "class"  # the column of references that exclude each other
ALL = "all"  # of exclusive classes together, in the summary
SUM_TOLERANCE = 1e-3  # by which the probabilities of exclusive classes may miss 1: tables are rounded


@dataclass(frozen=True)
class Classified:
    """Cases that have probabilities and a reference.

    Attributes:
        cases: (N,) ids, in the order of the references.
        subjects: (N,) the subject of each case.
        classes: (K,) names.
        probabilities_NK: In [0, 1].
        truths_NK: 1 or 0; NaN where the reference does not say.
        exclusive: Whether each case is of exactly one class.
        subjects_known: False where each case counts as a subject of its own because no column says more.
        not_predicted: Ids of references without probabilities.
        without_reference: Ids with probabilities only.
    """

    cases: list[str]
    subjects: list[str]
    classes: list[str]
    probabilities_NK: np.ndarray
    truths_NK: np.ndarray
    exclusive: bool
    subjects_known: bool
    not_predicted: list[str]
    without_reference: list[str]


def read_classified(predictions: Path, references: Path) -> Classified:
    """Read and align a table of probabilities and a table of references.

    Raises:
        DataError: If a table cannot be read, an id occurs twice, no case or class is common, or a value is no
            probability or no reference; the case is named.
    """
    predicted, referred = _table(predictions), _table(references)
    cases = [case for case in referred.index if case in predicted.index]
    if not cases:
        raise DataError(
            predictions,
            found=f"no case of {references} ({', '.join(predicted.index[:3])} …)",
            expected=f"ids such as {', '.join(referred.index[:3])}",
            remedy="Name cases as the references do.",
        )
    exclusive = ONLY in referred
    candidates = [str(name) for name in predicted if not names_subjects(str(name))]
    classes = candidates if exclusive else [name for name in candidates if name in referred]
    if not classes:
        raise DataError(
            predictions,
            found=f"columns {', '.join(candidates) or 'none'} beside the ids, none of them in {references}",
            expected=f"a column of probabilities for each class, called as a column of references, or there a column "
            f"'{ONLY}' with the name of each case's class",
            remedy="Give both tables the same class names.",
        )
    for reserved in (MEAN, ALL):
        if reserved in classes:
            raise DataError(predictions, found=f"a class called '{reserved}'", expected="another name for it")
    probabilities_NK = _probabilities(predicted.loc[cases, classes], predictions, exclusive)
    chosen = referred.loc[cases]
    truths_NK = _one_hot(chosen[ONLY], classes, references) if exclusive else _flags(chosen[classes], references)
    owner = next((str(name) for name in referred if names_subjects(str(name))), None)
    subjects = cases if owner is None else [s or case for s, case in zip(chosen[owner], cases, strict=True)]
    return Classified(
        cases=cases,
        subjects=list(subjects),
        classes=classes,
        probabilities_NK=probabilities_NK,
        truths_NK=truths_NK,
        exclusive=exclusive,
        subjects_known=owner is not None,
        not_predicted=[case for case in referred.index if case not in predicted.index],
        without_reference=[case for case in predicted.index if case not in referred.index],
    )


def _table(path: Path) -> pd.DataFrame:
    """All columns as text, by case id."""
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            table = table.astype(object).where(table.notna(), "").map(str)
        else:
            separator = "\t" if path.suffix == ".tsv" else ","
            table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, compression=None)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = " ".join(str(error).split())
        raise DataError(
            path, found=f"a file that is no table ({reason})", expected="CSV, TSV or Parquet", remedy="Check the path."
        ) from None
    table.columns = table.columns.map(str)
    found = [name for name in IDS if name in table]
    if not found or table.empty:
        raise DataError(
            path,
            found=f"columns {', '.join(table.columns)}" if not found else "no row",
            expected=f"a row for each case, its id in a column '{IDS[0]}' or '{IDS[1]}'",
        )
    ids = table[found[0]].map(lambda name: stem_of(Path(name)))
    if ids.duplicated().any():
        case = ids[ids.duplicated()].iloc[0]
        raise DataError(f"case {case}", found=f"it twice in {path}", expected="one row", remedy="Remove one.")
    return table.drop(columns=[name for name in IDS if name in table]).set_axis(pd.Index(ids.tolist()), axis=0)


def _probabilities(table: pd.DataFrame, path: Path, exclusive: bool) -> np.ndarray:
    values = table.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    _refuse(
        ~((values >= 0) & (values <= 1)), table, path, "a probability from 0 to 1",
        "Apply a sigmoid or softmax to logits.",
    )  # fmt: skip
    off = np.flatnonzero(np.abs(values.sum(axis=1) - 1) > SUM_TOLERANCE)
    if exclusive and len(off):
        raise DataError(
            f"case {table.index[off[0]]}",
            found=f"probabilities that sum to {values[off[0]].sum():.4g} in {path} ({', '.join(map(str, table))})",
            expected=f"1, as the references' column '{ONLY}' says that classes exclude each other",
            remedy="Give every class a column, and no other column but the ids; apply a softmax to logits.",
        )
    return values


def _flags(table: pd.DataFrame, path: Path) -> np.ndarray:
    values = table.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    unknown = (table == "").to_numpy()
    _refuse(
        ~(np.isin(values, (0, 1)) | unknown), table, path, "1, 0 or nothing (unknown)",
        "Decide what uncertain labels count as.",
    )  # fmt: skip
    return values


def _one_hot(names: pd.Series, classes: list[str], path: Path) -> np.ndarray:
    table = names.to_frame()
    _refuse(
        ~table.isin(classes).to_numpy(), table, path, f"one of {', '.join(classes)}",
        "Predict every class, or leave the case out of the references.",
    )  # fmt: skip
    return (names.to_numpy()[:, None] == np.array(classes, dtype=object)).astype(np.float64)


def _refuse(wrong: np.ndarray, table: pd.DataFrame, path: Path, expected: str, remedy: str) -> None:
    """Name the first case and column whose value is wrong."""
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            f"case {table.index[row]}",
            found=f"'{table.iat[row, column]!s}' as {table.columns[column]} in {path}",
            expected=expected,
            remedy=remedy,
        )
