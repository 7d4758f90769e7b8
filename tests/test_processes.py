"""Runs of several processes, as torchrun starts them, against one process that sees the same batches."""

import os
import re
import subprocess
import sys

import common
import pytest
import torch
from conftest import ROOT, TINY_RUN, read, sabotage

# A ReLU that rounding opens changes a gradient by a thousandth, which a few steps turn into a tenth. Each
# process draws weights of its own here: those of the first count.
SMOOTH = """
import torch
torch.nn.ReLU.forward = lambda _, x: torch.nn.functional.gelu(x)
def resnet(*args, resnet=common.resnet):
    torch.manual_seed(int(os.environ.get("RANK", 0)))
    return resnet(*args)
common.resnet = resnet
"""
# What BatchNorms of several processes on a CPU do, in one: each takes the statistics of its own share.
SHARES = """
def embed(encoder, projector, x1, x2):
    if not os.path.exists("first.pt"):
        torch.save(encoder.state_dict(), "first.pt")
    return tuple(torch.cat([projector(encoder(part)) for part in x.chunk({0})]) for x in (x1, x2))
common.embed = embed
"""
LARS = "--optimizer lars --lr 0.1 --warmup-epochs 1 --blur-p 1.0 0.1 --solarize-p 0 0.2"
METHODS = {
    "simclr.py --reg werank": 2,
    f"simclr.py --projector orthogonal --cross-view {LARS}": 2,
    "directclr.py --subvector random --reg lastlayer": 4,
    "barlow.py --hidden 16 --embedding 8 --optimizer adam --lr 1e-4": 2,
    "byol.py --hidden 16 --embedding 8 --reg sparsehead": 2,
}
MLP = "simclr.py --arch mlp --no-projector"


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def differing(first, second, tolerance):
    """Where models differ by more than a share of the largest weight, but for BatchNorm's statistics."""
    learned = [key for key in first if not re.search("running|num_batches|target|chosen", key)]
    scales = {key: tolerance * first[key].abs().max() for key in learned}
    return [key for key in learned if not (first[key] - second[key]).abs().max() <= scales[key]]


@pytest.mark.parametrize("row", METHODS)
def test_processes_train_the_weights_of_one(row, start, tmp_path):
    count = METHODS[row]
    assert start(f"{row} --out one", before=SMOOTH + SHARES.format(count)).returncode == 0
    done = start(row, SMOOTH, count)
    assert done.returncode == [0] * count and done.err.count("BatchNorm statistics of its own") == 1
    one, several = (read(tmp_path / name, "metrics.jsonl") for name in ("one", "run"))
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in several], rel=1e-5)
    assert not differing(weights(tmp_path / "one"), weights(tmp_path / "run"), 1e-4)
    first = torch.load(tmp_path / "first.pt", weights_only=True)
    convolutions = {f"encoder.{key}": value for key, value in first.items() if "conv" in key}
    assert differing(convolutions, weights(tmp_path / "one"), 2e-4) == [*convolutions]
    assert "rankme" in read(tmp_path / "run")


def second_process(function, call, action):
    """Code that makes a function of common do something at its n-th call, in the second process alone."""
    return sabotage(function, call, f"if os.environ['RANK'] == '1': {action}")


def test_a_signal_to_one_process_stops_all_and_another_number_of_them_continues(finished, start, tmp_path):
    signalled = second_process("Training.train_on", 4, "os.kill(os.getpid(), signal.SIGTERM)")
    done = start(MLP, signalled, processes=2)
    assert done.returncode == [143, 143] and done.err.count("stopped after step 4 of 6") == 1
    assert start(f"{MLP} --resume").returncode == 0
    assert not differing(weights(finished(MLP)), weights(tmp_path / "run"), 1e-5)
    assert start(f"{MLP} --resume", processes=2).returncode == [0, 0]


def test_a_process_that_is_killed_ends_the_others_with_a_line(start):
    killed = second_process("max_over_processes", 4, "os.kill(os.getpid(), signal.SIGKILL)")
    done = start(MLP, killed, processes=2)
    assert done.returncode == [1, -9]
    assert re.fullmatch(r"simclr.py: error: process 0 has lost another one .*\n", done.err)


NO_SUCH_DISK = second_process("load_dataset", 1, "raise common.UserError('no such disk')")
FULL_DISK = sabotage("write_json", 1, "raise OSError('no space left')")  # in the first, which alone writes
REFUSED = [  # flags, code that runs before, the error
    ("--dataset nothing.npz", "", ".*nothing.npz is not a readable.*"),
    ("--no-such-flag", "", "unrecognized arguments.*"),
    ("--out file", "", ".*file.*"),
    ("--batch-size 33", "", "--batch-size 33 can't be shared by 2.*"),
    ("--batch-size 2", "", "--batch-size 2 can't be shared by 2.*"),
    ("--device cuda:1", "", "--device cuda:1 is one GPU for 2 processes.*"),
    ("", NO_SUCH_DISK, "no such disk"),
    ("", FULL_DISK, "no space left"),
]


@pytest.mark.parametrize("flags, before, error", REFUSED)
def test_an_error_of_one_process_or_of_all_is_a_line_and_code_2(flags, before, error, start, tmp_path):
    (tmp_path / "file").write_text("")
    done = start(f"{MLP} {flags}", before, processes=2)
    assert done.returncode == [2, 2] and re.fullmatch(f"simclr.py: error: {error}\n", done.err), done.err
    assert (tmp_path / "run").exists() == (before == FULL_DISK)  # else it ends before anything is written


def test_torchrun_ends_by_sigterm_with_the_run_saved(tiny, tmp_path):
    torchrun = "-m torch.distributed.run --nproc-per-node 2 --standalone"
    flags = "--arch mlp --epochs 9999 --out run --dataset"
    words = [*torchrun.split(), ROOT / "simclr.py", *map(str, TINY_RUN), *flags.split(), tiny]
    options = {"cwd": tmp_path, "text": True, "env": os.environ | {"PYTHONUNBUFFERED": "1"}}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *words], **options) as both:
        next(line for line in both.stdout if line.startswith("epoch 1 "))
        both.terminate()
        error = both.communicate()[1]
    assert "--resume continues" in error and both.returncode
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] > 0


def test_a_batch_reaches_every_process_in_the_order_of_one(monkeypatch):
    data = common.Dataset("", torch.arange(50)[:, None], *[None] * 4)
    order = torch.randperm(50)
    cpu = torch.device("cpu")
    whole = torch.stack(list(common.batches(data, order, 12, 1, cpu)))
    monkeypatch.setattr(common, "processes", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(common, "process_index", lambda rank=rank: rank)
        parts.append(torch.stack(list(common.batches(data._replace(mapped=rank > 0), order, 12, 1, cpu))))
    assert whole.shape == (3, 12, 1) and torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(whole.flatten(), order[12:48])
