"""Whole runs: what a folder holds, interruptions of every kind, refusals, copies, figures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, TINY_RUN, run_process

import common

# Runs simclr.py with a function of common replaced by one that does something at its n-th call.
SABOTAGE = """
import os, runpy, signal, sys
import torch
sys.path.insert(0, {root!r})
import common
original, calls = common.{function}, [0]
def sabotaged(*args, **kwargs):
    calls[0] += 1
    if calls[0] == {call}:
        {action}
    return original(*args, **kwargs)
common.{function} = sabotaged
sys.argv = ["simclr.py", *sys.argv[1:]]
runpy.run_path({script!r}, run_name="__main__")
"""


def sabotaged(tmp_path, function, call, action, *arguments):
    code = SABOTAGE.format(
        root=str(ROOT), script=str(ROOT / "simclr.py"), function=function, call=call, action=action
    )
    return run_process(tmp_path, "-c", code, *arguments)


def comparable(folder):
    """All that a finished run has and that may not depend on interruptions."""
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for timed in (result, *lines):
        timed.pop("seconds"), timed.pop("images_per_second")
    return (folder / "encoder.pt").read_bytes(), result, lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_process(folder, ROOT / "simclr.py", "--dataset", tiny, *TINY_RUN, "--out", "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_run_folder_holds_all_that_is_promised(whole):
    assert {p.name for p in whole.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "encoder.pt",
        "result.json",
    }
    result = json.loads((whole / "result.json").read_text())
    for key in ("knn200", "knn5", "linear_top1", "linear_top5"):
        assert 0 <= result[key] <= 100
    assert set(result["spectra"]) == {"h", "z", "penultimate", "projector_hidden"}
    assert len(result["spectra"]["h"]) == 32 and len(result["spectra"]["z"]) == 128
    assert set(result["row_norms"]) == {"bare", "folded", "variance"} and result["rankme"]["h"] > 1
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    best = max(lines, key=lambda line: line["knn200"])
    assert result["best"] == {"knn200": best["knn200"], "epoch": best["epoch"]}
    assert lines[-1]["knn200"] == result["knn200"]
    config = json.loads((whole / "config.json").read_text())
    assert result["config"] == config
    assert (
        config["arguments"]["lr"] == 0.06 * 32 / 128
        and config["torch"] == torch.__version__
        and "git" in config
    )


def test_encoder_pt_loads_into_torchvision(whole):
    state = torch.load(whole / "encoder.pt", weights_only=True)
    assert set(state) == {
        key for key in torchvision.models.resnet18().state_dict() if not key.startswith("fc.")
    }


@pytest.mark.parametrize(
    "function, call, action, code",
    [
        ("info_nce", 2, "os.kill(os.getpid(), signal.SIGKILL)", -9),  # before the first checkpoint
        ("info_nce", 5, "os.kill(os.getpid(), signal.SIGKILL)", -9),  # in the second epoch
        ("linear_probe", 1, "os.kill(os.getpid(), signal.SIGKILL)", -9),  # in the last evaluation
        ("rounded", 5, "os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("info_nce", 5, "os.kill(os.getpid(), signal.SIGINT)", 130),  # finishes the step
        ("info_nce", 6, "os.kill(os.getpid(), signal.SIGTERM)", 143),  # in the last step of an epoch
        ("linear_probe", 1, "os.kill(os.getpid(), signal.SIGTERM)", 143),
        (
            "os.replace",
            3,
            "os.kill(os.getpid(), signal.SIGKILL)",
            -9,
        ),  # as a checkpoint is about to take its name
        (
            "torch.save",
            2,
            "args[1].write(b'half'); args[1].flush(); os.kill(os.getpid(), signal.SIGKILL)",
            -9,
        ),
    ],
)
def test_interrupted_and_resumed_a_run_ends_bit_identical(
    tmp_path, tiny, whole, function, call, action, code
):
    arguments = ("--dataset", tiny, *TINY_RUN, "--out", "run", "--resume")
    stopped = sabotaged(tmp_path, function, call, action, *arguments)
    assert stopped.returncode == code, stopped.stderr
    assert not (tmp_path / "run" / "result.json").exists()
    again = sabotaged(tmp_path, function, -1, "pass", *arguments)
    assert again.returncode == 0, again.stderr
    assert comparable(tmp_path / "run") == comparable(whole)
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_signal_finishes_the_step_and_the_run_continues_from_there(tmp_path, tiny):
    stop = "os.kill(os.getpid(), signal.SIGINT)"
    done = sabotaged(tmp_path, "info_nce", 5, stop, "--dataset", tiny, *TINY_RUN, "--out", "run")
    assert done.returncode == 130 and "step 5 of 9" in done.stderr and len(done.stderr.splitlines()) == 1
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 5


def test_a_regularised_row_with_adam_resumes_bit_identical_too(tmp_path, tiny):
    rows = ("--no-projector", "--reg", "lastlayer", "--optimizer", "adam")
    arguments = ("--dataset", tiny, *TINY_RUN, *rows, "--resume", "--out")
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    for out, call in (("a", -1), ("b", 7), ("b", -1)):
        assert sabotaged(tmp_path, "info_nce", call, kill, *arguments, out).returncode == (
            -9 if call > 0 else 0
        )
    assert comparable(tmp_path / "a") == comparable(tmp_path / "b")


def test_a_compiled_run_equals_the_eager_one_within_rounding(whole, tiny, script, tmp_path):
    done = script("simclr.py", "--dataset", tiny, *TINY_RUN, "--compile", "--out", "run")
    assert done.returncode == 0, done.err
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, tmp_path / "run")
    ]
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=5e-3)  # rounding errors grow fast
    np.testing.assert_allclose(*losses, rtol=2e-2)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, tiny):
    nan = "return original(*args, **kwargs) * float('nan')"
    done = sabotaged(tmp_path, "info_nce", 8, nan, "--dataset", tiny, *TINY_RUN, "--out", "run")
    assert done.returncode == 1 and "not finite" in done.stderr and len(done.stderr.splitlines()) == 1
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] < 8 and all(v.isfinite().all() for v in state["model"].values())
    assert not (tmp_path / "run" / "result.json").exists()


def test_another_runs_folder_is_never_touched(whole, script, tiny, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    same = ("--dataset", tiny, *TINY_RUN, "--out", "run")
    for arguments in (
        same,
        (*same, "--seed", 1),
        (*same, "--seed", 1, "--resume"),
        (*same, "--no-projector", "--resume"),
    ):
        done = script("simclr.py", *arguments)
        assert done.returncode == 2 and len(done.err.splitlines()) == 1
        assert all(flag in done.err for flag in ("--resume", "--out", "--overwrite"))
    assert "seed is 0 there, 1 here" in script("simclr.py", *same, "--seed", 1).err
    done = script("simclr.py", *same, "--resume")
    assert done.returncode == 0 and "finished" in done.out
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    assert script("simclr.py", *same, "--seed", 1, "--epochs", 1, "--overwrite").returncode == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (
        config["arguments"]["seed"] == 1
        and len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    )


def test_damaged_runs_are_named(whole, script, tiny, tmp_path):
    for file, content in (("checkpoint.pt", b"no checkpoint"), ("config.json", b"{")):
        shutil.copytree(whole, tmp_path / file)
        (tmp_path / file / "result.json").unlink()
        (tmp_path / file / file).write_bytes(content)
        done = script("simclr.py", "--dataset", tiny, *TINY_RUN, "--out", file, "--resume")
        assert done.returncode == 2 and len(done.err.splitlines()) == 1 and file in done.err


REFUSED = {
    "--epochs 0": "--epochs",
    "--epochs x": "--epochs",
    "--batch-size 1": "--batch-size",
    "--lr 0": "--lr",
    "--lr nan": "--lr",
    "--lr inf": "--lr",
    "--weight-decay -1": "--weight-decay",
    "--temperature 0": "--temperature",
    "--width 0": "--width",
    "--seed -1": "--seed",
    "--image-size 4": "--image-size",
    "--eval-every -1": "--eval-every",
    "--arch vgg": "--arch",
    "--optimizer lars": "--optimizer",
    "--device tpu": "--device",
    "--device cuda:99": "--device",
    "--device meta": "--device",
    "--projector big": "--projector",
    "--reg l2": "--reg",
    "--reg-on top": "--reg-on",
    "--reg lastlayer --reg-weight -1": "--reg-weight",
    "--reg-weight 1": "--reg-weight",
    "--reg-on encoder": "--reg-on",
    "--no-projector --reg sparsehead": "--reg sparsehead",
    "--no-projector --reg lastlayer --reg-on projector": "--reg-on",
    "--projector lowrank --reg sparsehead": "--reg sparsehead",
    "--reg sparsehead --reg-on encoder": "--reg-on",
    "--fixed-dims 8": "--fixed-dims",
    "--no-projector --fixed-dims 32": "--fixed-dims",
    "--no-projector --fixed-dims 99": "--fixed-dims",
    "--no-projector --fixed-dims 0": "--fixed-dims",
    "--fixed-value 1": "--fixed-value",
    "--no-projector --fixed-dims 3 --fixed-value nan": "--fixed-value",
    "--no-projector --projector mlp": "--projector",
    "--no-projector --hidden 8": "--hidden",
    "--rank 8": "--rank",
    "--projector lowrank --rank 33": "--rank",
    "--projector diagonal --embedding 9": "--embedding",
    "--resume --overwrite": "--resume",
    "--batch-size 97": "--batch-size",
    "--train-size 98": "--train-size",
    "--train-size 31": "--batch-size",
    "--crop-scale 0 1": "--crop-scale",
    "--crop-scale 0.9 0.1": "scale",
    "--jitter 1 1 1 1": "--jitter",
    "--train-size 3": "--train-size",
    "--grey-p 2": "probabilit",
    "--blur-p nan": "probabilit",
    "--dataset nowhere": "nowhere",
    "--dataset no.npz": "no.npz",
    "--dataset .": "--image-size",
    "--dataset . --image-size 16": "train/",
    "--epoch 3": "--epoch",
    "extra": "extra",
    "--out /proc/nothing/run": "/proc/nothing",
    "--out file": "file",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(arguments, tiny, tmp_path, script):
    (tmp_path / "file").write_text("")
    done = script("simclr.py", "--dataset", tiny, *TINY_RUN, *arguments.split())
    assert done.returncode == 2 and len(done.err.splitlines()) == 1 and REFUSED[arguments] in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_compiler_that_fails_is_one_line_and_nothing_written(tiny, script, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler here\nwith details")

    monkeypatch.setattr(torch, "compile", broken)
    done = script("simclr.py", "--dataset", tiny, *TINY_RUN, "--compile")
    assert done.returncode == 2 and len(done.err.splitlines()) == 1 and "--compile" in done.err
    assert not list(tmp_path.iterdir())


def test_a_script_copied_with_common_into_an_empty_folder_runs(tmp_path, tiny):
    for name in ("simclr.py", "common.py"):
        shutil.copy(ROOT / name, tmp_path)
    rows = ("--epochs", 1, "--no-projector", "--fixed-dims", 4)
    done = run_process(tmp_path, "simclr.py", "--dataset", tiny, *TINY_RUN, *rows)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tiny-cs-d28-k0-seed0" / "result.json").exists()


@pytest.mark.parametrize("width", [4, 16])
def test_narrow_encoders_train_on_larger_images(tmp_path, tiny, width):
    # in a process of its own: with the wrong memory layout the C library aborts
    arguments = ("--image-size", 64, "--width", width, "--epochs", 1, "--out", "run")
    assert run_process(tmp_path, ROOT / "simclr.py", "--dataset", tiny, *TINY_RUN, *arguments).returncode == 0


ROWS = (
    [f"--projector {kind}" for kind in common.PROJECTORS]
    + [f"--reg {reg}" for reg in common.REG_WEIGHT]
    + [
        "--no-projector --fixed-dims 8 --fixed-value 1 --cross-view",
        "--blur-p 0.5 --solarize-p 0.2 --stem imagenet",
        "--arch resnet50 --image-size 16 --train-size 80",
        "--optimizer adam --crop-scale 0.2 1 --jitter 0 0 0 0 --grey-p 0",
    ]
)


@pytest.mark.parametrize("row", ROWS)
def test_every_kind_of_row_runs(row, tiny, script, tmp_path):
    done = script("simclr.py", "--dataset", tiny, *TINY_RUN, "--epochs", 1, "--out", "run", *row.split())
    assert done.returncode == 0, done.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["spectra"]["projector_hidden"] is None) == ("projector" in row and "mlp" not in row)


def test_the_lastlayer_penalty_makes_the_last_convolutions_rows_orthonormal(tiny, script, tmp_path):
    row = ("--no-projector", "--reg", "lastlayer", "--epochs", 30, "--eval-every", 0, "--out", "run")
    assert script("simclr.py", "--dataset", tiny, *TINY_RUN, *row).returncode == 0
    weight = torch.load(tmp_path / "run" / "encoder.pt")["layer4.1.conv2.weight"].flatten(1)
    assert (weight @ weight.T - torch.eye(32)).abs().max() < 0.1


def test_figures_of_runs_and_of_checkpoints_from_elsewhere(whole, script, tiny, tmp_path):
    for arguments in (("--layer", "z"), ("--norms",), ("--covariance", "--layer", "projector_hidden")):
        done = script("plot_spectra.py", whole, whole / "result.json", *arguments, "-o", "new/figure.png")
        assert done.returncode == 0 and "RankMe" in done.out, done.err
        assert (tmp_path / "new" / "figure.png").stat().st_size > 5000
    weights = common.resnet("resnet34", "imagenet", 4).state_dict()
    bare = common.resnet("resnet50", "cifar", 4).state_dict()
    files = {
        "plain.pth": bare,
        "fc.pt": {**weights, "fc.weight": torch.zeros(10, 32), "fc.bias": torch.zeros(10)},
        "backbone.pth": {"backbone": bare},
        "state.pth": {"state_dict": {f"module.{k}": v for k, v in weights.items()}},
        "model.pth": {"model": {f"module.backbone.{k}": v for k, v in bare.items()}, "epoch": 3},
        "encoder.pth": {
            "state_dict": {**{f"encoder.{k}": v for k, v in bare.items()}, "head.weight": torch.ones(2)}
        },
        "prefix.pt": {f"backbone.{k}": v for k, v in weights.items()},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    done = script("plot_spectra.py", *files, whole / "checkpoint.pt", "--dataset", tiny, "-o", "figure.pdf")
    assert done.returncode == 0 and (tmp_path / "figure.pdf").exists(), done.err


def test_unfinished_runs_are_left_out_of_a_figure(whole, script, tmp_path):
    (tmp_path / "half").mkdir()
    shutil.copy(whole / "config.json", tmp_path / "half")
    done = script("plot_spectra.py", "half", whole, "-o", "figure.png")
    assert done.returncode == 0 and "not finished: half" in done.err and (tmp_path / "figure.png").exists()
    done = script("plot_spectra.py", "half", "-o", "other.png")
    assert done.returncode == 2 and not (tmp_path / "other.png").exists()


def test_a_checkpoints_spectrum_is_that_of_its_encoder(whole, script, tiny, tmp_path):
    import plot_spectra

    encoder, result = (
        plot_spectra.load_encoder(whole / "encoder.pt"),
        json.loads((whole / "result.json").read_text()),
    )
    spectra = common.layer_statistics(encoder, None, common.load_dataset(tiny).x_test)["spectra"]
    for layer in ("h", "penultimate"):
        np.testing.assert_allclose(spectra[layer], result["spectra"][layer], rtol=1e-3, atol=1e-9)


def test_what_cannot_be_drawn_is_refused_in_one_line(whole, script, tiny, tmp_path):
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save(
        {k: v for k, v in common.resnet(width=4).state_dict().items() if "layer3" not in k},
        tmp_path / "cut.pt",
    )
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "run").mkdir()
    (tmp_path / "list.json").write_text("[]")
    for arguments in (
        ["run"],
        ["absent"],
        ["list.json"],
        ["other.pt"],
        ["encoder.pt"],
        *[[name, "--dataset", tiny] for name in ("other.pt", "module.pt", "cut.pt", "text.pth", "absent.pt")],
        [whole, "-o", "figure.xyz"],
        [whole, "--layer", "q"],
        [whole, "--norms", "--covariance"],
        [],
        [whole / "encoder.pt", "--dataset", tiny, "--layer", "z"],
        [whole / "encoder.pt", "--dataset", "nowhere"],
    ):
        done = script("plot_spectra.py", *arguments)
        assert done.returncode == 2 and len(done.err.splitlines()) == 1, (arguments, done.err)
    assert not (tmp_path / "figures").exists()


def test_on_real_images_a_short_run_beats_raw_pixels(request, script, tmp_path):
    folder = request.config.getoption("--data")
    if not folder or not (Path(folder) / "cifar10.npz").exists():
        pytest.skip("needs --data FOLDER with cifar10.npz")
    rows = ("--data-dir", folder, "--train-size", 5000, "--width", 16, "--epochs", 5, "--device", "cpu")
    done = script("simclr.py", "--dataset", "cifar10", *rows, "--out", "run")
    assert done.returncode == 0, done.err
    data = common.subset(common.load_dataset("cifar10", folder), 5000)
    pixels = [common.normalize(x).flatten(1) for x in (data.x_train, data.x_test)]
    raw = common.knn_accuracy(pixels[0], data.y_train, pixels[1], data.y_test)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["knn200"] > raw + 2
