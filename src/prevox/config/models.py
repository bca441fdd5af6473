"""Settings of the networks."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

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


def _joined(value: Any) -> Any:
    """2 and [1, 2, 2] as the words 2 and 1x2x2, the form that the command line has too."""
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


PerAxis = Annotated[str, BeforeValidator(_joined), Field(pattern=r"^[1-9]\d*(x[1-9]\d*)*$")]
Count = Annotated[int, Field(ge=1)]


class ResEncConfig(Config):
    """nnU-Net's residual encoder U-Net, 3D or 2D (by the size of the views)."""

    name: Literal["resenc"] = "resenc"
    size: Literal["S", "M", "L", "XL"] = "L"
    """S: four stages, widths 16 to 128, for two CPU cores. M, L, XL: nnU-Net's six stages, widths 32 to 320, blocks
    1 3 4 6 6 6; there the three differ by the memory that patch and batch are planned for, not by the network."""
    stages: Annotated[int, Field(ge=2)] | None = None
    """Number of resolutions; none takes the preset's."""
    features: tuple[Count, ...] | None = None
    """Channels of each stage; none doubles the preset's first width up to 320."""
    blocks: tuple[Count, ...] | None = None
    """Residual blocks of each stage; none takes the preset's."""
    strides: tuple[PerAxis, ...] | None = None
    """Stride of each stage, as one number or one per axis (1x2x2); none takes 1, then 2."""
    kernels: tuple[PerAxis, ...] | None = None
    """Kernel of each stage, odd, as one number or one per axis (1x3x3); none takes 3."""
    decoder_convs: Count = 1
    """Convolutions of each decoder stage."""


class UNETRConfig(Config):
    """UNETR decoder on a vision transformer."""

    name: Literal["unetr"] = "unetr"
    features: Annotated[int, Field(ge=4)] = 16
    """Channels at full resolution; doubled at each coarser level."""
