"""Every pre-training method by name. Torch-free: paths are imported only when the method is used.

To add a method: one folder beside `mae`, one line here, one recipe, one docs page; the contract tests find it here.
"""

import difflib
from importlib import import_module
from typing import Any, NamedTuple

from prevox.errors import ConfigError


class MethodEntry(NamedTuple):
    """Where a method lives."""

    config: str  # "module:Class", its settings; must not import torch
    build: str  # "module:function", (settings, model settings, views, channels) -> PretrainMethod
    summary: str


METHODS: dict[str, MethodEntry] = {
    "mae": MethodEntry(
        "prevox.methods.mae.config:MAEConfig",
        "prevox.methods.mae.method:build",
        "masked autoencoder (SelfMedMAE; MAE3D by settings)",
    ),
    "s3d": MethodEntry(
        "prevox.methods.s3d.config:S3DConfig",
        "prevox.methods.s3d.method:build",
        "sparse masked autoencoder for the residual encoder U-Net (S3D)",
    ),
    "glmae": MethodEntry(
        "prevox.methods.glmae.config:GLMAEConfig",
        "prevox.methods.glmae.method:build",
        "global-local masked autoencoder with a momentum encoder (GL-MAE)",
    ),
}


def resolve(path: str) -> Any:
    """Import what `module:name` points to."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def method_entry(name: str) -> MethodEntry:
    """Look a method up.

    Raises:
        ConfigError: If it is not registered; the known ones are listed.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"method '{name}': not known.{hint} Known methods: {', '.join(METHODS)}.")
    return METHODS[name]
