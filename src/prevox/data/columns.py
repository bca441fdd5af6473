"""A table that grows row by row: kept as columns, it takes a fraction of what a list of rows does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

ROW_GROUP = 500  # rows of a Parquet file that are written at a time; of larger groups pages of all columns are kept


class Columns:
    """Rows to come, as one list for each column; where a row lacks a column, the table has NaN."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        for name, value in row.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = []
            if len(column) < self._length:
                column += [np.nan] * (self._length - len(column))
            column.append(value)
        self._length += 1

    def table(self, index: list[int] | None = None) -> pd.DataFrame:
        """The rows so far; the lists are given away, so it can be asked for once."""
        columns, self._columns = self._columns, {}
        for column in columns.values():
            column += [np.nan] * (self._length - len(column))
        return pd.DataFrame(columns, index=index)
