"""The step of GL-MAE: what reaches whom, what is seeded, what is averaged, what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prevox.config.base import load_recipe, recipe_names
from prevox.config.data import AugmentConfig, ViewsConfig
from prevox.config.models import ResEncConfig, ViTConfig
from prevox.config.runs import pretrain_schema
from prevox.errors import ConfigError
from prevox.masking.tokens import kept_tokens, random_token_mask
from prevox.methods.glmae.config import GLMAEConfig
from prevox.methods.glmae.method import GlobalLocalAutoencoder, build
from prevox.models.positions import interpolate
from prevox.models.vit import patchify
from prevox.task import Batch, StepContext, StepOutput, ViewGroup, Views

pytestmark = pytest.mark.unit

TERMS = ("local_reconstruction", "global_reconstruction", "global_consistency", "local_consistency")
TINY = {
    "global_size": (24, 16),
    "local_count": 3,
    "head_hidden": 24,
    "head_outputs": 16,
    "decoder_width": 24,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
IMAGES = 4


def tiny(
    channels: int = 1, drop_path: float = 0.0, positions: Any = "sincos", **changes: Any
) -> GlobalLocalAutoencoder:
    torch.manual_seed(0)
    model = ViTConfig(size="T", patch=(4, 4), depth=1, drop_path=drop_path, positions=positions)
    method = build(GLMAEConfig.parse({**TINY, **changes}), model, ViewsConfig(size=(8, 12)), channels)
    with torch.no_grad():  # outputs that differ enough for temperatures to matter
        for head in (method.head, method.teacher and method.teacher.head):
            for parameter in head.parameters() if head is not None else ():
                parameter.mul_(4)
    return method


def views_of(group: ViewGroup, images: int, channels: int, seed: int) -> Views:
    n = images * group.count
    x = torch.randn(n, channels, *group.size, generator=torch.Generator().manual_seed(seed))
    return Views(x, torch.ones(n, 1, *group.size, dtype=torch.bool), None, torch.zeros(n, 2, 3, dtype=torch.int64))


def make_batch(groups: dict[str, ViewGroup], images: int = IMAGES, channels: int = 1, seed: int = 0) -> Batch:
    views = {kind: views_of(group, images, channels, seed + len(kind)) for kind, group in groups.items()}
    return Batch(views, [f"image_{i}" for i in range(images)], torch.arange(images))


def rows(batch: Batch, images: slice) -> Batch:
    """The part of a batch that one device gets."""
    parts = {}
    for kind, v in batch.views.items():
        count = len(v.x_BCDHW) // len(batch.images)
        part = slice(images.start * count, images.stop * count)
        parts[kind] = Views(v.x_BCDHW[part], v.valid_B1DHW[part], None, v.box_B23[part])
    return Batch(parts, batch.images[images], batch.samples[images])


def context(seed: int = 0, pictures: bool = False) -> StepContext:
    return StepContext(torch.Generator().manual_seed(seed), want_pictures=pictures)


def step(method: GlobalLocalAutoencoder, batch: Batch | None = None, seed: int = 0) -> StepOutput:
    return method(batch or make_batch(method.views), context(seed))


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
                teacher = ((e - method.teacher.centre_K) / 0.04).softmax(0)
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


def test_all_views_of_a_size_go_through_in_one_call() -> None:
    method = tiny()
    calls: list[tuple[str, int]] = []
    assert method.teacher is not None
    for name, module in (("student", method.encoder.blocks[0]), ("teacher", method.teacher.encoder.blocks[0])):
        module.register_forward_hook(lambda _, args, __, name=name: calls.append((name, args[0].shape[:2])))
    step(method)
    visible = 1 + kept_tokens(24, 0.6), 1 + kept_tokens(6, 0.6)
    assert calls == [
        ("student", (IMAGES * 2, visible[0])),
        ("student", (IMAGES * 3, visible[1])),
        ("teacher", (IMAGES * 2, 25)),
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


# teacher


def test_no_gradient_reaches_the_teacher() -> None:
    method = tiny(positions="learnable")
    step(method).loss.backward()
    assert method.teacher is not None
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(p.grad is not None for name, p in method.named_parameters() if not name.startswith("teacher."))
    assert not method.train().teacher.encoder.training


def test_the_teacher_follows_in_closed_form() -> None:
    """With a student that stands still, m_n = μ^n m_0 + (1 − μ^n) s (equation 5)."""
    method = tiny(positions="learnable")
    assert method.teacher is not None
    assert method.head is not None
    student = [*method.encoder.parameters(), *method.head.parameters()]
    teacher = [*method.teacher.encoder.parameters(), *method.teacher.head.parameters()]
    assert all(torch.equal(s, t) for s, t in zip(student, teacher, strict=True)), "the teacher starts as a copy"
    before = [t.detach().clone() for t in teacher]
    with torch.no_grad():
        for s in student:
            s.normal_()
    for _ in range(5):
        method.teacher.update(method.encoder, method.head, momentum=0.9, progress=0)
    for s, t, first in zip(student, teacher, before, strict=True):
        torch.testing.assert_close(t, 0.9**5 * first + (1 - 0.9**5) * s)


def test_the_last_update_leaves_the_teacher_alone_and_the_first_uses_the_settings() -> None:
    method = tiny(momentum=0.5)
    assert method.teacher is not None
    weight, student = method.teacher.encoder.patch_embed.weight, method.encoder.patch_embed.weight
    with torch.no_grad():
        student.add_(1)
    output, before = step(method), weight.clone()
    method.after_update(1.0, output)
    assert torch.equal(weight, before)
    method.after_update(0.0, output)
    torch.testing.assert_close(weight, (before + student) / 2)


def test_the_centre_is_a_moving_mean_of_the_teachers_outputs() -> None:
    method = tiny(centre_momentum=0.75)
    batch = make_batch(method.views)
    assert method.teacher is not None
    e = method.teacher.head(method.teacher.encoder(batch.views["global"].x_BCDHW)[:, 0])
    expected = 0.25 * e.mean(0)
    before = step(method, batch)
    assert not method.teacher.centre_K.any(), "the centre moves after the step"
    method.after_update(1.0, before)
    torch.testing.assert_close(method.teacher.centre_K, expected)
    method.after_update(1.0, step(method, batch))
    torch.testing.assert_close(method.teacher.centre_K, 0.75 * expected + 0.25 * e.mean(0))


@pytest.mark.parametrize(("literal", "centring"), [(True, True), (False, False)])
def test_without_centring_the_centre_changes_nothing(literal: bool, centring: bool) -> None:
    method = tiny(literal=literal, centring=centring)
    assert method.teacher is not None
    assert method.teacher.temperature == (0.1 if literal else 0.04)
    batch = make_batch(method.views)
    before = step(method, batch).loss
    method.teacher.centre_K.normal_()
    assert torch.equal(before, step(method, batch).loss)


def test_several_passes_give_the_centre_of_one() -> None:
    """What a step's passes see is averaged before it is applied, as over devices."""
    one, two = tiny(), tiny()
    batch = make_batch(one.views)
    one.after_update(0.5, step(one, batch))
    for part in (slice(0, 2), slice(2, 4)):
        output = step(two, rows(batch, part))
    two.after_update(0.5, output)
    assert one.teacher is not None
    assert two.teacher is not None
    torch.testing.assert_close(one.teacher.centre_K, two.teacher.centre_K)
    torch.testing.assert_close(one.teacher.mean_K, two.teacher.mean_K)


def test_a_run_goes_on_bit_for_bit_from_its_state() -> None:
    def train(method: GlobalLocalAutoencoder, steps: range, optimiser: torch.optim.Optimizer) -> list[Tensor]:
        losses = []
        for number in steps:
            output = step(method, make_batch(method.views, seed=number), number)
            optimiser.zero_grad()
            output.loss.backward()
            optimiser.step()
            method.after_update((number + 1) / 6, output)
            losses.append(output.loss.detach())
        return losses

    def adam(method: GlobalLocalAutoencoder) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)

    whole = tiny()
    expected = train(whole, range(6), adam(whole))
    first = tiny()
    optimiser = adam(first)
    train(first, range(3), optimiser)
    resumed = tiny(student_temperature=0.1)
    with torch.no_grad():
        for tensor in resumed.state_dict().values():
            tensor.add_(1)
    resumed.load_state_dict(first.state_dict())
    later = adam(resumed)
    later.load_state_dict(optimiser.state_dict())
    assert torch.equal(torch.stack(train(resumed, range(3, 6), later)), torch.stack(expected[3:]))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert {"teacher.centre_K", "teacher.encoder.class_token"} <= whole.state_dict().keys()


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


def test_pictures_of_both_kinds() -> None:
    method = tiny(reconstruct="all", target="normalised")
    drawn = method(make_batch(method.views), context(pictures=True)).pictures
    assert set(drawn) == {"global_reconstruction", "local_reconstruction"}
    assert drawn["global_reconstruction"].panels[0][1].shape == (24, 16)
    assert drawn["local_reconstruction"].panels[0][1].shape == (8, 12)


# collapse


def train_on_levels(literal: bool, capsys: pytest.CaptureFixture[str]) -> tuple[Tensor, str]:
    """Consistency alone, on six images that differ in their level; returns the alarm of each step and what is said."""
    torch.manual_seed(0)
    settings = {**TINY, "literal": literal, "local_count": 2, "local_reconstruction": 0, "global_reconstruction": 0}
    settings |= {"momentum": 0.9, "global_size": (16, 16)}
    views = ViewsConfig(size=(8, 8))
    method = build(GLMAEConfig.parse(settings), ViTConfig(size="T", patch=(4, 4), depth=1), views, 1)
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    level = torch.linspace(-2, 2, 6).view(-1, 1, 1, 1)
    alarms = []
    for number in range(100):
        batch = make_batch(method.views, 6, seed=number)
        for kind, views_ in batch.views.items():
            views_.x_BCDHW = 0.1 * views_.x_BCDHW + level.repeat_interleave(method.views[kind].count, 0)
        output = step(method, batch, number)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        method.after_update((number + 1) / 100, output)
        alarms.append(output.scalars["collapse"])
    return torch.stack(alarms), " ".join(capsys.readouterr().out.split())


def test_the_literal_form_collapses_and_the_alarm_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    alarms, said = train_on_levels(literal=True, capsys=capsys)
    assert not alarms[:30].any()
    assert alarms[50:].all()
    assert said.count("class tokens have collapsed") == 1


def test_two_temperatures_and_a_centre_do_not_collapse_on_the_same_images(capsys: pytest.CaptureFixture[str]) -> None:
    alarms, said = train_on_levels(literal=False, capsys=capsys)
    assert not alarms.any()
    assert "collapsed" not in said


@pytest.mark.parametrize("outputs", ["uniform", "one", "constant"])
def test_every_constant_teacher_raises_the_alarm(outputs: str) -> None:
    method = tiny(literal=True)
    bias = {"uniform": torch.zeros(16), "one": torch.eye(16)[0] * 9, "constant": torch.linspace(-0.2, 0.2, 16)}[outputs]
    assert method.teacher is not None
    assert method.head is not None
    with torch.no_grad():
        for head in (method.head, method.teacher.head):
            head[-1].weight.zero_()
            head[-1].bias.copy_(bias)
    for number in range(60):
        output = step(method, make_batch(method.views, 1), number)
        method.after_update(number / 60, output)
    assert output.scalars["collapse"] == 1


# build


def test_build_passes_every_setting_on() -> None:
    settings = GLMAEConfig.parse(
        {**TINY, "global_count": 3, "global_scale": (0.6, 0.9), "local_scale": None, "mask_ratio": 0.5, "momentum": 0.9}
    )
    augment = AugmentConfig(flip=0.5)
    views = ViewsConfig(size=(8, 12), axes="independent", augment=augment)
    method = build(settings, ViTConfig(size="T", patch=(4, 4), depth=2), views, 3)
    assert method.views == {
        "global": ViewGroup((24, 16), 3, augment=augment, scale=(0.6, 0.9), axes="independent"),
        "local": ViewGroup((8, 12), 3, augment=augment, scale=None, axes="independent"),
    }
    assert (method.mask_ratio, method.momentum) == (0.5, 0.9)
    assert method.spec.settings["grid"] == [2, 3]
    assert method.head is not None
    assert [layer.out_features for layer in method.head if isinstance(layer, torch.nn.Linear)] == [24, 24, 16]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"global_count": 0},
            "global_count is 0, and global_reconstruction, global_consistency, local_consistency need",
        ),
        ({"local_count": 0}, "local_count is 0, and local_reconstruction, local_consistency need"),
        ({"global_count": -1}, "global_count"),
        ({"mask_ratio": 0}, "mask_ratio"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"global_scale": (1.0, 0.5)}, "'global_scale'.*LOW HIGH with LOW <= HIGH"),
        ({"local_scale": (0.5, 0.25)}, "'local_scale'.*LOW HIGH with LOW <= HIGH"),
        ({"local_scale": (0.5, 1.5)}, "local_scale"),
        ({"decoder_heads": 5}, "decoder_heads 5 must divide decoder_width 576"),
        (dict.fromkeys(TERMS, 0), "nothing would be learnt"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GLMAEConfig.parse(wrong)


def test_no_local_views_are_needed_where_their_terms_are_off() -> None:
    method = tiny(local_count=0, local_reconstruction=0, local_consistency=0)
    assert set(method.views) == {"global"}
    assert step(method).loss.isfinite()


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"global_size": (22, 16)}, (8, 12), "method.global_size is 22 along y, which model.patch 4 does not divide"),
        ({}, (8, 10), "views.size is 10 along x, which model.patch 4 does not divide"),
        ({"global_size": (16, 16, 16)}, (8, 12), "method.global_size has 3 numbers"),
        ({"mask_ratio": 0.95}, (8, 12), "leaves 0 visible"),
    ],
)
def test_views_that_do_not_fit_are_refused(settings: dict[str, Any], size: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(GLMAEConfig.parse({**TINY, **settings}), ViTConfig(size="T", patch=(4, 4)), ViewsConfig(size=size), 1)


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected vit"):
        build(GLMAEConfig.parse(TINY), ResEncConfig(), ViewsConfig(size=(8, 12)), 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="class_token is false"):
        build(GLMAEConfig.parse(TINY), ViTConfig(patch=(4, 4), class_token=False), ViewsConfig(size=(8, 12)), 1)


def test_build_says_what_it_ignores(capsys: pytest.CaptureFixture[str]) -> None:
    views = ViewsConfig(size=(8, 12), foreground=0.5, scale=(0.5, 1), count=2)
    build(GLMAEConfig.parse({**TINY, "literal": True}), ViTConfig(size="T", patch=(4, 4), depth=1), views, 1)
    said = capsys.readouterr().out
    for word in ("views.foreground is ignored", "views.scale is ignored", "views.count is ignored", "method.literal"):
        assert word in said


# recipes

RECIPES = {
    # recipe: encoder width, decoder, lr, epochs
    "glmae-vit-b": (768, (576, 8, 16), 1e-2, 1600),
    "glmae-vit-t": (192, (192, 4, 3), 1e-2, 1600),
    "glmae-vit-t-cpu": (192, (96, 2, 3), 5e-4, None),
}


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipes_build_and_hold_the_papers_numbers(recipe: str) -> None:
    assert recipe in recipe_names("pretrain")
    plain = {**load_recipe("pretrain", recipe), "store": "store", "out": "run"}
    config: Any = pretrain_schema("glmae").parse(plain, recipe)
    with torch.device("meta"):
        method = build(config.method, config.model, config.views, 1)
    width, decoder, lr, epochs = RECIPES[recipe]
    assert method.encoder.width == width
    assert (config.method.decoder_width, config.method.decoder_depth, config.method.decoder_heads) == decoder
    assert (config.optim.lr, config.train.epochs) == (lr, epochs)
    if epochs is not None:
        assert method.views["global"] == ViewGroup(
            (160, 160, 160), 2, scale=(0.5, 1.0), augment=config.views.augment, axes="joint"
        )
        assert method.views["local"] == ViewGroup(
            (96, 96, 96), 8, scale=(0.25, 0.5), augment=config.views.augment, axes="joint"
        )
        assert [kept_tokens(n, config.method.mask_ratio) for n in (1000, 216)] == [400, 86]
        assert config.normalise.window == (-1000, 1000)
        assert config.train.batch * config.train.accumulation == 256
