"""The page beside a catalogue: what each quality rule found, how the images are distributed, and what they look like.

Its size is bounded: of many images some hundreds are shown, those that break rules first, the rarest rules first.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prevox.config.rules import RulesConfig
from prevox.data.rules import OF_S3D, count
from prevox.reporting import page

MOST_IMAGES = 400  # of 4 to 10 kB
UNFLAGGED = 0.2  # least share of them that breaks no rule, if there are such
MOST_FAILURES = 500
BARS = 24
_LOGARITHMIC = 20  # largest by smallest value from which on an axis is logarithmic

MEANING = {
    "field_of_view": "a volume too short along an axis: a scout, a cut-out, a few slices",
    "spacing": "voxels too large along an axis: a scout, or slices far apart",
    "file_size": "files too small for a scan: compressed emptiness",
    "sequence": "an MR sequence that is not wanted",
    "constant": "all voxels are equal",
    "nan": "voxels that are NaN or infinite; cannot be prepared",
    "near_empty": "hardly a voxel differs from the background",
    "clipped": "many voxels have the largest value: the range was cut off",
    "tiny": "an axis of a few voxels",
    "few_values": "small whole numbers only, as in a label map",
    "no_geometry": "the file does not say where its voxels lie; left and right are a guess",
    "negative_size": "a negative voxel size, of which the magnitude is taken",
    "orientation": "qform and sform turn the axes differently, or have no valid code; the reader's choice may be wrong",
    "affine": "a position or size that no scanner writes: often micrometres or metres taken for millimetres",
    "sheared": "axes that are not at right angles (gantry tilt)",
    "duplicate_image": "the same voxels under several ids",
    "near_duplicate": "the same scan but for noise, rounding or a linear change of intensity",
    "duplicate_label": "a label map that is a copy of another case's",
    "no_label": "no label map",
    "empty_label": "a label map without a labelled voxel",
    "many_values": "as many values as an image has, in a label map",
    "label_off_image": "labels where the image has nothing but background",
}
_QUANTITIES = (  # heading, unit, values of the table's rows
    ("Smallest voxel size", "mm", lambda rows: rows[["spacing_i", "spacing_j", "spacing_k"]].min(axis=1)),
    ("Largest voxel size", "mm", lambda rows: rows[["spacing_i", "spacing_j", "spacing_k"]].max(axis=1)),
    ("Voxels along the shortest axis", "", lambda rows: rows[["shape_i", "shape_j", "shape_k"]].min(axis=1)),
    ("Voxels along the longest axis", "", lambda rows: rows[["shape_i", "shape_j", "shape_k"]].max(axis=1)),
    ("Mean intensity", "", lambda rows: rows["mean"]),
    ("Largest intensity", "", lambda rows: rows["maximum"]),
)


def write_catalogue_page(
    out: Path,
    table: pd.DataFrame,
    failures: Sequence[tuple[str, str]],
    thumbnails: Mapping[str, str],
    rules: RulesConfig,
) -> None:
    """Write the page of a catalogue.

    Args:
        out: HTML file.
        table: The catalogue's rows.
        failures: Image and reason of each that was left out.
        thumbnails: By image, PNG in base64.
        rules: Thresholds by which the table was judged.

    Raises:
        RunError: If the page cannot be written.
    """
    counts = count(table, rules)
    shown = choose(table, MOST_IMAGES)
    text = page.render(
        "catalogue.html.j2",
        {},
        ("gallery.js",),
        title=f"Catalogue {out.stem}",
        volumes=None,
        headline=_headline(table, failures),
        rules=[found._asdict() | _explained(found.rule) for found in counts],
        quiet=[rule for rule in MEANING if rule not in {found.rule for found in counts}],
        histograms=[_histogram(title, unit, values(table)) for title, unit, values in _QUANTITIES],
        images=[_card(table.iloc[n], thumbnails) for n in shown],
        total=len(table),
        failures=failures[:MOST_FAILURES],
        left_out=len(failures),
    )
    page.write(text, out)


def choose(table: pd.DataFrame, most: int) -> list[int]:
    """Positions of the images that are shown: of every rule some, evenly spread, then some that break none.

    Args:
        table: The catalogue's rows.
        most: Number of images.

    Returns:
        At most that many positions: excluded images first, then those with the rarest flags.
    """
    by_rule: dict[str, list[int]] = {}
    for n, flags in enumerate(table["flags"]):
        for flag in flags:
            by_rule.setdefault(flag, []).append(n)
    unflagged = [n for n, flags in enumerate(table["flags"]) if not flags]
    flagged = len(table) - len(unflagged)
    room = min(flagged, max(most - len(unflagged), round(most * (1 - UNFLAGGED))))
    chosen: set[int] = set()
    ascending = sorted(by_rule.values(), key=len)
    for done, members in enumerate(ascending):
        share = (room - len(chosen)) // (len(ascending) - done)
        chosen |= set(_spread([n for n in members if n not in chosen], share))
    rest = [n for n, flags in enumerate(table["flags"]) if flags and n not in chosen]
    chosen |= set(_spread(rest, room - len(chosen)))
    chosen |= set(_spread(unflagged, most - len(chosen)))

    def first(n: int) -> tuple[bool, int, int]:
        return (
            not table["excluded"].iloc[n],
            min((len(by_rule[f]) for f in table["flags"].iloc[n]), default=len(table) + 1),
            n,
        )

    return sorted(chosen, key=first)


def _spread(positions: Sequence[int], most: int) -> list[int]:
    """At most so many of the positions, evenly spread."""
    number = max(0, min(most, len(positions)))
    return [positions[k * len(positions) // number] for k in range(number)]


def _headline(table: pd.DataFrame, failures: Sequence[tuple[str, str]]) -> list[str]:
    subjects, collections = table["subject"].nunique(), sorted(map(str, table["collection"].unique()))
    broken = int(table["flags"].map(bool).sum())
    excluded = int(table["excluded"].map(bool).sum())
    known = int(table["sequence"].notna().sum())
    sentences = [
        f"{_number(len(table), 'image')} of {_number(subjects, 'subject')} in {', '.join(collections)}.",
        f"{_number(broken, 'image')} with flags; {excluded or 'none'} excluded from what follows.",
    ]
    if known:
        names = ", ".join(f"{name} {n}" for name, n in table["sequence"].value_counts().items())
        sentences.append(f"The MR sequence of {_number(known, 'image')} is known: {names}.")
    if failures:
        sentences.append(f"{_number(len(failures), 'image')} could not be used at all.")
    return sentences


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _explained(rule: str) -> dict[str, Any]:
    meaning = MEANING.get(rule, "what the reader had to assume")
    return {"meaning": meaning, "source": "S3D" if rule in OF_S3D else ""}


def _card(row: pd.Series, thumbnails: Mapping[str, str]) -> dict[str, Any]:
    """What is shown of an image."""
    shape = " × ".join(str(row[f"shape_{axis}"]) for axis in "ijk")
    spacing = " × ".join(f"{row[f'spacing_{axis}']:.3g}" for axis in "ijk")
    return {
        "image": row["image"],
        "picture": thumbnails.get(row["image"]),
        "about": [
            ", ".join(filter(None, (row["collection"], row["sequence"]))),
            f"{shape} voxels",
            f"{spacing} mm",
            f"{row['minimum']:.4g} to {row['maximum']:.4g}",
        ],
        "flags": row["flags"],
        "reasons": row["reasons"],
        "excluded": bool(row["excluded"]),
    }


def _histogram(title: str, unit: str, values: pd.Series) -> dict[str, Any]:
    """Bars of a distribution; x and width in percent of the axis, height in percent of the largest bar."""
    numbers = np.array([float(f"{value:.5g}") for value in values])  # no bars for rounding
    low, high = float(numbers.min()), float(numbers.max())
    logarithmic = low > 0 and high / low > _LOGARITHMIC
    if low == high:
        edges, heights = np.full(BARS + 1, low), np.zeros(BARS, int)
        heights[BARS // 2] = len(numbers)
    else:
        edges = np.geomspace(low, high, BARS + 1) if logarithmic else np.linspace(low, high, BARS + 1)
        edges[[0, -1]] = low, high  # rounding would lose the extremes
        heights = np.histogram(numbers, edges)[0]
    bars = [
        {
            "x": round(100 * n / len(heights), 2),
            "width": round(100 / len(heights), 2),
            "height": round(max(3.0, 100 * int(height) / int(heights.max())), 2),
            "tip": f"{edges[n]:.4g} to {edges[n + 1]:.4g}{' ' * bool(unit)}{unit}: {_number(int(height), 'image')}",
        }
        for n, height in enumerate(heights)
        if height
    ]
    return {
        "title": title,
        "unit": unit,
        "low": f"{low:.4g}",
        "high": f"{high:.4g}",
        "median": f"{np.median(numbers):.4g}",
        "logarithmic": logarithmic,
        "bars": bars,
    }
