"""The run plan: what make would run, what a budget starts and stops."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import plan


def make(folder, *arguments):
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("plan.py", "simclr.py", "directclr.py", "common.py"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    command = ["make", f"PY={sys.executable}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


def test_table_2_is_its_documented_runs_seed_by_seed(tmp_path):
    done = make(tmp_path, "-n", "table2", "SCALE=short", "SEEDS=0 3")
    assert done.returncode == 0, done.stderr
    runs = re.findall(
        r"plan.py run (\S+) -- \S+ (.*) --dataset (\S+) .*--seed (\d)", done.stdout.replace("\\\n", "")
    )
    rows = {
        "simclr": "",
        "simclr-lastlayer": "--reg lastlayer",
        "simclr-werank": "--reg werank",
        "noproj": "--no-projector",
        "noproj-lastlayer": "--no-projector --reg lastlayer",
        "noproj-werank": "--no-projector --reg werank",
        "directclr": "",
        "directclr-lastlayer": "--reg lastlayer",
        "directclr-werank": "--reg werank",
        "cs": "--no-projector --fixed-dims 32",
        "cs-lastlayer": "--no-projector --fixed-dims 32 --reg lastlayer",
        "cs-werank": "--no-projector --fixed-dims 32 --reg werank",
    }
    expected = [
        (
            f"results/short/{data}/{row}/seed{k}.json",
            f"{'directclr' if 'directclr' in row else 'simclr'}.py {flags} --epochs 50",
            data,
            k,
        )
        for k in "03"
        for data in ("cifar10", "cifar100")
        for row, flags in rows.items()
    ]
    assert [(name, " ".join(command.split()), data, k) for name, command, data, k in runs] == [
        (name, " ".join(command.split()), data, k) for name, command, data, k in expected
    ]


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
    assert (
        "short/cifar10/simclr/seed0 ended with exit code 3" in capsys.readouterr().err and not result.exists()
    )


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
