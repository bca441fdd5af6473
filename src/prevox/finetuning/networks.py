"""The network that fine-tuning trains: a UNETR on a vision transformer, or a residual encoder U-Net as it is.

Each has `encoder`, `depth`, `layer_index(name)`, `parts()`, and a forward pass of views to logits.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prevox.config.models import ResEncConfig, UNETRConfig, ViTConfig
from prevox.config.runs import FinetuneConfig
from prevox.console import warn
from prevox.errors import ConfigError
from prevox.models.registry import build_model
from prevox.models.resenc.network import ResEncUNet
from prevox.models.resenc.settings import check_size, resenc_settings
from prevox.models.unetr import UNETR
from prevox.models.vit import vit_settings
from prevox.task import ModelSpec

Network = UNETR | ResEncUNet
HEADS = "decoder.seg_layers."  # of a U-Net: what they put out is the task's, never carried over
LAYER_DECAY = {"vit": 0.75, "resenc": 1.0}  # SelfMedMAE's; S3D and nnU-Net have none


def network_spec(config: FinetuneConfig, source: ModelSpec | None, channels: int, outputs: int) -> ModelSpec:
    """The network to fine-tune: the pre-trained one for these views, channels and outputs, or a new one.

    Of a vision transformer this is the encoder; of a U-Net all of it.

    Args:
        config: Settings of the verb.
        source: Pre-trained network; None from scratch.
        channels: Channels of the images.
        outputs: Channels of the result.

    Raises:
        ConfigError: If patch or strides do not divide the view, or a setting is for the other kind of network.
    """
    if source is None:
        assert isinstance(config.encoder, ViTConfig | ResEncConfig), "FinetuneConfig demands --pretrained or --encoder"
        name: str = config.encoder.name
    else:
        name = source.name
    if name == "vit":
        return _vit_spec(config, source, channels)
    if name != "resenc":
        raise ConfigError(f"pretrained: the run holds a '{name}'; fine-tuning knows 'vit' and 'resenc'.")
    if config.decoder is not None:
        raise ConfigError(
            "decoder: is the UNETR's, for vision transformers; a U-Net ('resenc') has its own. Leave it out, or take a "
            "recipe for U-Nets such as resenc-l in place of one for the UNETR."
        )
    if config.drop_path != FinetuneConfig.model_fields["drop_path"].default:
        warn("drop_path is ignored: a U-Net has none")
    if source is None:
        settings = resenc_settings(config.encoder, config.views.size, channels, outputs)  # type: ignore[arg-type]
    else:
        settings = {**source.settings, "channels": channels, "classes": outputs}
        check_size(config.views.size, settings["strides"])
    return ModelSpec("resenc", settings)


def _vit_spec(config: FinetuneConfig, source: ModelSpec | None, channels: int) -> ModelSpec:
    if config.deep_supervision:
        raise ConfigError("deep_supervision: a UNETR has one output. Leave it out, or fine-tune a U-Net ('resenc').")
    if config.transfer != "encoder":
        raise ConfigError(
            "transfer: pre-training a vision transformer makes no decoder that a UNETR could take over. Leave it out."
        )
    if source is None:
        encoder = config.encoder.model_copy(update={"drop_path": config.drop_path})  # type: ignore[union-attr]
        return ModelSpec("vit", vit_settings(encoder, config.views.size, channels))  # type: ignore[arg-type]
    like = ViTConfig(patch=tuple(source.settings["patch"]))
    fitting = vit_settings(like, config.views.size, channels)
    own = {"grid": fitting["grid"], "channels": channels, "drop_path": config.drop_path}
    return ModelSpec("vit", {**source.settings, **own})


def build_network(
    spec: ModelSpec, decoder: UNETRConfig | None, channels: int, outputs: int, deep_supervision: bool = False
) -> Network:
    """Build the network with new weights.

    Args:
        spec: From `network_spec`.
        decoder: Of a vision transformer; None for its defaults.
        channels: Channels of the images.
        outputs: Channels of the result.
        deep_supervision: Whether a U-Net gives an output at every resolution.
    """
    if spec.name == "vit":
        features = (decoder or UNETRConfig()).features
        return UNETR(build_model(spec.name, spec.settings), channels, outputs, features)
    assert (channels, outputs) == (spec.settings["channels"], spec.settings["classes"])
    network: ResEncUNet = build_model(spec.name, {**spec.settings, "deep_supervision": deep_supervision})
    if deep_supervision and len(network.decoder.seg_layers) > 1:
        network.decoder.seg_layers[0].requires_grad_(False)  # the coarsest of several has no weight in the loss
    return network


def transferred(weights: Mapping[str, Tensor], spec: ModelSpec, transfer: str) -> dict[str, Tensor]:
    """Those pre-trained weights that fine-tuning starts from.

    Args:
        weights: State dict that pre-training handed over.
        spec: Of the network to fine-tune.
        transfer: "encoder" or "encoder_decoder".

    Raises:
        ConfigError: If the decoder is asked for and there is none.
    """
    if spec.name == "vit":
        return dict(weights)
    left_out = HEADS if transfer == "encoder_decoder" else "decoder."
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(left_out)}
    if transfer == "encoder_decoder" and not any(name.startswith("decoder.") for name in kept):
        raise ConfigError("transfer: the pre-training run holds no decoder; found an encoder only. Give encoder.")
    return kept


def describe_decoder(network: Network) -> dict[str, Any]:
    """Of network.json."""
    return {"name": "unetr", "features": network.features} if isinstance(network, UNETR) else {"name": "resenc"}
