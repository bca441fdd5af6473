"""Every backbone by name. Torch-free: paths are imported only when the network is built."""

import difflib
from typing import Any, NamedTuple

from prevox.errors import ConfigError


class ModelEntry(NamedTuple):
    """Where a backbone lives."""

    config: str  # "module:Class", its settings; must not import torch
    network: str  # "module:Class", built with the plain keywords of its ModelSpec
    summary: str


MODELS: dict[str, ModelEntry] = {
    "vit": ModelEntry("prevox.config.models:ViTConfig", "prevox.models.vit:ViT", "vision transformer, 3D or 2D"),
    "resenc": ModelEntry(
        "prevox.config.models:ResEncConfig",
        "prevox.models.resenc.network:ResEncUNet",
        "residual encoder U-Net of nnU-Net, 3D or 2D",
    ),
}


def model_entry(name: str) -> ModelEntry:
    """Look a backbone up.

    Raises:
        ConfigError: If it is not registered; the known ones are listed.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"model '{name}': not known.{hint} Known models: {', '.join(MODELS)}.")
    return MODELS[name]


def build_model(name: str, settings: dict[str, Any]) -> Any:
    """Build the network that a `ModelSpec` describes."""
    from prevox.methods.registry import resolve

    return resolve(model_entry(name).network)(**settings)
