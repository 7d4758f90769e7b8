import importlib
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pytest_addoption(parser):
    parser.addoption("--data", help="folder with cifar10.npz, for the test on real images")


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
    """An .npz of 96 + 40 images of 12 x 12, noise with a colour per class, 4 classes: a run in seconds."""
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 96), ("test", 40)):
        y = np.arange(n) % 4
        x = rng.integers(0, 120, (n, 12, 12, 3)) + 40 * (y[:, None, None, None] == np.arange(3))
        arrays |= {f"x_{split}": x.astype(np.uint8), f"y_{split}": y}
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **arrays)
    return path


TINY_RUN = ("--width", 4, "--batch-size", 32, "--epochs", 3, "--eval-every", 1, "--device", "cpu")
