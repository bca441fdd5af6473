"""What `prevox prepare` prints: how many images, how large, how exact."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from prevox.console import console
from prevox.data.geometry import canonical_axes
from prevox.data.index import VANISHED


def print_store(out: Path, index: pd.DataFrame, failures: Sequence[tuple[str, str]]) -> None:
    """Print what is in the store after a run, and what was left out."""
    table = Table(show_header=False)
    table.add_row("images in the store", str(len(index)))
    if len(index):
        turned = [
            np.array(shape)[list(canonical_axes(np.reshape(a, (4, 4)), shape)[0])]
            for shape, a in zip(index.source_shape, index.source_affine, strict=True)
        ]
        before, after, spacing = (
            np.median(x, axis=0) for x in (turned, index["shape"].tolist(), index["spacing"].tolist())
        )
        table.add_row("median shape (z y x)", f"{_times(before)} → {_times(after)}")
        table.add_row("median spacing (z y x)", f"{_times(spacing)} mm")
        table.add_row(
            "size", f"{index['bytes'].sum() / 1e6:.1f} MB, sources {index['source_bytes'].sum() / 1e6:.1f} MB"
        )
        errors = index["max_error"].map(max)
        worst = escape(str(index["image"].iloc[int(errors.argmax())]))
        error = f"{errors.max():.3g} ({worst})" if errors.max() > 0 else "none: all are exact"
        table.add_row("largest quantisation error", error)
        lost = sum(any(flag.startswith(VANISHED) for flag in flags) for flags in index["flags"])
        if lost:
            table.add_row("a class vanished in resampling", f"in {lost} images, see {VANISHED} in the index's flags")
    table.add_row("left out", escape(f"{len(failures)}" + (f", see {out / 'failures.csv'}" if failures else "")))
    console.print(table)


def _times(numbers: np.ndarray) -> str:
    return " × ".join(f"{number:g}" for number in np.round(numbers, 3))
