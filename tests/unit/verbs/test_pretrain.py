"""What `prevox pretrain` demands of the probe's store, and that the whole verb writes the probe's rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from prevox.cli.main import run
from prevox.config.runs import pretrain_schema
from prevox.data.store import Store
from prevox.errors import ConfigError, DataError, RunError
from prevox.reporting.folders import read_runs
from prevox.reporting.runs_page import render
from prevox.verbs.pretrain import build_probe

pytestmark = pytest.mark.unit
TINY = {
    "model": {"name": "vit", "size": "T", "patch": (4, 4, 4), "depth": 1},
    "method": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "views": {"size": (8, 8, 8)},
}
SHORT = {"steps": 3, "log_every": 1, "device": "cpu", "checkpoint_every": 2}


def settings(store: Path, out: Path, probe: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"store": store, "out": out, "train": SHORT, "probe": probe, **TINY, **more}


def changed(store: Path, copy: Path, info: dict[str, Any] | None = None, **columns: Any) -> Path:
    """A copy of a store whose store.json or columns of the index are others."""
    shutil.copytree(store, copy)
    content = json.loads((copy / "store.json").read_text())
    (copy / "store.json").write_text(json.dumps(content | (info or {})))
    index = pd.read_parquet(copy / "index.parquet")
    for name, value in columns.items():
        index[name] = [value] * len(index)
    index.to_parquet(copy / "index.parquet")
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_values": None}, r"labels of 0 subject\(s\) among the 4 training images; expected at least two"),
        ({"label_values": [0]}, r"labels of 0 subject"),  # empty label maps
        ({"subject": "one"}, r"labels of 1 subject.*--split.validation"),
        ({"info": {"channels": 4}}, r"channels 4 in the probe's store; expected 1, as in .*the same channels"),
        ({"info": {"spacing": [3, 1, 1]}}, r"spacing \[3, 1, 1\] in the probe's store; expected None"),
    ],
)
def test_a_store_that_cannot_be_probed_is_refused(change: dict, message: str, tiny_store: Path, tmp_path: Path) -> None:
    other = changed(tiny_store, tmp_path / "other", **change)
    config = pretrain_schema().parse(settings(tiny_store, tmp_path / "run", {"store": other}))
    with pytest.raises(DataError, match=message) as caught:
        build_probe(config, Store(tiny_store))
    assert str(caught.value).startswith(str(other))


def test_slices_cannot_be_probed_with_solid_views(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "shape", lambda *_: (1, 9, 10))
    config = pretrain_schema().parse(settings(tiny_store, tmp_path, {"store": tiny_store}))
    with pytest.raises(DataError, match="two-dimensional images"):
        build_probe(config, Store(tiny_store))


def test_a_missing_store_is_named(tiny_store: Path, tmp_path: Path) -> None:
    config = pretrain_schema().parse(settings(tiny_store, tmp_path, {"store": tmp_path / "gone"}))
    with pytest.raises(DataError, match=r"gone: found no such folder"):
        build_probe(config, Store(tiny_store))


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"store": "s", "every": 0}, r"'probe.every' is 0"),
        ({"store": "s", "images": 1}, r"'probe.images' is 1"),
        ({"every": 50}, r"probe: every without a store: give --probe.store"),
    ],
)
def test_settings_that_make_no_probe_are_refused(probe: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain_schema().parse(settings(tmp_path, tmp_path, probe))


def test_held_out_subjects_are_not_probed(tiny_store: Path, tmp_path: Path) -> None:
    config = pretrain_schema().parse(settings(tiny_store, tmp_path, {"store": tiny_store}))
    probe = build_probe(config, Store(tiny_store))
    assert probe is not None
    assert len(probe.fit) == len(probe.test) == 2  # one of three subjects is held out


@pytest.fixture
def pretrain(tiny_store: Path, tmp_path: Path) -> Callable[..., Path]:
    def call(name: str, probe: dict[str, Any] | None, **more: Any) -> Path:
        run("pretrain", settings(tiny_store, tmp_path / name, probe or {}, **more))
        return tmp_path / name

    return call


def test_a_probed_run_describes_the_probe_and_its_report_draws_it(
    pretrain: Callable[..., Path], tiny_store: Path
) -> None:
    probe = {"store": tiny_store, "every": 2, "images": 4}
    path, plain = pretrain("probed", probe), pretrain("plain", None)
    for name in ("task.safetensors", "pretrained.safetensors"):
        one, other = (load_file(run / "checkpoints/step_00000003" / name) for run in (path, plain))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "probe_dice" in row] == [0, 2, 3]
    described = json.loads((path / "probe.json").read_text())
    assert (described["every"], len(described["fit"]), len(described["test"])) == (2, 2, 2)
    assert not (plain / "probe.json").exists()

    page, _ = render(read_runs((path, plain)), "both")
    assert (
        page.index("<figcaption>Loss<") < page.index("<figcaption>Dice of a linear probe") < page.index("Learning rate")
    )
    assert "probe seconds" not in page
    assert "linear probe" not in render(read_runs((plain,)), "plain")[0]


def test_a_probe_may_begin_or_end_with_a_resumed_run_but_not_change(
    pretrain: Callable[..., Path], tiny_store: Path
) -> None:
    probe = {"store": tiny_store, "every": 2, "images": 4}
    path = pretrain("run", None)
    (path / "summary.json").unlink()
    pretrain("run", probe, resume=True)
    with pytest.raises(RunError, match="probed with other every"):
        pretrain("run", {**probe, "every": 1}, resume=True)
    pretrain("run", None, resume=True)
