"""Draws trained encoders from inside (spectra, norms of weight rows, covariances) and prints their results.

    python plot_spectra.py runs/a runs/b --layer h -o figures/a.png        ln σ_k over k (LL fig. 1)
    python plot_spectra.py runs/a runs/b --norms -o figures/a.png          row norms, variance (LL prop. 1)
    python plot_spectra.py runs/a --covariance --layer z -o figures/a.png  covariance (LL fig. 2)
    python plot_spectra.py encoder.pth --dataset cifar10 -o figures/a.png  a checkpoint from elsewhere

A run is its folder or its result.json; unfinished runs are left out. Any other file is a checkpoint: the
state dict of a torchvision-named ResNet-18, -34 or -50 of either stem and any width, itself or under the keys
and prefixes that are in use.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import common

KEYS = ("backbone", "model", "state_dict")
PREFIXES = ("", "module.", "backbone.", "module.backbone.", "encoder.", "module.encoder.")
STYLES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3))]
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10", "tiny-imagenet": "Tiny ImageNet",
         "imagenet": "ImageNet"}
LAYER_NAMES = {"h": "encoder output h", "z": "embedding z", "penultimate": "last-but-one block",
               "projector_hidden": "projector's hidden layer"}


def load_encoder(path):
    """The encoder that a checkpoint file holds, on the CPU; UserError if it is no torchvision ResNet."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # official checkpoints carry arguments
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - anything may be in a file
        what = f"{type(error).__name__}; of a whole model save model.state_dict()"
        raise common.UserError(f"{path} is not a checkpoint of tensors ({what})") from None
    for _ in range(3):  # keys may be nested
        state = state if isinstance(state, dict) else {}
        state = next((state[key] for key in KEYS if isinstance(state.get(key), dict)), state)
    state = {key: value for key, value in state.items() if isinstance(key, str) and torch.is_tensor(value)}
    known = [prefix for prefix in PREFIXES if getattr(state.get(f"{prefix}conv1.weight"), "ndim", 0) == 4]
    if not known:
        raise common.UserError(f"{path} is no torchvision ResNet: no conv1.weight under a known name")
    weights = {key.removeprefix(known[0]): value for key, value in state.items() if key.startswith(known[0])}
    names = {".".join(key.split(".")[:2]) for key in weights if key.startswith("layer")}
    blocks = tuple(sum(name.startswith(f"layer{stage}.") for name in names) for stage in (1, 2, 3, 4))
    depth = {((2, 2, 2, 2), False): 18, ((3, 4, 6, 3), False): 34, ((3, 4, 6, 3), True): 50}
    shape = blocks, "layer1.0.conv3.weight" in weights
    if shape not in depth:
        raise common.UserError(f"{path} is not a ResNet-18, -34 or -50")
    arch = f"resnet{depth[shape]}"
    width, _, kernel, _ = weights["conv1.weight"].shape
    try:
        encoder = common.resnet(arch, "cifar" if kernel == 3 else "imagenet", width)
        outcome = encoder.load_state_dict(weights, strict=False)
    except (RuntimeError, common.UserError) as error:
        raise common.UserError(f"{path} does not fit {arch}: {str(error).splitlines()[-1].strip()}") from None
    other = [key for key in outcome.missing_keys if not key.endswith("num_batches_tracked")]
    other += [key for key in outcome.unexpected_keys if key.startswith("layer")]
    if other:
        raise common.UserError(f"{path} is not torchvision's {arch}: only one of them has {other[0]}")
    if not all(value.isfinite().all() for value in encoder.state_dict().values()):
        raise common.UserError(f"{path} holds weights that are not finite")
    return encoder


def read(path, args):
    """(label, what result.json holds of a layer's statistics) of a run or a checkpoint."""
    if path.is_file() and path.suffix != ".json":
        if not args.dataset:
            raise common.UserError(f"{path} is a checkpoint: --dataset must name images for its spectrum")
        encoder = load_encoder(path)
        data = common.load_dataset(args.dataset, args.data_dir, args.image_size)
        return path.stem, common.layer_statistics(encoder, None, data.x_test)
    result = common.read_json(path / "result.json" if path.is_dir() else path)
    try:
        arguments = result["config"]["arguments"]
        label = f"{result['config']['name']}, seed {arguments['seed']}"
        for statistic in (result["rankme"], result["spectra"], result["covariance"]):
            statistic["h"], statistic["z"], statistic[args.layer]
        if not all(len(result["row_norms"][key]) for key in ("bare", "folded", "variance")):
            raise KeyError
    except (KeyError, TypeError):
        raise common.UserError(f"{path} is not the result of a finished run") from None
    return label, result


def distinct(runs):
    """The runs, those of the same row and seed labelled with the arguments in which they differ."""
    labels = [label for label, _ in runs]
    every = [result.get("config", {}).get("arguments", {}) for _, result in runs]
    differing = [key for key in every[0] if any(arguments.get(key) != every[0][key] for arguments in every)]
    for i, label in enumerate(labels):
        if labels.count(label) > 1:
            label += "".join(f", {key} {every[i].get(key)}" for key in differing if key != "seed")
        yield label, runs[i][1]


def number(value, digits=1, sign=False):
    """The value as text; what was not measured is a dash."""
    missing = value is None or not np.isfinite(value)
    return "–" if missing else f"{value:{'+' if sign else ''}.{digits}f}"


def title(dataset):
    """A data set's name as it is written."""
    return NAMES.get(dataset, dataset)


def table(runs):
    """The runs' results as lines of text."""
    columns = ("kNN-200", "kNN-5", "linear", "RankMe h", "RankMe z")
    yield f"{'run':32}" + "".join(f"{name:>10}" for name in columns)
    for label, result in runs:
        cells = [result.get(key) for key in ("knn200", "knn5", "linear_top1")]
        cells += [result["rankme"][layer] for layer in "hz"]
        yield f"{label:32}" + "".join(f"{number(cell):>10}" for cell in cells)


def ln_spectrum(result, layer):
    """ln σ_k (D,) of a layer in what result.json holds; of a zero ln 1e-30."""
    return np.log(np.maximum(np.array(result["spectra"][layer], dtype=float), 1e-30))


def draw_curve(axis, results, layer, style, label):
    """The mean of ln σ_k over results of one row, in a band from the least to the largest; σ_k that are only
    rounding errors are left out."""
    s = np.array([ln_spectrum(result, layer) for result in results])
    s = np.where(s > s[:, :1] + np.log(1e-12), s, np.nan)
    k, whole = np.arange(1, s.shape[1] + 1), int(np.isfinite(s).all(0).sum())
    label += f", {whole} of {len(k)} σ" if whole < len(k) else ""
    line, = axis.plot(k, s.mean(0), linestyle=style, label=label)
    axis.fill_between(k, s.min(0), s.max(0), color=line.get_color(), alpha=0.25, linewidth=0)
    axis.set_xlabel("index k of the singular value")


def draw_spectra(runs, layer):
    """ln σ_k over k of runs [(label, result)] (LL fig. 1)."""
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    for (label, result), style in zip(runs, STYLES * len(runs)):
        draw_curve(axis, [result], layer, style, f"{label} (RankMe {number(result['rankme'][layer])})")
    axis.set(ylabel=r"$\ln\,\sigma_k$", title=f"Spectrum of the covariance: {LAYER_NAMES[layer]}")
    axis.legend(fontsize=8)
    return figure


def draw_norms(runs):
    """Variance of h_i over the weight-row norm, bare and folded (LL prop. 1), of [(label, result)]."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = {"bare": r"$\|W^i\|^2$",
             "folded": r"$\gamma_i^2/(v_i+\epsilon)\;\|W^i\|^2$, with BatchNorm of running variance $v_i$"}
    for axis, (kind, name) in zip(axes, names.items()):
        for (label, result), marker in zip(runs, "o^sxv+" * len(runs)):
            norms = result["row_norms"]
            axis.plot(norms[kind], norms["variance"], marker, markersize=4, fillstyle="none", label=label)
        axis.set(xlabel=name, xscale="log", yscale="log")
    axes[0].set_ylabel(r"variance of $h_i$")
    axes[0].legend(fontsize=8)
    figure.suptitle("Last convolution: do dimensions of little variance have small weight rows?")
    return figure


def draw_heat_map(axis, result, layer, label):
    """The first dimensions of |C|, in units of C's mean diagonal."""
    found = result["covariance"][layer]
    image = axis.imshow(np.abs(found["block"]), cmap="Greys", vmin=0, vmax=1)
    axis.set_title(f"{label}, first {len(found['block'])} dimensions\nof all: mean |off-diagonal| / diagonal "
                   f"{number(found['offdiagonal'], 3)}", fontsize=8)
    axis.set(xlabel="dimension i", ylabel="dimension j")
    return image


def draw_covariance(runs, layer):
    """Heat maps of a layer's covariance (LL fig. 2), of [(label, result)]."""
    figure = Figure(figsize=(1 + 3.6 * len(runs), 3.8), layout="constrained")
    axes = figure.subplots(1, len(runs), squeeze=False)
    images = [draw_heat_map(axis, result, layer, label) for axis, (label, result) in zip(axes[0], runs)]
    figure.colorbar(images[-1], ax=axes, label=r"$|C_{ij}|$ / mean $C_{ii}$", extend="max")
    figure.suptitle(f"Covariance of the {LAYER_NAMES[layer]}", fontsize=10)
    return figure


# The papers' figures from results of many rows, for report.py: `results` is its Results.

SWEEP = ("directclr", *(f"directclr-d{d}" for d in (8, 32, 128, 256, 512)))
QUESTION = ("simclr", "noproj", "noproj-lastlayer")  # what all of this is about
SPECTRA = {  # title, {panel: (row, layer) of its curves}
    "ll-1a": ("LL figure 1a: h with and without projector", {"": [("noproj", "h"), ("simclr", "h")]}),
    "ll-1b": ("LL figure 1b: h without projector",
              {"": [("barlow-noproj", "h"), ("noproj", "h"), ("directclr", "h")]}),
    "ll-3": ("LL figure 3: the encoder's last two blocks", {
        block: [("noproj", layer), ("simclr", layer)]
        for block, layer in (("last but one", "penultimate"), ("last", "h"))}),
    "ll-4": ("LL figure 4: inside the projector", {"": [("simclr", "projector_hidden"), ("simclr", "z")]}),
    "ll-5": ("LL figure 5: h with a constant subvector",
             {"": [(f"cs-d{d}-k0", "h") for d in (200, 400, 480)]}),
    "ll-6": ("LL figure 6: h with the last-layer penalty",
             {"": [("noproj", "h"), ("noproj-lastlayer", "h")]}),
    "directclr-2": ("DirectCLR figure 2: the embedding z", {"": [("simclr", "z")]}),
    "directclr-7": ("DirectCLR figure 7: h with and without projector",
                    {"": [("noproj", "h"), ("simclr-linear", "h"), ("simclr", "h")]}),
    "directclr-9": ("DirectCLR figure 9: h of DirectCLR", {
        head: [("directclr", "h"), (row, "h")] for head, row in (
            ("(a) 2-layer MLP", "simclr"), ("(b) linear", "simclr-linear"), ("(c) none", "noproj"))}),
    "sparsehead-1": ("SparseHead figure 1: h and z", {"(a) identity": [("sh-noproj", "h")]} | {
        head: [(row, "h"), (row, "z")] for head, row in (
            ("(b) linear", "sh-simclr-linear"), ("(c) MLP", "sh-simclr"),
            ("(d) MLP, ResNet-50", "sh-resnet50"))}),
    "sparsehead-3": ("SparseHead figure 3: with and without SparseHead", {
        f"{name}, {layer}": [(row, layer), (f"{row}-sparsehead", layer)]
        for row, name in (("sh-simclr", "ResNet-18"), ("sh-resnet50", "ResNet-50")) for layer in "hz"}),
}


def panels(heading, rows, columns, width=4.2, height=3.2, height_ratios=None):
    """(figure, axes (rows, columns)) with a heading; the axes of a line share y."""
    figure = Figure(figsize=(max(width * columns, 5.5), height * rows + 0.4), layout="constrained")
    figure.suptitle(heading, fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey="row", height_ratios=height_ratios)


def draw_rows(results, scale, datasets, name):
    """One of SPECTRA: a line of panels for every data set."""
    heading, parts = SPECTRA[name]
    figure, axes = panels(f"{heading} ({scale}; mean of ln σ, band: all seeds)", len(datasets), len(parts))
    for line, dataset in zip(axes, datasets):
        for axis, (part, curves) in zip(line, parts.items()):
            for (row, layer), style in zip(curves, STYLES):
                runs, label = results.of(scale, dataset, row).values(), f"{row}, {layer.replace('_', ' ')}"
                if runs:
                    draw_curve(axis, runs, layer, style, f"{label} ({scale}, n = {len(runs)})")
                else:
                    axis.plot([], [], linestyle=style, color="grey", label=f"{label}: not measured")
            axis.set_title(f"{title(dataset)} {part}".strip(), fontsize=9)
            axis.legend(fontsize=7)
        line[0].set_ylabel(r"$\ln\,\sigma_k$")
    return figure


def draw_heat_maps(results, scale, datasets, _):
    """LL fig. 2: |covariance| of z and of h of simclr's first seed."""
    figure, axes = panels(f"LL figure 2: covariance of simclr ({scale})", len(datasets), 2, 4.6, 4.2)
    for line, dataset in zip(axes, datasets):
        seed, result = next(iter(results.of(scale, dataset, "simclr").items()))
        for axis, layer in zip(line, "zh"):
            image = draw_heat_map(axis, result, layer, f"{title(dataset)}, seed {seed}: {layer}")
    figure.colorbar(image, ax=axes, label=r"$|C_{ij}|$ / mean $C_{ii}$", extend="max")
    return figure


def draw_sweep(results, scale, datasets, _):
    """DirectCLR fig. 12: linear probe over d0 / D."""
    figure, axes = panels(f"DirectCLR figure 12: size of the subvector ({scale})", 1, len(datasets))
    for axis, dataset in zip(axes[0], datasets):
        points = []
        for row in SWEEP:
            if runs := list(results.of(scale, dataset, row).values()):
                y = [r["linear_top1"] for r in runs]
                share = runs[0]["dim"] / len(runs[0]["spectra"]["h"])
                points.append((share, np.mean(y), np.std(y, ddof=len(y) > 1)))
        x, y, spread = zip(*sorted(points))
        axis.errorbar(x, y, spread, fmt="o-", capsize=3, label=f"DirectCLR ({scale}), mean ± std")
        if runs := results.of(scale, dataset, "noproj").values():
            axis.axhline(np.mean([r["linear_top1"] for r in runs]), linestyle="--", color="grey",
                         label=f"noproj ({scale})")
        axis.set(xlabel=r"$d_0 / D$", xscale="log", ylabel="linear probe, %", title=title(dataset))
        axis.legend(fontsize=8)
    return figure


def draw_row_norms(results, scale, datasets, _):
    """LL proposition 1 on the first seed of the rows that the question is about."""
    runs = []
    for row in QUESTION:
        for seed, result in list(results.of(scale, datasets[0], row).items())[:1]:
            runs.append((f"{row} ({scale}, {title(datasets[0])}, seed {seed})", result))
    return draw_norms(runs)


FIGURES = {  # function, rows any of which it needs
    **{name: (draw_rows, {row for curves in parts.values() for row, _ in curves})
       for name, (_, parts) in SPECTRA.items()},
    "ll-2": (draw_heat_maps, {"simclr"}), "directclr-12": (draw_sweep, set(SWEEP[1:])),
    "row-norms": (draw_row_norms, set(QUESTION))}


def main():
    parser = common.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, result.json, checkpoints")
    parser.add_argument("--layer", choices=common.LAYERS, help="(h)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--norms", action="store_true", help="weight-row norms against variance")
    kind.add_argument("--covariance", action="store_true", help="heat map of the layer's covariance")
    parser.add_argument("-o", "--out", type=Path, default="figures/spectra.png", help="(figures/spectra.png)")
    parser.add_argument("--dataset", help="for checkpoints: as for training")
    parser.add_argument("--data-dir", default="data", help="(data)")
    parser.add_argument("--image-size", type=common.number(int, 8), help="pixels; an image folder needs it")
    args = parser.parse_args()
    if args.norms and args.layer:
        raise common.UserError("--norms has no --layer: it shows the last convolution and h")
    args.layer = args.layer or "h"
    if args.out.suffix not in (".png", ".pdf", ".svg"):
        raise common.UserError(f"-o {args.out} must end in .png, .pdf or .svg")
    unfinished = [run for run in args.runs if (run / "config.json").exists() > (run / "result.json").exists()]
    if unfinished:
        print("left out, not finished:", *unfinished, file=sys.stderr)
    if len(unfinished) == len(args.runs):
        raise common.UserError("none of these runs is finished: continue them with --resume")
    runs = list(distinct([read(path, args) for path in args.runs if path not in unfinished]))
    for label, result in runs:
        if not args.norms and result["spectra"][args.layer] is None:
            raise common.UserError(f"{label} has no layer {args.layer}")
    draw = draw_covariance if args.covariance else draw_spectra
    figure = draw_norms(runs) if args.norms else draw(runs, args.layer)
    lines = list(table(runs))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=150, bbox_inches="tight")
    print(*lines, args.out, sep="\n")


if __name__ == "__main__":
    common.run(main)
