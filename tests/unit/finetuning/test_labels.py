import numpy as np
import pytest
import torch

from prevox.errors import ConfigError, DataError
from prevox.finetuning.labels import LabelScheme, exclusive_scheme, region_scheme

pytestmark = pytest.mark.unit

BRATS = {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}


def test_classes_follow_their_values_which_need_not_be_contiguous():
    scheme = exclusive_scheme({"0": "background", "7": "spleen", "2": "liver"}, [], "store")
    assert scheme.classes == {"liver": (2,), "spleen": (7,)}
    assert scheme.outputs == 3
    label = torch.tensor([0, 7, 2, 2]).view(1, 1, 4)
    assert scheme.encode_classes(label, "a").flatten().tolist() == [0, 2, 1, 1]
    scores = torch.tensor([[0.8, 0.1, 0.2], [0.1, 0.2, 0.7], [0.1, 0.7, 0.1]])
    assert scheme.decode(scores).tolist() == [0, 7, 2]
    assert scheme.decode(scores).dtype == np.uint8


def test_without_names_the_values_name_the_classes():
    assert exclusive_scheme({}, [0, 1, 4], "store").classes == {"1": (1,), "4": (4,)}


@pytest.mark.parametrize("value", [3, 9, -1])
def test_a_value_that_is_no_class_is_named(value):
    scheme = exclusive_scheme({"2": "liver", "7": "spleen"}, [], "store")
    with pytest.raises(DataError, match=rf"case_5.*value\(s\) {value};.*2 \(liver\), 7 \(spleen\)"):
        scheme.encode_classes(torch.tensor([0, value]).view(1, 1, 2), "case_5")


@pytest.mark.parametrize("names", [{}, {"0": "background"}])
def test_no_class_is_refused(names):
    with pytest.raises(DataError, match="no label value above 0"):
        exclusive_scheme(names, [0], "store")


def test_one_name_for_two_values_is_refused():
    with pytest.raises(DataError, match="a different name"):
        exclusive_scheme({"1": "kidney", "2": "kidney"}, [], "store")


def test_regions_are_painted_from_the_outermost_to_the_innermost():
    scheme = region_scheme(BRATS, [0, 1, 2, 3])
    assert scheme.outputs == 3
    assert scheme.painted() == [1, 2, 3]
    label = torch.tensor([0, 1, 2, 3]).view(1, 1, 4)
    assert scheme.encode_regions(label)[0].tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    scores = torch.tensor([[0.1, 0.9, 0.9, 0.9, 0.2], [0.1, 0.5, 0.9, 0.9, 0.9], [0.0, 0.0, 0.0, 0.8, 0.0]])
    assert scheme.decode(scores).tolist() == [0, 1, 2, 3, 2]


@pytest.mark.parametrize(
    "regions",
    [
        {"ET": (3,), "TC": (2, 3), "WT": (1, 2, 3)},  # innermost first
        {"WT": (1, 2, 3), "ET": (3,)},  # nothing tells 1 from 2
        {"A": (0,)},
    ],
)
def test_regions_that_cannot_be_painted_back_are_refused(regions):
    with pytest.raises(ConfigError, match="from the outermost to the"):
        region_scheme(regions, [0, 1, 2, 3])


def test_a_region_of_values_that_never_occur_is_refused():
    with pytest.raises(ConfigError, match=r"'WT' names label value\(s\) 3; .* hold 1, 2, 4"):
        region_scheme(BRATS, [0, 1, 2, 4])


def test_encoded_and_decoded_labels_are_the_same():
    label = torch.randint(0, 4, (1, 1, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    for scheme in (LabelScheme({"a": (1,), "b": (2,), "c": (3,)}), LabelScheme(BRATS, overlapping=True)):
        if scheme.overlapping:
            scores = scheme.encode_regions(label)[0]
        else:
            scores = torch.nn.functional.one_hot(scheme.encode_classes(label, "")[0, 0]).movedim(-1, 0)
        assert np.array_equal(scheme.decode(scores), label[0, 0].numpy())


def test_probabilities():
    logits = torch.tensor([[0.0], [np.log(3.0)]])
    exclusive, regions = LabelScheme({"a": (1,)}), LabelScheme({"a": (1, 2), "b": (2,)}, overlapping=True)
    assert exclusive.probabilities(logits).flatten().tolist() == pytest.approx([0.25, 0.75])
    assert regions.probabilities(logits).flatten().tolist() == pytest.approx([0.5, 0.75])


def test_a_class_called_mean_is_refused():
    with pytest.raises(ConfigError, match=r"called 'mean'.*Rename it"):
        exclusive_scheme({"1": "mean", "2": "b"}, [1, 2], "store")
