"""Draws trained encoders from inside (spectra, norms of weight rows, covariances) and prints their results.

    python plot_spectra.py runs/a runs/b --layer h -o figures/a.png        ln σ_k over k (LL fig. 1)
    python plot_spectra.py runs/a runs/b --norms -o figures/a.png          row norms, variance (LL prop. 1)
    python plot_spectra.py runs/a --covariance --layer z -o figures/a.png  covariance (LL fig. 2)
    python plot_spectra.py encoder.pth --dataset cifar10 -o figures/a.png  a checkpoint from elsewhere

A run is its folder or its result.json. A checkpoint (.pt, .pth) holds the state dict of a torchvision-named
ResNet-18, -34 or -50 of either stem and any width, itself or under the keys and prefixes that are in use.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import common

KEYS = ("backbone", "model", "state_dict")
PREFIXES = ("", "module.", "backbone.", "module.backbone.", "encoder.", "module.encoder.")
STYLES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3))]
LAYER_NAMES = {"h": "encoder output h", "z": "embedding z", "penultimate": "last-but-one block",
               "projector_hidden": "projector's hidden layer"}


def load_encoder(path):
    """The encoder that a checkpoint file holds, on the CPU. UserError where it is not a torchvision-named
    ResNet."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # official checkpoints carry arguments
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - anything may be in a file
        raise common.UserError(f"{path} is not a checkpoint of tensors ({common.brief(error)})") from None
    while isinstance(state, dict) and (inner := [key for key in KEYS if isinstance(state.get(key), dict)]):
        state = state[inner[0]]
    known = [p for p in PREFIXES if f"{p}conv1.weight" in state] if isinstance(state, dict) else []
    if not known:
        raise common.UserError(f"{path} is no torchvision ResNet: no conv1.weight under a known name")
    weights = {key.removeprefix(known[0]): value for key, value in state.items() if key.startswith(known[0])}
    names = [".".join(key.split(".")[:2]) for key in weights if key.startswith("layer")]
    blocks = [len({name for name in names if name.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)]
    deep = "layer1.0.conv3.weight" in weights
    known = {(False, 2, 2, 2, 2): "resnet18", (False, 3, 4, 6, 3): "resnet34", (True, 3, 4, 6, 3): "resnet50"}
    arch = known.get((deep, *blocks))
    if arch is None:
        raise common.UserError(f"{path} has {blocks} blocks: only ResNet-18, -34 and -50 are known")
    width, _, kernel, _ = weights["conv1.weight"].shape
    encoder = common.resnet(arch, "cifar" if kernel == 3 else "imagenet", width)
    try:
        weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
        missing = encoder.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:
        raise common.UserError(f"{path} does not fit {arch} ({common.brief(error)})") from None
    if missing := [key for key in missing if not key.endswith("num_batches_tracked")]:
        raise common.UserError(f"{path} lacks {missing[0]} of {arch}")
    return encoder


def read(path, args):
    """(label, what result.json holds of a layer's statistics) of a run or a checkpoint."""
    if path.suffix in (".pt", ".pth"):
        if not args.dataset:
            raise common.UserError(f"{path} is a checkpoint: --dataset must name images for its spectrum")
        encoder = load_encoder(path)
        data = common.load_dataset(args.dataset, args.data_dir, args.image_size)
        return path.stem, common.layer_statistics(encoder, None, data.x_test)
    file = path / "result.json" if path.is_dir() else path
    if not file.exists():
        raise common.UserError(f"{file} is not there: is the run finished?")
    result = common.read_json(file)
    try:
        config = result["config"]
        return f"{config['name']}, seed {config['arguments']['seed']}", result
    except (KeyError, TypeError):
        raise common.UserError(f"{file} is not the result of a run") from None


def table(runs):
    """The runs' results as lines of text; a cell that was not measured is empty."""
    columns = ("kNN-200", "kNN-5", "linear", "RankMe h", "RankMe z")
    yield f"{'run':32}" + "".join(f"{name:>10}" for name in columns)
    for label, result in runs:
        cells = [result.get(key) for key in ("knn200", "knn5", "linear_top1")]
        cells += [result["rankme"][layer] for layer in "hz"]
        yield f"{label:32}" + "".join(f"{'' if cell is None else format(cell, '.1f'):>10}" for cell in cells)


def draw_spectra(runs, layer):
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    for (label, result), style in zip(runs, STYLES * len(runs)):
        sigma = np.array(result["spectra"][layer], dtype=float)
        axis.plot(np.arange(1, len(sigma) + 1), np.log(np.where(sigma > 0, sigma, np.nan)), linestyle=style,
                  label=f"{label} (RankMe {result['rankme'][layer]:.1f})")
    axis.set(xlabel="index k of the singular value", ylabel=r"$\ln\,\sigma_k$",
             title=f"Spectrum of the covariance: {LAYER_NAMES[layer]}")
    axis.legend(fontsize=8)
    return figure


def draw_norms(runs):
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = {"bare": r"$\|W^i\|^2$", "folded": r"$\gamma_i^2/(v_i+\epsilon)\;\|W^i\|^2$, with BatchNorm"}
    for axis, (kind, name) in zip(axes, names.items()):
        for (label, result), marker in zip(runs, "o^sxv+" * len(runs)):
            norms = result["row_norms"]
            axis.plot(norms[kind], norms["variance"], marker, markersize=4, fillstyle="none", label=label)
        axis.set(xlabel=name, xscale="log", yscale="log")
    axes[0].set_ylabel(r"variance of $h_i$")
    axes[0].legend(fontsize=8)
    figure.suptitle("Last convolution: do dimensions of little variance have small weight rows?")
    return figure


def draw_covariance(runs, layer):
    figure = Figure(figsize=(1 + 3.6 * len(runs), 3.8), layout="constrained")
    axes = figure.subplots(1, len(runs), squeeze=False)
    for axis, (label, result) in zip(axes[0], runs):
        block = np.array(result["covariance"][layer]["block"])
        block = block / np.abs(np.diag(block)).mean()
        image = axis.imshow(block, cmap="RdGy_r", vmin=-1, vmax=1)
        ratio = result["covariance"][layer]["offdiagonal"]
        axis.set_title(f"{label}\nmean |off-diagonal| / diagonal {ratio:.3f}", fontsize=8)
        axis.set(xlabel="dimension i", ylabel="dimension j")
    figure.colorbar(image, ax=axes, label=r"$C_{ij}$ / mean $C_{ii}$")
    figure.suptitle(f"Covariance of the {LAYER_NAMES[layer]}, first {len(block)} dimensions", fontsize=10)
    return figure


def main():
    parser = common.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, result.json, .pt, .pth")
    parser.add_argument("--layer", choices=common.LAYERS, default="h", help="(h)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--norms", action="store_true", help="weight-row norms against variance")
    kind.add_argument("--covariance", action="store_true", help="heat map of the layer's covariance")
    parser.add_argument("-o", "--out", type=Path, default="figures/spectra.png", help="(figures/spectra.png)")
    parser.add_argument("--dataset", help="for checkpoints: as for training")
    parser.add_argument("--data-dir", default="data", help="(data)")
    parser.add_argument("--image-size", type=common.number(int, 8), help="pixels; an image folder needs it")
    args = parser.parse_args()
    formats = Figure().canvas.get_supported_filetypes()
    if args.out.suffix[1:].lower() not in formats:
        raise common.UserError(f"-o {args.out} must end in one of .{', .'.join(sorted(formats))}")
    runs = [read(path, args) for path in args.runs]
    for label, result in runs:
        if not args.norms and result["spectra"][args.layer] is None:
            raise common.UserError(f"{label} has no layer {args.layer}")
    draw = draw_covariance if args.covariance else draw_spectra
    figure = draw_norms(runs) if args.norms else draw(runs, args.layer)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.out, dpi=150, bbox_inches="tight")
    except OSError as error:
        raise common.UserError(f"{args.out} can't be written ({common.brief(error)})") from None
    print("\n".join(table(runs)))
    print(args.out)


if __name__ == "__main__":
    common.run(main)
