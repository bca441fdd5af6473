"""What must come of every DICOM file of the collection of odd files; written before the reader that must meet it.

Taken from the notes beside the files, from the NIfTI references beside the series, and from the tags, by hand. Paths
are relative to the collection (../shared/data/formats); a folder stands for all files below it.

Affines are rows of voxel indices (column, row, slice) to RAS mm. With r, c the first and last three numbers of Image
Orientation, (s0, s1) Pixel Spacing and p the position of the first slice along r × c, the columns are -r s1, -c s0,
(last - first) / (n - 1) and p, each with x and y negated. Voxels: `nifti` names the reference whose voxels they equal;
without one, GDCM (in SimpleITK), which shares no code with pydicom, decodes the same file.
"""

from dataclasses import dataclass, field

D2N = "dicom2nifti_tests/tests/data"
PYD = "pydicom_tests/src/pydicom/data/test_files"
CINE = "sunnybrook_cine"
TOTALSEG = "totalseg_tests/tests/reference_files"

Rows = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Read:
    """An image that must come out.

    Args:
        shape: Columns, rows, slices.
        affine: Three rows; None where `nifti` has it.
        nifti: Reference with the same grid (up to the order and direction of axes) and voxels.
        grid: Reference that has the grid only: a label map.
        flags: Flags that the header must carry.
        gdcm: Whether GDCM decodes the file right; False where the test says what the voxels are.
        tolerance: Largest difference of voxels: two decoders of a lossy JPEG round differently.
    """

    shape: tuple[int, int, int]
    affine: Rows | None = None
    nifti: str | None = None
    grid: str | None = None
    flags: tuple[str, ...] = ()
    gdcm: bool = True
    tolerance: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What must come of a folder or file: images, reasons of what is left out (regular expressions), other objects."""

    read: tuple[Read, ...] = ()
    refused: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)


def axial(x: float, y: float, z: float, spacing: float, thickness: float) -> Rows:
    """Affine of slices with orientation 1 0 0 0 1 0 and the first position (x, y, z)."""
    return ((-spacing, 0, 0, -x), (0, -spacing, 0, -y), (0, 0, thickness, z))


COLOUR = "colour"
NO_SPACING = "no pixel spacing"
NO_PIXELS = "no pixel data"
COMPRESSED = f"{D2N}/generic"

SERIES: dict[str, Outcome] = {
    # what dicom2nifti's note calls failing
    f"{D2N}/failing/gantrytilting/001": Outcome(refused=("tilt",)),
    f"{D2N}/failing/notavolume/001": Outcome(refused=("all 4 slices at one place",)),
    f"{D2N}/failing/slicecount/001": Outcome(refused=("two slices",)),
    # positions 18.1, 23.1, 28.1, 38.1 mm
    f"{D2N}/failing/sliceincrement/001": Outcome(refused=("missing.* 10 mm .* 5 mm",)),
    # file 4 of 5 is missing; tilted as well
    f"{D2N}/failing/sliceincrement/002": Outcome(refused=("missing",)),
    f"{D2N}/failing/sliceorientation/001": Outcome(refused=("2 orientations",)),
    # vendors, without reference but for the tags
    f"{D2N}/ge/anatomical/001": Outcome(
        read=(
            Read(
                (256, 256, 4),
                ((-0.0530167, 0, 0.9986, 40.0007), (-0.998594, 0, -0.053, 140.73), (0, -1, 0, 124.7)),
            ),
        )
    ),
    # no Slice Thickness: 1 mm is taken, and said
    f"{D2N}/ge/anatomical/001_single_slice": Outcome(
        read=(
            Read(
                (256, 256, 1),
                ((-0.0530167, 0, 0.998594, 40.0007), (-0.998594, 0, -0.0530167, 140.73), (0, -1, 0, 124.7)),
                flags=("no_thickness",),
            ),
        )
    ),
    f"{D2N}/hitachi/anatomical/001": Outcome(
        read=(
            Read(
                (64, 64, 4),
                # r × c points away from the order of the instance numbers: the last file is the first slice
                (
                    (-1.426945, 0.334598, 3.121400, 136.2682),
                    (-1.853290, -0.441157, -2.329997, 50.12272),
                    (0.149353, -2.277408, 0.909940, 36.6436),
                ),
            ),
        )
    ),
    f"{D2N}/siemens/anatomical/001": Outcome(
        # r = (0, 1, 0), c = (0, 0, -1), r × c = (-1, 0, 0): the largest x comes first
        read=(Read((256, 256, 4), ((0, 0, 1, -10.205842), (-1, 0, 0, 161.074673), (0, -1, 0, 130.051254))),)
    ),
    f"{D2N}/philips_enhanced/anatomical/001": Outcome(
        # positions from x = 100.2936 down to 91.8935 in seven steps
        read=(Read((256, 256, 8), ((0, 0, 1.200006, -100.293579), (-1, 0, 0, 150.604593), (0, -1, 0, 116.949244))),)
    ),
    # with references
    f"{D2N}/generic/anatomical/001": Outcome(
        read=(Read((256, 256, 4), nifti=f"{D2N}/generic/anatomical/001_ground_truth.nii.gz"),)
    ),
    f"{D2N}/generic/anatomical/002_non_isotropic": Outcome(
        read=(Read((64, 28, 4), nifti=f"{D2N}/generic/anatomical/002_non_isotropic_ground_truth.nii.gz"),)
    ),
    **{
        f"{COMPRESSED}/{name}/001": Outcome(
            read=(Read((256, 256, 4), nifti=f"{COMPRESSED}/{name}/001_ground_truth.nii.gz"),)
        )
        for name in ("compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle")
    },
    f"{D2N}/generic/rgb/001": Outcome(refused=(COLOUR,)),
    f"{D2N}/hyperfine/anatomical/001": Outcome(
        read=(Read((112, 138, 8), nifti=f"{D2N}/hyperfine/anatomical/001_ground_truth.nii.gz"),)
    ),
    f"{D2N}/siemens_multiframe/anatomical/001": Outcome(
        read=(Read((256, 256, 8), nifti=f"{D2N}/siemens_multiframe/anatomical/001_ground_truth.nii.gz"),)
    ),
    # one series whose every position occurs twice, at end of diastole and of systole: two images
    f"{CINE}/dicom": Outcome(
        read=(
            Read((256, 256, 12), nifti=f"{CINE}/images/SCD0000101_ES.nii.gz"),
            Read((256, 256, 12), nifti=f"{CINE}/images/SCD0000101_ED.nii.gz"),
        )
    ),
    f"{CINE}/dicom/SCD0000101_ED": Outcome(read=(Read((256, 256, 12), nifti=f"{CINE}/images/SCD0000101_ED.nii.gz"),)),
    f"{CINE}/dicom/SCD0000101_ES": Outcome(read=(Read((256, 256, 12), nifti=f"{CINE}/images/SCD0000101_ES.nii.gz"),)),
    # JPEG 2000, no SOP class, no series, study or patient
    f"{TOTALSEG}/example_ct_dicom": Outcome(
        read=(
            Read(
                (512, 512, 20),
                axial(-249.51171875, -437.51171875, -804.5, 0.9765625, 2),
                grid=f"{TOTALSEG}/example_seg_dicom.nii.gz",
            ),
        )
    ),
}

# enhanced, one time point of several
SERIES["niivue_formats/packages/niivue/demos/images/enh.dcm"] = Outcome(
    read=(Read((64, 64, 6), axial(-109.79, -58.4773, -5.40356, 3.375, 2.4)),)
)

_MR_SMALL = Read((64, 64, 1), axial(-83.9063, -91.2, 6.6406, 0.3125, 0.8))
_CT_SMALL = Read((128, 128, 1), axial(-158.135803, -179.035797, -75.699997, 0.661468, 5))
_WHOLE_BODY = ((2.26, 0, 0, 0), (0, -2.26, 0, 0), (0, 0, 1, 0))  # a planar scan: columns right, rows down, no place

FILES: dict[str, Outcome] = {
    **{
        f"{PYD}/MR_small{name}.dcm": Outcome(read=(_MR_SMALL,))
        for name in (
            *("", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_padded"),
        )
    },
    f"{PYD}/MR_truncated.dcm": Outcome(refused=("8130 vs 8192 bytes",)),
    f"{PYD}/CT_small.dcm": Outcome(read=(_CT_SMALL,)),
    # CT_small without header; one byte of the header is left
    f"{PYD}/no_meta.dcm": Outcome(read=(_CT_SMALL,)),
    # bits stored 14, samples of 16 bits
    f"{PYD}/693_J2KI.dcm": Outcome(read=(Read((512, 512, 1), axial(-122.5, -112.4, 47, 0.478516, 5)),)),
    # signed by its header, unsigned in its JPEG 2000; a slice of a tilted gantry is a slice like any other
    f"{PYD}/J2K_pixelrep_mismatch.dcm": Outcome(
        read=(
            Read(
                (512, 512, 1),
                ((-0.431, 0, 0, 110.2153), (0, -0.3996232, -1.873, 98.1898), (0, -0.1614526, 4.636, 72.1446)),
            ),
        )
    ),
    f"{PYD}/examples_overlay.dcm": Outcome(
        read=(Read((484, 300, 1), axial(-159.82565509386, -175.32202350207, 28.426151275635, 0.72314049586777, 4)),)
    ),
    f"{PYD}/JPEG2000.dcm": Outcome(read=(Read((256, 1024, 1), _WHOLE_BODY, flags=("no_geometry",)),)),
    f"{PYD}/JPGExtended.dcm": Outcome(read=(Read((256, 1024, 1), _WHOLE_BODY, flags=("no_geometry",), tolerance=1.0),)),
    # JPGExtended is "fixed version of JPEG-lossy", whose JPEG has wrong markers
    f"{PYD}/JPEG-lossy.dcm": Outcome(refused=("cannot be decoded",)),
    # "almost certainly not a valid JPEG anymore"
    f"{PYD}/JPEG2000-embedded-sequence-delimiter.dcm": Outcome(refused=("cannot be decoded",)),
    # grey, but nothing says how large a pixel is
    **{
        f"{PYD}/{name}.dcm": Outcome(refused=(NO_SPACING,))
        for name in ("image_dfl", "JPEGLSNearLossless_08", "JPEGLSNearLossless_16")
    },
    **{
        f"{PYD}/{name}.dcm": Outcome(refused=(COLOUR,))
        for name in (
            *("ExplVR_BigEnd", "GDCMJ2K_TextGBR", "SC_jpeg_no_color_transform", "SC_jpeg_no_color_transform_2"),
            *("SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+n1", "SC_rgb_dcmtk_+eb+cy+n2", "SC_rgb_dcmtk_+eb+cy+np"),
            *("SC_rgb_dcmtk_+eb+cy+s2", "SC_rgb_dcmtk_+eb+cy+s4", "SC_rgb_gdcm_KY", "SC_rgb_jls_lossy_line"),
            *("SC_rgb_jls_lossy_sample", "SC_rgb_jpeg", "SC_rgb_jpeg_app14_dcmd", "SC_rgb_jpeg_dcmd"),
            *("SC_rgb_jpeg_dcmtk", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_lossy_gdcm", "SC_rgb_rle", "SC_rgb_rle_16bit"),
            *("SC_rgb_rle_16bit_2frame", "SC_rgb_rle_2frame", "SC_rgb_rle_32bit", "SC_rgb_rle_32bit_2frame"),
            *("SC_rgb_small_odd", "SC_rgb_small_odd_big_endian", "SC_rgb_small_odd_jpeg"),
            *("SC_ybr_full_422_uncompressed", "examples_jpeg2k", "examples_palette", "examples_rgb_color"),
            "examples_ybr_color",
        )
    },
    # no image by its class
    **{
        f"{PYD}/{name}.dcm": Outcome(skipped={kind: 1})
        for kind, names in {
            "RT Dose": (
                *("rtdose", "rtdose_1frame", "rtdose_expb", "rtdose_expb_1frame", "rtdose_rle", "rtdose_rle_1frame"),
                "badVR",
            ),
            "RT Plan": ("rtplan", "rtplan_truncated"),
            "RT Ion Plan": ("ExplVR_BigEndNoMeta", "ExplVR_LitEndNoMeta"),
            "RT Structure Set": ("rtstruct",),
            "Segmentation": ("liver_1frame", "liver_expb_1frame"),
            "Basic Text SR": ("reportsi", "reportsi_with_empty_number_tags"),
            "Comprehensive SR": ("test-SR",),
            "12-lead ECG Waveform": ("waveform_ecg",),
        }.items()
        for name in names
    },
    # an RT Image's class in the header, its data set cut off; images by their class; no class at all
    f"{PYD}/no_meta_group_length.dcm": Outcome(refused=(NO_PIXELS,)),
    f"{PYD}/UN_sequence.dcm": Outcome(refused=(NO_PIXELS,)),
    f"{PYD}/priv_SQ.dcm": Outcome(refused=(NO_PIXELS,)),
    f"{PYD}/empty_charset_LEI.dcm": Outcome(refused=(NO_PIXELS,)),
    # pixel data without rows, columns and all else
    f"{PYD}/meta_missing_tsyntax.dcm": Outcome(refused=("no rows and columns",)),
    f"{PYD}/nested_priv_SQ.dcm": Outcome(refused=("no rows and columns",)),
}


_PCIR = f"{PYD}/dicomdirtests"


def _radiograph(spacing: float) -> Read:
    affine = ((spacing, 0, 0, 0), (0, -spacing, 0, 0), (0, 0, 1, 0))
    return Read((16, 16, 1), affine, flags=("no_geometry", "detector_spacing", "inverted"), gdcm=False)


# one tree, catalogued as one: the patients of pydicom's README
SERIES |= {
    **{f"{_PCIR}/77654033/CR{number}": Outcome(read=(_radiograph(0.1),)) for number in (1, 2, 3)},
    # four samples of a series: z = -99.48, 103.02, 104.27, 105.52
    f"{_PCIR}/77654033/CT2": Outcome(refused=("missing",)),
    f"{_PCIR}/98892001/CT2N": Outcome(refused=("localiser",)),
    f"{_PCIR}/98892001/CT5N": Outcome(read=(Read((16, 16, 5), axial(-72.2, -143, -1.2375, 0.488281, 2.5)),)),
    # 15820, 4919 and 5641: one slice of each of three series
    f"{_PCIR}/98892003/MR1": Outcome(
        read=(Read((16, 16, 1), ((0, 0, 10, 0), (-1.367188, 0, 0, 175), (0, -1.367188, 0, 175))),) * 3
    ),
    # 15970 is a slice of its own series; the others are three planes each of two series
    f"{_PCIR}/98892003/MR2": Outcome(
        read=(Read((16, 16, 1), ((0, 0, 10, 0), (-1.367188, 0, 0, 175), (0, -1.367188, 0, 175))),),
        refused=("3 orientations",) * 2,
    ),
    # projections from seven angles
    f"{_PCIR}/98892003/MR700": Outcome(refused=("7 orientations",)),
    # fifty CT instances without rows, columns and pixels
    f"{_PCIR}/TINY_ALPHA": Outcome(refused=(NO_PIXELS,), skipped={"DICOMDIR": 1}),
    **{
        f"{_PCIR}/DICOMDIR{name}": Outcome(skipped={"DICOMDIR": 1})
        for name in ("", "-bigEnd", "-empty.dcm", "-implicit", "-nooffset", "-nopatient", "-reordered")
    },
}

# gantry tilt resampled: c = (0, 0.970296, -0.241922), steps of 5 mm in z, which is 4.851479 mm along r × c and
# -1.209609 mm, 2.894 rows, along c: 9 rows more for the three steps
TILTED = f"{D2N}/failing/gantrytilting/001"
TILTED_SHAPE = (512, 521, 4)
TILTED_SPACING = (0.41796875, 0.41796875, 4.851479)

# Siemens mosaics that nibabel installs with its own tests (nibabel/nicom/tests/data). Tiles lie row by row from the top
# left; Image Position is that of the corner of a picture of the mosaic's size with the slice's centre, so the first
# voxel lies half of (mosaic - tile) further along rows and columns; slices follow along the SliceNormalVector of the
# CSA header, as far apart as Spacing Between Slices says. The affine of the two diffusion volumes is nibabel's
# EXPECTED_AFFINE (checked there against SPM's conversion), which is in the same order of axes before its columns are
# swapped; that of the third is by hand: 160 pixels of 1.5 mm along r = (1, 0, 0) and c = (0, 0.898028, -0.439939) from
# (-283.707319, -295.873098, 94.294620), and 1.5 mm along r × c, which is the SliceNormalVector.
_DIFFUSION = Read(
    (128, 128, 48),
    ((-1.796875, 0, 0, 115), (0, -1.79684984, -0.01570896, 135.028779), (0, -0.0094084375, 2.99995887, -78.710481)),
)
MOSAICS: dict[str, Outcome] = {
    "siemens_dwi_0.dcm.gz": Outcome(read=(_DIFFUSION,)),
    "siemens_dwi_1000.dcm.gz": Outcome(read=(_DIFFUSION,)),
    "csa_slice_norm.dcm": Outcome(refused=(NO_PIXELS,)),
}
OBLIQUE_MOSAIC = Read(  # csa_slice_norm.dcm once it has pixels
    (64, 64, 32),
    ((-1.5, 0, 0, 43.707319), (0, -1.347041, -0.659909, 80.346481), (0, -0.659909, 1.347041, -11.290783)),
)
# change to a sound mosaic of 5 slices of 4 × 6 pixels (3 × 3 tiles): the reason that must be given
BROKEN_MOSAICS: dict[str, str] = {
    "no CSA header": "a Siemens mosaic without a CSA header",
    "a CSA header of random bytes": "a Siemens mosaic without a CSA header",
    "no normal in the CSA header": "without the direction of its slices",
    "a normal that is not that of the rows and columns": "whose slices do not lie along the normal of its picture",
    "no count in the CSA header nor in 0019,100A": "that does not say how many slices it has",
    "count 0": "that does not say how many slices it has",
    "another count in 0019,100A": "that says two numbers of slices, 5 and 7",
    "count 17, 5 × 5 tiles of a picture of 12 × 18": "of 17 slices in 18×12 pixels",
    "no distance of slices, no thickness": "without a distance between its slices",
    "slices in reverse order": "whose slices are numbered in reverse",
}
