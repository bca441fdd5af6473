import pandas as pd
import pytest

from prevox.config.data import SplitConfig
from prevox.data.splits import split_images

pytestmark = pytest.mark.unit


def test_inner_split_divides_the_training_subjects_only() -> None:
    index = pd.DataFrame({"subject": [f"s{number // 2}" for number in range(40)]}, index=[f"i{n}" for n in range(40)])
    outer = split_images(index, SplitConfig(seed=3))
    inner = split_images(index, SplitConfig(seed=3, inner=True))
    assert sorted(inner["train"] + inner["validation"]) == outer["train"]
    assert len(outer["validation"]) == 8  # 4 of 20 subjects, two images each
    assert len(inner["validation"]) == 6  # 3 of the remaining 16 subjects
