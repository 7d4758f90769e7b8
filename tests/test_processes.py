"""Runs of several processes, as torchrun starts them, against one process that sees the same batches."""

import os
import re
import subprocess
import sys

import common
import pytest
import torch
from conftest import ROOT, TINY_RUN, read

# What BatchNorms of several processes on a CPU do, in one: each takes the statistics of its own share.
SHARES = """
import torch
def embed(encoder, projector, x1, x2):
    if not os.path.exists("first.pt"):
        torch.save(encoder.state_dict(), "first.pt")
    return tuple(torch.cat([projector(encoder(part)) for part in x.chunk({0})]) for x in (x1, x2))
common.embed = embed
"""
LARS = "--optimizer lars --lr 0.3 --warmup-epochs 1 --blur-p 1.0 0.1 --solarize-p 0 0.2"
METHODS = {
    "simclr.py --reg werank": 2,
    f"simclr.py --projector orthogonal --cross-view {LARS}": 2,
    "directclr.py --subvector random --reg lastlayer": 4,
    "barlow.py --hidden 16 --embedding 8 --optimizer adam --lr 1e-4": 2,
    "byol.py --hidden 16 --embedding 8 --reg sparsehead": 2,
}


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def same(first, second, tolerance):
    """Whether two models agree within a share of the largest weight; BatchNorm's statistics are apart."""
    learned = [key for key in first if not re.search("running|num_batches|target|chosen", key)]
    return all(
        (first[key] - second[key]).abs().max() <= tolerance * first[key].abs().max() for key in learned
    )


@pytest.mark.parametrize("row", METHODS)
def test_processes_train_the_weights_of_one(row, start, tmp_path):
    count = METHODS[row]
    assert start(f"{row} --out one", before=SHARES.format(count)).returncode == 0
    done = start(row, processes=count)
    assert done.returncode == [0] * count and done.err.count("BatchNorm statistics of its own") == 1
    one, several = (read(tmp_path / name, "metrics.jsonl") for name in ("one", "run"))
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in several], rel=1e-5)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "run"), 1e-4)
    first = torch.load(tmp_path / "first.pt", weights_only=True)
    trained = {key.removeprefix("encoder."): value for key, value in weights(tmp_path / "one").items()}
    assert not any(same({key: first[key]}, trained, 2e-4) for key in first if "conv" in key)
    assert "rankme" in read(tmp_path / "run")


STOP = """
import os, signal
step = common.Training.train_on
def train_on(self, *batch):
    step(self, *batch)
    if self.step == 4 and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.{0})
common.Training.train_on = train_on
"""


def test_a_signal_to_one_process_stops_all_and_another_number_of_them_continues(start, tmp_path):
    row = "simclr.py --arch mlp --no-projector"
    assert start(f"{row} --out one").returncode == 0
    done = start(row, processes=2, before=STOP.format("SIGTERM"))
    assert done.returncode == [143, 143] and done.err.count("stopped after step 4 of 6") == 1
    assert start(f"{row} --resume").returncode == 0
    assert same(weights(tmp_path / "one"), weights(tmp_path / "run"), 1e-5)
    assert start(f"{row} --resume", processes=2).returncode == [0, 0]


def test_a_process_that_is_killed_ends_the_others_with_a_line(start):
    done = start("simclr.py --arch mlp --no-projector", processes=2, before=STOP.format("SIGKILL"))
    assert done.returncode == [1, -9]
    assert re.fullmatch(r"simclr.py: error: process 0 has lost another one .*\n", done.err)


@pytest.mark.parametrize(
    "row, says",
    [
        ("simclr.py --dataset nothing.npz", "nothing.npz is not a readable"),
        ("simclr.py --no-such-flag", "unrecognized arguments"),
        ("simclr.py --arch mlp --no-projector --out file", "file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_in_every_process(row, says, start, tmp_path):
    (tmp_path / "file").write_text("")
    done = start(row, processes=2)
    assert done.returncode == [2, 2] and len(done.err.splitlines()) == 1 and says in done.err
    assert not (tmp_path / "run").exists()


SHARED = {"--batch-size 33": "33 can't be shared by 2", "--batch-size 2": "2 can't be shared by 2"}
SHARED["--device cuda:1"] = "--device cuda:1 is one GPU for 2 processes"


@pytest.mark.parametrize("flags", SHARED)
def test_what_processes_can_not_share_is_an_error(flags, monkeypatch):
    monkeypatch.setattr(common, "processes", lambda: 2)
    args = common.arguments("").parse_args(["--device", "cpu", *flags.split()])
    with pytest.raises(common.UserError, match=SHARED[flags]):
        common.prepare(args)


def test_what_one_process_alone_can_not_read_ends_all_with_nothing_written(start, tmp_path):
    alone = """
import os
load = common.load_dataset
def load_dataset(*args):
    if os.environ["RANK"] == "1":
        raise common.UserError("no such disk")
    return load(*args)
common.load_dataset = load_dataset
"""
    done = start("simclr.py --arch mlp", before=alone, processes=2)
    assert done.returncode == [2, 2] and done.err == "simclr.py: error: no such disk\n"
    assert not (tmp_path / "run").exists()


def test_a_full_disk_of_the_first_process_ends_all_with_its_line(start):
    full = """
def write_json(*_):
    raise OSError("no space left")
common.write_json = write_json
"""
    done = start("simclr.py --arch mlp --no-projector", before=full, processes=2)
    assert done.returncode == [2, 2] and done.err == "simclr.py: error: no space left\n"


def test_torchrun_ends_by_sigterm_with_the_run_saved(tiny, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    flags = ["--arch", "mlp", "--epochs", "9999", "--out", "run", "--dataset"]
    command = [sys.executable, *torchrun, ROOT / "simclr.py", *map(str, TINY_RUN), *flags, tiny]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pipes |= {"env": os.environ | {"PYTHONUNBUFFERED": "1"}}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as both:
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
        mapped = data._replace(mapped=rank > 0)
        parts.append(torch.stack(list(common.batches(mapped, order, 12, 1, cpu))))
    assert whole.shape == (3, 12, 1) and torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(whole.flatten(), order[12:48])
