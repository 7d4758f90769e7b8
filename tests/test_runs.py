"""Whole runs: what a folder holds, interruptions of every kind, refusals, copies, figures."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import common
import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, TINY_RUN, cases, comparable, put, read, run_process, sabotage
from PIL import Image

import simclr

KILL = "os.kill(os.getpid(), signal.SIGKILL)"
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
TERMINATE = "os.kill(os.getpid(), signal.SIGTERM)"
HALF_WRITTEN = f"os.ftruncate(args[0], 9); {KILL}"
NAN = "return original(*args, **kwargs) * float('nan')"
MEMORY = "raise common.torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')"
CUDNN = "raise RuntimeError('cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED')"
STREAMS = [("2>&- --epochs 1", 0, 0), (">&- 2>&- --epochs 0", 2, 0), (">/dev/full --epochs 1", 2, 1)]
STREAMS += [("2>/dev/full --device meta", 2, 0)]
SLOW = dict.fromkeys(("simclr.py", "directclr.py", "barlow.py", "byol.py", "finetune.py"), "torch")
SLOW |= dict.fromkeys(("plan.py", "report.py", "plot_spectra.py"), "torch") | {"toy_linear.py": "matplotlib"}
ANOTHER = [("", {}, "this run already"), ("--seed 1", {}, "seed is 0 there, 1 here")]
ANOTHER += [("--no-projector --resume", {}, "projector is mlp there, none here")]
ANOTHER += [("--resume", {"script": "mine.py"}, "script is mine.py there, simclr.py here")]
# what is gone of a run, what differs of its configuration, what that says in the end (None: both), the note
NOTED = [("result.json", "code", 5, None, "another version of simclr.py or common.py")]
NOTED += [("result.json", "torch", "0.0", None, "another version of torch")]
NOTED += [("result.json", "compile", True, True, "another --compile")]
NOTED += [("result.json checkpoint.pt", "compile", True, False, "begins anew")]
DAMAGED = [("result.json", "null"), ("result.json", "{}"), ("config.json", "{"), ("checkpoint.pt", "no")]
DAMAGED += [("checkpoint.pt", lambda _: torch.ones(2)), ("checkpoint.pt", lambda _: {})]
DAMAGED += [("checkpoint.pt", lambda state: state | {"metrics": []})]
COPIES = [("simclr.py", "--no-projector --fixed-dims 0.125", "cs-d28-k0"), ("README.md", "", "my-method")]
STEP = (("Training.train_on", 5, INTERRUPT), 130, 5, "step 5 of 6")
ENDS = [  # what happens at which call of a function; exit code, step of the checkpoint, what the line says
    ("simclr.py", ("info_nce", 5, KILL), -9, 1, ""),
    ("simclr.py", ("write_json", 2, KILL), -9, 6, ""),  # after the last evaluation
    ("simclr.py", ("info_nce", 3, TERMINATE), 143, 3, "step 3 of 6"),  # in the last step of an epoch
    ("simclr.py", ("write_tensors", 2, INTERRUPT), 130, 6, "step 6 of 6"),  # as the last one is written
    ("simclr.py", ("linear_probe", 1, TERMINATE), 143, 6, ""),
    ("simclr.py", ("os.replace", 3, KILL), -9, None, ""),  # as a checkpoint is about to take its name
    ("simclr.py", ("os.fsync", 6, HALF_WRITTEN), -9, 1, ""),
    ("simclr.py", ("info_nce", 5, NAN), 1, 1, "not finite"),
    ("simclr.py", ("info_nce", 5, MEMORY), 1, 1, "a smaller --batch-size or --width"),
    ("simclr.py", ("info_nce", 5, CUDNN), 1, 1, "out of memory (cuDNN error"),
    ("simclr.py --no-projector --reg lastlayer --optimizer adam", *STEP),
    ("directclr.py --subvector random", *STEP),
    ("byol.py --hidden 8 --embedding 8", *STEP),
]
# Command lines with a semicolon between them. An error names the last flag and what it is set to with "=", or
# what stands behind "=>".
REFUSED = {
    "simclr.py": """
        --epochs 0; --epochs x; --batch-size 1; --batch-size 97; --lr 0; --lr nan; --lr inf; --reg l2;
        --temperature 0; --width 0; --seed -1; --image-size 4; --eval-every -1; --arch vgg;
        --optimizer lamb; --device tpu; --device cuda:99; --device meta; --train-size 3; --train-size 98;
        --warmup-epochs 2; --warmup-epochs -1; --blur-p 0.1 0.2 0.3; --solarize-p 0 2;
        --rank 8; --epoch 3; --train-size 31 => --batch-size; --crop-scale 0 1; --crop-scale 0.9 0.1;
        --jitter 1 1 1 1; --grey-p 2; --blur-p nan; --dataset nowhere => nowhere; --dataset no.npz => no.npz;
        --dataset . => --image-size; --out file; => extra; --dataset . --image-size 16 => train/;
        --dataset photos --image-size 16 --batch-size 2 --crop-scale 0.9 0.1;
        --dataset photos --image-size 16 --batch-size 2 --reg-weight 1;
        --dataset photos --image-size 16 --batch-size 2 --no-projector --reg sparsehead;
        --out /proc/nothing/run; --overwrite --resume; --reg-weight 1; --reg lastlayer --reg-weight -1;
        --reg-on top; --reg-on encoder; --projector lowrank --reg sparsehead;
        --no-projector --reg sparsehead; --reg sparsehead --reg-on encoder; --projector big; --hidden 0;
        --no-projector --reg lastlayer --reg-on projector; --no-projector --projector mlp; --fixed-dims 8;
        --projector linear --projector-bn; --projector lowrank --rank 33;
        --projector diagonal --embedding 9; --no-projector --hidden 8; --hidden 1.5;
        --no-projector --fixed-dims 32; --weight-decay -1; --no-projector --fixed-dims 0;
        --no-projector --fixed-dims 1.0; --fixed-value 1; --no-projector --fixed-dims 3 --fixed-value nan;
        --no-projector --fixed-dims 3 --fixed-value half;
        --projector diagonal --reg sparsehead; --projector orthogonal --reg lastlayer --reg-on projector;
        --projector lowrank --reg lastlayer --reg-on projector; --no-projector --reg sparsehead --reg-on auto;
        --reg lastlayer-bn --reg-on auto; --no-projector --reg werank --reg-on projector""",
    "directclr.py": """
        --dim 33; --dim 0; --subvector some; --reg sparsehead; --reg lastlayer --reg-on projector;
        --dataset photos --image-size 16 --batch-size 2 --reg-weight 1""",
    "barlow.py": """
        --lambd -1; --no-projector --hidden 8; --projector orthogonal; --no-projector --reg sparsehead""",
    "byol.py": "--momentum 1.5; --no-projector --embedding 8",
    "finetune.py": """
        mlp.pt --labels 0; mlp.pt --labels 1.5; mlp.pt --labels nan; mlp.pt --labels 0.01;
        mlp.pt --freeze --lr-encoder 1; mlp.pt --batch-size 97; mlp.pt --epochs 0; mlp.pt --lr-encoder 0;
        mlp.pt --overwrite --resume; mlp.pt --image-size 16; mlp.pt --labels 1 --out photos; --table big;
        mlp.pt --labels 1 --out . => the folder of mlp.pt;
        mlp.pt --dataset one.npz --batch-size 4 --labels 0.2; no.pt => no.pt; text.pt => text.pt;
        => a checkpoint""",
    "plan.py": """
        --budget=9x; --budget=-3m; --budget=m; --budget=1.5h; --budget=9999999999h; --jobs=0; --gpus=0;
        --seeds=; --seeds=abc; --seeds=-1; --seeds=0,1; '--seeds=1 02'; --scale=huge; --scale=%;
        --datasets=; --datasets=CIFAR10; --datasets=data/cifar10; --since=nan; --since=inf; --since=1e300;
        --since=-1; --data=; table9 => table9""",
    "report.py": "=> --results; -o .; -o ''; -o run; -o pipe; --scale mini",
    "plot_spectra.py": """
        => runs; run => run; absent => absent; list.json => list.json; other.pt => --dataset;
        RUN -o figure.xyz; RUN --layer q; RUN --norms --covariance; RUN --norms --layer h;
        RUN/encoder.pt --dataset nowhere => nowhere; half => none of these runs is finished;
        wrong.json => wrong.json; null.json => null.json; huge.pt --dataset TINY => not finite;
        complex.pt --dataset TINY => complex.pt; mlp.pt --dataset TINY --image-size 9;
        RUN/encoder.pt --dataset TINY --layer z => layer z; other.pt --dataset TINY => other.pt;
        module.pt --dataset TINY => module.pt=state_dict() (UnpicklingError); cut.pt --dataset TINY => cut.pt;
        script.pt --dataset TINY => script.pt=state_dict() (RuntimeError);
        text.pt --dataset TINY => text.pt; no.pt --dataset TINY => no.pt;
        less.pt --dataset TINY => less.pt; more.pt --dataset TINY => more.pt;
        thin.pt --dataset TINY => thin.pt""",
    "toy_linear.py": """
        T9 => T9; T1 --k -1; --k nan; T8 --k 1; T4 --layers 0; T1 --layers 3; --steps 0; --seeds 0; --lr 0;
        --batch 1; T1 --steps 50 --seeds 1 --lr 1e5; T7 --steps 50 --lr 100; --full-batch --batch 9;
        --out /dev/null/x; T8 T1 => T8; T1 --data-dir data; T8 --dataset none.npz => none.npz""",
}
LINES = [(name, line) for name, lines in REFUSED.items() for line in cases(lines)]
ONES, ZEROS = torch.ones(4, 4), torch.zeros(4).long()
FLOATS, LAST = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, 3, dtype=torch.uint8)  # channels last
AUGMENT = [{"size": 0}, {"scale": (0, 1)}, {"scale": (0.5, 0.2)}, {"scale": (0.5, 1.5)}, {"flip": 1.2}]
AUGMENT += [{"jitter": (0.4, 0.4, 0.4)}, {"jitter": (0, 0, 0, 0.6)}, {"jitter": (-1, 0, 0, 0)}]
AUGMENT += [{"grey_p": -0.1}]
FEATURES = [(ONES * np.nan, ZEROS), (ONES / 0, ZEROS), (ONES, ZEROS - 1)]
FEATURES = [pair for bad in FEATURES for pair in ((*bad, ONES, ZEROS), (ONES, ZEROS, *bad))]
PAIRS = [(ONES[:1], ONES[:1]), (ONES, torch.ones(5, 4)), (ONES[0], ONES[0]), (ONES, ONES, 0.0)]
SENSELESS = {  # a function: what it refuses
    common.info_nce: [*PAIRS, (ONES, ONES, np.nan)],
    lambda bad: common.Augment(**{"size": 8, **bad}): [(bad,) for bad in AUGMENT],
    common.Augment(8).__call__: [(FLOATS,), (LAST,)],
    common.resnet: [("vgg",), ("resnet18", "vgg"), ("resnet18", "cifar", 0)],
    common.projector: [("resnet", 16), ("mlp", 16, 0), ("linear", 16, 16, 0)],
    simclr.matrix_projector: [("lowrank", 16, 0), ("lowrank", 16, 17), ("other", 16)],
    common.encoder_end: [(torch.nn.Flatten(),)],
    common.features: [(torch.nn.Conv2d(3, 4, 3), None, LAST.transpose(1, 3))],  # no (B, D)
    common.Training: [(SimpleNamespace(image_size=16), SimpleNamespace(x_train=FLOATS), (None,) * 4, 1)],
    common.knn_accuracy: FEATURES,
    common.linear_probe: FEATURES,
}
SENSELESS = [(function, bad) for function, every in SENSELESS.items() for bad in every]


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of the whole run in tmp_path/run."""
    return shutil.copytree(whole, tmp_path / "run")


def test_a_run_folder_holds_all_that_is_promised(whole, tiny):
    files = {"config.json", "metrics.jsonl", "checkpoint.pt", "encoder.pt", "result.json"}
    assert {path.name for path in whole.iterdir()} == files
    weights = torch.load(whole / "encoder.pt", weights_only=True)
    assert {*weights, "fc.weight", "fc.bias"} == set(torchvision.models.resnet18().state_dict())
    result = read(whole)
    shares = ("knn200", "knn5", "knn200_z", "linear_top1", "linear_top5")
    assert all(0 <= result[key] <= 100 for key in shares)
    for key in ("spectra", "bare_spectra", "rankme", "min_max_ratio", "covariance"):
        assert set(result[key]) == set(common.LAYERS) and None not in result[key].values()
    assert set(result["start"]) >= {"knn200", "spectra", "bare_spectra", "weight_spectra", "rankme"}
    assert result["config"] == read(whole, "config.json")
    assert result["config"]["torch"] == torch.__version__ and "git" in result["config"]
    assert result["config"]["arguments"]["lr"] == 0.06 * 32 / 128
    assert result["decay_horizon"] == pytest.approx(10 * 5e-4 * 0.015 * (6 / 2 + 0.5))  # Σ of the cosine
    encoder, _ = common.load_encoder(whole / "encoder.pt")
    spectra = common.layer_statistics(encoder, None, common.load_dataset(tiny).x_test)["spectra"]
    for layer in ("h", "penultimate", "layer3"):
        np.testing.assert_allclose(spectra[layer], result["spectra"][layer], rtol=1e-3, atol=1e-9)


def test_the_history_is_what_metrics_say_of_every_evaluation(whole):
    result = read(whole)
    first, last = lines = read(whole, "metrics.jsonl")
    assert [first["epoch"], last["epoch"]] == [1, 2] and result["history"] == lines
    best = first if first["knn200"] >= last["knn200"] else last
    assert result["best"] == {"knn200": best["knn200"], "epoch": best["epoch"]}
    final = {**common.ranks(torch.tensor(result["spectra"]["h"])), "rankme": result["rankme"]["h"]}
    final |= {"knn200": result["knn200"]}
    assert {key: last[key] for key in final} == pytest.approx(final, rel=1e-4)


@pytest.mark.parametrize("row, stop, code, step, says", ENDS)
def test_interrupted_and_resumed_is_bit_identical(tmp_path, finished, start, row, stop, code, step, says):
    stopped = start(f"{row} --resume", sabotage(*stop))
    assert stopped.returncode == code and says in stopped.err, stopped.err
    assert len(stopped.err.splitlines()) == bool(says)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    left = torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else None
    assert left == step and not (tmp_path / "run" / "result.json").exists()
    assert start(f"{row} --resume").returncode == 0
    assert comparable(tmp_path / "run") == comparable(finished(row))
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_evaluating_and_saving_do_not_count_as_training(tmp_path, start):
    clock = "ticks = [0]\ncommon.time.perf_counter = lambda: ticks[0]\n"
    for function, seconds in (("Training.train_on", 1), ("knn_accuracy", 100), ("write_tensors", 100)):
        name = f"slow_{seconds}_{function[0]}"
        clock += f"def {name}(*args, function=common.{function}, **kwargs):\n    ticks[0] += {seconds}\n"
        clock += f"    return function(*args, **kwargs)\ncommon.{function} = {name}\n"
    assert start("simclr.py --arch mlp", clock).returncode == 0
    assert read(tmp_path / "run")["seconds"] == 6  # a second for each of the steps


def test_a_kill_while_a_run_is_overwritten_leaves_a_folder_that_can_be_used(copied, start):
    for function, call in (("Path.unlink", 3), ("write_json", 1)):
        killed = start("simclr.py --seed 1 --overwrite", sabotage(function, call, KILL))
        assert killed.returncode == -9 and (copied / "config.json").exists()
    assert start("simclr.py --seed 1 --resume").returncode == 0
    assert read(copied)["config"]["arguments"]["seed"] == 1


@pytest.mark.parametrize("streams, code, lines", STREAMS)
def test_closed_streams_are_no_error_and_full_ones_a_line(streams, code, lines, tmp_path, tiny, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with it every line is written at once
    flags = " ".join(map(str, TINY_RUN[:4]))
    command = f"{sys.executable} {ROOT}/simclr.py --dataset {tiny} --arch mlp --device cpu {flags} {streams}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code and done.stderr.count("error") == lines, done.stderr
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr


def test_a_full_disk_is_one_line(tmp_path, start):
    done = start("simclr.py", "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))")
    assert done.returncode == 2 and "too large" in done.err and len(done.err.splitlines()) == 1
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path):
    (tmp_path / "link").symlink_to("there")
    common.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_bytes() == b"new"


def test_a_notebooks_stdout_is_no_error_and_ctrl_c_is_ctrl_c_where_it_is_full_too(start):
    assert start("simclr.py --epochs 1", "import io\nsys.stdout = io.StringIO()").returncode == 0
    full = "sys.stdout = open('/dev/full', 'w')\n" + sabotage("Training.train_on", 3, INTERRUPT)
    done = start("simclr.py --overwrite", full)
    assert done.returncode == 130 and done.err == "stopped after step 3 of 6; --resume continues\n"


@pytest.mark.parametrize("name", SLOW)
def test_ctrl_c_during_imports_gives_no_traceback(name, tmp_path, monkeypatch):
    (tmp_path / SLOW[name]).mkdir()
    slow = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / SLOW[name] / "__init__.py").write_text(slow)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_process(tmp_path, ROOT / name)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def contents(folder):
    return {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("flags, there, says", ANOTHER)
def test_another_runs_folder_is_never_touched(copied, start, flags, there, says):
    common.write_json(copied / "config.json", read(copied, "config.json") | there)
    before = contents(copied)
    done = start(f"simclr.py {flags}")
    assert done.returncode == 2 and len(done.err.splitlines()) == 1
    assert all(word in done.err for word in (says, "--resume", "--out", "--overwrite")), done.err
    assert contents(copied) == before


def test_arguments_of_ones_own_may_be_paths_or_infinite_and_have_any_name(tmp_path):
    args = SimpleNamespace(device="cpu", name="a", script=Path("b"), data="c", clip=np.inf)
    config = common._configuration(args, "row") | {"data": "96 images"}
    common.write_json(tmp_path / "config.json", config)
    common._require_same_run(Path("run"), read(tmp_path, "config.json"), config, True)
    for key in ("name", "script", "data"):
        other = config | {"arguments": config["arguments"] | {key: "z"}}
        with pytest.raises(common.UserError, match=f"another run, {key} is z there, {vars(args)[key]} here"):
            common._require_same_run(Path("run"), other, config, True)


def test_a_finished_run_is_not_run_again_nor_on_other_data_under_the_same_name(copied, script, tiny):
    words = ("simclr.py", "--dataset", tiny.name, *TINY_RUN, "--out", "run", "--resume")
    arrays = dict(np.load(tiny))
    arrays["x_test"][3, 2, 1] += 1
    np.savez(copied.parent / tiny.name, **arrays)
    done = script(*words)
    assert done.returncode == 2 and "data is 96 + 40 images" in done.err and "dataset" not in done.err
    shutil.copyfile(tiny, copied.parent / tiny.name)
    (copied / "checkpoint.pt").write_bytes(b"damaged")  # a finished run needs it no more
    before = contents(copied)
    done = script(*words)
    assert done.returncode == 0 and "finished" in done.out and contents(copied) == before


@pytest.mark.parametrize("gone, key, was, after, said", NOTED)
def test_what_is_not_continued_bit_for_bit_is_a_note_once(copied, start, gone, key, was, after, said):
    place = lambda config: config["arguments"] if key == "compile" else config
    config = read(copied, "config.json")
    now = place(config)[key]
    place(config)[key] = was
    put(copied / "config.json", config)
    for name in gone.split():
        (copied / name).unlink()
    done = start("simclr.py --resume")
    assert done.returncode == 0 and re.fullmatch(f"note: run .*{said}.*\n", done.err), done.err
    assert place(read(copied)["config"])[key] == (f"{was} {now}" if after is None else after)
    (copied / "result.json").unlink()
    assert "version" not in start("simclr.py --resume").err


@pytest.mark.parametrize("flag, gone", [("--overwrite", ""), ("", "checkpoint.pt encoder.pt result.json")])
def test_a_run_is_replaced_if_told_or_if_it_failed_before_its_first_checkpoint(copied, start, flag, gone):
    for name in gone.split():
        (copied / name).unlink()
    assert start(f"simclr.py --seed 1 --epochs 1 {flag}").returncode == 0
    config = read(copied, "config.json")
    assert config == read(copied)["config"] and config["arguments"]["seed"] == 1
    assert len(read(copied, "metrics.jsonl")) == 1


@pytest.mark.parametrize("file, content", DAMAGED)
def test_damaged_runs_are_named(copied, start, file, content):
    if file != "result.json":
        (copied / "result.json").unlink()
    if isinstance(content, str):
        put(copied / file, content)
    else:
        torch.save(content(torch.load(copied / file)), copied / file)
    done = start("simclr.py --resume")
    assert done.returncode == 2 and len(done.err.splitlines()) == 1 and file in done.err


@pytest.fixture
def files(tmp_path, whole):
    """The paths of files and folders, most of them bad, that the command lines above name."""
    for file in ("file", "list.json", "text.pt"):
        (tmp_path / file).write_text("[]")
    for folder in ("run", "photos/train/a", "photos/val/a"):
        (tmp_path / folder).mkdir(parents=True)
    for photo in ("train/a/1.png", "train/a/2.png", "val/a/1.png", "val/a/2.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / "photos" / photo)
    images, labels = np.zeros((5, 12, 12, 3), np.uint8), np.zeros(5, int)
    np.savez(tmp_path / "one.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    os.mkfifo(tmp_path / "pipe")
    put(tmp_path / "half" / "config.json", {})
    put(tmp_path / "wrong.json", read(whole) | {"spectra": {"h": "x", "z": "x"}})
    put(tmp_path / "null.json", read(whole) | {"spectra": read(whole)["spectra"] | {"h": [None] * 8}})
    weights = common.MLP(12, 8).state_dict()
    torch.save(weights, tmp_path / "mlp.pt")
    torch.save(weights | {"layer1.weight": torch.ones(8, 0)}, tmp_path / "thin.pt")
    torch.save({name: 1e30 * weight for name, weight in weights.items()}, tmp_path / "huge.pt")
    torch.save({name: 1j * weight for name, weight in weights.items()}, tmp_path / "complex.pt")
    weights = torch.load(whole / "encoder.pt")
    torch.save(weights | {"layer9.weight": torch.ones(2)}, tmp_path / "more.pt")
    torch.save({name: weights[name] for name in weights if name != "bn1.bias"}, tmp_path / "less.pt")
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pt")
    torch.save(dict.fromkeys(("conv1.weight", "layer1.0.conv1.weight"), torch.ones(2)), tmp_path / "cut.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as file:  # TorchScript's
        for name in ("version", "constants.pkl"):
            file.writestr(f"s/{name}", "3")
    return set(tmp_path.rglob("*"))


@pytest.mark.parametrize("name, line", LINES, ids=map(" ".join, LINES))
def test_bad_input_is_one_line_code_2_and_nothing_written(name, line, tiny, whole, files, tmp_path, script):
    flags, _, named = line.partition("=>")
    words = shlex.split(flags.replace("RUN", str(whole)).replace("TINY", str(tiny)))
    named = named.strip() or next(word for word in reversed(words) if word.startswith("--") or word == "-o")
    words += ["extra"] * (named == "extra")
    given = {"finetune.py": ("--dataset", tiny, "--batch-size", 20, "--device", "cpu")}
    given |= {"plan.py": ("run", "table2", "--scale=mini")}
    given |= dict.fromkeys(("report.py", "plot_spectra.py", "toy_linear.py"), ())
    done = script(name, *given.get(name, ("--dataset", tiny, *TINY_RUN)), *words)
    assert done.returncode == 2 and len(done.err.splitlines()) == 1 and not done.out
    for part in named.split("="):
        assert part in done.err
    assert set(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("function, bad", SENSELESS)
def test_functions_refuse_what_makes_no_sense(function, bad):
    with pytest.raises(common.UserError):
        function(*bad)


@pytest.mark.parametrize("source, flags, row", COPIES)
def test_a_script_copied_with_common_into_an_empty_folder_runs(tmp_path, tiny, source, flags, row):
    text = (ROOT / source).read_text()
    shutil.copy(ROOT / "common.py", tmp_path)
    put(tmp_path / "own.py", text.partition("```python\n")[2].partition("```")[0] or text)
    done = run_process(tmp_path, "own.py", "--dataset", tiny, *TINY_RUN, "--epochs", 1, *flags.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "runs" / f"tiny-{row}-seed0" / "result.json").exists()


def test_one_image_behind_whole_blocks_of_those_that_train_is_no_error(script, tmp_path):
    flags = ("--train-size", 257, "--image-size", 8, "--epochs", 1, "--arch", "mlp", "--out", "run")
    assert script("simclr.py", "--dataset", "shapes", *TINY_RUN, *flags).returncode == 0


@pytest.mark.parametrize("width", [4, 16])
def test_narrow_encoders_train_on_larger_images(start, width):
    # with the wrong memory layout the C library aborts the process
    assert start(f"simclr.py --image-size 64 --width {width} --train-size 32 --epochs 1").returncode == 0


def test_on_real_images_a_short_run_beats_raw_pixels(request, script, tmp_path):
    folder = request.config.getoption("--data")
    if not folder or not (Path(folder) / "cifar10.npz").exists():
        pytest.skip("needs --data FOLDER with cifar10.npz")
    folder = Path(folder).resolve()  # the script runs elsewhere
    flags = ("--data-dir", folder, "--train-size", 5000, "--stem", "imagenet", "--width", 16)
    flags += ("--epochs", 12, "--batch-size", 32, "--device", "cpu", "--out", "run")
    done = script("simclr.py", "--dataset", "cifar10", *flags)
    assert done.returncode == 0, done.err
    data = common.subset(common.load_dataset("cifar10", folder), 5000)
    pixels = [common.normalize(x).flatten(1) for x in (data.x_train, data.x_test)]
    raw = common.knn_accuracy(pixels[0], data.y_train, pixels[1], data.y_test)
    assert read(tmp_path / "run")["knn200"] > raw + 2


@pytest.mark.parametrize("flags", ["--layer z", "--norms", "--covariance --layer projector_hidden"])
def test_figures_of_finished_runs_are_drawn_into_a_new_folder(whole, script, tmp_path, flags):
    put(tmp_path / "half" / "config.json", {})
    words = ("half", whole, whole / "result.json", *flags.split(), "-o", "new/figure.png")
    done = script("plot_spectra.py", *words)
    assert done.returncode == 0 and "RankMe" in done.out and "not finished: half" in done.err, done.err
    assert (tmp_path / "new" / "figure.png").stat().st_size > 5000


def test_checkpoints_from_elsewhere_are_read_under_every_usual_name(whole, script, tiny, tmp_path):
    r34, r50 = common.resnet("resnet34", "imagenet", 4), common.resnet("resnet50", "cifar", 4)
    mlp = common.MLP(8, 16)
    prefixed = lambda prefix, network: {f"{prefix}{key}": w for key, w in network.state_dict().items()}
    files = {
        "plain.pth": (r50, r50.state_dict()),
        "fc.pt": (r34, prefixed("", r34) | {"fc.weight": torch.zeros(10, 32), "fc.bias": torch.zeros(10)}),
        "backbone.pth": (r50, {"backbone": r50.state_dict()}),
        "settings.pth": (r50, {"model": {"name": "r50"}, "state_dict": r50.state_dict()}),
        "state.pth": (r34, {"state_dict": prefixed("module.", r34)}),
        "model.pth": (r50, {"model": prefixed("module.backbone.", r50), "epoch": 3}),
        "encoder.pth": (r50, {"state_dict": prefixed("encoder.", r50) | {"head.weight": torch.ones(2)}}),
        "prefix.pt": (r34, prefixed("_orig_mod.backbone.", r34)),
        "moco.pth": (r50, {"state_dict": prefixed("module.encoder_q.", r50)}),
        "mlp.pt": (mlp, prefixed("module.", mlp)),
    }
    x = torch.randn(2, 3, 8, 8)
    for name, (network, content) in files.items():
        torch.save(content, tmp_path / name)
        assert torch.equal(common.load_encoder(tmp_path / name)[0].eval()(x), network.eval()(x)), name
    words = ("fc.pt", "mlp.pt", "plain.pth", whole / "checkpoint.pt", "--dataset", tiny, "-o", "figure.pdf")
    done = script("plot_spectra.py", *words)
    assert done.returncode == 0 and (tmp_path / "figure.pdf").exists(), done.err
    assert re.findall("note: (\\w.*): its first convolution", done.err) == ["plain.pth"]
