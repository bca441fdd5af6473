"""The quality rules: each judges what the catalogue knows of an image, by a threshold of `RulesConfig`.

A rule flags; if it is named in `exclude`, its images are left out of what follows, and their rows say why. Of copies
one stays: one that no other rule excludes, with a label map if any has one, the first of the table.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd

from prevox.config.rules import RuleName, RulesConfig
from prevox.data.geometry import spacing_of
from prevox.data.near_duplicates import near_duplicates

Row = Mapping[str, Any]
RULES: tuple[str, ...] = get_args(RuleName)
OF_S3D = ("field_of_view", "spacing", "file_size", "sequence")
COPIES = ("duplicate_image", "near_duplicate")  # of which one is kept
MEASURED = ("file_bytes", "foreground", "at_maximum", "label_off_image")  # columns from which rules are judged
HELPERS = ("header_flags", "voxel_hash", "signature", "image_hash", "label_hash")  # of rows; not in the catalogue
_UNITS = {  # the threshold in words
    "field_of_view": "at least {:g} mm",
    "spacing": "at most {:g} mm",
    "file_size": "at least {:g} kB",
    "sequence": "one of {}",
    "near_empty": "at least {:.3g} of the voxels",
    "clipped": "at most {:.3g} of the voxels",
    "tiny": "at least {} voxels",
    "few_values": "beyond 0 to {}",
    "affine": "at most {:g} mm",
    "sheared": "at most {:g}°",
    "near_duplicate": "correlation below {:g}",
    "many_values": "at most {} values",
    "label_off_image": "at most {:.3g} of its voxels",
}


class Count(NamedTuple):
    """What a rule found.

    Args:
        rule: Its name; flags of readers count as rules.
        expected: The threshold in words; "" where there is none.
        images: Number that break it.
        excluded: Number that are excluded because of it, alone or with others.
    """

    rule: str
    expected: str
    images: int
    excluded: int


class Verdict(NamedTuple):
    """What the rules say of an image.

    Args:
        flags: Names of the rules that it breaks, and the reader's flags.
        reasons: "rule: what was found" for each of them.
        excluded: The reasons of the rules that exclude.
    """

    flags: list[str]
    reasons: list[str]
    excluded: list[str]


class _Looks(NamedTuple):
    """What tells copies of an image; a key that is None has none."""

    image: str
    has_label: bool
    label: str | None
    voxels: str | None
    signature: str | None
    kind: Hashable


def judge(rows: Iterable[Row], rules: RulesConfig) -> list[Verdict]:
    """Apply the rules to all images.

    Args:
        rows: What is known of each image, with what `measure` gives and the reader's flags; gone through once.
        rules: Thresholds.
    """
    broken: list[dict[str, str]] = []
    looks: list[_Looks] = []
    for row in rows:
        broken.append(_broken(row, rules))
        looks.append(_looks(row, broken[-1]))
    excluding: set[str] = set(rules.exclude)
    barred = [bool(set(found) & excluding) for found in broken]
    rank = np.empty(len(looks), int)
    rank[sorted(range(len(looks)), key=lambda n: (barred[n], not looks[n].has_label, n))] = np.arange(len(looks))
    kept: dict[int, set[str]] = defaultdict(set)  # rules by which an image is the one of its copies that stays
    for rule, n, other, text in _copies(looks, rank, rules):
        broken[n][rule] = f"{text} {looks[other].image}"
        if rule in COPIES and rank[n] < rank[other]:
            kept[n].add(rule)
    return [_verdict(found, excluding - kept.get(n, set())) for n, found in enumerate(broken)]


def _verdict(found: dict[str, str], excluding: set[str]) -> Verdict:
    flags = sorted(found, key=lambda rule: RULES.index(rule) if rule in RULES else -1)
    texts = {rule: f"{rule}: {found[rule]}" if found[rule] else rule for rule in flags}
    return Verdict(flags, list(texts.values()), [texts[rule] for rule in flags if rule in excluding])


def _looks(row: Row, broken: Mapping[str, str]) -> _Looks:
    return _Looks(
        row["image"],
        row["label_path"] is not None,
        row["label_hash"] if row["label_values"] else None,
        None if "constant" in broken else row["voxel_hash"],
        row["signature"],
        (row["channels"], *(row[f"shape_{a}"] for a in "ijk"), row["sequence"]),
    )


def rule_of(reason: str) -> str:
    """The rule that a reason is of."""
    return reason.partition(":")[0]


def count(rows: pd.DataFrame, rules: RulesConfig) -> list[Count]:
    """What each rule that was broken found, in the order of the rules."""
    images = Counter(flag for flags in rows["flags"] for flag in flags)
    excluded = Counter(rule_of(reason) for reasons in rows["excluded"] for reason in reasons)
    order = [*sorted(set(images) - set(RULES)), *(rule for rule in RULES if rule in images)]
    return [Count(rule, _expected(rule, rules), images[rule], excluded[rule]) for rule in order]


def _expected(rule: str, rules: RulesConfig) -> str:
    value = getattr(rules, rule, None)
    if value is None or rule not in _UNITS:
        return ""
    return _UNITS[rule].format(", ".join(value) if isinstance(value, tuple) else value)


def _broken(row: Row, rules: RulesConfig) -> dict[str, str]:
    """The rules that an image breaks by itself, with what was found."""
    found = dict.fromkeys([*row["flags"], *row["header_flags"]], "")
    for rule, breaks in _ALONE.items():
        threshold = getattr(rules, rule, True)
        if threshold is not None and (text := breaks(row, threshold)) is not None:
            found[rule] = text
    if "constant" in found:  # says it all
        found.pop("near_empty", None)
        found.pop("clipped", None)
    if "few_values" in found:
        found.pop("clipped", None)
    return found


def _sides(row: Row) -> list[tuple[int, float]]:
    """Voxels and voxel size along each axis."""
    return [(row[f"shape_{axis}"], row[f"spacing_{axis}"]) for axis in "ijk"]


def _is_volume(row: Row) -> bool:
    return all(voxels > 1 for voxels, _ in _sides(row))


def _field_of_view(row: Row, least: float) -> str | None:
    shortest = min(voxels * size for voxels, size in _sides(row))
    return f"{shortest:.4g} mm" if _is_volume(row) and shortest < least else None


def _spacing(row: Row, most: float) -> str | None:
    largest = max(size for _, size in _sides(row))
    return f"{largest:.4g} mm" if _is_volume(row) and largest > most else None


def _file_size(row: Row, least: float) -> str | None:
    size = row["file_bytes"] / 1024
    return f"{size:.4g} kB" if _is_volume(row) and size < least else None


def _sequence(row: Row, wanted: tuple[str, ...]) -> str | None:
    others = [name for name in (row["sequence"] or "").split(",") if name and name not in wanted]
    return ", ".join(others) or None


def _constant(row: Row, _: bool) -> str | None:
    return f"{row['minimum']:.4g} everywhere" if row["minimum"] == row["maximum"] else None


def _near_empty(row: Row, least: float) -> str | None:
    return f"{row['foreground']:.2g} differs from the background" if row["foreground"] < least else None


def _clipped(row: Row, most: float) -> str | None:
    return f"{row['at_maximum']:.2g} of the voxels at the maximum" if row["at_maximum"] > most else None


def _tiny(row: Row, least: int) -> str | None:
    shape = [voxels for voxels, _ in _sides(row)]
    fewest = min(shape[:2] if shape[2] == 1 else shape)
    return f"{fewest} voxels" if fewest < least else None


def _few_values(row: Row, most: int) -> str | None:
    whole = np.dtype(row["dtype"]).kind in "bui"
    return f"0 to {row['maximum']:g}" if whole and row["minimum"] == 0 and 0 < row["maximum"] <= most else None


def _affine(row: Row, most: float) -> str | None:
    if "no_geometry" in row["flags"]:
        return None
    extent = max(voxels * size for voxels, size in _sides(row))
    if extent > most:
        return f"a field of view of {extent:.4g} mm"
    centre = [(voxels - 1) / 2 for voxels, _ in _sides(row)]
    away = float(np.linalg.norm((np.reshape(row["affine"], (4, 4)) @ [*centre, 1])[:3]))
    return f"{away:.4g} mm from the origin" if away > most else None


def _sheared(row: Row, most: float) -> str | None:
    affine = np.reshape(row["affine"], (4, 4))
    directions = affine[:3, :3] / spacing_of(affine)
    cosine = np.abs(directions.T @ directions - np.eye(3)).max()
    angle = float(np.degrees(np.arcsin(min(1.0, cosine))))
    return f"{angle:.3g}°" if angle > most else None


def _no_label(row: Row, _: bool) -> str | None:
    return "" if row["label_path"] is None else None


def _empty_label(row: Row, _: bool) -> str | None:
    return "" if row["label_path"] is not None and not row["label_values"] else None


def _many_values(row: Row, most: int) -> str | None:
    values = len(row["label_values"] or ())
    return f"{values} values" if row["class_names"] is None and values > most else None


def _label_off_image(row: Row, most: float) -> str | None:
    share = row["label_off_image"]
    return f"{share:.2g} of its voxels" if share is not None and share > most else None


_ALONE: dict[str, Callable[[Row, Any], str | None]] = {
    "field_of_view": _field_of_view,
    "spacing": _spacing,
    "file_size": _file_size,
    "sequence": _sequence,
    "constant": _constant,
    "near_empty": _near_empty,
    "clipped": _clipped,
    "tiny": _tiny,
    "few_values": _few_values,
    "affine": _affine,
    "sheared": _sheared,
    "no_label": _no_label,
    "empty_label": _empty_label,
    "many_values": _many_values,
    "label_off_image": _label_off_image,
}


def _copies(looks: Sequence[_Looks], rank: np.ndarray, rules: RulesConfig) -> list[tuple[str, int, int, str]]:
    """Rule, position, position of the best other one, and what they share, of every image that is like another."""
    labels = _equal([look.label for look in looks], rank)
    images = _equal([look.voxels for look in looks], rank)
    found = [("duplicate_label", n, other, "that of") for n, other in labels.items()]
    found += [("duplicate_image", n, other, "the voxels of") for n, other in images.items()]
    if rules.near_duplicate is not None:
        # of equal images one is compared with the others
        of_one = [n not in images or rank[n] < rank[images[n]] for n in range(len(looks))]
        signatures = [look.signature if one else None for look, one in zip(looks, of_one, strict=True)]
        partner, correlation = near_duplicates(signatures, [look.kind for look in looks], rank, rules.near_duplicate)
        for n in np.flatnonzero(partner >= 0).tolist():
            found.append(("near_duplicate", n, int(partner[n]), f"{correlation[n]:.4f} with"))
    return found


def _equal(keys: Sequence[Hashable | None], rank: np.ndarray) -> dict[int, int]:
    """For each position whose key another one shares, the best ranked of the others."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for n, key in enumerate(keys):
        if key is not None:
            groups[key].append(n)
    found: dict[int, int] = {}
    for group in groups.values():
        if len(group) > 1:
            best, second = sorted(group, key=lambda n: rank[n])[:2]
            found |= {n: second if n == best else best for n in group}
    return found
