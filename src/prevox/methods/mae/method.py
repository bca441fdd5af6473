"""Masked autoencoder: SelfMedMAE (Zhou et al., 2022, arXiv:2203.05573), and MAE3D (Chen et al., 2022) by settings.

A random subset of a view's patches goes through the encoder; the decoder predicts the voxels of the others. MAE3D is
target "raw", loss "l1", learnable positions, no class token and no final norm (recipe `mae3d-btcv`).

Deviations from SelfMedMAE, each also on the methods page `mae`:

- Views are cut at random. The published code cuts them around labelled voxels (RandCropByPosNegLabel), which needs the
  labels that self-supervision is to do without.
- Kept tokens are floor(L(1 − r) + 1e-6), not int(L(1 − r)), which drops a token where 1 − r is rounded down.
- The decoder predicts masked patches only; the published one also predicts the visible ones and ignores them.
- Where a view reaches beyond its image, the input is 0 and the padded voxels take no part in statistics and loss.
- Sine-cosine widths that 6 does not divide are padded with zeros instead of refused.

Shape suffixes: B views, C channels, D H W voxels (D is absent in 2D), L patches, M masked ones, P values of a patch, N
tokens of the encoder.
"""

import math
from typing import Literal

from torch import Tensor

from prevox.config.data import ViewsConfig
from prevox.config.models import ViTConfig
from prevox.console import warn
from prevox.errors import ConfigError
from prevox.masking.tokens import kept_tokens, random_token_mask
from prevox.methods.mae.config import MAEConfig
from prevox.methods.mae.pictures import reconstruction_picture
from prevox.methods.mae.target import explained_share, masked_loss, masked_patches, normalise_patches, views_patches
from prevox.models.mae_decoder import MAEDecoder
from prevox.models.vit import Cut, ViT, vit_settings
from prevox.task import Batch, ModelSpec, Pretrained, PretrainMethod, StepContext, StepOutput, ViewGroup

GROUP = "view"


def build(settings: MAEConfig, model: ViTConfig, views: ViewsConfig, channels: int) -> "MaskedAutoencoder":
    """Build the method from its settings.

    Args:
        settings: Of the method.
        model: Of the encoder.
        views: What the loader cuts.
        channels: Channels of the images.

    Raises:
        ConfigError: If the backbone is not a vision transformer, the patch does not divide the view, or the mask ratio
            leaves no token visible or none masked.
    """
    if not isinstance(model, ViTConfig):
        raise ConfigError(f"method mae: found model {type(model).__name__}; expected vit. Give --model.name vit.")
    if views.foreground > 0:
        warn("views.foreground is ignored: pre-training does not look at labels")
    keywords = vit_settings(model, views.size, channels)
    encoder = ViT(**keywords)
    decoder = MAEDecoder.behind(
        encoder, settings.decoder_width, settings.decoder_depth, settings.decoder_heads, model.positions
    )
    return MaskedAutoencoder(
        encoder,
        decoder,
        spec=ModelSpec("vit", keywords),
        view=ViewGroup(views.size, views.count, augment=views.augment, scale=views.scale, axes=views.axes),
        mask_ratio=settings.mask_ratio,
        target=settings.target,
        variance=settings.variance,
        loss=settings.loss,
    )


class MaskedAutoencoder(PretrainMethod):
    """Encoder on visible patches, decoder on all, error on the masked ones.

    Args:
        encoder: Embeds the visible patches.
        decoder: Predicts the masked ones; of the encoder's grid and patch.
        spec: From which the encoder can be built again.
        view: What the loader must cut.
        mask_ratio: Share of the patches that is masked.
        target: "normalised" (each patch standardised by itself) or "raw".
        variance: "biased" or "unbiased", of the normalised target.
        loss: "l2" or "l1".

    Raises:
        ConfigError: If the ratio leaves no token visible or none masked.
    """

    def __init__(
        self,
        encoder: ViT,
        decoder: MAEDecoder,
        spec: ModelSpec,
        view: ViewGroup,
        mask_ratio: float = 0.75,
        target: Literal["normalised", "raw"] = "normalised",
        variance: Literal["biased", "unbiased"] = "biased",
        loss: Literal["l2", "l1"] = "l2",
    ) -> None:
        super().__init__()
        kept_tokens(math.prod(encoder.grid), mask_ratio)  # refuses an unfit ratio before any data is read
        self.encoder, self.decoder = encoder, decoder
        self.spec = spec
        self.views = {GROUP: view}
        self.mask_ratio, self.target, self.variance, self.loss = mask_ratio, target, variance, loss

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One step: mask, encode the visible patches, decode, compare on the masked ones."""
        views = batch.views[GROUP]
        encoder = self.encoder
        patches_BLP, valid_BLP = views_patches(views, encoder.patch)
        batch_size, length, _ = patches_BLP.shape
        mask = random_token_mask(batch_size, length, self.mask_ratio, ctx.generator, patches_BLP.device)

        tokens_BND = encoder.encode([Cut(patches_BLP, encoder.grid, mask.visible_BK, ctx.generator)])[0]
        prediction_BMP = self.decoder(tokens_BND, mask.order_BL)

        original_BMP, valid_BMP = masked_patches(patches_BLP, valid_BLP, mask.masked_BM)
        if self.target == "normalised":
            target_BMP, mean, deviation = normalise_patches(original_BMP, valid_BMP, self.variance)
            statistics = (mean[0], deviation[0])
        else:
            target_BMP, statistics = original_BMP, None
        loss = masked_loss(prediction_BMP, target_BMP, valid_BMP, self.loss)

        pictures = {}
        if ctx.want_pictures:
            pictures["reconstruction"] = reconstruction_picture(
                patches_BLP[0],
                mask.masked_BM[0],
                target_BMP[0],
                prediction_BMP[0],
                statistics,
                encoder.grid,
                encoder.patch,
            )
        return StepOutput(loss, {"explained": explained_share(prediction_BMP, target_BMP, valid_BMP)}, pictures)

    def pretrained(self) -> Pretrained:
        """The encoder; the decoder is an auxiliary that ends with pre-training."""
        return Pretrained({name: value.detach() for name, value in self.encoder.state_dict().items()}, self.spec)

    def features(self, x_BCDHW: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        """The encoder's last map of unmasked images, with the patch as its stride."""
        return [(self.encoder.forward_features(x_BCDHW)[-1], self.encoder.patch)]
