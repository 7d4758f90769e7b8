"""The rows: recipes, aliases, whose a result is. The plan: what runs, budgets, signals and kills."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice, product

import pytest
from conftest import ROOT, comparable, put, read

import plan
import rows

COUNTS = {"table2": 12, "table1": 9, "barlow": 5, "directclr-tables": 14, "sparsehead-table": 11}
COUNTS |= {"clock": 24}
LL = {"epochs": 200, "batch_size": 128, "optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "width": 64}
LL |= {"crop_scale": [0.08, 1.0], "grey_p": 0.2, "stem": "cifar", "image_size": 32, "train_size": None}
SH = {"epochs": 1000, "batch_size": 512, "optimizer": "adam", "lr": 3e-3, "weight_decay": 1e-6, "width": 64}
SH |= {"crop_scale": [0.2, 1.0], "grey_p": 0.1, "stem": "cifar", "image_size": 32, "train_size": None}
STL = {"epochs": 2000, "lr": 2e-3, "image_size": 96, "stem": "imagenet", "dataset": "stl10"}
TINY = {"lr": 2e-3, "image_size": 64}
BIG = {"arch": "resnet50", "optimizer": "lars", "image_size": 224, "stem": "imagenet"}
BIG |= {"epochs": 100, "lr": 4.8, "weight_decay": 1e-6, "warmup_epochs": 10, "blur_p": [1.0, 0.1]}
BIG |= {"solarize_p": [0.0, 0.2], "jitter": [0.4, 0.4, 0.2, 0.1]}
SMALLER = {"batch_size": 256, "lr": 0.3, "epochs": 200, "jitter": [0.8, 0.8, 0.8, 0.2], "blur_p": 0.5}
SMALLER |= {"warmup_epochs": 0, "weight_decay": 1e-6, "solarize_p": 0.0}
WANTED = [  # beside these, the arguments of every committed result, which test_report.py compares
    ("noproj", "short", "cifar10", LL | {"projector": "none", "epochs": 50, "fixed_dims": None}),
    ("noproj", "paper", "imagenet", BIG | {"temperature": 0.1, "cross_view": True, "batch_size": 4096}),
    ("directclr", "paper", "imagenet", BIG | {"dim": None}),
    ("barlow-werank", "paper", "imagenet", BIG | {"lambd": 5e-3}),
    ("noproj-lastlayer", "paper", "imagenet100", BIG | SMALLER | {"temperature": 0.2, "reg_weight": 1.0}),
    ("cs-werank", "paper", "cifar10", {"fixed_dims": 32, "fixed_value": 0.0, "projector": "none"}),
    ("cs-d200-k1", "paper", "cifar10", {"fixed_dims": 312, "fixed_value": 1.0}),
    ("cs-d400-kinv", "paper", "cifar10", {"fixed_dims": 112, "fixed_value": 512**-0.5}),
    *((f"directclr-d{d}", "paper", "cifar10", {"dim": d}) for d in (8, 32, 128, 256, 512)),
    ("sh-noproj", "paper", "stl10", SH | STL | {"projector": "none", "reg": "none"}),
    ("sh-simclr", "paper", "tiny-imagenet", SH | TINY | {"embedding": 512}),
    ("sh-byol", "paper", "imagenet", {"arch": "resnet50", "optimizer": "adam", "epochs": 1000}),
    ("sh-simclr", "mlp", "tiny-imagenet", {"image_size": 16, "arch": "mlp", "epochs": 1000}),
    ("sh-simclr", "compressed", "cifar10", {"epochs": 10, "width": 32, "weight_decay": 1e-6}),
    ("sh-resnet50", "mlp", "cifar10", {"image_size": 16, "arch": "resnet50"}),
    ("sh-byol", "short", "cifar10", SH | {"epochs": 50}),
    ("sh-byol-sparsehead", "paper", "stl10", SH | STL | {"embedding": None, "momentum": 0.99}),
    ("noproj-lastlayer-0.1", "paper", "cifar10", {"reg": "lastlayer", "reg_weight": 0.1}),
]
PLACE = ("noproj-lastlayer", "mini", "cifar10")
# A script as the plan sees one: it locks its folder, saves when it is stopped, waits where there is a gate.
SCRIPT = f"""
import fcntl, json, os, pathlib, signal, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
fcntl.flock(os.open(out, os.O_RDONLY), fcntl.LOCK_EX)
if sys.argv[-1] == "--resume" and (out / "result.json").exists():
    sys.exit()
def stop(number, _):
    (out / "checkpoint.pt").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop), signal.signal(signal.SIGTERM, stop)
result = json.load(open("{ROOT}/results/mini/cifar10/" + out.parts[-2] + "/seed0.json"))
(out / "config.json").write_text(json.dumps(result["config"]))
print("é ready", os.environ.get("OMP_NUM_THREADS"), sys.argv[-1], flush=True)
if os.path.exists("gate"):
    open("gate").read()
codes = json.load(open("codes")) if os.path.exists("codes") else {{}}
if out.parts[-2] in codes:
    code, _, said = str(codes[out.parts[-2]]).partition(" ")
    print(said, end=said and "\\n")
    sys.exit(int(code))
(out / "result.json").write_text(json.dumps(result))
"""
TABLE_2 = ("run", "table2", "--scale=mini", "--seeds=0", "--datasets=cifar10")


def test_tables_have_the_papers_rows_with_ll_or_sparseheads_recipe_and_no_scale_ends_within_a_warmup():
    assert {table: len(rows.of(table)) for table in COUNTS} == COUNTS
    for row in (row for row in rows.ROWS if row.tables != "clock"):
        name = row.name
        found = rows.arguments(name, "paper", "cifar100")
        recipe, temperature = (SH, 0.5) if row.tables == "sparsehead-table" else (LL, 0.2)
        assert found.items() >= recipe.items() and found.get("temperature", temperature) == temperature
        assert found["arch"] == ("resnet50" if "resnet50" in name else "resnet18")
        weight = {"werank": 0.1, "lastlayer": 1.0, "sparsehead": 1e-4}.get(name.split("-")[-1], 0.0)
        if row.tables != "weights":
            assert (found["reg"], found["reg_weight"]) == (name.split("-")[-1] if weight else "none", weight)
    places = product(rows.ROWS, rows.SCALES, ("cifar10", "imagenet100", "imagenet"))
    each = [rows.arguments(row.name, scale, dataset) for row, scale, dataset in places]
    assert all(args["warmup_epochs"] < args["epochs"] for args in each)


@pytest.mark.parametrize("name, scale, dataset, wanted", WANTED)
def test_a_rows_script_understands_its_command_as_the_paper_has_it(name, scale, dataset, wanted):
    assert rows.arguments(name, scale, dataset).items() >= wanted.items()


@pytest.mark.parametrize("name, other", [(row.name, row.same_as) for row in rows.ROWS if row.same_as])
def test_an_alias_is_the_same_run_to_the_last_digit(finished, name, other):
    one, two = (rows.arguments(row, "paper", "cifar10") for row in (name, other))
    assert [key for key in one.keys() & two.keys() if one[key] != two[key]] == []
    one, two = (comparable(finished(rows.ROW[row].command))[1] for row in (name, other))
    shared = two.keys() - {"config"}
    assert "weight_spectra" in shared and [key for key in shared if one[key] != two[key]] == []


def recorded(script="simclr.py", **changes):
    """The configuration of a committed result of PLACE, with changed arguments."""
    config = read(ROOT / "results/mini/cifar10/noproj-lastlayer", "seed0.json")["config"]
    return config | {"script": script, "arguments": config["arguments"] | changes}


def test_a_result_with_another_argument_or_script_or_of_another_place_is_not_the_rows():
    other = {"epochs": 200, "width": 64, "train_size": None, "batch_size": 256, "lr": 0.03, "reg": "werank"}
    other |= {"weight_decay": 1e-6, "reg_weight": 0.1, "reg_on": "projector", "optimizer": "adam"}
    other |= {"projector": "mlp", "temperature": 0.5, "cross_view": True, "crop_scale": [0.2, 1.0]}
    other |= {"arch": "mlp", "stem": "imagenet", "image_size": 64, "dataset": "cifar100", "fixed_dims": 4}
    other |= {"subvector": "random"}
    for key, value in other.items():
        assert rows.mismatch(recorded(**{key: value}), *PLACE).startswith(f"{key} {value}, not ")
    for place in (("noproj", *PLACE[1:]), (PLACE[0], "short", "cifar10"), (*PLACE[:2], "stl10")):
        assert rows.mismatch(recorded(), *place)
    assert rows.mismatch(recorded("barlow.py"), *PLACE) == "made by barlow.py, not simclr.py"
    for config in (None, [], {}, {"script": "simclr.py", "arguments": 1}, recorded(batch_size="8", lr=None)):
        assert "can't be read" in rows.mismatch(config, *PLACE)


def test_what_may_differ_between_runs_of_a_row():
    config = recorded(device="cuda:1", compile=True, precision="bf16", seed=5, eval_every=1)
    del config["arguments"]["cross_view"]  # a result from before that argument
    assert rows.mismatch(config, *PLACE) == ""
    own = ("mine", "mini", "mine")  # a row of one's own has the scale's length and size
    assert rows.mismatch(recorded("mine.py", temperature=9, dataset="mine"), *own) == ""
    assert rows.mismatch(recorded("mine.py", epochs=6), *own) == "epochs 6, not 5"
    other = {"train_size": None, "width": 32, "stem": "imagenet", "epochs": 10, "weight_decay": 1e-6}
    place = ("mine", "compressed", "cifar10")
    assert rows.mismatch(recorded("mine.py", **other, optimizer="adam"), *place) == ""
    assert rows.mismatch(recorded("mine.py", **other), *place) == "weight_decay 1e-06, not 0.01"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with such scripts, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("simclr.py", "directclr.py"):
        (tmp_path / name).write_text(SCRIPT)
    return tmp_path


def run_of(row, scale="mini", seed=0):
    return plan.Run(scale, "cifar10", row, seed)


def config_of(row):
    return read(ROOT / f"results/mini/cifar10/{row}", "seed0.json")["config"]


def make(folder, *arguments):
    shutil.copy(ROOT / "Makefile", folder)
    # a make that runs these tests has no say: with its MAKELEVEL this one would print folders
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "DATA"))}
    command = ["make", f"PY={sys.executable}", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_runs_come_seed_by_seed_in_the_order_of_rows_and_those_of_aliases_once():
    names = "cs-d200-k0 cs-d200-kinv cs-d200-k1 cs-d400-k0 cs-d400-kinv cs-d400-k1 cs cs-d480-kinv cs-d480-k1"
    places = [(data, name, k) for k in (3, 0) for data in ("stl10", "cifar10") for name in names.split()]
    runs = plan.runs_of(["table1"], "short", [3, 0], ["stl10", "cifar10"])
    assert list(map(str, runs)) == [f"short/{data}/{name}/seed{k}" for data, name, k in places]
    every = [run.row for run in plan.runs_of(rows.TABLES, "paper", [0], ["cifar10"])]
    assert every == [row.name for row in rows.ROWS if not row.same_as]


def test_a_row_that_starts_from_an_encoder_comes_behind_it_and_is_of_no_other(folder):
    words = rows.command("ft1-simclr", "mlp", "tiny-imagenet")
    assert words[words.index("--image-size") + 1] == "16"  # as the encoder's
    runs = plan.runs_of(["finetune-table"], "mini", [0], ["cifar10"])
    bases = [run for run in runs if run.encoder]
    assert len(runs) == 20 and runs[:6] == bases and {run.base for run in runs} == {None, *bases}
    run = run_of("ft1-byol")
    pretraining = config_of("sh-byol")
    arguments = rows.arguments("ft1-byol", "mini", "cifar10") | {"pretraining": pretraining}
    assert arguments.items() >= {"labels": 0.01, "width": 8, "epochs": 20, "lr_encoder": 0.002}.items()
    config = {"script": "finetune.py", "arguments": arguments}
    assert plan.fault(run, config) == "" and "labels" in plan.fault(run._replace(row="ft10-byol"), config)
    assert "encoder" in plan.fault(run._replace(row="ft1-barlow"), config)
    put(run.base.result, {"config": pretraining})
    assert plan.state(run.base._replace(encoder=False)) == "" and plan.state(run.base) is None
    later = [run_of(row.name) for row in rows.of(rows.FT) if row.pretrained == run.base.row]
    assert run in later and len(later) == 2 and plan.needed(run.base)
    put(run.base.weights, "")
    assert plan.state(run.base) == ""
    put(run.folder / "config.json", config)
    for found, why in ((pretraining, ""), (pretraining | {"git": "other"}, "its encoder is another")):
        put(run.base.folder / "config.json", found)
        assert plan.outdated(run) == why
    for one in later:
        arguments = rows.arguments(one.row, "mini", "cifar10") | {"pretraining": pretraining}
        put(one.result, {"config": {"script": "finetune.py", "arguments": arguments}})
    run.base.weights.unlink()
    assert not plan.needed(run.base) and plan.state(run.base) == ""


def test_an_encoder_that_is_gone_is_made_again_from_the_checkpoint(folder):
    run = run_of("sh-simclr")._replace(encoder=True)
    put(run.folder / "checkpoint.pt", "")
    put(run.folder / "result.json", "{}")
    assert plan.Trainer("data").train(run) == 0
    assert run.folder.with_suffix(".log").read_text() == "é ready None --resume\n"
    assert (run.folder / "checkpoint.pt").exists() and plan.state(run._replace(encoder=False)) == ""
    ends = {"disk full": "--resume", "--overwrite starts anew": "--resume --overwrite"}
    for why, modes in (ends | {"": "--resume"}).items():  # "": a full disk does not take the line either
        put(run.folder / "result.json", "{}")
        put(folder / "codes", {"sh-simclr": f"2 a.py: error: {why}" if why else 2})
        before = run.folder.with_suffix(".log").read_text()
        assert plan.Trainer("data").train(run) == 2
        said = run.folder.with_suffix(".log").read_text().removeprefix(before)
        assert re.findall("ready None (.*)", said) == modes.split()


@pytest.mark.parametrize("targets", [["all"], [*rows.TABLES]], ids=["all", "tables"])
def test_make_hands_all_tables_to_plans_of_one_deadline_and_then_reports(folder, targets):
    variables = ("SCALE=short", "SEEDS=0 1", "DATASETS=stl10", "BUDGET=9m", "JOBS=2", "DATA=d")
    lines = [shlex.split(line) for line in make(folder, "-n", *targets, *variables).stdout.splitlines()]
    plans = [line[line.index("plan.py") + 1 :] for line in lines if "plan.py" in line]
    flags = shlex.split("--scale=short '--seeds=0 1' --datasets=stl10 --data=d --jobs=2 --gpus=1 --budget=9m")
    tables = [[table] for table in targets]
    if targets == ["all"]:
        tables = [[table for table in rows.TABLES if table != "clock"]]
    assert [line[:-1] for line in plans] == [["run", *names, *flags] for names in tables]
    assert len({line[-1] for line in plans}) == 1 and plans[0][-1].startswith("--since=")
    last = ["--figures"] if targets == ["all"] else ["--table", targets[-1], "--scale", "short"]
    assert [sys.executable, "report.py"] in lines
    assert lines[-1][1:] == ["report.py", *last]
    assert "--budget" not in make(folder, "-n", *targets).stdout


def test_a_misspelt_variable_of_make_is_that_line(folder):
    done = make(folder, "-n", "table2", "SEED=3", "SCALE=mlp")
    assert done.returncode == 2 and "no variable is called SEED: there are" in done.stderr and not done.stdout


def test_a_bad_variable_of_make_is_that_line(folder):
    for name in ("plan.py", "rows.py", "common.py"):
        shutil.copy(ROOT / name, folder)
    done = make(folder, "table2", "SEEDS=0,1")
    assert done.returncode == 2 and "--seeds: '0,1' must be whole numbers" in done.stderr and not done.stdout


def test_results_of_their_row_are_skipped_others_trained_again_and_failures_named(folder, script):
    good, older, damaged = (run_of(name) for name in ("simclr", "simclr-werank", "simclr-lastlayer"))
    for run, epochs in ((good, 5), (older, 200), (damaged, 5)):
        config = config_of(run.row)
        config["arguments"]["epochs"] = epochs
        put(run.folder / "config.json", config)
        put(run.result, "{" if run == damaged else {"config": config})
    put(run_of("noproj").folder / "config.json", config)
    codes = {"noproj": 0, "noproj-werank": 3, "directclr": 2}  # 0 without a result; 2 ends the plan
    put(folder / "codes", codes)
    done = script("plan.py", *TABLE_2)
    assert f"{older.result} is of an older recipe (epochs 200, not 5): trained again\n" in done.out
    assert f"{damaged.result} is damaged: trained again\n" in done.out
    assert f"{run_of('noproj').folder} is of an older recipe (reg lastlayer, not none, " in done.out
    ready = [line.split()[-1] for line in done.out.splitlines() if " ready " in line]
    assert ready == ["--overwrite", "--resume", "--overwrite", *["--resume"] * 3] and done.returncode == 1
    for name, code in codes.items():
        assert f"{name}/seed0 ended with exit code {code}, log runs/mini/cifar10/{name}/seed0.log" in done.err
    assert not run_of("cs-lastlayer").folder.exists()  # of what never began nothing is written
    left = "noproj/seed0, which needs ? min; all need ? min, one by one (some not timed yet)"
    assert done.out.endswith(f"4 of 12 runs done; next mini/cifar10/{left}\n")
    os.remove("codes")
    assert script("plan.py", *TABLE_2).out.endswith("12 of 12 runs done\n")
    log = run_of("noproj").folder.with_suffix(".log").read_text()
    assert log == "é ready None --overwrite\né ready None --resume\n"
    assert json.loads(damaged.result.read_text())["config"] == config_of(damaged.row)


def start(*arguments):
    """A plan in a process group of its own."""
    command = [sys.executable, ROOT / "plan.py", *TABLE_2, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)


@pytest.mark.parametrize("number, to", [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_a_signal_stops_both_jobs_which_save_and_the_plan_says_what_is_left(folder, number, to):
    os.mkfifo("gate")
    process = start("--jobs=2")
    both = ["mini/cifar10/simclr-werank/seed0", "mini/cifar10/simclr/seed0"]
    ready = sorted(islice((line for line in process.stdout if " ready " in line), 2))
    assert ready == [f"{run}: é ready {max(1, os.cpu_count() // 2)} --resume\n" for run in both]
    to(process.pid, number)
    *stopped, last = process.communicate(timeout=100)[0].splitlines()
    assert all(plan.Path("runs", run, "checkpoint.pt").exists() for run in both)
    assert len(stopped) == 2 and all("stopped with exit code 1" in line for line in stopped)
    assert last.startswith(f"0 of 12 runs done; next {both[1]}") and process.returncode == 128 + number


def test_a_killed_plan_loses_no_run(folder, script, monkeypatch):
    os.mkfifo("gate")
    killed = start()
    next(line for line in killed.stdout if " ready " in line)
    killed.kill()
    said = []

    def say(text):  # the killed plan's run goes on, and ends while this one waits for it
        said.append(text)
        if "in use" in text:
            with open("gate", "w"):
                os.remove("gate")

    monkeypatch.setattr(plan, "say", say)
    done = script("plan.py", *TABLE_2)
    assert said[0].startswith("mini/cifar10/simclr/seed0 is in use by another")
    assert done.out.endswith("12 of 12 runs done\n") and done.returncode == 0


def timed_run(run, epochs, finished, seconds=60.0, device="d"):
    """A folder in runs/ as a run leaves it."""
    config = config_of(run.row) | {"device": device}
    config["arguments"]["width"] = {"mini": 8, "short": 64}[run.scale]
    lines = [json.dumps({"epoch": i + 1, "seconds": 20 + seconds * (i + 1)}) for i in range(epochs)]
    put(run.folder / "config.json", config)
    put(run.folder / "metrics.jsonl", "\n".join([*lines, '{"epo']))
    os.utime(run.folder / "config.json", (1000, 1000))
    if finished:  # after a long break
        put(run.folder / "result.json", "{}")
        os.utime(run.folder / "metrics.jsonl", (1_000_000, 1_000_000))
        os.utime(run.folder / "result.json", (1_000_030, 1_000_030))
    return run


def test_a_pace_counts_evaluations_and_what_follows_the_last_epoch(folder):
    run = timed_run(run_of("simclr"), 5, finished=True)  # 320 s of training, since 1000
    os.utime(run.folder / "metrics.jsonl", (1420, 1420))
    os.utime(run.folder / "result.json", (1450, 1450))
    assert set(plan.paces().values()) == {(60 + 100 / 5, 15 + 20 + 30)}


def test_a_log_that_cant_be_opened_starts_no_run(tmp_path):
    trainer = plan.Trainer("data")
    with pytest.raises(FileNotFoundError):
        trainer.execute([sys.executable, "-c", ""], tmp_path / "absent" / "log", "")
    assert not trainer.processes


def test_the_plan_tells_what_is_left_by_the_pace_of_such_runs_on_the_latest_device(folder, capsys):
    waiting = run_of("noproj")
    assert plan.seconds_left(waiting, plan.paces()) is None
    timed_run(run_of("simclr", seed=1), 5, finished=True)
    timed_run(run_of("simclr-lastlayer", "short"), 5, finished=True, seconds=1.0)  # of another width
    half = timed_run(run_of("simclr"), 2, finished=False)
    for seed, content in ((2, "{"), (3, "[]"), (4, '{"script": 1}')):  # damaged ones tell nothing
        put(timed_run(run_of("cs", seed=seed), 3, finished=False).folder / "config.json", content)
    # besides the epochs: 20 s more for the first, 15 s for the start, 30 s for the evaluation
    assert plan.seconds_left(waiting, plan.paces()) == 365 and plan.seconds_left(half, plan.paces()) == 245
    assert plan.seconds_left(run_of("directclr"), plan.paces()) is None  # of another script
    put(run_of("simclr-linear").result, {"config": config_of("simclr-linear")})
    plan.show([run_of("simclr-linear"), half, waiting])
    *table, last = capsys.readouterr().out.splitlines()
    assert [line.split()[1:-1] for line in table] == [["done", "0.0"], ["epoch", "2", "4.1"], ["-", "6.1"]]
    assert last.startswith("1 of 3 runs done; next mini/cifar10/simclr/seed0, which needs 4.1 min; ")
    assert last.endswith("; all need 10.2 min, one by one")
    newer = timed_run(run_of("noproj-werank"), 5, finished=True, seconds=3.0, device="other")
    os.utime(newer.folder / "config.json", (2000, 2000))
    assert plan.seconds_left(waiting, plan.paces()) == 5 * 3 + 65


def test_bad_input_ends_a_plan_also_where_torchrun_has_an_exit_code_of_its_own(tmp_path):
    trainer = plan.Trainer("data", gpus=2)
    words = " ".join(trainer.command(run_of("simclr"), "--resume"))
    assert "torch.distributed.run --standalone --nproc-per-node=2 simclr.py" in words
    for code in (1, 2):
        said = f"import sys; print('failed (exitcode: {code}) local_rank: 0', file=sys.stderr); sys.exit(1)"
        assert trainer.execute([sys.executable, "-c", said], tmp_path / "log", "") == code


def test_a_budget_starts_only_what_will_finish(folder, script):
    assert [plan.duration(text) for text in ("90", "90s", "9m", "2h")] == [90, 90, 540, 7200]
    assert script("plan.py", *TABLE_2, "--budget=2h", "--since=9").out.startswith("0 of 12 runs done")
    run = timed_run(run_of("simclr"), 4, finished=False)
    for spare, finishes in ((-30, False), (30, True)):
        deadline = time.time() + plan.seconds_left(run, plan.paces()) + spare
        assert plan.Trainer("data", deadline=deadline).train(run) == 0 and run.result.exists() == finishes


def test_a_budget_stops_a_run_of_unknown_pace_and_the_next_call_continues_it(folder, capsys, monkeypatch):
    os.mkfifo("gate")
    monkeypatch.setattr(plan.signal, "signal", lambda *_: None)
    waited = []  # opening the gate waits for the run, which then waits for what comes through it
    gate = folder / "gate"
    monkeypatch.setattr(plan, "wait", lambda _, seconds, *__: waited.append((seconds, gate.open("w"))))
    run = run_of("simclr")
    assert plan.Trainer("data", deadline=time.time() + 603).train_all([run]) == 0
    assert 590 < waited[0][0] <= 600 and f"{run} stopped with exit code 143\n" in capsys.readouterr().out
    assert (run.folder / "checkpoint.pt").exists() and not run.result.exists()
    gate.unlink()
    assert plan.Trainer("data").train(run) == 0 and "--resume" in capsys.readouterr().out
    assert run.result.exists()
