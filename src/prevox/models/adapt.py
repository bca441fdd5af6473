"""Weight transfer: read what pre-training handed over and fit it to the network that fine-tuning builds.

Shape suffixes: D width, P voxels of a patch, C channels.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prevox.config.base import read_yaml
from prevox.console import console
from prevox.errors import ConfigError, RunError
from prevox.models.positions import interpolate
from prevox.models.registry import build_model
from prevox.task import ModelSpec

WEIGHTS = "pretrained.safetensors"
# settings that weights cannot be fitted to
FIXED = ("patch", "width", "depth", "heads", "mlp_ratio", "features", "blocks", "strides", "kernels", "decoder_convs")
STEM = "encoder.stem.convs.0.conv.weight"  # of a U-Net, (outputs, channels, *kernel)


@dataclass(frozen=True)
class TransferReport:
    """What became of each weight.

    Attributes:
        loaded: Taken over unchanged.
        adapted: Name to what was done.
        missing: In the new network only; they keep their initial values.
        unexpected: In the file only; not used.
    """

    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Print one line for each kind."""
        adapted = "; ".join(f"{name}: {what}" for name, what in self.adapted.items())
        table = Table(title="Weight transfer", title_justify="left")
        for column in ("weights", "tensors", "names"):
            table.add_column(column, overflow="fold")
        table.add_row("loaded", str(len(self.loaded)), escape(_shortened(self.loaded)))
        table.add_row("adapted", str(len(self.adapted)), escape(adapted))
        table.add_row("missing (start anew)", str(len(self.missing)), escape(_shortened(self.missing)))
        table.add_row("unexpected (not used)", str(len(self.unexpected)), escape(_shortened(self.unexpected)))
        console.print(table)

    def plain(self) -> dict[str, Any]:
        """JSON-able, for transfer.json."""
        return {
            "loaded": self.loaded,
            "adapted": self.adapted,
            "missing": self.missing,
            "unexpected": self.unexpected,
        }


def _shortened(names: Iterable[str]) -> str:
    """Names with the number of a block replaced, each once: `blocks.*.qkv.weight`."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))


def adapt(weights: dict[str, Tensor], source: ModelSpec, target: ModelSpec) -> tuple[dict[str, Tensor], TransferReport]:
    """Fit weights of a network to another of its kind.

    Vision transformers may differ in grid, channels, class token and final norm; positions are interpolated to the new
    grid. U-Nets may differ in channels. A patch embedding or stem of one channel is repeated for each of C channels and
    divided by C, so that C equal channels give the old response; one of C channels is summed to serve a single one.

    Args:
        weights: State dict of the network that `source` describes.
        source: Network that the weights are from.
        target: Network that they are for.

    Returns:
        Weights to load into the new network with strict=False, and the report.

    Raises:
        ConfigError: If the networks differ in kind, or in a setting that weights cannot be fitted to.
    """
    _refuse_misfit(source, target)
    with torch.device("meta"):  # names and shapes only
        wanted = {name: tensor.shape for name, tensor in build_model(target.name, target.settings).state_dict().items()}
    result: dict[str, Tensor] = {}
    report = TransferReport(missing=[n for n in wanted if n not in weights])
    for name, tensor in weights.items():
        if name not in wanted:
            report.unexpected.append(name)
            continue
        fitted, what = _fit(name, tensor, source.settings, target.settings)
        if fitted.shape != wanted[name]:
            raise ConfigError(
                f"pretrained weights: '{name}' has shape {tuple(tensor.shape)}; the network to fine-tune needs "
                f"{tuple(wanted[name])}. The file does not hold what its own description says; pre-train again."
            )
        result[name] = fitted
        if what:
            report.adapted[name] = what
        else:
            report.loaded.append(name)
    return result, report


def _refuse_misfit(source: ModelSpec, target: ModelSpec) -> None:
    if source.name != target.name:
        raise ConfigError(
            f"model: the pre-trained network is '{source.name}' and the one to fine-tune is '{target.name}'. "
            "Use the same backbone in both."
        )
    for key in FIXED:
        old, new = (_plain(spec.settings.get(key)) for spec in (source, target))
        if old is not None and new is not None and old != new:
            raise ConfigError(
                f"{key}: the pre-trained network has {old} and the one to fine-tune has {new}; weights cannot be "
                f"fitted across that. Fine-tune with {key} {old}, or pre-train with {key} {new}."
            )
    old_channels, new_channels = source.settings["channels"], target.settings["channels"]
    if old_channels != new_channels and 1 not in (old_channels, new_channels):
        raise ConfigError(
            f"channels: the pre-trained network has {old_channels} and the images to fine-tune on have {new_channels}; "
            "only 1 → C (repeated) and C → 1 (summed) are defined. Prepare a store with the same channels."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _fit(name: str, tensor: Tensor, old: dict[str, Any], new: dict[str, Any]) -> tuple[Tensor, str]:
    """One tensor for the new network, and what was done to it (empty: nothing)."""
    if name == "positions" and list(old["grid"]) != list(new["grid"]):
        what = f"interpolated from grid {list(old['grid'])} to {list(new['grid'])}"
        return interpolate(tensor, old["grid"], new["grid"]), what
    if name == "patch_embed.weight" and old["channels"] != new["channels"]:
        # A patch is flattened voxel by voxel, the channels of a voxel side by side.
        weight_DPC = tensor.view(tensor.shape[0], math.prod(old["patch"]), old["channels"])
        if old["channels"] == 1:
            weight_DPC = weight_DPC.expand(-1, -1, new["channels"]) / new["channels"]
            return weight_DPC.flatten(1), f"repeated for {new['channels']} channels and divided by their number"
        return weight_DPC.sum(2), f"summed over {old['channels']} channels"
    if name == STEM and old["channels"] != new["channels"]:
        if old["channels"] == 1:
            repeated = tensor.expand(-1, new["channels"], *tensor.shape[2:]) / new["channels"]
            return repeated, f"repeated for {new['channels']} channels and divided by their number"
        return tensor.sum(1, keepdim=True), f"summed over {old['channels']} channels"
    return tensor, ""


def read_pretrained(path: Path) -> tuple[dict[str, Tensor], ModelSpec, dict[str, Any]]:
    """Read the encoder that a pre-training run handed over. Nothing is unpickled.

    Args:
        path: Run folder (its newest checkpoint), one checkpoint folder, or the .safetensors file itself.

    Returns:
        Weights, what network they belong to, and the file's other metadata (`normalise`, `prevox`, ...).

    Raises:
        RunError: If there is no such file, or it is not one that Prevox wrote.
    """
    file = checkpoint_file(path, WEIGHTS)
    remedy = f"Give a folder written by `prevox pretrain`, or its {WEIGHTS}."
    try:
        with safe_open(file, framework="pt") as content:
            metadata = {key: _from_json(value) for key, value in (content.metadata() or {}).items()}
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{file}: not a readable safetensors file ({error}). {remedy}") from None
    spec = metadata.pop("spec", None)
    if not isinstance(spec, dict) or not {"name", "settings"} <= spec.keys():
        raise RunError(f"{file}: does not say which network its weights belong to (no 'spec' in its header). {remedy}")
    return weights, ModelSpec(spec["name"], spec["settings"]), metadata


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a foreign entry


def checkpoint_file(path: Path, name: str) -> Path:
    """Find a file of a checkpoint.

    Args:
        path: Run folder (its newest checkpoint that has the file), checkpoint folder, or the file.
        name: Name of the file within the checkpoint.

    Raises:
        RunError: If there is none; what was looked for and what is there instead is named.
    """
    if path.is_file():
        return path
    if (path / name).is_file():
        return path / name
    steps = {int(match[1]): folder for folder in path.glob("checkpoints/step_*") if (match := _STEP.match(folder.name))}
    for step in sorted(steps, reverse=True):
        if (steps[step] / name).is_file():
            return steps[step] / name
    wanted = "prevox pretrain" if name == WEIGHTS else "prevox finetune"
    found = "does not exist" if not path.exists() else f"has neither {name} nor checkpoints/step_*/{name}"
    if (path / "config.yaml").is_file():
        found += f"; it is a run of `prevox {read_yaml(path / 'config.yaml').get('verb')}`"
    raise RunError(f"{path}: {found}. Give a run folder of `{wanted}` with at least one checkpoint.")


_STEP = re.compile(r"step_(\d+)$")
