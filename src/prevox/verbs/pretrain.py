"""`prevox pretrain`: a method, a backbone and a store become a run."""

import torch

from prevox.config.runs import PretrainConfig
from prevox.data.splits import split_images
from prevox.data.store import Store
from prevox.errors import DataError
from prevox.methods.registry import method_entry, resolve
from prevox.task import PretrainMethod
from prevox.train.engine import Job
from prevox.train.probe import Probe
from prevox.verbs.running import RunResult, train_run

PROBE_FILE = "probe.json"  # of the run folder


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
        probe=build_probe(config, store),
    )
    used = {**split, "train": images} if config.use == "all" else split
    files = {} if job.probe is None else {PROBE_FILE: job.probe.described()}
    return train_run("pretrain", config, job, used, files)


def build_method(config: PretrainConfig, channels: int) -> PretrainMethod:
    """Build the registered method that the settings name; its initial weights are a function of `train.seed`."""
    name = config.method.name  # type: ignore[attr-defined]
    build = resolve(method_entry(name).build)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        method: PretrainMethod = build(config.method, config.model, config.views, channels)
    return method


def build_probe(config: PretrainConfig, trained: Store) -> Probe | None:
    """Build the probe on the training subjects of its store, or none where no store is named.

    Raises:
        DataError: If its images could not have been trained on: other channels, spacing or dimension; or if they have
            no labels, or those of a single subject.
        RunError: If the run goes on and was probed otherwise before.
    """
    where = config.probe.store
    if where is None:
        return None
    store = Store(where)
    for key, option in (("channels", "the same channels"), ("spacing", "the same prepare --spacing")):
        found, expected = store.info[key], trained.info[key]
        if found != expected:
            raise DataError(
                where,
                found=f"{key} {found} in the probe's store",
                expected=f"{expected}, as in {config.store}",
                remedy=f"Prepare the labelled images with {option}, or leave the probe out.",
            )
    images = split_images(store.index, config.split)["train"]
    check_dimensions(store, images, config.views.size, where)
    probe = Probe(store, images, config.views.size, config.normalise, config.probe, config.train.seed)
    if config.resume:
        probe.check_same(config.out / PROBE_FILE)
    return probe


def check_dimensions(store: Store, images: list[str], size: tuple[int, ...], where: str) -> None:
    """Refuse three-dimensional views of images that are single slices."""
    flat = [image for image in images if store.shape(image)[0] == 1]
    if len(size) == 3 and flat and size[0] > 1:
        raise DataError(
            where,
            found=f"{len(flat)} two-dimensional images ({flat[0]}, for example) and three-dimensional views {size}",
            expected="views of two numbers",
            remedy="Set --views.size Y X and a two-number --model.patch.",
        )
