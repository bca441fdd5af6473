"""Settings of the global-local masked autoencoder."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from prevox.config.base import Config

Share = Annotated[float, Field(gt=0, le=1)]
Scale = tuple[Share, Share]
Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]

LOCAL_TERMS = ("local_reconstruction", "local_consistency")
GLOBAL_TERMS = ("global_reconstruction", "global_consistency", "local_consistency")


class GLMAEConfig(Config):
    """Global-local masked autoencoder: GL-MAE (methods page `glmae`). views.size is the size of its local views."""

    name: Literal["glmae"] = "glmae"
    global_count: Annotated[int, Field(ge=0)] = 2
    """Global views of each image (p)."""
    global_size: tuple[Annotated[int, Field(ge=1)], ...] = (160, 160, 160)
    """Voxels of a global view, z y x (two numbers: y x); positions are interpolated from the grid of views.size."""
    global_scale: Scale | None = (0.5, 1.0)
    """Smallest and largest side of a global view's box as a share of the image's side; the box is resized to
    global_size. None cuts global_size voxels at the store's resolution."""
    local_count: Annotated[int, Field(ge=0)] = 8
    """Local views of each image (q); takes the place of views.count. Their size is views.size."""
    local_scale: Scale | None = (0.25, 0.5)
    """As global_scale, for the local views; takes the place of views.scale."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of each view's patches that is hidden; floor(L(1 - ratio) + 1e-6) of L patches stay visible. 0.6 is the
    published version's best, 0.75 is in its first version."""
    reconstruct: Literal["masked", "all"] = "masked"
    """Patches whose reconstruction counts; all is the domain that the paper prints."""
    target: Literal["raw", "normalised"] = "raw"
    """Voxels as they are, or each patch standardised by its own mean and deviation."""
    local_reconstruction: Weight = 1.0
    """Weight of the local views' reconstruction (1 in the paper); a term of weight 0 is not computed."""
    global_reconstruction: Weight = 1.0
    """Weight of the global views' reconstruction (the paper's beta 1)."""
    global_consistency: Weight = 1.0
    """Weight of the consistency of unmasked and masked global views (the paper's beta 2)."""
    local_consistency: Weight = 1.0
    """Weight of the consistency of unmasked global and masked local views (the paper's beta 3)."""
    student_temperature: Temperature = 0.1
    """Divides the student's outputs before the softmax."""
    teacher_temperature: Temperature = 0.04
    """Divides the teacher's outputs before the softmax."""
    centring: bool = True
    """Subtract a moving mean from the teacher's outputs, and scale the rest to unit length, before the softmax."""
    centre_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """How much of the centre stays at each update."""
    literal: bool = False
    """The paper's equation 7 as printed: student_temperature for both, no centring. It has trivial optima."""
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.996
    """Teacher's momentum at the start; rises to 1 by a cosine. Batches of a few images want 0.9995."""
    head_hidden: Annotated[int, Field(ge=1)] = 2048
    """Hidden width of the projection heads (three layers, GELU)."""
    head_outputs: Annotated[int, Field(ge=2)] = 512
    """Outputs of the projection heads (K)."""
    decoder_width: Annotated[int, Field(ge=6)] = 576
    """Width of the decoder's tokens; divisible by decoder_heads, and for sincos best by twice the number of axes."""
    decoder_depth: Annotated[int, Field(ge=1)] = 8
    """Blocks of the decoder."""
    decoder_heads: Annotated[int, Field(ge=1)] = 16
    """Attention heads of the decoder."""

    @field_validator("global_scale", "local_scale")
    @classmethod
    def _low_then_high(cls, scale: Scale | None) -> Scale | None:
        if scale is not None and scale[0] > scale[1]:
            raise ValueError(f"scale takes LOW HIGH with LOW <= HIGH, not {scale[0]} {scale[1]}")
        return scale

    @model_validator(mode="after")
    def _fits_together(self) -> "GLMAEConfig":
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_heads {self.decoder_heads} must divide decoder_width {self.decoder_width}; change either"
            )
        if not any(getattr(self, term) for term in {*LOCAL_TERMS, *GLOBAL_TERMS}):
            raise ValueError("all four terms have weight 0, so nothing would be learnt; give one of them a weight")
        for kind, terms in (("global", GLOBAL_TERMS), ("local", LOCAL_TERMS)):
            needing = [term for term in terms if getattr(self, term) > 0]
            if needing and getattr(self, f"{kind}_count") == 0:
                raise ValueError(
                    f"{kind}_count is 0, and {', '.join(needing)} need {kind} views; "
                    f"give {kind}_count at least 1, or set these weights to 0"
                )
        return self
