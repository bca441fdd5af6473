"""Settings of the quality rules by which `catalogue` flags images, or excludes them from what follows."""

from typing import Annotated, Literal

from pydantic import Field

from prevox.config.base import Config, Fraction

RuleName = Literal[
    "field_of_view", "spacing", "file_size", "sequence",
    "constant", "nan", "near_empty", "clipped", "tiny", "few_values",
    "no_geometry", "negative_size", "orientation", "affine", "sheared",
    "duplicate_image", "near_duplicate", "duplicate_label",
    "no_label", "empty_label", "many_values", "label_off_image",
]  # fmt: skip
"""Every rule, in the order in which they are told: the S3D paper's, then ours on voxels, geometry, copies, labels."""
Sequence = Literal["T1", "T1ce", "T1_FLAIR", "T2", "FLAIR", "T2star", "PD", "SWI", "MRA", "DWI", "ADC", "ASL", "BOLD"]
Positive = Annotated[float, Field(gt=0)]


class RulesConfig(Config):
    """Thresholds of the quality rules, and which rules exclude; None switches a rule off."""

    exclude: tuple[RuleName, ...] = ()
    """Rules whose images `prepare` and `plan` leave out; all others only flag. The rows stay, with the reason in the
    column `excluded`. S3D's filters are: field_of_view spacing file_size sequence."""
    field_of_view: Positive | None = 50.0
    """Least field of view of a volume along every axis, in mm (S3D)."""
    spacing: Positive | None = 6.5
    """Largest voxel size along any axis, in mm (S3D)."""
    file_size: Positive | None = 200.0
    """Least size of a volume's files, in kB of 1024 bytes (S3D: smaller ones are empty)."""
    sequence: tuple[Sequence, ...] | None = ("T1", "T1ce", "T2", "T1_FLAIR", "FLAIR")
    """MR sequences that are wanted (S3D); only images that say another one by name or header break the rule."""
    near_empty: Fraction | None = 0.01
    """Least share of voxels that differ from the background, in every channel."""
    clipped: Fraction | None = 0.01
    """Largest share of voxels that have a channel's largest value."""
    tiny: Annotated[int, Field(ge=1)] | None = 8
    """Least number of voxels along every axis; in single slices, along the two of the picture."""
    few_values: Annotated[int, Field(ge=1)] | None = 16
    """Whole numbers from 0 to this at most are perhaps a label map."""
    affine: Positive | None = 3000.0
    """Largest plausible field of view, and distance of the image's centre from the scanner's origin, in mm."""
    sheared: Annotated[float, Field(gt=0, lt=90)] | None = 1.0
    """Largest deviation of two axes from a right angle, in degrees (gantry tilt)."""
    near_duplicate: Annotated[float, Field(gt=0, lt=1)] | None = 0.995
    """Correlation from which on two images of one shape and sequence are the same scan; what is compared is the means
    of 8 × 8 × 8 blocks (22 × 22 in single slices)."""
    many_values: Annotated[int, Field(ge=1)] | None = 256
    """Most values of a label map without names; more of them are perhaps an image."""
    label_off_image: Fraction | None = 0.5
    """Largest share of labelled voxels where the image has nothing but background."""
