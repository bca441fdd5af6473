"""Segmentation as a task for the engine: a UNETR or a residual encoder U-Net, pre-trained or new.

UNETR: SelfMedMAE's fine-tuning (Zhou et al., "Self pre-training with masked autoencoders for medical image
classification and segmentation", ISBI 2023): positions become learnable from their sine-cosine values, layer-wise
learning-rate decay over the encoder, drop path 0.1, soft Dice plus cross-entropy. Padding takes part in no loss.

Residual encoder U-Net: S3D's fine-tuning (Wald et al., CVPR 2025, 4 and table 3), with deep supervision on request:
outputs at all resolutions but the coarsest, the one at half the resolution with half the weight, as in nnU-Net.

Deviations from the paper and its published code, each also on the methods page `unetr`:

- The Dice loss leaves out the background; the published one counts it among exclusive classes.
- The Dice loss is the same for the U-Net; nnU-Net's has a plain denominator and 1e-5 for smoothing.
- A view is centred on a labelled voxel with probability `views.foreground`, whose class is drawn first, and is cut
  anywhere otherwise; RandCropByPosNegLabel draws any labelled voxel, or else a background one.
- `intensity_shift` adds up to 0.1 deviations of the view; RandShiftIntensity adds up to 0.1 in normalised units.
- `rotate90` turns in any plane with equal sides; RandRotate90 turns in one plane.
- The last checkpoint is used, not the best one on the test scans, and scored on each scan's own grid.

Shape suffixes: B views, C channels, K outputs, D H W voxels along z y x (no D in 2D).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from prevox.config.data import NormaliseConfig
from prevox.config.runs import FinetuneConfig
from prevox.console import warn
from prevox.errors import ConfigError
from prevox.finetuning.labels import LabelScheme, exclusive_scheme, region_scheme
from prevox.finetuning.losses import class_losses, coarser, region_losses
from prevox.finetuning.networks import LAYER_DECAY, Network, build_network, network_spec, transferred
from prevox.models.adapt import TransferReport, adapt, read_pretrained
from prevox.models.unetr import UNETR
from prevox.task import Batch, ModelSpec, Picture, StepContext, StepOutput, Task, ViewGroup, Views, ViewSpec

MEMORY = 0.95  # of the logged training overlap, per forward pass


class Segmentation(Task):
    """Trains a network on labelled views.

    Args:
        network: Encoder and decoder.
        spec: What it (of a UNETR: its encoder) was built from (kept for the run's description).
        scheme: What the outputs mean.
        views: One group, "view", with labels.
        dice: Weight of the Dice loss.
        cross_entropy: Weight of the cross-entropy.
        layer_decay: Block (or stage) i of n learns with the rate times layer_decay^(n + 1 − i), the decoder with the
            rate itself.
        freeze_encoder: Train the decoder only.
    """

    overlap_2K: Tensor

    def __init__(
        self,
        network: Network,
        spec: ModelSpec,
        scheme: LabelScheme,
        views: ViewSpec,
        *,
        dice: float = 1.0,
        cross_entropy: float = 1.0,
        layer_decay: float = 0.75,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.spec, self.scheme, self.views = network, spec, scheme, views
        self.dice, self.cross_entropy = dice, cross_entropy
        self.layer_decay = layer_decay
        if freeze_encoder:
            network.encoder.requires_grad_(False)
        # Twice the intersection, and the sum of both volumes, of each class over the latest views.
        self.register_buffer("overlap_2K", torch.zeros(2, len(scheme.classes)))

    def train(self, mode: bool = True) -> Self:
        """Switch mode; an encoder that is frozen, for good or a while, stays in evaluation mode, without drop path."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.network.encoder.parameters()):
            self.network.encoder.eval()
        return self

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """Loss of one batch; scalars hold both losses and each class's Dice over the latest training views.

        Raises:
            DataError: If a label map holds a value that is no class.
        """
        views = batch.views["view"]
        label = views.label_B1DHW
        assert label is not None, "the group 'view' is cut with labels"
        outputs = self.network(views.x_BCDHW, ctx.generator)
        losses: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
        if self.scheme.overlapping:
            target, losses = self.scheme.encode_regions(label), region_losses
        else:
            target, losses = self.scheme.encode_classes(label, f"one of {', '.join(batch.images)}"), class_losses
        deep = outputs[: max(1, len(outputs) - 1)] if isinstance(outputs, list) else [outputs]
        weights = [0.5**level for level in range(len(deep))]
        loss = torch.zeros((), device=label.device)
        for level, (logits, weight) in enumerate(zip(deep, weights, strict=True)):
            there, valid_B1DHW = (coarser(x, logits.shape[2:]) for x in (target, views.valid_B1DHW))
            dice_BK, entropy = losses(logits, there, valid_B1DHW)
            loss = loss + weight / sum(weights) * (self.dice * dice_BK.mean() + self.cross_entropy * entropy)
            if level == 0:
                scalars = {"dice_loss": dice_BK.mean().detach(), "cross_entropy": entropy.detach()}
        logits = deep[0]
        if self.scheme.overlapping:
            target_BKDHW, found_BKDHW = target.bool(), logits.detach() > 0
        else:
            numbers = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
            target_BKDHW, found_BKDHW = target == numbers, logits.detach().argmax(1, keepdim=True) == numbers
        scalars |= self._overlap(found_BKDHW, target_BKDHW, views.valid_B1DHW, ctx.all_reduce)
        pictures = {"segmentation": self._picture(views, label, logits)} if ctx.want_pictures else {}
        return StepOutput(loss, scalars, pictures)

    def layer_scale(self, parameter: str) -> float:
        """Layer-wise decay: embedding or stem 0, block or stage i (from 0) i + 1, all else the last layer."""
        index = self.network.layer_index(parameter.removeprefix("network."))
        return self.layer_decay ** (self.network.depth + 1 - index)

    def waits(self, parameter: str) -> bool:
        """The encoder, stem and positions included."""
        return parameter.startswith("network.encoder.")

    @torch.no_grad()
    def _overlap(
        self,
        found_BKDHW: Tensor,
        target_BKDHW: Tensor,
        valid_B1DHW: Tensor,
        all_reduce: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Hard Dice of each class, over devices and with exponential memory: single views rarely show every class."""
        both, either = found_BKDHW & target_BKDHW & valid_B1DHW, (found_BKDHW.int() + target_BKDHW) * valid_B1DHW
        axes = [0, *range(2, both.ndim)]
        counts = all_reduce(torch.stack([2 * both.sum(axes), either.sum(axes)]).float())
        if self.training:
            self.overlap_2K.mul_(MEMORY).add_(counts)
            counts = self.overlap_2K
        dice_K = counts[0] / counts[1].clamp(min=1e-6)  # remembered counts, and means over devices, may be below 1
        return {f"dice/{name}": value for name, value in zip(self.scheme.classes, dice_K, strict=True)}

    @torch.no_grad()
    def _picture(self, views: Views, label_B1DHW: Tensor, logits_BKDHW: Tensor) -> Picture:
        """Image, reference and prediction of the slice that has the most labelled voxels in the batch."""
        flat = label_B1DHW.ndim == 4
        label = label_B1DHW.unsqueeze(2) if flat else label_B1DHW
        per_slice_BD = (label[:, 0] > 0).flatten(2).sum(2)
        row, z = divmod(int(per_slice_BD.argmax()), per_slice_BD.shape[1])
        image = views.x_BCDHW[row, 0]
        scores = self.scheme.probabilities(logits_BKDHW[row].float())
        found = self.scheme.decode(scores)
        panels = [
            ("image", (image if flat else image[z]).float().cpu().numpy()),
            ("reference", label[row, 0, z].float().cpu().numpy()),
            ("prediction", (found if flat else found[z]).astype(float)),
        ]
        values = zip(self.scheme.painted(), self.scheme.classes, strict=True)
        names = ", ".join(f"{value} {name}" for value, name in values)
        note = f"A training view as the network saw it (first channel, augmented). Grey levels: {names}."
        brightest = float(max(self.scheme.painted()))  # by percentiles, a few labelled voxels would not be seen
        return Picture(panels, note, scales=(0, 1, 1), limits={1: (0.0, brightest)})


@dataclass(frozen=True)
class Built:
    """What `build` makes of the settings.

    Attributes:
        task: Ready for the engine.
        normalise: Intensity normalisation to train and predict with.
        transfer: What became of the pre-trained weights; None from scratch.
    """

    task: Segmentation
    normalise: NormaliseConfig
    transfer: TransferReport | None


def build(
    config: FinetuneConfig, *, channels: int, class_names: Mapping[str, str], label_values: Iterable[int]
) -> Built:
    """Build task and network, from a pre-training run or from scratch.

    The initial weights are a function of `train.seed`: with the same encoder settings the decoder starts from the same
    weights whether the encoder is pre-trained or not.

    Args:
        config: Settings of the verb.
        channels: Channels of the store's images.
        class_names: The store's label values (as text) and their names; may be empty.
        label_values: Label values that occur in the store.

    Raises:
        ConfigError: If settings and pre-trained network, or regions and labels, do not fit.
        DataError: If the store has no labels.
        RunError: If `pretrained` holds no pre-trained encoder.
    """
    present = sorted(set(label_values))
    if config.regions is None:
        scheme = exclusive_scheme(class_names, present, config.store)
    else:
        scheme = region_scheme(config.regions, present)
        if rest := set(present) - {0, *(value for values in config.regions.values() for value in values)}:
            warn(f"regions: label value(s) {sorted(rest)} are in no region and count as background")
    weights: dict[str, Tensor] | None = None
    source: ModelSpec | None = None
    metadata: dict[str, Any] = {}
    if config.pretrained is not None:
        weights, source, metadata = read_pretrained(config.pretrained)
    spec = network_spec(config, source, channels, scheme.outputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        network = build_network(spec, config.decoder, channels, scheme.outputs, config.deep_supervision)
    described = network.encoder if isinstance(network, UNETR) else network  # what `spec` describes
    transfer = None
    if weights is not None and source is not None and not config.scratch:
        taken = transferred(weights, spec, config.transfer)
        fitted, transfer = adapt(taken, source, spec)
        transfer.unexpected.extend(name for name in weights if name not in taken)
        described.load_state_dict(fitted, strict=False)
    if isinstance(network, UNETR):
        network.encoder.make_positions_learnable()
    if transfer is None:
        _warn_of_ignored(config)
    if config.views.scale is not None:
        raise ConfigError("views.scale: fine-tuning cuts views at the store's resolution. Leave it out.")
    view = ViewGroup(config.views.size, config.views.count, True, config.views.foreground, config.views.augment)
    task = Segmentation(
        network,
        spec,
        scheme,
        {"view": view},
        dice=config.loss.dice,
        cross_entropy=config.loss.cross_entropy,
        layer_decay=LAYER_DECAY[spec.name] if config.layer_decay is None else config.layer_decay,
        freeze_encoder=config.freeze_encoder,
    )
    handed = NormaliseConfig.parse(metadata.get("normalise", {}), f"{config.pretrained}: normalise")
    return Built(task, config.normalise or handed, transfer)


def _warn_of_ignored(config: FinetuneConfig) -> None:
    """Settings that say how pre-trained weights are used, where there are none."""
    if config.transfer != "encoder":
        warn("transfer is ignored: no pre-trained weights are used")
    if config.freeze_encoder or config.decoder_first:
        name = "freeze_encoder" if config.freeze_encoder else "decoder_first"
        warn(f"{name}: the encoder that is held still has random weights; from scratch, leave it out or set it to 0")
