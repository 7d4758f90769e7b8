"""Losses and penalties against float64 loops, finite differences, definitions on the larger Gram matrix."""

import math

import numpy as np
import pytest
import torch

import common


def info_nce_loop(z1, z2, temperature, cross_view):
    """The definition, one pair at a time, in float64."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    b, total = len(z1), 0.0
    for i in range(2 * b):
        positive = (i + b) % (2 * b)
        others = [j for j in range(2 * b) if (j // b != i // b if cross_view else j != i)]
        total -= math.log(
            math.exp(z[i] @ z[positive] / temperature)
            / sum(math.exp(z[i] @ z[j] / temperature) for j in others)
        )
    return total / (2 * b)


@pytest.mark.parametrize("cross_view", [False, True])
@pytest.mark.parametrize("b, m, temperature", [(2, 3, 1.0), (7, 5, 0.2), (16, 33, 0.05)])
def test_info_nce_equals_a_double_loop(b, m, temperature, cross_view):
    z1, z2 = np.random.default_rng(b).standard_normal((2, b, m))
    expected = info_nce_loop(z1, z2, temperature, cross_view)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ours = common.info_nce(*(torch.tensor(z, dtype=dtype) for z in (z1, z2)), temperature, cross_view)
        assert abs(ours.item() - expected) < tolerance * max(1, expected)


@pytest.mark.parametrize("cross_view", [False, True])
def test_info_nce_gradient_equals_finite_differences(cross_view):
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (
        torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda a, b: common.info_nce(a, b, 0.5, cross_view), (z1, z2))


def test_info_nce_gradient_on_normalised_embeddings_is_ll_equation_8():
    generator, tau, b = torch.Generator().manual_seed(0), 0.3, 5
    z = torch.nn.functional.normalize(torch.randn(2 * b, 4, dtype=torch.float64, generator=generator), dim=1)
    s = z @ z.T / tau
    p = s.masked_fill(torch.eye(2 * b, dtype=torch.bool), -math.inf).softmax(
        1
    )  # p[i, j]: j is the positive of i
    partner = torch.arange(2 * b).roll(b)
    positive = torch.zeros_like(p).scatter(1, partner[:, None], 1.0)
    # eq. 8 for every anchor, and for every pair in which z_i is the other one: -(positive - p)ᵀ counts those
    expected = -((positive - p) + (positive - p).T) @ z / tau / (2 * b)
    expected = (
        expected - (expected * z).sum(1, keepdim=True) * z
    )  # on the sphere only the tangent part is left
    free = z.clone().requires_grad_()
    common.info_nce(free[:b], free[b:], tau).backward()
    assert (free.grad - expected).abs().max() < 1e-12


def test_info_nce_is_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(64, 32, generator=generator).bfloat16() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        ours = common.info_nce(z1, z2)
    assert ours.dtype == torch.float32
    assert abs(ours.item() - info_nce_loop(z1.float().numpy(), z2.float().numpy(), 0.2, False)) < 1e-5


@pytest.mark.parametrize(
    "z1, z2, temperature",
    [
        ((1, 4), (1, 4), 0.2),
        ((4, 4), (5, 4), 0.2),
        ((4,), (4,), 0.2),
        ((4, 4), (4, 4), 0.0),
        ((4, 4), (4, 4), math.nan),
    ],
)
def test_info_nce_refuses_what_makes_no_sense(z1, z2, temperature):
    with pytest.raises(common.UserError):
        common.info_nce(torch.ones(z1), torch.ones(z2), temperature)


SHAPES = [(6, 10), (10, 6), (8, 8), (4, 3, 3, 3), (40, 2, 3, 3)]


def larger_gram_error(weight):
    w = weight.flatten(1)
    gram = w.T @ w if w.shape[0] < w.shape[1] else w @ w.T
    return gram - torch.eye(len(gram), dtype=w.dtype)


def weights_of(shape):
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).div(2).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES)
def test_lastlayer_is_the_penalty_on_the_larger_gram_matrix_less_a_constant(shape):
    weight = weights_of(shape)
    ours, theirs = common.lastlayer_penalty(weight), larger_gram_error(weight).square().sum()
    out, into = weight.flatten(1).shape
    assert abs(theirs.item() - ours.item() - abs(out - into)) < 1e-9
    gradients = [torch.autograd.grad(value, weight)[0] for value in (ours, theirs)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-10
    sigma = torch.linalg.svdvals(weight.flatten(1))
    assert abs(ours.item() - (sigma**2 - 1).square().sum().item()) < 1e-9


def test_werank_is_the_sum_of_unsquared_norms_with_the_direction_of_the_larger_gram_matrix():
    weights = [weights_of(shape) for shape in SHAPES]
    ours = common.werank_penalty(iter(weights))
    expected = sum((torch.linalg.svdvals(w.detach().flatten(1)).square() - 1).norm().item() for w in weights)
    assert abs(ours.item() - expected) < 1e-9
    for weight, mine in zip(weights, torch.autograd.grad(ours, weights)):
        (other,) = torch.autograd.grad(torch.linalg.matrix_norm(larger_gram_error(weight)), weight)
        cosine = torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0)
        assert abs(cosine.item() - 1) < 1e-10


def test_penalties_are_0_with_a_finite_gradient_where_the_rows_are_orthonormal():
    weight = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q[:5].requires_grad_()
    for value in (common.lastlayer_penalty(weight), common.werank_penalty([weight])):
        (gradient,) = torch.autograd.grad(value, weight)
        assert value.item() < 1e-12 and gradient.isfinite().all()
    identity = torch.eye(4).requires_grad_()
    assert torch.autograd.grad(common.werank_penalty([identity]), identity)[0].isfinite().all()


def test_sparsehead_sums_the_norms_of_the_input_features():
    weight = weights_of((6, 10))
    expected = sum(np.linalg.norm(weight.detach().numpy()[:, j]) for j in range(10))
    assert abs(common.sparsehead_penalty(weight).item() - expected) < 1e-12
    with torch.no_grad():
        weight[:, 3] = 0
    (gradient,) = torch.autograd.grad(common.sparsehead_penalty(weight), weight)
    assert gradient.isfinite().all() and (gradient[:, 3] == 0).all()


def test_penalties_are_float32_under_autocast():
    weight = torch.randn(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert abs(common.lastlayer_penalty(weight) / common.lastlayer_penalty(weight.double()) - 1) < 1e-5
        assert abs(common.werank_penalty([weight]) / common.werank_penalty([weight.double()]) - 1) < 1e-5
