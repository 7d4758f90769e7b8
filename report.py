"""Tables, verdicts and figures from results/, without training anything.

    python report.py                            RESULTS.md: every table, every claim with its verdict
    python report.py --figures                  figures/<scale>/: the papers' figures, redrawn
    python report.py --results other -o a.md    other results, another page

A result is results/<scale>/<dataset>/<row>/seed<k>.json. Rows are compared seed by seed: runs of one seed
share initial encoder, order of images and views. A file that is no such result is named and left out, and the
exit code is 1.
"""
import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import common
from plot_spectra import STYLES, draw_curve, draw_heat_map, draw_norms, ln_spectrum

SCALES = {"paper": "the papers' epochs and width", "short": "50 epochs, otherwise as the papers",
          "mini": "shows on a CPU that every row works"}  # from the most to the least telling
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10", "tiny-imagenet": "Tiny ImageNet",
         "imagenet": "ImageNet"}
METRICS = {"knn200": "kNN-200", "knn5": "kNN-5", "linear_top1": "linear",
           "subvector_linear_top1": "linear on z"}
QUESTION = ("simclr", "noproj", "noproj-lastlayer")  # what the question is about
EQUAL, AT_LEAST = 1.0, 0.5  # points of accuracy that count as none, for "≈" and for "at least as good"


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
WITHOUT = {"barlow": "Barlow Twins", "barlow-noproj": "Barlow Twins, no projector"}
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
          _with(WITHOUT, "werank", "lastlayer"), {}),
]


def paper_number(dataset, row, metric):
    """What the papers print for a row on a data set, or on ImageNet where they have no other, or None."""
    for table in TABLES:
        numbers = table.paper.get(dataset) or table.paper.get("imagenet") or {}
        if row in numbers and metric in table.metrics:
            return numbers[row][table.metrics.index(metric)]
    return None


class Claim(NamedTuple):
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
    -bound and bound. metric: that of which it is the difference, first row minus second, in points."""
    claim: str
    text: str
    rows: tuple
    value: Callable
    bound: float = 0.0
    within: bool = False
    metric: str | None = None


def accuracy(claim, metric, a, b, bound=0.0, within=False):
    sign = "≈" if within else "≥" if bound else ">"
    return Comparison(claim, f"{METRICS[metric]}: {a} {sign} {b}", (a, b), lambda x, y: x[metric] - y[metric],
                      bound, within, metric)


def fall(result):
    """ln(σ_mid / σ_1) of h: how far its spectrum has fallen half-way."""
    s = ln_spectrum(result, "h")
    return s[max(1, len(s) // 2) - 1] - s[0]


def change(a, b, layer):
    """ln σ_k of a minus that of b, for every k."""
    return ln_spectrum(a, layer) - ln_spectrum(b, layer)


def inside_projector(result):
    """Mean over the k that both have of ln σ_k of the hidden layer minus that of z."""
    hidden, z = ln_spectrum(result, "projector_hidden"), ln_spectrum(result, "z")
    shared = min(len(hidden), len(z))
    return np.mean(hidden[:shared] - z[:shared])


def weak_rows(kind):
    """-ln of the median ‖W^i‖² of the tenth of h's dimensions of least variance, relative to that of all."""
    def value(result):
        norm, variance = (np.array(result["row_norms"][key]) for key in (kind, "variance"))
        weakest = np.argsort(variance)[:max(1, len(variance) // 10)]
        return -np.log(max(np.median(norm[weakest]), 1e-30) / max(np.median(norm), 1e-30))
    return value


def rankme(layer):
    return lambda a, b: a["rankme"][layer] - b["rankme"][layer]


COMPARISONS = [
    *[Comparison(claim, f"{text} of h: {a} > {b}", (a, b), value)
      for claim, a, b in (("C6", "simclr", "noproj"), ("C7", "noproj", "barlow-noproj"))
      for text, value in (("RankMe", rankme("h")), ("ln σ_mid/σ₁", lambda x, y: fall(x) - fall(y)))],
    Comparison("C8", "simclr's mean abs(off-diagonal) / diagonal of the covariance: h > z", ("simclr",),
               lambda x: x["covariance"]["h"]["offdiagonal"] - x["covariance"]["z"]["offdiagonal"]),
    Comparison("C9", "mean abs(Δ ln σ) of simclr and noproj: h > last but one block", ("simclr", "noproj"),
               lambda x, y: np.abs(change(x, y, "h")).mean() - np.abs(change(x, y, "penultimate")).mean()),
    Comparison("C10", "mean ln σ in simclr's projector: hidden layer > z", ("simclr",), inside_projector),
    *[Comparison("C11", f"noproj's ‖W^i‖² ({kind}), median of the tenth of least variance over that of all: "
                 "-ln > ln 10", ("noproj",), weak_rows(kind), np.log(10)) for kind in ("bare", "folded")],
    *[accuracy("C12", "knn200", f"cs-d{d}-{a}", f"cs-d{d}-{b}")
      for d in (200, 400, 480) for a, b in (("k0", "kinv"), ("kinv", "k1"))],
    *[accuracy("C12", "knn200", f"cs-d{a}-{k}", f"cs-d{b}-{k}")
      for k in CONSTANTS for a, b in ((480, 400), (400, 200))],
    *[accuracy("C13", "knn200", f"{base}-lastlayer", base) for base in BASES],
    *[accuracy("C14", "knn200", f"{base}-lastlayer", f"{base}-werank", -AT_LEAST) for base in BASES],
    *[Comparison("C15", f"{name} over k of Δ ln σ_k of h: noproj-lastlayer > noproj",
                 ("noproj-lastlayer", "noproj"), lambda x, y, of=of: of(change(x, y, "h")))
      for name, of in (("mean", np.mean), ("least", np.min))],
    *[accuracy("C16", "linear_top1", *rows) for rows in (
        ("directclr", "simclr-linear"), ("simclr-linear", "noproj"),
        ("simclr-orthogonal", "noproj", EQUAL, True), ("simclr-diagonal", "simclr-linear", EQUAL, True),
        ("simclr-lowrank", "simclr-lowrank-diagonal", EQUAL, True),
        *((row, "directclr-random") for row in PROJECTORS if row != "directclr-random"))],
    Comparison("C16", "linear: directclr's h > its z", ("directclr",),
               lambda x: x["linear_top1"] - x["subvector_linear_top1"]),
    *[accuracy("C17", metric, f"{row}-sparsehead", row)
      for row in METHODS for metric in ("linear_top1", "knn5")],
    *[Comparison("C18", f"{text}: {row}-sparsehead {sign} {row}", (f"{row}-sparsehead", row), value)
      for row in (*METHODS, "sh-resnet50") for text, sign, value in (
          ("RankMe of z", "<", lambda x, y: rankme("z")(y, x)), ("RankMe of h", ">", rankme("h")),
          ("min-max ratio of z", ">", lambda x, y: x["min_max_ratio"]["z"] - y["min_max_ratio"]["z"]))],
]


# ------------------------------------------------------------------------------------------------- statistics

def t_quantile(p, df):
    """Quantile p >= 0.5 of Student's t: with t = √df tan θ its density is that of cos^(df - 1) θ."""
    edges = np.linspace(0, np.pi / 2, 1_000_001)
    mass = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (df - 1))
    return float(np.sqrt(df) * np.tan(np.interp(p - 0.5, mass / mass[-1] / 2, edges[1:])))


class Estimate(NamedTuple):
    """n paired differences: their mean and the half-width of its 95 % interval, infinite for n = 1, which is
    the smallest difference that such pairs could have shown (two-sided 5 %)."""
    n: int
    mean: float
    half: float

    def judge(self, bound=0.0, within=False):
        """holds, fails or undecided: on which side of what is claimed the whole interval lies."""
        low, high = self.mean - self.half, self.mean + self.half
        agrees = -bound < low and high < bound if within else low > bound
        against = low > bound or high < -bound if within else high < bound
        return "undecided" if self.n < 3 or not (agrees or against) else "holds" if agrees else "fails"

    def as_claimed(self, bound=0.0, within=False):
        return abs(self.mean) < bound if within else self.mean > bound


def estimate(differences):
    """The Estimate of a list of paired differences, None of an empty one."""
    n, half = len(differences), np.inf
    if n > 1:
        half = t_quantile(0.975, n - 1) * np.std(differences, ddof=1) / n ** 0.5
    return Estimate(n, float(np.mean(differences)), float(half)) if n else None


# ---------------------------------------------------------------------------------------------------- results

class Results:
    """runs: {(scale, dataset, row): {seed: what result.json holds}}; problems: files left out, and why."""

    def __init__(self, folder):
        self.runs, self.problems = {}, []
        for path in sorted(folder.glob("*/*/*/*.json")):
            scale, dataset, row, seed = path.relative_to(folder).with_suffix("").parts
            try:
                result = common.read_json(path)
                _check(result, scale, dataset, seed)
            except (KeyError, TypeError, ValueError) as error:
                why = str(error) if isinstance(error, common.UserError) else f"is no result ({error!r})"
                self.problems.append(why if str(path) in why else f"{path} {why}")
            else:
                self.runs.setdefault((scale, dataset, row), {})[int(seed[4:])] = result
        self._leave_out_other_settings(folder)

    def _leave_out_other_settings(self, folder):
        """Runs of a scale, data set and recipe are comparable if trained alike: as most of them."""
        recipes = {}
        for (scale, dataset, row), seeds in self.runs.items():
            members = recipes.setdefault((scale, dataset, row.startswith("sh-")), [])
            members += [(row, seed, setting(result)) for seed, result in seeds.items()]
        for (scale, dataset, _), members in recipes.items():
            usual = Counter(found for _, _, found in members).most_common(1)[0][0]
            for row, seed, found in members:
                if found != usual:
                    path = folder / scale / dataset / row / f"seed{seed}.json"
                    self.problems.append(f"{path} has {found}, most others {usual}")
                    del self.runs[scale, dataset, row][seed]

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
        """The Estimate of a Comparison from the seeds that all its rows have, None without any."""
        sides, values = [self.of(scale, dataset, row) for row in comparison.rows], []
        for seed in sorted(set.intersection(*map(set, sides))):
            value = comparison.value(*(side[seed] for side in sides))
            values += [float(value)] if np.isfinite(value) else []
        return estimate(values)


def _check(result, scale, dataset, seed):
    """Refuses what is no result of its place: KeyError, TypeError, ValueError."""
    arguments = result["config"]["arguments"]
    if scale not in SCALES:
        raise common.UserError(f"is at the scale {scale}, none of {', '.join(SCALES)}")
    if seed != f"seed{arguments['seed']}" or Path(arguments["dataset"]).stem != dataset:
        raise common.UserError(f"holds seed {arguments['seed']} on {arguments['dataset']}")
    numbers = [result[key] for key in ("knn200", "knn5", "linear_top1", "seconds")]
    for layer in ("h", "z", "penultimate"):
        numbers += [result["rankme"][layer], result["min_max_ratio"][layer], *result["spectra"][layer],
                    result["covariance"][layer]["offdiagonal"]]
    numbers += [x for key in ("bare", "folded", "variance") for x in result["row_norms"][key]]
    if not all(isinstance(x, int | float) and np.isfinite(x) for x in numbers):
        raise common.UserError("holds something that is no number")
    setting(result), device(result)


def setting(result):
    a = result["config"]["arguments"]
    images = f"{a['train_size']:,} images" if a["train_size"] else "all images"
    return f"{images}, width {a['width']}, {a['epochs']} epochs, batch {a['batch_size']}"


def device(result):
    return f"{result['config']['device']}, torch {result['config']['torch']}"


# --------------------------------------------------------------------------------------------------- the page

def number(value, digits=1, sign=False):
    missing = value is None or not np.isfinite(value)
    return "–" if missing else f"{value:{'+' if sign else ''}.{digits}f}"


def title(dataset):
    return NAMES.get(dataset, dataset)


def cells(*values):
    """A line of a Markdown table."""
    return "| " + " | ".join(str(value).replace("|", "\\|") for value in values) + " |"


def mean_std(values):
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread} ({len(values)})" if values else "not measured"


def difference(e):
    """Mean and interval: +0.31 [-0.20, +0.82]."""
    interval = f" [{e.mean - e.half:+.2f}, {e.mean + e.half:+.2f}]" if np.isfinite(e.half) else ""
    return f"{e.mean:+.2f}{interval}"


def count(n, what):
    return f"{n} {what}{'' if n == 1 else 's'}"


def table_lines(results, table, scale):
    """A table at a scale, by data set; the paper's data sets without any run are named at the end."""
    datasets = results.datasets(scale, table.rows)
    for dataset in datasets:
        yield from (f"**{title(dataset)}**", "")
        printed = "paper, ImageNet" if "imagenet" in table.paper else "paper"
        columns = [x for metric in table.metrics for x in (METRICS[metric], printed, "difference")]
        columns = ["row", "", *columns, "RankMe h", "RankMe z", "minutes"]
        yield from (cells(*columns), cells(*["---"] * len(columns)))
        for row, label in table.rows.items():
            runs, found = list(results.of(scale, dataset, row).values()), []
            for metric in table.metrics:
                ours, paper = [r[metric] for r in runs if metric in r], paper_number(dataset, row, metric)
                gap = np.mean(ours) - paper if ours and paper is not None else None
                found += [mean_std(ours), number(paper), number(gap, sign=True)]
            found += [mean_std([r["rankme"][layer] for r in runs]) if runs else "–" for layer in "hz"]
            minutes = number(np.mean([r["seconds"] for r in runs]) / 60) if runs else "–"
            yield cells(f"`{row}`", label, *found, minutes)
        runs = [r for row in table.rows for r in results.of(scale, dataset, row).values()]
        ways = Counter(f"{setting(r)}; {device(r)}" for r in runs)
        yield from ("", f"`make {table.target} SCALE={scale} DATASETS={dataset}`. " + " ".join(
            f"{count(n, 'run')}: {way}." for way, n in sorted(ways.items())), "")
    if missing := [NAMES[d] for d in table.paper if d not in (*datasets, "imagenet")]:
        yield from (f"Not measured at this scale: {', '.join(missing)}.", "")


def judged(results, claim, scale):
    """[(dataset, comparison, Estimate or None)] of a claim, for the data sets that have any of it."""
    for dataset in results.datasets(scale):
        found = [(dataset, c, results.compare(c, scale, dataset)) for c in COMPARISONS if c.claim == claim]
        yield from found if any(e for _, _, e in found) else ()


def claim_scale(results, claim):
    """The scale to judge a claim at: the most telling one with three pairs, else with any; None without."""
    pairs = {scale: max((e.n for _, _, e in judged(results, claim, scale) if e), default=0)
             for scale in results.scales()}
    return next((scale for least in (3, 1) for scale, n in pairs.items() if n >= least), None)


def trained_verdict(results, claim):
    """(verdict, statistic, measured at) of one of C6 … C18."""
    scale = claim_scale(results, claim)
    if scale is None:
        return "no data", "–", "–"
    found = list(judged(results, claim, scale))
    measured = [(e, e.judge(c.bound, c.within), e.as_claimed(c.bound, c.within)) for _, c, e in found if e]
    verdicts, n = Counter(verdict for _, verdict, _ in measured), {e.n for e, _, _ in measured}
    if scale == "mini":
        verdict = "undecided (scale)"
    elif verdicts["fails"]:
        verdict = "fails"
    else:
        verdict = "holds" if verdicts["holds"] == len(found) else "undecided"
    agree = sum(seen for _, _, seen in measured)
    statistic = (f"{agree} of {count(len(measured), 'difference')} as claimed; intervals: "
                 f"{verdicts['holds']} for it, {verdicts['fails']} against it")
    if len(measured) == 1:
        statistic = f"{difference(measured[0][0])}, {'as claimed' if measured[0][2] else 'against it'}"
    if len(measured) < len(found):
        statistic += f"; {len(found) - len(measured)} not measured"
    datasets = ", ".join(dict.fromkeys(title(d) for d, _, _ in found))
    return verdict, statistic, f"`{scale}`, {datasets}, n = {'–'.join(map(str, sorted({min(n), max(n)})))}"


def toy_verdict(toy, claim):
    """(verdict, statistic, measured at) of one of C1 … C5, which toy_linear.py has judged."""
    if claim not in toy.get("claims", {}):
        return "no data", "–", "–"
    found, settings = toy["claims"][claim], toy["settings"]
    marks = Counter(part.split(" ", 1)[0] for part in found["parts"])
    decided = settings["seeds"] >= 3 and not settings["quick"]
    verdict = "undecided" if not decided else "holds" if found["holds"] else "fails"
    return (verdict, f"{marks['yes']} of {count(marks['yes'] + marks['NO'], 'part')} as claimed",
            f"linear models, {settings['steps']:,} steps, n = {settings['seeds']}")


def cost_verdict(benches):
    """(verdict, statistic, measured at) of C19 from results/bench-*.json: holds if `lastlayer` is cheaper."""
    texts, holds = [], []
    for bench in benches:
        found = {row["what"]: row["value"] for row in bench["rows"]}
        alone = [found.get(f"{reg} with its gradient, alone, width 64") for reg in ("lastlayer", "werank")]
        if None not in alone:
            steps = [f"a {what} {1e3 * x:.4g} ms" for what, x in found.items() if "with penalty" in what]
            ratio = (f"`werank` costs {alone[1] / alone[0]:.1f} times `lastlayer`: {alone[1]:.3g} and "
                     f"{alone[0]:.3g} ms with its gradient, alone, ResNet-18 of width 64")
            texts.append("; ".join([ratio, *steps]))
            holds.append(alone[0] < alone[1])
    return (("holds" if all(holds) else "fails", " / ".join(texts), " / ".join(b["device"] for b in benches))
            if holds else ("no data", "–", "–"))


def opening(results):
    """Does a last-layer penalty replace the projector? Three sentences, from the most telling scale."""
    def pairs(row):
        return results.compare(accuracy("", "knn200", "noproj-lastlayer", row), scale, dataset)

    for least, scale in [(least, scale) for least in (3, 1) for scale in results.scales()]:
        for dataset in results.datasets(scale):
            gap, gain = pairs("simclr"), pairs("noproj")
            if not gap or not gain or min(gap.n, gain.n) < least:
                continue
            runs = [list(results.of(scale, dataset, row).values()) for row in QUESTION]
            means = [mean_std([r["knn200"] for r in side]) for side in runs]
            yield (f"At scale `{scale}` ({setting(runs[0][0])}) on {title(dataset)} SimCLR's kNN-200 is "
                   f"{means[0]} with its projector, {means[1]} without, and {means[2]} without but with the "
                   "last-layer penalty.")
            yield (f"The penalty moves SimCLR without projector by {difference(gain)} points, and "
                   f"{difference(gap)} points separate it from SimCLR with projector.")
            within = f", to within {AT_LEAST} points"
            yield ("That is no verdict: so narrow a network, trained so briefly, says nothing about the "
                   "papers' setting, and whether the penalty replaces the projector is **undecided** until "
                   "`short` or `paper` is measured." if scale == "mini" else
                   {"holds": f"So the penalty **replaces** the projector{within}.",
                    "fails": f"So the penalty does **not replace** the projector{within}.",
                    "undecided": "So whether the penalty replaces the projector is **undecided**."
                    }[gap.judge(-AT_LEAST)])
            return
    yield "Nothing that answers it has been measured yet: `make table2` does."


METHOD = f"""Made by `make report` from the JSON files in `results/`, nothing by hand. ± is the standard
deviation over seeds, their number in brackets. Differences are paired by seed: runs of one seed share initial
encoder, order of images and views. Intervals are Student's, of 95 %; "could have shown" is the smallest
difference that the pairs could have shown (two-sided 5 %). A claim holds if all its intervals lie on its
side, fails if one lies on the other, and is undecided otherwise, and with fewer than 3 pairs. "≈" means
within {EQUAL:g} point of accuracy, "≥" within {AT_LEAST:g}. Intervals are not corrected for their number:
where nothing differs, one in 20 excludes 0. Minutes are those of a run's training. C6–C18 are not decided at
scale `mini`, whatever its numbers look like."""


def page(results, toy, benches, figures):
    """RESULTS.md, line by line. figures: names of those that can be drawn, by scale."""
    yield from ("# Results", "", "**Does a penalty on the last layer's weights replace the projector?** "
                + " ".join(opening(results)), "", METHOD, "")
    if results.problems:
        yield from ("Left out:", "", *(f"- {problem}" for problem in results.problems), "")
    columns = ("", "claim", "source", "verdict", "statistic", "measured at", "figure")
    yield from ("## Claims", "", cells(*columns), cells(*["---"] * len(columns)))
    for index, (name, claim) in enumerate(CLAIMS.items(), 1):
        verdict, statistic, where = (toy_verdict(toy, name) if index < 6 else cost_verdict(benches)
                                     if index == 19 else trained_verdict(results, name))
        scale, link = claim_scale(results, name), "–"
        if scale:
            statistic += f" ([all](#{name.lower()}-at-{scale}))"
            if claim.figure in figures[scale]:
                link = f"[{claim.figure}](figures/{scale}/{claim.figure}.png)"
        elif claim.figure.startswith("toy-"):
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
        own = Table("Rows of no paper", "…", ("knn200", "linear_top1"), dict.fromkeys(others, ""), {})
        for table in (*TABLES, own):
            lines = list(table_lines(results, table, scale)) if table.rows else []
            yield from (f"### {table.title}", "", *lines) if lines else ()
        yield from ("### Figures", "", ", ".join(f"[{name}](figures/{scale}/{name}.png)"
                                                 for name in figures[scale]), "")
        for name, claim in CLAIMS.items():
            rows = list(judged(results, name, scale))
            if rows:
                yield from (f"### {name} at {scale}", "", f"{claim.text} ({claim.source})", "",
                            cells("claimed", "data", "ours", "could have shown", "n", "paper", ""),
                            cells(*["---"] * 7))
                yield from (comparison_line(*row) for row in rows)
                yield ""
    for name, found in toy.get("claims", {}).items():
        yield from (f"## {name} in linear models", "", f"{found['claim']}. Judged by: {found['threshold']}.",
                    "", *(f"- {part}" for part in found["parts"]), "")


def comparison_line(dataset, c, e):
    printed = [paper_number(dataset, row, c.metric) for row in c.rows] if c.metric else [None]
    paper = number(None if None in printed else printed[0] - printed[1], 2, sign=True)
    if e is None:
        return cells(c.text, title(dataset), "–", "–", 0, paper, "not measured")
    verdict = e.judge(c.bound, c.within)
    seen = ", as claimed" if e.as_claimed(c.bound, c.within) else ", against it"
    return cells(c.text, title(dataset), difference(e), number(e.half, 2), e.n, paper,
                 verdict + seen * (verdict == "undecided"))


# ---------------------------------------------------------------------------------------------------- figures

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
        f"({letter}) {PROJECTORS[row]}": [("directclr", "h"), (row, "h")]
        for letter, row in zip("abc", ("simclr", "simclr-linear", "noproj"))}),
    "sparsehead-1": ("SparseHead figure 1: h and z", {"(a) identity": [("sh-noproj", "h")]} | {
        head: [(row, "h"), (row, "z")] for head, row in (
            ("(b) linear", "sh-simclr-linear"), ("(c) MLP", "sh-simclr"),
            ("(d) MLP, ResNet-50", "sh-resnet50"))}),
    "sparsehead-3": ("SparseHead figure 3: with and without SparseHead", {
        f"{name}, {layer}": [(row, layer), (f"{row}-sparsehead", layer)]
        for row, name in (("sh-simclr", "ResNet-18"), ("sh-resnet50", "ResNet-50")) for layer in "hz"}),
}


def panels(heading, rows, columns, width=4.2, height=3.2, sharey=True):
    figure = Figure(figsize=(max(width * columns, 5.5), height * rows + 0.4), layout="constrained")
    figure.suptitle(heading, fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


def draw_spectra(results, scale, datasets, name):
    heading, parts = SPECTRA[name]
    figure, axes = panels(f"{heading} ({scale})", len(datasets), len(parts))
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
    figure, axes = panels(f"LL figure 2: covariance of simclr ({scale})", len(datasets), 2, 4.6, 4.2)
    for line, dataset in zip(axes, datasets):
        seed, result = next(iter(results.of(scale, dataset, "simclr").items()))
        for axis, layer in zip(line, "zh"):
            image = draw_heat_map(axis, result, layer, f"{title(dataset)}, seed {seed}: {layer}")
    figure.colorbar(image, ax=axes, label=r"$|C_{ij}|$ / mean $C_{ii}$")
    return figure


def draw_sweep(results, scale, datasets, _):
    figure, axes = panels(f"DirectCLR figure 12: size of the subvector ({scale})", 1, len(datasets))
    for axis, dataset in zip(axes[0], datasets):
        points = []
        for row in ("directclr", *SWEEP):
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
    runs = []
    for row in QUESTION:
        for seed, result in list(results.of(scale, datasets[0], row).items())[:1]:
            runs.append((f"{row} ({scale}, {title(datasets[0])}, seed {seed})", result))
    return draw_norms(runs)


def draw_forest(results, scale, datasets, _):
    compared = [c for c in COMPARISONS if c.metric]
    height = 0.21 * len(compared)
    figure, axes = panels(f"Paired differences in accuracy ({scale})", 1, len(datasets), 6.5, height)
    for axis, dataset in zip(axes[0], datasets):
        for y, c in enumerate(compared):
            printed = [paper_number(dataset, row, c.metric) for row in c.rows]
            if None not in printed:
                axis.plot(printed[0] - printed[1], y, "x", color="black", markersize=5)
            if e := results.compare(c, scale, dataset):
                half = e.half if np.isfinite(e.half) else None
                axis.errorbar(e.mean, y, xerr=half, fmt="o", markersize=4, capsize=2, color="tab:blue")
        axis.plot([], [], "x", color="black", label="paper")
        axis.errorbar([], [], xerr=[], fmt="o", capsize=2, color="tab:blue", label=f"{scale}, 95 % interval")
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_yticks(range(len(compared)), [f"{c.claim}  {c.text}" for c in compared], fontsize=6)
        axis.set(xlabel="difference, points of accuracy", title=title(dataset))
        axis.grid(axis="y", linewidth=0.2)
        axis.legend(fontsize=7)
    axes[0, 0].invert_yaxis()
    return figure


FIGURES = {  # function, rows any of which it needs
    **{name: (draw_spectra, {row for curves in parts.values() for row, _ in curves})
       for name, (_, parts) in SPECTRA.items()},
    "ll-2": (draw_heat_maps, {"simclr"}), "directclr-12": (draw_sweep, set(SWEEP)),
    "row-norms": (draw_row_norms, set(QUESTION)),
    "forest": (draw_forest, {row for c in COMPARISONS if c.metric for row in c.rows})}


def main():
    parser = common.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of results (results)")
    parser.add_argument("-o", "--out", type=Path, default=Path("RESULTS.md"), help="(RESULTS.md)")
    parser.add_argument("--figures", action="store_true", help="draw figures/<scale>/ beside it instead")
    args = parser.parse_args()
    if not args.results.is_dir():
        raise common.UserError(f"--results {args.results} is no folder")
    results, single = Results(args.results), {}
    for path in sorted(args.results.glob("*.json")):
        try:
            single[path.name] = common.read_json(path)
        except common.UserError as error:
            results.problems.append(str(error))
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
        benches = [content for name, content in single.items() if name.startswith("bench-")]
        lines = page(results, single.get("toy.json", {}), benches, figures)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with common.atomic_write(args.out) as file:
            file.write("\n".join(lines).encode() + b"\n")
        print(args.out)
    for problem in results.problems:
        print(f"report.py: left out: {problem}", file=sys.stderr)
    sys.exit(1 if results.problems else 0)


if __name__ == "__main__":
    common.run(main)
