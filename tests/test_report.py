"""report.py and its figures on hand-made results, and on the committed ones."""

import json
import re
import statistics
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import common
import numpy as np
import pytest
import torch
from conftest import LAID_OUT, ROOT, cases, put
from matplotlib.text import Text

import claims
import plot_spectra as plot
import report
import rows

# Student's quantiles of a printed table: two-sided 5 %, and 1 %.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 11: 2.201, 20: 2.086, 30: 2.042}
T99 = {1: 63.657, 2: 9.925, 3: 5.841, 4: 4.604, 9: 3.250, 11: 3.106, 20: 2.845, 30: 2.750}
D = 64
FALLING = np.exp(-np.arange(D) / 8).tolist()  # rank 56 at 1e-3
NORMS = dict.fromkeys(("bare", "folded", "variance", "gamma", "beta", "open"), [1.0] * D)
WEIGHTS = dict.fromkeys(("layer4.1.conv1", "layer4.1.conv2", "projector.0"), FALLING)
ORIGIN = {"device": "H100", "torch": "2.11+cu130"}
BASES = ("simclr", "noproj", "directclr", "cs")
layers = partial(dict.fromkeys, ("h", "z", "penultimate", "layer3", "projector_hidden"))
START = {"spectra": layers([1.0] * D), "row_norms": NORMS, "weight_spectra": WEIGHTS, "knn200": 30.0}
PART = claims.Part("", "", [], None)
# (rank, dead coordinates) with the projector and without, and what is said of either
STATES = [
    ((D, 0), (20, 30), "prevents collapse", "prevents collapse"),
    ((40, 10), (20, 30), "lessens collapse", "lessens collapse"),
    ((10, 0), (20, 30), "makes collapse worse", "prevents collapse"),
    ((20, 30), (20, 30), "does not prevent collapse", "does not prevent collapse"),
    ((20, 1), (D, 0), "makes collapse worse", "nothing to prevent"),
]
# differences of seeds (R: -0.2 but for rounding), bound, whether it is two-sided: the outcome
OUTCOMES = """
    1 1.1 0.9, 0: shown; -1 -1.1 -0.9, 0: refuted; 1 -1.1 0.9, 0: undecided, as claimed;
    1 1.1, 0: undecided, as claimed; -1 -1.1, 0: undecided, against it; -0.1 -0.12 -0.11, -0.5: shown;
    R R R, -0.2: shown; -0.9 -0.91 -0.92, -0.5: refuted; 0.3 0.31 0.29, 1 within: shown;
    -1.3 -1.31 -1.29, 1 within: refuted; 0.3 1.6 -0.9, 1 within: undecided, as claimed;
    0 0 0, 0: undecided, against it; 1 1.1 0.9 nan, 0: shown; nan nan nan, 0: nothing to judge"""
NO_RESULTS = [  # what differs from a result of seed 0, the error
    ("[" * 200_000, "is not a readable JSON file"), ("[]", "list indices"),
    ({"arguments": {"seed": 0.0}}, "holds seed 0.0"), ({"arguments": {"dataset": "cifar100"}}, "of cifar100"),
    ({"arguments": {"epochs": 3}}, "epochs 3, not 50"), ({"config": {"device": None}}, "lacks its origin"),
    ({"arguments": {"train_size": ...}}, "lacks 'train_size'"), ({"knn200": True}, "has no valid knn200"),
    ({"knn5": 3000}, "has no valid knn5"), ({"linear_top1": 10**400}, "has no valid linear_top1"),
    ({"seconds": -1}, "has no valid seconds"), ({"start": {"knn200": "x"}}, "has no valid start"),
    ({"start": {"spectra": layers([]), "row_norms": NORMS}}, "has no valid start"),
    ({"bare_spectra": layers(FALLING) | {"z": {}}}, "has no valid bare_spectra"),
    ({"history": [{"epoch": 51, "rank_1e-3": 9, "dead": []}]}, "is no result"),
    ({"spectra": layers(FALLING) | {"h": [1.0]}}, "dimensions"), ({"rankme": layers(None)}, "rankme"),
    ({"spectra": layers(FALLING) | {"z": None}}, "spectrum"), ({"spectra": layers([-1.0] * D)}, "spectrum"),
    ({"row_norms": {**NORMS, "bare": [1.0]}}, "[1, 64] dimensions"),
    ({"covariance": layers({"block": [[1], [2, 3]], "offdiagonal": 1})}, "square covariance"),
    ({"start": None}, "is no result"), ({"start": START | {"row_norms": None}}, "lacks row_norms"),
]  # fmt: skip
NO_RESULTS = [("short/cifar10/simclr/seed0", *case) for case in NO_RESULTS]
NO_RESULTS += [  # and of a file at a place
    ("short/cifar10/my-method/seed0", "{}", "lacks 'config'"), ("toy", {}, "lacks 'claims'"),
    ("huge/cifar10/simclr/seed0", {}, "is at the scale huge"), ("bench-x", {}, "lacks 'rows'"),
    ("paper/cifar10/simclr/seed0", {}, "epochs 50, not 200"), ("short/simclr", {}, "is not at"),
    ("short/cifar10/noproj/seed0", {}, "projector mlp, not none"),
    ("short/cifar10/sh-simclr/seed0", {}, "temperature 0.2, not 0.5"),
    ("bench-y", {"rows": []}, "lacks 'device'"),
    ("short/cifar10/simclr/seed00", {}, "holds seed 0"), ("short/cifar10/simclr/seed²", {}, "holds seed 0"),
]  # fmt: skip
# ms of lastlayer and of WERank at ResNet-34 (36 and 148 at ResNet-18), power of the width: verdict
COSTS = [((36, 290), 2.9, "holds"), ((), 2.9, "undecided"), ((70, 290), 2.9, "fails")]
COSTS += [((36, 290), 3.9, "fails")]


def hand_made(seed, row="simclr", scale="short", dataset="cifar10", knn=50.0, **more):
    """What result.json holds, as far as it is read. more: other values; config and arguments add to it."""
    known = row if row in rows.ROW else "simclr"
    arguments = rows.arguments(known, scale, dataset) | {"seed": seed} | more.pop("arguments", {})
    arguments = {key: value for key, value in arguments.items() if value is not ...}  # which leaves it out
    script = rows.ROW[known].command.split()[0]
    config = {"arguments": arguments, "name": row, "script": script, **ORIGIN, **more.pop("config", {})}
    end = arguments.get("epochs", 50)
    history = [{"epoch": epoch, "rank_1e-3": 56, "dead": [1]} for epoch in (end // 2, end)]
    result = {
        "config": config, "knn200": knn, "knn5": knn - 1, "knn200_z": knn - 2, "linear_top1": knn + 1,
        "subvector_linear_top1": knn - 5, "rankme": layers(5.0), "min_max_ratio": layers(2.0), "seconds": 120,
        "spectra": layers(FALLING), "bare_spectra": layers(FALLING), "row_norms": NORMS, "decay_horizon": 2.9,
        "covariance": layers({"block": np.eye(4).tolist(), "offdiagonal": 0.1}), "history": history,
        "weight_spectra": WEIGHTS, "start": START, "images_per_second": 1000.0,
    }  # fmt: skip
    return json.loads(json.dumps(result | more, default=str))


@pytest.fixture
def write(tmp_path):
    """write("short", {"simclr": [80, 81]}): results of seeds 0, 1 with these kNN."""

    def call(scale, accuracies, dataset="cifar10", seeds=range(9), **more):
        for row, knn in accuracies.items():
            for seed, value in zip(seeds, knn):
                path = tmp_path / "results" / scale / dataset / row / f"seed{seed}.json"
                put(path, hand_made(seed, row, scale, dataset, value, **more))

    return call


@pytest.fixture
def page(script, tmp_path):
    """page(): RESULTS.md of the results in tmp_path, its lines by their first cell, and stderr."""

    def call(code=0):
        (tmp_path / "results").mkdir(exist_ok=True)
        done = script("report.py")
        assert done.returncode == code, done.err
        text = (tmp_path / "RESULTS.md").read_text()
        lines = {}
        for line in text.splitlines():
            if cell := [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]:
                lines.setdefault(cell[0], []).append(cell[1:])
        return text, lines, done.err

    return call


def estimate(gaps, shift=0.0):
    """The mean and Student's 95 % interval of three differences, as they are printed."""
    mean, half = statistics.mean(gaps) + shift, T95[2] * statistics.stdev(gaps) / 3**0.5
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


@pytest.mark.parametrize("df", T95)
def test_students_quantiles_are_a_printed_tables(df):
    assert claims.T975[df - 1] == pytest.approx(T95[df], abs=6e-4)
    assert claims.outside(T95[df], df) == pytest.approx(0.05, abs=6e-5)
    assert claims.outside(T99[df], df) == pytest.approx(0.01, abs=2e-5)


@pytest.mark.parametrize("case", cases(OUTCOMES.replace("R", str(86.3 - 86.5))))
def test_outcomes_follow_the_interval(case):
    gaps, bound, within, said = re.fullmatch(r"(.*), (\S*)( within)?: (.*)", case).groups()
    part = PART._replace(bound=float(bound), within=bool(within))
    assert claims.outcome(part, claims.estimate([float(gap) for gap in gaps.split()])) == said
    assert claims.outcome(part, None) == "not measured"


def test_whole_numbers_that_seeds_agree_on_have_the_error_of_rounding(write, page):
    write("short", {"simclr": [80.0, 81.0, 82.0], "noproj": [80.0, 81.0, 82.0]})
    lines = page()[1]
    assert lines["rank of h: simclr > noproj"][0][1] == "+0.00 [-1.01, +1.01]"  # 4.303 · √(1/18)
    assert lines["entropy rank of h: simclr > noproj"][0][1] == "+0.00 [+0.00, +0.00]"
    e = claims.estimate([1, 1, 1], claims.ROUNDING)
    assert claims.outcome(PART, e) == "undecided, as claimed"


def test_a_refutation_has_to_stand_among_all_parts_of_a_claim():
    e = claims.estimate([-0.3, -0.5, -0.4])  # t = 6.9: 2 % of Student's with 2 degrees of freedom
    said = [claims.outcome(PART, e, among) for among in (2, 4)]
    assert said == ["refuted", "undecided, against it"]


def test_a_cliff_is_counted_by_rank_and_its_rounding_errors_by_nothing(recwarn):
    assert (claims.change(FALLING, [0.0] * D) > 0).tolist() == [True] * D and not recwarn  # every h is 0
    cliff = [1.0] * 10 + [1e-15, 3e-16] * 27
    assert plot.measure({"spectra": {"h": cliff}}, "rank_1e-5") == 10
    assert plot.measure({"spectra": {"h": cliff}}, "entropy_rank") == pytest.approx(10)
    assert np.isnan(plot.ln_spectrum(cliff)[10:]).all()
    # of two cliffs only what lies between them has changed, whatever the rounding errors are
    other = [1.0] * 20 + [1e-14] * 44
    np.testing.assert_allclose(claims.change(other, cliff), [0] * 10 + [-np.log(1e-12)] * 10)
    faint = claims.change([100.0, 0.01, 1e-4], [1.0, 1e-4, 1e-4], 1e-3)  # 1e-3 of the smaller σ₁
    np.testing.assert_allclose(faint, np.log([100, 10]))


@pytest.mark.parametrize("count", [3, 40])  # with 40 the median variance is 0
def test_units_that_no_image_opens_are_dead(count):
    h = np.random.default_rng(0).standard_normal((500, D))
    h[:, :count] -= 100
    norms = {"variance": np.maximum(h, 0).var(0, ddof=1).tolist(), "folded": [2.0] * D}
    norms |= {"bare": [1e-3] * count + [1.0] * (D - count), "gamma": [1.0] * D}
    assert plot.measure({"row_norms": norms}, "dead") == count
    assert claims.dead_rows("bare", {"row_norms": norms}) == pytest.approx(np.log(1000))
    assert claims.dead_rows("folded", {"row_norms": norms}) == 0


def test_a_rank_deficient_weight_without_dead_coordinates_refutes_proposition_1():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((D, 5)) @ rng.standard_normal((5, D))
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    h = rng.standard_normal((500, D)) @ weight.T
    norms = {"variance": h.var(0).tolist(), "bare": (weight**2).sum(1).tolist()}
    norms["folded"] = norms["bare"]
    result = {"spectra": {"h": common.covariance_spectrum(torch.from_numpy(h)).tolist()}, "row_norms": norms}
    result["start"] = {"spectra": {"h": [1.0] * D}}
    assert claims.lost(result) == pytest.approx(100 * (D - 5) / D)
    assert claims.vanished_rows("bare", result) == 0 and np.isnan(claims.dead_rows("bare", result))
    assert np.isnan(claims.vanished_rows("folded", result))  # there is no BatchNorm
    part = next(part for part in claims.CLAIM_PARTS if part.claim == "C11" and "lost" in part.text)
    assert claims.outcome(part, claims.estimate([0.0, 0.01, 0.02])) == "refuted"
    result["start"]["spectra"]["h"] = [1.0] * (D - 29) + [1e-9] * 29  # the rank was 35, and fell by 30
    norms["bare"][:] = [1.0] * (D - 27) + [1e-3] * 27
    assert claims.vanished_rows("bare", result) == pytest.approx(27 / 30)
    result["start"]["spectra"]["h"] = [1.0] * D
    norms["bare"][:] = [1.0] * 5 + [1e-3] * (D - 5)  # a median would be a vanished row's
    assert claims.vanished_rows("bare", result) == pytest.approx(1)


def values(claim, *results):
    """The values of a claim's parts, in order, for results in the places of every pair's rows."""
    parts = [part for part in claims.CLAIM_PARTS if part.claim == claim]
    return [plot.attempt(part.value, *(results * 2)[: len(part.pairs[0])]) for part in parts]


def test_each_claims_statistic_sees_what_it_is_about():
    flat, steep = (np.exp(-np.arange(D) * slope).tolist() for slope in (0.01, 0.2))
    weights = dict.fromkeys(("layer4.1.conv1", "layer4.1.conv2", "projector.0"), flat)
    moved, fell = 0.19 * 31.5, D - int((np.array(steep) > 1e-3).sum())

    def with_h(h, penultimate=flat, last=flat):
        spectra = layers(flat) | {"h": h, "penultimate": penultimate, "z": steep[:32]}
        covariance = layers({"offdiagonal": 0.04, "block": []}) | {"h": {"offdiagonal": 0.3, "block": []}}
        shared = {"spectra": spectra, "bare_spectra": spectra, "covariance": covariance}
        start = {"spectra": layers(flat), "bare_spectra": layers(flat)}
        start["covariance"] = layers({"offdiagonal": 0.05}) | {"h": {"offdiagonal": 0.35}}
        result = hand_made(0, **shared, weight_spectra=weights | {"layer4.1.conv2": last})
        return result | {"start": result["start"] | start}

    full, bare = with_h(flat), with_h(steep, last=steep)
    assert values("C6", bare)[:2] == pytest.approx([100 * fell / D, -100 * fell / D])
    rose = full | {"start": {"spectra": bare["spectra"]}}  # no collapse either
    assert values("C6", rose)[:2] == pytest.approx([-100 * fell / D, 100 * fell / D])
    assert values("C6", full, bare)[2] == values("C7", full, bare)[0] == values("C18", full, bare)[10] == fell
    assert values("C8", full) == pytest.approx([0.26, 0.01, -0.04])
    kept = int((np.array(flat) > 1e-3).sum())  # of the 64 each counts, but none moves by more than to 1e-3 σ₁
    at_1e3 = np.mean([min(0.2 * k, np.log(1e3)) - 0.01 * k for k in range(kept)])
    assert values("C9", full, bare)[::5] + values("C9", full, bare)[:1] == pytest.approx([moved / 3] * 3)
    assert values("C9", full, bare)[1] == values("C9", full, bare)[4] == pytest.approx(at_1e3 / 3)
    assert values("C9", full, with_h(steep, steep))[0] == pytest.approx(moved * (1 / 3 - 1))
    assert values("C10", full) == pytest.approx([0.19 * 15.5] * 3)  # over the 32 that both have
    assert values("C15", full, bare)[:8] == pytest.approx([0.19 * (16 * i + 7.5) for i in (0, 1, 2, 3)] * 2)
    assert values("C16", full)[-2] == 6 and values("C18", full, bare)[-1] == 0


def test_what_a_network_does_not_have_is_not_measured():
    lacking = hand_made(0, spectra=layers(FALLING) | {"layer3": None, "projector_hidden": None})
    assert values("C9", lacking)[3] is None and values("C10", lacking)[:2] == [None, None]
    assert values("C8", lacking)[1:] == [None, None]  # no covariance at the start


def test_what_shuts_a_dimension_is_told_apart():
    norms = {key: np.ones(D) for key in NORMS}
    norms["variance"][:6] = 0
    norms["bare"][[0, 1, 20]] = 1e-4  # 20 is alive
    norms["gamma"][1] = 0.01
    norms["open"][2:6] = 0
    norms["beta"][[0, 2, 3, 4]] = -1  # 0 is open
    history = [{"dead": dead} for dead in ([0, 1, 7], [0, 1, 8], [0, 1, 7, 2])]
    lists = {key: value.tolist() for key, value in norms.items()}
    assert list(plot.shut({"row_norms": lists, "history": history}).values()) == [6, 2, 1, 3, 1, 2]


def test_the_horizon_over_time_is_the_sum_over_steps():
    rates = 1 + np.cos(np.pi * np.arange(2000) / 2000)
    expected = [11.7 * rates[: 100 * epoch].sum() / rates.sum() for epoch in (0, 4, 10, 20)]
    result = {"decay_horizon": 11.7, "config": {"arguments": {"epochs": 20, "lr": 0.06}}}
    np.testing.assert_allclose(plot.horizons(result, [0, 4, 10, 20]), expected, atol=0.01)


def test_a_table_has_mean_std_number_of_seeds_paper_time_and_device(write, page, script):
    write("short", {"simclr": [80.0, 81.0, 83.0]})
    write("paper", {"simclr": [84.0, 85.0]})
    text, lines, _ = page()
    cells = ["81.3 ± 1.5 (3)", "86.1", "82.3 ± 1.5 (3)", "66.5", "56.0 ± 0.0 (3)", "0.0 ± 0.0 (3)"]
    cells += ["5.0 ± 0.0 (3)", "5.0 ± 0.0 (3)", "2.0"]
    assert lines["`simclr`"][2] == ["SimCLR, 2-layer MLP projector", *cells]
    assert lines["`simclr`"][0][1:4] == ["84.5 ± 0.7 (2)", "86.1", "-1.6"]  # at the papers' scale alone
    assert lines["`cs-werank`"][1] == ["... + WERank", "–", "85.0", *["–"] * 7]
    assert "3 runs on all images, width 64, 50 epochs, batch 128, D = 64, H = 2.90; H100, torch 2.11" in text
    done = script("report.py", "--table", "table2", "--scale", "short")
    assert re.search(r"simclr  .*81.3 ± 1.5 \(3\)  86.1", done.out) and "± 0.7" not in done.out
    assert "84.5 ± 0.7 (2)" in script("report.py", "--table", "table2").out


def test_a_difference_is_of_runs_of_one_seed_and_one_kind_of_device_and_has_its_interval(write, page):
    write("short", {"noproj-lastlayer": [80.0, 81.5, 83.0], "noproj": [79.0, 81.0, 81.0]})
    cells = ["CIFAR-10", estimate([1.0, 0.5, 2.0]), "3", "+0.60", "may refute", "undecided, as claimed"]
    assert page()[1]["kNN-200: noproj-lastlayer > noproj"] == [cells]
    write("short", {"simclr": [80.0, 81.0, 85.0]})
    write("short", {"simclr-lastlayer": [81.0, 82.0]}, seeds=[0, 7])
    for other, pairs in (({"device": "H200"}, 1), ({"torch": "2.12"}, 1), ({"torch": "2.11+x"}, 2)):
        write("short", {"simclr-lastlayer": [84.0]}, seeds=[2], config=other)
        assert page()[1]["kNN-200: simclr-lastlayer > simclr"][0][2] == str(pairs), other


def test_a_claim_holds_if_what_decides_is_shown_and_fails_if_a_part_is_refuted(write, page):
    for base in BASES:
        write("short", {base: [80.0, 81.0, 82.0], f"{base}-lastlayer": [81.0, 82.1, 82.9]})
        write("short", {f"{base}-werank": [71.0, 72.1, 72.9]})
    lines = page()[1]
    assert lines["C13"][0][2:4] == ["**holds** (short)", "[short](#c13-short): 5 shown; n = 3"]
    assert lines["C14"][0][2] == "**undecided** (short)"  # no other weights are measured
    for accuracies, said in (([80.5, 80.8, 82.1], "holds"), ([78.0, 79.0, 80.0], "fails")):
        write("short", {"cs-lastlayer": accuracies})  # one base undecided, or refuted
        assert page()[1]["C13"][0][2] == f"**{said}** (short)"
    write("short", {"noproj-werank": [81.0, 82.0, 85.0]})  # beside, where no part has a say
    beside = page()[1]["kNN-200: noproj-lastlayer ≥ noproj-werank"]
    assert beside[0][-2:] == ["beside", "undecided, against it"]


def test_pooling_takes_the_mean_of_each_seed_first(write, page):
    places = (("cifar10", 0.0, 0), ("cifar100", 1.0, 0), ("shapes", 5.0, 7))  # the last of other seeds
    for dataset, shift, first in places:
        for base in BASES:
            pair = {base: [80.0] * 3, f"{base}-lastlayer": [80 + shift + x for x in (1, 2, 4)]}
            write("short", pair, dataset, seeds=range(first, first + 3))
    write("short", {"noproj-lastlayer": [99.0]}, "cifar100", seeds=[9])  # without a partner
    write("short", {"cs": [80.0], "cs-lastlayer": [50.0]}, "stl10")  # a data set with a pair alone
    cells = page()[1]["kNN-200, pooled: lastlayer > none, at LL's weight"][0]
    # not the interval of 12 differences
    assert cells[:3] == ["CIFAR-10, CIFAR-100", estimate([1, 2, 4], shift=0.5), "3"]


def test_every_scale_is_judged_and_mini_decides_nothing(write, page):
    for scale, gain in (("short", 5), ("compressed", -5), ("mlp", 5), ("mini", 5)):
        for base in BASES:
            write(scale, {base: [30.0, 31.0, 32.0][: 2 if scale == "short" else 3]})
            write(scale, {f"{base}-lastlayer": [30.0 + gain, 31.1 + gain, 31.9 + gain]})
    text, lines, _ = page()
    said = "**undecided** (short), **fails** (compressed), **holds** (mlp), **undecided** (mini)"
    assert lines["C13"][0][2] == said and "n = 2; [compressed]" in lines["C13"][0][3]
    assert lines["C6"][0][2] == said.replace("holds", "fails")
    assert ". Refuted: simclr, rank: gain since the start, % of D, > -5 (compressed, mlp)\n" in text
    assert ". Refuted: kNN-200, pooled: lastlayer > none, at LL's weight (compressed); kNN-200: " in text
    short, others = text[text.index("## Scale `short`") :].split("## Scale `compressed`")
    assert "30.5 ± 0.7 (2)" in short and "30.5 ± 0.7 (2)" not in others and "31.0 ± 1.0 (3)" not in short


def test_an_alias_shows_and_compares_the_run_that_it_is(write, page):
    write("short", {"noproj": [80.0, 81.0, 83.0], "cs": [79.0, 80.0, 80.0], "cs-d400-k0": [78.0, 79.0, 79.1]})
    # of old pages; the own result of a run counts, in whichever order they are read
    write("short", {"cs-d480-k0": [10.0], "directclr-d512": [10.0]})
    _, lines, _ = page()
    assert lines["`directclr-d512`"][0][1] == lines["`noproj`"][1][1] == "82.3 ± 1.5 (3)"
    assert lines["kNN-200: cs-d480-k0 > cs-d400-k0"][0][2:4] == ["3", "+0.50"]
    assert lines["`cs`"][0][1] == lines["`cs-d480-k0`"][0][1] == "79.7 ± 0.6 (3)"


def test_the_best_weight_is_that_of_the_highest_mean_over_common_seeds_of_a_whole_sweep(write, page):
    write("short", {"noproj": [80.0, 80.0, 80.0, 80.0], "noproj-lastlayer": [79.0, 79.0, 79.0, 99.0]})
    write("short", {"noproj-lastlayer-0.1": [82.0, 82.5, 82.0]})
    for third, e in (([81.0, 82.0], None), ([81.0, 82.0, 82.0], estimate([2.0, 2.5, 2.0]))):
        write("short", {"noproj-lastlayer-0.01": third})
        best = "kNN-200: noproj-lastlayer, best weight > noproj (of those swept noproj-lastlayer-0.1)"
        found = page()[1].get(best)
        assert found is None if e is None else found[0][1:3] == [e, "3"]
    for row in ("noproj-lastlayer", "noproj-werank"):  # without the clock's rows
        assert len(claims.sweep(row)) == 3 and claims.sweep(row)[0] == row


@pytest.mark.parametrize("others", [{"barlow-noproj": [80.0], "noproj": [80.0]}, {"noproj": [50.0] * 3}])
def test_too_few_seeds_or_rows_on_another_data_set_do_not_unsettle_a_verdict(write, page, others):
    write("short", {"barlow-noproj": [80.0, 81.0, 82.0]}, spectra=layers([1.0] * 9 + [1e-6] * (D - 9)))
    write("short", {"noproj": [80.0, 81.0, 82.0]})
    write("short", others, "cifar100")
    text, lines, _ = page()
    assert lines["C7"][0][2:4] == ["**holds** (short)", "[short](#c7-short): 1 shown; n = 3"]
    assert "- C7 **holds** (short): Barlow Twins" in text


def test_numbers_of_imagenet_are_named_and_not_subtracted(write, page):
    write("paper", {row: [60.0, 61.0, 62.0] for row in ("directclr", "simclr-linear")})
    text, lines, _ = page()
    assert "**Open** until" in text  # of the question's rows there is none
    assert lines["`directclr`"][1][1:5] == ["62.0 ± 1.0 (3)", "62.7", "56.0 ± 1.0 (3)", "47.9"]
    assert lines["linear: directclr > simclr-linear"][0][3] == "+1.60 (ImageNet)"
    assert lines["linear: directclr > its z"][0][1:4] == ["+6.00 [+6.00, +6.00]", "3", "+14.80 (ImageNet)"]


@pytest.mark.parametrize("place, content, why", NO_RESULTS)
def test_what_is_no_result_is_named_and_leaves_no_trace(write, page, tmp_path, place, content, why):
    write("short", {"simclr": [80.0, 81.0, 82.0]}, seeds=[1, 2, 3])
    content = content if isinstance(content, str) else hand_made(0, **content)
    put(tmp_path / "results" / f"{place}.json", content)
    text, lines, err = page(code=1)
    assert f"{place}.json" in err and why in err and len(err.splitlines()) == 1
    assert why in text and lines["`noproj`"][0][1] == "–" and "Rows of no paper" not in text
    assert lines["`simclr`"][0][1] == "81.0 ± 1.0 (3)"


def test_a_table_that_cannot_be_printed_is_an_error(script, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        done = script("report.py", "--table", "table2", "--scale", "short")
    assert done.returncode == 2 and done.err == "report.py: error: [Errno 28] No space left on device\n"


def test_no_results_make_a_page_that_says_so(page):
    text, lines, _ = page()
    assert "Nothing that answers it has been measured yet" in text and "**Open** until a GPU runs" in text
    assert {lines[claim][0][2] for claim in (*claims.CLAIMS, "C19")} == {"**no data**"}


@pytest.mark.parametrize("scale, seeds", [("compressed", n) for n in (3, 2, 1)] + [("mini", 3)])
@pytest.mark.parametrize("full, bare, by_rank, by_dead", STATES)
def test_the_page_opens_with_answers(write, page, full, bare, by_rank, by_dead, scale, seeds):
    knn = {"simclr": [84.0, 84.2, 84.1], "noproj": [80.0, 80.2, 80.1], "noproj-lastlayer": [79.0, 81.2, 80.3]}
    weights = {"layer4.1.conv1": [2.0], "layer4.1.conv2": [3.0], "projector.0": [9.0]}
    for row, accuracies in knn.items():
        rank, dead = full if row == "simclr" else bare
        norms = NORMS | {"variance": [0.0] * dead + [1.0] * (D - dead)}
        spectra = layers(FALLING) | {"h": [1.0] * rank + [1e-6] * (D - rank)}
        start = START | {"weight_spectra": weights}
        write(scale, {row: accuracies[:seeds]}, spectra=spectra, row_norms=norms, start=start)
    opening, lines, _ = page()
    opening = opening.split("Made by")[0]
    assert f"ends at: rank {bare[0]}.0 (at the start {D}.0), dead {bare[1]}.0, " in opening
    decided = scale != "mini" and seeds == 3
    by_rank, by_dead = (said if decided else "undecided" for said in (by_rank, by_dead))
    asked = {"rank of h at 1e-3 σ₁": (D, by_rank), "dead coordinates of h": (0, by_dead)}
    for i, (name, (start, said)) in enumerate(asked.items()):
        cells = lines[name][0]
        assert [float(cell.split()[0]) for cell in cells[:3]] == [start, bare[i], full[i]]
        assert cells[2].endswith(f"({seeds})")
        assert f"{('rank', 'dead')[i]} {full[i]}.0 ({said}" in opening.split("*The penalty:*")[0]
    gain = "a gain" if decided else "undecided"
    assert re.search(rf"kNN-200 84\.\d \({gain}, \+4\.00", opening)
    assert "(undecided, " in opening.split("*The penalty:*")[1].split("kNN-200")[1]
    assert [lines[f"rank of h at 1e-{k} σ₁"][0][1].split(" ")[0] for k in (2, 5)] == [f"{bare[0]}.0"] * 2
    assert lines["σ₁ of the encoder's last weight"][0] == ["3", "1", "1", "1"]
    against = {3: "-3.93 [", 2: "-4.00 [", 1: "-5.00, linear"}[seeds]  # the projector
    assert f"In the projector's place, against it: the penalty, kNN-200 {against}" in opening
    assert "a GPU runs `paper`" in opening
    assert ("`mini` is over before" in opening) == (scale == "mini")


def test_fewer_lost_dimensions_are_less_collapse_where_none_are_too_many(monkeypatch, tmp_path):
    outcomes = iter(["shown", "undecided, as claimed", "shown"])  # noproj fell; the row may have; it has more
    monkeypatch.setattr(claims, "outcome", lambda *_: next(outcomes))
    said = report.against_collapse(report.Results(tmp_path), "short", "cifar10", "a", "b", "dead")
    assert said == "lessens collapse"


def test_the_answer_judges_the_rank_at_each_threshold(write, page):
    steps = [1.0] * 10 + [5e-3] * 20 + [1e-4] * 25 + [1e-7] * 9
    write("short", {"simclr": [80.0, 81.0, 82.0]}, spectra=layers(steps))
    write("short", {"noproj": [80.0, 81.0, 82.0]}, spectra=layers([1.0] * 20 + [1e-7] * 44))
    text, lines, _ = page()
    assert "rank 30.0 (lessens collapse; at 1e-2 σ₁: makes collapse worse), " in text
    for k, rank in ((2, 10), (3, 30), (5, 55)):
        assert lines[f"rank of h at 1e-{k} σ₁"][0][1:3] == ["20.0 ± 0.0 (3)", f"{rank}.0 ± 0.0 (3)"]


def test_the_answer_of_another_weight_decay_compares_its_own_rows(write, page):
    for scale in ("compressed", "short"):  # which has this decay anyway
        write(scale, {"simclr": [80.0, 80.2], "noproj": [70.0, 70.2], "noproj-clock2": [75.0, 75.2]})
        write(scale, {"simclr-clock2": [76.0, 76.2], "noproj-lastlayer-clock2": [78.0, 78.2]})
    write("compressed", {"simclr-clock2": [76.0], "noproj-clock2": [75.0]}, dataset="cifar100")
    text, lines, _ = page()
    assert text.count("**`short`, CIFAR-10** (") == text.count("**`compressed`, CIFAR-100** (") == 1
    _, own, other = text.split("Made by")[0].split("**`compressed`, CIFAR-10** (")
    assert "`--weight-decay 5e-4`; H = 2.9" in other and "`--weight" not in own.split(")")[0]
    assert "kNN-200 80.1 (undecided, +10.00 [" in own and "kNN-200 76.1 (undecided, +1.00 [" in other
    assert "against it: the penalty, kNN-200 +2.00 [" in other and "In the projector's place" not in own
    assert [cell.split()[0] for cell in lines["kNN-200"][2]] == ["30.0", "75.1", "76.1", "78.1"]


def test_linear_models_are_judged_by_their_own_file(page, tmp_path):
    parts = [{"ok": True, "text": "a"}, {"ok": None, "text": "b"}]
    claim = {"claim": "c", "source": "s", "figure": "toy-x", "holds": True, "threshold": "t", "parts": parts}
    failed = claim | {"holds": False, "parts": [*parts, {"ok": False, "text": "d"}]}
    for seeds, said in ((3, ["holds", "fails"]), (2, ["undecided", "undecided"])):
        settings = {"seeds": seeds, "steps": 4000, "quick": False}
        put(tmp_path / "results/toy.json", {"settings": settings, "claims": {"C1": claim, "C2": failed}})
        text, lines, _ = page()
        assert [lines[name][0][2].split()[0] for name in ("C1", "C2")] == [f"**{word}**" for word in said]
    assert lines["C2"][0][3].endswith(": 1 **against it**, 1 as claimed, 1 besides; 4,000 steps, n = 2")
    assert "- **against it**: d\n" in text and "![c](figures/toy-x.png)" in text


@pytest.mark.parametrize("deep, power, said", COSTS)
def test_the_cost_is_judged_by_the_keys_of_a_benchmark_and_needs_the_depth(deep, power, said):
    found = {"lastlayer-resnet18": 36, "werank-resnet18": 148}
    found |= {"lastlayer-width-power": power, "werank-width-power": power}
    found |= dict(zip(("lastlayer-resnet34", "werank-resnet34"), deep))
    bench = [{"key": f"penalty-{key}", "value": value} for key, value in found.items()]
    assert claims.cost({"rows": bench})[0] == said
    for lacking in (bench[:2], bench[2:], [{"what": "lastlayer with its gradient", "value": 3}]):
        assert claims.cost({"rows": lacking}) is None


def test_the_papers_numbers_are_at_their_rows_and_what_none_prints_is_not_left_out_of_a_mean():
    assert report.printed("simclr-werank", "cifar10", "knn200") == (86.5, "cifar10")
    assert report.printed("cs-d480-kinv", "cifar100", "knn200") == (51.8, "cifar100")
    assert report.printed("sh-byol-sparsehead", "cifar10", "knn5") == (90.05, "cifar10")
    assert report.printed("sh-simclr-sparsehead", "tiny-imagenet", "knn5") == (36.16, "tiny-imagenet")
    assert report.printed("my-method", "cifar10", "knn200") is None
    part = next(part for part in claims.CLAIM_PARTS if part.claim == "C13")
    assert report.paper_difference(part, ["cifar10"])[0] == pytest.approx((0.2 + 0.6 + 0.3 + 0.8) / 4)
    assert report.paper_difference(part, ["cifar10", "imagenet100"])[0] is None


def test_figures_draw_what_is_there_and_the_page_links_no_other(write, page, script, tmp_path, monkeypatch):
    monkeypatch.setattr(*LAID_OUT)
    write("short", {row: [80.0, 81.0] for row in ("my-method", *(row.name for row in rows.ROWS))}, dim=8)
    text, lines, _ = page()
    assert "### Rows of no paper" in text and lines["`my-method`"][0][1] == "80.5 ± 0.7 (2)"
    assert script("report.py", "--figures").returncode == 0
    drawn = {str(path.relative_to(tmp_path)) for path in (tmp_path / "figures").rglob("*.png")}
    assert {Path(path).stem for path in drawn} == {*plot.FIGURES, "forest", "accuracy-rank"}
    assert set(re.findall(r"\((figures/[^)]*)\)", text)) == drawn


def test_history_and_clock_have_a_curve_a_row_and_a_run(write, tmp_path):
    write("short", {"noproj": [80.0, 81.0], "noproj-clock1": [81.0]})
    results = report.Results(tmp_path / "results")
    curves = lambda draw: [len(axis.lines) for axis in draw(results, "short", ["cifar10"], "").axes]
    assert curves(plot.draw_history) == [1, 1]
    assert curves(plot.draw_clock) == [0, 0, 3, 3, 0, 0]


@pytest.mark.parametrize("kind", ["", "norms", "covariance"])
def test_a_figure_names_runs_as_their_folders_are_called(kind):
    result = common.read_json(ROOT / "results/mini/cifar10/simclr/seed0.json")
    args = SimpleNamespace(layer="h", **{name: name == kind for name in ("norms", "covariance")})
    figure = plot.draw([("_a$x_$", result)], args)
    figure.draw_without_rendering()  # a formula that is none would be an error
    named = [text.get_text() for text in figure.findobj(Text)]
    assert any(name.startswith(r" _a\$x_\$") for name in named)


def test_page_and_figures_are_the_same_in_another_process(write, script, forks, tmp_path, monkeypatch):
    write("short", {"simclr": [80.0, 81.0, 82.0]})
    write("short", {"noproj": [30.0, 31.0]}, spectra=layers(FALLING) | {"layer3": None})
    monkeypatch.setattr(plot, "FIGURES", {name: plot.FIGURES[name] for name in ("ll-1a", "ll-2", "ll-3")})
    three = "import plot_spectra as p; p.FIGURES = {n: p.FIGURES[n] for n in ('ll-1a', 'll-2', 'll-3')}"
    contents = []
    for run in (partial(script, "report.py"), partial(forks, tmp_path, "report.py", before=three)):
        assert run().returncode == run("--figures").returncode == 0
        contents.append({path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.suffix != ".json"})
    assert contents[0] == contents[1] and len(contents[0]) == 5


def test_the_committed_page_is_that_of_the_committed_results_and_its_figures_are_there(page, tmp_path):
    (tmp_path / "results").symlink_to(ROOT / "results")
    text, _, _ = page()
    assert text == (ROOT / "RESULTS.md").read_text()
    for link in re.findall(r"\((figures/[^)]*)\)", text):
        assert (ROOT / link).exists(), link


WITH, WITHOUT, PENALTY = "with projector", "with neither", "with the penalty instead"
ROWS = {WITH: "simclr", WITHOUT: "noproj", PENALTY: "noproj-lastlayer"}
IN_README = {  # a block: its scale, and the row behind the name of each line
    "`mlp`": ("mlp", ROWS | {"... at weight 0.01": "noproj-lastlayer-0.01"}),
    "`compressed`, decay 5e-4": ("compressed", {name: f"{row}-clock2" for name, row in ROWS.items()}),
    "`compressed`, decay 1e-2": ("compressed", ROWS),
}


def test_the_table_of_the_readme_is_that_of_the_results():
    results = report.Results(ROOT / "results")
    lines = re.findall(r"^\| .* ± .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    expected = []
    for block, (scale, rows_of) in IN_README.items():
        for name, row in rows_of.items():
            runs = results.all(scale, "cifar10", [row])
            cells = [block if row == rows_of[WITH] else "", name]
            for metric in ("knn200", "linear_top1"):
                scores = np.array([run[metric] for run in runs])
                gap = results.compare(claims.accuracy("", metric, row, rows_of[WITH]), scale, ["cifar10"])
                interval = f"[{gap.mean - gap.half():.1f}, {gap.mean + gap.half():.1f}]"
                against = f"{gap.mean:+.1f} {interval}" if row != rows_of[WITH] else ""
                cells += [f"{scores.mean():.1f} ± {scores.std(ddof=1):.1f}", against]
            rank = np.mean([plot.measure(run, "rank_1e-3") for run in runs])
            expected.append([*cells, f"{rank:.0f}", str(len(runs))])
    assert found == expected


def test_committed_results_are_small_and_rounded():
    for path in (ROOT / "results").glob("*/*/*/*.json"):
        content = common.read_json(path)
        for found in content["spectra"].values():
            assert all(value == float(f"{value:.6g}") for value in found or ())
        limit = 350_000 if "barlow" in str(path) else 200_000  # whose z has 2,048 dimensions
        assert path.stat().st_size < limit and "dirty" not in (content["config"]["git"] or ""), path
