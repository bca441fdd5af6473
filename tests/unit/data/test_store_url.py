"""A store behind a URL gives what the folder gives; a server on this machine answers ranges as object storage does."""

import pickle
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture
from safetensors.numpy import load_file

from prevox.cli.main import main
from prevox.config.data import CatalogueConfig, PrepareConfig
from prevox.data import store_files
from prevox.data.catalogue import catalogue
from prevox.data.prepare import prepare
from prevox.data.store import Store
from prevox.errors import DataError

pytestmark = pytest.mark.unit


class Ranges(SimpleHTTPRequestHandler):
    """Files, whole or in part; keeps the sizes of what was sent."""

    protocol_version = "HTTP/1.1"
    sent: ClassVar[list[tuple[str, int]]] = []

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        part, status = content, 200
        if asked:
            first, last = asked.groups()
            part = content[int(first) : int(last) + 1 if last else None] if first else content[-int(last) :]
            status = 206
        self.send_response(status)
        if asked:
            start = int(asked[1]) if asked[1] else len(content) - len(part)
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        self.sent.append((self.path, len(part)))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two volumes with labels, one of them with a name that a URL must quote."""
    root = tmp_path_factory.mktemp("remote")
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (root / "scans" / part).mkdir(parents=True)
    for name, side in (("a b", 70), ("c", 40)):
        voxels = rng.integers(0, 900, (side, 36, 34)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / "scans/imagesTr" / f"{name}.nii.gz")
        label = (voxels > 800).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, np.eye(4)), root / "scans/labelsTr" / f"{name}.nii.gz")
    make(root / "scans", root / "volumes")
    (root / "pictures").mkdir()
    for n in range(3):
        Picture.fromarray(rng.integers(0, 255, (20, 24)).astype(np.uint8)).save(root / "pictures" / f"p{n}.png")
    make(root / "pictures", root / "slices")
    return root


def make(scans: Path, out: Path) -> None:
    catalogue(CatalogueConfig(paths=(scans,), out=out.with_suffix(".parquet")))
    prepare(PrepareConfig(catalogue=out.with_suffix(".parquet"), out=out, workers=1))


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["volumes", "slices"])
def test_all_reads_equal_those_from_the_folder(folder: Path, url: str, name: str) -> None:
    here, there = Store(folder / name), pickle.loads(pickle.dumps(Store(f"{url}/{name}/")))
    assert there.path == f"{url}/{name}"
    assert there.info == here.info
    assert there.index.equals(here.index)
    for image in here.index.index:
        for level in range(len(here.levels(image))):
            box = tuple((size // 3, size) for size in here.shape(image, level))
            want = here.read(image, level, box).result()
            assert want.any()
            np.testing.assert_array_equal(there.read(image, level, box).result(), want)
            if here.has_label(image):
                want = here.read_label(image, level, box).result()
                np.testing.assert_array_equal(there.read_label(image, level, box).result(), want)
        np.testing.assert_array_equal(there.foreground(image), here.foreground(image))
    assert here.has_label(here.index.index[0]) == (name == "volumes")


def test_a_box_costs_its_chunks_and_not_the_image(folder: Path, url: str) -> None:
    there, shard = Store(f"{url}/volumes"), "images/a%20b.zarr/0/c/0/0/0/0"
    Ranges.sent.clear()
    there.read("a b", 0, ((0, 16), (0, 16), (0, 16))).result()
    whole = (folder / "volumes/images/a b.zarr/0/c/0/0/0/0").stat().st_size
    assert 0 < sum(size for path, size in Ranges.sent if path.endswith(shard)) < 0.6 * whole


def test_training_from_a_url_is_training_from_the_folder(folder: Path, url: str, tmp_path: Path) -> None:
    words = "--method.name mae --model.name vit --model.size T --model.depth 2 --model.patch 16 16 16"
    words += " --views.size 32 32 32 --train.steps 2 --train.batch 1"
    weights = []
    for number, store in enumerate((folder / "volumes", f"{url}/volumes")):
        out = tmp_path / str(number)
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["pretrain", "--store", str(store), "--out", str(out), *words.split()])
        weights.append(load_file(next(out.glob("checkpoints/*2/*.safetensors"))))
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_what_is_missing_there_is_named(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(store_files.GREETING, "http_request_retries", {"max_retries": 1, "initial_delay": "1ms"})
    with pytest.raises(DataError, match=r"nothing: found a folder without store\.json"):
        Store(f"{url}/nothing")
    with pytest.raises(DataError, match="no answer"):
        Store("nowhere://bucket/store")
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        port = server.server_port
    with pytest.raises(DataError, match=rf"{port}/store: found no answer .* Check address and credentials"):
        Store(f"http://127.0.0.1:{port}/store")
    monkeypatch.setitem(store_files.CONTEXT, "http_request_retries", {"max_retries": 1, "initial_delay": "1ms"})
    (folder / "volumes/images/c.zarr/0/c/0/0/0/0").rename(tmp_path / "kept")
    try:
        with pytest.raises(DataError, match=r"c\.zarr: found voxels that cannot be read .*voxels is missing"):
            Store(f"{url}/volumes").read("c", 0, ((0, 8),) * 3)
    finally:
        (tmp_path / "kept").rename(folder / "volumes/images/c.zarr/0/c/0/0/0/0")


def test_a_host_that_refuses_is_waited_for_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/store"
        with pytest.raises(SystemExit, match=r"^2$"):
            main(["pretrain", "--store", url, "--out", "none", "--train.steps", "1"])
    said = capsys.readouterr()
    assert said.out == f"waiting for an answer of {url}, 40 s at most\n"
    assert re.search(rf"{url}: found no answer \(.*All 2 retry attempts failed: .*not connect", said.err)


def test_a_host_that_goes_silent_is_not_waited_for_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_files, "PATIENCE", 0.1)
    monkeypatch.setattr(store_files, "WAIT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never says a word
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/store"
        with pytest.raises(DataError, match=rf"{url}: found no answer \(none within 1 s\)"):
            Store(url)
    assert capsys.readouterr().out == f"waiting for an answer of {url}, 1 s at most\n"


def test_a_host_that_answers_is_not_talked_about(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_files, "PATIENCE", 30.0)  # however busy this machine is
    Store(f"{url}/volumes")
    assert capsys.readouterr().out == ""
