"""What the tests of bad input share: the command line in this process, and small scans."""

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prevox.cli.main import main

SIDE = (20, 18, 22)
AFFINE = np.diag([-1.5, 1.0, 2.0, 1.0])
MODEL = ["--model.size", "T", "--model.patch", "8", "8", "8", "--model.depth", "1"]
METHOD = ["--method.decoder-width", "24", "--method.decoder-depth", "1", "--method.decoder-heads", "2"]
PRETRAIN = [*MODEL, *METHOD, "--views.size", "16", "16", "16", "--train.device", "cpu"]
FINETUNE = ["--decoder.features", "4", "--views.size", "16", "16", "16", "--train.device", "cpu"]
ONE_STEP = ["--train.steps", "1"]


class Shell:
    """Runs `prevox` as the installed command does, without the cost of a process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object, code: int = 0) -> str:
        """What was said, on one line; the exit code must be the expected one. A traceback would end the test."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        said = self.capsys.readouterr()
        text = " ".join((said.err + said.out).split())
        assert left.value.code == code, f"exit {left.value.code}: {text}"
        assert "Traceback" not in text
        assert "pydantic" not in text
        return text


def says(text: str, *parts: str) -> None:
    """Where, what was found, what was expected, what to do: all are in the message."""
    for part in parts:
        assert part in text, f"not said: {part!r}\nsaid: {text}"


def noise(seed: int = 0, shape: tuple[int, ...] = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 500, shape).astype(np.int16)


def label(value: int = 1, shape: tuple[int, ...] = SIDE) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[5:12, 5:12, 5:12] = value
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def scans(folder: Path, count: int = 3, channels: int = 1) -> Path:
    """A plain folder of labelled images, case_0 and on."""
    for number in range(count):
        voxels = [noise(number + 10 * channel) for channel in range(channels)]
        save(folder / f"images/case_{number}.nii.gz", voxels[0] if channels == 1 else np.stack(voxels, -1))
        save(folder / f"labels/case_{number}.nii.gz", np.roll(label(), number, 0))
    return folder


def texts(failures: Path) -> Iterator[str]:
    """Reasons in a failures.csv, with the image's id before them."""
    import pandas as pd

    for row in pd.read_csv(failures, dtype=str).itertuples():
        yield f"{row.image}: {row.reason}"
