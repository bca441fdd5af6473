"""The ways that a benchmark compares must do the same work, or its figures say nothing."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from benchmarks.saved import count_saved

pytestmark = pytest.mark.unit
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("way", ["ONE_BY_ONE", "BATCHED", "PACKED"])
def test_a_glmae_step_equals_its_peers(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients, with two images; the peers are plain PyTorch on the same weights, views and masks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import glmae_step as bench

    method = bench.ours("T", (16, 8), 4)
    views = bench.make_views(method, 2, "cpu")
    ours = bench.our_step(method, views, 2, nullcontext)
    peer = bench.peer_step(bench.Peer(method, views, 2, getattr(bench, way)), nullcontext)
    assert ours().item() == pytest.approx(peer().item(), rel=1e-5)
    assert bench.largest_deviation(bench.gradients(method, ours), bench.gradients(method, peer)) < 1e-3


def test_operations_of_attention_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products of 2 · 3 heads · 10 · 10 tokens · 4 channels; backwards, one is done again and four follow."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from harness import giga_operations

    q = torch.randn(1, 3, 10, 4, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert giga_operations(lambda: attend(q, q, q).sum().backward()) * 1e9 == pytest.approx(7 * 2 * 3 * 10 * 10 * 4)


def test_what_a_glmae_step_keeps_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import glmae_step as bench

    bench.main(["--kept", "--case", "T", "32", "16", "4"])
    printed = json.loads(capsys.readouterr().out)
    kept = [printed[f"{way}_mb"] for way in (bench.CHECKPOINTED, "ours", bench.ONE_BY_ONE)]
    assert kept == sorted(set(kept))
    assert kept[0] > 0


def test_saved_bytes_are_counted_once_and_without_what_is_left_out() -> None:
    """A product keeps both factors, 4 bytes for each of 2 · 3 and 3 · 5 numbers; a square keeps one of them."""
    x, weight = torch.ones(2, 3, requires_grad=True), torch.ones(3, 5, requires_grad=True)
    with count_saved() as saved:
        (x @ weight).sum() + x.square().sum()
    assert saved.bytes == 4 * (6 + 15)
    with count_saved(without=[weight]) as saved:
        x @ weight
    assert saved.bytes == 4 * 6
