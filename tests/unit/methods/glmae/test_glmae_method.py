"""The step of GL-MAE: each term, what is switched off, what is seeded, precision and padding."""

import math
from pathlib import Path

import pytest
import torch
from tests.unit.methods.glmae.tiny import IMAGES, TERMS, TINY, context, make_batch, step, tiny
from torch import Tensor

from prevox.config.data import NormaliseConfig, ViewsConfig
from prevox.config.models import ViTConfig
from prevox.data.dataset import ViewLoader, to_device
from prevox.data.store import Store
from prevox.masking.tokens import kept_tokens, random_token_mask
from prevox.methods.glmae.config import GLMAEConfig
from prevox.methods.glmae.method import build
from prevox.models.positions import interpolate
from prevox.models.transformer import Rows
from prevox.models.vit import patchify

pytestmark = pytest.mark.unit

# the whole step


@pytest.mark.parametrize("reconstruct", ["masked", "all"])
@pytest.mark.parametrize("target", ["raw", "normalised"])
def test_a_step_equals_the_equations_one_view_at_a_time(reconstruct: str, target: str) -> None:
    method = tiny(channels=2, reconstruct=reconstruct, target=target)
    assert method.teacher is not None
    assert method.head is not None
    assert method.decoder is not None
    method.teacher.centre_K.normal_()
    batch = make_batch(method.views, 2, 2)
    got = step(method, batch, seed=3).scalars

    seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(3)).tolist()
    projected: dict[str, list[Tensor]] = {}
    for kind, seed, grid in (("global", seeds[0], (6, 4)), ("local", seeds[1], (2, 3))):
        x = batch.views[kind].x_BCDHW
        mask = random_token_mask(len(x), math.prod(grid), 0.6, torch.Generator().manual_seed(seed))
        errors, projected[kind] = [], []
        for view in range(len(x)):
            order, visible = mask.order_BL[view : view + 1], mask.visible_BK[view : view + 1]
            tokens = method.encoder(x[view : view + 1], visible)
            projected[kind].append(method.head(tokens[:, 0])[0])
            prediction = method.decoder(tokens, order, grid, everywhere=True)[0]
            wanted = patchify(x[view : view + 1], (4, 4))[0]
            if target == "normalised":
                wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, False, keepdim=True) + 1e-6) ** 0.5
            counted = mask.mask_BL[view] if reconstruct == "masked" else slice(None)
            errors.append((prediction - wanted)[counted].square().mean())
        torch.testing.assert_close(got[f"{kind}_reconstruction"], torch.stack(errors).mean())
    for kind, count in (("global", 2), ("local", 3)):
        pairs = []
        for image in range(2):
            for i in range(2):
                unmasked = batch.views["global"].x_BCDHW[2 * image + i : 2 * image + i + 1]
                e = method.teacher.head(method.teacher.encoder(unmasked)[:, 0])[0]
                apart = e - method.teacher.centre_K
                teacher = (apart / apart.square().sum().sqrt() / 0.04).softmax(0)
                for j in range(count):
                    student = (projected[kind][count * image + j] / 0.1).log_softmax(0)
                    pairs.append(-(teacher * student).sum())
        assert len(pairs) == 2 * 2 * count
        torch.testing.assert_close(got[f"{kind}_consistency"], torch.stack(pairs).mean(), rtol=1e-4, atol=1e-5)


def test_positions_of_global_views_are_interpolated() -> None:
    method = tiny()
    assert method.encoder.grid == (2, 3)
    x = torch.zeros(1, 1, 24, 16)
    embedded = method.encoder._embed(patchify(x, (4, 4)), (6, 4), None)[0, 1:] - method.encoder.patch_embed.bias
    torch.testing.assert_close(embedded, interpolate(method.encoder.positions, (2, 3), (6, 4)))


def test_views_of_both_kinds_go_through_the_student_in_one_call() -> None:
    method = tiny()
    calls: list[tuple[str, list[Rows]]] = []
    assert method.teacher is not None
    for name, module in (("student", method.encoder.blocks[0]), ("teacher", method.teacher.encoder.blocks[0])):
        module.register_forward_hook(lambda _, args, __, name=name: calls.append((name, args[1])))
    step(method)
    visible = 1 + kept_tokens(24, 0.6), 1 + kept_tokens(6, 0.6)
    assert calls == [
        ("student", [Rows(IMAGES * 2, visible[0]), Rows(IMAGES * 3, visible[1])]),
        ("teacher", [Rows(IMAGES * 2, 25, slice(0, 1))]),
    ]


@pytest.mark.parametrize("off", TERMS)
def test_a_term_switched_off_equals_its_removal_from_the_sum(off: str) -> None:
    weights = {term: 0.5 + i for i, term in enumerate(TERMS)}
    batch = make_batch(tiny().views)
    full = step(tiny(**weights), batch)
    torch.testing.assert_close(full.loss, sum(weights[term] * full.scalars[term] for term in TERMS))
    without = step(tiny(**{**weights, off: 0.0}), batch)
    assert off not in without.scalars
    for term in set(TERMS) - {off}:
        torch.testing.assert_close(without.scalars[term], full.scalars[term])
    torch.testing.assert_close(without.loss, full.loss - weights[off] * full.scalars[off])


@pytest.mark.parametrize("only", TERMS)
def test_one_term_alone_needs_only_its_own_views_and_networks(only: str) -> None:
    method = tiny(**{term: float(term == only) for term in TERMS})
    kinds = {"local_reconstruction": {"local"}, "local_consistency": {"global", "local"}}.get(only, {"global"})
    assert set(method.views) == kinds
    assert (method.decoder is None) == ("consistency" in only)
    assert (method.teacher is None) == (method.head is None) == ("reconstruction" in only)
    whole = tiny()
    method.load_state_dict({name: whole.state_dict()[name] for name in method.state_dict()})
    output = step(method)
    torch.testing.assert_close(output.loss, step(whole).scalars[only])
    output.loss.backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


# randomness


def test_the_mask_seed_changes_the_student_and_not_the_teacher() -> None:
    method = tiny()
    batch = make_batch(method.views)
    said: dict[int, list[Tensor]] = {0: [], 1: []}
    assert method.teacher is not None
    assert method.head is not None
    method.teacher.head.register_forward_hook(lambda _, __, e: said[seed].append(e))
    method.head.register_forward_hook(lambda _, __, e: said[seed].append(e))
    for seed in (0, 1):
        step(method, batch, seed)
    (teacher, student, local), (other_teacher, other, other_local) = said[0], said[1]
    assert torch.equal(teacher, other_teacher)
    assert not torch.equal(student, other)
    assert not torch.equal(local, other_local)


def test_everything_random_is_a_function_of_the_seed() -> None:
    method = tiny(drop_path=0.5)
    batch = make_batch(method.views)
    torch.manual_seed(1)
    first = step(method, batch, 5).loss
    torch.manual_seed(2)
    assert torch.equal(first, step(method, batch, 5).loss)
    assert not torch.equal(first, step(method, batch, 6).loss)


# precision and padding


def test_bf16_agrees_with_fp32() -> None:
    """Within 3 % of each term, with a teacher temperature of 0.04."""
    method = tiny()
    batch = make_batch(method.views)
    exact = step(method, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = step(method, batch)
    assert exact.scalars["teacher_entropy"] < 0.9 * math.log(16), "the teacher is not uniform, or all would agree"
    for term in TERMS:
        assert rounded.scalars[term].dtype == torch.float32
        torch.testing.assert_close(rounded.scalars[term], exact.scalars[term], rtol=0.03, atol=0)


def test_padding_is_no_part_of_reconstruction() -> None:
    method = tiny(global_consistency=0, local_consistency=0)
    batch = make_batch(method.views)
    for views in batch.views.values():
        views.valid_B1DHW[..., 5:] = False  # cuts through a patch, and leaves whole ones beyond
    losses = []
    for filler in (0.0, 1e4, float("nan")):
        for views in batch.views.values():
            views.x_BCDHW = views.x_BCDHW.masked_fill(~views.valid_B1DHW, filler)
        losses.append(step(method, batch).loss)
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("reconstruct", ["masked", "all"])
@pytest.mark.parametrize("target", ["raw", "normalised"])
def test_leaving_validity_out_where_nothing_is_padded_changes_nothing(reconstruct: str, target: str) -> None:
    method = tiny(channels=2, reconstruct=reconstruct, target=target)
    found = []
    for padded in (True, False):
        batch = make_batch(method.views, 2, 2)
        for views in batch.views.values():
            views.padded = padded
        method.zero_grad()
        output = step(method, batch)
        output.loss.backward()
        gradients = [p.grad.flatten() for p in method.parameters() if p.grad is not None]
        found.append((output.scalars, torch.cat(gradients)))
    (looked, gradients), (known, same) = found
    torch.testing.assert_close(known, looked)
    torch.testing.assert_close(same, gradients, rtol=1e-3, atol=1e-5)


def test_views_at_the_stores_resolution_are_padded_and_scaled_ones_never(tiny_store: Path) -> None:
    """Images of 8 to 10 × 9 × 10 voxels, cut as 16 × 12 × 12 and, scaled, as 8 × 12 × 12."""
    store = Store(tiny_store)
    settings = {**TINY, "global_size": (16, 12, 12), "global_scale": None, "local_scale": (0.5, 1.0)}
    model, sizes = ViTConfig(size="T", patch=(4, 4, 4), depth=1), ViewsConfig(size=(8, 12, 12))
    method = build(GLMAEConfig.parse(settings), model, sizes, channels=1)
    raw = next(ViewLoader(store, sorted(store.index.index), method.views, seed=0, batch=2).batches())
    batch = to_device(raw, store, method.views, NormaliseConfig(), torch.device("cpu"), context().generator)
    padded, scaled = batch.views["global"], batch.views["local"]
    assert padded.padded
    images = [math.prod(store.shape(image)) for image in batch.images for _ in range(2)]
    assert padded.valid_B1DHW.flatten(1).sum(1).tolist() == images  # the whole image lies in a larger view
    assert not scaled.padded
    assert scaled.valid_B1DHW.all()
    whole = step(method, batch)
    padded.x_BCDHW = padded.x_BCDHW.masked_fill(~padded.valid_B1DHW, 1e4)
    assert torch.equal(step(method, batch).loss, whole.loss)


def test_pictures_of_both_kinds() -> None:
    method = tiny(reconstruct="all", target="normalised")
    drawn = method(make_batch(method.views), context(pictures=True)).pictures
    assert set(drawn) == {"global_reconstruction", "local_reconstruction"}
    assert drawn["global_reconstruction"].panels[0][1].shape == (24, 16)
    assert drawn["local_reconstruction"].panels[0][1].shape == (8, 12)
