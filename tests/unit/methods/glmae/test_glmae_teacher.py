"""The teacher of GL-MAE: no gradient, moving average, centre, resumption, and the alarm when it collapses."""

from pathlib import Path

import pytest
import torch
from tests.unit.methods.glmae.tiny import IMAGES, TINY, make_batch, rows, step, tiny
from torch import Tensor

from prevox.config.data import ViewsConfig
from prevox.config.models import ViTConfig
from prevox.errors import RunError
from prevox.methods.glmae.config import GLMAEConfig
from prevox.methods.glmae.method import GlobalLocalAutoencoder, build
from prevox.models.vit import patchify
from prevox.train.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.unit

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


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"head_outputs": 24}, "holds weights of another size.*teacher"),
        ({"global_consistency": 0, "local_consistency": 0}, r"holds another task's weights.*'head\.0\.bias'"),
    ],
)
def test_a_checkpoint_with_another_teacher_or_none_is_refused(other: dict, message: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, tiny(), {}, {}, {})
    with pytest.raises(RunError, match=message):
        load_checkpoint(folder, tiny(**other))


def test_the_teacher_computes_nothing_that_the_class_token_does_not_need() -> None:
    """In its last block the class token asks, and goes through norm and perceptron, alone."""
    method, seen = tiny(), []
    assert method.teacher is not None
    method.teacher.encoder.blocks[-1].expand.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    batch = make_batch(method.views)
    patches_VLP = patchify(batch.views["global"].x_BCDHW, (4, 4))
    e_BSK, _ = method.teacher(patches_VLP, (6, 4), IMAGES)
    assert seen == [IMAGES * 2]
    whole = method.teacher.head(method.teacher.encoder(batch.views["global"].x_BCDHW)[:, 0])
    torch.testing.assert_close(e_BSK.flatten(0, 1), whole, rtol=1e-4, atol=1e-4)


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
