"""A tiny GL-MAE in 2D, batches for it, and one step of it."""

from typing import Any

import torch

from prevox.config.data import ViewsConfig
from prevox.config.models import ViTConfig
from prevox.methods.glmae.config import GLMAEConfig
from prevox.methods.glmae.method import GlobalLocalAutoencoder, build
from prevox.task import Batch, StepContext, StepOutput, ViewGroup, Views

TERMS = ("local_reconstruction", "global_reconstruction", "global_consistency", "local_consistency")
TINY = {
    "global_size": (24, 16),
    "local_count": 3,
    "head_hidden": 24,
    "head_outputs": 16,
    "decoder_width": 24,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
IMAGES = 4


def tiny(
    channels: int = 1, drop_path: float = 0.0, positions: Any = "sincos", **changes: Any
) -> GlobalLocalAutoencoder:
    torch.manual_seed(0)
    model = ViTConfig(size="T", patch=(4, 4), depth=1, drop_path=drop_path, positions=positions)
    method = build(GLMAEConfig.parse({**TINY, **changes}), model, ViewsConfig(size=(8, 12)), channels)
    with torch.no_grad():  # outputs that differ enough for temperatures to matter
        for head in (method.head, method.teacher and method.teacher.head):
            for parameter in head.parameters() if head is not None else ():
                parameter.mul_(4)
    return method


def views_of(group: ViewGroup, images: int, channels: int, seed: int) -> Views:
    n = images * group.count
    x = torch.randn(n, channels, *group.size, generator=torch.Generator().manual_seed(seed))
    return Views(x, torch.ones(n, 1, *group.size, dtype=torch.bool), None, torch.zeros(n, 2, 3, dtype=torch.int64))


def make_batch(groups: dict[str, ViewGroup], images: int = IMAGES, channels: int = 1, seed: int = 0) -> Batch:
    views = {kind: views_of(group, images, channels, seed + len(kind)) for kind, group in groups.items()}
    return Batch(views, [f"image_{i}" for i in range(images)], torch.arange(images))


def rows(batch: Batch, images: slice) -> Batch:
    """The part of a batch that one device gets."""
    parts = {}
    for kind, v in batch.views.items():
        count = len(v.x_BCDHW) // len(batch.images)
        part = slice(images.start * count, images.stop * count)
        parts[kind] = Views(v.x_BCDHW[part], v.valid_B1DHW[part], None, v.box_B23[part])
    return Batch(parts, batch.images[images], batch.samples[images])


def context(seed: int = 0, pictures: bool = False) -> StepContext:
    return StepContext(torch.Generator().manual_seed(seed), want_pictures=pictures)


def step(method: GlobalLocalAutoencoder, batch: Batch | None = None, seed: int = 0) -> StepOutput:
    return method(batch or make_batch(method.views), context(seed))
