import pytest
import torch

from prevox.config.data import AugmentConfig
from prevox.task import Views
from prevox.views.pipeline import augment, branch, build, build_channelwise

pytestmark = pytest.mark.unit

EVERYTHING = AugmentConfig(
    flip=0.5,
    rotate90=0.5,
    affine=0.5,
    rotation=30,
    intensity_scale=0.5,
    intensity_shift=0.5,
    noise=0.5,
    gamma=0.5,
    blur=0.5,
    brightness=0.5,
    contrast=0.5,
    low_resolution=0.5,
    gamma_inverted=0.5,
    gamma_retained=0.5,
)


def make(size=(6, 6, 5), views=6, channels=2) -> Views:
    generator = torch.Generator().manual_seed(7)
    valid = torch.ones(views, 1, *size, dtype=torch.bool)
    valid[..., -1] = False
    label = torch.randint(0, 4, (views, 1, *size), generator=generator) * valid
    x = torch.randn(views, channels, *size, generator=generator) * valid
    return Views(x, valid, label, torch.zeros(views, 2, 3, dtype=torch.long))


def run(views: Views, settings: AugmentConfig | None = EVERYTHING, seed: int = 0) -> Views:
    return augment(views, settings, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(6, 6, 5), (7, 5)])
def test_same_seed_same_result_and_other_seed_another(size):
    first, second, other = run(make(size)), run(make(size)), run(make(size), seed=1)
    assert torch.equal(first.x_BCDHW, second.x_BCDHW)
    assert torch.equal(first.label_B1DHW, second.label_B1DHW)
    assert torch.equal(first.valid_B1DHW, second.valid_B1DHW)
    assert not torch.equal(first.x_BCDHW, other.x_BCDHW)


@pytest.mark.parametrize("settings", [None, AugmentConfig()])
def test_nothing_asked_for_returns_the_same_tensors(settings):
    views = make()
    result = run(views, settings)
    assert result.x_BCDHW is views.x_BCDHW
    assert result.label_B1DHW is views.label_B1DHW
    assert result.valid_B1DHW is views.valid_B1DHW


def test_inputs_are_not_changed_in_place():
    views, untouched = make(), make()
    run(views)
    assert torch.equal(views.x_BCDHW, untouched.x_BCDHW)
    assert torch.equal(views.label_B1DHW, untouched.label_B1DHW)


@pytest.mark.parametrize("seed", range(5))
def test_padding_stays_invalid_and_zero(seed):
    result = run(make(), seed=seed)
    padding = ~result.valid_B1DHW
    assert padding.any()
    assert (result.x_BCDHW[padding.expand_as(result.x_BCDHW)] == 0).all()
    assert (result.label_B1DHW[padding] == 0).all()
    assert result.x_BCDHW.isfinite().all()
    assert result.label_B1DHW.dtype == torch.int64


def test_each_view_depends_on_its_own_parameters_and_voxels_only():
    views = make()
    together = run(views)
    generator = torch.Generator().manual_seed(0)
    aside = branch(generator)
    transforms = [*build(EVERYTHING), *build_channelwise(EVERYTHING, 2)]
    params = [t.sample_params(6, (6, 6, 5), generator) for t in transforms[:7]]
    params += [t.sample_params(6, (6, 6, 5), aside) for t in transforms[7:]]
    for view in range(6):
        one = slice(view, view + 1)
        x, label, valid = views.x_BCDHW[one], views.label_B1DHW[one], views.valid_B1DHW[one]
        for transform, drawn in zip(transforms, params, strict=True):
            x, label, valid = transform.apply(x, label, valid, {name: value[one] for name, value in drawn.items()})
        torch.testing.assert_close(x, together.x_BCDHW[one], atol=1e-5, rtol=1e-5)
        assert torch.equal(label, together.label_B1DHW[one])
        assert torch.equal(valid, together.valid_B1DHW[one])


def test_switching_one_transform_off_does_not_change_what_the_others_draw():
    without = EVERYTHING.model_copy(update={"flip": 0.0, "affine": 0.0, "blur": 0.0})
    full, less = run(make()).transforms, run(make(), without).transforms
    assert torch.equal(full["low_resolution"]["zoom"], less["low_resolution"]["zoom"])
    assert torch.equal(full["gamma"]["exponent"], less["gamma"]["exponent"])
    assert torch.equal(full["rotate90"]["turns"], less["rotate90"]["turns"])
    assert not less["flip"]["axes"].any()


def test_parameters_are_reported_with_one_row_per_view():
    transforms = run(make()).transforms
    names = ["flip", "rotate90", "affine", "intensity_scale", "intensity_shift", "noise", "gamma"]
    names += ["blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma_retained"]
    assert list(transforms) == names
    assert all(len(value) == 6 for params in transforms.values() for value in params.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_transforms_of_channels_take_nothing_from_the_generator(channels):
    # Masks, and the next group's views, are drawn from it: they must not depend on channels, nor change when such a
    # transform is added.
    generator, alone = (torch.Generator().manual_seed(2) for _ in range(2))
    drawn = augment(make(channels=channels), EVERYTHING, generator).transforms
    for transform in build(EVERYTHING):
        for name, values in transform.sample_params(6, (6, 6, 5), alone).items():
            assert torch.equal(drawn[transform.name][name], values)
    assert torch.equal(generator.get_state(), alone.get_state())


def test_a_branch_depends_on_where_the_generator_stands():
    generator = torch.Generator().manual_seed(0)
    first, same = (torch.rand(4, generator=branch(generator)) for _ in range(2))
    coming = torch.rand(4, generator=generator)
    second = torch.rand(4, generator=branch(generator))
    assert torch.equal(first, same)
    assert not torch.equal(first, second)
    assert not torch.equal(first, coming)


NAMES = ["affine", "intensity_scale", "noise", "blur", "brightness", "contrast", "low_resolution"]
NAMES += ["gamma", "gamma_inverted", "gamma_retained"]


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_switches_its_own_transform_on(name):
    result = run(make(), AugmentConfig(**{name: 1.0}))
    on = [other for other, params in result.transforms.items() if params.get("applied", torch.zeros(1)).any()]
    assert on == [name]
    assert not torch.equal(result.x_BCDHW, make().x_BCDHW)


def test_in_plane_reaches_both_transforms_that_know_it():
    views = make(size=(5, 8, 8))
    views.valid_B1DHW[:] = True
    views.x_BCDHW[:] = torch.arange(1.0, 6).view(5, 1, 1)  # each plane has a value of its own
    for settings in (AugmentConfig(affine=1, rotation=180), AugmentConfig(low_resolution=1)):
        mixed = run(views, settings)
        assert not torch.allclose(mixed.x_BCDHW, views.x_BCDHW * mixed.valid_B1DHW, atol=0.1)
        apart = run(views, settings.model_copy(update={"in_plane": True}))
        torch.testing.assert_close(apart.x_BCDHW, views.x_BCDHW * apart.valid_B1DHW)


@pytest.mark.parametrize(("changes", "padded"), [({"affine": 0.0}, False), ({"affine": 1.0}, True)])
def test_views_are_known_to_be_whole_unless_a_resampling_may_have_cut_them(changes, padded):
    whole = make()
    whole.valid_B1DHW, whole.padded = torch.ones_like(whole.valid_B1DHW), False
    result = run(whole, EVERYTHING.model_copy(update=changes))
    assert result.padded == padded
    assert result.valid_B1DHW.all() != padded
    assert run(make(), EVERYTHING.model_copy(update=changes)).padded
