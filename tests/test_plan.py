"""The run plan: what make would run, what a budget starts and stops."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run_process

import plan


def make(folder, *arguments):
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("plan.py", "simclr.py", "directclr.py", "common.py"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    command = ["make", f"PY={sys.executable}", *arguments]
    # the variables of a make that runs these tests are not theirs
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "DATA")}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
    )


def planned(folder, *arguments):
    """[(result, script and flags without those that every run has)] of what make would run."""
    done = make(folder, "-n", *arguments)
    assert done.returncode == 0, done.stderr
    runs = re.findall(
        r"plan.py run (\S+) -- \S+ (.*?) --dataset (.*?) --data-dir data --seed (\d+) --out (\S+) --resume",
        " ".join(done.stdout.replace("\\\n", " ").split()),
    )
    for result, _, data, seed, out in runs:
        name = result.removeprefix("results/").removesuffix(".json")
        assert out == f"runs/{name}" and name.endswith(f"/seed{seed}")
        assert name.split("/")[1] == data.removeprefix("data/").removesuffix(" --image-size 64")
    return [(result, command) for result, command, *_ in runs]


REG = {
    "": "",
    "-werank": " --reg werank",
    "-lastlayer": " --reg lastlayer",
    "-sparsehead": " --reg sparsehead",
}
TABLE_2 = {
    row + reg: line + REG[reg]
    for row, line in {
        "simclr": "simclr.py",
        "noproj": "simclr.py --no-projector",
        "directclr": "directclr.py",
        "cs": "simclr.py --no-projector --fixed-dims 32",
    }.items()
    for reg in ("", "-lastlayer", "-werank")
}
TABLE_1 = {
    f"cs-d{d0}-{name}": f"simclr.py --no-projector --fixed-dims {512 - d0} --fixed-value {value}"
    for d0 in (200, 400, 480)
    for name, value in (("k0", "0"), ("kinv", "0.0441942"), ("k1", "1"))
}
DIRECTCLR = {
    "simclr": "simclr.py",
    "noproj": "simclr.py --no-projector",
    "directclr": "directclr.py",
    **{f"simclr-{p}": f"simclr.py --projector {p}" for p in ("linear", "orthogonal", "diagonal", "lowrank")},
    "simclr-lowrank-diagonal": "simclr.py --projector lowrank-diagonal",
    "directclr-random": "directclr.py --subvector random",
    **{f"directclr-d{d}": f"directclr.py --dim {d}" for d in (8, 32, 128, 256, 512)},
}
BARLOW = {
    row + reg: line + REG[reg]
    for row, line in {"barlow": "barlow.py", "barlow-noproj": "barlow.py --no-projector"}.items()
    for reg in ("", "-lastlayer", "-werank")
    if row + reg != "barlow-lastlayer"
}


@pytest.mark.parametrize(
    "target, rows",
    [("table2", TABLE_2), ("table1", TABLE_1), ("directclr-tables", DIRECTCLR), ("barlow", BARLOW)],
)
def test_a_table_is_its_documented_runs_seed_by_seed(tmp_path, target, rows):
    assert planned(tmp_path, target, "SCALE=short", "SEEDS=0 3") == [
        (f"results/short/{data}/{row}/seed{k}.json", f"{line} --epochs 50")
        for k in "03"
        for data in ("cifar10", "cifar100")
        for row, line in rows.items()
    ]


@pytest.mark.parametrize(
    "data, rate, epochs",
    [("cifar100", "3e-3", 1000), ("stl10", "2e-3", 2000), ("tiny-imagenet", "2e-3", 1000)],
)
def test_the_sparsehead_table_has_sparseheads_recipe(tmp_path, data, rate, epochs):
    recipe = (
        f"--batch-size 512 --optimizer adam --lr {rate} --weight-decay 1e-6 --epochs {epochs} "
        "--crop-scale 0.2 1 --grey-p 0.1"
    )
    lines = {
        "sh-simclr": "simclr.py --embedding 512 --temperature 0.5",
        "sh-byol": "byol.py",
        "sh-barlow": "barlow.py",
        "sh-simclr-linear": "simclr.py --projector linear --embedding 512 --temperature 0.5",
        "sh-resnet50": "simclr.py --arch resnet50 --embedding 2048 --temperature 0.5",
    }
    expected = [("sh-noproj", f"simclr.py --no-projector --temperature 0.5 {recipe}")]
    for row, line in lines.items():
        expected += [(row, f"{line} {recipe}"), (f"{row}-sparsehead", f"{line} {recipe} --reg sparsehead")]
    assert planned(tmp_path, "sparsehead-table", "SEEDS=4", f"DATASETS={data}") == [
        (f"results/paper/{data}/{row}/seed4.json", line) for row, line in expected
    ]


def test_mini_keeps_the_papers_shares_of_64_dimensions(tmp_path):
    rows = dict(planned(tmp_path, "table1", "directclr-tables", "table2", "SCALE=mini", "SEEDS=0"))
    mini = " --train-size 5000 --width 8 --epochs 5 --batch-size 128"
    for row, line in {
        "cs-d200-k0": "simclr.py --no-projector --fixed-dims 39 --fixed-value 0",  # 312 · 64/512
        "cs-d400-kinv": "simclr.py --no-projector --fixed-dims 14 --fixed-value 0.125",  # 112 · 64/512, 1/√64
        "cs-d480-k1": "simclr.py --no-projector --fixed-dims 4 --fixed-value 1",
        "cs-werank": "simclr.py --no-projector --fixed-dims 4 --reg werank",
        "directclr-d8": "directclr.py --dim 1",
        "directclr-d512": "directclr.py --dim 64",
    }.items():
        assert rows[f"results/mini/cifar10/{row}/seed0.json"] == line + mini


def test_all_is_every_table_once_then_the_report(tmp_path):
    done = make(tmp_path, "-n", "all", "SEEDS=0", "DATASETS=cifar10")
    runs = re.findall(r"plan.py run (\S+)", done.stdout)
    assert len(runs) == len(set(runs)) == 12 + 9 + 11 + 5 + 11
    assert (
        done.stdout.index("toy_linear.py")
        < done.stdout.rindex("plan.py run")
        < done.stdout.rindex("report.py")
    )
    assert "report.py" in make(tmp_path, "-n", "report").stdout
    assert "report.py --figures" in make(tmp_path, "-n", "figures").stdout


@pytest.mark.parametrize(
    "row, scale, why", [("simclr", "paper", "not of SCALE=paper"), ("x", "mini", "row x")]
)
def test_a_result_has_a_row_and_the_scale_that_make_runs_at(tmp_path, row, scale, why):
    done = make(tmp_path, f"results/mini/cifar10/{row}/seed0.json", f"SCALE={scale}")
    assert done.returncode == 2 and why in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "line", ["list foo", "list results/a.json", "run foo -- true", "run {} --", "run {} -- no"]
)
def test_the_plan_refuses_what_is_no_result_and_no_command(tmp_path, line):
    line = line.format("results/mini/cifar10/simclr/seed0.json").split()
    done = run_process(tmp_path, ROOT / "plan.py", *line)
    assert done.returncode == 2 and "error:" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_finished_runs_are_skipped(tmp_path):
    for row in TABLE_2:
        if row != "cs":
            path = tmp_path / f"results/paper/cifar10/{row}/seed0.json"
            path.parent.mkdir(parents=True)
            path.write_text("{}")
    runs = planned(tmp_path, "table2", "SEEDS=0", "DATASETS=cifar10")
    assert [result for result, _ in runs] == ["results/paper/cifar10/cs/seed0.json"]


@pytest.mark.parametrize(
    "argument",
    [
        "BUDGET=9x",
        "BUDGET=-3m",
        "BUDGET=m",
        "BUDGET=1.5h",
        "BUDGET=9999999999h",
        "SCALE=huge",
        "SCALE=%",
        "SEEDS=",
        "SEEDS=abc",
        "SEEDS=-1",
        "SEEDS=0,1",
        "SEEDS=1 02",
        "DATASETS=",
        "DATASETS=CIFAR10",
        "DATASETS=data/cifar10",
    ],
)
def test_a_bad_variable_is_one_line_and_exit_code_2(tmp_path, argument):
    done = make(tmp_path, "table2", argument)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert argument in done.stderr and not (tmp_path / "runs").exists()


def timed_run(row, epochs, finished, scale="short", device="d", seconds=60.0, rest=30.0):
    """A folder in runs/ as a run of 10 epochs leaves it."""
    folder = plan.Path("runs", scale, "cifar10", row, "seed0")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"device": device, "arguments": {"epochs": 10}}))
    lines = [{"epoch": i + 1, "seconds": 20 + seconds * (i + 1)} for i in range(epochs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(folder / "config.json", (1000, 1000))
    if finished:  # after a long break
        (folder / "result.json").write_text("{}")
        os.utime(folder / "metrics.jsonl", (1_000_000, 1_000_000))
        os.utime(folder / "result.json", (1_000_000 + rest, 1_000_000 + rest))
    return plan.Path("results", scale, "cifar10", row, "seed0.json")


def test_the_plan_tells_what_is_left_by_the_pace_of_this_scale_and_device(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    waiting = plan.Path("results/short/cifar10/noproj/seed0.json")
    assert plan.pace("short") is None and plan.seconds_left(waiting, None) is None
    timed_run("simclr", 10, finished=True)
    half = timed_run("cs", 4, finished=False)
    timed_run("simclr", 10, finished=True, scale="mini", seconds=1.0)
    known = plan.pace("short")
    assert known == (60.0, 20 + 15 + 30.0, 10)  # the first epoch's extra, the start, the evaluation
    assert plan.seconds_left(waiting, known) == 665 and plan.seconds_left(half, known) == 425
    half.parent.mkdir(parents=True)
    half.write_text('{"config": 1}')
    plan.show([half, waiting], brief=True)
    assert capsys.readouterr().out == (
        "1 of 2 runs done; next short/cifar10/noproj/seed0, which needs 11.1 min; all need 11.1 min\n"
    )
    newer = timed_run("noproj-werank", 10, finished=True, device="other", seconds=3.0)
    os.utime(plan.folder_of(newer) / "config.json", (2000, 2000))
    assert plan.pace("short")[0] == 3.0


def test_a_budget_starts_only_what_will_finish(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = timed_run("simclr", 4, finished=False)
    (plan.folder_of(result) / "result.json").write_text("{}")  # what the command would leave
    needed = plan.seconds_left(result, plan.pace("short"))
    started = [sys.executable, "-c", "open('started', 'w')"]
    monkeypatch.setenv("DEADLINE", str(time.time() + needed - 30))
    assert plan.train(result, started) == 0 and not result.exists() and not plan.Path("started").exists()
    monkeypatch.setenv("DEADLINE", str(time.time() + needed + 30))
    assert plan.train(result, started) == 0 and result.exists() and plan.Path("started").exists()


def test_damaged_files_are_named_or_tell_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = timed_run("simclr", 10, finished=True)
    for row, content in (("a", "{"), ("b", "[]"), ("c", '{"a": 1}')):
        (plan.folder_of(timed_run(row, 3, finished=False)) / "config.json").write_text(content)
    with open(plan.folder_of(good) / "metrics.jsonl", "a") as file:
        file.write('{"epoch"')
    assert plan.pace("short")[0] == 60.0 and len(plan.epochs_done(plan.folder_of(good))) == 10
    good.parent.mkdir(parents=True)
    good.write_text("{")
    with pytest.raises(SystemExit, match="delete it: results/short/cifar10/simclr/seed0.json"):
        plan.show([good], brief=True)
    assert "0 of 1 runs done" in capsys.readouterr().out


def test_a_failed_run_is_named_with_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = plan.Path("results/short/cifar10/simclr/seed0.json")
    assert plan.train(result, [sys.executable, "-c", "raise SystemExit(3)"]) == 3
    message = "short/cifar10/simclr/seed0 ended with exit code 3, log runs/short/cifar10/simclr/seed0.log"
    assert message in capsys.readouterr().err and not result.exists()


def test_what_a_run_prints_is_shown_and_kept_in_its_log(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = plan.Path("results/short/cifar10/simclr/seed0.json")
    failing = "import sys; print('out'); print('é', file=sys.stderr); sys.exit(1)"
    for _ in range(2):
        assert plan.train(result, [sys.executable, "-c", failing]) == 1
    log = plan.Path("runs/short/cifar10/simclr/seed0.log").read_text()
    assert log == "out\né\n" * 2 and capsys.readouterr().out.count("out\né\n") == 2


def test_other_recipes_have_their_own_pace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    timed_run("simclr", 10, finished=True)
    slow = timed_run("sh-resnet50", 10, finished=True, seconds=300.0)
    other = plan.Path("results/short/cifar10/sh-resnet50-sparsehead/seed1.json")
    assert plan.pace(*plan.group(slow))[0] == 300 and plan.pace("short")[0] == 60
    assert plan.seconds_left(other, plan.pace(*plan.group(other))) == 10 * 300 + 65
    assert plan.pace(*plan.group(plan.Path("results/short/cifar10/sh-byol/seed0.json"))) is None


def test_a_budget_stops_a_run_of_unknown_pace_and_the_next_make_continues_it(tmp_path, tiny):
    shutil.copy(tiny, tmp_path / "cifar10.npz")
    rows = ("table2", "SEEDS=0", "DATASETS=cifar10", "SCALE=mini", "DATA=.", "simclr=simclr.py --device cpu")
    short = "mini=--width 4 --batch-size 32 --eval-every 0 --epochs "
    cut = make(tmp_path, *rows, f"{short}4000", "BUDGET=15s")
    assert cut.returncode == 0, cut.stderr
    assert re.search(r"0 of 12 runs done; next mini/cifar10/simclr/seed0, which needs \d", cut.stdout)
    folder = tmp_path / "runs/mini/cifar10/simclr/seed0"
    assert (folder / "checkpoint.pt").exists() and not (folder / "result.json").exists()
    before = len((folder / "metrics.jsonl").read_text().splitlines())
    again = make(tmp_path, *rows, f"{short}4000", "BUDGET=15s")
    assert again.returncode == 0 and "0 of 12" in again.stdout  # too long by the pace that is known now
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == before
