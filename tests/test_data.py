"""Data sets as users have them: .npz files good and bad, image folders, torchvision's downloads, shapes."""

import fcntl
import http.client
import os
import shutil
import threading
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import common
import numpy as np
import pytest
import torch
from PIL import Image

import pack
import shapes

NO_NPZ = ["cut.npz", "text.npz", "raw.npz", "empty.npz", "folder.npz", "absent.npz", "cifar11"]
FORMATS = {"a.png": "RGB", "b.png": "L", "c.jpeg": "RGB", "d.png": "P", "e.png": "RGBA"}
LABELS = torch.tensor([2, 2, 2, 0, 1, 0, 1, 0, -1, 1])
TEN = common.Dataset("x", torch.arange(10), LABELS, torch.arange(10), LABELS, "abc")
BROKEN = [  # of an .npz, a key and what it holds instead
    ("x_train", lambda x: x / 255), ("x_train", lambda x: x[..., 0]), ("x_test", lambda x: x[:0]),
    ("x_train", lambda x: x.transpose(0, 3, 1, 2)), ("x_test", lambda x: x[:, :4]),
    ("y_test", lambda _: None), ("y_train", lambda y: y[:-1]), ("y_train", lambda y: y[:, None]),
    ("y_train", lambda y: y * 1.0), ("y_train", lambda y: y.astype(str)), ("y_train", lambda y: y - 2),
    ("y_train", lambda y: y * 0 - 1), ("y_test", lambda y: y - 1), ("classes", lambda _: np.array("abc")),
    ("classes", lambda _: np.array([*"ab"])), ("classes", lambda _: np.array(["a", None, 3], dtype=object)),
]  # fmt: skip
# The error's words, what is wrong with an image folder
DAMAGES = {
    "broken.png": lambda top: (top / "train/a/broken.png").write_bytes(b"no image"),
    "nowhere.png": lambda top: (top / "train/a/nowhere.png").symlink_to("there.png"),
    "mode F": lambda top: Image.new("F", (9, 9)).save(top / "train/a/range.tiff"),
    "a strip": lambda top: Image.new("L", (9000, 8)).save(top / "train/a/long.png"),
    "two to test": lambda top: [shutil.rmtree(top / "val/c"), *map(os.unlink, top.glob("val/b/[b-e].*"))],
    "no valid file": lambda top: (top / "val/a").mkdir(),
    "'d'": lambda top: (top / "val/b").rename(top / "val/d"),
    "train/": lambda top: (top / "train").rename(top / "training"),
}


def arrays():
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    y = np.arange(30) % 3
    return {"x_train": x[:20], "y_train": y[:20], "x_test": x[20:], "y_test": y[20:]}


def refused(words, path, image_size=None):
    """Loading these images is an error of one line with these words."""
    with pytest.raises(common.UserError, match=rf"\A.*{words}.*\Z"):
        common.load_dataset(path, image_size=image_size)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_an_npz_gives_its_images_and_labels(tmp_path, dtype):
    a = arrays()
    np.savez(tmp_path / "own.npz", **{**a, "y_train": a["y_train"].astype(dtype)}, classes=np.array([*"abc"]))
    data = common.load_dataset(str(tmp_path / "own.npz"))
    assert data.name == "own" and data.classes == ("a", "b", "c")
    assert data.x_train.dtype == torch.uint8 and data.x_train.is_contiguous()
    for split in ("train", "test"):
        assert np.array_equal(getattr(data, f"x_{split}").permute(0, 2, 3, 1).numpy(), a[f"x_{split}"])
        assert torch.equal(getattr(data, f"y_{split}"), torch.tensor(a[f"y_{split}"]))


def test_images_of_another_size_are_resized_and_centre_cropped(tmp_path):
    wide = {f"x_{split}": np.full((n, 8, 12, 3), 77, np.uint8) for split, n in (("train", 20), ("test", 10))}
    wide["x_train"][:, :, [0, 1, -2, -1]] = 0  # what a centre crop leaves out
    np.savez(tmp_path / "wide.npz", **{**arrays(), **wide})
    assert common.load_dataset(tmp_path / "wide.npz").x_train.shape == (20, 3, 8, 12)
    data = common.load_dataset(tmp_path / "wide.npz", image_size=16)
    assert data.x_train.shape == (20, 3, 16, 16) and (data.x_train[:, :, :, 2:-2] == 77).all()


@pytest.mark.parametrize("key, change", BROKEN)
def test_a_broken_npz_is_refused_by_name(tmp_path, key, change):
    a = arrays()
    a[key] = change(a.get(key))
    np.savez(tmp_path / "own.npz", **{name: x for name, x in a.items() if x is not None})
    refused("own.npz", tmp_path / "own.npz")


@pytest.mark.parametrize("name", NO_NPZ)
def test_files_that_are_no_npz_are_refused(tmp_path, name):
    np.savez(tmp_path / "cut.npz", **arrays())
    os.truncate(tmp_path / "cut.npz", 2000)
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as file:
        for key in common.NPZ_KEYS:
            file.writestr(f"{key}.npy", b"raw")
    (tmp_path / "text.npz").write_bytes(b"x")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "folder.npz").mkdir()
    refused(name, tmp_path / name)


@pytest.fixture
def folder(tmp_path):
    """An image folder of many formats."""
    rng = np.random.default_rng(0)
    for place in ("train/a", "train/b", "train/c", "val/b", "val/c"):
        (tmp_path / place).mkdir(parents=True)
        for i, (name, mode) in enumerate(FORMATS.items()):
            image = Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8))
            image.convert(mode).save(tmp_path / place / name)
    return tmp_path


def test_an_image_folder_of_many_formats_is_read_at_one_size_and_told_from_another_by_its_images(folder):
    data = common.load_dataset(folder, image_size=16)
    assert data.x_train.shape == (15, 3, 16, 16) and data.x_test.shape == (10, 3, 16, 16)
    assert data.classes == ("a", "b", "c") and data.y_test.tolist() == [1] * 5 + [2] * 5
    packed = folder / "packed-16"
    maps = Path("/proc/self/maps").read_text().splitlines()
    of_packed = {line.split()[1] for line in maps if f"{packed}/" in line}
    assert of_packed == {"r--s"}  # else it has to fit in memory
    assert packed.resolve() not in common._LOCKS
    grey = data.x_train[1]
    assert torch.equal(grey[0], grey[1]) and not torch.equal(data.x_train[0, 0], data.x_train[0, 1])
    args = SimpleNamespace(dataset=str(folder), image_size=16)
    assert common._checksum(args, data) != common._checksum(args, data._replace(x_test=255 - data.x_test))


@pytest.mark.parametrize("named", DAMAGES)
def test_a_broken_image_folder_is_refused(folder, named):
    DAMAGES[named](folder)
    refused(named, folder, 16)
    assert not list(folder.glob("packed-16/*"))


def test_a_disk_that_fails_and_memory_that_is_full_are_no_damaged_file(folder, monkeypatch):
    monkeypatch.setattr(pack, "read_rgb", Mock(side_effect=OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        common.load_dataset(folder, image_size=16, skip_broken=True)
    (folder / "x.npz").touch()
    monkeypatch.setattr(np, "load", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError, match="x.npz"):
        common.load_dataset(folder / "x.npz")


def test_packing_goes_on_where_it_was_killed_and_a_change_after_it_is_refused(folder, forks):
    expected = common.load_dataset(folder, image_size=16)
    (folder / "packed-16").rename(folder / "whole")
    kill = "import os, pack; pack.BLOCK = 4; write = common.write_json\n"
    kill += "common.write_json = lambda file, note: write(file, note) or note['done'] != 8 or os._exit(9)"
    assert forks(folder, "simclr.py", "--dataset", ".", "--image-size", 16, before=kill).returncode == 9
    part = folder / "packed-16" / "train.part"
    assert part.stat().st_size == 128 + 8 * 3 * 16 * 16
    with open(part, "ab") as file:
        file.write(b"what was not noted as done")
    done = forks(folder, "pack.py", ".", "--image-size", 16)
    assert done.returncode == 0 and done.out == "15 images to train, 10 to test, 3 classes\n"
    data = common.load_dataset(folder, image_size=16)
    assert torch.equal(data.x_train, expected.x_train) and torch.equal(data.x_test, expected.x_test)
    (folder / "train/a/b.png").unlink()
    refused("train has changed since", folder, 16)


def test_unreadable_images_are_skipped_only_when_asked_and_named(folder, forks):
    (folder / "train/b/bad.png").write_bytes(b"no image")
    pack_it = partial(forks, folder, "pack.py", ".", "--image-size", 16)
    assert "--skip-broken" in pack_it().err
    done = pack_it("--skip-broken")
    assert done.out == "15 images to train, 10 to test, 3 classes\n" and "train/b/bad.png" in done.err
    data = common.load_dataset(folder, image_size=16, skip_broken=True)
    assert data.y_train.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    packed = folder / "packed-16" / "train.npy"
    packed.rename(packed.with_suffix(".part"))  # not done, says the name
    assert "begun without train/b/bad.png" in pack_it().err
    assert pack_it("--skip-broken").out == done.out
    assert "packed without 1 unreadable images of train" in pack_it().err


def test_pixels_are_those_of_the_files_of_16_bits_of_grey_the_upper_8(folder):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 2**16, (16, 16)).astype(np.uint16)
    colour = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for name, values in (("a.png", grey), ("b.png", colour)):
        Image.fromarray(values).save(folder / "train/a" / name)
    x = common.load_dataset(folder, image_size=16).x_train
    assert torch.equal(x[0], torch.tensor(grey // 256).byte().expand(3, -1, -1))
    assert torch.equal(x[1], torch.tensor(colour).permute(2, 0, 1))


def test_a_packed_folder_that_is_damaged_or_of_other_images_is_refused(folder):
    common.load_dataset(folder, image_size=16)
    images, notes = (folder / "packed-16" / name for name in ("val.npy", "val.json"))
    whole = common.read_json(notes)
    for change in ({"skipped": None}, {"skipped": [5]}, {"done": "a"}):
        common.write_json(notes, whole | change)
        refused("val.json is absent or damaged", folder, 16)
    common.write_json(notes, whole)
    for cut in (-1, 0):
        images.write_bytes(images.read_bytes()[:cut])
        refused("val.npy can.t be mapped; if it is damaged, remove", folder, 16)
    np.save(images, np.zeros((9, 3, 16, 16), np.uint8))
    refused("not its images", folder, 16)


def test_packed_images_have_their_shorter_side_resized_and_their_centre_kept(folder):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    high = image.transpose(Image.Transpose.TRANSPOSE)
    image.save(folder / "val" / "b" / "wide.png")
    high.save(folder / "val" / "b" / "high.png")
    found = common.load_dataset(folder, image_size=16).x_test.permute(0, 2, 3, 1).numpy()
    wide = np.asarray(image.resize((26, 16), Image.Resampling.BILINEAR))[:, 5:21]
    high = np.asarray(high.resize((16, 26), Image.Resampling.BILINEAR))[5:21]
    assert all(any(np.array_equal(expected, one) for one in found) for expected in (wide, high))


def test_a_file_system_without_locks_is_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(38, "Function not implemented")))
    common.lock(tmp_path)
    common.unlock(tmp_path)
    assert capsys.readouterr().err.startswith(f"note: {tmp_path} can't be locked")


def lock_until(folder, ends):
    """Locks a folder as another process would, calls ends() half a second later and unlocks it."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    threading.Timer(0.5, lambda: [ends(), os.close(descriptor)]).start()


def test_a_folder_that_another_process_packs_is_waited_for(folder, capsys):
    packed = folder / "packed-16"
    common.load_dataset(folder, image_size=16)
    made = packed.rename(folder / "made")
    of_the_first = (made / "train.npy").stat().st_ino
    packed.mkdir()
    lock_until(packed, lambda: [file.rename(packed / file.name) for file in made.iterdir()])
    assert len(common.load_dataset(folder, image_size=16).x_train) == 15
    assert "packed-16 is in use by another process: waiting" in capsys.readouterr().err
    assert (packed / "train.npy").stat().st_ino == of_the_first  # not packed again


@pytest.mark.parametrize("kind", ["CIFAR10", "CIFAR100", "STL10"])
def test_named_sets_are_downloaded_once_and_then_read_from_the_npz(tmp_path, monkeypatch, kind):
    calls = []

    def downloaded(root, download, train=False, split=""):  # as torchvision's are
        calls.append(download)
        part = "train" if train or split == "train+unlabeled" else "test"
        x, y = arrays()[f"x_{part}"], arrays()[f"y_{part}"]
        x = x.transpose(0, 3, 1, 2) if split else x
        return SimpleNamespace(data=x, classes=[*"abc"], targets=y.tolist(), labels=y - (part == "train"))

    monkeypatch.setattr(common.torchvision.datasets, kind, downloaded)
    first, second = (common.load_dataset(kind.lower(), tmp_path) for _ in range(2))
    assert calls == [True, True] and [path.name for path in tmp_path.iterdir()] == [f"{kind.lower()}.npz"]
    assert first.name == kind.lower() and first.y_train.min() == (-1 if kind == "STL10" else 0)
    assert np.array_equal(first.x_train.permute(0, 2, 3, 1).numpy(), arrays()["x_train"])
    assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(first, second))


def test_images_that_do_not_fit_on_a_gpu_stay_in_memory(tiny, monkeypatch):
    data = common.load_dataset(tiny)
    whole = data.x_train.nbytes + data.x_test.nbytes
    for free, kept in ((2 * whole, "meta"), (2 * whole - 2, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        found = common._to_device(data, torch.device("meta"))
        assert found.x_train.device.type == kept and found.mapped == (kept == "cpu")
        assert found.y_train.device.type == "meta"


def test_a_second_download_waits_for_the_first_and_takes_what_it_made(tmp_path):
    lock_until(tmp_path, lambda: np.savez(tmp_path / "cifar10.npz", **arrays()))
    assert len(common.load_dataset("cifar10", tmp_path).x_train) == 20
    assert tmp_path.resolve() not in common._LOCKS


@pytest.mark.parametrize("error", [OSError, http.client.InvalidURL])  # the latter of a bad proxy
def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, error):
    monkeypatch.setattr(common.torchvision.datasets, "CIFAR10", Mock(side_effect=error("no route to host")))
    with pytest.raises(common.UserError, match="no route to host"):
        common.load_dataset("cifar10", tmp_path / "new" / "data")
    assert not list(tmp_path.iterdir())


def test_drawn_shapes_are_balanced_and_the_same_for_the_same_seed(monkeypatch):
    first, again, other = (shapes.shapes(60, 40, seed=seed, size=12) for seed in (0, 0, 1))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["x_train"], other["x_train"])
    monkeypatch.setattr(shapes, "shapes", lambda: first)
    data = common.load_dataset("shapes")
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert x.shape == (len(y), 3, 12, 12)
        assert torch.equal(torch.bincount(y), torch.full((10,), len(y) // 10))


def test_a_subset_is_balanced_and_the_first_of_each_class_and_one_with_too_few_is_named():
    data = common.subset(TEN, 5)
    assert data.x_train.tolist() == [0, 3, 4, 5, 6] and data.y_train.tolist() == [2, 0, 1, 0, 1]
    assert torch.equal(data.x_test, torch.arange(10))
    labels = torch.tensor([2, 2, 2, 0, 1, 0, 1, 0, -1, 2])
    for classes in ("abc", "aaa"):
        with pytest.raises(common.UserError, match=f"more than the 2 images of class '{classes[1]}'"):
            common.subset(TEN._replace(classes=classes, y_train=labels), 10)
