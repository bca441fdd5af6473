"""S3D (Wald et al., "Revisiting MAE pre-training for 3D medical image segmentation", CVPR 2025, arXiv:2410.23132).

Random blocks of a view are hidden; a residual encoder U-Net sees the others and predicts the hidden voxels.
Convolutions and norms of the encoder act on visible voxels only (SparK: Tian et al., arXiv:2301.03580); its maps are
filled up by a token and densified by a convolution before the decoder.

Deviations from the paper and its public code, each also on the methods page `s3d`:

- The encoder computes visible blocks only, with the result of dense layers that are masked again after each.
- Mask blocks have the bottleneck's stride, as the paper says; the public code's default is 16³ (`block`).
- The input is masked before the first convolution; in the public code masked voxels leak into their neighbours.
- The ratio is drawn once for a batch, so that all its views have equally many visible blocks.
- Where a view reaches beyond its image, padding takes no part in convolutions, visible statistics and loss.
- The norm before the token belongs to the adaptation `token`; the paper does not say where.

Shape suffixes: B views, C channels, D H W voxels (D is absent in 2D), L blocks of the grid, K visible ones.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from prevox.config.data import ViewsConfig
from prevox.config.models import ResEncConfig
from prevox.console import warn
from prevox.errors import ConfigError
from prevox.masking.tokens import TokenMask, kept_tokens, random_token_mask
from prevox.methods.mae.target import explained_share
from prevox.methods.s3d.config import S3DConfig
from prevox.methods.s3d.densify import DensifyStage
from prevox.methods.s3d.pictures import reconstruction_picture
from prevox.models.blocksparse.decoder import FilledMap, decode
from prevox.models.blocksparse.encoder import check_sparse, encode
from prevox.models.blocksparse.layout import check_block, pyramid
from prevox.models.resenc.network import ResEncUNet
from prevox.models.resenc.settings import resenc_settings
from prevox.task import Batch, ModelSpec, Pretrained, PretrainMethod, StepContext, StepOutput, ViewGroup

GROUP = "view"


def build(settings: S3DConfig, model: ResEncConfig, views: ViewsConfig, channels: int) -> "SparseAutoencoder":
    """Build the method from its settings.

    Args:
        settings: Of the method.
        model: Of the network.
        views: What the loader cuts.
        channels: Channels of the images.

    Raises:
        ConfigError: If the backbone is not a residual encoder U-Net, strides or blocks do not fit the view, or the mask
            ratio leaves no block visible or none masked.
    """
    if not isinstance(model, ResEncConfig):
        raise ConfigError(f"method s3d: found model {type(model).__name__}; expected resenc. Give --model.name resenc.")
    if views.foreground > 0:
        warn("views.foreground is ignored: pre-training does not look at labels")
    keywords = resenc_settings(model, views.size, channels, classes=channels)
    if settings.block is not None and len(settings.block) != len(views.size):
        raise ConfigError(
            f"method.block has {len(settings.block)} numbers and views.size has {len(views.size)}; give one per axis."
        )
    network = ResEncUNet(**keywords)
    return SparseAutoencoder(
        network,
        spec=ModelSpec("resenc", keywords),
        view=ViewGroup(views.size, views.count, augment=views.augment, scale=views.scale, axes=views.axes),
        block=settings.block or network.strides[-1],
        mask_ratio=settings.mask_ratio,
        adaptation=settings.adaptation,
    )


class SparseAutoencoder(PretrainMethod):
    """U-Net whose encoder sees visible blocks only, squared error on the hidden voxels.

    Args:
        network: Reconstructs as many channels as it sees.
        spec: From which the network can be built again.
        view: What the loader must cut.
        block: Voxels of a mask block along each axis.
        mask_ratio: Share of the blocks that is masked, or its range.
        adaptation: "base", "sparse", "token" or "densify".

    Raises:
        ConfigError: If the block does not fit view or strides, a norm is no instance norm, or the ratio leaves no block
            visible or none masked.
    """

    def __init__(
        self,
        network: ResEncUNet,
        spec: ModelSpec,
        view: ViewGroup,
        block: Sequence[int],
        mask_ratio: float | tuple[float, float] = (0.6, 0.9),
        adaptation: str = "densify",
    ) -> None:
        super().__init__()
        check_block(block, view.size, network.strides)
        check_sparse(network.encoder)
        self.network, self.spec = network, spec
        self.views = {GROUP: view}
        self.block, self.adaptation = tuple(block), adaptation
        self.grid = tuple(n // b for n, b in zip(view.size, block, strict=True))
        self.mask_ratio = mask_ratio if isinstance(mask_ratio, tuple) else (mask_ratio, mask_ratio)
        for ratio in self.mask_ratio:
            kept_tokens(math.prod(self.grid), ratio)  # refuses an unfit ratio before any data is read
        self.densify = nn.ModuleList()
        if adaptation in ("token", "densify"):
            for s, (features, stride) in enumerate(zip(network.features, network.strides, strict=True)):
                masked = all(t <= b for t, b in zip(stride, block, strict=True))
                self.densify.append(DensifyStage(features, len(block), masked, adaptation == "densify" and s > 0))
        # as the rows lie in memory: torch would otherwise turn the weights around in every convolution
        self.to(memory_format=torch.channels_last_3d if len(block) == 3 else torch.channels_last)  # type: ignore[call-overload]

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One step: mask, encode the visible blocks, fill up, decode, compare on the hidden voxels."""
        views = batch.views[GROUP]
        x_BDHWC = views.x_BCDHW.masked_fill(~views.valid_B1DHW, 0).movedim(1, -1).contiguous()
        valid_BDHW1 = views.valid_B1DHW.movedim(1, -1)
        mask = self.draw(len(x_BDHWC), ctx.generator)
        hidden_BDHW1 = self._hidden(mask).to(x_BDHWC.device)

        prediction_BDHWC = decode(self.network.decoder, self._maps(x_BDHWC, mask, hidden_BDHW1, valid_BDHW1))

        weight_BDHWC = (hidden_BDHW1 & valid_BDHW1).expand_as(x_BDHWC)
        error_BDHWC = (prediction_BDHWC - x_BDHWC).square()  # the images are float32, whatever the network computes in
        loss = (error_BDHWC * weight_BDHWC).sum() / weight_BDHWC.sum().clamp(min=1)
        scalars = {
            "explained": explained_share(prediction_BDHWC, x_BDHWC, weight_BDHWC),
            "masked": loss.new_tensor(1 - mask.kept / mask.order_BL.shape[1]),
        }
        pictures = {}
        if ctx.want_pictures:
            pictures["reconstruction"] = reconstruction_picture(x_BDHWC[0], hidden_BDHW1[0], prediction_BDHWC[0])
        return StepOutput(loss, scalars, pictures)

    def draw(self, batch: int, generator: Generator) -> TokenMask:
        """One ratio for the batch, then each view's visible blocks, on the CPU."""
        low, high = self.mask_ratio
        ratio = low + (high - low) * torch.rand((), generator=generator).item()
        return random_token_mask(batch, math.prod(self.grid), ratio, generator)

    def _maps(self, x_BDHWC: Tensor, mask: TokenMask, hidden_BDHW1: Tensor, valid_BDHW1: Tensor) -> list[FilledMap]:
        """The encoder's maps as the decoder takes them."""
        size, strides, device = x_BDHWC.shape[1:-1], self.network.strides, x_BDHWC.device
        if self.adaptation == "base":  # one block that holds the whole view: the ordinary network
            x_BDHWC = x_BDHWC.masked_fill(hidden_BDHW1, 0)
            layouts = pyramid(mask.order_BL.new_zeros(len(x_BDHWC), 1), size, size, strides, device=device)
        else:
            valid = None if bool(valid_BDHW1.all()) else valid_BDHW1
            layouts = pyramid(mask.visible_BK, self.block, size, strides, valid, device)
        rows = encode(self.network.encoder, x_BDHWC, layouts)
        if len(self.densify) == 0:
            return [FilledMap(rows_RDHWC, layout) for rows_RDHWC, layout in zip(rows, layouts[1:], strict=True)]
        return [stage(*pair) for stage, pair in zip(self.densify, zip(rows, layouts[1:], strict=True), strict=True)]

    def _hidden(self, mask: TokenMask) -> Tensor:
        """True where a voxel is masked: (B, *size, 1)."""
        hidden = mask.mask_BL.view(-1, *self.grid, 1)
        for axis, b in enumerate(self.block):
            hidden = hidden.repeat_interleave(b, 1 + axis)
        return hidden

    def pretrained(self) -> Pretrained:
        """The whole U-Net: encoder and decoder; tokens and densifying convolutions end with pre-training."""
        return Pretrained({name: value.detach() for name, value in self.network.state_dict().items()}, self.spec)

    def features(self, x_BCDHW: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        """The maps of all stages of the encoder on unmasked images, finest first."""
        return list(zip(self.network.forward_features(x_BCDHW), self.network.strides, strict=True))
