"""report.py on hand-made results, and on the committed ones."""

import json
import re
import shutil
import statistics

import numpy as np
import pytest
from conftest import ROOT

import common
import report

T = {1: 12.7062, 2: 4.30265, 3: 3.18245, 9: 2.26216, 30: 2.04227, 100: 1.98397}  # a printed table's, 0.975


def hand_made(seed, dataset="cifar10", knn=50.0, epochs=50, dim=8, **more):
    """What result.json holds, as far as the report reads it."""
    layers = ("h", "z", "penultimate", "projector_hidden")
    values = np.exp(-np.arange(dim) / 4)
    arguments = {
        "seed": seed, "dataset": dataset, "train_size": None, "width": 64, "batch_size": 128,
        "epochs": epochs,
    }  # fmt: skip
    return {
        "config": {"arguments": arguments, "device": "H100", "torch": "2.11", "name": "x"},
        "knn200": knn, "knn5": knn - 1, "linear_top1": knn + 1, "linear_top5": 90.0, "seconds": 120.0,
        "rankme": dict.fromkeys(layers, 5.0), "min_max_ratio": dict.fromkeys(layers, 2.0),
        "spectra": {layer: values.tolist() for layer in layers},
        "covariance": {layer: {"block": np.eye(4).tolist(), "offdiagonal": 0.1} for layer in layers},
        "row_norms": dict.fromkeys(("bare", "folded", "variance"), [1.0] * dim),
        "dim": 3, "subvector_linear_top1": knn - 5,
    } | more  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """write("short", "simclr", [80, 81]): results of seeds 0, 1 with these kNN, or with what a dict says."""

    def call(scale, row, knn, dataset="cifar10", seeds=None, **more):
        for seed, value in zip(seeds or range(len(knn)), knn):
            path = tmp_path / "results" / scale / dataset / row / f"seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(hand_made(seed, dataset, value, **more)))
        return path

    return call


def made(script, tmp_path, code=0):
    """RESULTS.md of the results in tmp_path, its lines by their first cell, what was said on stderr."""
    done = script("report.py")
    assert done.returncode == code, done.err
    text = (tmp_path / "RESULTS.md").read_text()
    lines = {}
    for line in text.splitlines():
        cell = [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cell:
            lines.setdefault(cell[0], []).append(cell[1:])
    return text, lines, done.err


@pytest.mark.parametrize("df", T)
def test_students_quantiles_are_a_printed_tables(df):
    assert report.t_quantile(0.975, df) == pytest.approx(T[df], rel=2e-5)
    assert report.t_quantile(0.5, df) == pytest.approx(0, abs=1e-4)


def test_a_table_has_mean_std_number_of_seeds_paper_difference_time_and_device(write, script, tmp_path):
    write("short", "simclr", [80.0, 81.0, 83.0])
    write("short", "noproj", [79.0])
    text, lines, _ = made(script, tmp_path)
    assert lines["`simclr`"][0] == [
        "SimCLR, MLP projector", "81.3 ± 1.5 (3)", "86.1", "-4.8", "5.0 ± 0.0 (3)", "5.0 ± 0.0 (3)", "2.0",
    ]  # fmt: skip
    assert lines["`noproj`"][0][1:4] == ["79.0 (1)", "84.5", "-5.5"]
    assert "4 runs: all images, width 64, 50 epochs, batch 128; H100, torch 2.11." in text
    assert "Not measured at this scale: CIFAR-100." in text


def test_missing_cells_are_shown_as_such(write, script, tmp_path):
    write("short", "simclr", [80.0])
    _, lines, _ = made(script, tmp_path)
    assert lines["`cs-werank`"] == [
        ["SimCLR, no projector, constant subvector + WERank", "not measured", "85.0"] + ["–"] * 4
    ]
    assert lines["C7"][0][2] == "**no data**" and lines["C1"][0][2] == "**no data**"
    verdicts = {line[2] for name, lines_ in lines.items() if re.fullmatch(r"C\d+", name) for line in lines_}
    assert verdicts <= {"**no data**", "**undecided**"}


def test_a_difference_is_paired_and_has_its_interval_and_power(write, script, tmp_path):
    ours, base = [80.0, 81.5, 83.0], [79.0, 81.0, 81.0]
    write("short", "noproj-lastlayer", ours)
    write("short", "noproj", base)
    _, lines, _ = made(script, tmp_path)
    gaps = [a - b for a, b in zip(ours, base)]
    mean, half = statistics.mean(gaps), T[2] * statistics.stdev(gaps) / 3**0.5
    cell = lines["kNN-200: noproj-lastlayer > noproj"][0]
    interval = f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"
    assert cell == ["CIFAR-10", interval, f"{half:.2f}", "3", "+0.60", "undecided, as claimed"]


@pytest.mark.parametrize(
    "gaps, bound, within, verdict",
    [
        ([1.0, 1.1, 0.9], 0, False, "holds"),
        ([-1.0, -1.1, -0.9], 0, False, "fails"),
        ([1.0, -1.1, 0.9], 0, False, "undecided"),
        ([1.0, 1.1], 0, False, "undecided"),  # fewer than 3
        ([1.0], 0, False, "undecided"),
        ([-0.1, -0.12, -0.11], -0.5, False, "holds"),  # at least as good
        ([-0.9, -0.91, -0.92], -0.5, False, "fails"),
        ([0.3, 0.31, 0.29], 1.0, True, "holds"),
        ([-0.3, -0.31, -0.29], 1.0, True, "holds"),
        ([1.3, 1.31, 1.29], 1.0, True, "fails"),
        ([-1.3, -1.31, -1.29], 1.0, True, "fails"),
        ([0.3, 1.6, -0.9], 1.0, True, "undecided"),
        ([0.0, 0.0, 0.0], 0, False, "undecided"),  # two rows that are the same run
    ],
)
def test_verdicts_follow_the_interval(gaps, bound, within, verdict):
    assert report.estimate(gaps).judge(bound, within) == verdict


def test_a_claim_holds_if_all_its_differences_do_and_fails_if_one_is_refuted(write, script, tmp_path):
    for base in report.BASES:
        write("short", base, [80.0, 81.0, 82.0])
        write("short", f"{base}-lastlayer", [81.0, 82.1, 82.9])
    assert made(script, tmp_path)[1]["C13"][0][2] == "**holds**"
    write("short", "cs-lastlayer", [79.0, 80.1, 80.9])
    assert made(script, tmp_path)[1]["C13"][0][2] == "**fails**"
    write("short", "cs-lastlayer", [79.0, 82.1, 80.9])
    cell = made(script, tmp_path)[1]["C13"][0]
    assert cell[2] == "**undecided**" and cell[3].startswith(
        "3 of 4 differences as claimed; intervals: 3 for it, 0"
    )
    shutil.rmtree(tmp_path / "results/short/cifar10/cs-lastlayer")
    cell = made(script, tmp_path)[1]["C13"][0]
    assert cell[2] == "**undecided**" and "1 not measured" in cell[3]  # three that hold are not four


def test_mini_decides_nothing_and_scales_never_share_a_table(write, script, tmp_path):
    for base in report.BASES:
        write("mini", base, [30.0, 31.0, 32.0], epochs=5)
        write("mini", f"{base}-lastlayer", [35.0, 36.1, 36.9], epochs=5)
    _, lines, _ = made(script, tmp_path)
    assert (
        lines["C13"][0][2] == "**undecided (scale)**"
        and "4 of 4 differences as claimed" in lines["C13"][0][3]
    )
    write("short", "simclr", [80.0, 81.0, 82.0])
    write("short", "simclr-lastlayer", [79.0, 80.1, 80.9])
    text, lines, _ = made(script, tmp_path)
    assert lines["C13"][0][2] == "**fails**" and lines["C13"][0][4] == "`short`, CIFAR-10, n = 3"
    short, mini = text[text.index("## Scale `short`") :].split("## Scale `mini`")
    assert "81.0 ± 1.0 (3)" in short and "31.0 ± 1.0 (3)" not in short
    assert "31.0 ± 1.0 (3)" in mini and "81.0 ± 1.0 (3)" not in mini
    assert lines["C15"][0][4].startswith("`mini`")  # short has nothing of it


def test_only_seeds_that_both_rows_have_are_compared(write, script, tmp_path):
    write("short", "simclr", [80.0, 81.0, 82.0], seeds=[0, 1, 2])
    write("short", "simclr-lastlayer", [83.0, 85.0, 99.0], seeds=[1, 2, 7])
    _, lines, _ = made(script, tmp_path)
    assert lines["kNN-200: simclr-lastlayer > simclr"][0][1].startswith("+2.50 [") and lines[
        "kNN-200: simclr-lastlayer > simclr"][0][3] == "2"  # fmt: skip
    assert lines["C13"][0][2] == "**undecided**"


@pytest.mark.parametrize(
    "content, why",
    [
        ("{", "is not a readable JSON file"),
        ("[]", "is no result"),
        ("{}", "is no result"),
        (json.dumps(hand_made(1)), "holds seed 1"),
        (json.dumps(hand_made(0, "cifar100")), "on cifar100"),
        (json.dumps(hand_made(0, knn200=None)), "no number"),
        (json.dumps(hand_made(0, knn200="50")), "no number"),
        (json.dumps(hand_made(0, epochs=3)), "3 epochs, batch 128, most others"),
    ],
)
def test_what_is_no_result_is_named_and_left_out_with_exit_code_1(write, script, tmp_path, content, why):
    write("short", "simclr", [80.0, 81.0, 82.0], seeds=[1, 2, 3])
    path = write("short", "noproj", [70.0])
    path.write_text(content)
    text, lines, err = made(script, tmp_path, code=1)
    assert "results/short/cifar10/noproj/seed0.json" in err and why in err and len(err.splitlines()) == 1
    assert (
        why in text
        and lines["`noproj`"][0][1] == "not measured"
        and lines["`simclr`"][0][1] == "81.0 ± 1.0 (3)"
    )


def test_an_unknown_scale_and_a_damaged_toy_json_are_named(write, script, tmp_path):
    write("huge", "simclr", [80.0])
    (tmp_path / "results/toy.json").write_text("{")
    _, _, err = made(script, tmp_path, code=1)
    assert "scale huge" in err and "toy.json" in err


def test_no_folder_of_results_is_one_line_and_exit_code_2(script, tmp_path):
    done = script("report.py")
    assert done.returncode == 2 and len(done.err.splitlines()) == 1 and not (tmp_path / "RESULTS.md").exists()


def test_no_results_make_a_page_that_says_so(script, tmp_path):
    (tmp_path / "results").mkdir()
    text, lines, _ = made(script, tmp_path)
    assert "Nothing that answers it has been measured yet" in text
    assert {lines[claim][0][2] for claim in report.CLAIMS} == {"**no data**"}


@pytest.mark.parametrize(
    "penalised, answer",
    [
        ([86.0, 85.9, 86.1], "**replaces** the projector"),
        ([84.0, 84.1, 83.9], "does **not replace** the projector"),
        ([84.0, 88.0, 86.0], "is **undecided**"),
    ],
)
def test_the_page_opens_with_the_answer_in_three_sentences(write, script, tmp_path, penalised, answer):
    write("short", "simclr", [86.0, 86.0, 86.1])
    write("short", "noproj", [84.0, 84.1, 84.2])
    write("short", "noproj-lastlayer", penalised)
    opening = made(script, tmp_path)[0].splitlines()[2]
    assert answer in opening and "86.0 ± 0.1 (3) with its projector" in opening and "scale `short`" in opening


def test_linear_models_and_cost_are_judged_by_their_own_files(script, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    claim = {"claim": "c", "holds": True, "threshold": "t", "parts": ["yes a", "-   b"]}
    claims = {"C1": claim, "C2": claim | {"holds": False, "parts": ["NO  a", "yes b"]}}
    settings = {"seeds": 3, "steps": 4000, "quick": False}
    (folder / "toy.json").write_text(json.dumps({"settings": settings, "claims": claims}))
    rows = [
        {"what": f"{reg} with its gradient, alone, width 64", "value": value}
        for reg, value in (("lastlayer", 40.0), ("werank", 160.0))
    ]
    (folder / "bench-cpu.json").write_text(json.dumps({"device": "CPU", "rows": rows}))
    _, lines, _ = made(script, tmp_path)
    assert lines["C1"][0][2:4] == ["**holds**", "1 of 1 part as claimed"]
    assert lines["C2"][0][2:4] == ["**fails**", "1 of 2 parts as claimed"]
    assert lines["C3"][0][2] == "**no data**"
    assert (
        lines["C19"][0][2] == "**holds**"
        and "costs 4.0 times `lastlayer`: 160 and 40 ms" in lines["C19"][0][3]
    )
    (folder / "toy.json").write_text(json.dumps({"settings": settings | {"seeds": 2}, "claims": claims}))
    assert made(script, tmp_path)[1]["C1"][0][2] == "**undecided**"


def test_each_claims_statistic_sees_what_it_is_about():
    falling = np.exp(-np.arange(8.0))
    flat = np.exp(-np.arange(8.0) / 10)
    weak = {"bare": [1e-3, *[1.0] * 19], "folded": [1.0] * 20, "variance": [1e-6, 1e-5, *[1.0] * 18]}

    def with_h(spectrum, **layers):
        return hand_made(0, spectra={"h": spectrum, "penultimate": flat, "z": falling[:4], **layers})

    value = {}
    for c in report.COMPARISONS:
        value.setdefault(c.claim, []).append(c.value)
    # simclr flat, noproj collapsed: C6 by ln σ_4/σ_1 = -0.3 and -3; C7 the same way round
    assert value["C6"][1](with_h(flat), with_h(falling)) == pytest.approx(2.7)
    assert value["C7"][1](with_h(flat), with_h(falling)) == pytest.approx(2.7)
    # C9: mean |0.9 k| over k = 0 … 7 at h, nothing before it
    assert value["C9"][0](with_h(flat), with_h(falling)) == pytest.approx(0.9 * 3.5)
    # C10: hidden layer flat, z falling, over the 4 that both have
    assert value["C10"][0](with_h(flat, projector_hidden=flat)) == pytest.approx(0.9 * 1.5)
    assert value["C15"][0](with_h(flat), with_h(falling)) == pytest.approx(0.9 * 3.5)
    assert value["C15"][1](with_h(flat), with_h(falling)) == pytest.approx(0)
    # C11: of 20 dimensions the two of least variance have ‖W^i‖² of 1e-3 and 1, median 0.5005
    bare, folded = (f(hand_made(0, row_norms=weak)) for f in value["C11"])
    assert bare == pytest.approx(-np.log(0.5005)) and folded == 0
    tied = hand_made(0, knn=50.0, subvector_linear_top1=44.0)
    assert value["C16"][-1](tied) == pytest.approx(7.0)
    lower_z = hand_made(0, rankme={"h": 6.0, "z": 3.0}, min_max_ratio={"z": 2.5})
    usual = hand_made(0, rankme={"h": 5.0, "z": 5.0}, min_max_ratio={"z": 2.0})
    assert [f(lower_z, usual) for f in value["C18"][:3]] == pytest.approx([2.0, 1.0, 0.5])


def test_the_papers_numbers_are_at_their_rows():
    for place, expected in {
        ("cifar10", "simclr-werank", "knn200"): 86.5, ("cifar100", "simclr-lastlayer", "knn200"): 57.5,
        ("cifar10", "directclr", "knn200"): 85.2, ("cifar100", "cs-werank", "knn200"): 53.0,
        ("cifar10", "cs-d200-k1", "knn200"): 78.9, ("cifar100", "cs-d480-kinv", "knn200"): 51.8,
        ("cifar10", "simclr-diagonal", "linear_top1"): 60.2, ("cifar10", "noproj", "linear_top1"): 51.5,
        ("cifar10", "directclr-random", "linear_top1"): 43.0, ("cifar10", "directclr", "linear_top1"): 62.7,
        ("cifar10", "directclr", "subvector_linear_top1"): 47.9,
        ("cifar10", "directclr-d8", "linear_top1"): None,
        ("cifar10", "sh-byol-sparsehead", "knn5"): 90.05, ("stl10", "sh-barlow", "linear_top1"): 90.71,
        ("cifar100", "sh-simclr", "knn5"): 56.57, ("tiny-imagenet", "sh-simclr-sparsehead", "knn5"): 36.16,
        ("stl10", "simclr", "knn200"): None,
    }.items():  # fmt: skip
        assert report.paper_number(*place) == expected, place


def test_the_report_is_the_same_byte_for_byte_when_made_twice(write, script, tmp_path):
    for base in report.TABLE2:
        write("short", base, [80.0, 81.0, 82.0])
        write("mini", base, [30.0, 31.0], "cifar100", epochs=5)
    first = made(script, tmp_path)[0]
    assert made(script, tmp_path)[0] == first
    assert script("report.py", "--figures").returncode == 0
    images = {path: path.read_bytes() for path in sorted((tmp_path / "figures").glob("*/*.png"))}
    assert script("report.py", "--figures").returncode == 0
    assert images == {path: path.read_bytes() for path in images} and len(images) > 10


def test_a_row_of_no_paper_has_its_place(write, script, tmp_path):
    write("short", "my-method", [80.0, 81.0])
    text, lines, _ = made(script, tmp_path)
    assert "### Rows of no paper" in text and lines["`my-method`"][0][1] == "80.5 ± 0.7 (2)"


def test_every_figure_draws_what_is_there(write, script, tmp_path):
    for dataset in ("cifar10", "cifar100"):
        for table in report.TABLES:
            for row in table.rows:
                write("short", row, [80.0, 81.0], dataset)
    write("mini", "simclr", [30.0], epochs=5)
    assert script("report.py", "--figures").returncode == 0
    assert {path.stem for path in (tmp_path / "figures/short").iterdir()} == set(report.FIGURES)
    assert {"ll-1a", "ll-2", "ll-4", "row-norms"} <= {p.stem for p in (tmp_path / "figures/mini").iterdir()}
    text, _, _ = made(script, tmp_path)
    linked = re.findall(r"\((figures/[a-z]+/[^)]*)\)", text)
    assert linked and all((tmp_path / path).exists() for path in linked)


def test_the_committed_page_and_figures_are_those_of_the_committed_results(script, tmp_path):
    (tmp_path / "results").symlink_to(ROOT / "results")
    text, _, _ = made(script, tmp_path)
    assert text == (ROOT / "RESULTS.md").read_text()
    assert script("report.py", "--figures").returncode == 0
    for path in (tmp_path / "figures").glob("*/*.png"):
        assert (ROOT / path.relative_to(tmp_path)).exists(), path
    for link in re.findall(r"\((figures/[^)]*)\)", text):
        assert (ROOT / link).exists(), link


def test_committed_results_are_small_and_rounded():
    for path in (ROOT / "results").glob("*/*/*/*.json"):
        content = common.read_json(path)
        for values in content["spectra"].values():
            assert all(value == float(f"{value:.6g}") for value in values or ())
        assert path.stat().st_size < 150_000 and "dirty" not in (content["config"]["git"] or ""), path
