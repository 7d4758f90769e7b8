"""Tables, verdicts and figures from results/, without training anything.

    python report.py                                 RESULTS.md: every table, every claim with its verdicts
    python report.py --figures                       figures/<scale>/: the papers' figures, redrawn
    python report.py --table table2 --scale short    a table, in the terminal
    python report.py --results other -o a.md         other results, another page

A result is results/<scale>/<dataset>/<row>/seed<k>.json. Rows are compared seed by seed: runs of one seed
share initial encoder, order of images and views. A file that is no such result, or not of the row and scale
that it lies in, is named and left out, and the exit code is 1.
"""

import sys
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import common
import numpy as np

import claims
import plot_spectra as plot
import rows
from claims import BEST, CLAIM_PARTS, CLAIMS, LEAST, METRICS, UNDECIDED, document
from plot_spectra import get, measure, number, title

COLUMNS = {  # of a table; of others kNN-200 and linear, and of SparseHead's on ImageNet top-1 and top-5
    "table1": ("knn200", "knn200_z"),
    "directclr-tables": ("linear_top1", "subvector_linear_top1"),
    "sparsehead-table": ("linear_top1", "knn5"),
}
# Of every table, and of SparseHead's besides
INSIDE = {"rank h": ("rank_1e-3", "h"), "dead h": ("dead", "h")}
INSIDE |= {"RankMe h": ("rankme", "h"), "RankMe z": ("rankme", "z")}
RATIOS = {"min-max h": ("min_max_ratio", "h"), "min-max z": ("min_max_ratio", "z")}

# ---------------------------------------------------------------------------------------------------- results


class Results:
    """runs: {(scale, dataset, row): {seed: what result.json holds}}, an alias's under the row that it is.
    toy: {claim: what toy*.json say}. costs: {device: what bench-*.json say of C19}. problems: files left out,
    and why."""

    def __init__(self, folder):
        self.runs = {}
        self.toy = {}
        self.costs = {}
        self.problems = []
        for path in sorted(folder.rglob("*.json")):
            try:
                content = common.read_json(path)
                with common.refusing(f"{path} is no result", common.ODD):
                    self.take(content, path.relative_to(folder).with_suffix("").parts)
            except common.UserError as error:
                self.problems.append(str(error))

    def take(self, content, parts):
        """Adds what a file at this place holds, if it is what it should be."""
        if len(parts) == 4:
            seed = check(content, *parts)
            row = rows.run_of(parts[2])
            runs = self.runs.setdefault((*parts[:2], row), {})
            if seed not in runs or row == parts[2]:
                runs[seed] = content
        elif len(parts) == 1 and parts[0].startswith("toy"):
            each = content["claims"].items()
            found = {name: claim | {"settings": content["settings"]} for name, claim in each}
            list(toy_paragraphs(found))
            self.toy = dict(sorted((self.toy | found).items()))
        elif len(parts) == 1 and parts[0].startswith("bench-"):
            self.costs[content["device"]] = claims.cost(content)
        else:
            raise common.UserError("is not at <scale>/<dataset>/<row>/seed<k>.json")

    def of(self, scale, dataset, row):
        """{seed: result} of a row, in the order of seeds; of one of BEST that of the best of its rows."""
        row = self.best(scale, dataset, BEST[row]) if row in BEST else rows.run_of(row)
        return dict(sorted(self.runs.get((scale, dataset, row), {}).items()))

    def all(self, scale, dataset, names):
        """The results of some rows, row by row."""
        return [run for name in names for run in self.of(scale, dataset, name).values()]

    def best(self, scale, dataset, names):
        """The row with the highest mean kNN-200 over the seeds that all have; None unless these are LEAST."""
        runs = self.together(scale, dataset, names).values()
        accuracies = [[run["knn200"] for run in of_seed] for of_seed in runs]
        return names[np.mean(accuracies, 0).argmax()] if len(runs) >= LEAST else None

    def scales(self):
        """Those with a result, from the most to the least telling."""
        return [scale for scale in rows.SCALES if any(scale == found for found, _, _ in self.runs)]

    def datasets(self, scale, names):
        """Data sets with a run of any of these rows at a scale, known ones first."""
        others = sorted({dataset for _, dataset, _ in self.runs} - set(rows.DATASETS))
        return [dataset for dataset in (*rows.DATASETS, *others) if self.all(scale, dataset, names)]

    def together(self, scale, dataset, names):
        """{seed: a result of each row} of the seeds that all rows have on one kind of device."""
        sides = [self.of(scale, dataset, name) for name in names]
        found = {seed: [side[seed] for side in sides] for seed in sorted(set.intersection(*map(set, sides)))}
        return {seed: runs for seed, runs in found.items() if len(set(map(source_of_chance, runs))) == 1}

    def compare(self, part, scale, datasets):
        """The Estimate of a Part, None without any run. Pooled: of means over pairs and data sets, seed by
        seed, as those of one seed are not independent; None unless all pairs share a seed."""
        cells = [self.values(part, scale, dataset, pair) for dataset in datasets for pair in part.pairs]
        seeds = sorted(set.intersection(*map(set, cells))) if cells else []
        if not seeds:
            return None
        whole = all(type(value) is int for cell in cells for value in cell.values())
        means = [np.mean([cell[seed] for cell in cells]) for seed in seeds]
        return claims.estimate(means, claims.ROUNDING if whole else 0)

    def values(self, part, scale, dataset, pair):
        """{seed: a Part's value for the pair's runs of that seed}."""
        runs = self.together(scale, dataset, pair).items()
        found = {seed: plot.attempt(part.value, *of_seed) for seed, of_seed in runs}
        return {seed: value for seed, value in found.items() if value is not None}

    def groups(self, part, scale, datasets):
        """Lists of the data sets that a Part is judged on: one each, of a pooled one all that share LEAST
        seeds, from the first on. Those with fewer count only where there is no other."""
        pooled = len(part.pairs) > 1
        kept = []
        for dataset in datasets:
            e = self.compare(part, scale, [*kept, dataset] if pooled else [dataset])
            kept += [dataset] if e and (e.n >= LEAST or not e.n) else []
        kept = kept or [one for one in datasets if self.compare(part, scale, [one])] or datasets[:1]
        return [kept] if pooled else [[dataset] for dataset in kept]


@cache
def judged(results, claim, scale):
    """[(data sets, Part, Estimate or None, outcome)] of a claim. A refutation has to stand among all parts
    that have a say and LEAST seeds."""
    parts = [part for part in CLAIM_PARTS if part.claim == claim]
    datasets = results.datasets(scale, {row for part in parts for pair in part.pairs for row in pair})
    groups = [(group, part) for part in parts for group in results.groups(part, scale, datasets)]
    found = [(group, part, results.compare(part, scale, group)) for group, part in groups]
    among = sum(bool(e and e.n >= LEAST) for _, part, e in found if part.role != "beside")
    return [(group, part, e, claims.outcome(part, e, max(1, among))) for group, part, e in found]


def source_of_chance(result):
    """What decides with the seed which images and views a run sees: CPU or which GPU, and torch's version."""
    config = result["config"]
    device = "CPU" if " CPU, " in config["device"] else config["device"]
    return device, *(version.split("+")[0] for version in config["torch"].split())


def check(result, scale, dataset, row, seed):
    """The seed of a result that is whole and of its place; else an error that says what is wrong."""
    config, spectra, norms = (result[key] for key in ("config", "spectra", "row_norms"))
    arguments = config["arguments"]
    held = arguments["seed"]
    require(scale in rows.SCALES, f"is at the scale {scale}, none of {', '.join(rows.SCALES)}")
    placed = type(held) is int and seed == f"seed{held}" and Path(arguments["dataset"]).stem == dataset
    require(placed, f"holds seed {held} of {arguments['dataset']}")
    require(all(isinstance(config[key], str) for key in ("device", "torch", "name")), "lacks its origin")
    why = rows.mismatch(config, row, scale, dataset)
    require(not why, f"is not {row} at scale {scale}: {why}")
    for key in ("knn200", "knn200_z", "knn5", "linear_top1", *sorted(set(METRICS) & set(result))):
        require(is_number(result[key], 0, 100), f"has no valid {key}")
    for key in ("seconds", "images_per_second"):
        require(is_number(result[key], 1e-9), f"has no valid {key}")
    for key in sorted(set(result) - {"config"}):
        require(holds_numbers(result[key]), f"has no valid {key}")
    for layer in sorted({"h", "z", "penultimate"} | {layer for layer in spectra if spectra[layer]}):
        found = [*(spectra[layer] or ()), result["rankme"][layer], result["min_max_ratio"][layer]]
        good = len(found) > 2 and all(is_number(x, 0) for x in found)
        require(good, f"has no valid spectrum, rankme or min_max_ratio of {layer}")
        block = result["covariance"][layer]["block"]
        require({len(line) for line in block} == {len(block)}, f"has no square covariance of {layer}")
    setting(result)  # what it is trained on can be said
    for state in (result, result["start"]):
        last_weight([state])
        for statistic in (*THRESHOLDS, "dead", "knn200"):
            measure(state, statistic)
    plot.attempt(plot.over_time, result)  # which needs SGD's horizon
    for key in ("bare", "folded", "variance"):
        require(all(is_number(x, 0) for x in norms[key]), f"has no valid row_norms, {key}")
    vectors = (spectra["h"], result["bare_spectra"]["h"], spectra["penultimate"], *norms.values())
    lengths = set(map(len, vectors))
    require(len(lengths) == 1, f"has spectra and row_norms of {sorted(lengths)} dimensions")
    return held


def holds_numbers(value):
    """Whether there are only finite numbers and nulls in nested lists and dicts, of which none is empty but
    the list of dead coordinates."""
    if isinstance(value, dict):
        value = [of_key for key, of_key in value.items() if key != "dead" or of_key != []]
    if isinstance(value, list):
        return bool(value) and all(map(holds_numbers, value))
    return value is None or is_number(value)


def require(condition, otherwise):
    """UserError(otherwise) unless the condition holds."""
    if not condition:
        raise common.UserError(otherwise)


def is_number(x, low=-np.inf, high=np.inf):
    """A finite int or float, no bool, from low to high."""
    return type(x) in (int, float) and low <= x <= high and abs(x) < np.inf


def printed(name, dataset, metric):
    """(what the papers print for a row, the data set), that on ImageNet where they have no other; or None."""
    paper = rows.ROW[name].paper if name in rows.ROW else {}
    found = [source for source in (dataset, "imagenet") if (source, metric) in paper]
    return (paper[found[0], metric], found[0]) if found else None


# --------------------------------------------------------------------------------------------------- verdicts


def verdict(results, claim, scale):
    """(verdict, statistic) of one of C6 … C18 at a scale; None where nothing of it is measured."""
    every = judged(results, claim, scale)
    if not any(e for _, _, e, _ in every):
        return None
    found = [line for line in every if line[1].role != "beside"]
    outcomes = [text for *_, text in found]
    deciding = {text for _, part, _, text in found if part.role == "decides"} - {"nothing to judge"}
    said = "undecided"
    if scale != UNDECIDED and "refuted" in outcomes:
        said = "fails"
    elif scale != UNDECIDED and deciding == {"shown"}:
        said = "holds"
    sizes = [e.n for _, _, e, _ in found if e and e.n] or [0]
    n = "–".join(map(str, sorted({min(sizes), max(sizes)})))
    return said, f"{counted(text.split(',')[0] for text in outcomes)}; n = {n}"


def counted(words):
    """How often each word is there: "2 shown, 1 undecided"."""
    return ", ".join(f"{count} {word}" for word, count in sorted(Counter(words).items()))


MARKS = {True: "as claimed", False: "**against it**", None: "besides"}  # of toy_linear.py's parts


def toy_verdict(claim):
    """(verdict, statistic) of a claim about linear models, which toy_linear.py has judged."""
    settings = claim["settings"]
    said = {True: "holds", False: "fails", None: "undecided"}[claim["holds"]]
    if settings["seeds"] < LEAST or settings["quick"]:
        said = "undecided"
    counts = counted(MARKS[part["ok"]] for part in claim["parts"])
    return said, f"{counts}; {settings['steps']:,} steps, n = {settings['seeds']}"


# ------------------------------------------------------------------------------------------------- the answer

# Ends of rows' names: the scale's own weight decay, and 5e-4, where that is another
DECAYS = ("", "-clock2")
# Each against noproj
INSTEAD = {"noproj-lastlayer": "the penalty"}  # of the projector
INSTEAD |= {f"noproj-lastlayer-{weight}": f"the penalty, weight {weight}" for weight in (0.1, 0.01)}
SIDES = {"simclr": "the projector", **INSTEAD, "simclr-lastlayer": "both"}
THRESHOLDS = {f"rank_{x}": f"rank of h at {x} σ₁" for x in ("1e-2", "1e-3", "1e-5")}
ASKED = THRESHOLDS | {"dead": "dead coordinates of h"} | {x: METRICS[x] for x in ("knn200", "linear_top1")}
PURPOSE = "Does the projector prevent collapse? Does a penalty on the last weights? "
PURPOSE += "Does either buy accuracy? Can the penalty replace the projector?"
SPOKEN = {"rank_1e-3": "rank", "dead": "dead", "knn200": "kNN-200", "linear_top1": "linear"}


def against_collapse(results, scale, dataset, row, neither, statistic):
    """What a row does about the collapse of h in the row without projector and penalty, in words."""
    parts = claims.collapse("", neither, row, statistic)
    fell, kept, gained = (claims.outcome(part, results.compare(part, scale, [dataset])) for part in parts)
    told = [  # the first that is so
        (gained == "refuted" and (kept == "refuted" or fell == "shown"), "makes collapse worse"),
        (fell == "refuted", "nothing to prevent"),
        (fell != "shown", "undecided"),
        (kept == "shown", "prevents collapse"),
        (gained == "shown", "lessens collapse"),
        (kept == "refuted", "does not prevent collapse"),
    ]
    return next((words for so, words in told if so), "undecided")


def effect(results, scale, dataset, row, neither, statistic):
    """How a row's statistic differs from that of the row `neither`, in words; an accuracy's with a number."""
    if statistic not in METRICS:
        word = against_collapse(results, scale, dataset, row, neither, statistic)
        return "undecided" if scale == UNDECIDED else word
    part = claims.accuracy("", statistic, row, neither)
    difference = results.compare(part, scale, [dataset])
    word = {"shown": "a gain", "refuted": "a loss"}.get(claims.outcome(part, difference), "undecided")
    return f"{'undecided' if scale == UNDECIDED else word}, {difference}"


def measured(runs, statistic):
    """A statistic of some results, or of their starts, which lack the linear probe."""
    found = [plot.attempt(measure, run, statistic) for run in runs]
    return [] if None in found else found


def last_weight(runs):
    """σ₁ of the encoder's last weight in some results, or starts: the least and the largest, as text."""
    spectra = [run["weight_spectra"] for run in runs]
    values = [[found[name][0] for name in found if "projector" not in name][-1] for found in spectra]
    return "–".join(dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values))))


def in_words(side, values, words):
    """What a side does, as a line of a list; another rank's word where it differs."""
    others = [f"at {x[5:]} σ₁: {words[x]}" for x in THRESHOLDS if words[x] != words["rank_1e-3"]]
    told = []
    for x, name in SPOKEN.items():
        said = [words[x], *(others if x in THRESHOLDS else ())]
        told.append(f"{name} {np.mean(values[x]):.1f} ({'; '.join(said)})")
    return f"- *{side.capitalize()}:* {', '.join(told)}"


def replacing(results, scale, dataset, decay):
    """What the penalty in the projector's place gains in accuracy against the projector, a text a weight."""
    for row, name in INSTEAD.items():
        parts = [claims.accuracy("", x, row + decay, f"simclr{decay}") for x in ("knn200", "linear_top1")]
        gaps = [results.compare(part, scale, [dataset]) for part in parts]
        if all(gaps):
            yield f"{name}, kNN-200 {gaps[0]}, linear {gaps[1]}"


def answer(results, scale, dataset, decay=""):
    """What the rows of the question, each with this end of DECAYS, say: in words, and as a table."""
    bare = f"noproj{decay}"
    there = lambda row: results.together(scale, dataset, (row + decay, bare))
    sides = {row + decay: side for row, side in SIDES.items() if there(row)}
    if not sides:
        return
    neither = results.all(scale, dataset, [bare])
    columns = {"at the start": [run["start"] for run in neither], "neither": neither}
    columns |= {side: results.all(scale, dataset, [row]) for row, side in sides.items()}
    values = {name: {x: measured(runs, x) for x in ASKED} for name, runs in columns.items()}
    words = {sides[row]: {x: effect(results, scale, dataset, row, bare, x) for x in ASKED} for row in sides}
    of = len(neither[0]["spectra"]["h"])
    ends = [f"{name} {np.mean(values['neither'][x]):.1f}" for x, name in SPOKEN.items()]
    ends[0] += f" (at the start {np.mean(values['at the start']['rank_1e-3']):.1f})"
    meaning = rows.SCALES[scale].meaning + (f", but `{rows.ROW[bare].after}`" if decay else "")
    yield f"**`{scale}`, {title(dataset)}** ({meaning}; H = {number(neither[0]['decay_horizon'])})"
    said = ", ".join(ends)
    text = f"With neither projector nor penalty training ends at: {said}. h has {of} dimensions."
    yield "\n".join([text, "", *(in_words(side, values[side], words[side]) for side in words)])
    if found := "; ".join(replacing(results, scale, dataset, decay)):
        yield f"In the projector's place, against it: {found}."
    lines = [[name, *(mean_std(values[column][x]) for column in columns)] for x, name in ASKED.items()]
    lines.append(["σ₁ of the encoder's last weight", *map(last_weight, columns.values())])
    yield markdown((f"of {of} dimensions", *columns), lines)


def decided(results):
    """A line of every claim that holds or fails at a scale, and one of the others."""
    others = []
    for claim, (text, *_) in CLAIMS.items():
        said = {scale: verdict(results, claim, scale) or ("no data",) for scale in results.scales()}
        found = [f"**{word}** ({scale})" for scale, (word, *_) in said.items() if word in ("holds", "fails")]
        others += [] if found else [claim]
        if found:
            yield f"- {claim} {', '.join(found)}: {text}{refuted(results, claim)}"
    yield f"- not decided yet: {', '.join(others) or 'none'}"


def refuted(results, claim):
    """What of a claim is refuted, and where, as a sentence; "" where nothing is."""
    where = {}
    for scale in results.scales():
        for _, part, _, said in judged(results, claim, scale):
            if scale != UNDECIDED and said == "refuted" and part.role != "beside":
                where.setdefault(part.text, []).append(scale)
    parts = [f"{text} ({', '.join(dict.fromkeys(at))})" for text, at in where.items()]
    return f". Refuted: {'; '.join(parts)}" if parts else ""


def opening(results):
    """The answers of every scale and data set, and what remains open."""
    yield f"**{PURPOSE}**"
    telling = [scale for scale in results.scales() if scale != UNDECIDED] or results.scales()
    kinds = [(scale, end) for scale in telling for end in DECAYS if rows.SCALES[scale].sgd or not end]
    told = []
    for scale, end in kinds:
        for dataset in results.datasets(scale, [row + end for row in SIDES]):
            told += answer(results, scale, dataset, end)
    yield from [document("terms.md"), *told] if told else ["Nothing that answers it has been measured yet."]
    if told and telling == [UNDECIDED]:
        yield f"So it is **undecided**: `{UNDECIDED}` is over before anything can collapse."
    turns = "[what verdicts turn on](docs/decisions.md#measured-what-thresholds-and-decay-decide)"
    yield f"**What the papers claim of trained networks** (all: [below](#claims); {turns})"
    yield "\n".join(decided(results))
    if len(results.together("paper", "cifar10", plot.QUESTION)) < LEAST:
        yield "**Open** until a GPU runs `paper`: whether it is so at the papers' width, epochs and accuracy."


# --------------------------------------------------------------------------------------------------- the page


def mean_std(values):
    """Mean ± sample standard deviation (count), as text."""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread} ({len(values)})" if values else "–"


def table_of(results, table, lines, scale, dataset):
    """A table of these rows as tuples of cells, its header first."""
    runs = [results.all(scale, dataset, [row.name]) for row in lines]
    columns = [["row", *(row.name for row in lines)], ["", *(row.label for row in lines)]]
    metrics = COLUMNS.get(table, ("knn200", "linear_top1"))
    if table == "sparsehead-table" and dataset.startswith("imagenet"):
        metrics = ("linear_top1", "linear_top5")
    for metric in metrics:
        ours = [[run[metric] for run in of_row if metric in run] for of_row in runs]
        papers = [printed(row.name, dataset, metric) or (None, None) for row in lines]
        columns.append([METRICS[metric], *map(mean_std, ours)])
        for source in sorted({source for _, source in papers if source and table not in rows.COMPARING}):
            paper = "DirectCLR" if (table, source) == ("table2", "imagenet") else "paper"
            columns.append([f"{paper}, {title(source)}", *(str(value or "–") for value, _ in papers)])
            if scale == "paper" and source == dataset:
                gaps = [np.mean(x) - value if x and value else None for x, (value, _) in zip(ours, papers)]
                columns.append(["difference", *(number(gap, sign=True) for gap in gaps)])
    for name, what in (INSIDE | (RATIOS if table == "sparsehead-table" else {})).items():
        columns.append([name, *(mean_std([measure(run, *what) for run in of_row]) for of_row in runs)])
    minutes = [np.mean([run["seconds"] / 60 for run in of_row]) if of_row else None for of_row in runs]
    columns.append(["minutes", *map(number, minutes)])
    return list(zip(*columns))


def markdown(header, lines):
    """A Markdown table."""
    every = [header, ["---"] * len(header), *lines]
    texts = [[str(value).replace("|", "\\|") for value in line] for line in every]
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)


def setting(result):
    """How and on what a result was trained, in words."""
    a = result["config"]["arguments"]
    images = f"{a['train_size']:,} images" if a["train_size"] else "all images"
    dim = len(result["spectra"]["h"])
    horizon = number(result["decay_horizon"], 2)
    sizes = f"width {a['width']}, {a['epochs']} epochs, batch {a['batch_size']}, D = {dim}, H = {horizon}"
    return f"{images}, {sizes}; {result['config']['device']}, torch {result['config']['torch']}"


def scale_paragraphs(results, scale):
    """The tables of a scale, its figures, and what its verdicts rest on."""
    yield f"## Scale `{scale}`: {rows.SCALES[scale].meaning}"
    others = sorted({row for *_, row in results.runs} - set(rows.ROW))
    others = [rows.Row(name, "", "", "") for name in others]
    for table, heading in (rows.TABLES | {"": "Rows of no paper"}).items():
        lines = rows.of(table) or others
        own = rows.own(table) or others
        datasets = results.datasets(scale, [row.name for row in own])
        for dataset in datasets:
            header, *body = table_of(results, table, lines, scale, dataset)
            yield f"### {heading}, {title(dataset)}"
            yield markdown(header, [[f"`{name}`", *line] for name, *line in body])
            runs = results.all(scale, dataset, {rows.run_of(row.name) for row in lines})
            ways = sorted(Counter(map(setting, runs)).items())
            command = [f"`make {table} SCALE={scale} DATASETS={dataset}`."] if table else []
            yield " ".join([*command, *(f"{n} run{'s' * (n > 1)} on {way}." for way, n in ways)])
        if table == "clock" and datasets:
            yield "[What the committed runs of the clock say and predict](docs/clock.md), written by hand."
        missing = {dataset for row in own for dataset, _ in row.paper} - {*datasets, "imagenet"}
        if datasets and missing:
            yield f"Not measured: {', '.join(sorted(map(title, missing)))}."
    links = ", ".join(f"[{name}](figures/{scale}/{name}.png)" for name in drawable(results, scale))
    yield f"### Figures\n\n{links}"
    for claim, (text, source, _) in CLAIMS.items():
        if said := verdict(results, claim, scale):
            yield f"### {claim}, {scale}\n\n{text} ({source}): **{said[0]}**"
            yield from claim_paragraphs(results, claim, scale)


def claim_paragraphs(results, claim, scale):
    """The table behind a claim's verdict."""
    found = judged(results, claim, scale)
    lines = []
    for datasets, part, e, said in found:
        if e is None:
            continue
        paper, sources = paper_difference(part, datasets)
        paper = number(paper, 2, sign=True) + " (ImageNet)" * ("imagenet" in sources)
        best = [results.best(scale, datasets[0], BEST[row]) for row in sum(part.pairs, ()) if row in BEST]
        text = part.text + (f" (of those swept {', '.join(map(str, best))})" if best else "")
        lines.append([text, ", ".join(map(title, datasets)), e, e.n, paper, part.role, said])
    yield markdown(("claimed", "data", "ours", "n", "paper", "role", ""), lines)
    if len(lines) < len(found):
        yield f"Not measured: {len(found) - len(lines)} of {len(found)} parts."


def paper_difference(part, datasets):
    """(difference that the papers print for a Part, mean over what is pooled; the data sets that it is of)"""
    found = []
    for pair, dataset in product(part.pairs, datasets):
        found.append([printed(name, dataset, metric) for name, metric in zip(pair, part.metrics)])
    whole = [both for both in found if both and None not in both]
    gaps = [first[0] - last[0] for first, last in whole]
    return (np.mean(gaps) if len(gaps) == len(found) else None), {first[1] for first, _ in whole}


def claims_table(results):
    """Every claim with its verdicts, each with where it was measured."""
    lines = []
    for name, claim in results.toy.items():
        link = f"[{claim['figure']}](figures/{claim['figure']}.png)"
        found = {"linear models": toy_verdict(claim)}
        lines.append(claim_line(name, claim["claim"], claim["source"], found, [link]))
    for name, (text, source, figure) in CLAIMS.items():
        found = {scale: said for scale in results.scales() if (said := verdict(results, name, scale))}
        links = [f"[{at}](figures/{at}/{figure}.png)" for at in found if figure in drawable(results, at)]
        lines.append(claim_line(name, text, source, found, links))
    found = {device: said for device, said in results.costs.items() if said}
    lines.append(claim_line("C19", "`lastlayer` costs O(n³), WERank O(L·n³)", "LL section 1", found, []))
    return markdown(("", "claim", "source", "verdict", "parts", "figure"), lines)


def claim_line(name, text, source, found, links):
    """A line of the claims' table. found: {where: (verdict, statistic)}."""
    answers = ", ".join(f"**{said}** ({where})" for where, (said, _) in found.items())
    place = lambda where: where if name == "C19" else f"[{where}](#{name.lower()}-{where.replace(' ', '-')})"
    counts = "; ".join(f"{place(where)}: {statistic}" for where, (_, statistic) in found.items())
    return name, text, source, answers or "**no data**", counts or "–", ", ".join(links) or "–"


def toy_paragraphs(toy):
    """What the verdicts on linear models rest on."""
    for name, claim in toy.items():
        yield f"### {name}, linear models"
        yield f"{claim['claim']} ({claim['source']}): **{toy_verdict(claim)[0]}**"
        yield f"Judged by: {claim['threshold']}"
        yield "\n".join(f"- {MARKS[part['ok']]}: {part['text']}" for part in claim["parts"])
        yield f"![{claim['claim']}](figures/{claim['figure']}.png)"


def page(results):
    """RESULTS.md, paragraph by paragraph."""
    yield "# Results"
    yield from opening(results)
    if plot.places(results):
        yield "![Accuracy against rank of h](figures/accuracy-rank.png)"
    yield document("method.md").format_map(vars(claims))
    if results.problems:
        yield "\n".join(["Left out:", "", *(f"- {problem}" for problem in results.problems)])
    yield f"## Claims\n\n{claims_table(results)}"
    for scale in results.scales():
        yield from scale_paragraphs(results, scale)
    missing = [scale for scale in rows.SCALES if scale not in results.scales()]
    yield f"Scales not measured: {', '.join(missing) or 'none'}."
    if results.toy:
        yield "## Linear models"
        yield from toy_paragraphs(results.toy)
    yield f"## Slips in the papers\n\n{document('slips.md')}"


# --------------------------------------------------------------------------------------- figure, command line


def differences(results, scale):
    """The measured differences in accuracy, as `judged` gives them."""
    lines = [line for claim in CLAIMS for line in judged(results, claim, scale)]
    return [line for line in lines if set(line[1].metrics) & set(METRICS) and line[2]]


def draw_forest(results, scale, *_):
    """The differences in accuracy with their intervals, beside the papers'; C16 on axes of its own."""
    found = differences(results, scale)
    groups = [[line for line in found if (line[1].claim == "C16") == own] for own in (False, True)]
    groups = [group for group in groups if group]
    sizes = {"height": 1 + 0.08 * len(found), "height_ratios": [len(group) for group in groups]}
    figure, axes = plot.panels(f"Paired differences in accuracy ({scale})", len(groups), 1, 8, **sizes)
    for axis, group in zip(axes[:, 0], groups):
        for y, (datasets, part, e, _) in enumerate(group):
            style = {"fmt": "o", "markersize": 4, "fillstyle": "full" if e.n >= LEAST else "none"}
            axis.plot([part.bound, -part.bound if part.within else part.bound], [y, y], "|", color="grey")
            axis.errorbar(e.mean, y, xerr=e.half() if e.n > 1 else None, capsize=2, color="C0", **style)
            paper, sources = paper_difference(part, datasets)
            if paper is not None:
                axis.plot(paper, y, "+" if "imagenet" in sources else "x", color="black", markersize=5)
        axis.axvline(0, color="grey", linewidth=0.8)
        labels = [f"{part.claim}  {part.text}, {', '.join(map(title, names))}" for names, part, *_ in group]
        axis.set_yticks(range(len(group)), labels, fontsize=6)
        axis.set_ylim(len(group) - 0.4, -0.6)
        axis.grid(axis="y", linewidth=0.2)
    marks = f"o: {scale}, 95 % (hollow: n < {LEAST}); x: paper; +: paper, ImageNet; |: bound of ≥ and ≈"
    axes[-1, 0].set_xlabel(f"difference, points ({marks})", fontsize=7)
    return figure


@cache
def drawable(results, scale):
    """{figure: (its function, the data sets that it can be drawn of)} at a scale."""
    found = {}
    for name, (function, names, needs) in plot.FIGURES.items():
        runs = {dataset: results.all(scale, dataset, names) for dataset in results.datasets(scale, names)}
        able = lambda run, needs=needs: plot.attempt(get, run, *needs) is not None
        datasets = [dataset for dataset in runs if any(map(able, runs[dataset]))]
        if datasets:
            found[name] = (function, datasets)
    return found | ({"forest": (draw_forest, [])} if differences(results, scale) else {})


def draw(results):
    """{path in figures/, without suffix: figure} of all that the results allow."""
    figures = {"accuracy-rank": plot.draw_accuracy(results)} if plot.places(results) else {}
    for scale in results.scales():
        for name, (function, datasets) in drawable(results, scale).items():
            figure = function(results, scale, datasets, name)
            runs = [run for dataset in datasets for run in results.all(scale, dataset, plot.FIGURES[name][1])]
            figure.suptitle(f"{figure.get_suptitle()} [{plot.size_and_horizon(runs)}]".removesuffix(" []"))
            figures[f"{scale}/{name}"] = figure
    return figures


def show(results, table, scales):
    """A table as text with columns of equal width."""
    names = [row.name for row in rows.own(table)]
    for scale in scales:
        if not results.datasets(scale, names):
            print(f"{rows.TABLES[table]}, {scale}: not measured")
        for dataset in results.datasets(scale, names):
            lines = table_of(results, table, rows.of(table), scale, dataset)
            widths = [max(map(len, column)) for column in zip(*lines)]
            print(f"{rows.TABLES[table]}, {title(dataset)}, {scale}: mean ± standard deviation (seeds)")
            for line in lines:
                print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def main():
    parser = common.Parser(__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of results (results)")
    parser.add_argument("-o", "--out", type=Path, default=Path("RESULTS.md"), help="(RESULTS.md)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--figures", action="store_true", help="draw figures/ beside it instead")
    kind.add_argument("--table", choices=rows.TABLES, help="print this table instead")
    parser.add_argument("--scale", choices=rows.SCALES, help="of --table (all that are measured)")
    args = parser.parse_args()
    if args.scale and not args.table:
        raise common.UserError("--scale is of --table: the page and the figures have every scale")
    if args.out.exists() and not args.out.is_file():  # a folder; a device, whose place the page would take
        raise common.UserError(f"-o {args.out} is no file")
    if not args.results.is_dir():
        raise common.UserError(f"--results {args.results} is no folder")
    results = Results(args.results)
    # what is deeper in a result than `check` looks
    with common.refusing(f"{args.results} holds what can't be told or drawn", common.ODD):
        if args.figures:
            for name, figure in draw(results).items():
                path = args.out.parent / "figures" / f"{name}.png"
                common.write_figure(path, figure)
                print(path)
        elif args.table:
            show(results, args.table, [args.scale] if args.scale else results.scales())
        else:
            text = "\n\n".join(page(results)).encode(errors="backslashreplace") + b"\n"
            args.out.parent.mkdir(parents=True, exist_ok=True)
            common.write(args.out, text)
            print(args.out)
    for problem in results.problems:
        print(f"report.py: left out: {problem}", file=sys.stderr)
    if results.problems:
        sys.exit(1)


if __name__ == "__main__":
    common.run(main)
