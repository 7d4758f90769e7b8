"""Tables, verdicts and figures from results/, without training anything.

    python report.py                            RESULTS.md: every table, every claim with its verdict
    python report.py --figures                  figures/<scale>/: the papers' figures, redrawn
    python report.py --results other -o a.md    other results, another page

A result is results/<scale>/<dataset>/<row>/seed<k>.json. Rows are compared seed by seed: runs of one seed
share initial encoder, order of images and views. A file that is no such result, or not of the row and scale
that it lies in, is named and left out, and the exit code is 1.
"""
import argparse
import functools
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import common
from plot_spectra import FIGURES, NAMES, QUESTION, ln_spectrum, number, panels, title

SCALES = {"paper": "the papers' epochs and width", "short": "50 epochs, otherwise as the papers",
          "mini": "shows on a CPU that every row works"}  # from the most to the least telling
METRICS = {"knn200": "kNN-200", "knn5": "kNN-5", "linear_top1": "linear",
           "subvector_linear_top1": "linear on z"}
SIZES = {"cifar10": 32, "cifar100": 32, "stl10": 96, "tiny-imagenet": 64}  # pixels
EQUAL, AT_LEAST = 1.0, 0.2  # points of accuracy that count as none, for "≈" and for "at least as good"
DIAGONAL, HARDLY, COLLAPSED = 0.1, 1 / 3, 0.01  # thresholds of C8, C9, C11
EIGHTHS = 8  # parts of C15's spectrum


# -------------------------------------------------------------------------------------- what the papers print

class Table(NamedTuple):
    """rows: name to label. paper: data set to {row: its numbers in the order of metrics}."""
    title: str
    target: str
    metrics: tuple
    rows: dict
    paper: dict


def _with(rows, *penalties):
    names = {"": "", "werank": " + WERank", "lastlayer": " + last layer", "sparsehead": " + SparseHead"}
    return {row + (p and f"-{p}"): label + names[p] for row, label in rows.items() for p in ("", *penalties)}


def _numbers(rows, text):
    """The numbers of a text, shared among the rows."""
    values = [float(word) for word in text.split()]
    count = len(values) // len(rows)
    return {row: values[i * count:(i + 1) * count] for i, row in enumerate(rows)}


BASES = {"simclr": "SimCLR, MLP projector", "noproj": "SimCLR, no projector", "directclr": "DirectCLR",
         "cs": "SimCLR, no projector, constant subvector"}
CONSTANTS = {"k0": "0", "kinv": "1/√D", "k1": "1"}
METHODS = {"sh-simclr": "SimCLR", "sh-byol": "BYOL", "sh-barlow": "Barlow Twins"}
HEADS = {"sh-simclr-linear": "SimCLR, linear projector", "sh-resnet50": "SimCLR, ResNet-50"}
BARLOW, NOPROJ = {"barlow": "Barlow Twins"}, {"barlow-noproj": "Barlow Twins, no projector"}
SWEEP = {f"directclr-d{d}": f"DirectCLR, d₀ = {d} of 512" for d in (8, 32, 128, 256, 512)}
PROJECTORS = {"simclr": "2-layer MLP", "simclr-linear": "linear", "noproj": "none", "directclr": "DirectCLR",
              "simclr-orthogonal": "orthogonal", "simclr-diagonal": "diagonal",
              "simclr-lowrank": "fixed low-rank", "simclr-lowrank-diagonal": "fixed low-rank diagonal",
              "directclr-random": "random d₀ dimensions every step"}
TABLE1 = {f"cs-d{d}-{k}": f"d₀ = {d}, k = {label}" for d in (200, 400, 480) for k, label in CONSTANTS.items()}
TABLE2, SPARSEHEAD = _with(BASES, "werank", "lastlayer"), _with(METHODS, "sparsehead")
TABLES = [
    Table("LL table 2: penalties on weights", "table2", ("knn200",), TABLE2, {
        "cifar10": _numbers(TABLE2, "86.1 86.5 86.3  84.5 84.9 85.1  85.2 85.4 85.5  84.7 85.0 85.5"),
        "cifar100": _numbers(TABLE2, "56.3 56.8 57.5  52.8 52.6 53.1  53.2 53.0 53.2  52.5 53.0 53.1")}),
    Table("LL table 1: constant subvector", "table1", ("knn200",), TABLE1, {
        "cifar10": _numbers(TABLE1, "83.2 82.5 78.9  84.2 84.0 79.8  84.7 84.4 80.9"),
        "cifar100": _numbers(TABLE1, "49.4 48.6 41.1  52.2 50.9 44.3  52.5 51.8 45.9")}),
    Table("DirectCLR tables 1, 2, appendix F and figure 12", "directclr-tables", ("linear_top1",),
          PROJECTORS | SWEEP,
          {"imagenet": _numbers(PROJECTORS, "66.5 61.1 51.5 62.7 52.2 60.2 62.3 62.7 43.0")}),
    Table("DirectCLR appendix F: the probe on z only", "directclr-tables", ("subvector_linear_top1",),
          {"directclr": "DirectCLR"}, {"imagenet": {"directclr": [47.9]}}),
    Table("SparseHead table 1", "sparsehead-table", ("linear_top1", "knn5"), SPARSEHEAD, {
        "cifar10": _numbers(SPARSEHEAD, "91.80 88.42 92.75 90.32  91.73 89.26 92.45 90.05  "
                                        "90.88 88.78 91.28 89.87"),
        "cifar100": _numbers(SPARSEHEAD, "66.83 56.57 67.55 56.84  66.60 56.82 67.52 56.86  "
                                         "66.67 56.39 66.91 56.47"),
        "stl10": _numbers(SPARSEHEAD, "90.51 85.68 92.24 88.49  91.86 88.61 92.60 88.63  "
                                      "90.71 86.31 91.45 88.46"),
        "tiny-imagenet": _numbers(SPARSEHEAD, "48.82 32.86 51.42 36.16  51.01 36.14 52.16 36.74  "
                                              "49.74 33.61 51.49 35.26")}),
    Table("SparseHead figures 1 and 3: other heads", "sparsehead-table", ("linear_top1", "knn5"),
          {"sh-noproj": "SimCLR, no projector", **_with(HEADS, "sparsehead")}, {}),
    Table("Barlow Twins with LL's recipe (LL figure 1b)", "barlow", ("knn200", "linear_top1"),
          _with(BARLOW, "werank") | _with(NOPROJ, "werank", "lastlayer"), {}),
]


def printed(dataset, row, metric):
    """(what the papers print for a row, the data set), that on ImageNet where they have no other; or None."""
    for table in TABLES:
        for source in (dataset, "imagenet"):
            if metric in table.metrics and row in table.paper.get(source, ()):
                return table.paper[source][row][table.metrics.index(metric)], source
    return None


class Claim(NamedTuple):
    """What a paper says, where, and the figure (a file's stem) that shows it."""
    text: str
    source: str
    figure: str


CLAIMS = {
    "C1": Claim("strong augmentation along a direction makes its singular values vanish (linear model)",
                "DirectCLR theorem 1, figure 3", "toy-directclr-3"),
    "C2": Claim("adjacent layers align: |V₂ᵀU₁| → I", "DirectCLR theorem 2, figure 5", "toy-directclr-5"),
    "C3": Claim("the smallest singular values of an over-parametrised model grow much more slowly, and C "
                "becomes low-rank", "DirectCLR theorem 3, figure 6", "toy-directclr-6"),
    "C4": Claim("more layers, more collapsed dimensions; none for one layer; ReLU the same",
                "DirectCLR figure 11", "toy-directclr-11"),
    "C5": Claim("WERank drives all σ(W) to 1 and prevents collapse, less so the stronger the augmentation; "
                "EMA is the exception", "WERank figures 1–5", "toy-werank-2"),
    "C6": Claim("without a projector the spectrum of h collapses; with one it does not",
                "LL figure 1a, DirectCLR figure 7, SparseHead figure 1", "ll-1a"),
    "C7": Claim("Barlow Twins without projector collapses more than SimCLR without", "LL figure 1b", "ll-1b"),
    "C8": Claim("InfoNCE decorrelates z, not h", "LL figure 2", "ll-2"),
    "C9": Claim("projector or not changes the last layer's spectrum, hardly the last but one's",
                "LL figure 3", "ll-3"),
    "C10": Claim("inside the projector the last layer's spectrum is the low one", "LL figure 4", "ll-4"),
    "C11": Claim("collapsed dimensions have weight rows of near-zero norm", "LL proposition 1", "row-norms"),
    "C12": Claim("constant subvector: k = 0 beats 1/√D beats 1; larger d₀ beats smaller", "LL table 1",
                 "forest"),
    "C13": Claim("`lastlayer` beats no regularisation, for each of the four bases", "LL table 2", "forest"),
    "C14": Claim("`lastlayer` is at least as good as WERank on the whole encoder, for each of the four bases",
                 "LL table 2", "forest"),
    "C15": Claim("`lastlayer` raises the spectrum of h across all dimensions", "LL figure 6", "ll-6"),
    "C16": Claim("DirectCLR > linear projector > none; orthogonal ≈ none, diagonal ≈ linear, low-rank ≈ "
                 "low-rank diagonal; random dropping is worst; the probe on z is worse than on h",
                 "DirectCLR tables 1, 2, appendix F", "forest"),
    "C17": Claim("SparseHead improves SimCLR, BYOL and Barlow Twins", "SparseHead table 1", "forest"),
    "C18": Claim("SparseHead lowers the effective dimension of z, raises that of h, and raises the min-max "
                 "distance ratio", "SparseHead figure 3, theorem 5.8", "sparsehead-3"),
    "C19": Claim("`lastlayer` costs O(n³), WERank O(L·n³)", "LL section 1", ""),
}


# ----------------------------------------------------------------------------------- what the claims rest on

class Comparison(NamedTuple):
    """value(a result of each of `rows`, of one seed) is claimed to be above `bound`, or (within) between
    -bound and bound; NaN where a result has nothing to judge. terms: if it is a difference in points of
    accuracy, the (row, metric) of both."""
    claim: str
    text: str
    rows: tuple
    value: Callable
    bound: float = 0.0
    within: bool = False
    terms: tuple = ()


def accuracy(claim, metric, a, b, bound=0.0, within=False):
    """The Comparison of a metric, in points: a's minus b's, claimed above bound or (within) about 0."""
    sign = "≈" if within else "≥" if bound else ">"
    return Comparison(claim, f"{METRICS[metric]}: {a} {sign} {b}", (a, b), lambda x, y: x[metric] - y[metric],
                      bound, within, ((a, metric), (b, metric)))


def fall(result):
    """ln(σ_mid / σ_1) of h: how far its spectrum has fallen half-way."""
    s = ln_spectrum(result, "h")
    return s[len(s) // 2 - 1] - s[0]


def change(a, b, layer):
    """ln σ_k of a minus that of b, for every k."""
    return ln_spectrum(a, layer) - ln_spectrum(b, layer)


def eighth(i):
    """Mean over the i-th eighth of the k of the change in ln σ_k of h."""
    return lambda a, b: np.array_split(change(a, b, "h"), EIGHTHS)[i].mean()


def hardly(a, b):
    """How far the mean |Δ ln σ| of the last but one block is below a third of h's."""
    moved, before = (np.abs(change(a, b, layer)).mean() for layer in ("h", "penultimate"))
    return HARDLY * moved - before


def inside_projector(result):
    """Mean over the k that both have of ln σ_k of the hidden layer minus that of z."""
    hidden, z = ln_spectrum(result, "projector_hidden"), ln_spectrum(result, "z")
    shared = min(len(hidden), len(z))
    return np.mean(hidden[:shared] - z[:shared])


def weak_rows(kind):
    """-ln of the median ‖W^i‖² of h's collapsed dimensions, relative to that of all; NaN without any."""
    def value(result):
        norm, variance = (np.array(result["row_norms"][key]) for key in (kind, "variance"))
        collapsed = variance < COLLAPSED * np.median(variance)
        few = np.median(norm[collapsed]) if collapsed.any() else np.nan
        return -np.log(np.maximum(few, 1e-30) / max(np.median(norm), 1e-30))
    return value


def rise(statistic, layer):
    """How much a statistic of a layer is larger in a than in b."""
    return lambda a, b: a[statistic][layer] - b[statistic][layer]


def offdiagonal(result, layer):
    """Mean |off-diagonal| / mean diagonal of a layer's covariance."""
    return result["covariance"][layer]["offdiagonal"]


COMPARISONS = [
    *[Comparison(claim, f"{text} of h: {a} > {b}", (a, b), value)
      for claim, a, b in (("C6", "simclr", "noproj"), ("C7", "noproj", "barlow-noproj"))
      for text, value in (("RankMe", rise("rankme", "h")),
                          ("ln σ_mid/σ₁", lambda x, y: fall(x) - fall(y)))],
    Comparison("C8", "simclr's mean |off-diagonal| / diagonal of the covariance: h > z", ("simclr",),
               lambda x: offdiagonal(x, "h") - offdiagonal(x, "z")),
    Comparison("C8", f"simclr's mean |off-diagonal| / diagonal of z: < {DIAGONAL}", ("simclr",),
               lambda x: DIAGONAL - offdiagonal(x, "z")),
    Comparison("C9", "mean |Δ ln σ| from simclr to noproj: last but one block < 1/3 of h",
               ("simclr", "noproj"), hardly),
    Comparison("C10", "mean ln σ in simclr's projector: hidden layer > z", ("simclr",), inside_projector),
    *[Comparison("C11", f"-ln(‖W^i‖² of noproj's collapsed dimensions / of all), {kind}: > ln 10",
                 ("noproj",), weak_rows(kind), np.log(10)) for kind in ("bare", "folded")],
    *[accuracy("C12", "knn200", f"cs-d{d}-{a}", f"cs-d{d}-{b}")
      for d in (200, 400, 480) for a, b in (("k0", "kinv"), ("kinv", "k1"))],
    *[accuracy("C12", "knn200", f"cs-d{a}-{k}", f"cs-d{b}-{k}")
      for k in CONSTANTS for a, b in ((480, 400), (400, 200))],
    *[accuracy("C13", "knn200", f"{base}-lastlayer", base) for base in BASES],
    *[accuracy("C14", "knn200", f"{base}-lastlayer", f"{base}-werank", -AT_LEAST) for base in BASES],
    *[Comparison("C15", f"ln σ_k of h, part {i + 1} of {EIGHTHS} of the k: noproj-lastlayer > noproj",
                 ("noproj-lastlayer", "noproj"), eighth(i)) for i in range(EIGHTHS)],
    *[accuracy("C16", "linear_top1", *rows) for rows in (
        ("directclr", "simclr-linear"), ("simclr-linear", "noproj"),
        ("simclr-orthogonal", "noproj", EQUAL, True), ("simclr-diagonal", "simclr-linear", EQUAL, True),
        ("simclr-lowrank", "simclr-lowrank-diagonal", EQUAL, True),
        *((row, "directclr-random") for row in PROJECTORS if row != "directclr-random"))],
    Comparison("C16", "linear: directclr > directclr, probe on z", ("directclr",),
               lambda x: x["linear_top1"] - x["subvector_linear_top1"],
               terms=(("directclr", "linear_top1"), ("directclr", "subvector_linear_top1"))),
    *[accuracy("C17", metric, f"{row}-sparsehead", row)
      for row in METHODS for metric in ("linear_top1", "knn5")],
    *[Comparison("C18", f"{text}: {row}-sparsehead {sign} {row}", (f"{row}-sparsehead", row), value)
      for row in ("sh-simclr", "sh-resnet50") for text, sign, value in (
          ("RankMe of z", "<", lambda x, y: rise("rankme", "z")(y, x)),
          ("RankMe of h", ">", rise("rankme", "h")),
          ("min-max ratio of z", ">", rise("min_max_ratio", "z")))],
]


# ------------------------------------------------------------------------------------------------- statistics

@functools.cache
def t_quantile(p, df):
    """Quantile p >= 0.5 of Student's t: with t = √df tan θ its density is that of cos^(df - 1) θ."""
    edges = np.linspace(0, np.pi / 2, 1_000_001)
    mass = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (df - 1))
    return float(np.sqrt(df) * np.tan(np.interp(p - 0.5, mass / mass[-1] / 2, edges[1:])))


class Estimate(NamedTuple):
    """n paired differences, their mean and its standard error (infinite for n = 1)."""
    n: int
    mean: float
    error: float

    def half(self, alpha=0.05):
        """Half the width of the mean's 1 - alpha interval: the smallest difference that n such pairs could
        have shown at alpha, two-sided."""
        return t_quantile(1 - alpha / 2, self.n - 1) * self.error if self.n > 1 else np.inf

    def judge(self, bound=0.0, within=False, alpha=0.05):
        """holds, fails or undecided: on which side of what is claimed the whole interval lies."""
        low, high = self.mean - self.half(alpha), self.mean + self.half(alpha)
        agrees = -bound < low and high < bound if within else low > bound
        against = low > bound or high < -bound if within else high < bound
        return "undecided" if self.n < 3 or not (agrees or against) else "holds" if agrees else "fails"

    def as_claimed(self, bound=0.0, within=False):
        return abs(self.mean) < bound if within else self.mean > bound


def estimate(differences):
    """The Estimate of a list of paired differences, of which NaNs do not count; None of an empty one."""
    found = [x for x in differences if not np.isnan(x)]
    mean = np.mean(found) if found else np.nan
    error = np.std(found, ddof=1) / len(found) ** 0.5 if len(found) > 1 else np.inf
    return Estimate(len(found), float(mean), float(error)) if differences else None


# ---------------------------------------------------------------------------------------------------- results

class Results:
    """runs: {(scale, dataset, row): {seed: what result.json holds}}; problems: files left out, and why.
    single: {name: content} of the files that are not of one run, toy.json and bench-*.json."""

    def __init__(self, folder):
        self.runs, self.single, self.problems = {}, {}, []
        for path in sorted(folder.rglob("*.json")):
            parts = path.relative_to(folder).with_suffix("").parts
            try:
                content = common.read_json(path)
                if len(parts) == 4:
                    self.runs.setdefault(parts[:3], {})[check(content, *parts)] = content
                elif path.name == "toy.json":
                    require(isinstance(content["claims"], dict), "has no claims")
                    for claim in content["claims"]:
                        toy_verdict(content, claim)
                    self.single[path.name] = content
                elif len(parts) == 1 and path.name.startswith("bench-"):
                    cost_verdict([content])
                    self.single[path.name] = content
                else:
                    raise common.UserError("is not at <scale>/<dataset>/<row>/seed<k>.json")
            except (AttributeError, LookupError, TypeError, ValueError, ZeroDivisionError) as error:
                why = f"lacks {error}" if isinstance(error, KeyError) else common.brief(error)
                why = why if isinstance(error, KeyError | common.UserError) else f"is no result ({why})"
                self.problems.append(why if str(path) in why else f"{path} {why}")

    def of(self, scale, dataset, row):
        """{seed: result} of a row, in the order of seeds."""
        return dict(sorted(self.runs.get((scale, dataset, row), {}).items()))

    def scales(self):
        found = {scale for (scale, _, _), seeds in self.runs.items() if seeds}
        return [scale for scale in SCALES if scale in found]

    def datasets(self, scale, rows=None):
        """Data sets with a run at a scale, of these rows; known ones first."""
        found = {dataset for (s, dataset, row), seeds in self.runs.items()
                 if s == scale and seeds and (rows is None or row in rows)}
        return [name for name in NAMES if name in found] + sorted(found - set(NAMES))

    def compare(self, comparison, scale, dataset):
        """The Estimate of a Comparison from the seeds that all its rows have on one kind of device; None
        without any."""
        sides, values = [self.of(scale, dataset, row) for row in comparison.rows], []
        for seed in sorted(set.intersection(*map(set, sides))):
            runs = [side[seed] for side in sides]
            if len({source_of_chance(run) for run in runs}) == 1:
                values.append(float(comparison.value(*runs)))
        return estimate(values)


def source_of_chance(result):
    """What decides with the seed which images and views a run sees: CPU or which GPU, and torch's version."""
    config = result["config"]
    device = "CPU" if " CPU, " in config["device"] else config["device"]
    return device, config["torch"].split("+")[0]


def wanted(scale, dataset, row):
    """The arguments that a row must have been trained with at a scale, of those that its script has."""
    arguments = {"epochs": 200, "width": 64, "train_size": None}
    known = {name for table in TABLES for name in table.rows}
    if row in known:
        reg = next((reg for reg in common.REG_WEIGHT if row.endswith(f"-{reg}")), "none")
        arguments |= {"batch_size": 128, "optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "grey_p": 0.2,
                      "crop_scale": [0.08, 1.0], "jitter": [0.4, 0.4, 0.4, 0.1], "temperature": 0.2,
                      "cross_view": False, "lambd": 5e-3, "momentum": 0.99, "blur_p": 0.0, "solarize_p": 0.0,
                      "reg": reg, "reg_weight": common.REG_WEIGHT[reg], "reg_on": None, "hidden": None,
                      "arch": "resnet50" if "resnet50" in row else "resnet18"}
        if dataset in SIZES:
            stem = "cifar" if SIZES[dataset] <= 64 else "imagenet"
            arguments |= {"image_size": SIZES[dataset], "stem": stem}
        if not row.startswith(("sh-simclr", "sh-resnet50")):
            arguments["embedding"] = None
    if row in known and row.startswith("sh-"):
        arguments |= {"epochs": 2000 if dataset == "stl10" else 1000, "batch_size": 512, "optimizer": "adam",
                      "lr": 3e-3 if dataset.startswith("cifar") else 2e-3, "weight_decay": 1e-6,
                      "temperature": 0.5, "crop_scale": [0.2, 1.0], "grey_p": 0.1}
    return arguments | {"paper": {}, "short": {"epochs": 50}, "mini": {
        "epochs": 5, "width": 8, "train_size": 5000, "batch_size": 128}}[scale]


def own_name(row, dim):
    """What its script calls a row of the papers, whose names have the numbers of 512 dimensions."""
    name = re.sub("^cs(?!-d)", "cs-d480-k0", row.removeprefix("sh-").replace("resnet50", "simclr"))
    name = name.replace("kinv", f"k{dim ** -0.5:g}")
    return re.sub(r"-d(\d+)", lambda found: f"-d{int(found[1]) * dim // 512}", name)


def check(result, scale, dataset, row, seed):
    """The seed of a result that is whole and of its place; else an error that says what is wrong."""
    config, arguments = result["config"], result["config"]["arguments"]
    require(scale in SCALES, f"is at the scale {scale}, none of {', '.join(SCALES)}")
    require(type(arguments["seed"]) is int and seed == f"seed{arguments['seed']}"
            and Path(arguments["dataset"]).stem == dataset,
            f"holds seed {arguments['seed']} of {arguments['dataset']}")
    require(all(isinstance(config[key], str) for key in ("device", "torch", "name")), "lacks its origin")
    percent, dim = ["knn200", "knn5", "linear_top1"], len(result["spectra"]["h"])
    if "directclr" in row:
        percent += ["subvector_linear_top1"]
        require(is_number(result["dim"], 1, dim), "has no valid dim")
    for key in percent:
        require(is_number(result[key], 0, 100), f"has no valid {key}")
    require(is_number(result["seconds"], 1e-9), "has no valid seconds")
    hidden = result["spectra"]["projector_hidden"] is not None or row in TABLE2 and row.startswith("simclr")
    for layer in ("h", "z", "penultimate", *["projector_hidden"] * hidden):
        found, block = result["covariance"][layer], result["covariance"][layer]["block"]
        numbers = [*(result["spectra"][layer] or ()), result["rankme"][layer], result["min_max_ratio"][layer]]
        require(len(numbers) > 2 and all(is_number(x, 0) for x in (*numbers, found["offdiagonal"])),
                f"has no valid spectrum, rankme, min_max_ratio or covariance of {layer}")
        require(all(len(line) == len(block) and all(map(is_number, line)) for line in block),
                f"has no square covariance of {layer}")
    lengths = {dim, len(result["spectra"]["penultimate"]), *map(len, result["row_norms"].values())}
    require(lengths == {dim} and dim >= EIGHTHS, f"has spectra and row_norms of {sorted(lengths)} dimensions")
    for key in ("bare", "folded", "variance"):
        require(all(is_number(x, 0) for x in result["row_norms"][key]), f"has no valid row_norms, {key}")
    of_scripts = ("temperature", "cross_view", "lambd", "momentum", "hidden", "embedding")
    other = [f"{key} {arguments.get(key)}, not {value}" for key, value in wanted(scale, dataset, row).items()
             if (key in arguments or key not in of_scripts) and arguments.get(key, "absent") != value]
    if any(row in table.rows for table in TABLES):
        script = next((name for name in ("directclr", "barlow", "byol") if name in row), "simclr") + ".py"
        made = [(config["name"], own_name(row, dim)), (config["script"], script)]
        other += [f"{found}, not {name}" for found, name in made if found != name]
    require(not other, f"is not {row} at scale {scale}: {'; '.join(other)}")
    return arguments["seed"]


def require(condition, otherwise):
    """UserError(otherwise) unless the condition holds."""
    if not condition:
        raise common.UserError(otherwise)


def is_number(x, low=-np.inf, high=np.inf):
    """A finite int or float, no bool, from low to high."""
    return type(x) in (int, float) and low <= x <= high and abs(x) < np.inf


def setting(result):
    """How a result was trained, in words: images, width, epochs, batch."""
    a = result["config"]["arguments"]
    images = f"{a['train_size']:,} images" if a["train_size"] else "all images"
    return f"{images}, width {a['width']}, {a['epochs']} epochs, batch {a['batch_size']}"


# --------------------------------------------------------------------------------------------------- the page

def cells(*values):
    """A line of a Markdown table."""
    return "| " + " | ".join(str(value).replace("|", "\\|") for value in values) + " |"


def mean_std(values):
    """Mean ± sample standard deviation (count), as text."""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread} ({len(values)})" if values else "not measured"


def difference(e):
    """Mean and interval: +0.31 [-0.20, +0.82]."""
    half = e.half()
    return f"{e.mean:+.2f}" + (f" [{e.mean - half:+.2f}, {e.mean + half:+.2f}]" if np.isfinite(half) else "")


def count(n, what):
    """1 pair, 2 pairs."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def table_lines(results, table, scale):
    """A table at a scale, by data set; the paper's data sets without any run are named at the end."""
    datasets = results.datasets(scale, table.rows)
    more = {"RankMe h": ("rankme", "h"), "RankMe z": ("rankme", "z")}
    if table.target == "sparsehead-table":
        more |= {"min-max h": ("min_max_ratio", "h"), "min-max z": ("min_max_ratio", "z")}
    for dataset in datasets:
        yield from (f"**{title(dataset)}**", "")
        source = "paper, ImageNet" if "imagenet" in table.paper else "paper"
        columns = [x for metric in table.metrics for x in (METRICS[metric], source, "difference")]
        columns = ["row", "", *columns, *more, "minutes"]
        yield from (cells(*columns), cells(*["---"] * len(columns)))
        for row, label in table.rows.items():
            runs, found = list(results.of(scale, dataset, row).values()), []
            for metric in table.metrics:
                ours, (paper, where) = [r[metric] for r in runs], printed(dataset, row, metric) or (None, "")
                gap = np.mean(ours) - paper if ours and where == dataset else None
                found += [mean_std(ours), number(paper), number(gap, sign=True)]
            found += [mean_std([r[key][of] for r in runs]) if runs else "–" for key, of in more.values()]
            minutes = number(np.mean([r["seconds"] for r in runs]) / 60) if runs else "–"
            yield cells(f"`{row}`", label, *found, minutes)
        runs = [r for row in table.rows for r in results.of(scale, dataset, row).values()]
        ways = Counter("{}, D = {}; {device}, torch {torch}".format(
            setting(r), len(r["spectra"]["h"]), **r["config"]) for r in runs)
        command = f"`make {table.target} SCALE={scale} DATASETS={dataset}`. " if table.target else ""
        yield from ("", command + " ".join(f"{count(n, 'run')}: {w}." for w, n in sorted(ways.items())), "")
    if missing := [NAMES[d] for d in table.paper if d not in (*datasets, "imagenet")]:
        yield from (f"Not measured at this scale: {', '.join(missing)}.", "")


def judged(results, claim, scale):
    """[(dataset, comparison, Estimate or None)] of a claim, for the data sets that have any of it."""
    for dataset in results.datasets(scale):
        found = [(dataset, c, results.compare(c, scale, dataset)) for c in COMPARISONS if c.claim == claim]
        yield from found if any(e for _, _, e in found) else ()


def most_telling(sizes):
    """Of {scale: every n of what is measured there} the scale to judge by: not mini if there is another, then
    the one with the most n of 3 or more, then the nearest to the papers'; None without any."""
    order = {scale: (scale != "mini", sum(n >= 3 for n in found), -list(SCALES).index(scale))
             for scale, found in sizes.items() if found}
    return max(order, key=order.get, default=None)


def claim_scale(results, claim):
    """The scale that a claim is judged at, None without any measurement."""
    return most_telling({scale: [e.n for _, _, e in judged(results, claim, scale) if e]
                         for scale in results.scales()})


def trained_verdict(results, claim, scale):
    """(verdict, statistic, measured at) of one of C6 … C18 at a scale.

    To hold, every difference must, and be measured. One is enough to fail, so its interval is as wide as
    their number asks for (Bonferroni).
    """
    if scale is None:
        return "no data", "–", "–"
    found = list(judged(results, claim, scale))
    measured = [(c, e) for _, c, e in found if e and e.n]
    outcomes = Counter(outcome(c, e, len(measured)) for c, e in measured)
    holding, failing = outcomes["shown"], outcomes["refuted"]
    agree = sum(e.as_claimed(c.bound, c.within) for c, e in measured)
    verdict = "fails" if failing else "holds" if holding == len(found) else "undecided"
    verdict = "undecided (scale)" if scale == "mini" else verdict
    statistic = (f"{agree} of {count(len(measured), 'difference')} as claimed, {holding} of them shown; "
                 f"{failing} refuted")
    if not measured:
        statistic = "nothing to judge: no dimension has collapsed"
    elif len(measured) == 1:
        statistic = f"{difference(measured[0][1])}, {next(iter(outcomes))}"
    if 0 < len(measured) < len(found):
        statistic += f"; {len(found) - len(measured)} not measured or nothing to judge"
    sizes = sorted({e.n for _, _, e in found if e})
    datasets = ", ".join(dict.fromkeys(title(d) for d, _, _ in found))
    sizes = "–".join(map(str, sorted({sizes[0], sizes[-1]})))
    return verdict, statistic, f"`{scale}`, {datasets}, n = {sizes}"


def outcome(c, e, among):
    """What an Estimate says of a Comparison among so many of a claim."""
    if e.judge(c.bound, c.within) == "holds":
        return "shown"
    if e.judge(c.bound, c.within, 0.05 / among) == "fails":
        return "refuted"
    return "undecided, " + ("as claimed" if e.as_claimed(c.bound, c.within) else "against it")


def toy_verdict(toy, claim):
    """(verdict, statistic, measured at) of one of C1 … C5, which toy_linear.py has judged."""
    if claim not in toy.get("claims", {}):
        return "no data", "–", "–"
    found, settings = toy["claims"][claim], toy["settings"]
    marks = Counter(part.split(" ", 1)[0] for part in found["parts"])
    require(set(marks) <= set(MARKS) and found["claim"] and found["threshold"], f"has no valid {claim}")
    decided = settings["seeds"] >= 3 and not settings["quick"]
    verdict = "undecided" if not decided else "holds" if found["holds"] else "fails"
    against = "; ".join(part.split(" ", 1)[1].strip() for part in found["parts"] if part.startswith("NO "))
    statistic = f"{marks['yes']} of {count(marks['yes'] + marks['NO'], 'part')} as claimed"
    return (verdict, statistic + (f"; against it: {against}" if against else ""),
            f"linear models, {settings['steps']:,} steps, n = {settings['seeds']}")


def cost_verdict(benches):
    """(verdict, statistic, measured at) of C19, from results/bench-*.json: holds if `lastlayer` costs less
    than WERank and neither's cost grows faster than the cube of the width."""
    texts, holds = [], []
    for bench in benches:
        found = {row["what"]: row["value"] for row in bench["rows"]}
        both = [found.get(f"{reg} with its gradient, alone, width 64") for reg in ("lastlayer", "werank")]
        powers = [found.get(f"{reg} alone, power of the width") for reg in ("lastlayer", "werank")]
        if None not in (*both, *powers):
            steps = [f"{what}: {1e3 * x:.4g} ms" for what, x in found.items() if "with penalty" in what]
            texts.append(
                f"alone, with gradient, ResNet-18 of width 64: `lastlayer` {both[0]:.3g} ms, `werank` "
                f"{both[1]:.3g} ms, {both[1] / both[0]:.1f} times; they grow with the width to the power "
                f"{powers[0]:.1f} and {powers[1]:.1f}; {'; '.join(steps)}")
            holds.append(both[0] < both[1] and max(powers) < 3.3)
    return (("holds" if all(holds) else "fails", " / ".join(texts), " / ".join(b["device"] for b in benches))
            if holds else ("no data", "–", "–"))


def replaced(need, gap, gain):
    """Whether the penalty replaces the projector, from the Estimates of what the projector is worth, of what
    the penalty lacks of it, and of what it gains."""
    if need.judge(AT_LEAST) == "fails":
        return "there is **nothing to replace**, the projector gains less than that"
    if gap.judge(-AT_LEAST) == "fails":
        return "the penalty does **not replace** the projector"
    if need.judge(AT_LEAST) == gain.judge() == gap.judge(-AT_LEAST) == "holds":
        return "the penalty **replaces** the projector"
    return "it is **undecided** whether the penalty replaces the projector"


def opening(results):
    """Does a last-layer penalty replace the projector? Three sentences, from the most telling scale."""
    found = {}
    for scale in results.scales():
        for dataset in results.datasets(scale):
            sides, runs = [results.of(scale, dataset, row) for row in QUESTION], []
            for seed in set.intersection(*map(set, sides)):
                of_seed = [side[seed] for side in sides]
                runs += [of_seed] if len(set(map(source_of_chance, of_seed))) == 1 else []
            if runs:
                found.setdefault(scale, {})[dataset] = runs
    scale = most_telling({scale: list(map(len, sets.values())) for scale, sets in found.items()})
    if scale is None:
        yield "Nothing that answers it has been measured yet: `make table2` does."
        return
    means, changes, verdicts = [], [], []
    for dataset, runs in found[scale].items():
        accuracies = [[run["knn200"] for run in of_seed] for of_seed in runs]
        need, gap, gain = (estimate([x[i] - x[j] for x in accuracies]) for i, j in ((0, 1), (2, 0), (2, 1)))
        columns = [mean_std(list(column)) for column in zip(*accuracies)]
        means.append("{}, {} and {} on ".format(*columns) + title(dataset))
        where = f"on {title(dataset)}"
        changes.append(f"{where} the projector is worth {difference(need)}; without it the penalty is worth "
                       f"{difference(gain)}, and ends at {difference(gap)} from SimCLR with projector")
        verdicts.append(f"{where} {replaced(need, gap, gain)}")
    yield (f"At scale `{scale}` ({setting(runs[0][0])}) the kNN-200 of SimCLR with its projector, without, "
           f"and without but with the last-layer penalty is {'; '.join(means)}.")
    yield f"In points, paired by seed: {'; '.join(changes)}."
    if scale == "mini":
        yield ("That is no verdict: so narrow a network, trained so briefly, says nothing about the papers' "
               "setting, and whether the penalty replaces the projector is **undecided** until `short` or "
               "`paper` is measured.")
    else:
        yield f"So, to within {AT_LEAST} points, {'; '.join(verdicts)}."


METHOD = f"""Made by `make report` from the JSON files in `results/`, nothing by hand.

h is the encoder's output, which is evaluated; z what the loss sees; kNN-200, kNN-5 and linear are percent of
test images classified from h; RankMe is an effective number of dimensions. README.md has rows and recipes.
± is the standard deviation over seeds, their number in brackets; minutes are those of a run's training.

Differences are paired by seed: runs of one seed, on one kind of device, share initial encoder, order of
images and views. A difference above 0 speaks for the claim, whichever row it names first; for "≈" it is
close to 0. Intervals are Student's, of 95 %. "Could have shown" is the least observed difference that the
pairs would have shown to be one (two-sided 5 %); a true difference of that size is missed half of the time.
Rows are named by the papers' 512 dimensions. Spectra leave out σ_k below 1e-12 σ₁, which are rounding errors.

A difference is shown if its interval lies on the claim's side, and refuted if the interval lies on the other
even when widened for the number of the claim's differences (Bonferroni). C6–C18 hold if all are shown and
none is missing, fail if one is refuted, and are undecided otherwise, with fewer than 3 pairs, and at scale
`mini`, whatever its numbers look like. "≈" is within {EQUAL:g} point of accuracy, "≥" within {AT_LEAST:g}. C6
and C7 compare spectra, as the papers do not say how low a collapsed one is; C11 is about dimensions with less
than {COLLAPSED:.0%} of the median variance. C1–C5 are judged by thresholds on means. C19 holds if `lastlayer`
is the cheaper and neither's time grows faster than the width to the power 3.3; the depth L is not varied."""


def page(results, toy, benches, figures):
    """RESULTS.md, line by line. figures: names of those that can be drawn, by scale."""
    yield from ("# Results", "", "**Does a penalty on the last layer's weights replace the projector?** "
                + " ".join(opening(results)), "", METHOD, "")
    if results.problems:
        yield from ("Left out:", "", *(f"- {problem}" for problem in results.problems), "")
    columns = ("", "claim", "source", "verdict", "statistic", "measured at", "figure")
    yield from ("## Claims", "", cells(*columns), cells(*["---"] * len(columns)))
    for index, (name, claim) in enumerate(CLAIMS.items(), 1):
        scale, link = claim_scale(results, name), "–"
        verdict, statistic, where = (toy_verdict(toy, name) if index < 6 else cost_verdict(benches)
                                     if index == 19 else trained_verdict(results, name, scale))
        if scale:
            statistic += f" ([all](#{name.lower()}-at-{scale}))"
            if claim.figure in figures[scale]:
                link = f"[{claim.figure}](figures/{scale}/{claim.figure}.png)"
        elif index < 6 and verdict != "no data":
            statistic += f" ([all](#{name.lower()}-in-linear-models))"
            link = f"[{claim.figure}](figures/{claim.figure}.png)"
        yield cells(name, claim.text, claim.source, f"**{verdict}**", statistic, where, link)
    yield ""
    for scale, meaning in SCALES.items():
        yield from (f"## Scale `{scale}`: {meaning}", "")
        if scale not in results.scales():
            yield from ("Not measured.", "")
            continue
        known = {row for table in TABLES for row in table.rows}
        others = sorted({row for s, _, row in results.runs if s == scale} - known)
        own = Table("Rows of no paper", "", ("knn200", "linear_top1"), dict.fromkeys(others, ""), {})
        for table in (*TABLES, own):
            lines = list(table_lines(results, table, scale)) if table.rows else []
            yield from (f"### {table.title}", "", *lines) if lines else ()
        yield from rounding_lines(results, scale)
        yield from ("### Figures", "", ", ".join(f"[{name}](figures/{scale}/{name}.png)"
                                                 for name in figures[scale]), "")
        for name, claim in CLAIMS.items():
            rows = list(judged(results, name, scale))
            if rows:
                verdict, statistic, where = trained_verdict(results, name, scale)
                yield from (f"### {name} at {scale}", "", f"{claim.text} ({claim.source}). **{verdict}**", "",
                            cells("claimed", "data", "ours", "could have shown", "n", "paper", ""),
                            cells(*["---"] * 7))
                among = sum(bool(e and e.n) for _, _, e in rows)
                yield from (comparison_line(*row, among) for row in rows)
                yield ""
    for name, found in toy.get("claims", {}).items():
        parts = [part.split(" ", 1) for part in found["parts"]]
        yield from (f"## {name} in linear models", "", f"{found['claim']}. Judged by: {found['threshold']}.",
                    "", *(f"- {MARKS[mark]}: {part.strip()}" for mark, part in parts), "")


def rounding_lines(results, scale):
    """By how much two rows differ that only rounding separates."""
    rows = "directclr", "simclr-lowrank-diagonal"
    for dataset in results.datasets(scale, rows):
        found = {name: results.compare(accuracy("", metric, *rows), scale, dataset)
                 for metric, name in METRICS.items() if metric in ("knn200", "linear_top1")}
        if None not in found.values():
            differ = ", ".join(f"{difference(e)} ({name}, n = {e.n})" for name, e in found.items())
            same = f"`{rows[0]}` and `{rows[1]}` have the same loss and gradient."
            differ = f"On {title(dataset)} they differ by {differ}."
            yield from ("### What rounding alone does", "", f"{same} {differ}", "")


MARKS = {"yes": "as claimed", "NO": "**against it**", "-": "besides"}  # of toy_linear.py's parts


def paper_difference(c, dataset):
    """(difference, data set) that the papers print for a Comparison, or None."""
    both = [printed(dataset, *term) for term in c.terms]
    return (both[0][0] - both[1][0], both[0][1]) if both and None not in both else None


def comparison_line(dataset, c, e, among):
    """A line of the table behind a claim's verdict; among: how many differences the claim has."""
    paper, source = paper_difference(c, dataset) or (None, dataset)
    paper = number(paper, 2, sign=True) + (f" ({title(source)})" if source != dataset else "")
    if e is None or e.n == 0:
        return cells(c.text, title(dataset), "–", "–", 0, paper, "nothing to judge" if e else "not measured")
    return cells(c.text, title(dataset), difference(e), number(e.half(), 2), e.n, paper, outcome(c, e, among))


# ---------------------------------------------------------------------------------------------------- figures

def draw_forest(results, scale, datasets, _):
    """Every difference in accuracy with its interval, beside the papers'; C16 on an axis of its own."""
    compared = [c for c in COMPARISONS if c.terms]
    groups = [[c for c in compared if c.claim != "C16"], [c for c in compared if c.claim == "C16"]]
    figure, axes = panels(f"Paired differences in accuracy ({scale})", 2, len(datasets), 6.5,
                          0.11 * len(compared), [len(group) for group in groups])
    for line, group in zip(axes, groups):
        for axis, dataset in zip(line, datasets):
            for y, c in enumerate(group):
                if found := paper_difference(c, dataset):
                    axis.plot(found[0], y, "x" if found[1] == dataset else "+", color="black", markersize=5)
                if (e := results.compare(c, scale, dataset)) and e.n:
                    bar = e.half() if e.n > 1 else None
                    axis.errorbar(e.mean, y, xerr=bar, fmt="o", markersize=4, capsize=2, color="tab:blue",
                                  fillstyle="full" if e.n >= 3 else "none")
                for bound in {c.bound, -c.bound if c.within else c.bound} - {0.0}:
                    axis.plot(bound, y, "|", color="grey", markersize=9)
            axis.axvline(0, color="grey", linewidth=0.8)
            axis.set_yticks(range(len(group)), [f"{c.claim}  {c.text}" for c in group], fontsize=6)
            axis.set_ylim(len(group) - 0.4, -0.6)
            axis.set(title=title(dataset))
            axis.grid(axis="y", linewidth=0.2)
    for axis in axes[-1]:
        axis.set_xlabel("difference, points of accuracy")
    axis = axes[0, 0]
    axis.errorbar([], [], xerr=[], fmt="o", capsize=2, color="tab:blue",
                  label=f"{scale}, 95 % interval (hollow: n < 3)")
    for marker, label in (("x", "paper"), ("+", "paper, ImageNet")):
        axis.plot([], [], marker, color="black", label=label)
    axis.plot([], [], "|", color="grey", label="bound of ≥ and ≈")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return figure


FIGURES["forest"] = draw_forest, {row for c in COMPARISONS if c.terms for row in c.rows}


def main():
    parser = common.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of results (results)")
    parser.add_argument("-o", "--out", type=Path, default=Path("RESULTS.md"), help="(RESULTS.md)")
    parser.add_argument("--figures", action="store_true", help="draw figures/<scale>/ beside it instead")
    args = parser.parse_args()
    if not args.results.is_dir():
        raise common.UserError(f"--results {args.results} is no folder")
    results = Results(args.results)
    figures = {scale: [name for name, (_, rows) in FIGURES.items() if results.datasets(scale, rows)]
               for scale in results.scales()}
    if args.figures:
        for scale, names in figures.items():
            folder = args.out.parent / "figures" / scale
            folder.mkdir(parents=True, exist_ok=True)
            for name in names:
                draw, rows = FIGURES[name]
                figure = draw(results, scale, results.datasets(scale, rows), name)
                figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
            print(folder, *names)
    else:
        benches = [content for name, content in results.single.items() if name.startswith("bench-")]
        lines = page(results, results.single.get("toy.json", {}), benches, figures)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with common.atomic_write(args.out) as file:
            file.write("\n".join(lines).encode() + b"\n")
        print(args.out)
    for problem in results.problems:
        print(f"report.py: left out: {problem}", file=sys.stderr)
    sys.exit(1 if results.problems else 0)


if __name__ == "__main__":
    common.run(main)
