"""Why embeddings collapse to few dimensions: toy models on Gaussian data of 16 dimensions.

Reproduces DirectCLR figures 3, 5, 6, 11 and WERank figures 1-5, and judges what the papers read from them.

    python toy_linear.py                                 all: figures/toy-*.png, results/toy.json, verdicts
    python toy_linear.py --quick                         one seed, 600 steps, all figures: runs/toy-quick
    python toy_linear.py T4 --layers 6 --steps 20000     one experiment with changes: runs/toy
    python toy_linear.py T5 --full-batch --seeds 1       WERank's regime, 1,000 points in every step: runs/toy
    python toy_linear.py T1 --public-code                the loss of DirectCLR's public code: runs/toy

    T1 augmentation strength, one layer (DirectCLR 3)    T5 with and without WERank over time (WERank 1, 4, 5)
    T2 alignment of two layers (DirectCLR 5)             T6 depth, with and without WERank (WERank 2)
    T3 singular values over time (DirectCLR 6)           T7 augmentation strength, with WERank (WERank 3)
    T4 depth, linear and with ReLU (DirectCLR 11)

Only the run of everything without changes writes to figures/ and results/; every other one, which has lesser
or other numbers, to runs/ or to --out.
"""
import argparse
from functools import reduce
from itertools import pairwise
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
KS = (0.01, 0.5, 1.0, 1.5, 2.0, 4.0)
TICKS = (1, 4, 8, 12, 16)
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


def strengths(args):
    """The augmentation strengths of T1 and T7, that of the others, the depths of T4 and T6."""
    return args.k or KS, args.k[0] if args.k else 0.1, range(1, (args.layers or 4) + 1)


def runs_of(args):
    """{experiment: its runs}; an experiment shares a run with another where it has the same settings."""
    (ks, weak, depths), both = strengths(args), (False, True)
    runs = {
        "T1": [Run(layers=1, k=k, start=start) for start in ("orthogonal", "decaying") for k in ks],
        "T2": [Run(k=weak)],
        "T3": [Run(k=weak)],
        "T4": [Run(layers=n, k=weak, relu=relu and n > 1) for relu in both for n in depths],
        "T5": [Run(loss, k=weak, werank=werank) for loss in LOSSES for werank in both],
        "T6": [Run(loss, n, weak, werank) for loss in LOSSES for werank in both for n in depths],
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
    """Yields views' sources x (seeds, B, d) and noises (2, seeds, B, d) at k = 1; every epoch is a
    permutation. A seed's stream does not depend on how many others there are."""
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


def train(runs, args):
    """Trains all runs and seeds as one batch of matrices: the steps that are kept (T), and
    {run: weights (T, seeds, layers, d, d)}. UserError where they diverge.

    A shallower run has identities, which are not trained, behind its layers; losses and ReLU take their slice
    of the batch, so runs are sorted by them. Gradients of runs don't mix: the losses are summed.
    """
    runs = sorted(set(runs), key=lambda run: (LOSSES.index(run.loss), run.relu, run))
    deepest, eye = max(run.layers for run in runs), torch.eye(DIM)
    bounds = [sum(LOSSES.index(run.loss) < i for run in runs) for i in range(4)]
    contrastive, decorrelating, distilled = (slice(*ends) for ends in pairwise(bounds))
    curved = slice(bounds[1] - sum(run.relu for run in runs), bounds[1])
    straight = slice(0, curved.start)
    depth = torch.tensor([run.layers for run in runs])[:, None].expand(-1, args.seeds)
    real = (depth[..., None] > torch.arange(deepest))[..., None, None]
    amplitude = torch.tensor([run.k for run in runs]).sqrt()[:, None, None, None]
    penalised = [i for i, run in enumerate(runs) if run.werank]
    starts = {run.start: torch.stack([initial_weights(run.start, deepest, torch.Generator().manual_seed(seed))
                                      for seed in range(args.seeds)]) for run in runs}
    weight = torch.stack([starts[run.start] for run in runs])
    parts = plain, spread, adaptive = [w.clone().requires_grad_() for w in weight.tensor_split(bounds[1:3])]
    teacher = adaptive.detach().clone()
    sgd = torch.optim.SGD([{"params": [plain]}, {"params": [spread], "lr": args.lr / 2}], lr=args.lr)
    adamw = torch.optim.AdamW([adaptive], lr=0.01, weight_decay=3e-4)  # WERank section 4.2
    info_nce = info_nce_public if args.public_code else common.info_nce_euclidean
    werank = torch.vmap(lambda w: common.werank_penalty([w]))
    kept = torch.linspace(0, args.steps, min(args.steps, 40) + 1).round().int().tolist()
    stream, history = batches(args, data(args)), []
    for step in tqdm(range(args.steps + 1), f"{len(runs)} runs x {args.seeds} seeds", disable=None):
        weight = torch.where(real, torch.cat(parts), eye)
        if step in kept:
            history.append(weight.detach())
            if (wild := ~(weight.abs().amax((1, 2, 3, 4)) < 1e3)).any():  # NaN too
                name = label(runs[wild.int().argmax()])
                raise common.UserError(f"--lr {args.lr:g} makes {name} diverge before step {step}: choose a "
                                       "smaller one")
        x, noise = next(stream)
        x1, x2 = x + amplitude * noise[0], x + amplitude * noise[1]
        z1, z2 = (torch.cat([network(weight[straight], x[straight]),
                             network(weight[curved], x[curved], depth[curved]),
                             network(weight[curved.stop:], x[curved.stop:])]) for x in (x1, x2))
        loss = info_nce(z1[contrastive], z2[contrastive]).sum()
        loss = loss + common.vicreg(z1[decorrelating], z2[decorrelating], 10.0, 10.0, 1.0).sum()
        slow = torch.where(real[distilled], teacher, eye)
        for p, x in ((z1[distilled], x2[distilled]), (z2[distilled], x1[distilled])):
            loss = loss + common.byol_loss(p, network(slow, x)).sum() / 2
        if penalised:  # an identity behind a run's layers has no penalty
            loss = loss + common.REG_WEIGHT["werank"] * werank(weight[penalised].flatten(0, -3)).sum()
        for optimizer in (sgd, adamw):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in (sgd, adamw):
            optimizer.step()
        teacher.lerp_(adaptive.detach(), 1 - 0.995)
    return kept, {run: weight[:, :, :run.layers] for run, weight in zip(runs, torch.stack(history, 1))}


def sigma_w(weight):
    """Singular values (..., d) of weight (..., d, d)."""
    return torch.linalg.svdvals(weight)


def sigma_c(run, weight, x):
    """Singular values (..., d) of the embeddings' covariance (DirectCLR eq. 1), weight (..., seeds, L, d, d),
    on the first 1,000 points of x (seeds, N, d), in float64: the smallest are 1e-9 of the largest."""
    depth = torch.full(weight.shape[:-3], run.layers) if run.relu else None
    z = network(weight.double(), x[:, :1000].double(), depth)
    z = z - z.mean(-2, keepdim=True)
    return sigma_w(z.mT @ z / z.shape[-2])


def alignment(weight):
    """|V₂ᵀU₁| (..., d, d) of the first two layers of weight (..., L, d, d)."""
    return (torch.linalg.svd(weight[..., 1, :, :]).Vh @ torch.linalg.svd(weight[..., 0, :, :]).U).abs()


# --------------------------------------------------------------------------------------- figures and numbers

def label(run):
    parts = [run.loss, f"L={run.layers}", f"k={run.k:g}", "WERank" * run.werank, "ReLU" * run.relu]
    return " ".join(part for part in [*parts, "orthogonal" * (run.start == "orthogonal")] if part)


def mean_std(values, axis=0):
    """What results keep of values with seeds along `axis`."""
    std = values.std(axis, correction=0)
    return {"mean": common.rounded(values.mean(axis)), "std": common.rounded(std)}


def numbers(name, runs, kept, histories, x, public_code):
    """What results hold of an experiment: spectra at the end or over time, by run."""
    found = {"steps": kept} if name in ("T2", "T3", "T5") else {}
    for run in runs:
        weight = histories[run]
        if name in ("T1", "T7"):
            found[label(run)] = {"sigma_W": mean_std(sigma_w(weight[-1, :, 0]))}
            if name == "T1" and not public_code:
                ends = ("start", weight[0]), ("end", weight[-1])
                found[label(run)] |= {f"X_block_{when}": mean_std(block_growth(run.k, w, x)) for when, w in ends}
        elif name == "T2":
            aligned = alignment(weight)
            some = aligned[[0, len(kept) // 4, -1]]
            found[label(run)] = {"diagonal": mean_std(aligned.diagonal(dim1=-2, dim2=-1).mean(-1), 1),
                                 "alignment": mean_std(some, 1), "seed_0": common.rounded(some[:, 0])}
        elif name in ("T3", "T5"):
            found[label(run)] = {"sigma_W1": mean_std(sigma_w(weight[:, :, 0]), 1),
                                 "sigma_W2": mean_std(sigma_w(weight[:, :, 1]), 1),
                                 "sigma_C": mean_std(sigma_c(run, weight, x), 1)}
        else:
            found[label(run)] = {"sigma_C": mean_std(sigma_c(run, weight[-1], x))}
    return found


def spectra(axis, curves, ylabel, floor):
    """Curves [(label, {"mean", "std"}, shade in 0 … 1, line style)] over the index, at the floor if below."""
    for name, curve, shade, style in curves:
        axis.plot(range(1, DIM + 1), np.maximum(curve["mean"], floor), style, linewidth=1.2, label=name,
                  marker="os^vDX"[round(5 * shade)], markersize=4, color=colormaps["cividis"](0.85 * shade),
                  fillstyle="full" if style == "-" else "none")
    axis.set(xlabel="index j of the singular value", xticks=TICKS, yscale="log")
    axis.set_ylabel(ylabel)


def evolution(axes, found, kept, titles, floor=1e-8):
    """σ(W₁), σ(W₂), σ(C) over time in three axes, the largest dark, the smallest light and thin."""
    for axis, key, title in zip(axes, ("sigma_W1", "sigma_W2", "sigma_C"), titles):
        sigma = np.maximum(found[key]["mean"], floor)
        for j in range(DIM):
            axis.plot(kept, sigma[:, j], color=colormaps["cividis"](j / DIM), linewidth=1.6 - j / DIM)
        axis.set(yscale="log", xlabel="step", ylabel="singular value")
        axis.set_title(title, fontsize=10)


def panels(title, rows, columns, **shared):
    figure = Figure(figsize=(1.2 + 3.2 * columns, 0.8 + 2.7 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, columns, **shared)


def shaded(values):
    return [(i / max(1, len(values) - 1), value) for i, value in enumerate(values)]


def figures(results, runs, args):
    """Yields (file name, Figure), one per figure of the papers."""
    ks, weak, depths = strengths(args)
    if "T1" in runs:
        figure, axes = panels("One layer: how far do singular values 9 to 16, of the augmented dimensions, "
                              "fall with k?", 1, 2, sharey=True)
        names = {"orthogonal": "start: 0.3 · orthogonal", "decaying": r"start: $\sigma_j=e^{-0.35\,(j-1)}$"}
        for axis, (start, title) in zip(axes, names.items()):
            found = [(s, k, results["T1"][label(Run(layers=1, k=k, start=start))]) for s, k in shaded(ks)]
            spectra(axis, [(f"k = {k:g}", f["sigma_W"], s, "-") for s, k, f in found], r"$\sigma_j(W)$", 1e-4)
            axis.set_title(title, fontsize=10)
        axis.legend(fontsize=8)
        yield "toy-directclr-3", figure
    if "T2" in runs:
        found, kept = results["T2"][label(runs["T2"][0])], results["T2"]["steps"]
        figure, axes = panels(r"Do the layers align, $|V_2^T U_1| \to I$? Large singular values are top left "
                              "(L = 2, seed 0)", 1, 3, sharey=True)
        for axis, heat, step in zip(axes, found["seed_0"], (0, kept[len(kept) // 4], kept[-1])):
            image = axis.imshow(heat, cmap="Greys", vmin=0, vmax=1, extent=(0.5, DIM + 0.5, DIM + 0.5, 0.5))
            axis.set_title(f"step {step}", fontsize=10)
            axis.set(xlabel=r"$u_1^j$, left vectors of $W_1$", xticks=TICKS, yticks=TICKS)
        axes[0].set_ylabel(r"$v_2^i$, right vectors of $W_2$")
        figure.colorbar(image, ax=axes, label=r"$|V_2^T U_1|$")
        yield "toy-directclr-5", figure
    if "T3" in runs:
        figure, axes = panels(f"How far do the smallest singular values (light) stay behind? L = 2, k = {weak:g}, "
                              "mean of seeds", 1, 3)
        evolution(axes, results["T3"][label(runs["T3"][0])], results["T3"]["steps"],
                  (r"(a) $\sigma_j(W_1)$", r"(b) $\sigma_j(W_2)$", r"(c) $\sigma_j(C)$"))
        yield "toy-directclr-6", figure
    if "T4" in runs:
        figure, axes = panels(f"How many dimensions of the embedding are left with L layers? k = {weak:g}, "
                              "mean of seeds", 1, 2, sharey=True)
        for axis, relu in zip(axes, (False, True)):
            found = [(s, n, results["T4"][label(Run(layers=n, k=weak, relu=relu and n > 1))])
                     for s, n in shaded(depths)]
            spectra(axis, [(f"L = {n}", f["sigma_C"], s, "-") for s, n, f in found], r"$\sigma_j(C)$", 1e-8)
            axis.set_title("(b) ReLU between layers" if relu else "(a) linear", fontsize=10)
        axis.legend(fontsize=8)
        yield "toy-directclr-11", figure
    for number, loss in ((1, "VICReg"), (4, "InfoNCE"), (5, "EMA")) if "T5" in runs else ():
        figure, rows = panels(f"{loss}, k = {weak:g}: does WERank (below) bring up the smallest singular "
                              "values (light)?", 2, 3, sharex=True, sharey="col")
        for werank, end, axes in zip((False, True), ("", ", with WERank"), rows):
            found = results["T5"][label(Run(loss, k=weak, werank=werank))]
            evolution(axes, found, results["T5"]["steps"],
                      [rf"$\sigma_j({name})${end}" for name in ("W_1", "W_2", "C")])
        yield f"toy-werank-{number}", figure
    titles = {"T6": f"Does WERank (dotted, hollow) keep all dimensions at every depth? k = {weak:g}",
              "T7": "One layer: up to which k does WERank (dotted, hollow) keep the augmented dimensions?"}
    for name, title in titles.items():
        if name not in runs:
            continue
        figure, axes = panels(title, 1, 3, sharey=True)
        for axis, loss in zip(axes, LOSSES if name == "T6" else ("EMA", "InfoNCE", "VICReg")):
            curves = []
            for run in [run for run in runs[name] if run.loss == loss]:
                values, value, what = (depths, run.layers, "L") if name == "T6" else (ks, run.k, "k")
                shade = list(values).index(value) / max(1, len(values) - 1)
                curve, = results[name][label(run)].values()
                head = f"{what} = {value:g}" + ", WERank" * run.werank
                curves.append((head, curve, shade, "-:"[run.werank]))
            spectra(axis, curves, *((r"$\sigma_j(C)$", 1e-8) if name == "T6" else (r"$\sigma_j(W)$", 1e-4)))
            axis.set_title(loss, fontsize=10)
        axis.legend(fontsize=6, ncols=2)
        yield "toy-werank-2" if name == "T6" else "toy-werank-3", figure


# -------------------------------------------------------------------------------------------------- verdicts

def collapsed(sigma):
    """How many of the singular values (..., d) of C are below COLLAPSED of the largest: (...)."""
    return (sigma < COLLAPSED * sigma[..., :1]).sum(-1).float()


def text(values):
    """Mean ± std over seeds."""
    return f"{values.mean():.3g} ± {values.std(correction=0):.2g}"


def block(weight):
    """Singular values (..., NOISY) of the augmented dimensions' columns of W_1, weight (..., L, d, d)."""
    return sigma_w(weight[..., 0, :, -NOISY:])


def verdicts(runs, histories, x, args):
    """{claim: {"holds", "threshold", "parts"}} of the claims whose experiments ran."""
    end, claims = {run: weight[-1] for run, weight in histories.items()}, {}
    ks, weak_k, _ = strengths(args)

    def judge(claim, threshold):
        claims[claim] = {"holds": True, "threshold": threshold, "parts": []}

        def part(ok, line):
            claims[claim]["holds"] &= bool(ok)
            claims[claim]["parts"].append(f"{'yes' if ok else 'NO '} {line}")
        return part

    if "T1" in runs:
        noise = torch.randn(*x.shape[:2], NOISY, generator=torch.Generator().manual_seed(3000))
        star = torch.stack([thresholds(*pair) for pair in zip(x, noise)])
        part = judge("C1", "vanished: all 8 augmented singular values below 10 % of the largest (1 % of "
                           "variance); judged above k* and below k*/2: near k* growth and decay outlast the training")
        part(True, f"k* predicted from the data for small weights: {text(star[:, 0])} to {text(star[:, 1])}")
        for run in runs["T1"]:
            ratio, limit = block(end[run])[:, 0] / sigma_w(end[run][:, 0])[:, 0], COLLAPSED ** 0.5
            strong, weak = run.k > star.max(), run.k < star.min() / 2
            ok = (ratio < limit).all() if strong else (ratio > limit).all() if weak else True
            side = "must vanish" if strong else "must stay" if weak else "near k*, not judged"
            line = f"{label(run)}: largest σ of the augmented block / largest σ(W) {text(ratio)} ({side})"
            if not args.public_code:  # X belongs to eq. 2
                start, final = (block_growth(run.k, w, x).mean(1) for w in (histories[run][0], end[run]))
                line += f"; mean eigenvalue of X there {text(start)} at the start, {text(final)} at the end"
            part(ok, line)
    if "T2" in runs:
        part = judge("C2", "0.9: within 26° of aligned; the diagonal of a random matrix is about 0.2")
        weight = end[runs["T2"][0]]
        diagonal = alignment(weight).diagonal(dim1=-2, dim2=-1)
        grown = sigma_w(weight).amin(1) > 1  # 1 is the largest at the start
        for name, chosen in (("all 16 directions", grown | True), ("those with σ > 1 in both layers", grown),
                             ("the others", ~grown)):
            mean = (diagonal * chosen).sum(1) / chosen.sum(1).clamp(min=1)
            count = text(chosen.float().sum(1))
            part((mean > 0.9).all(), f"mean diagonal of |V₂ᵀU₁|, {name} ({count}): {text(mean)}")
    if "T3" in runs:
        part = judge("C3", "the smallest grow by less than a tenth; collapsed: below 1 % of the largest σ(C)")
        run = runs["T3"][0]
        growth = sigma_w(end[run]) - sigma_w(histories[run][0])
        small, large = growth[..., NOISY:].mean((1, 2)), growth[..., :4].mean((1, 2))
        part((small.abs() < 0.1 * large).all(),
             f"growth of the smallest 8 σ(W₁), σ(W₂) {text(small)}, of the largest 4 {text(large)}")
        low = collapsed(sigma_c(run, end[run], x))
        part((low >= 1).all(), f"collapsed dimensions of C: {text(low)} of {DIM}")
    if "T4" in runs:
        part = judge("C4", "collapsed: below 1 % of the largest σ(C); none for L = 1, never fewer with more")
        for relu in (False, True):
            each = dict.fromkeys(run for run in runs["T4"] if run.layers == 1 or run.relu == relu)
            count = [collapsed(sigma_c(run, end[run], x)) for run in each]
            means = [c.mean().item() for c in count]
            more = all(b >= a for a, b in pairwise(means)) and (means[-1] > 0 or len(means) == 1)
            name, counts = "ReLU" if relu else "linear", ", ".join(map(text, count))
            part(more and means[0] == 0, f"{name}, collapsed at L = 1 … {len(means)}: {counts}")
    if {"T5", "T6", "T7"} <= set(runs):
        part = judge("C5", "all σ(W) within 0.2 of 1, room for the mini-batches' fluctuation; no σ(C) below 1 % "
                           "of the largest; the augmented block falls by 0.5 from smallest to largest k")
        for loss in LOSSES:
            without, kept = ([run for run in runs["T6"] if run.loss == loss and run.werank == werank]
                             for werank in (False, True))
            error = [(sigma_w(end[run]) - 1).abs().amax((1, 2)) for run in kept]
            part((torch.stack(error) < 0.2).all(),
                 f"{loss}, L = 1 … {len(kept)}: largest |σ(W) - 1| with WERank {', '.join(map(text, error))}")
            without, kept = ([collapsed(sigma_c(run, end[run], x)) for run in group]
                             for group in (without, kept))
            with_text, without_text = (", ".join(map(text, counts)) for counts in (kept, without))
            part(not torch.stack(kept).any(),
                 f"{loss}, collapsed dimensions: with WERank {with_text}; without {without_text}")
            ends = [Run(loss, 1, k, werank) for werank in (False, True) for k in (min(ks), max(ks))]
            ends = [block(end[run]).mean(1) for run in ends]
            with_text, without_text = (", ".join(map(text, pair)) for pair in (ends[2:], ends[:2]))
            part((ends[2] > ends[3] + 0.5).all(),
                 f"{loss}, L = 1, mean σ of the augmented block at k = {min(ks):g} and {max(ks):g}: with "
                 f"WERank {with_text}; without {without_text}")
        error = (sigma_w(end[Run("EMA", k=weak_k, werank=True)]) - 1).abs().amax((1, 2))
        part((error > 0.2).all(),
             f"EMA is the exception, two layers: largest |σ(W) - 1| with WERank {text(error)}")
    return claims


def parse():
    parser = common.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                           allow_abbrev=False)
    add, count = parser.add_argument, common.number(int, 1)
    add("experiments", nargs="*", metavar="T1 … T7", help="(all)")
    add("--seeds", type=count, help="number of seeds (3; --quick 1)")
    add("--steps", type=count, help="(4000; --quick 600)")
    add("--lr", type=common.number(float, 1e-9), help="SGD on the mean loss; VICReg has half of it, "
        "as 0.1 diverges with four layers; EMA has AdamW's 0.01 (0.1; --public-code 0.01)")
    add("--batch", type=common.number(int, 2, 10_000), help="(128: DirectCLR's public code)")
    add("--k", type=common.number(float, 0), nargs="+", help="variance of the augmentation: all of T1 and T7 "
        "(0.01 0.5 1 1.5 2 4), the first for the others (0.1)")
    add("--layers", type=count, help="greatest depth of T4 and T6 (4)")
    add("--full-batch", action="store_true", help="1,000 points, all in every step (WERank)")
    add("--public-code", action="store_true", help="InfoNCE by inner products / 0.1, noise on both branches")
    add("--quick", action="store_true", help="a look at everything in seconds")
    add("--out", type=Path, help="folder for figures and toy.json, replaced where they exist")
    args = parser.parse_args()
    given = [name.upper() for name in args.experiments]
    if unknown := [name for name in given if name not in EXPERIMENTS]:
        raise common.UserError(f"unknown experiment {unknown[0]}: choose from {', '.join(EXPERIMENTS)}")
    if args.full_batch and args.batch:
        raise common.UserError("--full-batch takes all 1,000 points: leave --batch out")
    if args.layers and given and not {"T4", "T6"} & set(given):
        raise common.UserError("--layers is the depth of T4 and T6: the others have one or two layers")
    args.complete = vars(args) == vars(parser.parse_args([]))
    args.experiments = [name for name in EXPERIMENTS if name in given or not given]
    args.seeds = args.seeds or (1 if args.quick else 3)
    args.steps = args.steps or (600 if args.quick else 4000)
    args.lr = args.lr or (0.01 if args.public_code else 0.1)
    args.batch = 1_000 if args.full_batch else args.batch or 128
    return args


def main():
    args = parse()
    runs, x = runs_of(args), data(args)
    kept, histories = train([run for group in runs.values() for run in group], args)
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "complete")}
    results = {"settings": settings, **{name: numbers(name, group, kept, histories, x, args.public_code)
                                        for name, group in runs.items()}}
    results["claims"] = verdicts(runs, histories, x, args)
    folder = args.out or Path("runs/toy-quick" if args.quick else "runs/toy")
    pictures, file = folder, folder / "toy.json"
    if args.complete:
        pictures, file = Path("figures"), Path("results/toy.json")
    try:
        for parent in (pictures, file.parent):
            parent.mkdir(parents=True, exist_ok=True)
        for name, figure in figures(results, runs, args):
            figure.savefig(pictures / f"{name}.png", dpi=150, bbox_inches="tight")
            print(pictures / f"{name}.png")
        common.write_json(file, results)
    except OSError as error:
        raise common.UserError(f"{folder} can't be written ({common.brief(error)})") from None
    print(file)
    for claim, verdict in results["claims"].items():
        print(f"{claim} {'holds' if verdict['holds'] else 'does not hold in full'} ({verdict['threshold']})")
        print("\n".join(f"   {line}" for line in verdict["parts"]))


if __name__ == "__main__":
    torch.set_num_threads(1)  # small matrices: a second thread gains little, on a busy machine it loses much
    common.run(main)
