"""The dense energy against all pairs of pixels in double precision, its gradient against finite differences."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pmm_ray.losses.dense_energy import LatticeFilter, dense_energy, energy_gate

SXY, SRGB = 3.0, 15.0


def pairs(image: np.ndarray) -> torch.Tensor:
    """(H W, H W) float64: exp(-|x_i - x_j|^2 / 2 sxy^2 - |c_i - c_j|^2 / 2 srgb^2) of all pairs of pixels."""
    places = np.argwhere(np.ones(image.shape[:2])) / SXY
    features = np.concatenate([places, image.reshape(-1, 3).astype(np.float64) / SRGB], axis=1)
    return torch.from_numpy(np.exp(-((features[:, None] - features) ** 2).sum(axis=2) / 2))


class BruteFilter:
    """All pairs of pixels of each image (H, W, 3), in double precision."""

    def __init__(self, images: np.ndarray):
        self.affinities = torch.stack([pairs(image) for image in images])

    def __call__(self, values):
        out = torch.einsum("nij,nlj->nli", self.affinities, values.double().flatten(2))
        return out.view(values.shape).to(values.dtype)


def scene(seed: int = 0, *, images: int = 2, labels: int = 3, side: int = 7):
    """Noisy two-coloured images (N, side, side, 3), random P (N, L, side, side), labels, and what is photo."""
    rng = np.random.default_rng(seed)
    pictures = np.where(np.arange(side)[None, None, :, None] < side // 2, (200, 60, 40), (40, 90, 180))
    pictures = np.clip(pictures + rng.integers(-15, 16, (images, side, side, 3)), 0, 255).astype(np.uint8)
    p = torch.from_numpy(rng.normal(size=(images, labels, side, side))).mul(2).softmax(dim=1)
    mask = torch.from_numpy(rng.choice([0, 1, 2, 255], (images, side, side)))
    inside = torch.ones(images, side, side, dtype=torch.bool)
    inside[0, :2] = inside[1, :, -1] = False
    return pictures, p.float(), mask.where(inside, 255), inside


def by_hand(pictures, p, mask, inside) -> list[float]:
    """The energies in loops and double precision."""
    found = []
    for n, picture in enumerate(pictures):
        k, (labels, height, width) = pairs(picture), p[n].shape
        photo = inside[n].flatten().double()
        q = p[n].double().reshape(labels, -1) * photo
        energy = 0.0
        for i in range(height * width):
            settled = mask[n].flatten()[i] != 255
            gate = max(0.0, 1 - float(q[:, i].max())) if settled else 1.0
            energy -= float(photo[i]) * gate * sum(float(q[c, i]) * float(k[i] @ q[c]) for c in range(labels))
        found.append(energy)
    return found


def test_with_exact_affinities_it_is_the_formula():
    pictures, p, mask, inside = scene()
    energies = dense_energy(p, mask, inside, filter=BruteFilter(pictures))
    assert energies.dtype == torch.float32 and (energies < 0).all()
    np.testing.assert_allclose(energies, by_hand(pictures, p, mask, inside), rtol=1e-5)


def test_the_lattice_gives_a_steady_share_of_it_and_the_direction_of_its_gradient():
    ratios, alike = [], []
    for seed in range(3):
        pictures, p, mask, inside = scene(seed, side=24)
        lattice = LatticeFilter(torch.from_numpy(pictures).movedim(-1, 1), sxy=SXY, srgb=SRGB)
        both = []
        for filter in (BruteFilter(pictures), lattice):
            p = p.detach().requires_grad_()
            energies = dense_energy(p, mask, inside, filter=filter)
            energies.sum().backward()
            both.append((energies.detach(), p.grad.flatten(1)))
        (exact, slope), (found, by_lattice) = both
        ratios += (found / exact).tolist()
        alike += torch.cosine_similarity(slope, by_lattice).tolist()
    # the same share of each, so that the weight of the loss means the same from image to image
    assert 0.52 < min(ratios) < max(ratios) < 0.6 and min(alike) > 0.995


def slopes(pictures, p, mask, inside, gate) -> torch.Tensor:
    """Central differences of the sum of the energies in double precision, the gate (N, H, W) held."""
    affinities = BruteFilter(pictures).affinities

    def total(q):
        q = q * inside[:, None]
        message = torch.einsum("nij,nlj->nli", affinities, q.flatten(2)).view(q.shape)
        return -(q * message * gate[:, None]).sum()

    found, step, p = torch.zeros_like(p, dtype=torch.float64), 1e-4, p.double()
    for place in range(p.numel()):
        moved = torch.zeros_like(p)
        moved.view(-1)[place] = step
        found.view(-1)[place] = (total(p + moved) - total(p - moved)) / (2 * step)
    return found


def gradient(pictures, p, mask, inside, **options) -> torch.Tensor:
    p = p.clone().requires_grad_()
    dense_energy(p, mask, inside, filter=BruteFilter(pictures), **options).sum().backward()
    return p.grad


def test_exact_gradient_agrees_with_finite_differences_with_the_gate_held():
    pictures, p, mask, inside = scene(side=5)
    gate = energy_gate(p * inside[:, None], mask, inside).double()
    assert len(gate.unique()) > 10
    expected = slopes(pictures, p, mask, inside, gate)
    found = gradient(pictures, p, mask, inside, gradient="exact")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_published_gradient_agrees_with_finite_differences_where_nothing_is_labelled():
    pictures, p, mask, inside = scene(side=5)
    nothing, everywhere = torch.full_like(mask, 255), torch.ones_like(inside)
    expected = slopes(pictures, p, nothing, everywhere, torch.ones_like(mask, dtype=torch.float64))
    np.testing.assert_allclose(gradient(pictures, p, nothing, everywhere), expected, rtol=1e-4, atol=1e-5)


def test_published_gradient_is_minus_2_s_k_p():
    pictures, p, mask, inside = scene(side=5)
    q = p * inside[:, None]
    expected = -2 * energy_gate(q, mask, inside)[:, None] * BruteFilter(pictures)(q)
    torch.testing.assert_close(gradient(pictures, p, mask, inside), expected)


def test_the_gate_is_what_a_label_leaves_open_and_1_without_one():
    p = torch.tensor([[[[0.9, 0.9, 0.6]], [[0.1, 0.1, 0.4]]]])
    gate = energy_gate(p, torch.tensor([[[0, 255, 1]]]), torch.tensor([[[True, True, False]]]))
    torch.testing.assert_close(gate, torch.tensor([[[0.1, 1.0, 0.0]]]))


def test_padding_has_no_part_in_it():
    pictures, p, mask, inside = scene()
    changed = torch.where(inside[:, None], p, torch.rand_like(p))
    brute = BruteFilter(pictures)
    for values in (p, changed):
        values.requires_grad_()
        dense_energy(values, mask, inside, filter=brute).sum().backward()
    torch.testing.assert_close(p.grad, changed.grad)
    assert (p.grad[(~inside)[:, None].expand_as(p)] == 0).all()


def test_a_descent_makes_look_alikes_agree():
    pictures, _, mask, inside = scene(side=8)
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    brute, nothing = BruteFilter(pictures), torch.full_like(mask, 255)
    optimizer = torch.optim.SGD([logits], lr=0.1)
    for _ in range(60):
        energy = dense_energy(logits.softmax(dim=1), nothing, torch.ones_like(inside), filter=brute).sum()
        optimizer.zero_grad()
        energy.backward()
        optimizer.step()
    for half in logits.argmax(dim=1).split(4, dim=2):
        for picture in half:
            assert picture.flatten().bincount().max() >= 0.9 * picture.numel()


def test_threads_and_one_by_one_give_the_same():
    pictures, p, mask, inside = scene()
    images = torch.from_numpy(pictures).movedim(-1, 1)
    with ThreadPoolExecutor(2) as pool:
        found = [
            dense_energy(p, mask, inside, filter=LatticeFilter(images, sxy=SXY, srgb=SRGB, map=each))
            for each in (map, pool.map)
        ]
    assert torch.equal(*found)


def test_a_value_that_is_no_number_makes_the_energy_none_and_raises_nothing():
    pictures, p, mask, inside = scene()
    p[0, 0, 3, 3] = torch.nan
    lattice = LatticeFilter(torch.from_numpy(pictures).movedim(-1, 1), sxy=SXY, srgb=SRGB)
    energies = dense_energy(p, mask, inside, filter=lattice)
    assert energies.isnan().tolist() == [True, False]


def test_bad_input_is_refused():
    _, p, mask, inside = scene()
    with pytest.raises(ValueError, match="must be"):
        dense_energy(p, mask[:1], inside, filter=lambda values: values)
    with pytest.raises(ValueError, match=r"the filter made \(1, 3, 7, 7\) of \(2, 3, 7, 7\)"):
        dense_energy(p, mask, inside, filter=lambda values: values[:1])
    one = LatticeFilter(torch.zeros(1, 3, 7, 7, dtype=torch.uint8), sxy=SXY, srgb=SRGB)
    with pytest.raises(ValueError, match="a filter for 1 images was given 2"):
        dense_energy(p, mask, inside, filter=one)
    with pytest.raises(ValueError, match="no gradient 'true'"):
        dense_energy(p, mask, inside, filter=lambda values: values, gradient="true")
