import torch

from pmm_ray.losses.equivariance import (
    class_scores,
    cross_regularisation,
    equivariance_regularisation,
    pixel_correlation,
)


def test_scores_are_divided_by_the_maximum_filtered_by_labels_and_have_a_background():
    maps = torch.tensor([[[[2.0, 4.0, -1.0]], [[9.0, 9.0, 9.0]]]])
    scores = class_scores(maps, torch.tensor([[1.0, 0.0]]))
    assert torch.allclose(scores, torch.tensor([[[[0.5, 0.0, 1.0]], [[0.5, 1.0, 0.0]], [[0.0, 0.0, 0.0]]]]))


def test_pixels_of_one_look_share_their_mean_score_and_others_nothing():
    scores = torch.tensor([[[[1.0, 0.0, 0.25]]]])
    embedding = torch.tensor([[[[1.0, 3.0, 0.0]], [[0.0, 0.0, 2.0]]]])  # the first two point the same way
    assert torch.allclose(pixel_correlation(scores, embedding), torch.tensor([[[[0.5, 0.5, 0.25]]]]))


def test_a_pixel_takes_the_scores_of_others_as_far_as_it_looks_like_them_by_hand():
    scores = torch.tensor([[[[1.0, 0.5, 0.0]]]])
    embedding = torch.tensor([[[[1.0, 0.6, 0.0]], [[0.0, 0.8, 1.0]]]])  # cosines 0.6 and 0.8, and 0 of first and last
    expected = torch.tensor([[[[(1 + 0.6 * 0.5) / 1.6, (0.6 + 0.5) / 2.4, 0.8 * 0.5 / 1.8]]]])
    assert torch.allclose(pixel_correlation(scores, embedding), expected)


def test_opposite_looks_do_not_subtract():
    scores = torch.tensor([[[[1.0, 0.0]]]])
    assert torch.allclose(pixel_correlation(scores, torch.tensor([[[[1.0, -1.0]]]])), scores)


def test_equal_views_cost_nothing_and_a_difference_its_mean():
    first = torch.rand(2, 3, 4, 4)
    assert equivariance_regularisation(first, first).tolist() == [0, 0]
    second = first.clone()
    second[1, 0, 0, 0] += 1
    assert torch.allclose(equivariance_regularisation(first, second), torch.tensor([0.0, 1 / 48]))


def test_cross_regularisation_compares_across_views_counts_the_hardest_and_spares_the_targets():
    def view(first: float, second: float) -> torch.Tensor:
        """Two classes at five pixels, of which one has a score."""
        return torch.tensor([[[[0.0, one, 0.0, 0.0, 0.0]] for one in (first, second)]], requires_grad=True)

    plain, of_small = view(0.0, 0.0), view(0.0, 0.4)
    refined, refined_of_small = view(1.0, 0.5), view(0.2, 0.0)
    loss = cross_regularisation(plain, of_small, refined_resized=refined, refined_of_resized=refined_of_small)
    # the hardest fifth of ten values: 0.2 and 0 of the one, 1 and 0.5 - 0.4 of the other
    assert torch.allclose(loss, torch.tensor([(0.2 + 0) / 2 + (1 + 0.1) / 2]))
    loss.sum().backward()
    assert plain.grad is None and of_small.grad is None and refined.grad.any() and refined_of_small.grad.any()
