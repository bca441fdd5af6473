"""nnU-Net's rules: plans worked out by hand, published ones, and what must hold of every plan."""

import math
from itertools import permutations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prevox.data.plan import (
    SHORTEST,
    Fingerprint,
    Room,
    TooSmallError,
    first_patch,
    make_plan,
    map_elements,
    resampled,
    target_spacing,
    topology,
)
from prevox.verbs.plan import room

pytestmark = pytest.mark.unit


def same(spacing, shape, count, classes=2):
    return Fingerprint((spacing,) * count, (shape,) * count, classes=classes)


def words(per_stage):
    return ["".join(map(str, axes)) for axes in per_stage]


class TestSpacing:
    def test_median_of_each_axis(self):
        found = Fingerprint(((1, 2, 3), (2, 2, 5), (3, 8, 4)), ((40, 40, 40),) * 3)
        assert target_spacing(found) == ((2, 2, 4), None)

    def test_a_coarse_short_axis_takes_its_tenth_percentile(self):
        coarse = [4.0, 5, 5, 5, 5, 5, 5, 5, 5, 10, 10]  # 11 values: the 10th percentile is the second, 5
        found = Fingerprint(tuple((s, 0.8, 0.8) for s in coarse), ((30, 512, 512),) * 11)
        assert target_spacing(found) == ((5, 0.8, 0.8), 0)
        found = Fingerprint(tuple((0.8, s, 0.8) for s in (2, 3, *coarse[2:])), ((512, 30, 512),) * 11)
        assert target_spacing(found) == ((0.8, 3, 0.8), 1)

    def test_but_never_one_finer_than_the_others(self):
        found = Fingerprint(((0.5, 1, 1), (0.5, 1, 1), *(((5, 1, 1),) * 8)), ((20, 256, 256),) * 10)
        assert target_spacing(found) == ((1.00001, 1, 1), 0)

    @pytest.mark.parametrize(
        ("spacing", "shape"),
        [((2.4, 0.8, 0.8), (30, 512, 512)), ((5, 0.8, 0.8), (171, 512, 512))],  # just three times; just a third
    )
    def test_both_conditions_are_strict(self, spacing, shape):
        other = (0.9 * spacing[0], *spacing[1:])
        found = Fingerprint((other, spacing, spacing), (shape,) * 3)
        assert target_spacing(found) == (spacing, None)


class TestTopology:
    def test_published_plan_of_the_prostate(self):
        """nnU-Net v2, Task05: view 20 × 320 × 256 at 3.6 × 0.625 × 0.625 mm."""
        made = topology((3.6, 0.625, 0.625), (20, 320, 256))
        assert made.patch == (20, 320, 256)
        assert words(made.strides) == ["111", "122", "122", "222", "222", "122", "122"]
        assert words(made.kernels) == ["133", "133", "333", "333", "333", "333", "333"]

    def test_view_is_padded_no_further_than_to_the_strides(self):
        made = topology((1, 1, 1), (35.5, 50, 36))
        assert (made.patch, made.total) == ((40, 56, 40), (8, 8, 8))

    def test_an_axis_alone_needs_twelve_sites(self):
        assert words(topology((1, 1, 1), (11, 7, 7)).strides) == ["111"]
        assert words(topology((1, 1, 1), (12, 7, 7)).strides) == ["111", "211"]
        assert words(topology((1, 1, 1), (8, 8, 7)).strides) == ["111", "221"]

    def test_few_coarse_slices_are_left_alone(self):
        """An axis that is too short to be halved still counts for the kernels."""
        made = topology((10, 1, 1), (5, 64, 64))
        assert words(made.strides) == ["111", "122", "122", "122", "122"]
        assert words(made.kernels) == ["133", "133", "133", "333", "333"]  # 10 is below twice 8, not below twice 4

    def test_twice_the_spacing_is_too_coarse(self):
        assert words(topology((2, 1, 1), (32, 32, 32)).strides)[1] == "122"
        assert words(topology((1.99, 1, 1), (32, 32, 32)).strides)[1] == "222"


class TestMaps:
    def test_nnunets_own_count(self):
        """Its planner's source gives this number for six stages, three classes, deep supervision, 128³."""
        strides, widths = [(1,) * 3, *[(2,) * 3] * 5], (32, 64, 128, 256, 320, 320)
        assert map_elements((128,) * 3, strides, widths, (1, 3, 4, 6, 6, 6), 3, True) == 558319104

    def test_by_hand(self):
        """64 voxels, widths 2 and 4: stem 2, block 2 · 2, decoder 2 · 2, 3 classes; below, 8 voxels, block 3 · 4."""
        assert map_elements((4, 4, 4), [(1,) * 3, (2,) * 3], (2, 4), (1, 1), 3) == 64 * (2 + 4 + 4 + 3) + 8 * 12


class TestPlans:
    def test_hippocampus_is_as_published(self):
        """nnU-Net v2, Task04: view 40 × 56 × 40, strides 1 2 2 2, batch 9; the images are a grid of 260."""
        shapes = tuple((31 + n % 10, 40 + n % 19 + 1, 24 + n % 22) for n in range(260))
        made = make_plan(Fingerprint(((1.0, 1.0, 1.0),) * 260, shapes, classes=3), room("M"))
        assert made.median_shape == (35.5, 50, 34)
        assert (made.spacing, made.patch) == ((1, 1, 1), (40, 56, 40))
        assert words(made.strides) == ["111", "222", "222", "222"]
        assert words(made.kernels) == ["333"] * 4
        assert (made.features, made.blocks) == ([32, 64, 128, 256], [1, 3, 4, 6])
        assert made.batch == made.largest_batch == round(0.05 * 260 * 35.5 * 50 * 34 / (40 * 56 * 40)) == 9
        assert made.reductions == 0

    def test_hippocampus_on_two_cores(self):
        """Maps of one view: 89 600 · (3 · 16 + 3 + 2 · 16) and so on, 10.7 M; 16 M fit twice, so 3 fit."""
        made = make_plan(same((1, 1, 1), (36, 50, 35), 260, classes=3), room("S"))
        assert (made.patch, made.features, made.blocks) == ((40, 56, 40), [16, 32, 64, 128], [1, 2, 2, 2])
        voxels = [89600 // 8**stage for stage in range(4)]
        by_hand = [16 * 3 + 16 * 2 + 3, 32 * 5 + 32 * 2, 64 * 5 + 64 * 2, 128 * 5]
        assert made.elements == sum(n * width for n, width in zip(voxels, by_hand, strict=True))
        assert made.batch == 3
        assert made.memory == made.elements * 3 * 8

    def test_prostate(self):
        """All of 20 × 320 × 320 fits with 24 GB; with 8 GB both long axes give way once, the last one first."""
        found = same((3.6, 0.625, 0.625), (20, 320, 320), 32, classes=3)
        large, medium = make_plan(found, room("L")), make_plan(found, room("M"))
        assert (large.patch, large.reductions, large.batch) == ((20, 320, 320), 0, 2)
        assert (medium.patch, medium.reductions, medium.batch) == ((20, 256, 256), 2, 2)
        for made in (large, medium):
            assert words(made.strides) == ["111", "122", "122", "222", "222", "122", "122"]
            assert words(made.kernels[:3]) == ["133", "133", "333"]
            assert made.features == [32, 64, 128, 256, 320, 320, 320]
        between = Room(32, 320, (1, 3, 4, 6), 7.5e8)  # the published view, with memory in between
        assert make_plan(found, between).patch == (20, 320, 256)

    def test_thick_ct(self):
        """5 × 0.8 × 0.8 mm: 256 · (5 · 0.8²/ s³) ^ ⅓ gives 75 × 472 × 472 voxels of the same length in mm."""
        found = same((5.0, 0.8, 0.8), (100, 512, 512), 30)
        assert first_patch((5.0, 0.8, 0.8), (100, 512, 512)) == (75, 472, 472)
        made = make_plan(found, room("M"))
        assert made.coarse_axis == 0
        assert made.spacing == (5, 0.8, 0.8)
        assert words(made.strides) == ["111", "122", "122", "222", "222", "222"]
        assert words(made.kernels) == ["133", "133", "333", "333", "333", "333"]
        assert made.patch == (40, 192, 192)
        assert made.batch == 2
        assert make_plan(found, room("L")).patch == (56, 320, 256)

    def test_resampled_as_prepare_does(self):
        assert resampled((10, 10, 3), (2, 1, 1), (1, 1.05, 9)) == (20, 10, 1)

    def test_images_that_cannot_be_halved(self):
        with pytest.raises(TooSmallError):
            make_plan(same((1, 1, 1), (7, 11, 7), 5), room("S"))

    def test_five_percent_of_a_small_set_leave_two(self):
        made = make_plan(same((1, 1, 1), (40, 40, 40), 3), room("M"))
        assert (made.largest_batch, made.batch) == (0, 2)


axis = st.tuples(st.floats(0.3, 6.0).map(lambda x: round(x, 3)), st.integers(12, 600))
sizes = st.sampled_from(["S", "M", "L", "XL"])


@st.composite
def fingerprints(draw):
    """Data sets of few images around one geometry."""
    axes = [draw(axis) for _ in range(3)]
    factors = [draw(st.sampled_from([1.0, 0.8, 1.25])) for _ in range(draw(st.integers(1, 5)))]
    spacings = tuple(tuple(round(s * f, 6) for s, _ in axes) for f in factors)
    return Fingerprint(spacings, tuple(tuple(max(1, round(n / f)) for _, n in axes) for f in factors))


@settings(deadline=None, max_examples=150)
@given(fingerprints(), sizes)
def test_what_every_plan_keeps(found, size):
    try:
        made = make_plan(found, room(size))
    except TooSmallError:
        assume(False)
    total = [math.prod(per_axis) for per_axis in zip(*made.strides, strict=True)]
    assert len(made.strides) == len(made.kernels) == len(made.features) == len(made.blocks) >= 2
    assert made.strides[0] == (1, 1, 1)
    assert made.kernels[-1] == (3, 3, 3)
    for patch, stride, median in zip(made.patch, total, made.median_shape, strict=True):
        assert patch % stride == 0
        assert patch < median + stride  # no more padding than the strides need
        assert stride == 1 or patch // stride >= SHORTEST
    for finer, coarser in zip(made.kernels, made.kernels[1:], strict=False):
        assert all(a <= b for a, b in zip(finer, coarser, strict=True))
    assert made.elements <= room(size).elements
    assert made.batch >= 2
    if made.batch > 2:
        assert made.elements * (made.batch - 0.5) <= 2 * room(size).elements
        assert (made.batch - 0.5) * math.prod(made.patch) <= 0.05 * math.prod(made.median_shape) * len(found.shapes)
    assert max(made.features) <= room(size).widest


@settings(deadline=None, max_examples=60)
@given(fingerprints(), sizes, st.sampled_from(list(permutations(range(3)))))
def test_the_order_of_the_axes_does_not_matter(found, size, order):
    """Axes that are alike in everything may change places, so columns are compared as a set."""

    def turned(numbers):
        return tuple(tuple(row[a] for a in order) for row in numbers)

    def columns(made):
        parts = (made.spacing, made.median_shape, made.patch, *made.strides, *made.kernels)
        return sorted(zip(*parts, strict=True)), made.batch, made.elements

    try:
        made = make_plan(found, room(size))
    except TooSmallError:
        assume(False)
    other = make_plan(Fingerprint(turned(found.spacings), turned(found.shapes)), room(size))
    assert columns(made) == columns(other)


@settings(deadline=None, max_examples=60)
@given(fingerprints())
def test_more_memory_never_gives_a_smaller_view(found):
    try:
        views = [math.prod(make_plan(found, Room(32, 320, (1, 3, 4, 6), n)).patch) for n in (1e8, 4e8, 1.6e9)]
    except TooSmallError:
        assume(False)
    assert views == sorted(views)
