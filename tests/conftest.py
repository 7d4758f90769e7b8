"""What tests share: tiny images, scripts called in this process, and runs in processes that may be killed."""

import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TINY_RUN = ("--width", 4, "--batch-size", 32, "--epochs", 2, "--eval-every", 1, "--device", "cpu")
# For monkeypatch.setattr: figures are laid out with all their artists, not rendered; what is saved is empty.
LAID_OUT = ("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figure.draw_without_rendering())


def pytest_addoption(parser):
    parser.addoption("--data", help="folder with cifar10.npz, for the test on real images")


def pytest_configure():
    if "PYTEST_XDIST_WORKER" in os.environ:  # threads of processes that share cores wait for each other
        torch.set_num_threads(1)


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Runs a script's main() in an empty folder: script("simclr.py", "--epochs", 1) -> code, out, err."""

    def call(name, *arguments):
        main = importlib.import_module(Path(name).stem).main
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        code = 0
        try:
            importlib.import_module("common").run(main)
        except SystemExit as stopped:
            code = stopped.code
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    return call


def run_process(folder, *arguments):
    """A Python process in the folder."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """An .npz of 96 + 40 images of 12 x 12, noise with a colour per class, 4 classes: a run in a second."""
    y = np.arange(96 + 40) % 4
    noise = np.random.default_rng(0).integers(0, 120, (len(y), 12, 12, 3))
    x = (noise + 40 * (y[:, None, None, None] == np.arange(3))).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, x_train=x[:96], y_train=y[:96], x_test=x[96:], y_test=y[96:])
    return path


# Importing torch takes longer than a tiny run: this process has, and forks another for every run.
FORKS = """
import gc, json, os, runpy, signal, sys, common, torch._dynamo  # which the first step imports
sys.path[0] = os.getcwd()
probe = common.logistic_regression  # most of a tiny run's time, so with fewer iterations
common.logistic_regression = lambda *args, iterations=0: probe(*args, iterations=10)
def run(folder, code, argv, environment):
    signal.alarm(240)
    os.environ |= environment
    common.torch.set_num_threads(1)  # threads of processes that share cores wait for each other
    os.chdir(folder)
    for stream, name in ((1, "out"), (2, "err")):
        name += os.environ.get("RANK", "")
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
    ended = 0
    try:
        exec(code, globals())
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stopped:
        ended = stopped.code or 0
    if environment:
        sys.exit(ended)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(ended)  # to take torch to pieces costs more than a tiny run
gc.freeze()  # what is here is no garbage: a child that looked for some would copy its pages
for line in sys.stdin:
    *job, environments = json.loads(line)
    children = []
    for environment in environments:
        children.append(os.fork())
        if not children[-1]:
            run(*job, environment)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""


@pytest.fixture(scope="session")
def forks():
    """forks(folder, "simclr.py", …) -> code, out, err: runs a script in a process of its own, which may die.
    before: code that runs first, in which `common` can be changed. processes: so many of one run, whose codes
    are a list and whose out and err are joined."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT, "text": True}
    options["env"] = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}  # which common overrules
    server = subprocess.Popen([sys.executable, "-c", FORKS], **options)

    def call(folder, name, *arguments, before="", processes=1):
        environments = [{}]
        if processes > 1:  # as torchrun sets them
            with socket.create_server(("127.0.0.1", 0)) as free:
                address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
            ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
            environments = [address | {"WORLD_SIZE": str(processes)} | rank for rank in ranks]
        job = (str(folder), before, [str(ROOT / name), *map(str, arguments)], environments)
        print(json.dumps(job), file=server.stdin, flush=True)
        codes = json.loads(server.stdout.readline())
        ranks = [environment.get("RANK", "") for environment in environments]
        said = lambda stream: "".join((folder / f"{stream}{rank}").read_text() for rank in ranks)
        code = codes if processes > 1 else codes[0]
        return SimpleNamespace(returncode=code, out=said("out"), err=said("err"))

    yield call
    server.stdin.close()
    server.wait()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny, forks):
    """The folder of a run that nothing interrupted: finished("byol.py --reg werank"), made once a session."""

    @functools.cache
    def folder(row):
        name, *flags = row.split()
        place = tmp_path_factory.mktemp("run")
        done = forks(place, name, "--dataset", tiny, *TINY_RUN, *flags, "--out", "run")
        assert done.returncode == 0, done.err
        return place / "run"

    return folder


@pytest.fixture(scope="session")
def whole(finished):
    return finished("simclr.py")


@pytest.fixture
def start(tmp_path, tiny, forks):
    """start("simclr.py --epochs 1", before="", processes=1) -> code, out, err: a run in tmp_path/run."""

    def call(row, before="", processes=1):
        name, *flags = row.split()
        words = (name, "--dataset", tiny, *TINY_RUN, "--out", "run", *flags)
        return forks(tmp_path, *words, before=before, processes=processes)

    return call


@pytest.fixture
def method(monkeypatch, script, tiny):
    """method("barlow --hidden 8"): what a script gives to common.fit; with the MLP unless told otherwise."""

    def call(line):
        name, *flags = line.split()
        caught = SimpleNamespace()

        def fit(args, data, encoder, projector, loss, *_, modules=()):
            caught.__dict__.update(
                args=args, encoder=encoder, projector=projector, loss=loss, modules=modules
            )

        monkeypatch.setattr("common.fit", fit)
        words = ("--dataset", tiny, "--device", "cpu", "--batch-size", 8, "--width", 4, "--arch", "mlp")
        done = script(f"{name}.py", *words, *flags)
        assert done.returncode == 0, done.err
        return caught

    return call


def sabotage(function, call, action):
    """Code for `forks`: a function of common does something at its n-th call."""
    return f"""
def sabotaged(*args, original=common.{function}, calls=[0], **kwargs):
    calls[0] += 1
    if calls[0] == {call}:
        {action}
    return original(*args, **kwargs)
common.{function} = sabotaged
"""


def comparable(folder):
    """All that a finished run has and that may not depend on interruptions."""
    result = read(folder)
    lines = read(folder, "metrics.jsonl")
    for timed in (result, *result["history"], *lines):
        del timed["seconds"], timed["images_per_second"]
    del result["config"]["git"]  # of a repository that changes
    return (folder / "encoder.pt").read_bytes(), result, lines


def normal(*shape, seed=0):
    """Standard normal float64, the same for the same seed."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cases(table):
    """The cases of a table that has semicolons between them."""
    return [case.strip() for case in table.split(";")]


def read(folder, name="result.json"):
    """The JSON of a run's file; of metrics.jsonl a list."""
    text = (folder / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name == "metrics.jsonl" else json.loads(text)


def put(path, content):
    """Writes a text, or JSON, into a file of a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
