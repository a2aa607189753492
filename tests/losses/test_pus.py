from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pmm_ray.losses.pus import POW_LINEAR_BELOW, masked_mean, pretended_underfitting

VARIANTS = ["clamp", "rescale", "pow", "ignore"]


def loss_map(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1).requires_grad_()


def everywhere(loss: torch.Tensor) -> torch.Tensor:
    return torch.ones(loss.shape, dtype=torch.bool)


def gradient(loss, variant, kappa, valid=None):
    """d mean(PUS(L)) / d L of an active gate."""
    valid = everywhere(loss) if valid is None else valid
    out, active = pretended_underfitting(loss, valid, variant=variant, beta=math.inf, kappa=kappa)
    assert active
    (grad,) = torch.autograd.grad(masked_mean(out, valid), loss)
    return grad.flatten()


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("clamp", [0.1, 0.25, 0.25, 0.25]),
        ("rescale", [0.1, 0.25, 0.25, 0.25]),
        ("ignore", [0.1, 0.0, 0.0, 0.0]),
        ("pow", [0.1**0.25, 0.25**0.25, 1.0, 2.0]),
    ],
)
def test_values_hand_worked(variant, expected):
    loss = loss_map(0.1, 0.25, 1.0, 16.0)
    out, _ = pretended_underfitting(loss, everywhere(loss), variant=variant, beta=math.inf, kappa=0.25)
    np.testing.assert_allclose(out.detach().flatten(), expected, rtol=1e-12)


def test_gradients_hand_worked():
    loss = loss_map(0.1, 1.0, 4.0)
    third = 1 / 3
    np.testing.assert_allclose(gradient(loss, "clamp", 0.5), [third, 0, 0])
    np.testing.assert_allclose(gradient(loss, "ignore", 0.5), [third, 0, 0])
    np.testing.assert_allclose(gradient(loss, "rescale", 0.5), [third, third * 0.5, third * 0.125])
    np.testing.assert_allclose(gradient(loss, "pow", 0.5), [third * 0.5 * v**-0.5 for v in (0.1, 1, 4)])


def test_clamp_and_ignore_have_equal_gradients_and_rescale_not():
    loss = (3 * torch.rand(2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    with torch.no_grad():
        loss[0, 0, :2] = 0.5  # exactly kappa: the one place where they could part
    clamp, ignore, rescale = (gradient(loss, variant, 0.5) for variant in ("clamp", "ignore", "rescale"))
    assert torch.equal(clamp, ignore)
    above = (loss > 0.5).flatten()
    assert (clamp[above] == 0).all()
    assert (rescale[above] > 0).all()


def test_rescale_has_the_value_of_clamp():
    loss = loss_map(*np.linspace(0, 5, 50))
    values = [
        pretended_underfitting(loss, everywhere(loss), variant=variant, beta=math.inf, kappa=0.7)[0]
        for variant in ("clamp", "rescale")
    ]
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("variant", ["clamp", "ignore", "pow"])
def test_gradients_agree_with_finite_differences(variant):
    # Away from kappa, where clamp has a corner and ignore a step; rescale holds a factor constant, so it cannot agree.
    loss = loss_map(0.05, 0.2, 0.45, 0.55, 0.9, 3.0)
    step = 1e-6
    slopes = []
    for i in range(6):
        shifted = []
        for sign in (1, -1):
            moved = loss.detach().clone()
            moved[0, 0, i] += sign * step
            out, _ = pretended_underfitting(moved, everywhere(moved), variant=variant, beta=math.inf, kappa=0.5)
            shifted.append(masked_mean(out, everywhere(moved)))
        slopes.append(float(shifted[0] - shifted[1]) / (2 * step))
    np.testing.assert_allclose(gradient(loss, variant, 0.5), slopes, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kappa", [0.3, 0.5, 1.0, 2.0])
def test_pow_of_zero_is_zero_with_a_finite_gradient(kappa):
    loss = loss_map(0.0, POW_LINEAR_BELOW / 2, 1.0)
    out, _ = pretended_underfitting(loss, everywhere(loss), variant="pow", beta=math.inf, kappa=kappa)
    assert out[0, 0, 0] == 0
    assert torch.isfinite(gradient(loss, "pow", kappa)).all()


def test_pow_is_continuous_where_the_line_begins():
    loss = loss_map(POW_LINEAR_BELOW * (1 - 1e-9), POW_LINEAR_BELOW)
    out, _ = pretended_underfitting(loss, everywhere(loss), variant="pow", beta=math.inf, kappa=0.5)
    np.testing.assert_allclose(out.detach().flatten(), math.sqrt(POW_LINEAR_BELOW), rtol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_closed_gate_changes_neither_value_nor_gradient(variant):
    loss = loss_map(0.0, 0.2, 1.0, 3.0)  # mean 1.05
    out, active = pretended_underfitting(loss, everywhere(loss), variant=variant, beta=1.0, kappa=0.5)
    assert active.dtype == torch.bool
    assert not active
    assert torch.equal(out, loss)
    (grad,) = torch.autograd.grad(masked_mean(out, everywhere(loss)), loss)
    np.testing.assert_array_equal(grad.flatten(), 0.25)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_closed_gate_lets_no_nan_through_from_the_variant(variant):
    # torch.where sends a zero gradient into the branch it does not take: zero times infinity would be NaN.
    loss = torch.zeros(1, 2, 2, requires_grad=True)
    out, active = pretended_underfitting(loss, everywhere(loss), variant=variant, beta=0.0, kappa=0.3)
    assert not active
    out.mean().backward()
    assert torch.equal(loss.grad, torch.full((1, 2, 2), 0.25))


def test_a_mean_of_exactly_beta_keeps_the_gate_closed():
    loss = loss_map(0.25, 0.75)
    assert not pretended_underfitting(loss, everywhere(loss), variant="clamp", beta=0.5, kappa=0.5)[1]
    assert pretended_underfitting(loss, everywhere(loss), variant="clamp", beta=0.5000001, kappa=0.5)[1]


def test_the_gate_looks_at_valid_pixels_only():
    loss = loss_map(0.1, 0.3, 100.0, math.nan)
    valid = torch.tensor([[[True, True, False, False]]])
    assert pretended_underfitting(loss, valid, variant="clamp", beta=0.5, kappa=0.5)[1]
    assert not pretended_underfitting(loss, valid, variant="clamp", beta=0.2, kappa=0.5)[1]


@pytest.mark.parametrize("mean", [0.1, torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)])
def test_a_mean_given_from_outside_decides(mean):
    loss = loss_map(2.0, 4.0)
    out, active = pretended_underfitting(loss, everywhere(loss), variant="clamp", beta=0.5, kappa=0.5, mean=mean)
    assert active
    np.testing.assert_array_equal(out.detach().flatten(), [0.5, 0.5])
    low = loss_map(0.1, 0.1)
    for above in (0.5, 3.0):  # beta itself is not below beta
        assert not pretended_underfitting(low, everywhere(low), variant="clamp", beta=0.5, kappa=0.5, mean=above)[1]


def test_two_workers_with_the_global_mean_equal_one():
    whole = torch.tensor([[[0.1, 0.2, 0.9]], [[0.3, 0.6, 0.8]]])
    valid = torch.tensor([[[True, True, True]], [[True, False, True]]])
    arguments = {"variant": "rescale", "beta": 0.5, "kappa": 0.5}
    together, active = pretended_underfitting(whole, valid, **arguments)
    mean = masked_mean(whole, valid)
    parts = [pretended_underfitting(whole[i : i + 1], valid[i : i + 1], mean=mean, **arguments) for i in (0, 1)]
    assert torch.equal(torch.cat([part for part, _ in parts]), together)
    assert all(bool(own) == bool(active) for _, own in parts)
    # With means of their own they disagree: 0.4 opens the first one's gate, 0.55 keeps the second's closed.
    local = [pretended_underfitting(whole[i : i + 1], valid[i : i + 1], **arguments)[1] for i in (0, 1)]
    assert [bool(own) for own in local] == [True, False]


def test_masked_mean_leaves_ignored_pixels_out_of_sum_and_count():
    loss = loss_map(1.0, 3.0, math.nan, 7.0)
    valid = torch.tensor([[[True, True, False, False]]])
    mean = masked_mean(loss, valid)
    assert mean == 2
    (grad,) = torch.autograd.grad(mean, loss)
    np.testing.assert_array_equal(grad.flatten(), [0.5, 0.5, 0, 0])


def test_without_valid_pixels_the_mean_is_zero_and_the_gate_closed():
    loss = loss_map(1.0, 3.0)
    nowhere = ~everywhere(loss)
    mean = masked_mean(loss, nowhere)
    assert mean == 0
    np.testing.assert_array_equal(torch.autograd.grad(mean, loss)[0].flatten(), 0)
    assert not pretended_underfitting(loss, nowhere, variant="clamp", beta=0.5, kappa=0.5)[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_stays_finite(variant):
    loss = torch.tensor([[[0.0, 1e-7, 0.5, 60.0, 60000.0]]], dtype=torch.float16, requires_grad=True)
    out, _ = pretended_underfitting(loss, everywhere(loss), variant=variant, beta=math.inf, kappa=0.5)
    assert out.dtype == torch.float16
    assert torch.isfinite(out).all()
    out.sum().backward()
    assert torch.isfinite(loss.grad).all()


def test_bad_input_is_refused():
    loss = torch.ones(1, 2, 2)
    with pytest.raises(ValueError, match="no PUS variant 'cut'"):
        pretended_underfitting(loss, everywhere(loss), variant="cut", beta=0.5, kappa=0.5)
    for beta, kappa in [(-1, 0.5), (0.5, 0), (math.nan, 0.5)]:
        with pytest.raises(ValueError, match="beta >= 0 and kappa > 0"):
            pretended_underfitting(loss, everywhere(loss), variant="clamp", beta=beta, kappa=kappa)
    for valid in (torch.ones(1, 2, 2), torch.ones(2, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="valid must be bool"):
            masked_mean(loss, valid)
