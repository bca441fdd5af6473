"""`prepare --shard`: the tasks of a job array, in turn or at the same time, make the store that one call makes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from prevox.config.data import CatalogueConfig, PrepareConfig
from prevox.data import pack as module
from prevox.data.catalogue import catalogue
from prevox.data.phantom import write_phantoms
from prevox.data.prepare import prepare
from prevox.data.store import Store
from prevox.errors import DataError

pytestmark = pytest.mark.unit


def contents(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def run(root: Path, out: str, shard: str | None = None, **settings):
    given = {"workers": 1, "spacing": "median", "shard": shard} | settings
    return prepare(PrepareConfig(catalogue=root / "c.parquet", out=root / out, **given))


@pytest.fixture
def seven(tmp_path):
    write_phantoms(tmp_path / "scans", 7, seed=3, shape=(9, 11, 10))
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "c.parquet", workers=1))
    return tmp_path


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Eleven pictures of three sizes; packs hold at most two."""
    monkeypatch.setattr(module, "_COUNT", 2)
    rng = np.random.default_rng(0)
    for number in range(11):
        shape = ((9, 11), (9, 20), (30, 8))[number % 3]
        path = tmp_path / "scans" / f"p{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Pillow.fromarray(rng.integers(1, 255, shape, dtype=np.uint8)).save(path)
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "c.parquet", workers=1))
    return tmp_path


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_volumes_in_turn(seven, order):
    run(seven, "whole")
    results = {n: run(seven, "parts", f"{n}/3") for n in order}
    assert [results[n].prepared for n in (1, 2, 3)] == [3, 2, 2]
    assert not any(result.failures or result.exit_code for result in results.values())
    assert not (seven / "parts" / "index.parquet").exists()
    last = run(seven, "parts")
    assert (last.prepared, last.skipped) == (0, 7)
    assert contents(seven / "parts") == contents(seven / "whole")


def test_slices_in_turn_make_the_same_packs(pictures):
    run(pictures, "whole")
    assert len(list((pictures / "whole" / "packs").iterdir())) == 6  # 4 + 4 + 3 in pairs of one size or the next
    counts = [run(pictures, "parts", f"{n}/4").prepared for n in (4, 2, 1, 3)]
    assert sum(counts) == 11
    assert min(counts) > 0
    assert run(pictures, "parts").prepared == 0
    assert contents(pictures / "parts") == contents(pictures / "whole")


def test_more_tasks_than_images(seven):
    run(seven, "whole")
    assert [run(seven, "parts", f"{n}/9").prepared for n in range(1, 10)] == [1] * 7 + [0] * 2
    run(seven, "parts")
    assert contents(seven / "parts") == contents(seven / "whole")


def test_a_task_that_never_ran_is_made_up_for(seven):
    run(seven, "whole")
    run(seven, "parts", "1/2")
    last = run(seven, "parts")
    assert (last.prepared, last.skipped) == (3, 4)
    assert contents(seven / "parts") == contents(seven / "whole")


def test_what_a_task_cannot_prepare_is_said_by_it_and_by_the_last_call(seven):
    sorted((seven / "scans").rglob("imagesTr/*.nii.gz"))[2].write_bytes(b"no image")
    failed = {image for n in (1, 2) for image, _ in run(seven, "parts", f"{n}/2").failures}
    assert len(failed) == 1
    assert not (seven / "parts" / "failures.csv").exists()
    last = run(seven, "parts")
    assert {image for image, _ in last.failures} == failed
    assert last.exit_code == 1
    assert failed.pop() in (seven / "parts" / "failures.csv").read_text()
    assert len(Store(seven / "parts").index) == 6


def test_a_store_without_its_last_call_says_so(seven):
    run(seven, "parts", "1/2")
    with pytest.raises(DataError, match=r"without index\.parquet.*without --shard"):
        Store(seven / "parts")


def test_rows_of_packs_are_brought_up_to_date_by_the_last_call(pictures):
    run(pictures, "store")
    table = pictures / "t.csv"
    table.write_text("picture,site\n" + "".join(f"p{n:02d},{n % 2}\n" for n in range(11)))
    catalogue(CatalogueConfig(paths=(pictures / "scans",), out=pictures / "c.parquet", table=table, workers=1))
    before = contents(pictures / "store")
    assert [run(pictures, "store", f"{n}/2").prepared for n in (1, 2)] == [0, 0]
    assert contents(pictures / "store") == before
    run(pictures, "store")
    assert Store(pictures / "store").index["site"].astype(int).tolist() == [n % 2 for n in range(11)]


def test_tasks_at_the_same_time_make_the_same_store(seven):
    """Each a process of its own, started together on a folder that is not there yet, twice each."""
    run(seven, "whole")
    words = [sys.executable, "-m", "prevox", "prepare", "--catalogue", seven / "c.parquet", "--out", seven / "parts"]
    words = [*map(str, words), "--spacing", "median", "--workers", "1", "--shard"]
    tasks = [
        subprocess.Popen([*words, shard], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for shard in ("1/3", "2/3", "3/3", "2/3")
    ]
    said = [task.communicate()[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0] * 4, said
    assert run(seven, "parts").prepared == 0
    assert contents(seven / "parts") == contents(seven / "whole")


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3"])
def test_what_is_no_shard_is_refused(shard):
    with pytest.raises(ValueError, match="expected I/N with I from 1 to N"):
        PrepareConfig(catalogue=Path("c.parquet"), out=Path("store"), shard=shard)
