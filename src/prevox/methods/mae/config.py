"""Settings of the masked autoencoder."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prevox.config.base import Config


class MAEConfig(Config):
    """Masked autoencoder: SelfMedMAE by default, MAE3D by settings (methods page `mae`)."""

    name: Literal["mae"] = "mae"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the patches that is hidden; floor(L(1 - ratio) + 1e-6) of L patches stay visible."""
    target: Literal["normalised", "raw"] = "normalised"
    """Each patch standardised by its own mean and deviation (over voxels and channels), or the voxels as they are."""
    variance: Literal["biased", "unbiased"] = "biased"
    """Of the normalised target: biased divides by N (SelfMedMAE), unbiased by N - 1 (MAE)."""
    loss: Literal["l2", "l1"] = "l2"
    """Mean squared or mean absolute error, over masked patches only."""
    decoder_width: Annotated[int, Field(ge=6)] = 384
    """Width of the decoder's tokens; divisible by decoder_heads, and for sincos best by twice the number of axes."""
    decoder_depth: Annotated[int, Field(ge=1)] = 8
    """Blocks of the decoder."""
    decoder_heads: Annotated[int, Field(ge=1)] = 12
    """Attention heads of the decoder."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "MAEConfig":
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_heads {self.decoder_heads} must divide decoder_width {self.decoder_width}; change either"
            )
        return self
