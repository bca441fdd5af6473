"""Classifications for `prevox compare`: tables of probabilities by name, aligned by case id and class.

Shape suffixes: N cases, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from prevox.errors import ConfigError, DataError, RunError
from prevox.evaluation.alignment import UNNAMED, common_cases, left_out
from prevox.evaluation.arms import PROBABILITIES, Arm, read_summary
from prevox.evaluation.cases import MEAN
from prevox.evaluation.named import named_folders
from prevox.evaluation.probability_tables import Classified
from prevox.evaluation.run_settings import settings_of

COLUMNS = ("case", "subject", "class", "probability", "reference")


def are_classifications(runs: Sequence[str]) -> bool:
    """Whether runs are classifications, and not scores of masks.

    Raises:
        ConfigError: If some are and others are not.
    """
    folders = [folder for paths in named_folders(runs).values() for folder in paths]
    found = [_table(folder) is not None for folder in folders]
    if any(found) and not all(found):
        masks, classes = folders[found.index(False)], folders[found.index(True)]
        raise ConfigError(
            f"runs: {classes} holds probabilities of classes, and {masks} does not; expected either of all. Compare "
            "classifications with classifications."
        )
    return all(found)


def read_class_arms(runs: Sequence[str]) -> list[Arm]:
    """Read the probabilities of runs given as PATH or NAME=PATH; paths of one name are one arm.

    Returns:
        Arms whose scores have the columns case, subject, class, probability and reference.

    Raises:
        DataError: If a table cannot be used; the case is named.
        ConfigError: If fewer than two names are left.
    """
    return [_read(name, paths) for name, paths in named_folders(runs).items()]


def align_classes(arms: Sequence[Arm]) -> tuple[list[Classified], list[str], dict[str, dict[str, str]]]:
    """Put the probabilities of the cases and classes that every run has side by side.

    Returns:
        Of each run its probabilities, equal in cases, subjects, classes and truths; the classes that not every run has;
        and the cases that not every run has, each with the runs that lack it.

    Raises:
        DataError: If no case or class is common, or runs disagree on a case's subject or truth.
    """
    cases = [list(dict.fromkeys(arm.scores["case"])) for arm in arms]
    common = common_cases([arm.name for arm in arms], cases)
    order = [case for case in cases[0] if case in common]
    every = [list(dict.fromkeys(arm.scores["class"])) for arm in arms]
    classes = [name for name in every[0] if all(name in own for own in every)]
    if not classes:
        raise DataError(
            "runs",
            found="no class that every run has",
            expected="runs that were evaluated on the same classes",
            remedy="Evaluate all runs with the same --references.",
        )
    subjects, truths_NK = _agreed(arms, order, classes)
    found = [
        Classified(order, subjects, classes, _wide(arm, "probability", order, classes), truths_NK, False, True, [], [])
        for arm in arms
    ]
    others = sorted({name for own in every for name in own} - set(classes))
    return found, others, left_out(arms, cases, common)


def class_table(found: Sequence[Classified], names: Sequence[str]) -> pd.DataFrame:
    """Every probability that is compared: dataset, case, subject, class, run, probability, reference."""
    first = found[0]
    n, k = len(first.cases), len(first.classes)
    parts = [
        pd.DataFrame(
            {
                "dataset": UNNAMED,
                "case": np.repeat(np.array(first.cases, dtype=object), k),
                "subject": np.repeat(np.array(first.subjects, dtype=object), k),
                "class": np.tile(np.array(first.classes, dtype=object), n),
                "run": name,
                "probability": own.probabilities_NK.ravel(),
                "reference": own.truths_NK.ravel(),
            }
        )
        for name, own in zip(names, found, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def _agreed(arms: Sequence[Arm], order: list[str], classes: list[str]) -> tuple[list[str], np.ndarray]:
    """Subject of each case and the truths, (N, K), on which the runs must agree."""
    owners = [arm.scores.drop_duplicates("case").set_index("case")["subject"].loc[order].tolist() for arm in arms]
    truths = [_wide(arm, "reference", order, classes) for arm in arms]
    for arm, own, own_NK in zip(arms[1:], owners[1:], truths[1:], strict=True):
        for case, one, other in zip(order, owners[0], own, strict=True):
            if one != other:
                raise _disagree(case, f"subject '{one}' in run '{arms[0].name}' and '{other}' in run '{arm.name}'")
        off = np.argwhere((own_NK != truths[0]) & ~(np.isnan(own_NK) & np.isnan(truths[0])))
        if len(off):
            n, k = off[0]
            words = [{0.0: "no", 1.0: "yes"}.get(float(t[n, k]), "unknown") for t in (truths[0], own_NK)]
            raise _disagree(
                order[n], f"{classes[k]}: {words[0]} in run '{arms[0].name}' and {words[1]} in run '{arm.name}'"
            )
    return owners[0], truths[0]


def _disagree(case: str, found: str) -> DataError:
    return DataError(
        f"case {case}",
        found=found,
        expected="one reference",
        remedy="Evaluate all runs with the same table as --references.",
    )


def _wide(arm: Arm, column: str, order: list[str], classes: list[str]) -> np.ndarray:
    return arm.scores.pivot(index="case", columns="class", values=column).loc[order, classes].to_numpy(np.float64)


def _read(name: str, paths: Sequence[Path]) -> Arm:
    tables, summaries = [], []
    for path in paths:
        found = _table(path)
        if found is None:
            raise RunError(f"{path}: holds no probabilities. Make them with: prevox evaluate --predictions TABLE ...")
        tables.append(_checked(found))
        summaries.append(read_summary(found.parent / "classification.json"))
    scores = pd.concat(tables, ignore_index=True)
    twice = scores[scores.duplicated(["case", "class"])]
    if len(twice):
        raise DataError(
            f"case {twice['case'].iloc[0]}",
            found=f"class {twice['class'].iloc[0]} twice in run '{name}' ({', '.join(map(str, paths))})",
            expected="one row for each case and class",
            remedy="Give the folders names of their own, or evaluate again.",
        )
    return Arm(
        name=name,
        folders=[str(path) for path in paths],
        scores=scores,
        not_predicted={str(case) for summary in summaries for case in summary.get("not_predicted") or []},
        settings={UNNAMED: settings_of(paths[0])},
    )


def _table(path: Path) -> Path | None:
    places = (folder / PROBABILITIES for folder in (path, path / "evaluation"))
    return next((place for place in places if place.is_file()), None)


def _checked(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
        table = table[list(COLUMNS)].astype({"case": str, "subject": str, "class": str})
        table = table.astype({"probability": float, "reference": float})
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            path,
            found=f"a table that cannot be used ({reason})",
            expected="probabilities as `prevox evaluate` writes them",
            remedy="Evaluate again.",
        ) from None
    wrong = table[~table["probability"].between(0, 1) | ~(table["reference"].isin([0, 1]) | table["reference"].isna())]
    if len(wrong) or table.empty or MEAN in set(table["class"]):
        row = wrong.iloc[0].to_dict() if len(wrong) else {}
        raise DataError(
            f"case {row['case']}, {path}" if row else path,
            found=f"probability {row['probability']} and reference {row['reference']}" if row else "no usable row",
            expected="probabilities of 0 to 1, references of 0, 1 or none",
            remedy="Evaluate again.",
        )
    return table
