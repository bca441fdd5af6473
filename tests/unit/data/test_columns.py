"""Tables that grow row by row are those that pandas makes of all rows at once."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prevox.data.columns import Columns

pytestmark = pytest.mark.unit

VALUES = {
    "number": st.integers(-5, 5),
    "share": st.none() | st.floats(0, 1),
    "name": st.none() | st.text(max_size=3),
    "flag": st.booleans(),
    "list": st.none() | st.lists(st.integers(0, 3), max_size=2),
}
ROWS = st.lists(st.fixed_dictionaries({"image": st.text(max_size=3)}, optional=VALUES), min_size=1, max_size=6)


@given(ROWS)
def test_as_from_a_list_of_rows(rows):
    columns = Columns()
    for row in rows:
        columns.add(row)
    assert len(columns) == len(rows)
    index = list(range(7, 7 + len(rows)))
    pd.testing.assert_frame_equal(columns.table(index), pd.DataFrame(rows, index=index))


def test_a_row_without_a_column_and_a_column_that_comes_late():
    columns = Columns()
    for row in ({"a": 1}, {"b": "x"}, {"a": 3, "b": "y"}):
        columns.add(row)
    table = columns.table()
    assert table["a"].isna().tolist() == [False, True, False]
    assert table["b"].isna().tolist() == [True, False, False]


def test_no_row_is_an_empty_table():
    assert Columns().table().empty
