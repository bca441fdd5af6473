"""Real scans on all kinds of grids: what comes back from the whole chain is what was there, where it was."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from prevox.data.readers import read_header, read_image
from prevox.data.store import Store
from tests.oracle import affine_of, make_store, predict_stored_labels, whole

pytestmark = pytest.mark.e2e

KINDS = ("hippocampus", "pet", "ct", "mr")
SOURCES = {  # folder, and what its folders of images and labels end in
    "hippocampus": ("Task04_Hippocampus", "Tr"),
    "pet": ("nnUNet_raw/Dataset101_STSPET", "Tr"),
    "ct": ("sts_ct", ""),
    "mr": ("sts_mr_t1", ""),
}


@dataclass(frozen=True)
class Scan:
    """Voxels (i, j, k) of an image and its label, and the affine of both."""

    name: str
    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


def scans(real_data: Path, kind: str, step: int = 1) -> Iterator[Scan]:
    """Every `step`-th labelled scan, read without Prevox."""
    folder, part = SOURCES[kind]
    for file in sorted((real_data / folder / f"labels{part}").glob("*.nii.gz"))[::step]:
        name = file.name.removesuffix(".nii.gz")
        image = nib.load(real_data / folder / f"images{part}" / f"{name}{'_0000' * (kind == 'pet')}.nii.gz")
        yield Scan(name, np.asarray(image.dataobj), np.asarray(nib.load(file).dataobj).astype(np.uint8), image.affine)


def write(folder: Path, scan: Scan, codes: tuple[int, int] = (1, 1), suffix: str = ".nii.gz", version: int = 1) -> None:
    """Write image and label side by side; codes are those of sform and qform, which differ where they are 4 and 2."""
    q_affine = scan.affine + 7 * np.eye(4, k=3) * (codes == (4, 2))
    for part, array in (("images", scan.image), ("labels", scan.label)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        path = folder / part / f"{scan.name}{suffix}"
        if suffix == ".nii.gz":
            image = (nib.Nifti1Image if version == 1 else nib.Nifti2Image)(array, scan.affine)
            image.set_sform(scan.affine, codes[0])
            image.set_qform(q_affine, codes[1])
            nib.save(image, path)
            continue
        lps = np.diag([-1.0, -1, 1, 1]) @ scan.affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        picture = sitk.GetImageFromArray(array.T)
        picture.SetSpacing(spacing.tolist())
        picture.SetOrigin(lps[:3, 3].tolist())
        picture.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(picture, str(path), useCompression=True)


def assert_same_header(mask: Path, source: Path) -> None:
    """Shape, affine and codes of a mask are the source's, as nibabel and ITK read them."""
    if source.name.endswith(".nii.gz"):
        made, given = nib.load(mask), nib.load(source)
        assert type(made) is type(given)
        assert made.shape == given.shape[:3]
        assert np.array_equal(made.affine, given.affine)
        for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
            assert np.array_equal(made.header[field], given.header[field]), field
        assert np.array_equal(made.header["pixdim"][:4], given.header["pixdim"][:4])
        return
    made, given = sitk.ReadImage(str(mask)), sitk.ReadImage(str(source))
    assert made.GetSize() == given.GetSize()
    for what in ("GetOrigin", "GetSpacing", "GetDirection"):  # NRRD holds direction times spacing: last digit
        np.testing.assert_allclose(getattr(made, what)(), getattr(given, what)(), rtol=1e-14, atol=1e-15)


def round_trip(scans: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> tuple[Store, Path]:
    """Catalogue, prepare and predict with the oracle; every image has its mask."""
    store = make_store(scans, folder, **settings)
    result = predict_stored_labels(store, folder / "masks", monkeypatch)
    assert result.exit_code == 0
    assert len(result.predicted) == len(store.index) > 0
    return store, folder / "masks"


def files(store: Store, image: str) -> tuple[Path, Path]:
    """Image and label file."""
    row = store.row(image)
    return Path(row["root"]) / row["paths"][0], Path(row["root"]) / row["label_path"]


@pytest.mark.parametrize("kind", KINDS)
def test_real_labels_come_back_identical_without_resampling(
    real_data: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = real_data / SOURCES[kind][0]
    if kind == "ct":  # without the unlabelled ones
        folder = tmp_path / "labelled"
        folder.mkdir()
        for part in ("images", "labels"):
            (folder / part).symlink_to(real_data / "sts_ct" / part)
    store, masks = round_trip(folder, tmp_path, monkeypatch)
    assert len(store.index) == {"hippocampus": 168, "pet": 27, "ct": 4, "mr": 9}[kind]
    for image in store.index.index:
        source, label = files(store, image)
        mask = masks / f"{image}.nii.gz"
        assert_same_header(mask, source)
        assert np.array_equal(np.asarray(nib.load(mask).dataobj), np.asarray(nib.load(label).dataobj)), image


def turned(scan: Scan, number: int) -> Scan:
    """The same voxels flipped, permuted, within zero borders, on an oblique or (every fourth) a sheared grid."""
    rng = np.random.default_rng(number)
    order, signs = rng.permutation(3), rng.choice([-1, 1], 3)
    borders = rng.integers(0, 5, (3, 2))
    image, label = (
        np.pad(x.transpose(order)[:: signs[0], :: signs[1], :: signs[2]], borders) for x in (scan.image, scan.label)
    )
    matrix = Rotation.random(random_state=number).as_matrix() @ scan.affine[:3, :3]
    if number % 4 == 3:
        matrix = matrix @ np.array([[1, 0.1, 0], [0, 1, -0.15], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, rng.uniform(-300, 300, 3)
    return Scan(scan.name, image, label, affine)


HEADERS = (  # codes of sform and qform, suffix, version of NIfTI
    ((1, 1), ".nii.gz", 1),
    ((0, 1), ".nii.gz", 1),
    ((1, 1), ".nrrd", 1),
    ((2, 0), ".nii.gz", 1),  # with a sheared grid, which neither qform nor ITK can say
    ((4, 2), ".nii.gz", 2),
    ((1, 1), ".mha", 1),
    ((0, 3), ".nii.gz", 2),
    ((2, 0), ".nii.gz", 2),
)


def test_turned_grids_and_all_kinds_of_headers_come_back_identical(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"hippocampus": 14, "pet": 5, "ct": 2, "mr": 3}  # 12 + 6 + 2 + 3 scans
    chosen = [replace(s, name=f"{kind}_{s.name}") for kind in KINDS for s in scans(real_data, kind, steps[kind])]
    for number, scan in enumerate(chosen):
        codes, suffix, version = HEADERS[number % len(HEADERS)]
        write(tmp_path / "scans", turned(scan, number), codes, suffix, version)
    store, masks = round_trip(tmp_path / "scans", tmp_path, monkeypatch)
    assert len(store.index) == len(chosen) == 23
    for image in store.index.index:
        source, label = files(store, image)
        (mask,) = masks.glob(f"{image}.*")
        assert mask.name == source.name
        assert_same_header(mask, source)
        assert np.array_equal(read_image(mask).array_CIJK, read_image(label).array_CIJK), image
        assert tuple(store.row(image)["shape"]) != read_header(source).shape_ijk  # the borders were cut


def oblique_grid(scan: Scan, spacing: tuple[float, ...], seed: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """A grid that covers the scan: these voxel sizes, turned at random, with axes permuted and flipped at random."""
    rng = np.random.default_rng(seed)
    turn = Rotation.from_euler("xyz", rng.uniform(-30, 30, 3), degrees=True).as_matrix()
    matrix = (turn * rng.choice([-1, 1], 3))[:, rng.permutation(3)] * spacing
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(scan.image.shape) - 1)
    places = corners @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    centre = places.mean(0)
    reach = np.abs((places - centre) @ np.linalg.inv(matrix).T).max(0)
    shape = tuple(int(n) for n in 2 * np.ceil(reach) + 1)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, centre - matrix @ ((np.array(shape) - 1) / 2)
    return affine, shape


def resampled(scan: Scan, spacing: tuple[float, ...], seed: int, order: int) -> Scan:
    """The scan on an oblique grid by scipy: image linear, label nearest (order 0) or linear class by class (1)."""
    affine, shape = oblique_grid(scan, spacing, seed)
    step = np.linalg.inv(scan.affine) @ affine
    index = np.tensordot(step[:3, :3], np.indices(shape), 1) + step[:3, 3, None, None, None]
    values = np.unique(scan.label)
    shares = [ndimage.map_coordinates((scan.label == v).astype(np.float32), index, order=order) for v in values]
    shares[0] = 1 - sum(shares[1:])  # outside is background
    image = ndimage.map_coordinates(scan.image.astype(np.float32), index, order=1, mode="nearest")
    return Scan(scan.name, image, values[np.argmax(shares, 0)], affine)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize(
    ("step", "order"), [(3, 0), pytest.param(1, 0, marks=pytest.mark.slow), pytest.param(1, 1, marks=pytest.mark.slow)]
)
def test_resampled_hippocampus_keeps_its_classes(
    real_data: Path, step: int, order: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels on oblique 1.5 × 1 × 0.8 mm grids, prepared at 1 mm and brought back.

    Nearest neighbours (order 0) leave jagged labels, which lose most; smooth ones (order 1) lose less.
    """
    for number, scan in enumerate(scans(real_data, "hippocampus", step)):
        write(tmp_path / "scans", resampled(scan, (1.5, 1.0, 0.8), step * number, order))
    store, masks = round_trip(tmp_path / "scans", tmp_path, monkeypatch, spacing=(1.0, 1.0, 1.0))
    scores = []
    for image in store.index.index:
        label, mask = (np.asarray(nib.load(f).dataobj) for f in (files(store, image)[1], masks / f"{image}.nii.gz"))
        scores.append([dice(mask == value, label == value) for value in (1, 2)])
    print(f"mean {np.mean(scores, axis=0)}, least {np.min(scores):.4f} of {len(scores)} cases")
    assert np.mean(scores, axis=0).min() >= 0.965
    assert np.min(scores) >= 0.95


def centroid(weights: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass in world mm."""
    return affine[:3, :3] @ np.array(ndimage.center_of_mass(weights)) + affine[:3, 3]


@pytest.mark.parametrize(
    ("kind", "step", "grid", "target"),
    [
        ("pet", 4, (6.0, 3.0, 4.0), (3.0, 4.0, 4.0)),
        ("ct", 4, (3.0, 1.2, 2.0), (2.0, 1.5, 1.5)),
        ("mr", 4, (1.5, 4.0, 1.2), (2.5, 1.5, 1.5)),
    ],
)
def test_sarcoma_on_oblique_anisotropic_grids_comes_back_in_its_place(
    real_data: Path,
    kind: str,
    step: int,
    grid: tuple[float, ...],
    target: tuple[float, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, scan in enumerate(scans(real_data, kind, step)):
        write(tmp_path / "scans", resampled(scan, grid, number, 1))
    store, masks = round_trip(tmp_path / "scans", tmp_path, monkeypatch, spacing=target)
    for image in store.index.index:
        source, label = (nib.load(path) for path in files(store, image))
        affine, tumour = label.affine, np.asarray(label.dataobj) > 0
        mask = np.asarray(nib.load(masks / f"{image}.nii.gz").dataobj) > 0
        voxel = min(np.linalg.norm(affine[:3, :3], axis=0))
        stored_label = store.read_label(image, 0, whole(store, image)).result() > 0
        ((slope, intercept),) = store.slope_intercept(image)
        stored = store.read(image, 0, whole(store, image)).result()[0] * slope + intercept
        voxels = source.get_fdata()
        shifts = {
            "mask": centroid(mask, affine) - centroid(tumour, affine),
            "stored label": centroid(stored_label, affine_of(store, image)) - centroid(tumour, affine),
            "stored image": centroid(stored - voxels.min(), affine_of(store, image))
            - centroid(voxels - voxels.min(), affine),
        }
        print(image, f"dice {dice(mask, tumour):.4f}", {k: np.linalg.norm(v) / voxel for k, v in shifts.items()})
        assert dice(mask, tumour) > 0.95
        assert all(np.linalg.norm(shift) < 0.3 * voxel for shift in shifts.values()), shifts
