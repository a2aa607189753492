import torch

from pmm_ray.losses.equivariance import cross_regularisation, equivariance_regularisation


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
