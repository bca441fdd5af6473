"""Settings of S3D."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prevox.config.base import Config

Share = Annotated[float, Field(gt=0, lt=1)]


class S3DConfig(Config):
    """S3D: masked autoencoder for the residual encoder U-Net that computes visible blocks only (methods page `s3d`)."""

    name: Literal["s3d"] = "s3d"
    mask_ratio: Share | tuple[Share, Share] = (0.6, 0.9)
    """Share of the blocks that is hidden; two numbers: drawn for each batch between them. floor(L(1 - ratio) + 1e-6) of
    L blocks stay visible."""
    block: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Voxels of a mask block, z y x; none takes the network's total stride (32 with six stages)."""
    adaptation: Literal["base", "sparse", "token", "densify"] = "densify"
    """The paper's ablation, each with all before it: base (masked input, ordinary network), sparse (convolutions and
    norms of visible voxels), token (a norm, and a learnable token in masked places), densify (a 3³ convolution at all
    but the highest resolution)."""

    @model_validator(mode="after")
    def _low_to_high(self) -> "S3DConfig":
        if isinstance(self.mask_ratio, tuple) and self.mask_ratio[0] > self.mask_ratio[1]:
            raise ValueError("mask_ratio takes one number, or LOW HIGH with LOW <= HIGH")
        return self
