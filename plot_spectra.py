"""Draws trained encoders from inside (spectra, norms of weight rows, covariances) and prints their results.

    python plot_spectra.py runs/a runs/b --layer h -o figures/a.png        ln σ_k over k (LL fig. 1)
    python plot_spectra.py runs/a runs/b --norms -o figures/a.png          row norms, variance (LL prop. 1)
    python plot_spectra.py runs/a --covariance --layer z -o figures/a.png  covariance (LL fig. 2)
    python plot_spectra.py encoder.pth --dataset cifar10 -o figures/a.png  a checkpoint from elsewhere

A run is its folder or its result.json; unfinished runs are left out. Any other file is a checkpoint: the
state dict of a torchvision-named ResNet-18, -34 or -50 of either stem and any width, or of --arch mlp, itself
or under the keys and prefixes that are in use. report.py draws the papers' figures with the functions below.
Copied elsewhere it needs common.py and rows.py.
"""

import argparse
import os
import sys
from collections import Counter
from itertools import chain, islice, pairwise, product
from pathlib import Path

import common
import numpy as np
import torch

import rows

STYLES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))]
MARKERS = "os^vD<>pPX*hd8H1234+x"
LOOKS = [{"marker": m, "linestyle": style, "markersize": 3} for m, style in zip(MARKERS, STYLES * 4)]
LAYERS = {
    "h": "encoder output h",
    "z": "embedding z",
    "penultimate": "last-but-one block",
    "layer3": "last-but-one stage",
    "projector_hidden": "projector's hidden layer",
}
LN_SIGMA = r"$\ln\,\sigma_k$"
HORIZON = r"decay horizon H = wd $\cdot\,\Sigma$ lr / (1 - momentum)"
RANK = r"rank of h: $\sigma_k$ above $10^{-3}\,\sigma_1$"
FLOOR = 1e-12  # of σ₁: a σ_k below is a rounding error, and left out
LEAST_SHOWN = 1e-8  # of the mean variance, on a logarithmic axis
SHUT = 0.01  # of the mean: a weight row or a BatchNorm's γ² below is as good as gone


# ------------------------------------------------------------------------------------------ what results hold


class Missing(LookupError):
    """A result lacks what is asked of it: its network has no such part, or its optimiser no such number."""


def get(result, *keys):
    """result[key][key]…; Missing where there is none, or null."""
    for key in keys:
        result = result.get(key) if isinstance(result, dict) else None
    if result is None:
        raise Missing(f"lacks {' '.join(keys)}")
    return result


def attempt(function, *results):
    """function(*results), or None where one lacks what that needs."""
    try:
        return function(*results)
    except Missing:
        return None


def dead(result):
    """Mask of the dead coordinates of h."""
    return common.dead(torch.tensor(get(result, "row_norms", "variance"))).numpy()


def has_batchnorm(result):
    """Whether one stands behind the encoder's last layer, so that its norms fold to others."""
    return get(result, "row_norms", "folded") != get(result, "row_norms", "bare")


def measure(result, statistic, layer="h"):
    """One number of a result, or of its "start": before training. Missing where it was not stored.

    knn200 and other accuracies. Of a layer: rank_1e-2, rank_1e-3, rank_1e-5, entropy_rank, which are those of
    `common.ranks` of the normalised covariance; offdiagonal, the mean |off-diagonal| / mean diagonal of that;
    rankme, min_max_ratio. dead: how many coordinates of h are.
    """
    if statistic == "dead":
        return int(dead(result).sum())
    if statistic == "entropy_rank" or statistic.startswith("rank_"):
        return common.ranks(torch.tensor(get(result, "spectra", layer)).double())[statistic]
    places = {"offdiagonal": ("covariance", layer, statistic)}
    places |= dict.fromkeys(("rankme", "min_max_ratio"), (statistic, layer))
    return get(result, *places.get(statistic, [statistic]))


def ln_spectrum(values):
    """ln of descending values (D,); NaN where one is below 1e-12 of the first."""
    values = np.array(values, dtype=float)
    kept = values > FLOOR * values[0]
    return np.log(values, where=kept, out=np.full(len(values), np.nan))


def settings(result):
    """A run's arguments; seven at mlp lack --warmup-epochs."""
    return argparse.Namespace(**{"warmup_epochs": 0, **result["config"]["arguments"]})


def size_and_horizon(runs):
    """D and H of runs, as text, where they are the same."""
    dims = {len(run["spectra"]["h"]) for run in runs}
    clocks = {number(run["decay_horizon"], 2) for run in runs} - {number(None)}
    return ", ".join(f"{name} = {min(of)}" for name, of in (("D", dims), ("H", clocks)) if len(of) == 1)


def horizons(result, epochs):
    """The decay horizon H after each of these epochs of a run: the share of its whole H."""
    args = settings(result)
    rates = common.learning_rates(args, 100 * args.epochs)  # 100 steps an epoch will do
    share = np.cumsum([0, *rates])[100 * np.array(epochs)] / sum(rates)
    return get(result, "decay_horizon") * share


def over_time(result):
    """Epochs, decay horizon H, rank and dead coordinates of h, at the start and at every evaluation."""
    points = result["history"]
    start = result["start"]
    epochs = [0, *(point["epoch"] for point in points)]
    ranks = [measure(start, "rank_1e-3"), *(point["rank_1e-3"] for point in points)]
    deaths = [measure(start, "dead"), *(len(point["dead"]) for point in points)]
    return epochs, horizons(result, epochs), ranks, deaths


def shut(result):
    """{what: how many of h's dead coordinates}: lost to W^i, to γ_i, to a ReLU that no image opens, with
    β_i < 0 or not (one may count in several); and how many were dead at an evaluation, alive at the next."""
    keys = ("bare", "gamma", "beta", "open")
    bare, gamma, beta, opened = (np.array(get(result, "row_norms", key)) for key in keys)
    closed = opened == 0
    least = f"< {SHUT:.0%}, of its mean"  # a comma ends a line of a label
    lost = {
        "dead": True,
        rf"$\|W^i\|^2$, {least}": bare < SHUT * bare.mean(),
        rf"$\gamma_i^2$, {least}": gamma**2 < SHUT * (gamma**2).mean(),
        r"never open, $\beta_i < 0$": closed & (beta < 0),
        r"never open, $\beta_i \geq 0$": closed & (beta >= 0),
    }
    found = {what: int((mask & dead(result)).sum()) for what, mask in lost.items()}
    deaths = [set(line["dead"]) for line in result["history"]]
    found["dead once, alive later"] = len({i for before, after in pairwise(deaths) for i in before - after})
    return found


def number(value, digits=1, sign=False):
    """The value as text; what was not measured is a dash."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def title(dataset):
    """A data set's name as it is written."""
    return rows.DATASETS[dataset].title if dataset in rows.DATASETS else dataset


# --------------------------------------------------------------------------------------- figures of some runs


def panels(heading, lines, columns, width=4.2, height=3.2, sharey="row", height_ratios=None):
    """(figure, axes (lines, columns)) with a heading."""
    from matplotlib.figure import Figure  # here, as RESULTS.md needs none

    figure = Figure(figsize=(max(width * columns, 5.5), height * lines + 0.4), layout="constrained")
    figure.suptitle(heading, fontsize=11)
    return figure, figure.subplots(lines, columns, squeeze=False, sharey=sharey, height_ratios=height_ratios)


def draw_curves(axis, curves):
    """ln σ_k over k of curves [(label, spectra)]: the mean in a band from the least to the largest; a curve
    without spectra stands in the legend alone."""
    lengths = [len(spectra[0]) for _, spectra in curves if spectra]
    for (label, spectra), style in zip(curves, STYLES * len(curves)):
        if not spectra:
            axis.plot([], [], linestyle=style, color="grey", label=label)
            continue
        s = np.array([ln_spectrum(spectrum) for spectrum in spectra])
        k = np.arange(1, s.shape[1] + 1)
        whole = int(np.isfinite(s).all(0).sum())
        label += f", drawn to k = {whole}" if whole < len(k) else ""
        (line,) = axis.plot(k, s.mean(0), linestyle=style, label=label)
        axis.fill_between(k, s.min(0), s.max(0), color=line.get_color(), alpha=0.25, linewidth=0)
    axis.set(xlabel="index k of the singular value", xlim=(1, max([2, *lengths])))
    axis.legend(fontsize=7)


def draw_spectra(runs, layer):
    """ln σ_k over k of runs [(label, result)] (LL fig. 1)."""
    figure, axes = panels(f"Spectrum of the covariance: {LAYERS[layer]}", 1, 1, 6, 3.6)
    curves = []
    for label, result in runs:
        spectrum = result["spectra"][layer]
        rank = f"rank {measure(result, 'rank_1e-3', layer)} of {len(spectrum)}"
        curves.append((f"{label} ({rank})", [spectrum]))
    draw_curves(axes[0, 0], curves)
    axes[0, 0].set_ylabel(LN_SIGMA)
    return figure


def draw_norms(runs):
    """Variance of h_i over the weight-row norm, bare and folded (LL prop. 1), of [(label, result)]."""
    heading = "Last layer: do dimensions of little variance have small weight rows?"
    kinds = {"bare": r"$\|W^i\|^2$"}
    if any(has_batchnorm(result) for _, result in runs):
        kinds["folded"] = r"$\gamma_i^2/(v_i+\epsilon)\;\|W^i\|^2$, with BatchNorm of running variance $v_i$"
    figure, axes = panels(heading, 1, len(kinds), 4.5, 4.5)
    for axis, (kind, name) in zip(axes[0], kinds.items()):
        for (label, result), marker in zip(runs, MARKERS * len(runs)):
            variance = np.array(result["row_norms"]["variance"])
            shown = np.maximum(variance, LEAST_SHOWN * variance.mean())
            axis.plot(result["row_norms"][kind], shown, marker, markersize=4, fillstyle="none", label=label)
        axis.set(xscale="log", yscale="log")
        axis.set_xlabel(name, fontsize=8)
    shown = f"variance of $h_i$ (less than {LEAST_SHOWN:g} of its mean: drawn there)"
    axes[0, 0].set_ylabel(shown, fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return figure


def draw_covariances(heading, lines):
    """Heat maps of |C|, its first dimensions in units of its mean diagonal (LL fig. 2). lines: the panels'
    (label, result, layer)."""
    figure, axes = panels(heading, len(lines), len(lines[0]), 4.6, 4.2)
    for axis, (label, result, layer) in zip(axes.flat, chain(*lines)):
        found = result["covariance"][layer]
        image = axis.imshow(np.abs(found["block"]), cmap="Greys", vmin=0, vmax=1)
        ratio = f"mean |off-diagonal| / diagonal {number(found['offdiagonal'], 3)}"
        axis.set_title(f"{label}, first {len(found['block'])} dimensions\nof all: {ratio}", fontsize=8)
        axis.set(xlabel="dimension i", ylabel="dimension j")
    figure.colorbar(image, ax=axes, label=r"$|C_{ij}|$ / mean $C_{ii}$", extend="max")
    return figure


# -------------------------------------------------------------------------- figures of a scale, for report.py
# `results` is its Results: of(scale, data set, row) gives {seed: result}.

QUESTION = ("simclr", "noproj", "noproj-lastlayer")  # what all of this is about
COMPARED = (*rows.of("table2"), *rows.of("barlow"))
METHODS = tuple(row.name for row in COMPARED)
# Rows that differ in the penalty alone have one colour, and those with one penalty the same dashes.
KINDS = [row.command.partition(" --reg ")[::2] for row in COMPARED]
BARE = list(dict(KINDS))
COLOURS = [f"C{BARE.index(bare)}" for bare, _ in KINDS]
DASHES = [STYLES[("", "werank", "lastlayer").index(penalty)] for _, penalty in KINDS]
SWEEP = ("directclr-d8", "directclr-d32", "directclr", "directclr-d128", "directclr-d256", "directclr-d512")
SH = ("sh-simclr", "sh-resnet50")

SPECTRA = {  # title, {panel: its curves, each a row and a layer}
    "question": ("h with projector, without, with the penalty", {"": [f"{row} h" for row in QUESTION]}),
    "ll-1a": ("LL figure 1a: h with and without projector", {"": ["noproj h", "simclr h"]}),
    "ll-1b": ("LL figure 1b: h without projector", {"": ["barlow-noproj h", "noproj h", "directclr h"]}),
    "ll-3": (
        "LL figure 3: the encoder's last layers",
        {LAYERS[x]: [f"noproj {x}", f"simclr {x}"] for x in ("layer3", "penultimate", "h")},
    ),
    "ll-4": ("LL figure 4: inside the projector", {"": ["simclr projector_hidden", "simclr z"]}),
    "ll-5": ("LL figure 5: h with a constant subvector", {"": [f"cs-d{d}-k0 h" for d in (200, 400, 480)]}),
    "ll-6": ("LL figure 6: h with the last-layer penalty", {"": ["noproj h", "noproj-lastlayer h"]}),
    "directclr-2": ("DirectCLR figure 2: the embedding z", {"": ["simclr z"]}),
    "directclr-7": (
        "DirectCLR figure 7: h with and without projector",
        {"": ["noproj h", "simclr-linear h", "simclr h"]},
    ),
    "directclr-9": (
        "DirectCLR figure 9: h of DirectCLR",
        {f"and {row}": ["directclr h", f"{row} h"] for row in ("simclr", "simclr-linear", "noproj")},
    ),
    "sparsehead-1": (
        "SparseHead figure 1: h and z",
        {row: [f"{row} h", f"{row} z"] for row in ("sh-noproj", "sh-simclr-linear", *SH)},
    ),
    "sparsehead-3": (
        "SparseHead figure 3: with and without SparseHead",
        {f"{row}, {x}": [f"{row} {x}", f"{row}-sparsehead {x}"] for row, x in product(SH, "hz")},
    ),
}


def draw_rows(results, scale, datasets, name):
    """One of SPECTRA: a line of panels for every data set, of what any of its rows has."""

    def spectra(dataset, curve):
        row, layer = curve.split()
        runs = results.of(scale, dataset, row).values()
        return [found for run in runs if (found := run["spectra"].get(layer))]

    heading, parts = SPECTRA[name]
    parts = {k: v for k, v in parts.items() if any(spectra(*pair) for pair in product(datasets, v))}
    figure, axes = panels(f"{heading}\n({scale}; mean of ln σ, band: all seeds)", len(datasets), len(parts))
    for line, dataset in zip(axes, datasets):
        for axis, (part, names) in zip(line, parts.items()):
            curves = []
            for curve in names:
                found = spectra(dataset, curve)
                count = f" (n = {len(found)})" if found else ": not measured"
                curves.append((curve.replace(" ", ", ").replace("_", " ") + count, found))
            draw_curves(axis, curves)
            axis.set_title(f"{title(dataset)} {part}".strip(), fontsize=9)
        line[0].set_ylabel(LN_SIGMA)
    return figure


def draw_z_and_h(results, scale, datasets, _):
    """LL fig. 2: |covariance| of z and of h of simclr's first seed."""
    lines = []
    for dataset in datasets:
        seed, result = next(iter(results.of(scale, dataset, "simclr").items()))
        lines.append([(f"{title(dataset)}, seed {seed}: {layer}", result, layer) for layer in "zh"])
    return draw_covariances(f"LL figure 2: covariance of simclr ({scale})", lines)


def draw_sweep(results, scale, datasets, _):
    """DirectCLR fig. 12: linear probe over d0 / D, which is 1 without projector."""
    figure, axes = panels(f"DirectCLR figure 12: size of the subvector ({scale})", 1, len(datasets))
    for axis, dataset in zip(axes[0], datasets):
        points = []
        for row in SWEEP:
            runs = list(results.of(scale, dataset, row).values())
            if not runs:
                continue
            dim = len(runs[0]["spectra"]["h"])
            y = [run["linear_top1"] for run in runs]
            points.append((runs[0].get("dim", dim) / dim, np.mean(y), np.std(y, ddof=len(y) > 1)))
        trend = "o-" if len(points) > 2 else "o"
        axis.errorbar(*zip(*sorted(points)), fmt=trend, capsize=3)
        sizes = f"{len(points)} of {len(SWEEP)} sizes"
        axis.set(xlabel=r"$d_0 / D$ (1: noproj)", xscale="log", title=f"{title(dataset)}, {sizes}")
    axes[0, 0].set_ylabel("linear probe, %, mean ± std")
    return figure


def draw_row_norms(results, scale, datasets, _):
    """LL proposition 1 on the first seed of the rows that the question is about."""
    runs = []
    for row in QUESTION:
        for seed, result in islice(results.of(scale, datasets[0], row).items(), 1):
            runs.append((f"{row} ({scale}, {title(datasets[0])}, seed {seed})", result))
    return draw_norms(runs)


def draw_history(results, scale, datasets, _):
    """Rank of h and its dead coordinates over the decay horizon: the mean over the seeds of every row."""
    heading = f"h during training ({scale}, mean over seeds)"
    figure, axes = panels(heading, len(datasets), 2, 5.2, 4, sharey=False)
    for line, dataset in zip(axes, datasets):
        for i, row in enumerate(METHODS):
            runs = results.of(scale, dataset, row).values()
            if not runs:
                continue
            found = [over_time(run) for run in runs]
            (usual, _), *_ = Counter(tuple(epochs) for epochs, *_ in found).most_common()
            found = [one for one in found if tuple(one[0]) == usual]  # others were evaluated at other times
            style = LOOKS[i] | {"color": COLOURS[i], "linestyle": DASHES[i]}
            style |= {"linewidth": 2 if row in QUESTION else 0.8, "label": f"{row} (n = {len(found)})"}
            _, (x, *_), *curves = zip(*found)
            for axis, curve in zip(line, curves):
                axis.plot(x, np.mean(curve, 0), **style)
        for axis, name in zip(line, (RANK, "dead coordinates of h")):
            axis.set(xlabel=HORIZON, ylabel=name, title=title(dataset))
        line[1].set_ylim(0, max(1, line[1].get_ylim()[1]))  # there may be none
        if line[1].lines:
            line[1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_clock(results, scale, datasets, _):
    """Rank of h against H and against steps, a curve a run. If curves over H agree, H is the clock."""
    lines = [*product(datasets, QUESTION)]
    figure, axes = panels(f"The clock of collapse ({scale}), a curve a run", len(lines), 2, 4.2, 2.8)
    for line, (dataset, base) in zip(axes, lines):
        names = [row.name for row in rows.ROWS if row.name.partition("-clock")[0] == base]
        for i, row in enumerate(names):
            runs = results.of(scale, dataset, row).values()
            for seed, run in enumerate(runs):
                args = settings(run)
                epochs, horizon, ranks, _ = over_time(run)
                every = run["images_per_second"] * run["seconds"] / args.batch_size
                steps = np.array(epochs) / args.epochs * every
                what = f"lr {args.lr:g}, wd {args.weight_decay:g}, {args.epochs} epochs"
                what += f", penalty {args.reg_weight:g}" if args.reg_weight else ""
                label = None if seed else f"{what} (n = {len(runs)})"
                for axis, x in zip(line, (horizon, steps)):
                    axis.plot(x, ranks, color=f"C{i}", label=label, **LOOKS[i])
        line[0].set(xscale="symlog", xlabel=HORIZON, ylabel=RANK)
        line[1].set(xlabel="steps")
        for axis in line:
            axis.set_title(f"{base}, {title(dataset)}")
        if line[1].lines:
            line[1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_shut(results, scale, datasets, _):
    """What h's dead coordinates have lost by the end of training: mean ± standard deviation over seeds."""
    figure, axes = panels(f"What shuts a dimension of h? ({scale})", 1, len(datasets), 6.5, 3.8)
    for axis, dataset in zip(axes[0], datasets):
        for row, hatch, shift in zip(QUESTION, ("", "///", "..."), (-0.27, 0, 0.27)):
            found = [shut(run) for run in results.of(scale, dataset, row).values()]
            if not found:
                continue
            counts = np.array([list(some.values()) for some in found])
            spread = counts.std(0, ddof=1) if len(counts) > 1 else None
            place = np.arange(counts.shape[1])
            style = {"hatch": hatch, "edgecolor": "white", "capsize": 2, "label": f"{row} (n = {len(found)})"}
            axis.bar(place + shift, counts.mean(0), 0.25, yerr=spread, **style)
            axis.set_xticks(place, [what.replace(", ", "\n") for what in found[0]], fontsize=8)
        axis.set(title=title(dataset), ylim=(0, max(1, axis.get_ylim()[1])))  # there may be none
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("coordinates of h")
    return figure


def places(results):
    """[(scale, data set)] that have any of METHODS."""
    return [(scale, data) for scale in results.scales() for data in results.datasets(scale, METHODS)]


def draw_accuracy(results):
    """kNN-200 over the rank of h, a point a run, a panel for every scale and data set."""
    found = places(results)
    figure, axes = panels("Accuracy against rank of h: a point a run", 1, len(found), 4.4, 4.6, sharey=False)
    for axis, (scale, dataset) in zip(axes[0], found):
        for i, row in enumerate(METHODS):
            runs = results.of(scale, dataset, row).values()
            x = [measure(run, "rank_1e-3") for run in runs]
            y = [run["knn200"] for run in runs]
            axis.plot(x, y, MARKERS[i], fillstyle="none", color=COLOURS[i], label=row)
        runs = [run for row in METHODS for run in results.of(scale, dataset, row).values()]
        axis.set(xlabel=RANK)
        axis.set_title(f"{scale}, {title(dataset)}\n{size_and_horizon(runs)}", fontsize=10)
    axes[0, 0].set_ylabel("kNN-200, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


FIGURES = {}  # name: function, rows of which it needs any, and what their results may lack
for name, (_, parts) in SPECTRA.items():
    FIGURES[name] = (draw_rows, {curve.split()[0] for curve in chain(*parts.values())}, ())
FIGURES |= {
    "ll-2": (draw_z_and_h, {"simclr"}, ()),
    "directclr-12": (draw_sweep, set(SWEEP[:-1]), ()),
    "row-norms": (draw_row_norms, set(QUESTION), ()),
    "ranks-over-time": (draw_history, set(METHODS), ("decay_horizon",)),
    "clock": (draw_clock, {row.name for row in rows.own("clock")}, ("decay_horizon",)),
    "what-shuts": (draw_shut, set(QUESTION), ("row_norms", "gamma")),
}


# ------------------------------------------------------------------------------------------- the command line


def read(path, args):
    """What result.json holds of a run's, or a checkpoint's, layers."""
    if path.is_file() and path.suffix != ".json":
        if not args.dataset:
            raise common.UserError(f"{path} is a checkpoint: --dataset must name images for its spectrum")
        encoder, found = common.load_encoder(path, args.image_size)
        data = common.load_dataset(args.dataset, args.data_dir, found["image_size"])
        return common.layer_statistics(encoder, None, data.x_test)
    result = common.read_json(path / "result.json" if path.is_dir() else path)
    with common.refusing(f"{path} is not the result of a finished run", common.ODD):
        list(table([("", result)]))
    return result


def table(runs):
    """The runs' results as lines of text."""
    columns = ("kNN-200", "kNN-5", "linear", "rank h", "dead h", "RankMe h", "RankMe z")
    width = max(len(label) for label, _ in runs) + 1
    yield f"{'run':{width}}" + "".join(f"{name:>10}" for name in columns)
    for label, result in runs:
        cells = [result.get(key) for key in ("knn200", "knn5", "linear_top1")]
        cells += [measure(result, "rank_1e-3"), measure(result, "dead")]
        cells += [result["rankme"][layer] for layer in "hz"]
        yield f"{label:{width}}" + "".join(f"{number(cell):>10}" for cell in cells)


def draw(runs, args):
    """The figure that the arguments ask for."""
    # $ would begin a formula, and a legend leaves out what begins with _
    runs = [(" " * label.startswith("_") + label.replace("$", r"\$"), result) for label, result in runs]
    if args.norms:
        return draw_norms(runs)
    if args.covariance:
        line = [(label, result, args.layer) for label, result in runs]
        return draw_covariances(f"Covariance of the {LAYERS[args.layer]}", [line])
    return draw_spectra(runs, args.layer)


def main():
    parser = common.Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, result.json, checkpoints")
    parser.add_argument("--layer", choices=common.LAYERS, help="(h)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--norms", action="store_true", help="weight-row norms against variance")
    kind.add_argument("--covariance", action="store_true", help="heat map of the layer's covariance")
    parser.add_argument("-o", "--out", type=Path, default="figures/spectra.png", help="(figures/spectra.png)")
    parser.add_argument("--dataset", help="for checkpoints: as for training")
    parser.add_argument("--data-dir", type=os.path.expanduser, default="data", help="(data)")
    parser.add_argument("--image-size", type=common.number(int, 8), help="pixels; an image folder needs it")
    args = parser.parse_args()
    if args.norms and args.layer:
        raise common.UserError("--norms has no --layer: it shows the last layer and h")
    args.layer = args.layer or "h"
    if args.out.suffix not in (".png", ".pdf", ".svg"):
        raise common.UserError(f"-o {args.out} must end in .png, .pdf or .svg")
    started = [run for run in args.runs if (run / "config.json").exists()]
    unfinished = [run for run in started if not (run / "result.json").exists()]
    if len(unfinished) == len(args.runs):
        raise common.UserError("none of these runs is finished: continue them with --resume")
    if unfinished:
        print("left out, not finished:", *unfinished, file=sys.stderr)
    runs = [(str(path), read(path, args)) for path in args.runs if path not in unfinished]
    for label, result in runs:
        if not args.norms and not result["spectra"].get(args.layer):
            raise common.UserError(f"{label} has no layer {args.layer}")
    with common.refusing("these results can't be drawn", common.ODD):
        figure = draw(runs, args)
        lines = list(table(runs))
        common.write_figure(args.out, figure)
    print(*lines, args.out, sep="\n")


if __name__ == "__main__":
    common.run(main)
