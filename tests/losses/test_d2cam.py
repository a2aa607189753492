"""D2CAM's losses by hand."""

import math

import pytest
import torch

from pmm_ray.losses.d2cam import (
    UNSURE,
    category_decoupling,
    exclusivity,
    foreground_decoupling,
    stability,
    sums_of_classes,
    sure_pixels,
)


def row(*values) -> torch.Tensor:
    """(1, L, 1, n) from n pixels of L values each."""
    return torch.tensor(values, dtype=torch.float32).T[None, :, None]


def test_sure_pixels_by_hand():
    scores = row((0.1, 0.9, 0.3), (0.3, 0.7, 0.8), (0.6, 0.4, 0.2), (0.95, 0.05, 0.0), (0.1, 0.9, 0.0))
    inside = torch.tensor([[[True, True, True, True, False]]])
    found = torch.zeros(1, 2, dtype=torch.bool)
    assert sure_pixels(scores, inside, found, high=0.5, low=0.1).tolist() == [[[1, 2, UNSURE, 0, UNSURE]]]
    # the classifier misses the second class: it may be anywhere, but where the first is sure
    missed = torch.tensor([[False, True]])
    assert sure_pixels(scores, inside, missed, high=0.5, low=0.1).tolist() == [[[1, UNSURE, UNSURE, UNSURE, UNSURE]]]


def test_at_the_thresholds_themselves_nothing_is_sure():
    scores = row((0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0))
    inside, found = torch.ones(1, 1, 4, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    assert sure_pixels(scores, inside, found, high=0.5, low=0.25).tolist() == [[[1, UNSURE, UNSURE, 0]]]


def test_where_nothing_is_activated_nothing_is_sure():
    scores = torch.zeros(2, 3, 1, 2)
    scores[:, 0], scores[1, 1, 0, 0] = 1, 0.9
    inside, missed = torch.ones(2, 1, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)
    found = sure_pixels(scores, inside, missed, high=0.5, low=0.1)
    assert found.tolist() == [[[UNSURE, UNSURE]], [[1, 0]]]


def test_category_decoupling_is_the_contrast_with_the_known_prototypes_by_hand():
    # lengths do not matter; the third class is not known, the last two pixels do not count
    embedding = row((3.0, 0.0), (0.6, 0.8), (0.0, 1.0), (1.0, 1.0)).requires_grad_()
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    sure = torch.tensor([[[1, 2, 0, UNSURE]]])
    known = torch.tensor([True, True, False])
    loss = category_decoupling(embedding, sure, prototypes, known, temperature=0.5)
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-0.4)), 0, 0]
    assert loss.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    loss.sum().backward()
    gradient = embedding.grad[0, :, 0]
    assert gradient[:, 1].abs().max() > 0 and not gradient[:, 2:].any()
    # towards its own prototype, (0, 1), without a change of length
    assert gradient[1, 1] < 0 and (gradient[:, 1] @ embedding.detach()[0, :, 0, 1]).abs() < 1e-6


def test_without_any_known_class_there_is_no_loss_and_no_gradient():
    embedding = torch.randn(1, 4, 2, 2, requires_grad=True)
    nothing = torch.zeros(3, dtype=torch.bool)
    loss = category_decoupling(
        embedding, torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(3, 4), nothing, temperature=0.1
    )
    loss.sum().backward()
    assert not loss.any() and not embedding.grad.any()


def test_foreground_decoupling_pulls_to_the_own_side_of_the_image_by_hand():
    # means: foreground (1, 0); background (0.6, 0.8), (0, 1) -> half their sum, made a unit vector
    embedding = row((1.0, 0.0), (0.6, 0.8), (0.0, 1.0), (0.5, 0.5)).requires_grad_()
    sure = torch.tensor([[[2, 0, 0, UNSURE]]])
    loss, counted = foreground_decoupling(embedding, sure, temperature=1.0)
    x, y = 0.6 / math.hypot(0.6, 1.8), 1.8 / math.hypot(0.6, 1.8)
    expected = [
        math.log(1 + math.exp(x - 1)),
        math.log(1 + math.exp(0.6 - (0.6 * x + 0.8 * y))),
        math.log(1 + math.exp(-y)),
        0,
    ]
    assert loss.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert counted.tolist() == [[[True, True, True, False]]]
    # the means take no gradient: a pixel's loss moves that pixel alone, to its own side
    loss[0, 0, 1].backward()
    assert embedding.grad[0, :, 0].any(dim=0).tolist() == [False, True, False, False]
    assert embedding.grad[0, 0, 0, 1] > 0 > embedding.grad[0, 1, 0, 1]


def test_an_image_of_one_side_alone_counts_nothing():
    loss, counted = foreground_decoupling(
        torch.randn(2, 3, 1, 2), torch.tensor([[[1, 2]], [[0, UNSURE]]]), temperature=0.1
    )
    assert not loss.any() and not counted.any()


def test_stability_is_the_mean_over_the_images_own_classes_and_the_background():
    scores = torch.zeros(2, 4, 1, 2)
    averaged = scores.clone()
    averaged[0, 1] = 0.4
    averaged[0, 0, 0, 0] = 0.2
    labels = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    assert torch.allclose(stability(scores, averaged, labels), torch.tensor([(0.4 + 0.1) / 2, 0.0]))


def test_exclusivity_is_the_sum_of_products_of_pairs_without_the_background():
    scores = row((0.9, 0.5, 0.2, 0.1), (0.3, 0.8, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))
    expected = [0.5 * 0.2 + 0.5 * 0.1 + 0.2 * 0.1, 0, 0]
    assert exclusivity(scores).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_sums_of_classes_are_of_sure_unit_vectors_and_take_no_gradient():
    embedding = row((2.0, 0.0), (0.0, 0.5), (3.0, 4.0), (9.0, 9.0), (1.0, 1.0)).requires_grad_()
    sums, counts = sums_of_classes(embedding, torch.tensor([[[1, 1, 3, 0, UNSURE]]]), num_classes=3)
    assert torch.allclose(sums, torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.6, 0.8]]))
    assert counts.tolist() == [2, 0, 1] and not sums.requires_grad
