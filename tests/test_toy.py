"""Toy models: the papers' theory in float64 against autograd, loops, finite differences; the script."""

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import common
import toy_linear

D = toy_linear.DIM


def views(batch=12, k=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, batch, D, dtype=torch.float64, generator=generator)
    noise[:, : -toy_linear.NOISY] = 0
    return x, x + math.sqrt(k) * noise


def layers(count, seed=0):
    weight = toy_linear.initial_weights("decaying", count, torch.Generator().manual_seed(seed)).double()
    return weight.requires_grad_()


def summed_loss(weight, x1, x2):
    """DirectCLR eq. 2 as printed, a sum."""
    return len(x1) * common.info_nce_euclidean(*(toy_linear.network(weight, x) for x in (x1, x2)))


def flow(weight, x1, x2):
    """Ẇ = -∂L/∂W of all layers, and G, the gradient of their product."""
    velocity = -torch.autograd.grad(summed_loss(weight, x1, x2), weight)[0]
    whole = toy_linear.product(weight).detach()[None].requires_grad_()
    return velocity, torch.autograd.grad(summed_loss(whole, x1, x2), whole)[0][0]


# -------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("b, m", [(2, 3), (9, 4)])
def test_info_nce_euclidean_equals_a_double_loop(b, m):
    z1, z2 = np.random.default_rng(b).standard_normal((2, b, m))
    expected = 0
    for i in range(b):
        positive = math.exp(-((z1[i] - z2[i]) ** 2).sum() / 2)
        negative = sum(math.exp(-((z1[i] - z1[j]) ** 2).sum() / 2) for j in range(b) if j != i)
        expected -= math.log(positive / (negative + positive)) / b
    assert abs(common.info_nce_euclidean(torch.tensor(z1), torch.tensor(z2)).item() - expected) < 1e-12


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (10.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 2.0)])
def test_vicreg_equals_numpy(weights):
    z1, z2 = np.random.default_rng(0).standard_normal((2, 11, 5)) * np.array([0.1, 0.5, 1, 1.5, 2])
    expected = weights[0] * ((z1 - z2) ** 2).mean()
    for z in (z1, z2):
        expected += weights[1] / 2 * np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean()
        cov = np.cov(z.T)
        expected += weights[2] * sum(cov[i, j] ** 2 for i in range(5) for j in range(5) if i != j) / 5
    assert abs(common.vicreg(torch.tensor(z1), torch.tensor(z2), *weights).item() - expected) < 1e-12


def test_byol_loss_equals_numpy_and_targets_get_no_gradient():
    p, z = np.random.default_rng(0).standard_normal((2, 7, 5))
    cosine = (p * z).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1)
    p, z = (torch.tensor(a, requires_grad=True) for a in (p, z))
    loss = common.byol_loss(p, z)
    loss.backward()
    assert abs(loss.item() - (2 - 2 * cosine).mean()) < 1e-12 and z.grad is None and p.grad.abs().max() > 0


@pytest.mark.parametrize(
    "loss", [common.info_nce_euclidean, common.vicreg, common.byol_loss, toy_linear.info_nce_public]
)
def test_a_batch_of_losses_is_the_losses_one_by_one(loss):
    z1, z2 = torch.randn(2, 3, 2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = loss(z1, z2)
    assert together.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            assert abs(together[i, j] - loss(z1[i, j], z2[i, j])) < 1e-12


def test_public_code_loss_is_cross_entropy_of_inner_products():
    z1, z2 = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(z1 @ z2.T / 0.1, torch.arange(9))
    assert abs(toy_linear.info_nce_public(z1, z2) - expected) < 1e-12


# -------------------------------------------------------------------------------------------------- theory


def test_growth_matrix_equals_lemma_2_pair_by_pair():
    (x1, x2), weight = views(7), layers(1).detach()[0]
    z1, z2 = (x1 @ weight.T).numpy(), (x2 @ weight.T).numpy()
    expected, a, b = np.zeros((D, D)), x1.numpy(), x2.numpy()
    for i in range(7):
        row = np.array([math.exp(-((z1[i] - (z2 if i == j else z1)[j]) ** 2).sum() / 2) for j in range(7)])
        alpha = row / row.sum()
        for j in range(7):
            expected += alpha[j] * np.outer(a[i] - a[j], a[i] - a[j])
        expected -= (1 - alpha[i]) * np.outer(b[i] - a[i], b[i] - a[i])
    assert np.abs(toy_linear.growth_matrix(weight, x1, x2).numpy() - expected).max() < 1e-10


@pytest.mark.parametrize("count", [1, 2])
def test_gradient_is_minus_w_x(count):
    """Lemmas 1 and 2, and lemma 3 for two layers; eq. 6 with its printed minus would give the opposite."""
    (x1, x2), weight = views(), layers(count)
    velocity, g = flow(weight, x1, x2)
    whole = toy_linear.product(weight.detach())
    x = toy_linear.growth_matrix(whole, x1, x2)
    assert (g + whole @ x).abs().max() < 1e-10 and g.abs().max() > 0.01
    if count == 2:
        w1, w2 = weight.detach()
        assert (velocity[0] + w2.T @ g).abs().max() < 1e-10
        assert (velocity[1] + g @ w1.T).abs().max() < 1e-10


def conserved(weight):
    return weight[0] @ weight[0].mT - weight[1].mT @ weight[1]


def test_flow_conserves_and_gradient_descent_drifts_in_proportion_to_its_rate():
    """Theorem 2: W₁W₁ᵀ - W₂ᵀW₂. Its derivative along the flow is 0; a step of descent adds lr² times a
    constant, so over a fixed time the drift is proportional to lr."""
    (x1, x2), weight = views(), layers(2)
    velocity, _ = flow(weight, x1, x2)
    _, derivative = torch.autograd.functional.jvp(conserved, weight.detach(), velocity)
    assert derivative.abs().max() < 1e-10
    drifts = []
    for steps in (200, 400, 800):
        w = weight.detach().clone()
        for _ in range(steps):
            w = w + 0.2 / steps * flow(w.requires_grad_(), x1, x2)[0]
            w = w.detach()
        drifts.append((conserved(w) - conserved(weight.detach())).norm().item())
    assert drifts[0] > 1e-6 and all(1.8 < a / b < 2.2 for a, b in pairwise(drifts))


def svd(weight):
    u, s, vh = torch.linalg.svd(weight)
    return u, s, vh.mT


def signed_alignment(weight, reference):
    """V₂ᵀU₁, singular vectors with the signs of the reference's."""
    (u1, _, _), (_, _, v2) = svd(weight[0]), svd(weight[1])
    (u1_, _, _), (_, _, v2_) = reference
    return (v2 * (v2 * v2_).sum(0).sign()).mT @ (u1 * (u1 * u1_).sum(0).sign())


def test_singular_values_move_by_lemma_4():
    (x1, x2), weight, step = views(), layers(2), 1e-6
    velocity, _ = flow(weight, x1, x2)
    weight = weight.detach()
    for w, v in zip(weight, velocity):
        u, _, right = svd(w)
        slope = (torch.linalg.svdvals(w + step * v) - torch.linalg.svdvals(w - step * v)) / (2 * step)
        assert ((u.mT @ v @ right).diagonal() - slope).abs().max() < 1e-7 * max(1, slope.abs().max())


def test_alignment_moves_by_lemma_6_with_the_sign_of_its_proof():
    """Eq. 18 with H_kk' = 1/(σ_k'² - σ_k²); the printed H is the opposite, and off by exactly that sign."""
    (x1, x2), weight, step = views(), layers(2), 1e-7
    velocity, g = flow(weight, x1, x2)
    weight = weight.detach()
    one, two = svd(weight[0]), svd(weight[1])
    (u1, s1, v1), (u2, s2, v2) = one, two

    def h(s, sign=1):
        difference = sign * (s**2 - s[:, None] ** 2)
        return torch.where(torch.eye(D, dtype=torch.bool), 0, 1 / difference)

    a, f = v2.mT @ u1, torch.diag(s2) @ u2.mT @ g @ v1 @ torch.diag(s1)
    left, right = a.mT @ f + f.mT @ a, a @ f.mT + f @ a.mT
    predicted, printed = ((h(s2, sign) * right) @ a - a @ (h(s1, sign) * left) for sign in (1, -1))
    plus, minus = (signed_alignment(weight + sign * step * velocity, (one, two)) for sign in (1, -1))
    slope = (plus - minus) / (2 * step)
    assert (predicted - slope).norm() < 1e-5 * slope.norm()
    assert (printed + slope).norm() < 1e-5 * slope.norm()


def test_direction_that_x_makes_negative_vanishes_as_exp_of_x():
    """Theorem 1: for fixed X the flow is W(0) exp(Xt)."""
    (x1, x2), weight = views(200, 4.0), layers(1).detach()[0]
    x = toy_linear.growth_matrix(weight, x1, x2) / 200
    w, steps = weight.clone(), 20_000
    for _ in range(steps):
        w = w + 5 / steps * w @ x
    exact = weight @ torch.linalg.matrix_exp(5 * x)
    assert (w - exact).norm() < 2e-2 * exact.norm()
    values, vectors = torch.linalg.eigh(x)
    assert (
        values[0] < 0
        and ((exact @ vectors[:, 0]).norm() / (weight @ vectors[:, 0]).norm() - math.exp(5 * values[0])).abs()
        < 1e-10
    )


def settings(**changes):
    return SimpleNamespace(
        **{"seeds": 1, "steps": 300, "lr": 0.1, "batch": 128, "full_batch": False, "public_code": False}
        | changes
    )


def test_x_is_indefinite_beyond_the_predicted_threshold_and_runs_collapse_on_that_side():
    args = settings(steps=600)
    x = toy_linear.data(args)[0].double()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(x), toy_linear.NOISY, dtype=torch.float64, generator=generator)
    low, high = toy_linear.thresholds(x, noise).tolist()
    assert 1.8 < low < high < 2.2  # 2 for infinitely many points
    some, weight = slice(0, 1000), 1e-3 * torch.eye(D, dtype=torch.float64)
    low, high = toy_linear.thresholds(x[some], noise[some]).tolist()
    padded = torch.nn.functional.pad(noise[some], (D - toy_linear.NOISY, 0))
    for k, negative in ((0.97 * low, False), (1.03 * low, True), (1.03 * high, True)):
        growth = toy_linear.growth_matrix(weight, x[some], x[some] + math.sqrt(k) * padded)
        found = torch.linalg.eigvalsh(growth[-toy_linear.NOISY :, -toy_linear.NOISY :])
        assert (found[0] < 0) == negative and (found[-1] < 0) == (k > high)
    runs = [
        toy_linear.Run(layers=1, k=k, start="orthogonal") for k in (low / 4, low / 2, 1.5 * high, 2 * high)
    ]
    _, histories = toy_linear.train(runs, args)
    for run in runs:
        sigma = toy_linear.block(histories[run][:, 0])
        assert (sigma[-1] < 0.3).all() if run.k > high else (sigma[-1] > 0.3).all(), run


# -------------------------------------------------------------------------------------------------- script


def test_runs_do_not_disturb_each_other():
    """A run's weights are the same alone and in a batch with other losses, depths, ReLU and penalties."""
    both = (False, True)
    runs = [
        toy_linear.Run(loss, n, werank=werank, relu=relu and loss == "InfoNCE")
        for loss in toy_linear.LOSSES
        for n in (1, 2, 3)
        for werank in both
        for relu in both
    ]
    _, together = toy_linear.train(runs, settings(steps=5))
    for run in runs[::3]:
        _, alone = toy_linear.train([run], settings(steps=5))
        assert (together[run] - alone[run]).abs().max() < 1e-4, run
        assert (alone[run][-1] - alone[run][0]).abs().max() > 1e-3


def test_a_batch_has_no_point_twice_and_one_view_without_noise():
    args = settings(seeds=2, batch=300)
    points = torch.arange(1000.0).expand(2, toy_linear.DIM, 1000).mT
    stream = toy_linear.batches(args, points)
    for epoch in range(2):
        drawn = [next(stream) for _ in range(3)]
        for seed in range(2):
            assert len(set(torch.cat([x[seed, :, 0] for x, _ in drawn]).tolist())) == 900
        assert all(noise[0].abs().max() == 0 for _, noise in drawn)
        assert all(noise[1, ..., : -toy_linear.NOISY].abs().max() == 0 for _, noise in drawn)
        assert abs(torch.cat([noise[1, ..., -toy_linear.NOISY :] for _, noise in drawn]).std() - 1) < 0.05


def test_relu_stands_between_a_run_s_own_layers_only():
    weight, x = torch.randn(2, 2, 3, D, D), torch.randn(1, 5, D)
    weight[0, :, 2] = torch.eye(D)  # a run of two layers beside one of three
    depth = torch.tensor([[2, 2], [3, 3]])
    found = toy_linear.network(weight, x, depth)
    for run, seed in ((0, 0), (0, 1), (1, 1)):
        z = x[0]
        for layer in range(int(depth[run, seed])):
            z = (z if layer == 0 else z.clamp(min=0)) @ weight[run, seed, layer].T
        assert (found[run, seed] - z).abs().max() < 1e-4


def test_first_step_is_the_gradient_of_the_mean_loss():
    args = settings(steps=1)
    _, histories = toy_linear.train([toy_linear.Run(layers=2, k=0.5)], args)
    ((before, after),) = (history[:, 0] for history in histories.values())
    x, noise = (part for part in next(toy_linear.batches(args, toy_linear.data(args))))
    w, x1 = before.double().requires_grad_(), x[0].double()
    (gradient,) = torch.autograd.grad(summed_loss(w, x1, x1 + math.sqrt(0.5) * noise[1, 0].double()) / 128, w)
    assert (after - (before - 0.1 * gradient)).abs().max() < 1e-5


def test_full_batch_and_mini_batch_give_the_same_picture():
    runs = [toy_linear.Run(werank=False), toy_linear.Run("VICReg", werank=True)]
    spectra = []
    for full in (False, True):
        args = settings(steps=250, full_batch=full, batch=1000 if full else 128)
        _, histories = toy_linear.train(runs, args)
        spectra.append([toy_linear.sigma(histories[run][-1, 0]) for run in runs])
    for mini, full in zip(*spectra):
        assert ((mini > 1) == (full > 1)).float().mean() > 0.8
        assert (mini.log() - full.log()).abs().median() < 0.25


@pytest.mark.parametrize(
    "arguments, names",
    [
        (("T9",), "T9"),
        (("T1", "--k", -1), "--k"),
        (("--k", "nan"), "--k"),
        (("T4", "--layers", 0), "--layers"),
        (("T1", "--layers", 3), "--layers"),
        (("--steps", 0), "--steps"),
        (("--seeds", 0), "--seeds"),
        (("--lr", 0), "--lr"),
        (("T1", "--lr", 1e5, "--steps", 50, "--seeds", 1), "--lr"),
        (("T7", "--lr", 100, "--steps", 50), "--lr"),
        (("--full-batch", "--batch", 9), "--batch"),
        (("--batch", 1), "--batch"),
        (("--out", "/dev/null/x"), "--out"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(script, tmp_path, arguments, names):
    done = script("toy_linear.py", *arguments)
    (line,) = done.err.splitlines()
    assert done.returncode == 2 and line.startswith("toy_linear.py: error: ") and names in line
    assert not done.out
    assert not list(tmp_path.iterdir())


def test_a_tiny_run_draws_every_figure_and_leaves_the_full_results_alone(script, tmp_path):
    done = script("toy_linear.py", "--quick", "--steps", 20, "--k", 0.1, 2)
    assert done.returncode == 0, done.err
    folder = tmp_path / "runs/toy-quick"
    assert {p.stem for p in folder.glob("*.png")} == {f"toy-directclr-{n}" for n in (3, 5, 6, 11)} | {
        f"toy-werank-{n}" for n in (1, 2, 3, 4, 5)
    }
    assert not (tmp_path / "figures").exists() and not (tmp_path / "results").exists()
    found = json.loads((folder / "toy.json").read_text())
    assert set(toy_linear.EXPERIMENTS) < set(found) and set(found["claims"]) == {"C1", "C2", "C3", "C4", "C5"}
    assert all(f"\nC{n} " in done.out for n in range(1, 6))


def test_one_experiment_with_changes(script, tmp_path):
    done = script(
        "toy_linear.py", "T4", "--layers", 6, "--steps", 5, "--seeds", 2, "--public-code", "--out", "mine"
    )
    assert done.returncode == 0, done.err
    found = json.loads((tmp_path / "mine/toy.json").read_text())
    assert len(found["T4"]) == 18 and "T1" not in found
    assert [p.name for p in (tmp_path / "mine").glob("*.png")] == ["toy-directclr-11.png"]
