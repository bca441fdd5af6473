import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from prevox.data.readers import read_header, read_image, stem_of, suffix_of, write_image, write_mask
from prevox.errors import DataError

pytestmark = pytest.mark.unit

FORMATS = Path(__file__).parents[3].parent / "shared" / "data" / "formats"
SHAPE = (5, 6, 7)


def rotation(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    a, b = [x for x in range(3) if x != axis]
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def affine_of(matrix: np.ndarray, spacing=(0.7, 1.5, 3.0), origin=(-20.0, 31.0, 4.5)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix * spacing, origin
    return affine


AFFINES = {
    "ras": affine_of(np.eye(3)),
    "lps": affine_of(np.diag([-1.0, -1.0, 1.0])),
    "permuted": affine_of(np.array([[0.0, 0, -1], [1, 0, 0], [0, 1, 0]])),
    "oblique": affine_of(rotation(20, 2) @ rotation(-35, 0) @ np.diag([-1.0, 1, 1])),
}


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray, sform: int = 1, qform: int = 1) -> Path:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nib.save(image, path)
    return path


def save_sitk(path: Path, array_ijk: np.ndarray, affine_ras: np.ndarray) -> Path:
    lps = np.diag([-1.0, -1, 1, 1]) @ affine_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.transpose(array_ijk, (2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


def ramp(dtype=np.int16) -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nhdr", ".mhd"])
def test_nrrd_and_metaimage_agree_with_nifti(tmp_path, name, suffix):
    nifti = read_image(save_nifti(tmp_path / "a.nii.gz", ramp(), AFFINES[name]))
    other = read_image(save_sitk(tmp_path / f"a{suffix}", ramp(), AFFINES[name]))
    np.testing.assert_allclose(other.header.affine, AFFINES[name], atol=1e-6)
    np.testing.assert_allclose(other.header.affine, nifti.header.affine, atol=1e-5)  # NIfTI holds float32
    np.testing.assert_array_equal(other.array_CIJK, ramp()[None])
    np.testing.assert_array_equal(nifti.array_CIJK, ramp()[None])
    assert other.array_CIJK.dtype == nifti.array_CIJK.dtype == np.int16
    assert other.header.shape_ijk == nifti.header.shape_ijk == SHAPE


def test_nrrd_in_ras_space_is_understood(tmp_path):
    path = tmp_path / "ras.nrrd"
    head = (
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 3 4\n"
        "space directions: (2,0,0) (0,3,0) (0,0,4)\nkinds: domain domain domain\nencoding: raw\n"
        "space origin: (10,20,30)\n\n"
    )
    path.write_bytes(head.encode() + bytes(range(24)))
    image = read_image(path)
    np.testing.assert_allclose(image.header.affine, [[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
    assert image.array_CIJK[0, 1, 0, 0] == 1  # the first axis of the file is the fastest
    assert image.array_CIJK[0, 0, 1, 0] == 2
    assert image.array_CIJK[0, 0, 0, 1] == 6


def test_header_is_read_without_voxels(tmp_path):
    path = save_nifti(tmp_path / "a.nii", ramp(), AFFINES["oblique"])
    path.write_bytes(path.read_bytes()[:352])  # header only
    header = read_header(path)
    assert (header.shape_ijk, header.channels, header.dtype) == (SHAPE, 1, "int16")
    np.testing.assert_allclose(header.affine, AFFINES["oblique"], rtol=1e-6)
    with pytest.raises(DataError, match=r"a\.nii.*cannot be read"):
        read_image(path)


def test_channels_are_the_last_axis_of_a_file(tmp_path):
    array = np.stack([ramp(), ramp() + 1000], axis=-1)
    image = read_image(save_nifti(tmp_path / "a.nii.gz", array, AFFINES["ras"]))
    assert image.array_CIJK.shape == (2, *SHAPE)
    np.testing.assert_array_equal(image.array_CIJK[1], ramp() + 1000)
    vector = sitk.GetImageFromArray(np.transpose(array, (2, 1, 0, 3)), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd").array_CIJK, image.array_CIJK)
    four = sitk.JoinSeries([sitk.GetImageFromArray(np.transpose(array[..., c], (2, 1, 0))) for c in range(2)])
    sitk.WriteImage(four, str(tmp_path / "b.mha"))
    header = read_header(tmp_path / "b.mha")
    assert (header.shape_ijk, header.channels) == (SHAPE, 2)
    np.testing.assert_array_equal(read_image(tmp_path / "b.mha").array_CIJK, image.array_CIJK)


def test_2d_files_get_a_third_axis(tmp_path):
    flat = ramp()[:, :, 0].copy()
    nifti = read_image(save_nifti(tmp_path / "a.nii.gz", flat, AFFINES["ras"]))
    assert nifti.array_CIJK.shape == (1, 5, 6, 1)
    sitk.WriteImage(sitk.GetImageFromArray(flat.T), str(tmp_path / "a.mha"))
    other = read_image(tmp_path / "a.mha")
    np.testing.assert_array_equal(other.array_CIJK, nifti.array_CIJK)
    write_mask(tmp_path / "m.nii.gz", np.ones((5, 6, 1), np.uint8), nifti.header)
    assert nib.load(tmp_path / "m.nii.gz").shape == (5, 6)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_mask_of_a_2d_itk_file_is_2d(tmp_path, suffix):
    flat = ramp()[:, :, 0].copy()
    source = sitk.GetImageFromArray(flat.T)
    source.SetOrigin([3.0, -4.0])
    source.SetSpacing([0.5, 2.0])
    source.SetDirection([0.0, -1.0, 1.0, 0.0])
    sitk.WriteImage(source, str(tmp_path / f"a{suffix}"))
    header = read_header(tmp_path / f"a{suffix}")
    label = (flat > 9).astype(np.uint8)
    write_mask(tmp_path / f"m{suffix}", label[:, :, None], header)
    mask = sitk.ReadImage(str(tmp_path / f"m{suffix}"))
    assert (mask.GetSize(), mask.GetOrigin(), mask.GetSpacing()) == ((5, 6), (3.0, -4.0), (0.5, 2.0))
    assert mask.GetDirection() == (0.0, -1.0, 1.0, 0.0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, label)
    scores = np.random.default_rng(0).random((3, 5, 6, 1), dtype=np.float32)
    write_image(tmp_path / f"p{suffix}", scores, header)
    assert sitk.ReadImage(str(tmp_path / f"p{suffix}")).GetDimension() == 2
    np.testing.assert_array_equal(read_image(tmp_path / f"p{suffix}").array_CIJK, scores)
    write_mask(tmp_path / "m.nii.gz", label[:, :, None], header)
    assert nib.load(tmp_path / "m.nii.gz").shape == (5, 6)
    np.testing.assert_allclose(read_header(tmp_path / "m.nii.gz").affine, header.affine, atol=1e-6)


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_nifti_units_become_mm(tmp_path, unit, mm):
    in_units = AFFINES["oblique"].copy()
    in_units[:3] /= mm
    image = nib.Nifti1Image(ramp(), in_units)
    image.set_sform(in_units, 1)
    image.set_qform(in_units, 1)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "a.nii.gz")
    header = read_header(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(header.affine, AFFINES["oblique"], rtol=1e-5)
    write_mask(tmp_path / "m.nii.gz", (ramp() > 9).astype(np.uint8), header)
    a, m = nib.load(tmp_path / "a.nii.gz").header, nib.load(tmp_path / "m.nii.gz").header
    for field in ("xyzt_units", "pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b"):
        np.testing.assert_array_equal(m[field], a[field], err_msg=field)
    np.testing.assert_array_equal(m.get_best_affine(), a.get_best_affine())
    write_mask(tmp_path / "m.mha", (ramp() > 9).astype(np.uint8), header)  # a format that knows mm only
    np.testing.assert_allclose(sitk.ReadImage(str(tmp_path / "m.mha")).GetSpacing(), [0.7, 1.5, 3.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("stored", "slope", "expected"),
    [
        (np.int16, 1, np.int16),
        (np.uint8, 1, np.uint8),
        (np.int16, 0.5, np.float32),
        (np.float32, 1, np.float32),
        (np.float64, 1, np.float64),
        (np.float64, 2, np.float64),
    ],
)
def test_scaling_and_voxel_types(tmp_path, stored, slope, expected):
    image = nib.Nifti1Image(ramp(np.uint8).astype(stored), AFFINES["ras"])
    image.header.set_slope_inter(slope, 0 if slope == 1 else -100)
    nib.save(image, tmp_path / "a.nii.gz")
    raw = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    on_disk = np.frombuffer(raw, stored, offset=352).reshape(SHAPE, order="F")  # what the file holds before scaling
    read = read_image(tmp_path / "a.nii.gz")
    assert read.array_CIJK.dtype == expected
    assert read.header.dtype == np.dtype(expected).name == read_header(tmp_path / "a.nii.gz").dtype
    inter = 0 if slope == 1 else -100
    np.testing.assert_allclose(read.array_CIJK[0], on_disk.astype(np.float64) * slope + inter, rtol=1e-6)


def test_big_endian_is_native_after_reading(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(ramp(), AFFINES["ras"], header), tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii")
    assert image.array_CIJK.dtype.isnative
    np.testing.assert_array_equal(image.array_CIJK[0], ramp())


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (4, 2)])
def test_mask_repeats_affine_and_codes(tmp_path, name, sform, qform):
    source = save_nifti(tmp_path / "a.nii.gz", ramp(), AFFINES[name], sform, qform)
    header = read_header(source)
    header = type(header)(**{**header.__dict__, "codes": json.loads(json.dumps(header.codes))})  # as a store keeps it
    write_mask(tmp_path / "m.nii.gz", (ramp() > 9).astype(np.int64), header)
    a, m = nib.load(source), nib.load(tmp_path / "m.nii.gz")
    assert m.shape == a.shape
    np.testing.assert_array_equal(m.affine, a.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "quatern_b", "quatern_c", "quatern_d"):
        np.testing.assert_array_equal(m.header[field], a.header[field], err_msg=field)
    for field in ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(m.header[field], a.header[field], err_msg=field)
    assert m.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(m.dataobj), ramp() > 9)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_mask_of_a_source_whose_forms_disagree_keeps_both(tmp_path):
    image = nib.Nifti1Image(ramp(), AFFINES["ras"])
    image.set_sform(AFFINES["ras"], 2)
    image.set_qform(AFFINES["oblique"], 1)
    nib.save(image, tmp_path / "a.nii.gz")
    write_mask(tmp_path / "m.nii.gz", np.zeros(SHAPE, np.uint8), read_header(tmp_path / "a.nii.gz"))
    mask = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_allclose(mask.get_qform(), AFFINES["oblique"], atol=1e-5)
    np.testing.assert_allclose(mask.get_sform(), AFFINES["ras"], atol=1e-5)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
def test_mask_like_an_itk_file(tmp_path, suffix):
    source = save_sitk(tmp_path / "a.nrrd", ramp(), AFFINES["oblique"])
    label = (ramp() > 9).astype(np.uint8)
    write_mask(tmp_path / f"m{suffix}", label, read_header(source))
    mask = read_image(tmp_path / f"m{suffix}")
    np.testing.assert_allclose(mask.header.affine, AFFINES["oblique"], atol=1e-5)
    np.testing.assert_array_equal(mask.array_CIJK[0], label)
    if suffix != ".nii.gz":
        a, m = sitk.ReadImage(str(source)), sitk.ReadImage(str(tmp_path / f"m{suffix}"))
        for what in ("GetOrigin", "GetSpacing", "GetDirection"):  # NRRD holds direction times spacing: last digit
            np.testing.assert_allclose(getattr(m, what)(), getattr(a, what)(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_probabilities_have_one_channel_per_class(tmp_path, suffix):
    source = save_nifti(tmp_path / "a.nii.gz", ramp(), AFFINES["oblique"])
    scores = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    write_image(tmp_path / f"p{suffix}", scores, read_header(source))
    read = read_image(tmp_path / f"p{suffix}")
    np.testing.assert_array_equal(read.array_CIJK, scores)
    np.testing.assert_allclose(read.header.affine, AFFINES["oblique"], atol=1e-5)


def test_large_label_values_and_wrong_masks(tmp_path):
    header = read_header(save_nifti(tmp_path / "a.nii.gz", ramp(), AFFINES["ras"]))
    write_mask(tmp_path / "m.nii.gz", np.full(SHAPE, 300), header)
    assert read_image(tmp_path / "m.nii.gz").array_CIJK.dtype == np.uint16
    with pytest.raises(DataError, match="shape"):
        write_mask(tmp_path / "n.nii.gz", np.zeros((5, 6, 8), np.uint8), header)
    with pytest.raises(DataError, match="whole label values"):
        write_mask(tmp_path / "n.nii.gz", np.full(SHAPE, -1), header)
    with pytest.raises(DataError, match=r"ends in \.nii"):
        write_mask(tmp_path / "n.mhd", np.zeros(SHAPE, np.uint8), header)
    assert not list(tmp_path.glob("*n.*"))


def test_missing_empty_unknown_and_broken_files(tmp_path):
    with pytest.raises(DataError, match="no such file; expected an image"):
        read_image(tmp_path / "absent.nii.gz")
    with pytest.raises(DataError, match=r"the folder \S+/moved does not exist.*`prevox catalogue` on its new place"):
        read_image(tmp_path / "moved" / "imagesTr" / "a.nii.gz")
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(DataError, match="0 bytes"):
        read_header(tmp_path / "empty.nii.gz")
    (tmp_path / "a.gif").write_bytes(b"x")
    with pytest.raises(DataError, match="unknown kind"):
        read_image(tmp_path / "a.gif")
    noise = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)
    whole = save_nifti(tmp_path / "whole.nii.gz", noise, AFFINES["ras"]).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.nii\.gz.*cannot be read"):
        read_image(tmp_path / "cut.nii.gz")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"not an image at all " * 40))
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "text.nii.gz")
    for suffix in (".nrrd", ".mha"):
        whole = save_sitk(tmp_path / f"whole{suffix}", noise, AFFINES["ras"]).read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match="cannot be read"):
            read_image(tmp_path / f"cut{suffix}")
        (tmp_path / f"text{suffix}").write_bytes(b"not an image")
        with pytest.raises(DataError, match="cannot be read"):
            read_header(tmp_path / f"text{suffix}")


def test_refused_voxels_shapes_and_affines(tmp_path):
    save_nifti(tmp_path / "c.nii.gz", ramp().astype(np.complex64), AFFINES["ras"])
    with pytest.raises(DataError, match="complex"):
        read_header(tmp_path / "c.nii.gz")
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    save_nifti(tmp_path / "rgb.nii.gz", colour, AFFINES["ras"])
    with pytest.raises(DataError, match="RGB"):
        read_image(tmp_path / "rgb.nii.gz")
    complex_image = sitk.GetImageFromArray(ramp().astype(np.complex64))
    sitk.WriteImage(complex_image, str(tmp_path / "c.nrrd"))
    with pytest.raises(DataError):
        read_header(tmp_path / "c.nrrd")
    save_nifti(tmp_path / "five.nii.gz", np.zeros((3, 3, 3, 1, 2), np.float32), AFFINES["ras"])
    with pytest.raises(DataError, match="3×3×3×1×2"):
        read_header(tmp_path / "five.nii.gz")
    save_nifti(tmp_path / "ones.nii.gz", np.zeros((3, 3, 3, 1, 1), np.float32), AFFINES["ras"])
    assert read_image(tmp_path / "ones.nii.gz").array_CIJK.shape == (1, 3, 3, 3)
    for name, value in (("nan", np.nan), ("zero", 0.0)):
        image = nib.Nifti1Image(ramp(), AFFINES["ras"])
        image.header["srow_x"] = value
        image.header["sform_code"] = 1
        nib.save(nib.Nifti1Image(ramp(), None, image.header), tmp_path / f"{name}.nii.gz")
        with pytest.raises(DataError, match="affine"):
            read_header(tmp_path / f"{name}.nii.gz")


def test_file_without_orientation_is_flagged(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    nib.save(nib.Nifti1Image(ramp(), None, header), tmp_path / "a.nii.gz")
    assert read_header(tmp_path / "a.nii.gz").flags == ("no_geometry",)
    assert read_header(save_nifti(tmp_path / "b.nii.gz", ramp(), AFFINES["ras"])).flags == ()


def test_names():
    assert suffix_of(Path("a/b.NII.GZ")) == ".nii.gz"
    assert suffix_of(Path("b.txt")) is None
    assert stem_of(Path("a/case.1_0000.nii.gz")) == "case.1_0000"


@pytest.mark.skipif(not FORMATS.is_dir(), reason="real scans are not beside the repository (../shared/data)")
def test_odd_real_files():
    zoo = FORMATS / "niivue_formats" / "packages" / "niivue" / "demos" / "images"
    assert read_header(zoo / "minimal.nii.gz").flags == ("no_geometry",)
    for name, reason in (("complex", "complex"), ("ct_perfusion", "RGB")):
        with pytest.raises(DataError, match=reason):
            read_image(zoo / f"{name}.nii.gz")
    series = read_image(FORMATS / "sct_testing_data" / "dmri" / "dmri.nii.gz")
    assert series.array_CIJK.shape == (7, 40, 42, 5)
    brain = FORMATS / "pyradiomics_nrrd" / "data" / "brain1_image.nrrd"
    affine = read_header(brain).affine
    # Direction (1, -1, 1) in LPS is L to R reversed and A to P reversed again: i runs to the left, j to the front.
    assert nib.aff2axcodes(affine) == ("L", "A", "S")
