"""Linear models: the papers' theory in float64 against autograd, loops, finite differences; the script."""

import json
import math
from functools import partial
from itertools import product
from types import SimpleNamespace

import common
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LAID_OUT, normal

import toy_linear as toy

D = toy.DIM
EYE = torch.eye(D).double()


def near(found, expected, tolerance=1e-10):
    """Whether they agree, relative to the largest number expected (absolute if that is below 1)."""
    found, expected = (torch.as_tensor(each, dtype=torch.float64) for each in (found, expected))
    return (found - expected).abs().max() <= tolerance * max(1, expected.abs().max())


def settings(**changes):
    plain = {"seeds": 1, "steps": 300, "lr": 0.1, "batch": 128, "full_batch": False, "public_code": False}
    return SimpleNamespace(**plain | changes)


def views(batch=12, k=0.7):
    x, noise = normal(2, batch, D)
    noise[:, : -toy.NOISY] = 0
    return x, x + math.sqrt(k) * noise


def gradient(loss, weight, x1, x2):
    """Of the summed loss (DirectCLR eq. 2 is a sum), by the weights."""
    weight = weight.clone().requires_grad_()
    return torch.autograd.grad(len(x1) * loss(toy.network(weight, x1), toy.network(weight, x2)), weight)[0]


def flow(weight, x1, x2):
    """Ẇ = -∂L/∂W of all layers, G = ∂L/∂W of their product, and X."""
    w = toy.whole(weight)
    g = gradient(toy.info_nce_euclidean, w[None], x1, x2)[0]
    return -gradient(toy.info_nce_euclidean, weight, x1, x2), g, toy.growth_matrix(w, x1, x2)


def slope(function, weight, velocity, step=1e-6):
    """The derivative of function(weight) along the velocity, by central differences."""
    return (function(weight + step * velocity) - function(weight - step * velocity)) / (2 * step)


def alpha(z1, z2, i):
    """Row i of the softmax of DirectCLR eq. 2."""
    row = [math.exp(-sum((z1[i] - (z2 if i == j else z1)[j]) ** 2) / 2) for j in range(len(z1))]
    return np.array(row) / sum(row)


def vicreg_by_numpy(z1, z2, invariance=25.0, variance=25.0, covariance=1.0):
    loss = invariance * ((z1 - z2) ** 2).mean()
    for z in (z1, z2):
        loss += variance / 2 * np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean()
        cov = np.cov(z.T)
        loss += covariance * (cov**2).sum(where=~np.eye(len(cov), dtype=bool)) / len(cov)
    return loss


TWO = toy.initial_weights("decaying", 2, torch.Generator().manual_seed(0)).double()
VELOCITY, G, X = flow(TWO, *views())
(U1, U2), (S1, S2), (VH1, VH2) = torch.linalg.svd(TWO)
TERMS = ({"covariance": 0}, {"variance": 0}, {"invariance": 0})
LOSSES = [
    (toy.info_nce_euclidean, lambda p, z: np.mean([-math.log(alpha(p, z, i)[i]) for i in range(len(p))])),
    (toy.info_nce_public, lambda p, z: F.cross_entropy(torch.tensor(p @ z.T / 0.1), torch.arange(len(p)))),
    (common.byol_loss, lambda p, z: np.mean([2 - 2 * a @ b / (a @ a * b @ b) ** 0.5 for a, b in zip(p, z)])),
    (toy.vicreg, vicreg_by_numpy),
    *[(partial(toy.vicreg, **w), partial(vicreg_by_numpy, **w)) for w in TERMS],
]
OF_PAPERS = {f"toy-directclr-{n}" for n in (3, 5, 6, 11)} | {f"toy-werank-{n}" for n in range(1, 6)}
RUNS = [  # arguments, results, claims, an experiment and how many runs it has, figures
    ("--quick --steps 20 --k 0.1 2", "runs/toy-quick/toy.json", "C1 C2 C3 C4 C5", "T7", 12, OF_PAPERS),
    ("T4 --layers 6 --steps 5 --public-code --out my", "my/toy.json", "C4", "T4", 24, {"toy-directclr-11"}),
    ("t8 --steps 3 --batch 64", "runs/toy/toy-images.json", "T8", "T8", 24, {"toy-images-theorem-1"}),
]


@pytest.mark.parametrize("loss, reference", LOSSES)
@pytest.mark.parametrize("b, m", [(2, 3), (9, 4)])
def test_losses_of_a_batch_of_models_equal_loops_one_by_one(loss, reference, b, m):
    z1, z2 = normal(2, 3, 2, b, m) * torch.tensor([0.1, 0.5, 1, 2])[:m]
    expected = [[reference(z1[i, j].numpy(), z2[i, j].numpy()) for j in range(2)] for i in range(3)]
    assert near(loss(z1, z2), expected)


def test_growth_matrix_is_lemma_2_pair_by_pair_gradients_are_lemmas_1_to_3_and_conserve_as_theorem_2_says():
    """G = -WX: eq. 6 with its printed minus would give the opposite."""
    (x1, x2), weight = views(7), TWO[0]
    expected = torch.zeros(D, D).double()
    for i in range(7):
        share = alpha((x1 @ weight.T).numpy(), (x2 @ weight.T).numpy(), i)
        expected += sum(share[j] * torch.outer(x1[i] - x1[j], x1[i] - x1[j]) for j in range(7))
        expected -= (1 - share[i]) * torch.outer(x2[i] - x1[i], x2[i] - x1[i])
    assert near(toy.growth_matrix(weight, x1, x2), expected)
    (w1, w2), (v1, v2) = TWO, VELOCITY
    assert near(G, -w2 @ w1 @ X) and G.abs().max() > 0.01
    assert near(v1, -w2.T @ G) and near(v2, -G @ w1.T)
    assert near(v1 @ w1.T + w1 @ v1.T, v2.T @ w2 + w2.T @ v2) and v1.norm() > 0.1


def test_singular_values_move_by_lemmas_4_and_7_but_for_an_index_of_eq_22():
    moved = slope(torch.linalg.svdvals, TWO, VELOCITY)
    f = U2.T @ G @ VH1.T  # u₂ᵏᵀ G v₁ʲ
    eq_12 = [[u[:, k] @ v @ vh[k] for k in range(D)] for u, v, vh in zip((U1, U2), VELOCITY, (VH1, VH2))]
    eq_21 = [-sum((VH2[j] @ U1[:, k]) * S2[j] * f[j, k] for j in range(D)) for k in range(D)]
    eq_22 = [-sum((U1[:, j] @ VH2[k]) * S1[j] * f[k, j] for j in range(D)) for k in range(D)]
    printed = [-sum((U1[:, j] @ VH2[k]) * S1[j] * f[j, j] for j in range(D)) for k in range(D)]
    assert near(eq_12, moved, 1e-6) and near([eq_21, eq_22], moved, 1e-6) and not near(printed, moved[1], 0.1)


def test_singular_values_of_aligned_layers_move_by_theorem_3():
    """Aligned: V₂ = U₁, not its transpose. C = σ₁² - σ₂² is conserved, so that σ₁ grows by σ₁ (σ₁² - C) vᵀXv:
    the paper prints + C."""
    s1, s2 = 1.3 * S1, 0.8 * S2
    aligned = torch.stack([U1 * s1 @ VH1, U2 * s2 @ U1.T])
    assert near(toy.alignment(aligned), EYE) and toy.gram_cosine(aligned) > 0.99
    assert toy.alignment(TWO).diagonal().mean() < 0.4 and toy.gram_cosine(TWO) < 0.5
    velocity, _, x = flow(aligned, *views())
    moved = slope(torch.linalg.svdvals, aligned, velocity)
    along = (VH1 @ x @ VH1.T).diagonal()
    assert near(s1 * s2**2 * along, moved[0], 1e-6) and near(s2 * s1**2 * along, moved[1], 1e-6)
    assert not near(s1 * (2 * s1**2 - s2**2) * along, moved[0], 0.1)


def test_alignment_moves_by_lemma_6_with_the_sign_of_its_proof():
    """Eq. 18 with H_kk' = 1/(σ_k'² - σ_k²); the printed H is the opposite, and off by exactly that sign."""

    def signed(weight):
        u, _, vh = torch.linalg.svd(weight)
        return ((vh[1] * VH2).sum(1).sign()[:, None] * vh[1]) @ (u[0] * (u[0] * U1).sum(0).sign())

    def predicted(sign):
        h1, h2 = ((sign / (s**2 - s[:, None] ** 2)).nan_to_num(0, 0, 0) for s in (S1, S2))
        a, f = VH2 @ U1, S2.diag() @ U2.T @ G @ VH1.T @ S1.diag()
        return (h2 * (a @ f.T + f @ a.T)) @ a - a @ (h1 * (a.T @ f + f.T @ a))

    moved = slope(signed, TWO, VELOCITY, 1e-7)
    assert near(predicted(1), moved, 1e-5) and near(predicted(-1), -moved, 1e-5) and not near(moved, 0, 0.01)


@pytest.mark.parametrize("k", [1.9, 2.1, 40])
def test_small_weights_shrink_beyond_k_2_with_noise_on_one_view_and_never_with_noise_on_both(k):
    """With uniform α X ∝ 2 Cov(x) - kI in the augmented dimensions, but 2 Cov(x) ≻ 0 with noise on both, as
    in DirectCLR's public code (its loss: / τ). Points and noises are exactly uncorrelated, 400 of them."""
    columns = normal(400, 3 * D)
    x, *noises = (20 * torch.linalg.qr(columns - columns.mean(0)).Q).split(D, 1)
    noisy = k * torch.diag(torch.arange(D) >= D - toy.NOISY).double()
    x1, x2 = (x + noise @ noisy.sqrt() for noise in noises)
    for loss, first, expected in (
        (toy.info_nce_euclidean, x, 2 * EYE - noisy * 399 / 400),
        (toy.info_nce_euclidean, x1, 2 * EYE + 2 * noisy / 400),
        (toy.info_nce_public, x1, 20 * EYE),
    ):
        assert near(-gradient(loss, 1e-4 * EYE[None], first, x2)[0] / 1e-4 / 400, expected, 1e-3)


def test_proposition_of_werank_needs_more_than_its_diagonal_and_its_bound_fails():
    """Section 2.1: C = I where WᵀW is diag(1 / λ²(H)) and W has H's right singular vectors: the same WᵀW in
    other directions is not enough. That λ(C) <= λ²(H) λ²(W) bounds ‖C - I‖ fails where λ(C) < 1."""
    h, other = normal(30, D), torch.linalg.qr(normal(D, D, seed=1)).Q
    _, s, vh = torch.linalg.svd(h, full_matrices=False)
    best, turned = ((w.T @ w, w.T @ h.T @ h @ w) for w in (vh.T / s, other / s))
    assert near(best[0], (1 / s**2).diag()) and near(turned[0], best[0])
    assert near(best[1], EYE) and not near(turned[1], EYE, 0.1)
    assert (torch.linalg.eigvalsh(turned[1]).flip(0) <= s**2 * turned[0].diagonal().max() + 1e-9).all()
    w = torch.diag(torch.arange(D) > 0).double()  # H = I: the bound on ‖C - I‖ is Σ (1 · 1 - 1)² = 0
    assert torch.linalg.svdvals(w)[0] == 1 and common.werank_penalty([w]).item() == 1


def test_sgd_keeps_the_length_of_ema_weights_and_moves_their_singular_values_far_less_than_adamw(monkeypatch):
    """WERank appendix 4.2 says constant. BYOL's loss does not see the length of a layer: its gradient is
    orthogonal to the layer, and the flow conserves ‖W‖."""
    args, moved = settings(), []
    for optimizer in (torch.optim.AdamW, lambda weights, lr, weight_decay: torch.optim.SGD(weights, 0.1)):
        monkeypatch.setattr(torch.optim, "AdamW", optimizer)
        group = toy.Group([toy.Run("EMA")], args)
        start = group.weight.detach().clone()
        for _, batch in zip(range(100), toy.gaussian_stream(args, toy.points(args))):
            before = group.weight.detach().clone()
            group.step(batch)
        moved.append((toy.sigma(group.weight.detach()) - toy.sigma(start)).abs().max())
    assert near((before * group.weight.grad).sum((-2, -1)), 0, 1e-6) and group.weight.grad.norm() > 1e-3
    assert 0 < 4 * moved[1] < moved[0]


def train(runs, **changes):
    """{run: weights (T, L, d, d)} of seed 0."""
    args = settings(**changes)
    _, histories = toy.train(runs, args, toy.gaussian_stream(args, toy.points(args)))
    return {run: history[:, 0] for run, history in histories.items()}


def test_runs_do_not_disturb_each_other():
    """A run's weights are the same alone and beside other losses, depths, penalties, ReLU."""
    kinds = product(toy.LOSSES, (1, 2, 3), (0.1,), (False, True), (False, True))
    runs = [toy.Run(*kind) for kind in kinds if kind[0] == "InfoNCE" or not kind[-1]]
    together = train(runs, steps=5)
    for run in runs[::3]:
        alone = train([run], steps=5)[run]
        assert near(together[run], alone, 1e-4) and not near(alone[-1], alone[0], 1e-3), run


@pytest.mark.parametrize("public_code", [False, True])
def test_a_batch_has_no_point_twice_and_noise_on_one_view_or_both(public_code):
    args = settings(seeds=2, batch=300, public_code=public_code)
    stream = toy.gaussian_stream(args, torch.arange(1000.0).expand(2, D, 1000).mT)
    for _ in range(2):  # epochs
        x1, x2 = torch.cat([next(stream)(toy.Run(k=0.01)) for _ in range(3)], 2)
        assert all(len(x[:, 0].unique()) == 900 for x in x1)
        for x in (x1, x2):
            assert (x[..., 0] == x[..., D - toy.NOISY - 1]).all()
        for x, noisy in ((x1, public_code), (x2, True)):
            assert 0.095 * noisy <= (x[..., -1] - x[..., 0]).std() <= 0.105 * noisy


def test_relu_stands_between_layers_only():
    (a, b, c), x = normal(3, D, D), normal(5, D)
    assert near(toy.network(torch.stack([a, b, c]), x, True).T, c @ (b @ (a @ x.T).clamp(0)).clamp(0))
    assert near(toy.network(torch.stack([a, b, c]), x).T, c @ b @ a @ x.T)


def test_first_step_is_the_gradient_of_the_mean_loss():
    run = toy.Run(k=0.5)
    before, after = train([run], steps=1)[run].double()
    x1, x2 = next(toy.gaussian_stream(settings(), toy.points(settings())))(run)[:, 0].double()
    assert near(after, before - 0.1 * gradient(toy.info_nce_euclidean, before, x1, x2) / 128, 1e-5)


def trained(run, start, end, experiment, sample=()):
    """As if the run had these weights (L, d, d) with two seeds."""
    history = torch.stack([start, end])[:, None].expand(-1, 2, -1, -1, -1)
    runs = {name: [run] if name == experiment else [] for name in toy.EXPERIMENTS}
    args = settings(seeds=2, k=[0.1])
    return toy.Trained(args, runs, {run: history}, toy.points(args), sample)


@pytest.mark.parametrize("before, after", [(16, 16), (16, 12), (12, 12), (9, 12)])
def test_c3_asks_whether_training_lowers_the_rank(before, after):
    shrunk = (EYE * (1 - 0.95 * (torch.arange(D) >= rank)) for rank in (before, after))
    ends = [torch.stack([first, EYE]).float() for first in shrunk]
    found = toy.verdicts(trained(toy.Run(start=toy.EQUAL), *ends, "T3"))["C3"]
    assert [part["ok"] for part in found["parts"]] == [None, after < before]
    assert f"{before} ± 0, {after} ± 0" in found["parts"][1]["text"]


def test_numbers_have_the_sample_deviation_of_several_seeds_only():
    values = normal(3, 5)
    assert near(toy.summary(values)["std"], values.numpy().std(0, ddof=1), 1e-5)
    assert "std" not in toy.summary(values[:1]) and "±" not in toy.text(values[:1, 0])
    assert near(toy.summary(values[:, None], True)["mean"], values, 1e-5)  # over time: of the second axis


def test_t8_whitens_clean_images_and_augments_one_view_or_both(tiny):
    with pytest.raises(common.UserError, match="128 images"):
        next(toy.image_stream(settings(dataset=str(tiny), data_dir="")))
    seen = next(toy.image_stream(settings(dataset=str(tiny), data_dir="", batch=96)))
    kinds = (("one view", "weak"), ("one view", "strong"), ("both views", "strong"))
    weak, one, both = (seen(toy.Run(views=kind)) for kind in kinds)
    clean = one[0][0].double()
    images = common.load_dataset(str(tiny), image_size=toy.PIXELS).x_train
    pixels = common.normalize(images).flatten(1).double()
    u = torch.linalg.svd(pixels - pixels.mean(0))[0][:, : toy.COMPONENTS]
    assert near(torch.cov(clean.T), torch.eye(toy.COMPONENTS), 1e-3)
    assert near(torch.pdist(clean).sort()[0], math.sqrt(95) * torch.pdist(u).sort()[0], 1e-3)
    assert torch.equal(one[1], both[1]) and torch.equal(one[0], weak[0])
    changes = [(x2 - x1).square().mean() for x1, x2 in (weak, one, (one[0], both[0]), both)]
    assert 0.001 < changes[0] < min(changes[1:])


@pytest.mark.parametrize("sign", [1, -1])
def test_t8_holds_where_x_at_the_start_says_which_directions_vanish(sign):
    x1, x2 = views(60, 8.0)
    values, vectors = torch.linalg.eigh(toy.growth_matrix(0.1 * EYE, x1, x2) / 60)
    ratios = (3.0 * sign * values.sign()).exp()
    end = 0.1 * vectors * ratios @ vectors.T
    sample = [lambda run: (x1.expand(2, -1, -1), x2.expand(2, -1, -1))]
    run = toy.Run(layers=1, views=("one view", "weak"))
    made = trained(run, 0.1 * EYE[None], end[None], "T8", sample)
    found = made.directions(run)
    assert near(found[2], (ratios < 1).expand(2, -1), 1e-6)
    assert near(found[0][1], values) and near(found[1][1], ratios) and values[0] < -0.1 < 0.1 < values[-1]
    judged = [part["ok"] for part in toy.verdicts(made)["T8"]["parts"] if part["ok"] is not None]
    assert judged == [sign > 0, sign > 0]


@pytest.mark.parametrize("case", RUNS)
def test_a_run_with_changes_leaves_the_full_results_alone(script, tmp_path, tiny, case, monkeypatch):
    arguments, results, claims, experiment, count, figures = case
    if len(figures) > 1:
        monkeypatch.setattr(*LAID_OUT)
    data = ("--dataset", tiny) if "t8" in arguments else ()
    done = script("toy_linear.py", *arguments.split(), *data)
    assert done.returncode == 0, done.err
    found = json.loads((tmp_path / results).read_text())
    assert {path.stem for path in (tmp_path / results).parent.glob("*.png")} == figures
    assert not (tmp_path / "figures").exists() and not (tmp_path / "results").exists()
    assert len(found[experiment]) == count and list(found["claims"]) == claims.split()
    for name, claim in found["claims"].items():
        assert f"\n{name} " in done.out and claim["figure"] in figures and claim["claim"] and claim["source"]
        assert all(part["ok"] in (True, False, None) and part["text"] for part in claim["parts"])
