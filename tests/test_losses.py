"""Losses and penalties against float64 loops, finite differences, definitions on the larger Gram matrix."""

import math
from itertools import product

import common
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad, gradcheck

from barlow import barlow_twins


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def info_nce_loop(z1, z2, temperature, cross_view):
    """The definition, one pair at a time, in float64."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    b = len(z1)
    total = 0.0
    for i in range(2 * b):
        positive = (i + b) % (2 * b)
        others = [j for j in range(2 * b) if (j // b != i // b if cross_view else j != i)]
        everything = sum(math.exp(z[i] @ z[j] / temperature) for j in others)
        total -= math.log(math.exp(z[i] @ z[positive] / temperature) / everything)
    return total / (2 * b)


@pytest.mark.parametrize("cross_view", [False, True])
@pytest.mark.parametrize("b, m, temperature", [(2, 3, 1.0), (7, 5, 0.2), (16, 33, 0.05)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_info_nce_equals_a_double_loop(b, m, temperature, cross_view, dtype, tolerance):
    z1, z2 = normal(2, b, m)
    expected = info_nce_loop(z1.numpy(), z2.numpy(), temperature, cross_view)
    ours = common.info_nce(z1.to(dtype), z2.to(dtype), temperature, cross_view)
    assert abs(ours.item() - expected) < tolerance * max(1, expected)


@pytest.mark.parametrize("cross_view", [False, True])
def test_info_nce_gradient_equals_finite_differences(cross_view):
    assert gradcheck(lambda z: common.info_nce(z[0], z[1], 0.5, cross_view), normal(2, 4, 3).requires_grad_())


def test_info_nce_gradient_on_normalised_embeddings_is_ll_equation_8():
    tau, b = 0.3, 5
    z = F.normalize(normal(2 * b, 4), dim=1)
    logits = (z @ z.T / tau).masked_fill(torch.eye(2 * b, dtype=torch.bool), -math.inf)
    p = logits.softmax(1)  # p[i, j]: j is the positive of i
    positive = torch.zeros_like(p).scatter(1, torch.arange(2 * b).roll(b)[:, None], 1.0)
    # eq. 8 for every anchor, and for every pair in which z_i is the other one: -(positive - p)ᵀ counts those
    expected = -((positive - p) + (positive - p).T) @ z / tau / (2 * b)
    expected -= (expected * z).sum(1, keepdim=True) * z  # on the sphere only the tangent part is left
    free = z.clone().requires_grad_()
    assert (grad(common.info_nce(free[:b], free[b:], tau), free)[0] - expected).abs().max() < 1e-12


def test_barlow_twins_is_its_double_loop():
    z = 3 * normal(2, 9, 5) + 1
    a, b = ((view - view.mean(0)) / view.std(0) for view in z.numpy())
    expected = 0.0
    for i, j in product(range(5), repeat=2):
        c = np.mean(a[:, i] * b[:, j])
        expected += (1 - c) ** 2 if i == j else 0.01 * c**2
    assert barlow_twins(*z, lambd=0.01).item() == pytest.approx(expected, rel=1e-5)
    assert barlow_twins(z[0], 2 * z[0] + 3, 0.0).item() < 1e-9  # scale and shift do not matter
    assert gradcheck(lambda z: barlow_twins(z[0], z[1], 0.01), z.requires_grad_())


def test_byol_loss_is_2_less_2_cosines_and_targets_get_no_gradient():
    p, z = normal(2, 6, 4).requires_grad_()
    cosines = (p * z).sum(1) / p.square().sum(1).sqrt() / z.square().sum(1).sqrt()
    assert common.byol_loss(p, z).item() == pytest.approx(2 - 2 * cosines.mean().item(), rel=1e-12)
    assert grad(common.byol_loss(p, z), (p, z), allow_unused=True)[1] is None


SHAPES = [(6, 10), (10, 6), (8, 8), (4, 3, 3, 3), (40, 2, 3, 3)]


def larger_gram_error(weight):
    w = weight.flatten(1)
    gram = w.T @ w if w.shape[0] < w.shape[1] else w @ w.T
    return gram - torch.eye(len(gram), dtype=w.dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_lastlayer_is_the_penalty_on_the_larger_gram_matrix_less_a_constant(shape):
    weight = normal(*shape).div(2).requires_grad_()
    values = (common.lastlayer_penalty(weight), larger_gram_error(weight).square().sum())
    out, into = weight.flatten(1).shape
    assert abs(values[1].item() - values[0].item() - abs(out - into)) < 1e-9
    ours, theirs = (grad(value, weight)[0] for value in values)
    assert (ours - theirs).abs().max() < 1e-10
    sigma = torch.linalg.svdvals(weight.flatten(1))
    assert abs(values[0].item() - (sigma**2 - 1).square().sum().item()) < 1e-9


def test_werank_is_the_sum_of_unsquared_norms_with_the_direction_of_the_larger_gram_matrix():
    weights = [normal(*shape).div(2).requires_grad_() for shape in SHAPES]
    value = common.werank_penalty(iter(weights))
    expected = sum((torch.linalg.svdvals(w.detach().flatten(1)).square() - 1).norm().item() for w in weights)
    assert abs(value.item() - expected) < 1e-9
    for weight, ours in zip(weights, grad(value, weights)):
        (theirs,) = grad(torch.linalg.matrix_norm(larger_gram_error(weight)), weight)
        assert abs(F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0).item() - 1) < 1e-10


PENALTIES = [common.lastlayer_penalty, lambda weight: common.werank_penalty([weight])]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("weight", [torch.linalg.qr(normal(8, 8)).Q[:5], torch.eye(4)])
def test_penalties_are_0_with_a_finite_gradient_where_the_rows_are_orthonormal(penalty, weight):
    weight = weight.clone().requires_grad_()
    value = penalty(weight)
    assert value.item() < 1e-12 and grad(value, weight)[0].isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_convolution_has_the_layout_of_its_weight(layout):
    weight = torch.randn(4, 3, 3, 3).to(memory_format=layout).requires_grad_()
    (gradient,) = grad(sum(penalty(weight) for penalty in PENALTIES), weight)
    assert gradient.is_contiguous(memory_format=layout)  # of another one, each step would copy it


def test_sparsehead_sums_the_norms_of_the_input_features_with_a_finite_gradient_at_0():
    weight = normal(6, 10)
    weight[:, 3] = 0
    expected = sum(np.linalg.norm(weight.numpy()[:, j]) for j in range(10))
    value = common.sparsehead_penalty(weight.requires_grad_())
    assert abs(value.item() - expected) < 1e-12
    (gradient,) = grad(value, weight)
    assert gradient.isfinite().all() and (gradient[:, 3] == 0).all()


@pytest.mark.parametrize(
    "function", [lambda z: common.info_nce(z, z.flip(0)), *PENALTIES, common.sparsehead_penalty]
)
def test_losses_and_penalties_are_float32_under_autocast(function):
    for values in (normal(32, 64).float(), normal(32, 64).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            ours = function(values)
        assert ours.dtype == torch.float32 and abs(ours / function(values.double()) - 1) < 1e-5
