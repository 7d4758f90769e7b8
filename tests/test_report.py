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


def hand_made(seed, row="simclr", scale="short", dataset="cifar10", knn=50.0, **more):
    """What result.json holds, as far as the report reads it; more: other values, in config and arguments
    with these prefixes and two underscores."""
    size, layers = 512, ("h", "z", "penultimate", "projector_hidden")
    reg = next((reg for reg in ("werank", "lastlayer", "sparsehead") if row.endswith(f"-{reg}")), "none")
    base = row.removesuffix(f"-{reg}")
    name = {"cs": "cs-d480-k0", "sh-resnet50": "simclr"}.get(base, base.removeprefix("sh-"))
    name = name.replace("kinv", "k0.0441942") + (f"-{reg}" if reg != "none" else "")
    arguments = {
        "seed": seed, "dataset": dataset, "reg": reg, "temperature": 0.2, "batch_size": 128, "lr": 0.06,
        "train_size": 5000 if scale == "mini" else None, "width": 8 if scale == "mini" else 64,
        "epochs": {"paper": 200, "short": 50, "mini": 5}.get(scale, 1), "optimizer": "sgd", "stem": "cifar",
        "weight_decay": 5e-4, "crop_scale": [0.08, 1.0], "jitter": [0.4, 0.4, 0.4, 0.1], "grey_p": 0.2,
        "blur_p": 0.0, "solarize_p": 0.0, "reg_on": None, "image_size": 32, "arch": "resnet18",
        "reg_weight": {"none": 0.0, "lastlayer": 1.0, "werank": 0.1, "sparsehead": 1e-4}[reg],
    }  # fmt: skip
    script = "directclr.py" if "directclr" in row else "barlow.py" if "barlow" in row else "simclr.py"
    script = "byol.py" if "byol" in row else script
    if row.startswith("sh-"):
        arguments |= {"temperature": 0.5, "lr": 3e-3, "batch_size": 128 if scale == "mini" else 512}
        arguments |= {"optimizer": "adam", "weight_decay": 1e-6, "crop_scale": [0.2, 1.0], "grey_p": 0.1}
        arguments["arch"] = "resnet50" if "resnet50" in row else "resnet18"
        arguments["epochs"] = 1000 if scale == "paper" else arguments["epochs"]
    result = {
        "config": {"arguments": arguments, "device": "H100", "torch": "2.11.0+cu130", "name": name,
                   "script": script},
        "knn200": knn, "knn5": knn - 1, "linear_top1": knn + 1, "linear_top5": 90.0, "seconds": 120.0,
        "rankme": dict.fromkeys(layers, 5.0), "min_max_ratio": dict.fromkeys(layers, 2.0),
        "spectra": dict.fromkeys(layers, np.exp(-np.arange(size) / 40).tolist()),
        "covariance": {layer: {"block": np.eye(4).tolist(), "offdiagonal": 0.1} for layer in layers},
        "row_norms": dict.fromkeys(("bare", "folded", "variance"), [1.0] * size),
        "dim": 3, "subvector_linear_top1": knn - 5,
    }  # fmt: skip
    for key, value in more.items():
        place, _, key = key.rpartition("__")
        {"": result, "config": result["config"], "arguments": arguments}[place][key] = value
    return json.loads(json.dumps(result))


@pytest.fixture
def write(tmp_path):
    """write("short", "simclr", [80, 81]): results of seeds 0, 1 with these kNN; returns the last file."""

    def call(scale, row, knn, dataset="cifar10", seeds=None, **more):
        for seed, value in zip(seeds or range(len(knn)), knn):
            path = tmp_path / "results" / scale / dataset / row / f"seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(hand_made(seed, row, scale, dataset, value, **more)))
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
    assert "4 runs: all images, width 64, 50 epochs, batch 128, D = 512; H100, torch 2.11.0+cu130." in text
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
        ([1.0, 1.1, 0.9, float("nan")], 0, False, "holds"),
        ([1.0, 1.1, float("nan")], 0, False, "undecided"),
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
        "3 of 4 differences as claimed, 3 of them shown; 0 refuted"
    )
    shutil.rmtree(tmp_path / "results/short/cifar10/cs-lastlayer")
    cell = made(script, tmp_path)[1]["C13"][0]
    assert cell[2] == "**undecided**" and "1 not measured" in cell[3]  # three that hold are not four


def test_mini_decides_nothing_and_scales_never_share_a_table(write, script, tmp_path):
    for base in report.BASES:
        write("mini", base, [30.0, 31.0, 32.0])
        write("mini", f"{base}-lastlayer", [35.0, 36.1, 36.9])
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


def test_a_scale_with_three_pairs_is_judged_before_a_larger_one_with_fewer(write, script, tmp_path):
    for scale, count in (("paper", 1), ("short", 3)):
        write(scale, "simclr", [80.0, 81.0, 82.0][:count])
        write(scale, "simclr-lastlayer", [79.0, 80.1, 80.9][:count])
    _, lines, _ = made(script, tmp_path)
    assert lines["C13"][0][2] == "**fails**" and lines["C13"][0][4].startswith("`short`")


def test_only_seeds_that_both_rows_have_are_compared(write, script, tmp_path):
    write("short", "simclr", [80.0, 81.0, 82.0], seeds=[0, 1, 2])
    write("short", "simclr-lastlayer", [83.0, 85.0, 99.0], seeds=[1, 2, 7])
    _, lines, _ = made(script, tmp_path)
    assert lines["kNN-200: simclr-lastlayer > simclr"][0][1].startswith("+2.50 [") and lines[
        "kNN-200: simclr-lastlayer > simclr"][0][3] == "2"  # fmt: skip
    assert lines["C13"][0][2] == "**undecided**"


def test_a_refutation_has_to_stand_among_all_of_a_claims_differences(write, script, tmp_path):
    for base in report.BASES:
        write("short", base, [80.0, 81.0, 82.0])
        write("short", f"{base}-lastlayer", [81.0, 82.1, 82.9])
    gaps = [-0.3, -0.5, -0.4]  # 95 %: -0.4 ± 0.25; four differences, 98.75 %: ± 0.53
    write("short", "cs-lastlayer", [x + gap for x, gap in zip((80.0, 81.0, 82.0), gaps)])
    _, lines, _ = made(script, tmp_path)
    assert lines["kNN-200: cs-lastlayer > cs"][0][-1] == "undecided, against it"
    assert lines["C13"][0][2] == "**undecided**" and "0 refuted" in lines["C13"][0][3]


def test_mini_never_outranks_a_larger_scale(write, script, tmp_path):
    for scale, count in (("mini", 3), ("short", 2)):
        for row in report.QUESTION:
            write(scale, row, [80.0, 81.0, 82.0][:count])
    text, lines, _ = made(script, tmp_path)
    assert lines["C13"][0][4] == "`short`, CIFAR-10, n = 2" and lines["C13"][0][2] == "**undecided**"
    assert "At scale `short`" in text.splitlines()[2]


def test_a_part_of_a_larger_scale_erases_no_verdict(write, script, tmp_path):
    for base in report.BASES:
        write("short", base, [80.0, 81.0, 82.0])
        write("short", f"{base}-lastlayer", [79.0, 80.1, 80.9])
    write("paper", "simclr", [85.0, 86.0, 87.0])
    write("paper", "simclr-lastlayer", [86.0, 87.1, 87.9])
    cell = made(script, tmp_path)[1]["C13"][0]
    assert cell[2] == "**fails**" and cell[4].startswith("`short`")


def test_runs_of_other_devices_or_torch_are_no_pairs(write, script, tmp_path):
    write("short", "simclr", [80.0, 81.0, 82.0])
    write("short", "simclr-lastlayer", [81.0, 82.0], config__device="H200")
    write("short", "simclr-lastlayer", [85.0], seeds=[2], config__torch="2.12.0")
    _, lines, _ = made(script, tmp_path)
    assert lines["C13"][0][2] == "**no data**"
    write("short", "simclr-lastlayer", [84.0, 86.0], config__torch="2.11.0+cu128")
    _, lines, _ = made(script, tmp_path)
    assert lines["kNN-200: simclr-lastlayer > simclr"][0][3] == "2"
    write("short", "simclr", [80.0], config__device="x86_64 CPU, 2 threads")
    write("short", "simclr-lastlayer", [84.0], config__device="x86_64 CPU, 1 threads")
    assert made(script, tmp_path)[1]["kNN-200: simclr-lastlayer > simclr"][0][3] == "2"


def test_numbers_of_imagenet_are_named_and_not_subtracted(write, script, tmp_path):
    write("short", "directclr", [60.0, 61.0, 62.0])
    write("short", "simclr-linear", [60.0, 61.0, 62.0])
    _, lines, _ = made(script, tmp_path)
    directclr = next(line for line in lines["`directclr`"] if "62.7" in line)
    assert directclr[1:4] == ["62.0 ± 1.0 (3)", "62.7", "–"]
    assert lines["linear: directclr > simclr-linear"][0][4] == "+1.60 (ImageNet)"
    assert lines["linear: directclr > directclr, probe on z"][0][1:5] == [
        "+6.00 [+6.00, +6.00]", "0.00", "3", "+14.80 (ImageNet)",
    ]  # fmt: skip


SPECTRA = hand_made(0)["spectra"]
COVARIANCE = hand_made(0)["covariance"]
NORMS = hand_made(0)["row_norms"]


@pytest.mark.parametrize(
    "content, why",
    [
        ("{", "is not a readable JSON file"),
        ("[" * 200_000, "is not a readable JSON file"),
        (b"\xff\xfe", "is not a readable JSON file"),
        ("[]", "list indices"),
        ("3", "not subscriptable"),
        ("{}", "lacks 'config'"),
        ({"config": None}, "not subscriptable"),
        ({"arguments__seed": 1}, "holds seed 1"),
        ({"arguments__seed": "0"}, "holds seed 0"),
        ({"arguments__seed": 0.0}, "holds seed 0.0"),
        ({"arguments__dataset": "cifar100"}, "of cifar100"),
        ({"arguments__epochs": 3}, "epochs 3, not 50"),
        ({"arguments__width": 8}, "width 8, not 64"),
        ({"arguments__train_size": 5000}, "train_size 5000, not None"),
        ({"arguments__temperature": 0.5}, "temperature 0.5, not 0.2"),
        ({"arguments__image_size": 16}, "image_size 16, not 32"),
        ({"arguments__blur_p": 0.5}, "blur_p 0.5, not 0.0"),
        ({"arguments__stem": "imagenet"}, "stem imagenet, not cifar"),
        ({"arguments__embedding": 4}, "embedding 4, not None"),
        ({"arguments__lr": None}, "lr None, not 0.06"),
        ({"config__script": "byol.py"}, "byol.py, not simclr.py"),
        ({"arguments__reg": "lastlayer"}, "reg lastlayer, not none"),
        ({"config__name": "noproj-lastlayer"}, "noproj-lastlayer, not noproj"),
        ({"config__device": None}, "lacks its origin"),
        ({"knn200": None}, "has no valid knn200"),
        ({"knn200": "50"}, "has no valid knn200"),
        ({"knn200": True}, "has no valid knn200"),
        ({"knn200": -5}, "has no valid knn200"),
        ({"knn200": 3000}, "has no valid knn200"),
        ({"linear_top1": 10**400}, "has no valid linear_top1"),
        ({"seconds": -1}, "has no valid seconds"),
        ({"spectra": {**SPECTRA, "h": []}}, "spectrum"),
        ({"spectra": {**SPECTRA, "h": [1.0]}}, "dimensions"),
        ({"spectra": {**SPECTRA, "z": None}}, "spectrum"),
        ({"spectra": {**SPECTRA, "h": [-1.0] * 512}}, "spectrum"),
        ({"spectra": {**SPECTRA, "penultimate": [1.0] * 64}}, "[64, 512] dimensions"),
        ({"spectra": {"h": SPECTRA["h"]}}, "lacks"),
        ({"rankme": {"h": None, "z": 1, "penultimate": 1}}, "rankme"),
        ({"row_norms": {**NORMS, "bare": []}}, "[0, 512] dimensions"),
        ({"row_norms": {**NORMS, "folded": ["1"] * 512}}, "row_norms, folded"),
        (
            {"covariance": {**COVARIANCE, "h": {"block": [[1], [2, 3]], "offdiagonal": 1}}},
            "square covariance",
        ),
        ({"covariance": {**COVARIANCE, "h": {"offdiagonal": 1}}}, "lacks 'block'"),
    ],
)
def test_what_is_no_result_is_named_and_left_out_with_exit_code_1(write, script, tmp_path, content, why):
    write("short", "simclr", [80.0, 81.0, 82.0], seeds=[1, 2, 3])
    path = write("short", "noproj", [70.0])
    if isinstance(content, dict):
        write("short", "noproj", [70.0], **content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    text, lines, err = made(script, tmp_path, code=1)
    assert "results/short/cifar10/noproj/seed0.json" in err and why in err and len(err.splitlines()) == 1
    assert why in text and lines["`noproj`"][0][1] == "not measured"
    assert lines["`simclr`"][0][1] == "81.0 ± 1.0 (3)"


@pytest.mark.parametrize(
    "row, damage, why",
    [
        ("simclr", {"spectra": {**SPECTRA, "projector_hidden": None}}, "spectrum"),
        ("directclr", {"subvector_linear_top1": None}, "subvector_linear_top1"),
        ("directclr-d8", {"dim": "8"}, "has no valid dim"),
        ("directclr-d8", {"config__name": "directclr"}, "directclr, not directclr-d8"),
        ("cs-d200-kinv", {"config__name": "cs-d200-k0"}, "not cs-d200-k0.0441942"),
        ("sh-simclr", {"arguments__lr": 0.06}, "lr 0.06, not 0.003"),
        ("sh-resnet50", {"arguments__arch": "resnet18"}, "arch resnet18, not resnet50"),
    ],
)
def test_a_result_that_is_not_its_rows_is_left_out(write, script, tmp_path, row, damage, why):
    write("short", row, [70.0])
    made(script, tmp_path)
    write("short", row, [70.0], **damage)
    assert why in made(script, tmp_path, code=1)[2]
    assert script("report.py", "--figures").returncode == 1


@pytest.mark.parametrize(
    "place, why",
    [
        ("huge/cifar10/simclr/seed0.json", "is at the scale huge"),
        ("paper/cifar10/simclr/seed0.json", "epochs 50, not 200"),
        ("short/cifar10/noproj/seed0.json", "simclr, not noproj"),
        ("short/cifar10/simclr/seed00.json", "holds seed 0"),
        ("short/cifar10/simclr/seed 0.json", "holds seed 0"),
        ("short/cifar10/simclr/seed².json", "holds seed 0"),
        ("short/simclr.json", "is not at"),
        ("short/cifar10/simclr/seed0/result.json", "is not at"),
        ("result.json", "is not at"),
    ],
)
def test_a_result_at_a_wrong_place_is_named(script, tmp_path, place, why):
    path = tmp_path / "results" / place
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(hand_made(0)))
    _, _, err = made(script, tmp_path, code=1)
    assert place in err and why in err


@pytest.mark.parametrize("name", ["toy.json", "bench-x.json"])
@pytest.mark.parametrize("content", ["{", "[]", "3", '{"claims": [], "rows": 3}', '{"claims": {"C1": {}}}'])
def test_damaged_linear_models_and_timings_are_named(script, tmp_path, name, content):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_text(content)
    _, lines, err = made(script, tmp_path, code=1)
    assert name in err and lines["C1"][0][2] == lines["C19"][0][2] == "**no data**"


def test_no_folder_of_results_is_one_line_and_exit_code_2(script, tmp_path):
    done = script("report.py")
    assert done.returncode == 2 and len(done.err.splitlines()) == 1 and not (tmp_path / "RESULTS.md").exists()


def test_no_results_make_a_page_that_says_so(script, tmp_path):
    (tmp_path / "results").mkdir()
    text, lines, _ = made(script, tmp_path)
    assert "Nothing that answers it has been measured yet" in text
    assert {lines[claim][0][2] for claim in report.CLAIMS} == {"**no data**"}


@pytest.mark.parametrize(
    "bare, penalised, answer",
    [
        ([84.0, 84.1, 84.2], [86.0, 85.9, 86.1], "the penalty **replaces** the projector"),
        ([84.0, 84.1, 84.2], [84.0, 84.1, 83.9], "the penalty does **not replace** the projector"),
        ([84.0, 84.1, 84.2], [84.0, 88.0, 86.0], "it is **undecided** whether"),
        ([86.3, 86.4, 86.4], [86.0, 86.2, 85.9], "there is **nothing to replace**"),
        ([85.0, 87.0, 84.0], [86.0, 86.0, 86.1], "it is **undecided** whether"),  # is there a gain?
    ],
)
def test_the_page_opens_with_the_answer_in_three_sentences(write, script, tmp_path, bare, penalised, answer):
    write("short", "simclr", [86.0, 86.0, 86.1])
    write("short", "noproj", bare)
    write("short", "noproj-lastlayer", penalised)
    opening = made(script, tmp_path)[0].splitlines()[2]
    assert f"on CIFAR-10 {answer}" in opening and "is 86.0 ± 0.1 (3), " in opening
    assert "At scale `short`" in opening
    for row in report.QUESTION:
        write("short", row, [50.0, 50.1, 50.2], "cifar100")
    opening = made(script, tmp_path)[0].splitlines()[2]
    assert re.search(rf"on CIFAR-10 {re.escape(answer)}[^;]*; on CIFAR-100 there is \*\*nothing to", opening)


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
    ] + [{"what": f"{reg} alone, power of the width", "value": 2.9} for reg in ("lastlayer", "werank")]
    rows += [{"what": f"step with penalty {reg}, width 16", "value": 0.2} for reg in ("none", "lastlayer")]
    (folder / "bench-cpu.json").write_text(json.dumps({"device": "CPU", "rows": rows}))
    _, lines, _ = made(script, tmp_path)
    assert lines["C1"][0][2:4] == ["**holds**", "1 of 1 part as claimed ([all](#c1-in-linear-models))"]
    assert lines["C2"][0][2:4] == [
        "**fails**",
        "1 of 2 parts as claimed; against it: a ([all](#c2-in-linear-models))",
    ]
    assert lines["C3"][0][2] == "**no data**"
    assert (
        lines["C19"][0][2] == "**holds**"
        and "`lastlayer` 40 ms, `werank` 160 ms, 4.0 times" in lines["C19"][0][3]
    )
    (folder / "toy.json").write_text(json.dumps({"settings": settings | {"seeds": 2}, "claims": claims}))
    assert made(script, tmp_path)[1]["C1"][0][2] == "**undecided**"


def test_each_claims_statistic_sees_what_it_is_about():
    falling = np.exp(-np.arange(16.0))
    flat = np.exp(-np.arange(16.0) / 10)

    def with_h(spectrum, penultimate=flat, **layers):
        return {"spectra": {"h": spectrum, "penultimate": penultimate, "z": falling[:8], **layers}}

    def statistics(rankme_h=5.0, rankme_z=5.0, ratio_z=2.0):
        return {"rankme": {"h": rankme_h, "z": rankme_z}, "min_max_ratio": {"z": ratio_z}}

    value = {}
    for c in report.COMPARISONS:
        value.setdefault(c.claim, []).append(c.value)
    # the claims' good side first; half-way is σ_8, 7 steps of 0.1 or of 1 from σ_1
    for claim in ("C6", "C7"):
        assert value[claim][0](statistics(6.0), statistics(4.0)) == pytest.approx(2)
        assert value[claim][1](with_h(flat), with_h(falling)) == pytest.approx(0.9 * 7)
    correlated = {"covariance": {"h": {"offdiagonal": 0.3}, "z": {"offdiagonal": 0.04}}}
    assert [f(correlated) for f in value["C8"]] == pytest.approx([0.26, 0.06])
    # h moves by 0.9 k, the block before it not at all, or as much
    assert value["C9"][0](with_h(flat), with_h(falling)) == pytest.approx(0.9 * 7.5 / 3)
    assert value["C9"][0](with_h(flat), with_h(falling, falling)) == pytest.approx(0.9 * 7.5 * (1 / 3 - 1))
    # hidden layer flat, z falling, over the 8 that both have
    assert value["C10"][0](with_h(flat, projector_hidden=flat)) == pytest.approx(0.9 * 3.5)
    eighths = [f(with_h(flat), with_h(falling)) for f in value["C15"]]
    assert eighths == pytest.approx([0.9 * (2 * i + 0.5) for i in range(8)])
    # of 20 dimensions two have collapsed, with ‖W^i‖² of 1e-3 and 1: median 0.5005
    weak = {"bare": [1e-3, *[1.0] * 19], "folded": [1.0] * 20, "variance": [1e-6, 1e-5, *[1.0] * 18]}
    bare, folded = (f({"row_norms": weak}) for f in value["C11"])
    assert bare == pytest.approx(-np.log(0.5005)) and folded == 0
    whole = {"row_norms": {**weak, "variance": [0.5, *[1.0] * 19]}}
    assert all(np.isnan(f(whole)) for f in value["C11"])
    assert value["C16"][-1]({"linear_top1": 51.0, "subvector_linear_top1": 44.0}) == 7
    penalised, usual = statistics(6.0, 3.0, 2.5), statistics()
    assert [f(penalised, usual) for f in value["C18"][:3]] == pytest.approx([2.0, 1.0, 0.5])


def test_the_opening_compares_the_seeds_that_all_three_rows_have(write, script, tmp_path):
    for row in report.QUESTION:
        write("short", row, [80.0, 81.0, 82.0])
    write("short", "simclr", [99.0], seeds=[7])
    write("short", "noproj", [10.0], seeds=[7])
    opening = made(script, tmp_path)[0].splitlines()[2]
    assert opening.count("81.0 ± 1.0 (3)") == 3 and "is worth +0.00 [+0.00, +0.00]" in opening


def test_two_rows_that_only_rounding_separates_show_what_it_does(write, script, tmp_path):
    write("short", "directclr", [80.0, 81.0, 82.0])
    write("short", "simclr-lowrank-diagonal", [80.5, 80.0, 82.0])
    text, _, _ = made(script, tmp_path)
    assert "On CIFAR-10 they differ by +0.17 [-1.73, +2.06] (kNN-200, n = 3), +0.17" in text


def test_a_claim_about_collapsed_dimensions_waits_for_one(write, script, tmp_path):
    write("short", "noproj", [80.0, 81.0, 82.0])
    cell = made(script, tmp_path)[1]["C11"][0]
    assert cell[2] == "**undecided**" and cell[3].startswith("nothing to judge: no dimension has collapsed")
    norms = {**NORMS, "variance": [1e-9, *[1.0] * 511]}
    write("short", "noproj", [80.0, 81.0, 82.0], row_norms=norms)
    assert made(script, tmp_path)[1]["C11"][0][2] == "**fails**"
    norms = {"bare": [1e-3, *[1.0] * 511], "folded": [1e-2, *[1.0] * 511], "variance": norms["variance"]}
    write("short", "noproj", [80.0, 81.0, 82.0], row_norms=norms)
    assert made(script, tmp_path)[1]["C11"][0][2] == "**holds**"


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
        found = report.printed(*place)
        assert (found and found[0]) == expected, place
    assert report.printed("cifar10", "noproj", "linear_top1")[1] == "imagenet"


def test_the_report_is_the_same_byte_for_byte_when_made_twice(write, script, tmp_path):
    for base in report.TABLE2:
        write("short", base, [80.0, 81.0, 82.0])
        write("mini", base, [30.0, 31.0], "cifar100")
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
    write("mini", "simclr", [30.0])
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
