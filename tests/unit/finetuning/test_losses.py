import pytest
import torch

from prevox.finetuning.losses import class_losses, region_losses, soft_dice_loss

pytestmark = pytest.mark.unit

PAPER = {"squared_pred": True, "smooth_nr": 0.0, "smooth_dr": 1e-6}


def example(outputs=4, size=(6, 5, 4), seed=0):
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, outputs, *size, generator=rng)
    label = torch.randint(0, outputs, (2, 1, *size), generator=rng)
    return logits, label, torch.ones(2, 1, *size, dtype=torch.bool)


@pytest.mark.parametrize("size", [(6, 5, 4), (7, 3)])
def test_classes_equal_monai(size):
    from monai.losses import DiceCELoss, DiceLoss

    logits, label, valid = example(size=size)
    label[1] = label[1].clamp(max=2)  # class 3 is absent from the second sample
    dice, entropy = class_losses(logits, label, valid)
    peer = {"softmax": True, "to_onehot_y": True, "include_background": False, **PAPER}
    torch.testing.assert_close(dice.mean(), DiceLoss(**peer)(logits, label))
    torch.testing.assert_close(dice.mean() + entropy, DiceCELoss(**peer)(logits, label))


def test_regions_equal_monai():
    from monai.losses import DiceLoss

    logits, _, valid = example(3)
    target = (torch.rand(2, 3, 6, 5, 4, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    dice, entropy = region_losses(logits, target, valid)
    # MONAI's DiceCELoss takes a softmax over the regions for its second term, so its Dice alone is the peer
    torch.testing.assert_close(dice.mean(), DiceLoss(sigmoid=True, **PAPER)(logits, target))
    torch.testing.assert_close(entropy, torch.nn.BCEWithLogitsLoss()(logits, target))


def test_dice_by_hand():
    p = torch.tensor([0.5, 1.0, 0.0, 0.25]).view(1, 1, 4)
    g = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 4)
    valid = torch.tensor([True, True, True, False]).view(1, 1, 4)
    # 2 * 1.5 / ((0.25 + 1) + 2), the last voxel not counted
    torch.testing.assert_close(soft_dice_loss(p, g, valid), torch.tensor([[1 - 3 / 3.25]]))


def test_an_absent_class_costs_one_and_pulls_nowhere():
    p = torch.full((1, 1, 8), 0.3, requires_grad=True)
    loss = soft_dice_loss(p, torch.zeros(1, 1, 8), torch.ones(1, 1, 8, dtype=torch.bool))
    loss.sum().backward()
    assert loss.item() == 1
    assert torch.equal(p.grad, torch.zeros_like(p))


@pytest.mark.parametrize("losses", [class_losses, region_losses])
def test_padding_is_as_if_it_were_cut_off(losses):
    logits, label, valid = example()
    target = label if losses is class_losses else (label == torch.arange(4).view(1, 4, 1, 1, 1)).float()
    valid[:, :, 4:] = False
    logits.requires_grad_()
    dice, entropy = losses(logits, target, valid)
    (dice.mean() + entropy).backward()
    cut = (logits.detach()[:, :, :4], target[:, :, :4], valid[:, :, :4])
    expected_dice, expected_entropy = losses(*cut)
    torch.testing.assert_close(dice, expected_dice)
    torch.testing.assert_close(entropy, expected_entropy)
    assert logits.grad[:, :, 4:].abs().max() == 0


def test_nothing_valid_is_finite():
    logits, label, valid = example()
    dice, entropy = class_losses(logits, label, torch.zeros_like(valid))
    assert torch.isfinite(dice).all()
    assert entropy == 0
