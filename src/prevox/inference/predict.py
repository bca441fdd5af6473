"""`prevox predict`: segment images with a fine-tuned run; masks lie on the input's own grid with its exact affine.

Each image goes the way of `prepare` (canonical axes, crop, resampling, statistics), through the network window by
window, and back, a few planes at a time. One that fails is named with its reason in failures.csv and costs only itself.

Shape suffixes: C channels, K outputs, Z Y X canonical axes, I J K the file's axes.
"""

import csv
import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.markup import escape

from prevox.allocator import keep_freed_memory
from prevox.config.runs import PredictConfig
from prevox.console import console
from prevox.data.encode import channel_statistics
from prevox.data.place import Prepared, prepare_image
from prevox.data.quality import check_same_grid
from prevox.data.readers import SERIES, Header, is_picture, read_image, suffix_of, write_image, write_mask
from prevox.data.restore import WayBack
from prevox.data.runner import Failure, run_cases
from prevox.errors import ConfigError, DataError, RunError
from prevox.finetuning.network_io import LoadedNetwork, load_network
from prevox.inference.cases import Case, find_cases, of_split
from prevox.inference.sliding_window import sliding_window
from prevox.output import replacing, writable_folder
from prevox.views.normalise import normalise

COLUMNS = ("image", "file", "source", "label", "seconds")
# one compressed file of the same family; a JPEG does not keep values, and a PNG holds no probabilities
WRITTEN_AS = {".nii": ".nii.gz", ".hdr": ".nii.gz", ".nhdr": ".nrrd", ".mhd": ".mha", ".mgh": ".mgz", SERIES: ".nii.gz"}
WRITTEN_AS |= dict.fromkeys((".jpg", ".jpeg", ".tif", ".tiff"), ".png")
FOR_ALL = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)  # what the disk says to one mask it says to all


class _DiskError(RunError):
    """No further mask can be written."""


@dataclass(frozen=True)
class PredictResult:
    """What `predict` leaves behind.

    Attributes:
        path: Folder of the masks.
        predicted: Ids of the images that have one.
        failures: Image id and reason of each that has none.
    """

    path: Path
    predicted: list[str]
    failures: list[tuple[str, str]]

    @property
    def exit_code(self) -> int:
        """1 if an image could not be segmented, else 0."""
        return int(bool(self.failures))


def predict(config: PredictConfig) -> PredictResult:
    """Segment images.

    Masks go to `out` (RUN/predictions) as IMAGE.nii.gz (.nrrd, .mha, .png for such input) and replace older ones of
    that name; predictions.csv lists the masks of this call, failures.csv the images without.

    Raises:
        RunError: If the run cannot be used, masks cannot be written, or no image could be segmented.
        DataError: If there are no images.
        ConfigError: If a GPU is asked for and there is none, or images or labels lie where the masks go.
    """
    keep_freed_memory()
    device = _device(config.device)
    loaded = load_network(config.run)
    loaded.network.to(device)
    cases = find_cases(config.images)
    out = config.out or loaded.run / "predictions"
    _keep_sources(out, cases)
    if config.split != "all":
        cases = of_split(cases, loaded.run, config.split, config.images)
    writable_folder(out)
    console.print(
        f"predict: {len(cases)} images with {loaded.checkpoint.parent} on {device}; masks in {out}", markup=False
    )
    work = partial(predict_case, loaded=loaded, config=config, out=out, device=device)
    rows: list[dict[str, Any]] = []
    failures: list[tuple[str, str]] = []
    _record(out, rows, failures)
    for case, result in run_cases(work, cases, 1, lambda case: case.image, "predicting"):
        if isinstance(result, Failure):
            reason = " ".join(result.reason.split())
            if result.kind == _DiskError.__name__:
                raise RunError(f"{reason} {len(rows)} of {len(cases)} images are done; predictions.csv names them.")
            console.print(f"[red]left out:[/red] {escape(f'{case.image}: {reason}')}", markup=True)
            failures.append((case.image, reason))
        else:
            rows.append(result)
        _record(out, rows, failures)  # after each image: a full disk or a kill costs no line of what is done
    if not rows:
        raise RunError(f"{config.images}: no image could be segmented. The first, {failures[0][0]}: {failures[0][1]}")
    return PredictResult(out, [row["image"] for row in rows], failures)


def predict_case(
    case: Case, loaded: LoadedNetwork, config: PredictConfig, out: Path, device: torch.device
) -> dict[str, Any]:
    """Segment one image and write its mask.

    Returns:
        Its row of predictions.csv.

    Raises:
        DataError: If the image cannot be used or has the wrong number of channels.
        RunError: If the disk is full or cannot be written.
    """
    began = perf_counter()
    array_CIJK, header = _read(case, loaded.channels)
    prepared = prepare_image(array_CIJK, header.affine, None, loaded.prepare, case.image)
    name = case.image + _suffix(case.paths[0], header)
    label_IJK, probabilities_KIJK = _segment(prepared, loaded, config, device)
    try:
        if config.probabilities:  # first: where there is a mask, there is all that was asked for
            scored = f"{case.image}.nii.gz" if is_picture(case.paths[0]) else name
            write_image(out / "probabilities" / scored, probabilities_KIJK, header)
        write_mask(out / name, label_IJK, header)
    except OSError as error:
        if error.errno in FOR_ALL:
            raise _DiskError(
                f"{out}: cannot be written ({error.strerror}). Free space or choose another --out."
            ) from None
        raise
    return {
        "image": case.image,
        "file": name,
        "source": json.dumps([str(path) for path in case.paths], ensure_ascii=False),
        "label": str(case.label or ""),
        "seconds": f"{perf_counter() - began:.3f}",
    }


def _suffix(source: Path, header: Header) -> str:
    """Suffix of an image's mask: one file of the source's family that can hold it."""
    suffix = suffix_of(source) or ""
    if not suffix or (is_picture(source) and header.shape_ijk[2] > 1):  # slices of a volume, of a folder or of pages
        return ".nii.gz"
    return WRITTEN_AS.get(suffix, suffix)


def _read(case: Case, channels: int) -> tuple[np.ndarray, Header]:
    """All channels of an image, checked, and the first one's header."""
    if case.problem is not None:
        raise case.problem
    if Path(case.image).name != case.image or case.image.startswith("."):
        raise DataError(case.image, found="an id that is no file name", expected="an id without '/' or a leading dot")
    images = [read_image(path, case.reading) for path in case.paths]
    header = images[0].header
    for other in images[1:]:
        check_same_grid(header, other.header, "a channel")
    array_CIJK = images[0].array_CIJK if len(images) == 1 else np.concatenate([image.array_CIJK for image in images])
    if len(array_CIJK) != channels:
        raise DataError(
            case.image,
            found=f"{len(array_CIJK)} channel(s)",
            expected=f"{channels}, as in the images that the run was trained on",
            remedy="Give the same channels in the same order, in one file or as the layout's channel files.",
        )
    return array_CIJK, header


def _segment(
    prepared: Prepared, loaded: LoadedNetwork, config: PredictConfig, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Label values (I, J, K) on the source's own grid, and probabilities (K, I, J, K) where asked for, else none.

    Outside the crop the background is certain. Without probabilities nothing is held for all classes and voxels.
    """
    scheme = loaded.scheme
    way = WayBack.between(prepared.grid, prepared.source)
    label_IJK = np.zeros(prepared.source.shape, np.min_scalar_type(max(scheme.painted())))
    kept = scheme.outputs if config.probabilities else 0
    probabilities_KIJK = np.zeros((kept, *prepared.source.shape), np.float32)
    if not scheme.overlapping:
        probabilities_KIJK[:1] = 1
    label_ZYX, probabilities_KZYX = way.turned(label_IJK), way.turned(probabilities_KIJK)
    for window, block_KZYX in _blocks(way, prepared, loaded, config, device):
        label_ZYX[window] = scheme.decode(block_KZYX)
        if kept:
            probabilities_KZYX[:, *window] = block_KZYX.cpu().numpy()
    return label_IJK, probabilities_KIJK


def _blocks(
    way: WayBack, prepared: Prepared, loaded: LoadedNetwork, config: PredictConfig, device: torch.device
) -> Iterator[tuple[tuple[slice, slice, slice], torch.Tensor]]:
    """Probabilities (K, Z, Y, X) at the source's voxels, block by block."""
    body, head = loaded.network.parts()

    def probabilities(x_FZYX: torch.Tensor) -> torch.Tensor:
        return loaded.scheme.probabilities(x_FZYX if head is None else head(x_FZYX))

    statistics = [channel_statistics(channel) for channel in prepared.array_CZYX]
    x_1CZYX = normalise(torch.from_numpy(prepared.array_CZYX)[None], [statistics], loaded.normalise)
    depth = 1 if len(loaded.size) == 2 else loaded.size[0]
    if _fits(device, 4 * (x_1CZYX.numel() + loaded.scheme.outputs * depth * x_1CZYX[0, 0, 0].numel())):
        x_1CZYX = x_1CZYX.to(device)
    planes = sliding_window(body, x_1CZYX, loaded.size, config.overlap, config.batch, device)
    return way.blocks(planes, probabilities)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' was asked for and torch sees no GPU. Use --device auto.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _fits(device: torch.device, size: int) -> bool:
    """Whether image and sums may lie on the GPU and leave room for the network's activations."""
    return device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] // 3


def _keep_sources(out: Path, cases: list[Case]) -> None:
    """Refuse a folder in which a mask could replace an image or its label map.

    Raises:
        ConfigError: If one of them lies in the folder of masks or probabilities, or is that path itself.
    """
    folders = [folder.resolve() for folder in (out, out / "probabilities")]
    for case in cases:
        for path in chain(case.paths, [case.label] if case.label else []):
            places = (path.parent.resolve(), path.resolve(), path.resolve().parent)  # a link, and what it points to
            if any(folder in places for folder in folders):
                raise ConfigError(
                    f"out: {out} holds {path}, an image or a label map of '{case.image}', which a mask could replace. "
                    "Give --out a folder of its own."
                )


def _record(out: Path, rows: list[dict[str, Any]], failures: list[tuple[str, str]]) -> None:
    """Write predictions.csv, and failures.csv where there are any.

    Raises:
        RunError: If they cannot be written.
    """
    _write_csv(out / "predictions.csv", COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
    if failures:
        _write_csv(out / "failures.csv", ("image", "reason"), failures)
    else:
        (out / "failures.csv").unlink(missing_ok=True)


def _write_csv(path: Path, columns: tuple[str, ...], rows: list[Any]) -> None:
    with replacing(path) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
