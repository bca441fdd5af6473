"""`prevox pretrain`: a method, a backbone and a store become a run."""

from pathlib import Path

import torch

from prevox.config.runs import PretrainConfig
from prevox.data.splits import split_images
from prevox.data.store import Store
from prevox.errors import DataError
from prevox.methods.registry import method_entry, resolve
from prevox.task import PretrainMethod
from prevox.train.engine import Job
from prevox.verbs.running import RunResult, train_run


def pretrain(config: PretrainConfig) -> RunResult:
    """Pre-train an encoder on the images of a store, without looking at labels.

    Args:
        config: Settings; `method` and `model` are those of the registered names they carry.

    Returns:
        The run folder and how the run ended.

    Raises:
        PrevoxError: If store, settings or run folder do not fit.
    """
    store = Store(config.store)
    split = split_images(store.index, config.split)
    images = sorted(store.index.index) if config.use == "all" else split["train"]
    check_dimensions(store, images, config.views.size, config.store)
    method = build_method(config, channels=int(store.info["channels"]))
    job = Job(
        method,
        store,
        images,
        config.normalise,
        config.optim,
        config.schedule,
        config.train,
        handed={
            "normalise": config.normalise.plain(),
            "prepare": store.info["prepare"],
            "spacing": store.info["spacing"],
            "size": list(config.views.size),
            "channels": int(store.info["channels"]),
        },
    )
    used = {**split, "train": images} if config.use == "all" else split
    return train_run("pretrain", config, job, used)


def build_method(config: PretrainConfig, channels: int) -> PretrainMethod:
    """Build the registered method that the settings name; its initial weights are a function of `train.seed`."""
    name = config.method.name  # type: ignore[attr-defined]
    build = resolve(method_entry(name).build)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        method: PretrainMethod = build(config.method, config.model, config.views, channels)
    return method


def check_dimensions(store: Store, images: list[str], size: tuple[int, ...], where: Path) -> None:
    """Refuse three-dimensional views of images that are single slices."""
    flat = [image for image in images if store.shape(image)[0] == 1]
    if len(size) == 3 and flat and size[0] > 1:
        raise DataError(
            where,
            found=f"{len(flat)} two-dimensional images ({flat[0]}, for example) and three-dimensional views {size}",
            expected="views of two numbers",
            remedy="Set --views.size Y X and a two-number --model.patch.",
        )
