import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pytest_addoption(parser):
    parser.addoption("--data", help="folder with cifar10.npz, for the test on real images")


@pytest.fixture
def script(tmp_path):
    """Runs a script in an empty folder: script("simclr.py", "--epochs", "1") -> CompletedProcess."""
    def call(name, *arguments, **options):
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, **options)
    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """An .npz of 96 + 40 images of noise and a class-dependent colour, 12 x 12, 4 classes: seconds for a whole run."""
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 96), ("test", 40)):
        y = np.arange(n) % 4
        x = rng.integers(0, 120, (n, 12, 12, 3)) + 40 * (y[:, None, None, None] == np.arange(3))
        arrays |= {f"x_{split}": x.astype(np.uint8), f"y_{split}": y}
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **arrays)
    return path


TINY_RUN = ("--width", 4, "--batch-size", 32, "--epochs", 3, "--eval-every", 1, "--device", "cpu")
