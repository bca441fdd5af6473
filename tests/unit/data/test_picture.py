"""PNG and JPEG: every kind of pixel against known arrays and SimpleITK, and which way is up."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Pillow

from prevox.data.geometry import canonical_axes, orientation_of, reorient
from prevox.data.readers import read_header, read_image, write_image, write_mask
from prevox.errors import DataError

pytestmark = pytest.mark.unit

GREY = (np.arange(5 * 7).reshape(5, 7) * 7).astype(np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
ALPHA = np.where(np.eye(5, 7, dtype=bool), 0, 255).astype(np.uint8)


def rows_of(path: Path) -> np.ndarray:
    """The pixels as Pillow orders them: rows, columns, channels."""
    return read_image(path).array_CIJK[..., 0].transpose(2, 1, 0)


def save(picture: Pillow.Image, path: Path, **settings) -> Path:
    picture.save(path, **settings)
    return path


def test_grey_of_every_depth(tmp_path):
    picture = Pillow.fromarray(GREY)
    sixteen = GREY.astype(np.uint16) * 257 + 3
    cases = {
        "grey": (picture, GREY),
        "sixteen": (Pillow.fromarray(sixteen), sixteen),
        "one_bit": (Pillow.fromarray(GREY > 100), np.where(GREY > 100, 255, 0)),
        "rgb": (Pillow.fromarray(np.dstack([GREY] * 3)), GREY),
        "rgba": (Pillow.fromarray(np.dstack([GREY] * 3 + [np.full_like(GREY, 255)])), GREY),
        "grey_palette": (Pillow.fromarray(np.dstack([GREY] * 3)).quantize(256), GREY),
    }
    for name, (image, expected) in cases.items():
        path = save(image, tmp_path / f"{name}.png")
        found = rows_of(path)
        assert found.shape == (5, 7, 1), name
        assert (found[..., 0] == expected).all(), name
        header = read_header(path)
        assert (header.shape_ijk, header.channels, header.flags) == ((7, 5, 1), 1, ("no_geometry",)), name
        assert header.dtype == ("uint16" if name == "sixteen" else "uint8")


def test_colour_stays_three_channels(tmp_path):
    path = save(Pillow.fromarray(COLOUR), tmp_path / "a.png")
    assert (rows_of(path) == COLOUR).all()
    almost = np.dstack([GREY] * 3)
    almost[4, 6, 2] += 1  # one value of one pixel
    assert read_header(save(Pillow.fromarray(almost), tmp_path / "b.png")).channels == 3
    palette = Pillow.fromarray(COLOUR).quantize(8)
    assert (rows_of(save(palette, tmp_path / "c.png")) == np.asarray(palette.convert("RGB"))).all()


def test_transparency_is_dropped_and_flagged_unless_it_says_nothing(tmp_path):
    files = {
        "rgba": save(Pillow.fromarray(np.dstack([COLOUR, ALPHA])), tmp_path / "rgba.png"),
        "grey": save(Pillow.merge("LA", [Pillow.fromarray(GREY), Pillow.fromarray(ALPHA)]), tmp_path / "la.png"),
    }
    expected = {"rgba": COLOUR, "grey": GREY[..., None]}
    for name, path in files.items():
        assert (rows_of(path) == expected[name]).all(), name
        assert read_header(path).flags == ("no_geometry", "alpha"), name
    opaque = Pillow.merge("LA", [Pillow.fromarray(GREY), Pillow.new("L", (7, 5), 255)])
    assert read_header(save(opaque, tmp_path / "opaque.png")).flags == ("no_geometry",)
    keyed = save(Pillow.fromarray(GREY), tmp_path / "keyed.png", transparency=7)  # one grey value counts as transparent
    assert (rows_of(keyed)[..., 0] == GREY).all()


def test_sixteen_bits_are_never_halved(tmp_path):
    wide = np.dstack([GREY.astype(np.uint16) * 255] * 3)
    sitk.WriteImage(sitk.GetImageFromArray(wide, isVector=True), str(tmp_path / "wide.png"))
    with pytest.raises(DataError, match=r"wide\.png.*16 bits"):
        read_image(tmp_path / "wide.png")


def test_a_photograph_is_turned_as_its_tag_says(tmp_path):
    smooth = np.add.outer(np.arange(40), 2 * np.arange(50)).astype(np.uint8)
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by a quarter, clockwise
    path = save(Pillow.fromarray(smooth), tmp_path / "a.jpg", exif=exif, quality=100)
    assert np.abs(rows_of(path)[..., 0].astype(int) - np.rot90(smooth, -1)).max() <= 3


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
def test_jpeg_grey_and_colour(name, tmp_path):
    smooth = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)
    for array, channels in ((smooth, 1), (np.dstack([smooth] * 3), 1), (np.dstack([smooth, smooth, 90 - smooth]), 3)):
        path = save(Pillow.fromarray(array), tmp_path / name, format="jpeg", quality=95)
        reference = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="JPEGImageIO")).reshape(40, 50, -1)
        assert rows_of(path).shape == (40, 50, channels)
        assert (
            np.abs(rows_of(path).astype(int) - reference[..., :channels]).max() <= 3
        )  # JPEG decoders round colours apart


def test_y_runs_up_and_x_to_the_right(tmp_path):
    picture = np.zeros((5, 7), np.uint8)
    picture[0, 0], picture[0, 6], picture[4, 0] = 1, 2, 3  # top left, top right, bottom left
    image = read_image(save(Pillow.fromarray(picture), tmp_path / "a.png"))
    affine, shape = image.header.affine, image.header.shape_ijk
    assert orientation_of(affine) == "RPS"
    slice_CZYX, _ = reorient(image.array_CIJK, affine, *canonical_axes(affine, shape))
    assert slice_CZYX.shape == (1, 1, 5, 7)
    # Prevox draws y upwards (Matplotlib's origin="lower"), so the last row is the top one
    shown = slice_CZYX[0, 0, ::-1]
    assert (shown == picture).all()


@pytest.mark.parametrize(("values", "depth"), [([0, 1, 255], np.uint8), ([0, 300, 65535], np.uint16)])
def test_masks_of_pictures_are_pngs_of_their_shape(values, depth, tmp_path):
    source = read_header(save(Pillow.fromarray(GREY), tmp_path / "a.jpg"))
    mask_YX = np.resize(values, (5, 7))
    write_mask(tmp_path / "m.png", mask_YX.T[..., None], source)
    found = np.asarray(Pillow.open(tmp_path / "m.png"))
    assert found.dtype == depth
    assert (found == mask_YX).all()
    again = read_image(tmp_path / "m.png")
    assert (again.header.shape_ijk, again.header.affine.tolist()) == (source.shape_ijk, source.affine.tolist())
    with pytest.raises(DataError, match="ends in"):
        write_mask(tmp_path / "m.jpg", mask_YX.T[..., None], source)
    with pytest.raises(DataError, match=r"65535.*\.nii\.gz"):
        write_image(tmp_path / "p.png", np.zeros((2, 7, 5, 1), np.float32), source)
    write_image(tmp_path / "p.nii.gz", np.zeros((2, 7, 5, 1), np.float32), source)
    assert read_header(tmp_path / "p.nii.gz").channels == 2


def test_broken_files_are_named(tmp_path):
    noise = Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8))
    whole = {name: save(noise, tmp_path / f"whole.{name}").read_bytes() for name in ("png", "jpg")}
    whole["progressive.jpg"] = save(noise, tmp_path / "p.jpg", progressive=True).read_bytes()
    for name, data in whole.items():
        # libjpeg alone fills the missing part with grey and says nothing
        for part, cut in (("half", data[: len(data) // 2]), ("start", data[:20]), ("text", b"no picture at all")):
            path = tmp_path / f"{part}.{name}"
            path.write_bytes(cut)
            with pytest.raises(DataError, match=rf"{part}.*cannot be read"):
                read_image(path)
    (tmp_path / "jpeg_called.png").write_bytes(whole["jpg"])
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "jpeg_called.png")
