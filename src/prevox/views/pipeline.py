"""The augmentation of one group of views: flip, quarter turn, affine, then intensity."""

from typing import Protocol

from torch import Generator, Tensor

from prevox.config.data import AugmentConfig
from prevox.task import Views
from prevox.views.intensity import Gamma, IntensityScale, IntensityShift, Noise
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
    """The transforms of the settings, in the order in which they are applied."""
    return [
        Flip(settings.flip),
        Rotate90(settings.rotate90),
        Affine(settings.affine, rotation=settings.rotation, scaling=settings.scaling),
        IntensityScale(settings.intensity_scale),
        IntensityShift(settings.intensity_shift),
        Noise(settings.noise),
        Gamma(settings.gamma),
    ]


def augment(views: Views, settings: AugmentConfig | None, generator: Generator) -> Views:
    """Augment a group of views; labels and validity follow, padding stays 0 and invalid.

    Args:
        views: Normalised views on any device; 3D or 2D.
        settings: Probabilities and ranges; None returns the views untouched.
        generator: CPU generator, the only source of randomness. Switching one transform off does not change what the
            others draw.

    Returns:
        New views with the parameters of every transform in `transforms`, by its name.
    """
    if settings is None:
        return views
    x, label, valid = views.x_BCDHW, views.label_B1DHW, views.valid_B1DHW
    drawn: dict[str, Params] = {}
    for transform in build(settings):
        drawn[transform.name] = transform.sample_params(len(x), tuple(x.shape[2:]), generator)
        x, label, valid = transform.apply(x, label, valid, drawn[transform.name])
    return Views(x, valid, label, views.box_B23, {**views.transforms, **drawn})
