"""`prevox finetune`: a labelled store, and an encoder or none, become a segmentation run."""

import json
from typing import Any

from prevox.config.models import UNETRConfig
from prevox.config.runs import FinetuneConfig
from prevox.console import console, warn
from prevox.data.splits import labelled_subset, split_images
from prevox.data.store import Store
from prevox.errors import DataError
from prevox.finetuning.network_io import describe_network
from prevox.finetuning.segmentation import build
from prevox.train.engine import Job
from prevox.verbs.pretrain import check_dimensions
from prevox.verbs.running import RunResult, train_run


def finetune(config: FinetuneConfig) -> RunResult:
    """Fine-tune a network for segmentation on a store's labelled training images.

    Args:
        config: Settings.

    Returns:
        The run folder and how the run ended.

    Raises:
        PrevoxError: If store, labels, pre-trained encoder or run folder do not fit.
    """
    store = Store(config.store)
    split = split_images(store.index, config.split)
    labelled = [image for image in split["train"] if store.has_label(image)]
    if not labelled:
        raise DataError(
            config.store,
            found="no labelled image among the training subjects",
            expected="at least one",
            remedy="Catalogue a layout with labels (MSD, nnU-Net raw, or images/ beside labels/) and prepare it again.",
        )
    images = labelled
    if config.labels is not None:
        images = labelled_subset(store.index, labelled, config.labels, config.label_seed)
    check_dimensions(store, images, config.views.size, config.store)
    values = sorted({int(value) for image in labelled for value in store.row(image)["label_values"]})
    built = build(
        config,
        channels=int(store.info["channels"]),
        class_names=store.info["class_names"] or {},
        label_values=values,
    )
    if built.transfer is not None:
        built.transfer.show()
    elif config.scratch:
        console.print(f"architecture and normalisation of {config.pretrained}; its weights are not used (--scratch)")
    seen = _seen_in_pretraining(config, split["validation"])
    if seen:
        warn(
            f"the pre-training run {config.pretrained} has learnt from {len(seen)} of the {len(split['validation'])} "
            "images held out here (without labels); listed in split.json as seen_in_pretraining"
        )
    job = Job(
        built.task, store, images, built.normalise, config.optim, config.schedule, config.train, config.decoder_first
    )
    files = {
        "network.json": describe_network(built.task, built.normalise, store.info["prepare"], store.info["spacing"]),
        "classes.json": {name: list(values) for name, values in built.task.scheme.classes.items()},
        "transfer.json": built.transfer.plain() if built.transfer else None,
    }
    resolved: dict[str, Any] = {"layer_decay": built.task.layer_decay}  # config.yaml holds what is used
    if config.decoder is None and built.task.spec.name == "vit":
        resolved["decoder"] = UNETRConfig()
    config = config.model_copy(update=resolved)
    return train_run("finetune", config, job, {**split, "train": images, "seen_in_pretraining": seen}, files)


def _seen_in_pretraining(config: FinetuneConfig, held_out: list[str]) -> list[str]:
    """Held-out images that the pre-training run trained on, where its weights are used and it says so."""
    if config.pretrained is None or config.scratch:
        return []
    folders = (config.pretrained, *config.pretrained.absolute().parents[:2])  # the run, or a checkpoint within it
    path = next((folder / "split.json" for folder in folders if (folder / "split.json").is_file()), None)
    used = set(json.loads(path.read_text())["train"]) if path else set()
    return sorted(used & set(held_out))
