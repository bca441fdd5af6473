"""A comparison as tables: Markdown, LaTeX, and on the console."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from prevox.console import console
from prevox.evaluation.cases import MEAN

if TYPE_CHECKING:
    from prevox.evaluation.comparison import Comparison

LABELS = {"dice": ("Dice", 3), "hd95": ("mm HD95", 2), "nsd": ("NSD", 3), "asd": ("mm ASD", 2), "ravd": ("RAVD", 3)}
LABELS |= {"lesion_sensitivity": ("lesion sensitivity", 3), "lesion_false_positives": ("false-positive lesions", 2)}
LABELS |= {"auc": ("AUC", 3), "average_precision": ("average precision", 3), "ece": ("calibration error", 3)}
LABELS |= {"brier": ("Brier score", 3)}
OF_CLASSES = ("auc", "average_precision", "ece", "brier")  # of sets of cases: there is no value of a single one
NAMED = 20  # cases on the console; the files name all
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {character: f"\\{character}" for character in "&%$#_{}"}
TEX |= {"<": "$<$", ">": "$>$", "|": "$|$", "−": "$-$", "–": "--", "[": "{[}", "]": "{]}"}  # \\[ would be a length
MARKDOWN = {character: f"\\{character}" for character in "\\|*_`<#~"}


@dataclass(frozen=True)
class Grid:
    """One table: heading, first row, rows, and a sentence below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def number(value: float | None, decimals: int, signed: bool = False) -> str:
    """A number with a real minus sign; a dash where there is none."""
    if value is None or np.isnan(value):
        return "–"
    shown = round(float(value), decimals) or 0.0  # 0.0 without a sign
    return format(shown, f"{'+' if signed and shown else ''}.{decimals}f").replace("-", "−")


def interval(entry: Mapping[str, Any], decimals: int, signed: bool = False, value: str = "mean") -> str:
    """A value with its interval, "0.812 [0.790, 0.831]"; without it where there is none."""
    low, high = ("low", "high") if value == "mean" else (f"{value}_low", f"{value}_high")
    text = number(entry[value], decimals, signed)
    if np.isnan(entry[low]):
        return text
    return f"{text} [{number(entry[low], decimals, signed)}, {number(entry[high], decimals, signed)}]"


def p_value(p: float) -> str:
    """A p-value in three decimals."""
    if np.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else number(p, 3)


def metric_label(comparison: "Comparison") -> str:
    """The metric as headings name it; NSD means little without its tolerance."""
    label = LABELS[comparison.metric][0]
    return label if comparison.tolerance_mm is None else f"{label} at {comparison.tolerance_mm:g} mm"


def grids(comparison: "Comparison") -> list[Grid]:
    """All tables of a comparison."""
    tables = [*summary_grids(comparison), _classes(comparison), _class_differences(comparison)]
    return [grid for grid in tables if grid.rows]


def summary_grids(comparison: "Comparison") -> list[Grid]:
    """The tables of the mean over classes."""
    if not comparison.differences:  # what is only described has no places either
        return [_scores(comparison), *_curves(comparison)]
    tables = [_scores(comparison), _differences(comparison), _ranks(comparison), _stability(comparison)]
    return [*tables, *_curves(comparison)]


def account(comparison: "Comparison", most: int | None = None) -> list[str]:
    """What was compared and what was left out, one sentence each; up to `most` cases by name, None for all."""
    lines, label = [], metric_label(comparison)
    for dataset in comparison.datasets:
        lines.append(
            f"{dataset['name']}: {dataset['cases']} cases of {dataset['subjects']} subjects that every run has; "
            f"classes {', '.join(dataset['classes'])}."
        )
        if dataset["classes_left_out"]:
            names = ", ".join(dataset["classes_left_out"])
            lines.append(f"{dataset['name']}: classes left out because not every run has them: {names}.")
        for name, reason in dataset.get("undefined", {}).items():
            lines.append(f"{dataset['name']}: no {label} of {name}: {reason}.")
        for name, cases in dataset["not_counted"].items():
            what = "the mean over classes" if name == MEAN else f"class {name}"
            lines.append(
                f"{dataset['name']}: not counted for {what}, because it is empty in reference and prediction of at "
                f"least one run: {_named(cases, most)}."
            )
    if comparison.left_out:
        missing = [
            f"{case} ({', '.join(f'{run}: {reason}' for run, reason in where.items())})"
            for case, where in comparison.left_out.items()
        ]
        lines.append(f"Left out because not every run has them ({len(missing)}): {_named(missing, most)}.")
    return lines


def markdown(comparison: "Comparison") -> str:
    """The comparison as one Markdown page."""

    def text(value: str) -> str:
        return _escaped(value, MARKDOWN)

    parts = [f"# Comparison: {metric_label(comparison)}"]
    parts.append("\n".join(f"- {text(line)}" for line in comparison.verdicts))
    parts += ["## Cases", "\n".join(f"- {text(line)}" for line in account(comparison))]
    for grid in grids(comparison):
        rows = [grid.header, ["---"] * len(grid.header), *grid.rows]
        lines = ["| " + " | ".join(map(text if at != 1 else str, row)) + " |" for at, row in enumerate(rows)]
        parts += [f"## {text(grid.title)}", "\n".join(lines)]
        if grid.note:
            parts.append(text(grid.note))
    return "\n\n".join(parts) + "\n"


def latex(comparison: "Comparison") -> str:
    """The comparison's tables for LaTeX with the package booktabs."""

    def text(value: str) -> str:
        return _escaped(value, TEX)

    parts = ["% \\usepackage{booktabs}"]
    for grid in grids(comparison):
        lines = [" & ".join(map(text, row)) + r" \\" for row in (grid.header, *grid.rows)]
        caption = f"{grid.title}. {grid.note}" if grid.note else f"{grid.title}."
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    f"\\caption{{{text(caption)}}}",
                    f"\\begin{{tabular}}{{{'l' * len(grid.header)}}}",
                    r"\toprule",
                    lines[0],
                    r"\midrule",
                    *lines[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def say(comparison: "Comparison") -> None:
    """Print the account, the tables of the mean over classes, and the verdict."""
    for line in account(comparison, NAMED):
        console.print(line, markup=False)
    for grid in summary_grids(comparison):
        table = Table(title=escape(grid.title), caption=escape(grid.note) or None)
        for title in grid.header:
            table.add_column(escape(title))
        for row in grid.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for line in comparison.verdicts:
        console.print(line, markup=False)


def _scores(comparison: "Comparison") -> Grid:
    label, decimals = metric_label(comparison), LABELS[comparison.metric][1]
    means = [entry for entry in comparison.scores if entry["class"] == MEAN]
    if comparison.metric in OF_CLASSES:
        rows = [[e["run"], interval(e, decimals), str(e["cases"]), str(e["subjects"])] for e in means]
        note = "Mean over the classes that have a value, with 95 % bootstrap intervals over subjects."
        return Grid(f"{label} by run", ["run", "mean over classes", "cases", "subjects"], rows, note)
    rows = [
        [e["dataset"], e["run"], interval(e, decimals), interval(e, decimals, value="median"), str(e["cases"]),
         str(e["subjects"])]
        for e in means
    ]  # fmt: skip
    note = "Over cases, each its mean over classes, with 95 % bootstrap intervals over subjects."
    return Grid(f"{label} by run", ["dataset", "run", "mean", "median", "cases", "subjects"], rows, note)


def _differences(comparison: "Comparison") -> Grid:
    label, decimals = metric_label(comparison), LABELS[comparison.metric][1]
    tested = [e for e in comparison.differences if e["class"] == MEAN]
    if comparison.metric in OF_CLASSES:
        rows = [
            [
                *(f"{e['run']} − {e['other']}", interval(e, decimals, signed=True)),
                *(p_value(e[key]) for key in ("permutation_p", "permutation_p_holm")),
            ]
            for e in tested
        ]
        note = (
            "Of the means over classes on the same cases, 95 % bootstrap interval over subjects; the test exchanges "
            f"what two runs said, subject by subject. Holm: adjusted for the {len(tested)} rows of this table."
        )
        return Grid(f"Differences in {label}", ["runs", "difference", "permutation p", "Holm"], rows, note)
    rows = [
        [
            *(e["dataset"], f"{e['run']} − {e['other']}", interval(e, decimals, signed=True)),
            *(p_value(e[key]) for key in ("wilcoxon_p", "wilcoxon_p_holm", "permutation_p", "permutation_p_holm")),
            *(number(e["cohens_d"], 2, signed=True), number(e["rank_biserial"], 2, signed=True)),
        ]
        for e in tested
    ]
    header = ["dataset", "runs", "difference", "Wilcoxon p", "Holm", "permutation p", "Holm"]
    note = (
        "Same cases, 95 % bootstrap interval over subjects; tests and effect sizes take one difference a subject. "
        f"Holm: adjusted for the {len(tested)} rows of this table."
    )
    return Grid(f"Differences in {label}", [*header, "Cohen's d", "rank-biserial"], rows, note)


def _curves(comparison: "Comparison") -> list[Grid]:
    """One table for each setting that runs differ in."""
    label, decimals = metric_label(comparison), LABELS[comparison.metric][1]
    tables = []
    for over in dict.fromkeys(entry["over"] for entry in comparison.curves):
        rows = [
            [
                *(e["dataset"], e["line"], "–" if _missing(e["x"]) else f"{e['x']:g}", interval(e, decimals)),
                *(", ".join(e["runs"]), str(e["cases"]), str(e["subjects"])),
            ]
            for e in comparison.curves
            if e["over"] == over
        ]
        note = (
            "Runs of a line differ in this number alone; those at one point are averaged case by case. 95 % bootstrap "
        )
        note += "intervals over subjects; nothing is tested here."
        header = ["dataset", "line", over, "mean", "runs", "cases", "subjects"]
        tables.append(Grid(f"{label} over {over}", header, rows, note))
    return tables


def _count(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.0f}"


def _missing(x: float | None) -> bool:
    return x is None or np.isnan(x)


def _ranks(comparison: "Comparison") -> Grid:
    names = [dataset["name"] for dataset in comparison.datasets]
    found = {(e["dataset"], e["run"]): e for e in comparison.ranks}
    rows = [
        [run, *(number(found[name, run]["rank"], 1) for name in names), _average(found[None, run])]
        for run in comparison.runs
    ]
    return Grid("Ranks", ["run", *names, "average"], rows, "1 is best; runs that tie share the mean of their ranks.")


def _average(entry: Mapping[str, Any]) -> str:
    return f"{number(entry['rank'], 2)} [{number(entry['low'], 2)}, {number(entry['high'], 2)}]"


def _stability(comparison: "Comparison") -> Grid:
    several = len(comparison.datasets) > 1
    rows = [
        [e["dataset"] or "average rank", e["run"], *(f"{100 * share:.1f}" for share in e["shares"])]
        for e in comparison.ranks
        if several or e["dataset"] is not None
    ]
    places = [f"place {place}" for place in range(1, len(comparison.runs) + 1)]
    note = "Share of the bootstrap resamples of subjects in which each run has each place; ties share places."
    return Grid("Rank stability, %", ["dataset", "run", *places], rows, note)


def _classes(comparison: "Comparison") -> Grid:
    label, decimals = metric_label(comparison), LABELS[comparison.metric][1]
    return _by_class(
        f"{label} by class", comparison.scores, list(comparison.runs), lambda e: e["run"],
        lambda e: interval(e, decimals),
    )  # fmt: skip


def _class_differences(comparison: "Comparison") -> Grid:
    label, decimals = metric_label(comparison), LABELS[comparison.metric][1]

    def pair(entry: Mapping[str, Any]) -> str:
        return f"{entry['run']} − {entry['other']}"

    pairs = list(dict.fromkeys(map(pair, comparison.differences)))
    return _by_class(
        f"Differences in {label} by class", comparison.differences, pairs, pair,
        lambda e: interval(e, decimals, signed=True),
    )  # fmt: skip


def _by_class(
    title: str,
    entries: Sequence[Mapping[str, Any]],
    columns: list[str],
    column: Callable[[Mapping[str, Any]], str],
    cell: Callable[[Mapping[str, Any]], str],
) -> Grid:
    cells: dict[tuple[str, str], dict[str, str]] = {}
    cases: dict[tuple[str, str], int] = {}
    positives: dict[tuple[str, str], float | None] = {}
    for entry in entries:
        row = (entry["dataset"], entry["class"])
        cells.setdefault(row, {})[column(entry)] = cell(entry)
        cases[row] = entry["cases"]
        positives[row] = entry.get("positives")
    if any(value is not None for value in positives.values()):
        rows = [
            [row[1], *(found[name] for name in columns), _count(positives[row]), str(cases[row])]
            for row, found in cells.items()
        ]
        note = "Each class against the rest, 95 % intervals over subjects; not tested. With fewer than about ten "
        note += "positives read the intervals as too narrow."
        return Grid(title, ["class", *columns, "positives", "cases"], rows, note)
    rows = [[*row, *(found[name] for name in columns), str(cases[row])] for row, found in cells.items()]
    note = "Means over the cases in which the class is counted in every run, 95 % intervals over subjects; not tested."
    return Grid(title, ["dataset", "class", *columns, "cases"], rows, note)


def _named(names: Sequence[str], most: int | None) -> str:
    return ", ".join(names[:most]) + (" …" if most is not None and len(names) > most else "")


def _escaped(text: str, table: Mapping[str, str]) -> str:
    """Names may hold what the markup gives a meaning; a line break would end the row."""
    return "".join(table.get(character, character) for character in " ".join(text.split()))
