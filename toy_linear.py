"""Why embeddings collapse to few dimensions: toy models on Gaussian data of 16 dimensions.

Reproduces DirectCLR figures 3, 5, 6, 11 and WERank figures 1-5, and judges what the papers read from them.

    python toy_linear.py                                 all: figures/toy-*.png, results/toy.json, verdicts
    python toy_linear.py --quick                         one seed, 600 steps, all figures: runs/toy-quick
    python toy_linear.py T4 --layers 6 --steps 20000     one experiment with changes: runs/toy
    python toy_linear.py T6 --full-batch --seeds 1       WERank's regime, 1,000 points in every step: runs/toy
    python toy_linear.py T1 --public-code                the loss of DirectCLR's public code: runs/toy

    T1 augmentation strength, one layer (DirectCLR 3)    T5 with and without WERank over time (WERank 1, 4, 5)
    T2 alignment of two layers (DirectCLR 5)             T6 depth, with and without WERank (WERank 2)
    T3 singular values over time (DirectCLR 6)           T7 augmentation strength, with WERank (WERank 3)
    T4 depth, linear and with ReLU (DirectCLR 11)

Only the run of everything without changes writes to figures/ and results/.
"""
import argparse
import os
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from tqdm import tqdm

import common

EXPERIMENTS = ("T1", "T2", "T3", "T4", "T5", "T6", "T7")
DIM, NOISY = 16, 8  # d, and how many of the last dimensions are augmented
TICKS = (1, 4, 8, 12, 16)
KS = (0.01, 0.5, 1.0, 1.5, 2.0, 4.0)
LOSSES = ("InfoNCE", "VICReg", "EMA")
COLLAPSED = 0.01  # of the largest σ(C): a dimension with 1 % of the variance, which is 10 % of σ(W)


class Run(NamedTuple):
    """One configuration, trained with every seed. start: decaying or orthogonal (`initial_weights`)."""
    loss: str = "InfoNCE"
    layers: int = 2
    k: float = 0.1
    werank: bool = False
    relu: bool = False
    start: str = "decaying"


def runs_of(args):
    """{experiment: its runs}; an experiment shares a run with another where it has the same settings."""
    ks, k, depths, both = args.k, args.weak_k, range(1, args.layers + 1), (False, True)
    runs = {
        "T1": [Run(layers=1, k=k, start=start) for start in ("orthogonal", "decaying") for k in ks],
        "T2": [Run(k=k)],
        "T3": [Run(k=k), Run(k=k, start="orthogonal")],
        "T4": [Run(layers=n, k=k, relu=relu, start=start) for n in depths for relu, start in
               ((False, "decaying"), (True, "decaying"), (False, "orthogonal"))],
        "T5": [Run(loss, k=k, werank=werank) for loss in LOSSES for werank in both],
        "T6": [Run(loss, n, k, werank) for loss in LOSSES for werank in both for n in depths],
        "T7": [Run(loss, 1, k, werank) for loss in LOSSES for werank in both for k in ks],
    }
    return {name: runs[name] for name in args.experiments}


# ------------------------------------------------------------------------------------------ model and theory

def initial_weights(start, layers, generator):
    """(layers, d, d): random orthogonal factors and singular values exp(-0.35 j), which are distinct, as
    theorem 2 needs (DirectCLR's public code), or all 0.3."""
    u, v = torch.linalg.qr(torch.randn(layers, 2, DIM, DIM, generator=generator)).Q.unbind(1)
    sigma = torch.exp(-0.35 * torch.arange(DIM)) if start == "decaying" else torch.full((DIM,), 0.3)
    return (u * sigma) @ v.mT


def product(weight):
    """W_L … W_1 (..., d, d) of the layers W_1 … W_L, weight (..., L, d, d)."""
    return reduce(lambda inner, outer: outer @ inner, weight.unbind(-3))


def network(weight, x, depth=None):
    """Embeddings z (..., B, d) of x (..., B, d) and weight (..., L, d, d): W_L … W_1 x, or, with depth (...),
    ReLU between the first `depth` layers; those behind are identities."""
    if depth is None:
        return x @ product(weight).mT
    for layer, matrix in enumerate(weight.unbind(-3), 1):
        x = x @ matrix.mT
        x = torch.where(depth[..., None, None] > layer, x.relu(), x)
    return x


def growth_matrix(weight, x1, x2):
    """X (..., d, d) of lemma 2 for the summed loss: Σ̂₀ - Σ̂₁, with which Ẇ = WX, W (..., d, d) the product of
    the layers and x1, x2 (..., B, d) the views. Eq. 6 as appendix B.2 has it, without its leading minus."""
    z1, z2 = x1 @ weight.mT, x2 @ weight.mT
    logits = z1 @ z1.mT - z1.square().sum(-1)[..., None, :] / 2  # -|z_i|²/2 is in every term of i: left out
    positive = (z1 * z2).sum(-1) - z2.square().sum(-1) / 2
    alpha = logits.diagonal_scatter(positive, dim1=-2, dim2=-1).softmax(-1)
    noise_weight = 1 - alpha.diagonal(dim1=-2, dim2=-1)
    pair = alpha.diagonal_scatter(torch.zeros_like(positive), dim1=-2, dim2=-1)
    pair = pair + pair.mT  # Σ_ij α_ij (x_i - x_j)(x_i - x_j)ᵀ is a graph Laplacian between x and x
    sigma_0 = x1.mT @ (pair.sum(-1)[..., None] * x1 - pair @ x1)
    return sigma_0 - (x2 - x1).mT @ (noise_weight[..., None] * (x2 - x1))


def block_growth(k, weight, x):
    """Eigenvalues (seeds, NOISY) of X / B in the augmented dimensions, X the mean over up to 16 batches of
    B = 128 points of x (seeds, N, d), weight (seeds, L, d, d), in float64: negative where W shrinks."""
    x1 = x[:, :min(16, x.shape[1] // 128) * 128].double().unflatten(1, (-1, 128))
    noise = torch.randn(*x1.shape[:-1], NOISY, generator=torch.Generator().manual_seed(3000)).double()
    x2 = x1 + k ** 0.5 * F.pad(noise, (DIM - NOISY, 0))
    growth = growth_matrix(product(weight.double())[:, None], x1, x2).mean(1) / 128
    return torch.linalg.eigvalsh(growth[..., -NOISY:, -NOISY:])


def thresholds(x, noise):
    """The smallest and the largest k* at which X turns negative in an augmented direction while weights are
    small, from x (N, d) and the noise (N, NOISY) at k = 1: α is then uniform, X ∝ 2 Cov(x) - k Cov(noise)."""
    data, noise = 2 * torch.cov(x[:, -NOISY:].T), noise.T @ noise / len(noise)
    whiten = torch.linalg.inv(torch.linalg.cholesky(noise))
    return torch.linalg.eigvalsh(whiten @ data @ whiten.T)[[0, -1]]


# -------------------------------------------------------------------------------------------------- training

def info_nce_public(z1, z2, temperature=0.1):
    """Inner products, negatives from the other view only, for z1, z2 (..., B, m): (...) (DirectCLR's public
    code, not its eq. 2)."""
    return -(z1 @ z2.mT / temperature).log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(-1)


def batches(args, points):
    """Yields points x (seeds, B, d) and the noises of both views (2, seeds, B, d) at k = 1. An epoch is a
    permutation: a point twice in a batch would be its own negative and shrink the augmented dimensions."""
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in range(args.seeds)]
    order = torch.empty(args.seeds, 0, dtype=torch.long)
    while True:
        if order.shape[1] < args.batch:
            order = torch.stack([torch.randperm(points.shape[1], generator=g) for g in generators])
        pick, order = order[:, :args.batch], order[:, args.batch:]
        noise = torch.stack([torch.randn(2, args.batch, NOISY, generator=g) for g in generators], 1)
        noise[0] *= args.public_code  # on one branch, or on both
        yield points.gather(1, pick[..., None].expand(-1, -1, DIM)), F.pad(noise, (DIM - NOISY, 0))


def data(args):
    """x ~ N(0, I), (seeds, N, d): 10,000 points (DirectCLR's public code), 1,000 in full batches (WERank)."""
    count = 1_000 if args.full_batch else 10_000
    return torch.stack([torch.randn(count, DIM, generator=torch.Generator().manual_seed(2000 + seed))
                        for seed in range(args.seeds)])


class Batch:
    """Runs of one loss, all seeds: weights (runs, seeds, L, d, d), trained together. A shallower run has
    identities behind its layers. Losses are summed over runs and seeds, so that gradients don't mix."""

    def __init__(self, runs, args):
        depth = torch.tensor([run.layers for run in runs])[:, None].expand(-1, args.seeds)
        layers = int(depth.max())
        self.runs, self.loss = runs, runs[0].loss
        self.info_nce = info_nce_public if args.public_code else common.info_nce_euclidean
        self.real = (depth[..., None] > torch.arange(layers))[..., None, None]
        self.depth = depth if runs[0].relu else None
        self.amplitude = torch.tensor([run.k for run in runs]).sqrt()[:, None, None, None]
        self.werank = [i for i, run in enumerate(runs) if run.werank]
        self.trained = torch.stack([
            torch.stack([initial_weights(run.start, layers, torch.Generator().manual_seed(seed))
                         for seed in range(args.seeds)]) for run in runs]).requires_grad_()
        self.teacher = self.trained.detach().clone()
        if self.loss == "EMA":  # WERank section 4.2
            self.optimizer = torch.optim.AdamW([self.trained], lr=0.01, weight_decay=3e-4)
        else:
            self.optimizer = torch.optim.SGD([self.trained], args.lr / (2 if self.loss == "VICReg" else 1))

    def weights(self, of):
        return torch.where(self.real, of, torch.eye(DIM))

    def step(self, x, noise):
        weight, (x1, x2) = self.weights(self.trained), x + self.amplitude * noise[:, None]
        z1, z2 = network(weight, x1, self.depth), network(weight, x2, self.depth)
        if self.loss == "InfoNCE":
            loss = self.info_nce(z1, z2)
        elif self.loss == "VICReg":
            loss = common.vicreg(z1, z2, 10.0, 10.0, 1.0)
        else:
            slow = self.weights(self.teacher)
            loss = (common.byol_loss(z1, network(slow, x2)) + common.byol_loss(z2, network(slow, x1))) / 2
        loss = loss.sum()
        if self.werank:  # an identity has no penalty
            penalty = torch.vmap(lambda w: common.werank_penalty([w]))
            loss = loss + common.REG_WEIGHT["werank"] * penalty(weight[self.werank].flatten(0, -3)).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.teacher.lerp_(self.trained.detach(), 1 - 0.995)


def train(runs, args):
    """Trains all runs and seeds: the steps that are kept (T), {run: weights (T, seeds, layers, d, d)}.
    UserError where one diverges."""
    runs = list(dict.fromkeys(runs))
    groups = [[run for run in runs if (run.loss, run.relu) == kind]
              for kind in dict.fromkeys((run.loss, run.relu) for run in runs)]
    groups, histories = [Batch(group, args) for group in groups], {run: [] for run in runs}
    kept = torch.linspace(0, args.steps, min(args.steps, 40) + 1).round().int().tolist()
    stream = batches(args, data(args))
    for step in tqdm(range(args.steps + 1), f"{len(runs)} runs x {args.seeds} seeds", disable=None):
        x, noise = next(stream)
        for group in groups:
            if step in kept:
                for run, weight in zip(group.runs, group.trained.detach().clone()):
                    if not weight.abs().max() < 1e3:  # NaN too
                        raise common.UserError(f"--lr {args.lr:g} makes {label(run)} diverge before step "
                                               f"{step}: choose a smaller one")
                    histories[run].append(weight[:, :run.layers])
            group.step(x, noise)
    return kept, {run: torch.stack(history) for run, history in histories.items()}


def sigma(weight):
    """Singular values (..., d) of weight (..., d, d)."""
    return torch.linalg.svdvals(weight)


def sigma_c(run, weight, x):
    """Singular values (..., d) of the embeddings' covariance (DirectCLR eq. 1), weight (..., seeds, L, d, d),
    on the first 1,000 points of x (seeds, N, d), in float64: the smallest are 1e-9 of the largest."""
    depth = torch.full(weight.shape[:-3], run.layers) if run.relu else None
    z = network(weight.double(), x[:, :1000].double(), depth)
    z = z - z.mean(-2, keepdim=True)
    return sigma(z.mT @ z / z.shape[-2])


def alignment(weight):
    """|V₂ᵀU₁| (..., d, d) of the first two layers of weight (..., L, d, d)."""
    return (torch.linalg.svd(weight[..., 1, :, :]).Vh @ torch.linalg.svd(weight[..., 0, :, :]).U).abs()


def block(weight):
    """Singular values (..., NOISY) of the augmented dimensions' columns of W₁, weight (..., L, d, d)."""
    return sigma(weight[..., 0, :, -NOISY:])


def collapsed(sigma_c):
    """How many of the singular values (..., d) of C are below COLLAPSED of the largest: (...)."""
    return (sigma_c < COLLAPSED * sigma_c[..., :1]).sum(-1).float()


# ------------------------------------------------------------------------------------------------- numbers

def label(run):
    """A run's name, as in toy.json."""
    parts = [run.loss, f"L={run.layers}", f"k={run.k:g}", "WERank" * run.werank, "ReLU" * run.relu]
    return " ".join(part for part in [*parts, "orthogonal" * (run.start == "orthogonal")] if part)


def mean_std(values, axis):
    """What results keep of values with seeds along `axis`."""
    return {"mean": common.rounded(values.mean(axis)), "std": common.rounded(values.std(axis, correction=0))}


def numbers(name, runs, kept, histories, x, args):
    """What results hold of an experiment, by run: singular values at the end, or over time (T2, T3, T5)."""
    over_time = name in ("T2", "T3", "T5")
    found = {"steps": kept} if over_time else {}
    for run in runs:
        weight = histories[run] if over_time else histories[run][-1]
        spectra = {f"sigma_W{i}": sigma(w) for i, w in enumerate(weight.unbind(-3), 1)}
        spectra["sigma_C"] = sigma_c(run, weight, x)
        if name == "T2":
            spectra = {"alignment": alignment(weight[[0, len(kept) // 4, -1]]),
                       "diagonal": alignment(weight).diagonal(dim1=-2, dim2=-1).mean(-1)}
        if name == "T1" and not args.public_code:  # X belongs to eq. 2
            spectra |= {f"X_block_{when}": block_growth(run.k, histories[run][i], x)
                        for when, i in (("start", 0), ("end", -1))}
        found[label(run)] = {key: mean_std(values, int(over_time)) for key, values in spectra.items()}
    return found


# ------------------------------------------------------------------------------------------------- figures

def panels(title, rows, columns, **shared):
    """(figure, axes) with a title."""
    figure = Figure(figsize=(0.8 + 2.7 * columns, 0.7 + 2.2 * rows), layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure, figure.subplots(rows, columns, **shared)


def spectra(title, results, runs, key, varied, groups):
    """σ_j over j: a panel for each of groups [(title, fields of its runs)], a curve for each run."""
    figure, axes = panels(title, 1, len(groups), sharey=True)
    values, floor = sorted({getattr(run, varied) for run in runs}), -8 if key == "sigma_C" else -4
    for axis, (head, fields) in zip(axes, groups):
        for run in [run for run in runs if run == run._replace(**fields)]:
            value, curve = getattr(run, varied), np.maximum(results[label(run)][key]["mean"], 10. ** floor)
            shade = values.index(value) / max(1, len(values) - 1)
            name = f"{'k' if varied == 'k' else 'L'} = {value:g}"
            axis.plot(range(1, DIM + 1), curve, "-:"[run.werank], marker="os^vDX"[round(5 * shade)],
                      color=colormaps["cividis"](0.85 * shade), linewidth=1.2, markersize=4,
                      fillstyle="none" if run.werank else "full", label=None if run.werank else name)
        axis.set(xlabel="index j of the singular value", xticks=TICKS, yscale="log")
        axis.set_title(head, fontsize=9)
    axes[0].set_ylabel(rf"$\sigma_j({key[6]})$, drawn at $10^{{{floor}}}$ if below")
    axes[-1].legend(fontsize=8)
    return figure


def evolution(title, steps, rows):
    """σ(W₁), σ(W₂), σ(C) over time, a row for each of rows {addition to the titles: numbers of a run}."""
    figure, axes = panels(title, len(rows), 3, sharex=True, sharey="col", squeeze=False)
    for line, (addition, found) in zip(axes, rows.items()):
        for axis, key, head in zip(line, ("sigma_W1", "sigma_W2", "sigma_C"), ("W_1", "W_2", "C")):
            for j, values in enumerate(np.maximum(found[key]["mean"], 1e-8).T):
                axis.plot(steps, values, color=colormaps["cividis"](j / DIM), linewidth=1.6 - j / DIM)
            axis.set(yscale="log")
            axis.set_title(rf"$\sigma_j({head})${addition}", fontsize=9)
        line[0].set_ylabel("singular value")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    return figure


def heat_maps(title, steps, found):
    """|V₂ᵀU₁| at the start, a quarter and the end (DirectCLR fig. 5)."""
    figure, axes = panels(title, 1, 3, sharey=True)
    for axis, heat, step in zip(axes, found["alignment"]["mean"], (0, steps[len(steps) // 4], steps[-1])):
        image = axis.imshow(heat, cmap="Greys", vmin=0, vmax=1, extent=(0.5, DIM + 0.5, DIM + 0.5, 0.5))
        axis.set_title(f"step {step}", fontsize=9)
        axis.set(xlabel=r"$u_1^j$, left vectors of $W_1$", xticks=TICKS, yticks=TICKS)
    axes[0].set_ylabel(r"$v_2^i$, right vectors of $W_2$")
    figure.colorbar(image, ax=axes, label=r"$|V_2^T U_1|$")
    return figure


def figures(results, runs, args):
    """Yields (file name, Figure), one per figure of the papers."""
    k = f"k = {args.weak_k:g}, mean of seeds"
    over_index = {
        "directclr-3": ("T1", "sigma_W1", "k", (
            "One layer: how far do σ 9 to 16, the augmented dimensions, fall with k? Mean of seeds"), [
            ("start: 0.3 · orthogonal", {"start": "orthogonal"}),
            (r"start: $\sigma_j=e^{-0.35\,(j-1)}$", {"start": "decaying"})]),
        "directclr-11": ("T4", "sigma_C", "layers", (
            f"How many dimensions of the embedding are left with L layers? {k}"), [
            ("(a) linear", {"relu": False, "start": "decaying"}),
            ("(b) ReLU between layers", {"relu": True})]),
        "werank-2": ("T6", "sigma_C", "layers", (
            f"Does WERank (dotted, hollow) keep all dimensions at every depth L? {k}"), [
            (loss, {"loss": loss}) for loss in LOSSES]),
        "werank-3": ("T7", "sigma_W1", "k", (
            "One layer: up to which k does WERank (dotted, hollow) keep σ 9 to 16? Mean of seeds"), [
            (loss, {"loss": loss}) for loss in ("EMA", "InfoNCE", "VICReg")]),
    }
    for file, (name, key, varied, title, groups) in over_index.items():
        if name in runs:
            yield f"toy-{file}", spectra(title, results[name], runs[name], key, varied, groups)
    if "T2" in runs:
        yield "toy-directclr-5", heat_maps(
            rf"Do the layers align, $|V_2^T U_1| \to I$? Large singular values top left; L = 2, {k}",
            results["T2"]["steps"], results["T2"][label(runs["T2"][0])])
    if "T3" in runs:
        yield "toy-directclr-6", evolution(
            f"How far do the smallest singular values (light) stay behind? L = 2, {k}",
            results["T3"]["steps"], {"": results["T3"][label(runs["T3"][0])]})
    for number, loss in ((1, "VICReg"), (4, "InfoNCE"), (5, "EMA")) if "T5" in runs else ():
        yield f"toy-werank-{number}", evolution(
            f"{loss}: does WERank (below) bring up the smallest singular values (light)? {k}",
            results["T5"]["steps"], {", with WERank" * run.werank: results["T5"][label(run)]
                                     for run in runs["T5"] if run.loss == loss})


# ------------------------------------------------------------------------------------------------ verdicts
# Each yields (whether it holds, None where that is not judged, and the numbers).

def text(*values):
    """Mean ± std over seeds, of each of the values (seeds,)."""
    return ", ".join(f"{v.mean():.3g}" + f" ± {v.std(correction=0):.2g}" * (len(v) > 1) for v in values)


def strong_augmentation(runs, start, end, x, args):
    """Parts of C1, (holds or None, text)."""
    noise = torch.randn(*x.shape[:2], NOISY, generator=torch.Generator().manual_seed(3000))
    star = torch.stack([thresholds(*pair) for pair in zip(x, noise)])
    yield None, f"k* predicted from the data, for small weights: {text(star[:, 0])} to {text(star[:, 1])}"
    for run in runs["T1"]:
        ratio, limit = block(end[run])[:, 0] / sigma(end[run][:, 0])[:, 0], COLLAPSED ** 0.5
        line = f"{run.start} start, k = {run.k:g}: augmented / largest σ {text(ratio)}"
        if args.public_code:  # k* and X belong to eq. 2
            yield None, line
            continue
        strong, weak = run.k > star.max(), run.k < star.min() / 2
        ok = (ratio < limit).all() if strong else (ratio > limit).all() if weak else None
        growth = [text(block_growth(run.k, w[run], x).mean(1)) for w in (start, end)]
        side = "must vanish" if strong else "must stay" if weak else "near k*"
        yield ok, f"{line} ({side}); mean eigenvalue of X there {' at the start, '.join(growth)} at the end"


def layers_align(runs, start, end, x, args):
    """Parts of C2."""
    weight = end[runs["T2"][0]]
    diagonal, grown = alignment(weight).diagonal(dim1=-2, dim2=-1), sigma(weight).amin(1) > 1
    for name, some in {"all": grown | True, "σ > 1 in both layers": grown, "the others": ~grown}.items():
        mean, count = (diagonal * some).sum(1) / some.sum(1).clamp(min=1), some.float().sum(1)
        yield (mean > 0.9).all(), f"{name}, {text(count)} directions: mean diagonal of |V₂ᵀU₁| {text(mean)}"


def small_stay_small(runs, start, end, x, args):
    """Parts of C3."""
    for run in runs["T3"]:
        growth = sigma(end[run]) - sigma(start[run])
        small, large = growth[..., NOISY:].mean((1, 2)), growth[..., :4].mean((1, 2))
        before, after = (collapsed(sigma_c(run, w[run], x)) for w in (start, end))
        slow, low = (small.abs() < 0.1 * large).all(), (after >= 1).all()
        name = ""
        if run.start == "orthogonal":
            name, slow, low = "equal singular values 0.3 at the start, which theorem 2 excludes: ", None, None
        yield slow, f"{name}growth of the smallest 8 σ of W₁, W₂ {text(small)}, the largest 4 {text(large)}"
        yield low, f"{name}collapsed at the start {text(before)}, at the end {text(after)}"


def depth_collapses(runs, start, end, x, args):
    """Parts of C4."""
    for kind, name in (((False, "decaying"), "linear"), ((True, "decaying"), "ReLU"),
                       ((False, "orthogonal"), "linear, equal singular values 0.3 at the start")):
        group = [run for run in runs["T4"] if (run.relu, run.start) == kind]
        before, after = ([collapsed(sigma_c(run, w[run], x)) for run in group] for w in (start, end))
        means = [count.mean().item() for count in after]
        more = means[0] == 0 and means == sorted(means) and (means[-1] > 0 or len(means) == 1)
        yield None if kind[1] == "orthogonal" else more, (
            f"{name}: collapsed at L = 1 … {args.layers}: {text(*after)}; at the start {text(*before)}")


def werank_helps(runs, start, end, x, args):
    """Parts of C5."""
    for loss in LOSSES:
        plain, kept = ([run for run in runs.get("T6", []) if (run.loss, run.werank) == (loss, werank)]
                       for werank in (False, True))
        if kept:
            error = torch.stack([(sigma(end[run]) - 1).abs().amax((1, 2)) for run in kept])
            name = f"{loss}, L = 1 … {args.layers}"
            ok, must = (error < 0.2).all(), "must go to 0"
            if loss == "EMA":
                ok, must = (error > 0.2).any(), "the exception: must not go to 0"
            yield ok, f"{name}: largest |σ(W) - 1| with WERank {text(*error)} ({must})"
            plain, kept = (torch.stack([collapsed(sigma_c(run, end[run], x)) for run in group])
                           for group in (plain, kept))
            yield not kept.any(), f"{name}: collapsed with WERank {text(*kept)}; without {text(*plain)}"
        if "T7" in runs:
            low, high = min(args.k), max(args.k)
            plain, kept = ([block(end[Run(loss, 1, k, werank)]).mean(1) for k in (low, high)]
                           for werank in (False, True))
            yield (kept[0] > kept[1] + 0.5).all() if low < 1 and high > 2 else None, (
                f"{loss}, L = 1, mean augmented σ at k = {low:g}, {high:g}: with WERank {text(*kept)}; "
                f"without {text(*plain)}")


CLAIMS = {  # claim: (judge, the experiments it needs one of, what is claimed, threshold and why)
    "C1": (strong_augmentation, {"T1"}, "strong augmentation makes singular values vanish", (
        "the largest σ of the 8 augmented columns of W is below 10 % of σ₁(W), 1 % of the variance; judged "
        "above k* and below k*/2: near k* growth and decay outlast the training")),
    "C2": (layers_align, {"T2"}, "adjacent layers align", "0.9, within 26° of aligned; random matrices: 0.2"),
    "C3": (small_stay_small, {"T3"}, "with two layers the smallest σ(W) stay behind, and C is low-rank",
           "they grow by less than a tenth of the largest; collapsed: σ(C) below 1 % of the largest"),
    "C4": (depth_collapses, {"T4"}, "more layers, more collapsed dimensions, none for one; ReLU the same",
           "none for L = 1, never fewer with more; collapsed: σ(C) below 1 % of the largest"),
    "C5": (werank_helps, {"T6", "T7"}, (
        "WERank drives σ(W) to 1 and prevents collapse; strong augmentation and EMA are the exceptions"), (
        "σ(W) within 0.2 of 1, which leaves room for the mini-batches' noise; no σ(C) below 1 % of the "
        "largest; the mean σ of the augmented columns falls by 0.5 from the smallest to the largest k")),
}
HOLDS = {True: "holds", False: "does not hold in full", None: "is not judged"}


def verdicts(runs, histories, x, args):
    """{claim: what it says, whether it holds, threshold, parts} of the claims whose experiments ran."""
    start, end = ({run: weight[i] for run, weight in histories.items()} for i in (0, -1))
    marks, found = {True: "yes", False: "NO ", None: "-  "}, {}
    for claim, (judge, needs, says, threshold) in CLAIMS.items():
        if needs & set(runs):
            parts = judge(runs, start, end, x, args)
            parts = [(None if ok is None else bool(ok), line) for ok, line in parts]
            judged = [ok for ok, _ in parts if ok is not None]
            found[claim] = {"claim": says, "holds": all(judged) if judged else None, "threshold": threshold,
                            "parts": [f"{marks[ok]} {line}" for ok, line in parts]}
    return found


def parse():
    """The command line's arguments."""
    parser = common.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                           allow_abbrev=False)
    add = parser.add_argument
    add("experiments", nargs="*", metavar="T1 … T7", help="(all)")
    add("--seeds", type=common.number(int, 1, 100), help="number of seeds (3; --quick 1)")
    add("--steps", type=common.number(int, 1), help="(4000; --quick 600)")
    add("--lr", type=common.number(float, 1e-9), help="SGD on the mean loss; VICReg has half of it, as 0.1 "
        "diverges with four layers; EMA has AdamW's 0.01 (0.1; 0.005 beyond four layers, where 0.1 diverges; "
        "--public-code 0.01)")
    add("--batch", type=common.number(int, 2, 10_000), help="(128: DirectCLR's public code)")
    add("--k", type=common.number(float, 0), nargs="+", help="variance of the augmentation: all of T1 and T7 "
        "(0.01 0.5 1 1.5 2 4), the first for the others (0.1)")
    add("--layers", type=common.number(int, 1, 64), help="greatest depth of T4 and T6 (4)")
    add("--full-batch", action="store_true", help="1,000 points, all in every step (WERank)")
    add("--public-code", action="store_true", help="InfoNCE by inner products / 0.1, noise on both branches")
    add("--quick", action="store_true", help="a look at everything in seconds")
    add("--out", type=Path, help="folder for figures and toy.json, replaced where they exist")
    args = parser.parse_args()
    complete = vars(args) == vars(parser.parse_args([]))
    given = [name.upper() for name in args.experiments]
    if unknown := [name for name in given if name not in EXPERIMENTS]:
        raise common.UserError(f"unknown experiment {unknown[0]}: choose from {', '.join(EXPERIMENTS)}")
    if args.full_batch and args.batch:
        raise common.UserError("--full-batch takes all 1,000 points: leave --batch out")
    if args.layers and given and not {"T4", "T6"} & set(given):
        raise common.UserError("--layers is the depth of T4 and T6: the others have one or two layers")
    folder = args.out or Path("runs/toy-quick" if args.quick else "runs/toy")
    args.out = (Path("figures"), Path("results")) if complete else (folder, folder)
    for folder in args.out:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise common.UserError(f"--out {folder} can't be written: {there} is not a writable folder")
    args.experiments = [name for name in EXPERIMENTS if name in given or not given]
    args.seeds = args.seeds or (1 if args.quick else 3)
    args.steps = args.steps or (600 if args.quick else 4000)
    args.lr = args.lr or (0.01 if args.public_code else 0.1 if (args.layers or 4) <= 4 else 0.005)
    args.batch = 1_000 if args.full_batch else args.batch or 128
    args.weak_k, args.k = args.k[0] if args.k else 0.1, list(dict.fromkeys(args.k or KS))
    args.layers = args.layers or 4
    return args


def main():
    args = parse()
    runs, x = runs_of(args), data(args)
    kept, histories = train([run for group in runs.values() for run in group], args)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    results = {"settings": settings, "claims": verdicts(runs, histories, x, args)}
    results |= {name: numbers(name, group, kept, histories, x, args) for name, group in runs.items()}
    for folder in args.out:
        folder.mkdir(parents=True, exist_ok=True)
    pictures, folder = args.out
    for name, figure in figures(results, runs, args):
        figure.savefig(pictures / f"{name}.png", dpi=150, bbox_inches="tight")
        print(pictures / f"{name}.png")
    common.write_json(folder / "toy.json", results)
    print(folder / "toy.json")
    for claim, found in results["claims"].items():
        print(f"{claim} {HOLDS[found['holds']]}: {found['claim']}")
        print(f"    threshold: {found['threshold']}", *found["parts"], sep="\n    ")


if __name__ == "__main__":
    torch.set_num_threads(1)  # small matrices: a second thread gains little, on a busy machine it loses much
    common.run(main)
