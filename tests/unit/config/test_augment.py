"""What the documentation gives as nnU-Net's set is what its trainer does, number by number."""

from pathlib import Path

import pytest
import yaml

from prevox.config.data import AugmentConfig, ViewsConfig
from prevox.errors import ConfigError

pytestmark = pytest.mark.unit
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "augmentation.md"


def blocks() -> list[dict]:
    """The YAML blocks of the page."""
    return [yaml.safe_load(part.partition("```")[0]) for part in PAGE.read_text().split("```yaml")[1:]]


def test_the_documented_set_has_the_probabilities_of_nnunet() -> None:
    augment = ViewsConfig.parse(blocks()[0]["views"]).augment
    assert augment == AugmentConfig(
        flip=0.5,
        affine=(0.2, 0.2),
        rotation=30,
        scaling=(0.7, 1.4),
        noise=0.1,
        blur=0.2,
        brightness=0.15,
        contrast=0.15,
        low_resolution=0.25,
        gamma_inverted=0.1,
        gamma_retained=0.3,
    )
    off = {"rotate90", "intensity_scale", "intensity_shift", "gamma"}
    assert {name for name, value in augment if value == 0} - {"in_plane"} == off
    assert not augment.in_plane


def test_the_documented_set_for_thick_slices_turns_in_plane() -> None:
    first, second = blocks()
    both = {"augment": {**first["views"]["augment"], **second["views"]["augment"]}}
    augment = ViewsConfig.parse(both).augment
    assert (augment.in_plane, augment.rotation, augment.affine) == (True, 180, (0.2, 0.2))


def test_every_key_is_in_the_table_of_the_page() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    text = "\n".join(rows)
    assert [name for name in AugmentConfig.model_fields if f"`{name}`" not in text] == []


def test_one_probability_or_two_and_a_plane_of_volumes_only() -> None:
    assert AugmentConfig.parse({"affine": 0.3}).affine == 0.3
    assert AugmentConfig.parse(AugmentConfig(affine=(0.2, 0.1)).plain()).affine == (0.2, 0.1)
    for wrong in ([0.2], [0.2, 0.2, 0.2], [0.2, 1.2], 1.2):
        with pytest.raises(ConfigError, match="affine"):
            AugmentConfig.parse({"affine": wrong})
    with pytest.raises(ConfigError, match="in_plane is for views of three axes"):
        ViewsConfig.parse({"size": [8, 8], "augment": {"in_plane": True}})
