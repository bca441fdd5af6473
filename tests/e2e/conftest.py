"""A tiny chain through the real command line, made once for all end-to-end tests."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from prevox.cli.main import run, settings_from
from prevox.data.phantom import write_phantoms
from tests.e2e import bad
from tests.e2e.browser import Browser

MODEL = ["--model.size", "T", "--model.patch", "8", "8", "8", "--model.depth", "2"]
METHOD = ["--method.decoder-width", "48", "--method.decoder-depth", "1", "--method.decoder-heads", "3"]
VIEW = ["--views.size", "24", "24", "24"]
PRETRAIN = [*MODEL, *METHOD, *VIEW, "--views.augment.flip", "0.5", "--train.log-every", "2"]
S3D = ["--method.name", "s3d", "--model.name", "resenc", "--model.size", "S", "--model.strides", "1", "1x2x2", "2"]
S3D += ["--model.stages", "3", *VIEW, "--method.mask-ratio", "0.6", "0.9", "--optim.name", "sgd", "--optim.lr", "0.01"]
GLMAE = ["--method.name", "glmae", *PRETRAIN, "--method.global-size", "32", "32", "32", "--method.local-count", "2"]
GLMAE += ["--method.head-hidden", "32", "--method.head-outputs", "16"]
WORDS = {"mae": ["--method.name", "mae", *PRETRAIN], "s3d": S3D, "glmae": GLMAE}  # of every method, tiny
FINETUNE = [*VIEW, "--decoder.features", "4", "--views.foreground", "0.5", "--views.augment.affine", "0.5"]


def prevox(*words: object, code: int = 0) -> str:
    """Run the command as a user would; the exit code must be the expected one."""
    command = [sys.executable, "-m", "prevox", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, f"{words}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Chain:
    """Where the parts of the chain lie."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        return self.root / name

    @property
    def catalogue(self) -> Path:
        return self.root / "c.parquet"


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Phantoms, catalogue, store, a pre-training run, and a fine-tuning run with predictions and scores."""
    made = Chain(tmp_path_factory.mktemp("chain"))
    write_phantoms(made.phantoms, 8, seed=3, shape=(28, 32, 30))
    prevox("catalogue", made.phantoms, "--out", made.catalogue)
    prevox("prepare", "--catalogue", made.catalogue, "--out", made.store, "--spacing", 3, 3, 3)
    store = ["--store", made.store]
    prevox("pretrain", *store, "--out", made.mae, *PRETRAIN, "--train.steps", 6, "--train.checkpoint-every", 3)
    prevox("finetune", *store, "--out", made.seg, "--pretrained", made.mae, *FINETUNE, "--train.steps", 4)
    prevox("predict", "--run", made.seg, "--images", made.catalogue, "--split", "validation")
    prevox("evaluate", "--predictions", made.seg, "--references", made.catalogue)
    prevox("report", "--runs", made.seg, made.mae)
    return made


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> bad.Shell:
    """`prevox` in this process."""
    return bad.Shell(capsys)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scans, c.parquet, store, a pre-training run mae, a fine-tuning run seg with predictions, and an empty file."""
    root = tmp_path_factory.mktemp("made with ü")

    def call(verb: str, *words: object) -> None:
        run(verb, settings_from(verb, [str(word) for word in words]))

    call("catalogue", bad.scans(root / "scans", 4), "--out", root / "c.parquet")
    call("prepare", "--catalogue", root / "c.parquet", "--out", root / "store", "--workers", 1)
    call("pretrain", "--store", root / "store", "--out", root / "mae", *bad.PRETRAIN, *bad.ONE_STEP)
    tune = ["--store", root / "store", "--pretrained", root / "mae", *bad.FINETUNE, *bad.ONE_STEP]
    call("finetune", *tune, "--out", root / "seg")
    call("predict", "--run", root / "seg", "--images", root / "c.parquet", "--device", "cpu")
    (root / "file").touch()
    return root


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started
