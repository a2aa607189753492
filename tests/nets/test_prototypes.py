import torch

from pmm_ray.nets.prototypes import Prototypes


def test_a_prototype_is_the_first_mean_and_then_follows_and_others_stay():
    found = Prototypes(3, 2)
    found.follow(torch.tensor([[2.0, 0.0], [0.0, 0.0], [3.0, 4.0]]), torch.tensor([2.0, 0.0, 6.0]), momentum=0.75)
    assert torch.allclose(found.vectors, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.6, 0.8]]))
    assert found.known.tolist() == [True, False, True]
    found.follow(torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([9.0, 1.0, 0.0]), momentum=0.75)
    length = (0.75**2 + 0.25**2) ** 0.5
    assert torch.allclose(found.vectors, torch.tensor([[0.75 / length, 0.25 / length], [0.0, 1.0], [0.6, 0.8]]))
    assert found.met.tolist() == [11, 1, 6]


def test_it_is_saved_and_takes_no_gradient():
    found = Prototypes(2, 4)
    assert set(found.state_dict()) == {"vectors", "met"} and not list(found.parameters())
