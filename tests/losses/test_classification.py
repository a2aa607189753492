import math

import torch

from pmm_ray.losses.classification import multilabel_soft_margin


def test_hand_worked_values():
    # -log sigmoid(0) = log 2 for every class; then one certain class: log(1 + e^-2) and log 2.
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    expected = torch.tensor([math.log(2), (math.log1p(math.exp(-2)) + math.log(2)) / 2])
    assert torch.allclose(multilabel_soft_margin(logits, torch.tensor([[1, 0], [1, 0]])), expected)


def test_mean_over_images_is_torchs_loss():
    logits, labels = torch.randn(5, 7), torch.randint(0, 2, (5, 7))
    expected = torch.nn.functional.multilabel_soft_margin_loss(logits, labels)
    assert torch.allclose(multilabel_soft_margin(logits, labels).mean(), expected)
