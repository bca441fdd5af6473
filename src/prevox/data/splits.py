"""Divide subjects, never cases: every image of a subject lands on the same side."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from prevox.config.data import SplitConfig
from prevox.errors import DataError

_SIDES = ("train", "validation", "test")


def split_subjects(subjects: Sequence[str], validation: float, seed: int) -> tuple[list[str], list[str]]:
    """Divide subjects at random, whatever their order and however often each occurs.

    Args:
        subjects: Subjects; repetitions count once.
        validation: Share that is held out; unless it is 0, each side gets at least one subject (of one, training).
        seed: Seed of the permutation of the sorted subjects.

    Returns:
        Training and validation subjects, each sorted.
    """
    unique = sorted(set(subjects))
    count = max(round(len(unique) * validation), int(validation > 0))
    count = max(min(count, len(unique) - 1), 0)  # someone is left to learn from
    order = np.random.default_rng(seed).permutation(len(unique))
    held_out = {unique[position] for position in order[:count]}
    return [s for s in unique if s not in held_out], [s for s in unique if s in held_out]


def fold_subjects(subjects: Sequence[str], folds: int, fold: int, seed: int) -> tuple[list[str], list[str]]:
    """One division of a cross-validation: every subject is held out in exactly one fold.

    Args:
        subjects: Subjects; repetitions count once.
        folds: Parts, whose sizes differ by one at most.
        fold: The part that is held out, from 0.
        seed: Seed of the permutation of the sorted subjects.

    Returns:
        Training and held-out subjects, each sorted.

    Raises:
        DataError: If there are fewer subjects than folds.
    """
    unique = sorted(set(subjects))
    if len(unique) < folds:
        raise DataError(
            "--split.folds",
            found=f"{folds} folds and {len(unique)} subjects",
            expected="at least one subject for each fold",
            remedy="Give fewer folds.",
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    held_out = {unique[position] for position in order[fold::folds]}
    return [s for s in unique if s not in held_out], [s for s in unique if s in held_out]


def split_images(index: pd.DataFrame, config: SplitConfig) -> dict[str, list[str]]:
    """Divide images by subject.

    Args:
        index: Store index or catalogue: image ids in its index or its column `image`, and a column `subject`.
        config: Share and seed, or folds, or the column that says it already.

    Returns:
        {"train": ids, "validation": ids}, sorted. Images marked `test` in a column are in neither; with `inner`, those
        that the outer division holds out are in neither.

    Raises:
        DataError: If the column does not exist, holds other values, cuts through a subject or leaves no training image;
            or if there are fewer subjects than folds.
    """
    images, subjects = _ids(index), index["subject"].astype(str).to_numpy()
    if config.folds is not None:
        train, validation = fold_subjects(list(subjects), config.folds, config.fold, config.seed)
        sides = dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation")
    elif config.column is None:
        train, validation = split_subjects(list(subjects), config.validation, config.seed)
        sides = dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation")
    else:
        sides = _read_column(index, config.column)
    if config.inner:
        train, validation = split_subjects(
            [s for s, side in sides.items() if side == "train"], config.validation, config.seed
        )
        sides = dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation")
    return {
        side: sorted(str(image) for image, subject in zip(images, subjects, strict=True) if sides.get(subject) == side)
        for side in ("train", "validation")
    }


def labelled_subset(index: pd.DataFrame, images: Sequence[str], labels: int, seed: int) -> list[str]:
    """Take all labelled images of the first `labels` subjects of one random order: nested for a seed.

    Args:
        index: Store index or catalogue with columns `subject` and `label_path` (None where there is no label).
        images: Ids to choose from, such as the training side of a split.
        labels: Number of subjects.
        seed: Seed of the order.

    Raises:
        DataError: If fewer subjects have a label.
    """
    rows = index.set_axis(_ids(index), axis=0).loc[list(images)]
    rows = rows[rows["label_path"].notna()]
    subjects = rows["subject"].astype(str)
    unique = sorted(set(subjects))
    if labels > len(unique):
        raise DataError(
            "--labels",
            found=f"{labels}, but only {len(unique)} training subjects have a label",
            expected=f"at most {len(unique)}",
            remedy="Give fewer, or leave --labels out to take all.",
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    chosen = {unique[position] for position in order[:labels]}
    return sorted(str(image) for image, subject in subjects.items() if subject in chosen)


def _ids(index: pd.DataFrame) -> np.ndarray:
    return np.asarray(index.get("image", index.index))


def _read_column(index: pd.DataFrame, column: str) -> dict[str, str]:
    """Side of each subject as a column says it."""
    if column not in index:
        raise DataError(
            f"split column '{column}'",
            found="no such column",
            expected=f"one of {', '.join(map(str, index.columns))}",
            remedy="Join it with `prevox catalogue --table`.",
        )
    sides = index[column].astype(str).str.strip()
    wrong = sorted(set(sides) - set(_SIDES))
    if wrong:
        raise DataError(
            f"split column '{column}'",
            found=f"values {wrong[:5]}",
            expected=f"only {', '.join(_SIDES)}",
            remedy="Name another column (--split.column), or correct the table and join it anew.",
        )
    per_subject = sides.groupby(index["subject"].astype(str).to_numpy()).agg(lambda values: sorted(set(values)))
    for subject, found in per_subject.items():
        if len(found) > 1:
            raise DataError(
                f"split column '{column}'",
                found=f"subject '{subject}' in {' and '.join(found)}",
                expected="all images of a subject on one side",
                remedy="Correct the table, or the subjects (--group).",
            )
    if "train" not in set(sides):
        raise DataError(
            f"split column '{column}'",
            found="no training image",
            expected="at least one 'train'",
            remedy="Correct the table.",
        )
    return {str(subject): found[0] for subject, found in per_subject.items()}
