"""Settings of the networks."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prevox.config.base import Config, Fraction


class ViTConfig(Config):
    """Vision transformer, 3D or 2D (by the length of the patch)."""

    name: Literal["vit"] = "vit"
    size: Literal["T", "S", "B", "L"] = "B"
    """Width/depth/heads: T 192/12/3, S 384/12/6, B 768/12/12, L 1024/24/16."""
    patch: tuple[Annotated[int, Field(ge=1)], ...] = (16, 16, 16)
    """Voxels of a patch, z y x (two numbers: y x)."""
    depth: Annotated[int, Field(ge=1)] | None = None
    """Number of blocks; none takes the preset's."""
    class_token: bool = True
    """Prepend a learnable class token."""
    positions: Literal["sincos", "learnable"] = "sincos"
    """sincos is fixed in pre-training and becomes learnable in fine-tuning; learnable starts from small noise."""
    drop_path: Fraction = 0.0
    """Largest drop-path rate; grows linearly over the blocks."""
    final_norm: bool = True
    """Layer norm after the last block."""

    @model_validator(mode="after")
    def _two_or_three(self) -> "ViTConfig":
        if len(self.patch) not in (2, 3):
            raise ValueError("patch takes two numbers (y x) or three (z y x)")
        return self


class UNETRConfig(Config):
    """UNETR decoder on a vision transformer."""

    name: Literal["unetr"] = "unetr"
    features: Annotated[int, Field(ge=4)] = 16
    """Channels at full resolution; doubled at each coarser level."""
