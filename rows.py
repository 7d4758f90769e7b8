"""Every row of every table once: its command, label and printed numbers. Recipes, scales and data sets too.

A row is a script with flags. Sizes with a point are shares of D, the dimensions of h, so that a row's command
is the same at every width. Names of rows carry the papers' numbers, of 512 dimensions.
"""

import argparse
import functools
import importlib
import json
from pathlib import Path
from typing import NamedTuple

NO_NUMBERS = {}


class Row(NamedTuple):
    """A line of the tables.

    tables: targets, separated by spaces. command: script and flags. paper: {(data set, metric): printed
    number}. recipe: a key of RECIPES. same_as: the row whose run this row's is, if it has none of its own.
    after: flags that come even behind the scale's. pretrained: the row from whose encoder.pt, of the same
    scale, data set and seed, it starts.
    """

    name: str
    tables: str
    label: str
    command: str
    paper: dict = NO_NUMBERS
    recipe: str = "ll"
    same_as: str = ""
    after: str = ""
    pretrained: str = ""


class Scale(NamedTuple):
    """How large and how long runs are: flags behind those of a row, and what that means.

    sgd: flags of the rows with SGD besides.
    """

    flags: str
    meaning: str
    sgd: str = ""


class DataSet(NamedTuple):
    """A data set's name as it is written, its images' height and width.

    folder: it is a folder of images in the data's folder.
    """

    title: str
    pixels: int
    folder: bool = False


# From the most to the least telling. mlp and compressed keep the decay horizon H of LL's recipe, 11.7: by the
# end of a run, what no gradient holds has shrunk by e^-H.
SCALES = {
    "paper": Scale("", "the papers' epochs and width"),
    "short": Scale("--epochs 50", "50 epochs, otherwise as the papers"),
    "compressed": Scale(
        "--width 32 --stem imagenet --epochs 10 --warmup-epochs 0 --eval-every 2",
        "for a CPU: width 32, ImageNet stem, 10 epochs with 20 times the weight decay",
        sgd="--weight-decay 1e-2",
    ),
    "mlp": Scale(
        "--arch mlp --image-size 16 --eval-every 20", "for a CPU: three layers with ReLU between, 16 pixels"
    ),
    "mini": Scale(
        "--train-size 5000 --width 8 --epochs 5 --warmup-epochs 0 --batch-size 128",
        "shows that every row works",
    ),
}
DATASETS = {
    "cifar10": DataSet("CIFAR-10", 32),
    "cifar100": DataSet("CIFAR-100", 32),
    "stl10": DataSet("STL-10", 96),
    "tiny-imagenet": DataSet("Tiny ImageNet", 64, folder=True),
    "shapes": DataSet("drawn shapes", 32),
    "imagenet100": DataSet("ImageNet-100", 224, folder=True),
    "imagenet": DataSet("ImageNet", 224, folder=True),
}
TABLES = {
    "table2": "LL table 2: penalties on weights",
    "table1": "LL table 1: constant subvector",
    "barlow": "Barlow Twins with LL's recipe (LL figure 1b)",
    "directclr-tables": "DirectCLR tables 1, 2, appendix F and figure 12",
    "sparsehead-table": "SparseHead table 1, figures 1 and 3",
    "weights": "Weights of the penalties, other readings of the papers, a remedy of our own",
    "clock": "Weight decay and learning rate, for SCALE=compressed",
}
COMPARING = ("clock", "weights")  # with rows of table 2

# What a recipe adds to a row's flags, by data set ("": any other). SparseHead is silent about the batch size.
ADAM = "--batch-size 512 --optimizer adam --weight-decay 1e-6 --crop-scale 0.2 1 --grey-p 0.1"
# LL is silent but for ResNet-50, batch 256 and LARS on ImageNet-100; on ImageNet it is DirectCLR's recipe.
LARS = "--arch resnet50 --optimizer lars"
IMAGENET100 = f"{LARS} --batch-size 256 --jitter 0.8 0.8 0.8 0.2 --blur-p 0.5"
IMAGENET = f"{LARS} --lr 4.8 --batch-size 4096 --epochs 100 --warmup-epochs 10 --jitter 0.4 0.4 0.2 0.1"
IMAGENET += " --blur-p 1.0 0.1 --solarize-p 0 0.2"
# SparseHead's text on ImageNet: ResNet-50, 1000 epochs, Adam, and "the settings" of the methods' own papers.
SH_IMAGENET = "--arch resnet50 --batch-size 512 --optimizer adam --lr 2e-3 --weight-decay 1e-6 --epochs 1000"
SH_IMAGENET += " --jitter 0.8 0.8 0.8 0.2 --blur-p 0.5"
RECIPES = {
    "ll": {"imagenet100": IMAGENET100, "imagenet": f"{IMAGENET} --temperature 0.1 --cross-view", "": ""},
    "barlow": {"imagenet100": IMAGENET100, "imagenet": IMAGENET, "": ""},
    "finetune": {"": ""},
    "sparsehead": {
        "cifar10": f"{ADAM} --lr 3e-3 --epochs 1000",
        "cifar100": f"{ADAM} --lr 3e-3 --epochs 1000",
        "stl10": f"{ADAM} --lr 2e-3 --epochs 2000",
        "imagenet100": SH_IMAGENET,
        "imagenet": SH_IMAGENET,
        "": f"{ADAM} --lr 2e-3 --epochs 1000",
    },
}


def ll(cifar10, cifar100):
    """LL's numbers of a row: kNN-200."""
    return {("cifar10", "knn200"): cifar10, ("cifar100", "knn200"): cifar100}


def imagenet(*numbers):
    """DirectCLR's numbers of a row: linear probe on h and, where it is printed, on z alone."""
    return dict(zip([("imagenet", "linear_top1"), ("imagenet", "subvector_linear_top1")], numbers))


# Parts of commands
NOPROJ = "simclr.py --no-projector"
LASTLAYER = f"{NOPROJ} --reg lastlayer"
WERANK = f"{NOPROJ} --reg werank"
REG = "simclr.py --reg lastlayer"
CS200 = f"{NOPROJ} --fixed-dims 0.609375"  # 312 of 512
CS400 = f"{NOPROJ} --fixed-dims 0.21875"  # 112 of 512
CS480 = f"{NOPROJ} --fixed-dims 0.0625"  # 32 of 512
INV = "--fixed-value inv"  # 1/√D
BN = "barlow.py --no-projector"
DIRECT = "directclr.py"
KIND = "simclr.py --projector"
SIM = "simclr.py --temperature 0.5 --embedding 1.0"  # SparseHead's z is as wide as h (d = m in its section 4)
LIN = f"{SIM} --projector linear"
R50 = "--arch resnet50"
SH = "... + SparseHead"
# Tables
BOTH = "table2 directclr-tables"
BASE = f"{BOTH} clock weights"  # also what the rows of the clock and other weights are compared with
DC = "directclr-tables"
ST = "sparsehead-table"

ROWS = [
    # LL table 2, with the rows of DirectCLR tables 1 and 2 that are its bases
    Row("simclr", BASE, "SimCLR, 2-layer MLP projector", "simclr.py", ll(86.1, 56.3) | imagenet(66.5)),
    Row("simclr-werank", "table2", "... + WERank", "simclr.py --reg werank", ll(86.5, 56.8)),
    Row("simclr-lastlayer", "table2 weights", "... + last layer", REG, ll(86.3, 57.5)),
    Row("simclr-linear", DC, "SimCLR, linear projector", f"{KIND} linear", imagenet(61.1)),
    Row("noproj", BASE, "SimCLR, no projector", NOPROJ, ll(84.5, 52.8) | imagenet(51.5)),
    Row("noproj-werank", "table2 weights", "... + WERank", WERANK, ll(84.9, 52.6)),
    Row("noproj-lastlayer", "table2 clock weights", "... + last layer", LASTLAYER, ll(85.1, 53.1)),
    Row("directclr", BOTH, "DirectCLR, d₀ = 90 of 512", DIRECT, ll(85.2, 53.2) | imagenet(62.7, 47.9)),
    Row("directclr-werank", "table2", "... + WERank", f"{DIRECT} --reg werank", ll(85.4, 53.0)),
    Row("directclr-lastlayer", "table2", "... + last layer", f"{DIRECT} --reg lastlayer", ll(85.5, 53.2)),
    Row("cs", "table2", "SimCLR, no projector, constant subvector", CS480, ll(84.7, 52.5)),
    Row("cs-werank", "table2", "... + WERank", f"{CS480} --reg werank", ll(85.0, 53.0)),
    Row("cs-lastlayer", "table2", "... + last layer", f"{CS480} --reg lastlayer", ll(85.5, 53.1)),
    # LL table 1
    Row("cs-d200-k0", "table1", "d₀ = 200, k = 0", CS200, ll(83.2, 49.4)),
    Row("cs-d200-kinv", "table1", "d₀ = 200, k = 1/√D", f"{CS200} {INV}", ll(82.5, 48.6)),
    Row("cs-d200-k1", "table1", "d₀ = 200, k = 1", f"{CS200} --fixed-value 1", ll(78.9, 41.1)),
    Row("cs-d400-k0", "table1", "d₀ = 400, k = 0", CS400, ll(84.2, 52.2)),
    Row("cs-d400-kinv", "table1", "d₀ = 400, k = 1/√D", f"{CS400} {INV}", ll(84.0, 50.9)),
    Row("cs-d400-k1", "table1", "d₀ = 400, k = 1", f"{CS400} --fixed-value 1", ll(79.8, 44.3)),
    Row("cs-d480-k0", "table1", "d₀ = 480, k = 0", CS480, ll(84.7, 52.5), same_as="cs"),
    Row("cs-d480-kinv", "table1", "d₀ = 480, k = 1/√D", f"{CS480} {INV}", ll(84.4, 51.8)),
    Row("cs-d480-k1", "table1", "d₀ = 480, k = 1", f"{CS480} --fixed-value 1", ll(80.9, 45.9)),
    # Barlow Twins. Not barlow-lastlayer, which diverges: see docs/decisions.md
    Row("barlow", "barlow", "Barlow Twins", "barlow.py", recipe="barlow"),
    Row("barlow-werank", "barlow", "... + WERank", "barlow.py --reg werank", recipe="barlow"),
    Row("barlow-noproj", "barlow", "Barlow Twins, no projector", BN, recipe="barlow"),
    Row("barlow-noproj-werank", "barlow", "... + WERank", f"{BN} --reg werank", recipe="barlow"),
    Row("barlow-noproj-lastlayer", "barlow", "... + last layer", f"{BN} --reg lastlayer", recipe="barlow"),
    # DirectCLR table 2, appendix F, figure 12
    Row("simclr-orthogonal", DC, "orthogonal", f"{KIND} orthogonal", imagenet(52.2)),
    Row("simclr-diagonal", DC, "diagonal", f"{KIND} diagonal", imagenet(60.2)),
    Row("simclr-lowrank", DC, "fixed low-rank", f"{KIND} lowrank", imagenet(62.3)),
    Row("simclr-lowrank-diagonal", DC, "fixed low-rank diagonal", f"{KIND} lowrank-diagonal", imagenet(62.7)),
    Row("directclr-random", DC, "random d₀ in every step", f"{DIRECT} --subvector random", imagenet(43.0)),
    Row("directclr-d8", DC, "DirectCLR, d₀ = 8 of 512", f"{DIRECT} --dim 0.015625"),
    Row("directclr-d32", DC, "DirectCLR, d₀ = 32 of 512", f"{DIRECT} --dim 0.0625"),
    Row("directclr-d128", DC, "DirectCLR, d₀ = 128 of 512", f"{DIRECT} --dim 0.25"),
    Row("directclr-d256", DC, "DirectCLR, d₀ = 256 of 512", f"{DIRECT} --dim 0.5"),
    Row("directclr-d512", DC, "DirectCLR, d₀ = 512 of 512", f"{DIRECT} --dim 1.0", same_as="noproj"),
]
# SparseHead table 1: linear probe and kNN-5 on each of SETS; top-1 and top-5 on ImageNet-100 and ImageNet
SPARSEHEAD = {
    "simclr": (91.80, 88.42, 66.83, 56.57, 90.51, 85.68, 48.82, 32.86, 70.15, 89.75, 69.32, 89.15),
    "simclr-sparsehead": (92.75, 90.32, 67.55, 56.84, 92.24, 88.49, 51.42, 36.16, 72.27, 91.24, 71.44, 90.82),
    "byol": (91.73, 89.26, 66.60, 56.82, 91.86, 88.61, 51.01, 36.14, 74.89, 92.83, 74.31, 91.62),
    "byol-sparsehead": (92.45, 90.05, 67.52, 56.86, 92.60, 88.63, 52.16, 36.74, 75.94, 92.91, 75.52, 92.76),
    "barlow": (90.88, 88.78, 66.67, 56.39, 90.71, 86.31, 49.74, 33.61, 72.88, 90.99, 73.22, 91.01),
    "barlow-sparsehead": (91.28, 89.87, 66.91, 56.47, 91.45, 88.46, 51.49, 35.26, 75.75, 92.95, 75.32, 92.28),
}
SETS = ("cifar10", "cifar100", "stl10", "tiny-imagenet")
KEYS = [(name, metric) for name in SETS for metric in ("linear_top1", "knn5")]
KEYS += [(name, metric) for name in ("imagenet100", "imagenet") for metric in ("linear_top1", "linear_top5")]
PRINTED = {f"sh-{row}": dict(zip(KEYS, found, strict=True)) for row, found in SPARSEHEAD.items()}
SPARSEHEAD_ROWS = [
    Row("sh-noproj", ST, "SimCLR, no projector", f"{NOPROJ} --temperature 0.5"),
    Row("sh-simclr", ST, "SimCLR", SIM),
    Row("sh-simclr-sparsehead", ST, SH, f"{SIM} --reg sparsehead"),
    Row("sh-byol", ST, "BYOL", "byol.py"),
    Row("sh-byol-sparsehead", ST, SH, "byol.py --reg sparsehead"),
    Row("sh-barlow", ST, "Barlow Twins", "barlow.py"),
    Row("sh-barlow-sparsehead", ST, SH, "barlow.py --reg sparsehead"),
    Row("sh-simclr-linear", ST, "SimCLR, linear projector", LIN),
    Row("sh-simclr-linear-sparsehead", ST, SH, f"{LIN} --reg sparsehead"),
    Row("sh-resnet50", ST, "SimCLR, ResNet-50", SIM, after=R50),
    Row("sh-resnet50-sparsehead", ST, SH, f"{SIM} --reg sparsehead", after=R50),
]
ROWS += [row._replace(recipe="sparsehead", paper=PRINTED.get(row.name, {})) for row in SPARSEHEAD_ROWS]
ROWS += [
    Row("noproj-lastlayer-0.01", "weights", "noproj + 0.01 · last layer", f"{LASTLAYER} --reg-weight 0.01"),
    Row("noproj-lastlayer-0.1", "weights", "noproj + 0.1 · last layer", f"{LASTLAYER} --reg-weight 0.1"),
    Row("noproj-werank-0.01", "weights", "noproj + 0.01 · WERank", f"{WERANK} --reg-weight 0.01"),
    Row("noproj-werank-1", "weights", "noproj + 1 · WERank", f"{WERANK} --reg-weight 1"),
    Row("noproj-lastlayer-bn", "weights", "noproj + last layer, BatchNorm", f"{NOPROJ} --reg lastlayer-bn"),
    Row("simclr-lastlayer-encoder", "weights", "SimCLR + encoder's last layer", f"{REG} --reg-on encoder"),
    Row("simclr-bn", "weights", "SimCLR, projector with BatchNorm at its end", "simclr.py --projector-bn"),
]


# For `compressed`, whose lr 0.06 and weight decay 1e-2 the bases have. At equal steps equal
# lr · weight decay is equal H.
CLOCK = ("--weight-decay 2.5e-3", "--weight-decay 5e-4", "--lr 0.3 --weight-decay 2e-3")
CLOCK += ("--lr 0.3 --weight-decay 5e-4", "--lr 0.3 --weight-decay 1e-4")
CLOCK += ("--weight-decay 0", "--epochs 5 --warmup-epochs 0 --weight-decay 2e-2")  # H in half the steps
# At five times the rate the penalty diverges with LL's weight, 1.
GENTLE = tuple(flags.replace("--lr 0.3", "--lr 0.3 --reg-weight 0.1") for flags in CLOCK)
OF_CLOCK = {
    "simclr": ("simclr.py", CLOCK),
    "noproj": (NOPROJ, CLOCK),
    "noproj-lastlayer": (LASTLAYER, GENTLE),
}
ROWS += [
    Row(f"{base}-clock{i}", "clock", f"{base} {flags}", script, after=flags)
    for base, (script, settings) in OF_CLOCK.items()
    for i, flags in enumerate(settings, 1)
]


def semi(top1, top5):
    """SparseHead's numbers of a row of table 2."""
    return {("imagenet", "top1"): top1, ("imagenet", "top5"): top5}


# SparseHead table 2: fine-tuning on labels, which is no training of two views, so these are no part of ROWS
FT = "finetune-table"
FT1 = "finetune.py --labels 0.01"
FT10 = "finetune.py --labels 0.1"
FINETUNE_ROWS = [
    Row("ft1-scratch", FT, "1 % of the labels, from scratch", f"{FT1} --scratch", pretrained="sh-simclr"),
    Row("ft1-simclr", FT, "SimCLR", FT1, semi(48.3, 75.5), pretrained="sh-simclr"),
    Row("ft1-simclr-sparsehead", FT, SH, FT1, semi(50.1, 76.4), pretrained="sh-simclr-sparsehead"),
    Row("ft1-byol", FT, "BYOL", FT1, semi(53.2, 78.4), pretrained="sh-byol"),
    Row("ft1-byol-sparsehead", FT, SH, FT1, semi(54.3, 78.5), pretrained="sh-byol-sparsehead"),
    Row("ft1-barlow", FT, "Barlow Twins", FT1, semi(54.9, 79.4), pretrained="sh-barlow"),
    Row("ft1-barlow-sparsehead", FT, SH, FT1, semi(56.2, 79.5), pretrained="sh-barlow-sparsehead"),
    Row("ft10-scratch", FT, "10 % of the labels, from scratch", f"{FT10} --scratch", pretrained="sh-simclr"),
    Row("ft10-simclr", FT, "SimCLR", FT10, pretrained="sh-simclr"),  # the text that we have lacks its numbers
    Row("ft10-simclr-sparsehead", FT, SH, FT10, semi(67.5, 88.7), pretrained="sh-simclr-sparsehead"),
    Row("ft10-byol", FT, "BYOL", FT10, semi(68.8, 89.1), pretrained="sh-byol"),
    Row("ft10-byol-sparsehead", FT, SH, FT10, semi(69.4, 89.5), pretrained="sh-byol-sparsehead"),
    Row("ft10-barlow", FT, "Barlow Twins", FT10, semi(69.6, 89.1), pretrained="sh-barlow"),
    Row("ft10-barlow-sparsehead", FT, SH, FT10, semi(70.6, 89.6), pretrained="sh-barlow-sparsehead"),
]
ROW = {row.name: row for row in [*ROWS, *(row._replace(recipe="finetune") for row in FINETUNE_ROWS)]}


def of(table):
    """The rows of a table, in its order."""
    return [row for row in ROW.values() if table in row.tables.split()]


def own(table):
    """The rows of a table but for those that it only compares with: bases that are table 2's."""
    return [row for row in of(table) if row.tables == table or table not in COMPARING]


def run_of(name):
    """The name of the row whose run is this row's: itself, unless it is the same as another."""
    return ROW[name].same_as or name if name in ROW else name


def command(name, scale, dataset, data_dir="data"):
    """What trains a row, as words: the script and its flags, but for --seed, --out and the encoder.pt that it
    starts from, which has the scale's size."""
    recipe = RECIPES[ROW[name].recipe]
    words = f"{ROW[name].command} {recipe.get(dataset, recipe[''])}".split()
    if dataset in DATASETS and DATASETS[dataset].folder:
        base = ROW[name].pretrained
        pixels = arguments(base, scale, dataset)["image_size"] if base else DATASETS[dataset].pixels
        words += ["--dataset", str(Path(data_dir, dataset)), "--image-size", str(pixels)]
    else:
        words += ["--dataset", dataset]
    size = SCALES[scale]
    flags = size.flags if "--optimizer" in words else f"{size.flags} {size.sgd}"
    flags = "" if ROW[name].pretrained else flags
    return [*words, "--data-dir", str(data_dir), *f"{flags} {ROW[name].after}".split()]


# ------------------------------------------------------------------------------------ is a result its row's?

# How and where a run is computed, not what.
FREE = {"device", "compile", "precision", "eval_every", "seed", "out", "data_dir", "resume", "overwrite"}
FREE |= {"checkpoint", "pretraining"}


@functools.cache
def arguments(name, scale, dataset, pixels=None):
    """{argument: value} of a row's run, every default filled in by its own script, but for those in FREE.

    pixels: height and width of the images, for a data set of one's own.
    """
    script, *words = command(name, scale, dataset)
    given = vars(_module(script).parser().parse_args(words))
    if ROW[name].pretrained:
        encoder = arguments(ROW[name].pretrained, scale, dataset, pixels)
        given |= {key: encoder[key] for key in ("arch", "stem", "width", "image_size")}
    return _resolved(script, given, pixels or DATASETS[dataset].pixels)


def mismatch(config, name, scale, dataset):
    """What says that a result's config is not of this row, scale and data set, as text; "" if nothing does.

    The row's own script parses its command and fills in the defaults; the recorded arguments must be these.
    Of a row that no table has, only what the scale sets is compared.
    """
    try:
        recorded = config["arguments"]
        script = ROW[name].command.split()[0] if name in ROW else "simclr.py"
        complete = vars(_module(script).parser().parse_args([])) | recorded  # older runs lack newer arguments
        if name not in ROW:
            expected = _of_scale(scale, complete["optimizer"])
            found = {key: complete[key] for key in expected}
        else:
            if config["script"] != script:
                return f"made by {config['script']}, not {script}"
            pixels = DATASETS[dataset].pixels if dataset in DATASETS else recorded["image_size"]
            expected = arguments(name, scale, dataset, pixels)
            found = _resolved(script, complete, pixels)
            pretrained = ROW[name].pretrained
            if pretrained and (why := mismatch(recorded["pretraining"], pretrained, scale, dataset)):
                return f"its encoder is not {pretrained}'s: {why}"
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        return f"its configuration can't be read ({error!r})"
    other = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
    return ", ".join(f"{key} {found.get(key)}, not {expected.get(key)}" for key in other)


def _resolved(script, given, pixels):
    given = given | {"dataset": Path(given["dataset"]).stem, "image_size": given["image_size"] or pixels}
    found = vars(_module(script).resolve(argparse.Namespace(**given)))
    return json.loads(json.dumps({key: value for key, value in found.items() if key not in FREE}))


def _of_scale(scale, optimizer):
    """What a scale says of any method: epochs, width, number of images, and what else it has a flag for."""
    words = f"{SCALES[scale].flags} {SCALES[scale].sgd if optimizer == 'sgd' else ''}".split()
    flags = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    found = vars(_module("simclr.py").parser().parse_args(words))
    return {key: found[key] for key in sorted({"epochs", "width", "train_size", *flags} - FREE)}


def _module(script):
    return importlib.import_module(Path(script).stem)
