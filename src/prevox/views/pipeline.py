"""The augmentation of one group of views: flip, quarter turn, affine, then intensity and resolution."""

from typing import Protocol

import torch
from torch import Generator, Tensor

from prevox.config.data import AugmentConfig
from prevox.task import Views
from prevox.views.channelwise import Brightness, Contrast, GammaRetained
from prevox.views.intensity import Gamma, IntensityScale, IntensityShift, Noise
from prevox.views.resolution import Blur, LowResolution
from prevox.views.spatial import Affine, Flip, Params, Rotate90, Triple


class Transform(Protocol):
    """Randomness apart from effect."""

    @property
    def name(self) -> str:
        """Key of the parameters in `Views.transforms`."""

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw parameters, one row per view, on the CPU; the number of draws does not depend on what they say."""

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Apply drawn parameters; inputs are not changed in place."""


def build(settings: AugmentConfig) -> list[Transform]:
    """The transforms of whole views, in the order in which they are applied."""
    return [
        Flip(settings.flip),
        Rotate90(settings.rotate90),
        Affine(settings.affine, settings.rotation, settings.scaling, settings.in_plane),
        IntensityScale(settings.intensity_scale),
        IntensityShift(settings.intensity_shift),
        Noise(settings.noise),
        Gamma(settings.gamma),
    ]


def build_channelwise(settings: AugmentConfig, channels: int) -> list[Transform]:
    """The transforms of single channels, in the order in which they are applied, after those of whole views."""
    return [
        Blur(settings.blur, channels),
        Brightness(settings.brightness, channels),
        Contrast(settings.contrast, channels),
        LowResolution(settings.low_resolution, channels, in_plane=settings.in_plane),
        GammaRetained(settings.gamma_inverted, channels, inverted=True),
        GammaRetained(settings.gamma_retained, channels),
    ]


def augment(views: Views, settings: AugmentConfig | None, generator: Generator) -> Views:
    """Augment a group of views; labels and validity follow, padding stays 0 and invalid.

    Args:
        views: Normalised views on any device; 3D or 2D.
        settings: Probabilities and ranges; None returns the views untouched.
        generator: CPU generator, the only source of randomness. Switching one transform off does not change what the
            others draw, nor what is drawn from `generator` afterwards.

    Returns:
        New views with the parameters of every transform in `transforms`, by its name.
    """
    if settings is None:
        return views
    x, label, valid = views.x_BCDHW, views.label_B1DHW, views.valid_B1DHW
    sources = [(transform, generator) for transform in build(settings)]
    aside = branch(generator)
    sources += [(transform, aside) for transform in build_channelwise(settings, x.shape[1])]
    drawn: dict[str, Params] = {}
    for transform, source in sources:
        drawn[transform.name] = transform.sample_params(len(x), tuple(x.shape[2:]), source)
        x, label, valid = transform.apply(x, label, valid, drawn[transform.name])
    padded = views.padded or bool(drawn[Affine.name]["applied"].any())
    return Views(x, valid, label, views.box_B23, {**views.transforms, **drawn}, padded)


def branch(generator: Generator) -> Generator:
    """Make a generator that is seeded with the next number of `generator`, which itself stays where it is.

    The number of draws of single channels depends on how many there are. Drawn aside, they leave everything that comes
    after them (the next group's views, masks) as it is, and transforms can be added without changing earlier runs.
    """
    ahead = torch.Generator()
    ahead.set_state(generator.get_state())
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=ahead)))
