import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prevox.config.data import SplitConfig
from prevox.data.splits import labelled_subset, split_images, split_subjects
from prevox.errors import DataError

pytestmark = pytest.mark.unit


def index_of(subjects: list[str], labelled: list[bool] | None = None) -> pd.DataFrame:
    labelled = labelled or [True] * len(subjects)
    return pd.DataFrame(
        {
            "image": [f"image_{n}" for n in range(len(subjects))],
            "subject": subjects,
            "label_path": [f"label_{n}" if has else None for n, has in enumerate(labelled)],
        }
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([f"s{n}" for n in range(12)]), min_size=1, max_size=40),
    st.floats(0, 0.99),
    st.integers(0, 1000),
    st.randoms(use_true_random=False),
)
def test_no_subject_is_cut_and_row_order_does_not_matter(subjects, validation, seed, random):
    index = index_of(subjects)
    config = SplitConfig(validation=validation, seed=seed)
    sides = split_images(index, config)
    assert sorted(sides["train"] + sides["validation"]) == sorted(index["image"])
    owner = dict(zip(index["image"], index["subject"], strict=True))
    train, held_out = ({owner[image] for image in sides[side]} for side in ("train", "validation"))
    assert not train & held_out
    assert train
    if validation > 0 and len(set(subjects)) > 1:
        assert held_out
    rows = list(range(len(index)))
    random.shuffle(rows)
    assert split_images(index.iloc[rows], config) == sides
    assert split_images(index.set_index("image"), config) == sides


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([f"s{n}" for n in range(12)]), min_size=1, max_size=40),
    st.integers(2, 6),
    st.integers(0, 100),
)
def test_folds_hold_every_subject_out_once_and_cut_none(subjects, folds, seed):
    index = index_of(subjects)
    owner = dict(zip(index["image"], index["subject"], strict=True))
    if len(set(subjects)) < folds:
        with pytest.raises(DataError, match="at least one subject for each fold"):
            split_images(index, SplitConfig(folds=folds, seed=seed))
        return
    held_out = []
    for fold in range(folds):
        sides = split_images(index, SplitConfig(folds=folds, fold=fold, seed=seed))
        assert sorted(sides["train"] + sides["validation"]) == sorted(index["image"])
        train, held = ({owner[image] for image in sides[side]} for side in ("train", "validation"))
        assert not train & held
        inner = split_images(index, SplitConfig(folds=folds, fold=fold, seed=seed, inner=True))
        assert sorted(inner["train"] + inner["validation"]) == sides["train"], "settings are chosen without the fold"
        held_out.append(held)
    assert sorted(subject for held in held_out for subject in held) == sorted(set(subjects))
    sizes = [len(held) for held in held_out]
    assert max(sizes) - min(sizes) <= 1


def test_folds_and_a_column_exclude_each_other_and_folds_count_from_0():
    for wrong in ({"folds": 2, "column": "fold"}, {"folds": 3, "fold": 3}, {"fold": 1}, {"folds": 1}):
        with pytest.raises(ValueError, match="fold"):
            SplitConfig(**wrong)


def test_share_and_seed():
    subjects = [f"s{n:03d}" for n in range(100)]
    train, validation = split_subjects(subjects, 0.2, 0)
    assert (len(train), len(validation)) == (80, 20)
    assert split_subjects(subjects, 0.2, 1)[1] != validation
    assert split_subjects(["a"], 0.5, 0) == (["a"], [])
    assert split_subjects(subjects, 0, 0) == (subjects, [])
    assert len(split_subjects(["a", "b"], 0.99, 0)[0]) == 1


def test_a_column_is_taken_as_it_is():
    index = index_of(["a", "a", "b", "c"]).assign(fold=["train", "train", "validation", "test"])
    assert split_images(index, SplitConfig(column="fold")) == {
        "train": ["image_0", "image_1"],
        "validation": ["image_2"],
    }
    with pytest.raises(DataError, match="'a' in train and validation"):
        split_images(index.assign(fold=["train", "validation", "train", "test"]), SplitConfig(column="fold"))
    with pytest.raises(DataError, match="tarin"):
        split_images(index.assign(fold=["tarin", "train", "train", "test"]), SplitConfig(column="fold"))
    with pytest.raises(DataError, match="no such column"):
        split_images(index, SplitConfig(column="flod"))
    with pytest.raises(DataError, match="no training image"):
        split_images(index.assign(fold="test"), SplitConfig(column="fold"))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.lists(st.booleans(), min_size=24, max_size=24))
def test_label_subsets_are_nested_and_whole(seed, labelled):
    index = index_of([f"s{n // 2}" for n in range(24)], labelled)
    images = list(index["image"])[:20]
    has = index[index["label_path"].notna() & index["image"].isin(images)]
    subjects = set(has["subject"])
    before: set[str] = set()
    for count in range(1, len(subjects) + 1):
        chosen = set(labelled_subset(index, images, count, seed))
        owners = set(has.loc[has["image"].isin(chosen), "subject"])
        assert len(owners) == count
        assert chosen == set(has.loc[has["subject"].isin(owners), "image"])
        assert before < chosen
        before = chosen
    with pytest.raises(DataError, match=f"only {len(subjects)} training subjects"):
        labelled_subset(index.iloc[::-1], images, len(subjects) + 1, seed)


def test_label_subsets_ignore_row_order():
    index = index_of([f"s{n // 2}" for n in range(24)])
    images = list(index["image"])
    assert labelled_subset(index, images, 4, 0) == labelled_subset(index.iloc[::-1], images[::-1], 4, 0)
    assert labelled_subset(index, images, 4, 0) != labelled_subset(index, images, 4, 1)
