import math

import pytest
import torch

from pmm_ray.losses.segmentation import (
    PIXEL_LOSSES,
    background_pixels,
    binary_cross_entropy,
    cross_entropy,
    foreground_pixels,
    valid_pixels,
)

IGNORED = torch.tensor([[[0, 2, 255]]])


def test_hand_worked_values():
    logits = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 1, 3)
    log_sum = math.log(math.e + 1 + 1 / math.e)
    assert torch.allclose(cross_entropy(logits, IGNORED), torch.tensor([[[log_sum - 1, log_sum + 1, 0.0]]]))
    yes, no = (lambda x: math.log1p(math.exp(-x))), (lambda x: math.log1p(math.exp(x)))
    first, second = yes(1) + no(0) + no(-1), no(1) + no(0) + yes(-1)
    assert torch.allclose(binary_cross_entropy(logits, IGNORED), torch.tensor([[[first, second, 0.0]]]))


@pytest.mark.parametrize("loss", PIXEL_LOSSES.values())
def test_ignored_pixels_have_neither_loss_nor_gradient(loss):
    logits = torch.randn(1, 3, 1, 3, requires_grad=True)
    loss(logits, IGNORED).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[..., 2], torch.zeros(1, 3, 1)) and (logits.grad[..., :2] != 0).all()
    assert valid_pixels(IGNORED).tolist() == [[[True, True, False]]]


def test_background_foreground_and_ignored_pixels_are_all_there_are():
    assert background_pixels(IGNORED).tolist() == [[[True, False, False]]]
    assert foreground_pixels(IGNORED).tolist() == [[[False, True, False]]]
