"""A pre-trained U-Net for nnU-Net v2: a checkpoint for `-pretrained_weights`, and plans with the same network.

nnU-Net (Isensee et al., "nnU-Net", Nature Methods 2021; package `nnunetv2`) takes pre-trained weights only where every
tensor of its network has the same name and shape. So the plans fix network, patch, spacing and normalisation to those
of the pre-training, and the checkpoint carries every name under which nnU-Net registers a tensor.
"""

import json
from pathlib import Path
from typing import Any

import torch

from prevox.config.data import NormaliseConfig
from prevox.config.tools import ExportConfig
from prevox.console import console
from prevox.errors import ConfigError, RunError
from prevox.models.adapt import adapt, read_pretrained
from prevox.models.resenc.aliases import to_nnunet
from prevox.output import replacing, writable_folder
from prevox.task import ModelSpec

PLANS, CHECKPOINT, CONFIGURATION = "prevoxPlans", "checkpoint_pretrained.pth", "3d_fullres"
# nnU-Net looks for preprocessed data under the name in the plans; it has no data set of this one, so it stops at once
UNNAMED = "DatasetXXX_Name"


def export(config: ExportConfig) -> Path:
    """Write checkpoint, plans and a note with the commands into `out`; the plans' path is given back.

    Raises:
        RunError: If the run has no pre-trained network, or the folder cannot be written.
        ConfigError: If nnU-Net has no such network, normalisation or spacing.
    """
    weights, spec, metadata = read_pretrained(config.run)
    if spec.name != "resenc" or len(spec.settings["strides"][0]) != 3:
        kind = spec.name if spec.name != "resenc" else "two-dimensional resenc"
        raise ConfigError(
            f"{config.run}: holds a '{kind}' network; nnU-Net takes a three-dimensional residual encoder U-Net. Export "
            "a run of --model.name resenc with three-dimensional views, such as one of --recipe s3d-resenc-l."
        )
    channels = config.channels or spec.settings["channels"]
    target = ModelSpec("resenc", {**spec.settings, "channels": channels})
    fitted, report = adapt(weights, spec, target)
    if report.missing:
        raise RunError(
            f"{config.run}: lacks {len(report.missing)} tensors of its network ({report.missing[0]}, for example), "
            "which nnU-Net would refuse. Export the run folder that `prevox pretrain` wrote."
        )
    normalise = NormaliseConfig.parse(metadata.get("normalise", {}), f"{config.run}: normalise")
    plans = plans_of(target.settings, channels, metadata, normalise, config)
    out = writable_folder(config.out)
    named = {name: tensor.contiguous() for name, tensor in fitted.items()}
    with replacing(out / CHECKPOINT) as partial:
        torch.save({"network_weights": to_nnunet(named)}, partial)
    with replacing(out / f"{PLANS}.json") as partial:
        partial.write_text(json.dumps(plans, indent=2))
    with replacing(out / "README.txt") as partial:
        partial.write_text(_commands(config.dataset or UNNAMED, channels))
    console.print(f"export: {len(fitted)} tensors and plans for nnU-Net in {out}; README.txt has the commands")
    if config.dataset is None:
        console.print(f"export: no --dataset given: put its name for {UNNAMED} in {PLANS}.json before nnU-Net reads it")
    return out / f"{PLANS}.json"


def plans_of(
    network: dict[str, Any], channels: int, metadata: dict[str, Any], normalise: NormaliseConfig, config: ExportConfig
) -> dict[str, Any]:
    """nnU-Net's plans, as `PlansManager` reads them.

    Args:
        network: Settings of the residual encoder U-Net.
        channels: Channels of the data set.
        metadata: Of the pre-training run: size of its views, spacing of its store.
        normalise: Its normalisation.
        config: Settings of the verb.

    Raises:
        ConfigError: If there is no spacing or not one number per axis, or nnU-Net has no such normalisation.
    """
    if config.spacing is not None and len(config.spacing) != 3:
        raise ConfigError(
            f"spacing: found {len(config.spacing)} number(s); expected 3, the voxel size in mm along z y x. Give "
            "--spacing Z Y X, or leave it out to take that of the pre-training store."
        )
    spacing = list(config.spacing or metadata.get("spacing") or [])
    if len(spacing) != 3:
        raise ConfigError(
            f"{config.run}: its store has no spacing of its own (each image kept its own), or does not say; nnU-Net "
            "resamples to one. Give --spacing Z Y X in mm."
        )
    scheme, masked, properties = _normalisation(normalise)
    stages = len(network["features"])
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": network["features"],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": network["kernels"],
            "strides": network["strides"],
            "n_blocks_per_stage": network["blocks"],
            "n_conv_per_stage_decoder": [network["decoder_convs"]] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    image, label = ({"is_seg": seg, "order": 1 if seg else 3, "order_z": 0, "force_separate_z": None} for seg in (0, 1))
    resampling = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": config.batch,
        "patch_size": metadata["size"],
        "median_image_size_in_voxels": metadata["size"],
        "spacing": spacing,
        "normalization_schemes": [scheme] * channels,
        "use_mask_for_norm": [masked] * channels,
        "resampling_fn_data": resampling,
        "resampling_fn_seg": resampling,
        "resampling_fn_probabilities": resampling,
        "resampling_fn_data_kwargs": {**image, "is_seg": False},
        "resampling_fn_seg_kwargs": {**label, "is_seg": True},
        "resampling_fn_probabilities_kwargs": {**image, "is_seg": False, "order": 1},
        "batch_dice": False,
        "architecture": architecture,
    }
    return {
        "dataset_name": config.dataset or UNNAMED,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": metadata["size"],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "prevox",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): properties for channel in range(channels)},
    }


def _normalisation(normalise: NormaliseConfig) -> tuple[str, bool, dict[str, float]]:
    """nnU-Net's scheme, whether it looks at voxels above 0 only, and the intensities that it takes for the data set's.

    A window [low, high] to [0, 1] is nnU-Net's CT scheme (clip to percentiles, subtract the mean, divide by the
    deviation) with low and high for the percentiles, low for the mean and high - low for the deviation.
    """
    low, high = normalise.window or (0.0, 1.0)
    properties = {
        **{"min": low, "max": high, "percentile_00_5": low, "percentile_99_5": high},
        **{"mean": low, "median": low, "std": high - low},
    }
    schemes = {"zscore": "ZScoreNormalization", "zscore_nonzero": "ZScoreNormalization", "window": "CTNormalization"}
    if normalise.name not in schemes:
        raise ConfigError(
            f"normalise: the run was normalised by '{normalise.name}', which nnU-Net does not know; expected one of "
            f"{', '.join(schemes)}. Pre-train with one of these to export."
        )
    return schemes[normalise.name], normalise.name == "zscore_nonzero", properties


def _commands(dataset: str, channels: int) -> str:
    fill_in = (
        f"No data set was named: put its name for {UNNAMED} in {PLANS}.json and below, or export with --dataset.\n"
        if dataset == UNNAMED
        else ""
    )
    return f"""Pre-trained weights for nnU-Net v2, for {channels} channel(s). With nnUNet_raw/{dataset} in place:
{fill_in}
  nnUNetv2_extract_fingerprint -d {dataset}
  cp {PLANS}.json $nnUNet_raw/{dataset}/dataset.json $nnUNet_preprocessed/{dataset}/
  nnUNetv2_preprocess -d {dataset} -plans_name {PLANS} -c {CONFIGURATION}
  nnUNetv2_train {dataset} {CONFIGURATION} 0 -p {PLANS} -pretrained_weights {CHECKPOINT}
"""
