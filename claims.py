"""What the papers claim of trained networks, how each claim is judged, and the statistics for it.

report.py takes the results and prints what this says of them. The words: docs/claims.md, docs/method.md.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import plot_spectra as plot
import rows
from plot_spectra import get, ln_spectrum, measure

METRICS = {"knn200": "kNN-200", "knn5": "kNN-5", "linear_top1": "linear", "linear_top5": "linear, top-5"}
METRICS |= {"knn200_z": "kNN-200 of z", "subvector_linear_top1": "linear of z"}
RANKS = {"rank_1e-3": "rank", "rank_1e-2": "rank at 1e-2", "rank_1e-5": "rank at 1e-5"}
RANKS |= {"entropy_rank": "entropy rank", "rankme": "RankMe"}

LEAST = 3  # seeds that a verdict needs: of fewer the standard deviation is hardly known
LEVEL = 0.05  # two-sided, of intervals and refutations
UNDECIDED = "mini"  # decides nothing: with H = 0.03 of the papers' 11.7 nothing has time to collapse
EQUAL = 1.0  # points of accuracy that count as none for "≈": DirectCLR's own pairs differ by up to 0.9
AT_LEAST = 0.2  # points that may be missing for "≥", inclusive: LL's table 2 has a cell of -0.2
ROUNDING = 1 / 6  # variance of the difference of two whole numbers, such as ranks, by rounding
SAME_RANK = 5.0  # % of D: a rank that fell by less has not collapsed; seeds alone make 3
HARDLY = 1 / 3  # of h's change: a layer whose spectrum changes by less has "hardly" changed (C9)
VANISHED = 0.1  # of the usual ‖W^i‖²: a row above is not "near-zero" (C11)
PARTS = 4  # of the spectrum, each of which has to rise for "across all dimensions" (C15)
CUBE = 3.3  # power of the width that passes for n³, timings being noisy (C19)
FLAT = 0.3  # power of the depth L below which a cost does not grow with it (C19)
GROWS = 0.6  # and above which it does
ARCHS = {"resnet18": 20, "resnet34": 36, "resnet50": 53}  # L: the weights that WERank sums over


def document(name):
    """The text of a file in docs/."""
    return (Path(__file__).with_name("docs") / name).read_text(encoding="utf-8").rstrip()


# -------------------------------------------------------------------------------------------- parts of claims


class Part(NamedTuple):
    """One thing that a claim says: value(a result of each row, of one seed) is above `bound`, or (within)
    between -bound and bound; NaN where there is nothing to judge.

    pairs: tuples of rows; several are pooled, and so are the data sets. role: the claim holds if every part
    that "decides" is shown; of one that "may refute" only the opposite counts; others stand "beside".
    metrics: what the value is a difference of.
    """

    claim: str
    text: str
    pairs: list
    value: Callable
    bound: float = 0.0
    within: bool = False
    role: str = "decides"
    metrics: tuple = ()


def versus(claim, text, first, last, **how):
    """The Part of a difference between two statistics, each (row, then what `measure` takes)."""
    (a, *one), (b, *other) = first, last
    gap = lambda x, y: measure(x, *one) - measure(y, *other)
    return Part(claim, text, [(a, b)], gap, metrics=(one[0], other[0]), **how)


def accuracy(claim, metric, a, b, bound=0.0, within=False, role="decides"):
    """The Part of a metric: a's is above b's, not below by more than -bound, or (within) the same."""
    text = f"{METRICS[metric]}: {a} {'≈' if within else '≥' if bound else '>'} {b}"
    return versus(claim, text, (a, metric), (b, metric), bound=bound, within=within, role=role)


def pooled(claim, metric, text, pairs, bound=0.0, role="decides"):
    """The Part of the mean over pairs of rows and over data sets, and one for each pair, which may refute."""
    each = [accuracy(claim, metric, a, b, bound, role="may refute") for a, b in pairs]
    whole = each[0]._replace(text=f"{METRICS[metric]}, pooled: {text}", pairs=pairs, role=role)
    return [whole, *each] if role == "decides" else [whole]


def ranks(claim, layer, a, b):
    """The Parts that a's rank is above b's: at 1e-3 σ₁, and other ranks beside it."""
    for key, name in RANKS.items():
        role = "decides" if key == "rank_1e-3" else "beside"
        yield versus(claim, f"{name} of {layer}: {a} > {b}", (a, key, layer), (b, key, layer), role=role)


def lost(result, statistic="rank_1e-3"):
    """How much of h there is less at the end than at the start, in % of D."""
    less = measure(result["start"], statistic) - measure(result, statistic)
    less = -less if statistic == "dead" else less
    return 100 * less / len(result["spectra"]["h"])


def collapse(claim, bare, other, statistic="rank_1e-3", role="decides"):
    """The Parts of "h of bare collapses, that of other does not": each against its start, and both."""
    loss = lambda result: lost(result, statistic)
    gain = lambda result: -lost(result, statistic)
    name = "living coordinates" if statistic == "dead" else "rank"
    a, b = (bare, other) if statistic == "dead" else (other, bare)
    fell = f"{bare}, {name}: loss since the start, % of D, > {SAME_RANK:g}"
    stayed = f"{other}, {name}: gain since the start, % of D, > -{SAME_RANK:g}"
    more = f"{name.replace('living', 'dead')} of h: {a} > {b}"
    return [
        Part(claim, fell, [(bare,)], loss, SAME_RANK, role=role),
        Part(claim, stayed, [(other,)], gain, -SAME_RANK, role=role),
        versus(claim, more, (a, statistic), (b, statistic), role=role),
    ]


def change(first, last, floor=plot.FLOOR):
    """ln σ_k of a spectrum minus another's, for the k of both. What lies below `floor` of the smaller σ₁, by
    default rounding errors, is left out if it does in both, and else counts as that."""
    pair = [np.maximum(spectrum, 1e-30) for spectrum in (first, last)]  # where every h is 0, so are all σ
    pair = np.array([ln_spectrum(spectrum[: min(len(first), len(last))]) for spectrum in pair])
    limit = pair[:, 0].min() + np.log(floor)
    first, last = np.fmax(pair[:, (pair > limit).any(0)], limit)  # of a NaN, the limit
    return first - last


def rises(claim, kind, text, a, b, role="decides"):
    """The Parts that a's spectrum of h is above b's: the median change of ln σ_k, in each of PARTS parts of
    the k, so most of the σ_k of every part have to rise."""

    def gap(i, x, y):
        return np.median(np.array_split(change(x[kind]["h"], y[kind]["h"]), PARTS)[i])

    for i in range(PARTS):
        yield Part(claim, f"{text}, median of part {i + 1} of {PARTS}", [(a, b)], partial(gap, i), role=role)


def moved(a, b, *place, floor=plot.FLOOR):
    """Mean |Δ ln σ_k| between the spectra that two results have at a place."""
    return np.abs(change(get(a, *place), get(b, *place), floor)).mean()


def hardly(layer, floor=plot.FLOOR):
    """How far what a layer moved is below a third of what h moved."""
    at = lambda a, b, layer: moved(a, b, "spectra", layer, floor=floor)
    return lambda a, b: HARDLY * at(a, b, "h") - at(a, b, layer)


def hardly_weights(a, b):
    """The same of the encoder's last weight and the one before it."""
    names = [name for name in a["weight_spectra"] if not name.startswith("projector")]
    # what float32 weights and the square root of a Gram matrix's eigenvalues can tell
    before, last = (moved(a, b, "weight_spectra", name, floor=1e-7) for name in names[-2:])
    return HARDLY * last - before


def decorrelated(result, layer):
    """How far the mean |off-diagonal| / diagonal of a layer's covariance has fallen since the start."""
    return measure(result["start"], "offdiagonal", layer) - measure(result, "offdiagonal", layer)


def above_z(kind, result):
    """Mean over k of ln σ_k of the projector's hidden layer minus that of z."""
    return change(get(result, kind, "projector_hidden"), get(result, kind, "z")).mean()


def rises_above_z(kind, result):
    """How far that has risen since the start."""
    return above_z(kind, result) - above_z(kind, result["start"])


def row_norms(norm, result):
    """‖W^i‖² of the encoder's last layer; NaN if folded with a BatchNorm that is not there."""
    absent = norm == "folded" and not plot.has_batchnorm(result)
    return np.maximum(result["row_norms"][norm], np.nan if absent else 1e-30)


def dead_rows(norm, result):
    """ln of the living dimensions' median ‖W^i‖², bare or folded, over that of the dead; NaN without any."""
    norms = row_norms(norm, result)
    dead = plot.dead(result)
    if dead.all() or not dead.any():
        return np.nan
    return np.log(np.median(norms[~dead]) / np.median(norms[dead]))


def vanished_rows(norm, result):
    """The number of near-zero ‖W^i‖², bare or folded, over the rank that h has lost; NaN without collapse."""
    norms = row_norms(norm, result)
    if lost(result) <= SAME_RANK or np.isnan(norms).any():
        return np.nan
    return (norms < VANISHED * norms.mean()).sum() / (lost(result) / 100 * len(norms))


def sweep(name):
    """The row and those that differ from it in the penalty's weight alone."""
    own = rows.ROW[name]
    same = [row for row in rows.ROWS if row.command.split(" --reg-weight ")[0] == own.command]
    return [row.name for row in same if row.after == own.after]


BEST = {f"{row}, best weight": sweep(row) for row in ("noproj-lastlayer", "noproj-werank")}
BASES = ("simclr", "noproj", "directclr", "cs")
HEADS = ("simclr", "simclr-linear", "noproj", "directclr", "simclr-orthogonal", "simclr-diagonal")
HEADS += ("simclr-lowrank", "simclr-lowrank-diagonal")
CONSTANTS = {  # LL table 1: what is compared, and its pairs of rows
    "k = 0 > k = 1/√D": [(f"cs-d{d}-k0", f"cs-d{d}-kinv") for d in (200, 400, 480)],
    "k = 1/√D > k = 1": [(f"cs-d{d}-kinv", f"cs-d{d}-k1") for d in (200, 400, 480)],
    "d₀ = 480 > 400": [(f"cs-d480-{k}", f"cs-d400-{k}") for k in ("k0", "kinv", "k1")],
    "d₀ = 400 > 200": [(f"cs-d400-{k}", f"cs-d200-{k}") for k in ("k0", "kinv", "k1")],
}
LASTLAYER = [(f"{base}-lastlayer", base) for base in BASES]
WERANK = [(f"{base}-lastlayer", f"{base}-werank") for base in BASES]
SPARSEHEAD = [(f"{row}-sparsehead", row) for row in ("sh-simclr", "sh-byol", "sh-barlow")]
HEADED = [(row, f"{row}-sparsehead") for row in ("sh-simclr", "sh-resnet50")]
PAIR = [("simclr", "noproj")]
NOPROJ = [("noproj",)]
SIMCLR = [("simclr",)]
PENALTY = [("noproj-lastlayer",)]
NEAR_ZERO = -np.log(VANISHED)
MOST = 0.5
INSIDE = "simclr's projector, mean ln σ of hidden minus that of z"
OF_DEAD = "ln(‖W^i‖² of the living / of the dead)"
PENALISED = f"noproj-lastlayer, {OF_DEAD}: > ln 10"
OF_ALL = "near-zero ‖W^i‖² / lost rank of h"
OFF = "mean |off-diagonal| / diagonal of the covariance"
FALLS = f"simclr, {OFF}: z's falls"
ABOVE = "|Δ ln σ_k| of σ_k above 1e-3 σ₁"
PROBE_ON_Z = "subvector_linear_top1"
RATIO = "min_max_ratio"
SAME_LOSS = ("directclr", "simclr-lowrank-diagonal")
BY_ROUNDING = "linear: directclr ≈ simclr-lowrank-diagonal (the same loss: rounding alone)"
CLAIM_CELLS = [line.strip("| ").split(" | ") for line in document("claims.md").splitlines()]
CLAIMS = {name: about for name, *about in CLAIM_CELLS if name.startswith("C")}  # text, source, figure
CLAIM_PARTS = [
    *collapse("C6", "noproj", "simclr"),
    *collapse("C6", "sh-noproj", "sh-simclr", role="may refute"),
    *collapse("C6", "noproj", "simclr", "dead", "beside"),
    *list(ranks("C6", "h", "simclr", "noproj"))[1:],
    *ranks("C7", "h", "noproj", "barlow-noproj"),
    versus("C8", f"simclr, {OFF}: h > z", ("simclr", "offdiagonal", "h"), ("simclr", "offdiagonal", "z")),
    Part("C8", f"{FALLS} since the start", SIMCLR, lambda run: decorrelated(run, "z")),
    Part("C8", f"{FALLS} more than h's", SIMCLR, lambda x: decorrelated(x, "z") - decorrelated(x, "h")),
    Part("C9", "|Δ ln σ_k|, simclr to noproj: last block but one < 1/3 of h", PAIR, hardly("penultimate")),
    Part("C9", f"{ABOVE}: last block but one < 1/3 of h", PAIR, hardly("penultimate", 1e-3)),
    Part("C9", "... above 1e-5 σ₁", PAIR, hardly("penultimate", 1e-5), role="beside"),
    Part("C9", "|Δ ln σ_k|: last stage but one < 1/3 of h", PAIR, hardly("layer3"), role="may refute"),
    Part("C9", f"{ABOVE}: last stage but one < 1/3 of h", PAIR, hardly("layer3", 1e-3), role="may refute"),
    Part("C9", "... of the weights, last but one < 1/3 of the last", PAIR, hardly_weights, role="beside"),
    Part("C10", f"{INSIDE}: > 0", SIMCLR, partial(above_z, "spectra")),
    Part("C10", f"{INSIDE}: rises since the start", SIMCLR, partial(rises_above_z, "spectra")),
    Part("C10", "... not normalised", SIMCLR, partial(rises_above_z, "bare_spectra"), role="beside"),
    Part("C11", f"noproj, {OF_DEAD}, bare: > ln 10", NOPROJ, partial(dead_rows, "bare"), NEAR_ZERO),
    Part("C11", f"noproj, {OF_DEAD}, folded: > ln 10", NOPROJ, partial(dead_rows, "folded"), NEAR_ZERO),
    Part("C11", f"noproj, {OF_ALL}, bare: > 1/2", NOPROJ, partial(vanished_rows, "bare"), MOST),
    Part("C11", f"noproj, {OF_ALL}, folded: > 1/2", NOPROJ, partial(vanished_rows, "folded"), MOST),
    Part("C11", f"{PENALISED}, bare", PENALTY, partial(dead_rows, "bare"), NEAR_ZERO, role="may refute"),
    Part("C11", f"{PENALISED}, folded", PENALTY, partial(dead_rows, "folded"), NEAR_ZERO, role="beside"),
    *[part for text in CONSTANTS for part in pooled("C12", "knn200", text, CONSTANTS[text])],
    *[part for text in CONSTANTS for part in pooled("C12", "knn200_z", text, CONSTANTS[text], role="beside")],
    *pooled("C13", "knn200", "lastlayer > none, at LL's weight", LASTLAYER),
    accuracy("C13", "knn200", "noproj-lastlayer, best weight", "noproj", role="beside"),
    accuracy("C13", "knn200_z", "cs-lastlayer", "cs", role="beside"),
    accuracy("C14", "knn200", *BEST, -AT_LEAST),
    *pooled("C14", "knn200", "lastlayer ≥ WERank, at the tables' weights", WERANK, -AT_LEAST, "beside"),
    *[accuracy("C14", "knn200", *pair, -AT_LEAST, role="beside") for pair in WERANK],
    accuracy("C14", "knn200_z", "cs-lastlayer", "cs-werank", -AT_LEAST, role="beside"),
    *rises("C15", "bare_spectra", "bare ln σ_k of h", "noproj-lastlayer", "noproj"),
    *rises("C15", "spectra", "ln σ_k of h", "noproj-lastlayer", "noproj", role="beside"),
    *[part._replace(role="beside") for part in ranks("C15", "h", "noproj-lastlayer", "noproj")],
    accuracy("C16", "linear_top1", "directclr", "simclr-linear"),
    accuracy("C16", "linear_top1", "simclr-linear", "noproj"),
    accuracy("C16", "linear_top1", "simclr-orthogonal", "noproj", EQUAL, True),
    accuracy("C16", "linear_top1", "simclr-diagonal", "simclr-linear", EQUAL, True),
    accuracy("C16", "linear_top1", "simclr-lowrank", "simclr-lowrank-diagonal", EQUAL, True),
    *[accuracy("C16", "linear_top1", row, "directclr-random") for row in HEADS],
    versus("C16", "linear: directclr > its z", ("directclr", "linear_top1"), ("directclr", PROBE_ON_Z)),
    accuracy("C16", "linear_top1", *SAME_LOSS, EQUAL, True, "beside")._replace(text=BY_ROUNDING),
    *pooled("C17", "linear_top1", "SparseHead > none", SPARSEHEAD),
    *pooled("C17", "knn5", "SparseHead > none", SPARSEHEAD),
    *[part for row, sparse in HEADED for part in ranks("C18", "z", row, sparse)],
    *[part for row, sparse in HEADED for part in ranks("C18", "h", sparse, row)],
    *[versus("C18", f"{RATIO}: {b} > {a}", (b, RATIO, "z"), (a, RATIO, "z")) for a, b in HEADED],
]


# ------------------------------------------------------------------------------------------------- statistics

# Student's t: quantile 0.975 for 1 … 30 degrees of freedom, the last one for more.
T975 = (
    12.706, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788,
    2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639,
    2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


def outside(t, df):
    """P(|T| > t) of Student's T with df degrees of freedom: T = √df tan θ, θ's density ~ cos(θ)^(df-1)."""
    start = np.arctan(t / np.sqrt(df)) / (np.pi / 2)
    middles = (np.arange(10_000) + 0.5) / 10_000
    whole, tail = (np.cos((low + (1 - low) * middles) * np.pi / 2) ** (df - 1) for low in (0, start))
    return (1 - start) * tail.mean() / whole.mean()


class Estimate(NamedTuple):
    """n differences, their mean and its standard error (infinite for n = 1)."""

    n: int
    mean: float
    error: float

    def half(self):
        """Half the width of the mean's 95 % interval, which is also the least difference that it can show."""
        return T975[min(self.n - 1, 30) - 1] * self.error if self.n > 1 else np.inf

    def __str__(self):
        """+0.31 [-0.20, +0.82]"""
        half = self.half()
        interval = f" [{self.mean - half:+.2f}, {self.mean + half:+.2f}]" if np.isfinite(half) else ""
        return f"{self.mean:+.2f}{interval}" if self.n else "–"


def estimate(differences, rounding=0.0):
    """The Estimate of a list of differences, of which NaNs do not count; rounding: its variance in each."""
    found = [x for x in differences if not np.isnan(x)]
    error = ((np.var(found, ddof=1) + rounding) / len(found)) ** 0.5 if len(found) > 1 else np.inf
    return Estimate(len(found), float(np.mean(found or np.nan)), float(error))


def outcome(part, e, among=1):
    """What an Estimate (None: no run) says of a Part; refuted has to stand among so many of the claim's."""
    if e is None or e.n == 0:
        return "nothing to judge" if e else "not measured"
    margin = round(part.bound - abs(e.mean) if part.within else e.mean - part.bound, 9)
    agrees = margin > 0 or (margin == 0 and part.bound != 0)
    if e.n >= LEAST and agrees and margin >= round(e.half(), 9):
        return "shown"
    if e.n >= LEAST and margin < 0 and among * outside(-margin / max(e.error, 1e-30), e.n - 1) < LEVEL:
        return "refuted"
    return "undecided, as claimed" if agrees else "undecided, against it"


def cost(bench):
    """(verdict, statistic) of C19 by tests/bench.py, None without its rows. Holds if `lastlayer` costs less
    than WERank, neither grows faster than the width's cube, and from ResNet-18 to -34 WERank alone does."""
    found = {row["key"]: row["value"] for row in bench["rows"] if "key" in row}
    regs = ("lastlayer", "werank")
    both = lambda what, none=None: [found.get(f"penalty-{reg}-{what}", none) for reg in regs]
    times = {arch: both(arch) for arch in ARCHS if None not in both(arch)}
    powers = both("width-power", np.nan)
    if "resnet18" not in times or np.isnan(powers).any():
        return None
    layers = np.log(ARCHS["resnet34"] / ARCHS["resnet18"])
    depth = [np.log(deep / flat) / layers for flat, deep in zip(times["resnet18"], times.get("resnet34", ()))]
    said = "fails"
    if all(last < every for last, every in times.values()) and max(powers) < CUBE:
        if not depth:
            said = "undecided"
        elif depth[0] < FLAT and depth[1] > GROWS:
            said = "holds"
    text = [f"{arch} {last:.3g} and {every:.3g} ms" for arch, (last, every) in times.items()]
    text += ["powers of the width {:.1f} and {:.1f}".format(*powers)]
    text += ["powers of L {:.1f} and {:.1f}".format(*depth)] if depth else ["L not varied"]
    measured = [share for end in ("", "-resnet34", "-resnet50") if None not in (share := both(f"share{end}"))]
    noise = -min((min(share) for share in measured), default=0)
    text += ["of a step of a narrow encoder " + ", ".join("{:.0f} and {:.0f} %".format(*x) for x in measured)]
    text[-1] += f" (none costs less than nothing: {noise:.0f} % are noise)" if noise > 0 else ""
    return said, f"`lastlayer` and `werank` with gradient: {', '.join(text)}"
