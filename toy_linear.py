"""Why embeddings collapse to few dimensions: linear models of Gaussian data of 16 dimensions, and of images.

Reproduces DirectCLR figures 3, 5, 6, 11 and WERank figures 1-5, and judges what the papers read from them.

    python toy_linear.py                              T1 to T7: figures/toy-*.png, results/toy.json, verdicts
    python toy_linear.py T8 --data-dir data           CIFAR-10: figures/toy-images-*, results/toy-images.json
    python toy_linear.py --quick                      T1 to T7, one seed, 600 steps: runs/toy-quick
    python toy_linear.py T4 --layers 6 --steps 20000  one experiment with changes: runs/toy
    python toy_linear.py T6 --full-batch --seeds 1    WERank's regime, 1,000 points in every step: runs/toy
    python toy_linear.py T1 --public-code             the loss of DirectCLR's public code: runs/toy

    T1 augmentation strength, one layer (DirectCLR 3)    T5 with and without WERank over time (WERank 1, 4, 5)
    T2 alignment of two layers (DirectCLR 5)             T6 depth, with and without WERank (WERank 2)
    T3 singular values over time (DirectCLR 6)           T7 augmentation strength, with WERank (WERank 3)
    T4 depth, linear and with ReLU (DirectCLR 11)        T8 theorem 1 on images: which directions shrink?

Only runs without changes write to figures/ and results/.
"""

import signal

if __name__ == "__main__":  # Ctrl-C during imports ends the process there, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import os
from functools import reduce
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import common
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from tqdm import tqdm

DIM = 16  # d of the Gaussian data
NOISY = 8  # how many of the last dimensions are augmented
K_STAR = 2  # while weights are small, X ∝ 2 Cov(x) - k I = (2 - k) I in the augmented dimensions
KS = (0.01, 0.5, 1.0, 1.5, 2.0, 4.0)
EQUAL = 0.3  # σ of a start with equal singular values
COLLAPSED = 0.01  # of the largest σ(C): a dimension with 1 % of the variance, which is 10 % of σ(W)
LOSSES = ("InfoNCE", "VICReg", "EMA")
EXPERIMENTS = tuple(f"T{n}" for n in range(1, 9))
TICKS = (1, 4, 8, 12, 16)

PIXELS = 16  # of T8's images
COMPONENTS = 64  # d of T8
AUGMENTED = ("one view", "both views")
STRENGTHS = {  # of T8's views; strong is LL's recipe
    "weak": common.Augment(PIXELS, scale=(0.8, 1.0), flip=0.0, jitter=(0.1, 0.1, 0.1, 0.02), grey_p=0.0),
    "middle": common.Augment(PIXELS, scale=(0.3, 1.0), jitter=(0.2, 0.2, 0.2, 0.05), grey_p=0.1),
    "strong": common.Augment(PIXELS),
}


class Run(NamedTuple):
    """One configuration, trained with every seed. start: decaying, or σ of every layer. views: of T8."""

    loss: str = "InfoNCE"
    layers: int = 2
    k: float = 0.1
    werank: bool = False
    relu: bool = False
    start: str | float = "decaying"
    views: tuple = ()


def runs_of(args):
    """{experiment: its runs}; an experiment shares a run with another where it has the same settings."""
    k = args.weak_k
    depths = range(1, args.layers + 1)
    starts = ("decaying", EQUAL)
    losses = list(product(LOSSES, (False, True)))
    kinds = product((False, True), starts)
    views = product(AUGMENTED, STRENGTHS)
    runs = {
        "T1": [Run(layers=1, k=k, start=start) for start in starts for k in args.k],
        "T2": [Run(k=k)],
        "T3": [Run(k=k, start=start) for start in starts],
        "T4": [Run(layers=n, k=k, relu=relu, start=start) for relu, start in kinds for n in depths],
        "T5": [Run(loss, 2, k, werank) for loss, werank in losses],
        "T6": [Run(loss, n, k, werank) for loss, werank in losses for n in depths],
        "T7": [Run(loss, 1, k, werank) for loss, werank in losses for k in args.k],
        "T8": [Run(layers=n, start=0.1 ** (1 / n), views=view) for view in views for n in depths],
    }
    return {name: runs[name] if name in args.experiments else [] for name in runs}


def grouped(runs, *settings):
    """{values of these settings: the runs that have them}."""
    found = {}
    for run in runs:
        found.setdefault(tuple(getattr(run, setting) for setting in settings), []).append(run)
    return found


# -------------------------------------------------------------------------------------- model, losses, theory


def initial_weights(start, layers, generator, dim=DIM):
    """(layers, d, d): random orthogonal factors, and the singular values exp(-0.35 j), which are distinct, as
    theorem 2 needs (DirectCLR's public code), or all `start`."""
    u, v = torch.linalg.qr(torch.randn(layers, 2, dim, dim, generator=generator)).Q.unbind(1)
    sigma = torch.exp(-0.35 * torch.arange(dim)) if start == "decaying" else torch.full((dim,), start)
    return (u * sigma) @ v.mT


def whole(weight):
    """W_L … W_1 (..., d, d) of weight (..., L, d, d)."""
    return reduce(lambda inner, outer: outer @ inner, weight.unbind(-3))


def network(weight, x, relu=False):
    """z (..., B, d) = W_L … W_1 x of x (..., B, d) and weight (..., L, d, d). relu: one between layers."""
    if not relu:
        return x @ whole(weight).mT
    first, *others = weight.unbind(-3)
    return reduce(lambda z, matrix: z.relu() @ matrix.mT, others, x @ first.mT)


def similarities(z1, z2):
    """(..., B, B): -|z_i - z_j|²/2, on the diagonal -|z_i - z'_i|²/2, z = z1, z' = z2 (..., B, m); without
    -|z_i|²/2, which is in every term of row i."""
    positive = (z1 * z2).sum(-1) - z2.square().sum(-1) / 2
    logits = z1 @ z1.mT - z1.square().sum(-1)[..., None, :] / 2
    return logits.diagonal_scatter(positive, dim1=-2, dim2=-1)


def info_nce_euclidean(z1, z2):
    """InfoNCE by distance (DirectCLR eq. 2, a sum there), neither normalised nor with a temperature, for z1,
    z2 (..., B, m): (...), the mean over i of -log[p_i / (p_i + Σ_{j≠i} exp(-|z_i - z_j|²/2))],
    p_i = exp(-|z_i - z'_i|²/2), z = z1, z' = z2."""
    return -similarities(z1, z2).log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(-1)


def info_nce_public(z1, z2, temperature=0.1):
    """Inner products, negatives from the other view only, for z1, z2 (..., B, m): (...) (DirectCLR's public
    code, not its eq. 2)."""
    return -(z1 @ z2.mT / temperature).log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(-1)


def vicreg(z1, z2, invariance=25.0, variance=25.0, covariance=1.0):
    """VICReg (Bardes et al. 2022) of z1, z2 (..., B >= 2, m): (...), invariance · mean (z1 - z2)² +
    variance · mean over views, d of max(0, 1 - √(Var z_d + 1e-4)) + covariance · Σ over views, i ≠ j of
    Cov(z)²_ij / m."""
    loss = invariance * (z1 - z2).square().mean((-2, -1))
    for z in (z1, z2):
        z = z - z.mean(-2, keepdim=True)
        cov = z.mT @ z / (z.shape[-2] - 1)
        var = cov.diagonal(dim1=-2, dim2=-1)
        loss = loss + variance / 2 * F.relu(1 - (var + 1e-4).sqrt()).mean(-1)
        loss = loss + covariance / z.shape[-1] * (cov.square().sum((-2, -1)) - var.square().sum(-1))
    return loss


def growth_matrix(weight, x1, x2):
    """X (..., d, d) of lemma 2 for the summed loss: Σ̂₀ - Σ̂₁, with which Ẇ = WX, W (..., d, d) the product
    of the layers and x1, x2 (..., B, d) the views. Eq. 6 as appendix B.2 has it, without its leading
    minus."""
    alpha = similarities(x1 @ weight.mT, x2 @ weight.mT).softmax(-1)
    noise_weight = 1 - alpha.diagonal(dim1=-2, dim2=-1)
    pair = alpha.diagonal_scatter(torch.zeros_like(noise_weight), dim1=-2, dim2=-1)
    pair = pair + pair.mT  # Σ_ij α_ij (x_i - x_j)(x_i - x_j)ᵀ is a graph Laplacian between x and x
    sigma_0 = x1.mT @ (pair.sum(-1)[..., None] * x1 - pair @ x1)
    return sigma_0 - (x2 - x1).mT @ (noise_weight[..., None] * (x2 - x1))


# --------------------------------------------------------------------------------------------- data and views
# A stream yields functions views(run): views x1, x2 (seeds, B, d) of the same points or images for each run.


def generators(args, first):
    """A random number generator for each seed."""
    return [torch.Generator().manual_seed(first + seed) for seed in range(args.seeds)]


def picks(draws, count, batch):
    """Yields indices (seeds, B) below count. An epoch is a permutation: a point twice in a batch would be its
    own negative and shrink the augmented dimensions."""
    order = torch.empty(len(draws), 0, dtype=torch.long)
    while True:
        if order.shape[1] < batch:
            order = torch.stack([torch.randperm(count, generator=g) for g in draws])
        yield order[:, :batch]
        order = order[:, batch:]


def points(args):
    """x ~ N(0, I), (seeds, N, d): 10,000 points (DirectCLR's public code), 1,000 in full batches (WERank)."""
    count = 1_000 if args.full_batch else 10_000
    return torch.stack([torch.randn(count, DIM, generator=g) for g in generators(args, 2000)])


def gaussian_stream(args, x):
    """Views of x (seeds, N, d): √k · N(0, I) is added to the last dimensions of one, --public-code: of
    both."""
    draws = generators(args, 1000)
    for pick in picks(draws, x.shape[1], args.batch):
        noise = torch.stack([torch.randn(2, args.batch, NOISY, generator=g) for g in draws], 1)
        noise[0] *= args.public_code
        chosen = x.gather(1, pick[..., None].expand(-1, -1, DIM))
        noise = F.pad(noise, (DIM - NOISY, 0))
        yield lambda run, chosen=chosen, noise=noise: chosen + run.k**0.5 * noise


def image_stream(args):
    """Views of the training images, normalised, in the principal components of these images themselves,
    whitened: their Cov(x) = I. With one view augmented the other is the image itself."""
    images = common.load_dataset(args.dataset, args.data_dir, PIXELS).x_train
    flat = common.normalize(images).flatten(1)
    variance, direction = torch.linalg.eigh(torch.cov(flat.T))
    if len(images) < args.batch or not variance[-COMPONENTS] > 1e-6 * variance[-1]:
        size = f"{args.batch} images of {COMPONENTS} dimensions"
        raise common.UserError(f"--dataset {args.dataset} has not {size}")
    whitening = direction[:, -COMPONENTS:] / variance[-COMPONENTS:].sqrt()
    draws = generators(args, 1000)

    def embed(augment, batch):
        views = torch.stack([augment(x, g) for x, g in zip(batch, draws)])
        return (views.flatten(2) - flat.mean(0)) @ whitening

    for pick in picks(draws, len(images), args.batch):
        batch = images[pick]
        clean = embed(lambda x, _: common.normalize(x), batch)
        views = {}
        for strength, augment in STRENGTHS.items():
            second = embed(augment, batch)
            views["one view", strength] = (clean, second)
            views["both views", strength] = (embed(augment, batch), second)
        yield lambda run, views=views: views[run.views]


# --------------------------------------------------------------------------------------------------- training


class Group:
    """Runs of one loss and depth: weight (runs, seeds, L, d, d), trained together. Losses are summed over
    runs and seeds, so that gradients don't mix."""

    def __init__(self, runs, args):
        self.runs = runs
        self.loss = runs[0].loss
        self.relu = runs[0].relu
        self.werank = [i for i, run in enumerate(runs) if run.werank]
        self.info_nce = info_nce_public if args.public_code else info_nce_euclidean
        dim = COMPONENTS if runs[0].views else DIM
        pairs = [(run, g) for run in runs for g in generators(args, 0)]
        start = torch.stack([initial_weights(run.start, run.layers, g, dim) for run, g in pairs])
        self.weight = start.unflatten(0, (len(runs), -1)).requires_grad_()
        self.teacher = self.weight.detach().clone()
        if self.loss == "EMA":  # WERank section 4.2
            self.optimizer = torch.optim.AdamW([self.weight], lr=0.01, weight_decay=3e-4)
        else:
            self.optimizer = torch.optim.SGD([self.weight], args.lr / (2 if self.loss == "VICReg" else 1))

    def step(self, views):
        x1, x2 = (torch.stack(x) for x in zip(*map(views, self.runs)))
        z1, z2 = (network(self.weight, x, self.relu) for x in (x1, x2))
        if self.loss == "InfoNCE":
            loss = self.info_nce(z1, z2)
        elif self.loss == "VICReg":
            loss = vicreg(z1, z2, 10.0, 10.0, 1.0)
        else:
            y1, y2 = (network(self.teacher, x) for x in (x1, x2))
            loss = (common.byol_loss(z1, y2) + common.byol_loss(z2, y1)) / 2
        loss = loss.sum()
        if self.werank:
            penalty = torch.vmap(lambda weight: common.werank_penalty([weight]))
            loss = loss + common.REG_WEIGHT["werank"] * penalty(self.weight[self.werank].flatten(0, 2)).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.teacher.lerp_(self.weight.detach(), 1 - 0.995)


def train(runs, args, stream):
    """Trains all runs and seeds on a stream of views: the steps that are kept (T), {run: weights (T, seeds,
    L, d, d)}. UserError where one diverges."""
    histories = {run: [] for run in runs}
    groups = [Group(kind, args) for kind in grouped(histories, "loss", "layers", "relu").values()]
    kept = torch.linspace(0, args.steps, min(args.steps, 40) + 1).round().int().tolist()
    for step in tqdm(range(args.steps + 1), f"{len(histories)} runs x {args.seeds} seeds", disable=None):
        views = next(stream)
        for group in groups:
            for run, weight in zip(group.runs, group.weight.detach().clone() if step in kept else ()):
                if not weight.abs().max() < 1e3:  # NaN too
                    what = f"{run.loss} with {run.layers} layers and k = {run.k:g} diverge before step {step}"
                    raise common.UserError(f"--lr {args.lr:g} makes {what}: choose a smaller one")
                histories[run].append(weight)
            group.step(views)
    return kept, {run: torch.stack(history) for run, history in histories.items()}


# ------------------------------------------------------------------------------------------------- statistics


class Trained(NamedTuple):
    """What was trained. histories: {run: weights (T, seeds, L, d, d)}. x: points. sample: more views(run)."""

    args: argparse.Namespace
    runs: dict
    histories: dict
    x: torch.Tensor
    sample: list

    def ends(self, run):
        """Weights (seeds, L, d, d) at the start and at the end."""
        return self.histories[run][[0, -1]]

    def ranks(self, run):
        """How many σ(C) are above COLLAPSED of the largest, (2, seeds): at the start and at the end."""
        spectrum = sigma_c(run, self.ends(run), self.x)
        return (spectrum > COLLAPSED * spectrum[..., :1]).sum(-1).float()

    def growth(self, run):
        """X / B (2, seeds, d, d) at the start and at the end, the mean over the sample, in float64."""
        weight = whole(self.ends(run).double())
        views = (torch.stack(tuple(batch(run))).double() for batch in self.sample)
        return torch.stack([growth_matrix(weight, x1, x2) / x1.shape[-2] for x1, x2 in views]).mean(0)

    def directions(self, run):
        """Of T8, eigenvalues (seeds, d) of X / B at the start, ascending, and of their vectors v: |Wv|, end
        over start, which is exp(eigenvalue · time) if X is fixed and L = 1 (theorem 1); the share of |v|² in
        the space where W has shrunk, that of the right singular vectors whose σ are below those of the
        start."""
        values, vectors = torch.linalg.eigh(self.growth(run)[0])
        weight = whole(self.ends(run).double())
        start, end = (weight @ vectors).norm(dim=-2)
        _, s, vh = torch.linalg.svd(weight)
        shrunk = s[1] < s[0].amin(-1, keepdim=True)
        return values, end / start, ((vh[1] @ vectors).square() * shrunk[..., None]).sum(-2)


sigma = torch.linalg.svdvals  # singular values (..., d) of weight (..., d, d)


def sigma_c(run, weight, x):
    """Singular values (..., d) of the embeddings' covariance (DirectCLR eq. 1), weight (..., seeds, L, d, d),
    on the first 1,000 points of x (seeds, N, d), in float64: the smallest are 1e-9 of the largest."""
    z = network(weight.double(), x[:, :1000].double(), run.relu)
    z = z - z.mean(-2, keepdim=True)
    return sigma(z.mT @ z / z.shape[-2])


def alignment(weight):
    """|V₂ᵀU₁| (..., d, d) of the layers of weight (..., 2, d, d)."""
    u, _, vh = torch.linalg.svd(weight)
    return (vh[..., 1, :, :] @ u[..., 0, :, :]).abs()


def gram_cosine(weight):
    """tr(W₁W₁ᵀ W₂ᵀW₂) / (‖W₁W₁ᵀ‖ ‖W₂ᵀW₂‖) (...) of weight (..., 2, d, d): 1 where the two are the same but
    for a factor. It needs no singular vectors, and so no distinct singular values."""
    w1, w2 = weight.unbind(-3)
    return F.cosine_similarity((w1 @ w1.mT).flatten(-2), (w2.mT @ w2).flatten(-2), dim=-1)


def block(weight):
    """Singular values (..., NOISY) of the augmented dimensions' columns of W₁, weight (..., L, d, d)."""
    return sigma(weight[..., 0, :, -NOISY:])


def rank_correlation(one, other):
    """Spearman's of values (..., d): (...)."""
    ranks = (values.argsort(-1).argsort(-1) - (values.shape[-1] - 1) / 2 for values in (one, other))
    return F.cosine_similarity(*ranks, dim=-1)


def summary(values, over_time=False):
    """What results keep of values (seeds, …): the mean and, of several seeds, the sample deviation. Of values
    over time (T, seeds, …), which are many: the mean."""
    spread = {} if over_time or len(values) == 1 else {"std": common.rounded(values.std(0))}
    return {"mean": common.rounded(values.mean(int(over_time)))} | spread


def numbers(name, trained):
    """What results hold of each run of an experiment: its settings; singular values, over time (T2, T3, T5)
    or at the end; what else a figure shows."""
    over_time = name in ("T2", "T3", "T5")
    rows = []
    for run in trained.runs[name]:
        weight = trained.histories[run] if over_time else trained.ends(run)[1]
        found = {f"sigma_W{i}": sigma(w) for i, w in enumerate(weight.unbind(-3), 1)}
        if name == "T8":
            found |= zip(("X_start", "end_over_start", "share_shrunk"), trained.directions(run))
            found["sigma_W"] = sigma(whole(weight))
        else:
            found["sigma_C"] = sigma_c(run, weight, trained.x)
        if name == "T1" and not trained.args.public_code:  # X belongs to eq. 2
            x = trained.growth(run)[..., -NOISY:, -NOISY:]
            found |= zip(("X_block_start", "X_block_end"), torch.linalg.eigvalsh(x))
        if name == "T2":
            found["alignment"] = alignment(weight[[0, len(weight) // 4, -1]])
            found["gram_cosine"] = gram_cosine(weight)
        rows.append(run._asdict() | {key: summary(values, over_time) for key, values in found.items()})
    return rows


# ---------------------------------------------------------------------------------------------------- figures


def panels(title, rows, columns, heads, **shared):
    """(figure, axes (rows, columns)) with a title, and the heads of the panels."""
    figure = Figure(figsize=(0.8 + 2.7 * columns, 0.7 + 2.2 * rows), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for axis, head in zip(axes.flat, heads):
        axis.set_title(head, fontsize=9)
    return figure, axes


def curves(axes, groups, rows, varied):
    """Yields (axis, row, its look and label): a panel for each of groups {head: settings of its rows}.
    Colours from dark to light and markers tell the values of the varied setting, in grey too."""
    values = sorted({row[varied] for row in rows})
    name = "k" if varied == "k" else "L"
    for axis, settings in zip(axes.flat, groups.values()):
        for row in (row for row in rows if settings.items() <= row.items()):
            shade = values.index(row[varied]) / max(1, len(values) - 1)
            look = {"color": colormaps["cividis"](0.85 * shade), "marker": "os^vDX"[round(5 * shade)]}
            yield axis, row, look | {"markersize": 4, "label": f"{name} = {row[varied]:g}"}


def spectra(title, rows, key, varied, groups):
    """σ_j over j: a panel for each of groups, a curve for each of its rows."""
    figure, axes = panels(title, 1, len(groups), groups, sharey=True)
    floor = -8 if key == "sigma_C" else -4
    for axis, row, line in curves(axes, groups, rows, varied):
        if row["werank"]:
            line |= {"linestyle": ":", "fillstyle": "none", "label": None}
        axis.plot(range(1, DIM + 1), np.maximum(row[key]["mean"], 10.0**floor), linewidth=1.2, **line)
    for axis in axes[0]:
        axis.set(xlabel="index j of the singular value", xticks=TICKS, yscale="log")
    axes[0, 0].set_ylabel(rf"$\sigma_j({key[6]})$, drawn at $10^{{{floor}}}$ if below")
    axes[0, -1].legend(fontsize=8)
    return figure


def evolution(title, steps, rows):
    """σ(W₁), σ(W₂), σ(C) over time: a line of panels for each of rows {addition to the heads: row}."""
    keys = {"sigma_W1": "W_1", "sigma_W2": "W_2", "sigma_C": "C"}
    heads = [rf"$\sigma_j({name})${addition}" for addition in rows for name in keys.values()]
    figure, axes = panels(title, len(rows), 3, heads, sharex=True, sharey="col")
    for axis, (row, key) in zip(axes.flat, product(rows.values(), keys)):
        for j, values in enumerate(np.maximum(row[key]["mean"], 1e-8).T):
            axis.plot(steps, values, color=colormaps["cividis"](j / DIM), linewidth=1.6 - j / DIM)
        axis.set(yscale="log")
    figure.supxlabel("step", fontsize=10)
    figure.supylabel(r"singular value, drawn at $10^{-8}$ if below", fontsize=10)
    return figure


def heat_maps(title, steps, row):
    """|V₂ᵀU₁| at the start, a quarter and the end (DirectCLR fig. 5), with `gram_cosine`."""
    cosines = row["gram_cosine"]["mean"]
    shown = (0, len(steps) // 4, -1)
    heads = [rf"step {steps[i]}, $\cos(W_1W_1^T, W_2^TW_2)$ {cosines[i]:.2f}" for i in shown]
    figure, axes = panels(title, 1, 3, heads, sharey=True)
    for axis, heat in zip(axes[0], row["alignment"]["mean"]):
        image = axis.imshow(heat, cmap="Greys", vmin=0, vmax=1, extent=(0.5, DIM + 0.5, DIM + 0.5, 0.5))
        axis.set(xlabel=r"$u_1^j$, left vectors of $W_1$", xticks=TICKS, yticks=TICKS)
    axes[0, 0].set_ylabel(r"$v_2^i$, right vectors of $W_2$")
    figure.colorbar(image, ax=axes, label=r"$|V_2^T U_1|$")
    return figure


def shrinking(title, rows):
    """T8: how directions grow or shrink, against their eigenvalue of X at the start; a panel for each
    view."""
    views = product(AUGMENTED, STRENGTHS)
    groups = {f"{strength}, {sides} augmented": {"views": (sides, strength)} for sides, strength in views}
    figure, axes = panels(title, 2, 3, groups, sharex=True, sharey=True)
    for axis, row, line in curves(axes, groups, rows, "layers"):
        axis.plot(row["X_start"]["mean"], row["end_over_start"]["mean"], linestyle="", **line)
    for axis in axes.flat:
        axis.axhline(1, color="0.6", linewidth=0.8, zorder=1)
        axis.axvline(0, color="0.6", linewidth=0.8, zorder=1)
        axis.set_yscale("log")
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("eigenvalue of X / B at the start, of its vector v", fontsize=10)
    figure.supylabel("|Wv|, end / start", fontsize=10)
    return figure


def figures(results, args):
    """Yields (file name, Figure): the papers' figures, and that of T8."""
    mean = f"Mean of {args.seeds} seeds"
    k = f"k = {args.weak_k:g}, {mean.lower()}"
    starts = {f"all σ = {EQUAL}": EQUAL, r"$\sigma_j=e^{-0.35\,(j-1)}$": "decaying"}
    losses = {loss: {"loss": loss} for loss in LOSSES}
    if rows := results.get("T1"):
        title = f"One layer: how far do σ 9 to 16, the augmented dimensions, fall with k? {mean}"
        groups = {f"start: {head}": {"start": start} for head, start in starts.items()}
        yield "directclr-3", spectra(title, rows, "sigma_W1", "k", groups)
    if rows := results.get("T2"):
        title = rf"Do the layers align, $|V_2^T U_1| \to I$? Large singular values top left; L = 2, {k}"
        yield "directclr-5", heat_maps(title, results["steps"], rows[0])
    if rows := results.get("T3"):
        title = f"How far do the smallest singular values (light) stay behind? L = 2, {k}"
        heads = [f", start: {head}" for head in reversed(starts)]
        yield "directclr-6", evolution(title, results["steps"], dict(zip(heads, rows)))
    if rows := results.get("T4"):
        title = f"How many dimensions of the embedding are left with L layers? {k}"
        kinds = product(starts.items(), (("linear", False), ("ReLU", True)))
        groups = {f"{kind}, {head}": {"relu": relu, "start": start} for (head, start), (kind, relu) in kinds}
        yield "directclr-11", spectra(title, rows, "sigma_C", "layers", groups)
    for number, loss in ((1, "VICReg"), (4, "InfoNCE"), (5, "EMA")):
        if rows := [row for row in results.get("T5", ()) if row["loss"] == loss]:
            title = f"{loss}: does WERank (below) bring up the smallest singular values (light)? {k}"
            rows = dict(zip(("", ", with WERank"), rows))
            yield f"werank-{number}", evolution(title, results["steps"], rows)
    if rows := results.get("T6"):
        title = f"Does WERank (dotted, hollow) keep all dimensions at every depth L? {k}"
        yield "werank-2", spectra(title, rows, "sigma_C", "layers", losses)
    if rows := results.get("T7"):
        title = f"One layer: up to which k does WERank (dotted, hollow) keep σ 9 to 16? {mean}"
        yield "werank-3", spectra(title, rows, "sigma_W1", "k", losses)
    if rows := results.get("T8"):
        title = f"Does X of the first views of {args.dataset} say which directions shrink? {mean}"
        yield "images-theorem-1", shrinking(title, rows)


# --------------------------------------------------------------------------------------------------- verdicts
# A judge yields parts: whether it holds, for each seed or more, None where that is not judged; and numbers.
# Its docstring is the threshold that results state.


def text(*values):
    """Mean and, of several seeds, ± sample deviation, of each of the values (seeds,)."""
    return ", ".join(f"{v.mean():.3g}" + (f" ± {v.std():.2g}" if len(v) > 1 else "") for v in values)


def strong_augmentation(trained):
    """For k above 1.1 k*, where k* = 2 and X turns negative: σ₁ of the 8 augmented columns of W is below 10 %
    of σ₁(W), and at least 8 σ(C) are below 1 % of the largest. For k below k*/2: it is above, and no σ(C) is
    below. Between them growth and decay outlast the training."""
    for run in trained.runs["T1"]:
        end = trained.ends(run)[1]
        ratio = block(end)[:, 0] / sigma(end[:, 0])[:, 0]
        rank = trained.ranks(run)[1]
        strong = run.k > 1.1 * K_STAR
        low = rank <= DIM - NOISY if strong else rank == DIM
        judged = (strong or run.k < K_STAR / 2) and not trained.args.public_code  # k* belongs to eq. 2
        name = f"start {run.start}, k = {run.k:g}"
        vanishing = (ratio < COLLAPSED**0.5) == strong
        yield vanishing if judged else None, f"{name}: largest augmented σ(W) / σ₁(W) {text(ratio)}"
        yield low if judged else None, f"{name}: rank of C {text(rank)}"


def layers_align(trained):
    """0.9 of 1, within 26° of aligned (random bases: 0.2); the diagonal where both σ have grown: theorem 2
    needs X ≻ 0 and ‖W‖ → ∞, which ends where X → 0, so that for the other directions its premise does not
    hold."""
    for run in trained.runs["T2"]:
        start, end = trained.ends(run)
        cosines = gram_cosine(trained.ends(run))
        yield cosines[1] > 0.9, f"tr(W₁W₁ᵀW₂ᵀW₂) / (‖W₁W₁ᵀ‖ ‖W₂ᵀW₂‖), start and end {text(*cosines)}"
        diagonal = alignment(end).diagonal(dim1=-2, dim2=-1)
        grown = sigma(end).amin(1) > sigma(start).amax()
        mean, others = ((diagonal * some).sum(1) / some.sum(1).clamp(min=1) for some in (grown, ~grown))
        where = f"in {text(grown.sum(1).float())} directions, σ above the largest at the start in both layers"
        yield mean > 0.9, f"mean diagonal of |V₂ᵀU₁| {where}: {text(mean)}"
        yield None, f"mean diagonal of |V₂ᵀU₁| in the other directions: {text(others)}"
        for when, x in zip(("start", "end"), torch.linalg.eigvalsh(trained.growth(run))):
            yield None, f"eigenvalues of X / B at the {when}: {text(x[:, 0])} to {text(x[:, -1])}"


def small_stay_small(trained):
    """The smallest 8 σ of W₁, W₂ grow by less than a tenth of the largest 4 (not judged from equal σ, which
    theorem 2 excludes). Training lowers the rank of C, its σ above 1 % of the largest, against the start in
    every seed, from decaying and from equal σ."""
    for run in trained.runs["T3"]:
        change = sigma(trained.ends(run)).diff(dim=0)[0]
        small = change[..., NOISY:].mean((1, 2))
        large = change[..., :4].mean((1, 2))
        slow = small.abs() < 0.1 * large if run.start == "decaying" else None
        yield slow, f"start {run.start}: growth of the smallest, of the largest σ {text(small, large)}"
        before, after = trained.ranks(run)
        yield after < before, f"start {run.start}: rank of C at the start, at the end {text(before, after)}"


def depth_collapses(trained):
    """Judged from equal σ, as decaying ones have collapsed dimensions at the start: all σ(C) are above 1 % of
    the largest for L = 1; training lowers their number, at no L by less than at L - 1, at the last L by some.
    Not judged before every run has left the plateau of small weights, σ₁(C) above 1: deep ones need more
    steps."""
    for (relu, start), runs in grouped(trained.runs["T4"], "relu", "start").items():
        before, after = torch.stack([trained.ranks(run) for run in runs], 1)
        lost = (before - after).mean(1)
        ok = (after[0] == DIM).all() & (lost.diff() >= 0).all() & (lost[-1] > 0 or len(lost) == 1)
        small = [(sigma_c(run, trained.ends(run)[1], trained.x)[:, 0] < 1).sum().item() for run in runs]
        name = f"{'ReLU' if relu else 'linear'}, start {start}, L = 1 … {len(lost)}"
        line = f"{name}: rank of C at the start {text(*before)}, at the end {text(*after)}"
        line = f"{line}; seeds on the plateau {small}" if any(small) else line
        yield ok if start == EQUAL and not relu and not any(small) else None, line  # ReLU stands beside


def werank_helps(trained):
    """σ(W) within 0.2 of 1, which leaves room for the mini-batches' noise, EMA too: that it has trouble is a
    remark of appendix 4.2, not judged. With WERank all σ(C) are above 1 % of the largest, without it not at
    the last L. The gain, by how much WERank brings augmented σ nearer to 1, is at the smallest k more than
    0.1 above that at the largest; for VICReg, where figure 3 finds hardly any, below 0.1."""
    for (loss,), runs in grouped(trained.runs["T6"], "loss").items():
        plain, kept = grouped(runs, "werank").values()
        name = f"{loss}, L = 1 … {len(kept)}"
        errors = [(sigma(trained.ends(run)[1]) - 1).abs().amax((1, 2)) for run in kept]
        yield torch.stack(errors) < 0.2, f"{name}: largest |σ(W) - 1| with WERank {text(*errors)}"
        without, rank = (torch.stack([trained.ranks(run)[1] for run in some]) for some in (plain, kept))
        ok = (rank == DIM) & (without[-1] < DIM) if len(kept) > 1 else None
        yield ok, f"{name}: rank of C with WERank {text(*rank)}, without {text(*without)}"
    ks = [min(trained.args.k), max(trained.args.k)]
    for (loss,), runs in grouped(trained.runs["T7"], "loss").items():
        found = {(run.werank, run.k): block(trained.ends(run)[1]) for run in runs}
        plain, kept = (torch.stack([found[werank, k] for k in ks]) for werank in (False, True))
        gain = ((plain - 1).abs() - (kept - 1).abs()).mean(2)
        ok = gain.abs() < 0.1 if loss == "VICReg" else gain[0] - gain[1] > 0.1
        line = f"{loss}, L = 1, k = {ks[0]:g}, {ks[1]:g}: gain {text(*gain)}; mean augmented σ with WERank"
        line = f"{line} {text(*kept.mean(2))}, without {text(*plain.mean(2))}"
        yield ok if ks[0] < K_STAR / 2 and ks[1] > K_STAR else None, line


def directions_shrink(trained):
    """Of the directions with an eigenvalue of X / B beyond ±0.1 at the start more than 90 % shrink or grow by
    its sign. Where it is negative, |Wv| ends below 10 % of that of the direction that grew most."""
    for ((sides, strength),), runs in grouped(trained.runs["T8"], "views").items():
        values, ratios, inside = (torch.stack(found) for found in zip(*map(trained.directions, runs)))
        name = f"{strength}, {sides} augmented, L = 1 … {len(runs)}"
        clear = values.abs() > 0.1
        right = (values * ratios.log() > 0) & clear
        share = right.sum(2) / clear.sum(2)
        yield share > 0.9, f"{name}: share of directions that shrink or grow as predicted {text(*share)}"
        spectrum = torch.stack([sigma(whole(trained.ends(run)[1])) for run in runs])
        rank = (spectrum > COLLAPSED**0.5 * spectrum[..., :1]).sum(2).float()
        order = text(*rank_correlation(values, ratios))
        yield None, f"{name}: rank correlation of eigenvalue and growth {order}; rank of C {text(*rank)}"
        down = values < 0
        if down.any(2).all():
            left = (ratios * down).amax(2) / ratios.amax(2)
            line = f"{name}: largest |Wv| of negative eigenvalues / of all {text(*left)}"
            yield left < COLLAPSED**0.5, line
            predicted = text((down & clear)[0].sum(1).float())  # the same at every depth, as X is
            yield None, f"{name}: {predicted} predicted to shrink, {text(*(right & down).sum(2).float())} do"
            held = (inside * down).sum(2) / down.sum(2)
            line = f"{name}: {text(*inside.sum(2).round())} σ(W) shrink; share of negative eigenvalues'"
            yield None, f"{line} vectors in the space of theirs {text(*held)}"


TEXTS = {
    "C1": "strong augmentation along a direction makes its singular values vanish (linear model)",
    "C2": "adjacent layers align: |V₂ᵀU₁| → I",
    "C3": "the smallest σ of an over-parametrised model grow much more slowly, and C becomes low-rank",
    "C4": "more layers, more collapsed dimensions; none for one layer (ReLU the same: beside)",
    "C5": "WERank drives all σ(W) to 1 and prevents collapse, and helps less the stronger the augmentation",
    "T8": "strong augmentation makes directions of images vanish, those that X of the first views says",
}
CLAIMS = {  # who judges it, where it stands, the figure that shows it
    "C1": (strong_augmentation, "DirectCLR theorem 1, corollary 1, figure 3", "toy-directclr-3"),
    "C2": (layers_align, "DirectCLR theorem 2, figure 5", "toy-directclr-5"),
    "C3": (small_stay_small, "DirectCLR theorem 3, corollary 2, figure 6", "toy-directclr-6"),
    "C4": (depth_collapses, "DirectCLR figure 11", "toy-directclr-11"),
    "C5": (werank_helps, "WERank figures 1–5", "toy-werank-2"),
    "T8": (directions_shrink, "DirectCLR theorem 1, on images", "toy-images-theorem-1"),
}
HOLDS = {True: "holds", False: "does not hold in full", None: "is not judged"}
MARKS = {True: "yes", False: "NO ", None: "-  "}


def verdicts(trained):
    """{claim: what results hold of it}, of the claims whose experiments ran."""
    found = {}
    for name, (judge, source, figure) in CLAIMS.items():
        threshold = " ".join((judge.__doc__ or "").split())
        parts = [{"ok": None if ok is None else bool(ok.all()), "text": line} for ok, line in judge(trained)]
        judged = [part["ok"] for part in parts if part["ok"] is not None]
        if parts:
            found[name] = {"claim": TEXTS[name], "source": source, "figure": figure, "threshold": threshold}
            found[name] |= {"holds": all(judged) if judged else None, "parts": parts}
    return found


# ----------------------------------------------------------------------------------------------------- script


def arguments():
    """The parser of the command line."""
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add("experiments", nargs="*", type=str.upper, metavar="T1 … T8", help="(T1 … T7)")
    add("--seeds", type=common.number(int, 1, 100), help="number of seeds (3; --quick 1)")
    add("--steps", type=common.number(int, 1), help="(4000; T8 1500; --quick 600)")
    rates = "SGD's on the mean loss, VICReg half of it (0.1; above 4 layers 0.005; --public-code 0.01);"
    add("--lr", type=common.number(float, 1e-9), help=f"{rates} EMA has AdamW's 0.01")
    add("--batch", type=common.number(int, 2, 10_000), help="(128: DirectCLR's public code)")
    strengths = "variance of the augmentation: all in T1, T7 (0.01 0.5 1 1.5 2 4), the first in others (0.1)"
    add("--k", type=common.number(float, 0), nargs="+", help=strengths)
    add("--layers", type=common.number(int, 1, 64), help="greatest depth of T4, T6 and T8 (4)")
    add("--full-batch", action="store_true", help="1,000 points, all in every step (WERank)")
    public = "InfoNCE by inner products / 0.1, noise on both views: X ∝ Cov(x) ≻ 0, no k makes σ vanish"
    add("--public-code", action="store_true", help=public)
    add("--dataset", help="images of T8, as simclr.py takes them (cifar10)")
    add("--data-dir", type=os.path.expanduser, help="where they are, or are downloaded to (data)")
    add("--quick", action="store_true", help="a look at everything in seconds")
    add("--out", type=Path, help="folder for figures and results, replaced where they exist")
    return parser


def parse():
    """The arguments, defaults filled in. UserError for what makes no sense together."""
    args = arguments().parse_args()
    given = set(args.experiments)
    chosen = {name for name, value in vars(args).items() if value}
    images = "T8" in given
    gaussian = {"k", "full_batch", "public_code"}
    refused = [
        (given - {*EXPERIMENTS}, f"no {' '.join(args.experiments)}: choose from {', '.join(EXPERIMENTS)}"),
        (args.full_batch and args.batch, "--full-batch takes all 1,000 points: leave --batch out"),
        (args.layers and given and not given & {"T4", "T6", "T8"}, "--layers is the depth of T4, T6 and T8"),
        (images and len(given) > 1, "T8 runs alone: its data are images"),
        (images and chosen & gaussian, "T8 takes no --k, --full-batch or --public-code"),
        (not images and chosen & {"dataset", "data_dir"}, "--dataset and --data-dir are T8's"),
    ]
    for wrong, message in refused:
        if wrong:
            raise common.UserError(message)
    folder = args.out or Path("runs/toy-quick" if args.quick else "runs/toy")
    unchanged = given <= {"T8"} and chosen <= {"experiments", "data_dir"}
    args.out = (Path("figures"), Path("results")) if unchanged else (folder, folder)
    for folder in args.out:
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise common.UserError(f"--out {folder} can't be written: {there} is not a writable folder")
    args.experiments = [name for name in EXPERIMENTS if name in (given or EXPERIMENTS[:-1])]
    args.seeds = args.seeds or (1 if args.quick else 3)
    complete = 1500 if images else 4000
    args.steps = args.steps or (600 if args.quick else complete)
    args.layers = args.layers or 4
    rate = 0.1 if args.layers <= 4 else 0.005
    args.lr = args.lr or (0.01 if args.public_code else rate)
    args.batch = 1_000 if args.full_batch else args.batch or 128
    args.weak_k = args.k[0] if args.k else 0.1
    args.k = list(dict.fromkeys(args.k or KS))
    args.data_dir = args.data_dir or "data"
    args.dataset = args.dataset or ("cifar10" if images else None)
    return args


def main():
    args = parse()
    runs = runs_of(args)
    x = points(args)
    stream = image_stream(args) if runs["T8"] else gaussian_stream(args, x)
    steps, histories = train([run for group in runs.values() for run in group], args, stream)
    trained = Trained(args, runs, histories, x, list(islice(stream, 16)))
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "data_dir")}
    results = {"settings": settings, "claims": verdicts(trained), "steps": steps}
    results |= {name: numbers(name, trained) for name in args.experiments}
    args.out[1].mkdir(parents=True, exist_ok=True)
    for name, figure in figures(results, args):
        path = args.out[0] / f"toy-{name}.png"
        common.write_figure(path, figure)
        print(path)
    path = args.out[1] / ("toy-images.json" if runs["T8"] else "toy.json")
    common.write_json(path, results)
    print(path)
    for name, found in results["claims"].items():
        print(f"{name} {HOLDS[found['holds']]}: {found['claim']}\n    threshold: {found['threshold']}")
        for part in found["parts"]:
            print(f"    {MARKS[part['ok']]} {part['text']}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # small matrices: a second thread gains little, on a busy machine it loses much
    common.run(main)
