"""network.json of a fine-tuning run: all that is needed to rebuild the network and to use it on new images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from prevox.config.data import NormaliseConfig
from prevox.config.models import UNETRConfig
from prevox.data.place import PrepareSettings
from prevox.errors import RunError
from prevox.finetuning.labels import LabelScheme
from prevox.finetuning.networks import Network, build_network, describe_decoder
from prevox.finetuning.segmentation import Segmentation
from prevox.models.adapt import checkpoint_file
from prevox.task import ModelSpec

SCHEMA = 1
FILE = "network.json"
PREFIX = "network."  # of the network's weights in the task's state


@dataclass(frozen=True)
class LoadedNetwork:
    """A fine-tuned network and how its input must look.

    Attributes:
        network: In evaluation mode, on the CPU.
        scheme: What the outputs mean.
        channels: Channels of the images.
        size: Voxels of the window that it was trained on, z y x (2D: y x).
        normalise: Intensity normalisation.
        prepare: Grid of the training images: spacing, crop, spline order.
        run: The run folder.
        checkpoint: The file that the weights are from.
    """

    network: Network
    scheme: LabelScheme
    channels: int
    size: tuple[int, ...]
    normalise: NormaliseConfig
    prepare: PrepareSettings
    run: Path
    checkpoint: Path


def describe_network(
    task: Segmentation, normalise: NormaliseConfig, prepare: dict[str, Any], spacing: list[float] | None
) -> dict[str, Any]:
    """The JSON-able content of network.json.

    Args:
        task: What is trained.
        normalise: Intensity normalisation of its images.
        prepare: `prepare` of the store's store.json.
        spacing: `spacing` of the same: the target in mm along z y x, None for each image's own.
    """
    return {
        "schema": SCHEMA,
        "encoder": {"name": task.spec.name, "settings": task.spec.settings},
        "decoder": describe_decoder(task.network),
        "channels": task.spec.settings["channels"],
        "classes": {name: list(values) for name, values in task.scheme.classes.items()},
        "overlapping": task.scheme.overlapping,
        "size": list(task.views["view"].size),
        "normalise": normalise.plain(),
        "prepare": PrepareSettings.from_info({"prepare": prepare, "spacing": spacing}).plain(),
    }


def load_network(path: Path) -> LoadedNetwork:
    """Rebuild a fine-tuned network. Nothing is unpickled.

    Args:
        path: Run folder (its newest checkpoint is taken), or one checkpoint folder of it.

    Raises:
        RunError: If this is no fine-tuning run, has no checkpoint, or its files are damaged.
    """
    file = checkpoint_file(path, "task.safetensors").absolute()
    run = next((folder for folder in file.parents[:3] if (folder / FILE).is_file()), None)
    if run is None:
        raise RunError(f"{path}: has no {FILE}, so it is no fine-tuning run. Give a run of `prevox finetune`.")
    try:
        content = json.loads((run / FILE).read_text())
        schema = content["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run / FILE}: cannot be read ({type(error).__name__}: {error}). Fine-tune again.") from None
    if schema != SCHEMA:
        raise RunError(f"{run / FILE}: has schema {schema}; this Prevox reads {SCHEMA}. Update Prevox.")
    classes = {name: tuple(values) for name, values in content["classes"].items()}
    scheme = LabelScheme(classes, content["overlapping"])
    decoder = UNETRConfig.parse(content["decoder"]) if content["decoder"]["name"] == "unetr" else None
    network = build_network(ModelSpec(**content["encoder"]), decoder, content["channels"], scheme.outputs)
    try:
        state = {name.removeprefix(PREFIX): t for name, t in load_file(file).items() if name.startswith(PREFIX)}
        network.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{file}: does not hold the weights of {run / FILE} ({reason}). Fine-tune again.") from None
    spacing = content["prepare"]["spacing"]
    return LoadedNetwork(
        network.eval(),
        scheme,
        content["channels"],
        tuple(content["size"]),
        NormaliseConfig.parse(content["normalise"], f"{run / FILE}: normalise"),
        PrepareSettings.from_info({"prepare": content["prepare"], "spacing": spacing}),
        run,
        file,
    )
