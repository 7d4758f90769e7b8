"""Data sets as users have them: .npz files good and bad, image folders, torchvision's downloads, shapes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import common


def arrays(n=20, m=10, side=8, classes=3):
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
        "y_train": np.arange(n) % classes,
        "x_test": rng.integers(0, 256, (m, side, side, 3), dtype=np.uint8),
        "y_test": np.arange(m) % classes,
    }


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_an_npz_gives_its_images_and_labels(tmp_path, dtype):
    a = arrays()
    np.savez(
        tmp_path / "own.npz",
        **{**a, "y_train": a["y_train"].astype(dtype)},
        classes=np.array(["a", "b", "c"]),
    )
    data = common.load_dataset(str(tmp_path / "own.npz"))
    assert data.name == "own" and data.classes == ("a", "b", "c")
    assert (
        data.x_train.dtype == torch.uint8
        and data.x_train.shape == (20, 3, 8, 8)
        and data.x_train.is_contiguous()
    )
    assert np.array_equal(data.x_test.permute(0, 2, 3, 1).numpy(), a["x_test"])
    assert data.y_train.dtype == torch.int64 and np.array_equal(data.y_train.numpy(), a["y_train"])


def test_images_of_another_size_are_resized_and_centre_cropped(tmp_path):
    a = arrays()
    a["x_train"], a["x_test"] = (np.full((n, 8, 12, 3), 77, np.uint8) for n in (20, 10))
    np.savez(tmp_path / "wide.npz", **a)
    data = common.load_dataset(tmp_path / "wide.npz", image_size=16)
    assert data.x_train.shape == (20, 3, 16, 16) and (data.x_train == 77).all()
    assert common.load_dataset(tmp_path / "wide.npz").x_train.shape == (20, 3, 8, 12)


BROKEN = {
    "missing key": lambda a: a.pop("y_test"),
    "float images": lambda a: a.update(x_train=a["x_train"] / 255),
    "grey images": lambda a: a.update(x_train=a["x_train"][..., 0]),
    "channels first": lambda a: a.update(x_train=a["x_train"].transpose(0, 3, 1, 2)),
    "no images": lambda a: a.update(x_test=a["x_test"][:0], y_test=a["y_test"][:0]),
    "too few labels": lambda a: a.update(y_train=a["y_train"][:-1]),
    "labels of two dimensions": lambda a: a.update(y_train=a["y_train"][:, None]),
    "float labels": lambda a: a.update(y_train=a["y_train"] * 1.0),
    "negative test label": lambda a: a.update(y_test=a["y_test"] - 1),
    "label below -1": lambda a: a.update(y_train=a["y_train"] - 2),
    "no labelled image": lambda a: a.update(y_train=a["y_train"] * 0 - 1),
    "another size to test": lambda a: a.update(x_test=a["x_test"][:, :4]),
    "too few class names": lambda a: a.update(classes=np.array(["a", "b"])),
    "pickled class names": lambda a: a.update(classes=np.array(["a", None, 3], dtype=object)),
    "one class name": lambda a: a.update(classes=np.array("abc")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_npz_is_refused_by_name(tmp_path, case):
    a = arrays()
    BROKEN[case](a)
    np.savez(tmp_path / "own.npz", **a)
    with pytest.raises(common.UserError, match="own.npz") as caught:
        common.load_dataset(tmp_path / "own.npz")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz_are_refused(tmp_path):
    np.savez(tmp_path / "cut.npz", **arrays())
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("images")
    (tmp_path / "empty.npz").write_text("")
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    (tmp_path / "folder.npz").mkdir()
    for name in ("cut", "text", "empty", "array", "folder", "absent"):
        with pytest.raises(common.UserError, match=name):
            common.load_dataset(tmp_path / f"{name}.npz")
    with pytest.raises(common.UserError, match="cifar11"):
        common.load_dataset("cifar11")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, classes in (("train", "abc"), ("val", "bc")):
        for name in classes:
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i, (mode, suffix) in enumerate(
                (("RGB", "png"), ("L", "png"), ("RGB", "jpeg"), ("P", "png"), ("RGBA", "png"))
            ):
                image = Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).convert(mode)
                image.save(tmp_path / "set" / split / name / f"{i}.{suffix}")
    return tmp_path / "set"


def test_an_image_folder_of_many_formats_is_read_at_one_size(folder):
    data = common.load_dataset(folder, image_size=16)
    assert data.x_train.shape == (15, 3, 16, 16) and data.x_test.shape == (10, 3, 16, 16)
    assert data.classes == ("a", "b", "c") and data.y_test.tolist() == [1] * 5 + [2] * 5
    grey = data.x_train[1].int()
    assert (grey[0] == grey[1]).all() and (data.x_train[0, 0] != data.x_train[0, 1]).any()


def test_broken_image_folders_are_refused(folder):
    with pytest.raises(common.UserError, match="--image-size"):
        common.load_dataset(folder)
    (folder / "train" / "a" / "broken.png").write_bytes(b"no image")
    with pytest.raises(common.UserError, match="broken.png"):
        common.load_dataset(folder, image_size=16)
    (folder / "train" / "a" / "broken.png").unlink()
    (folder / "val" / "a").mkdir()
    with pytest.raises(common.UserError):  # an empty class
        common.load_dataset(folder, image_size=16)
    (folder / "val" / "a").rename(folder / "val" / "d")
    (folder / "val" / "b" / "0.png").rename(folder / "val" / "d" / "0.png")
    with pytest.raises(common.UserError, match="'d'"):
        common.load_dataset(folder, image_size=16)
    with pytest.raises(common.UserError, match="train"):
        common.load_dataset(folder / "val", image_size=16)


class Downloaded:
    """What torchvision.datasets.CIFAR10 and STL10 look like once downloaded."""

    calls, classes = 0, ["a", "b", "c"]

    def __init__(self, root, train=True, split=None, download=False):
        assert download
        type(self).calls += 1
        a = arrays()
        name = "train" if (split != "test" if split else train) else "test"
        self.data, self.targets = a[f"x_{name}"], a[f"y_{name}"].tolist()
        if split:
            self.data, self.labels = (
                self.data.transpose(0, 3, 1, 2),
                np.array(self.targets) - (name == "train"),
            )


@pytest.mark.parametrize("name, kind", [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100"), ("stl10", "STL10")])
def test_named_sets_are_downloaded_once_and_then_read_from_the_npz(tmp_path, monkeypatch, name, kind):
    fake = type(kind, (Downloaded,), {"calls": 0})
    monkeypatch.setattr(common.torchvision.datasets, kind, fake)
    first, second = (common.load_dataset(name, tmp_path) for _ in range(2))
    assert fake.calls == 2 and [p.name for p in tmp_path.iterdir()] == [f"{name}.npz"]
    assert np.array_equal(first.x_train.permute(0, 2, 3, 1).numpy(), arrays()["x_train"])
    for a, b in zip(first, second):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b
    assert first.name == name and first.y_train.min() == (-1 if name == "stl10" else 0)


def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(root, **_):
        (tmp_path / "data").mkdir(exist_ok=True)
        raise OSError("no route to host")

    monkeypatch.setattr(common.torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(common.UserError, match="no route to host"):
        common.load_dataset("cifar10", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_shapes_are_the_same_for_the_same_seed_and_balanced():
    a, b, c = common.shapes(100, 50), common.shapes(100, 50), common.shapes(100, 50, seed=1)
    assert np.array_equal(a["x_train"], b["x_train"]) and not np.array_equal(a["x_train"], c["x_train"])
    data = common.load_dataset("shapes")
    assert (
        data.x_train.shape == (5000, 3, 32, 32)
        and data.x_test.shape == (1000, 3, 32, 32)
        and len(data.classes) == 10
    )
    assert torch.equal(torch.bincount(data.y_train), torch.full((10,), 500))
    assert torch.equal(torch.bincount(data.y_test), torch.full((10,), 100))
    assert common.load_dataset("shapes", image_size=48).x_test.shape == (1000, 3, 48, 48)


def test_pixels_say_little_about_the_class_of_a_shape():
    data = common.load_dataset("shapes")
    train, test = (common.normalize(x).flatten(1) for x in (data.x_train, data.x_test))
    assert common.knn_accuracy(train, data.y_train, test, data.y_test) < 25
    assert common.knn_accuracy(train, data.y_train, test, data.y_test, k=5, temperature=None) < 38


def test_a_subset_is_balanced_and_the_first_of_each_class():
    y = torch.tensor([2, 2, 2, 0, 1, 0, 1, 0, -1, 1])
    x = torch.arange(10)
    data = common.subset(common.Dataset("x", x, y, x, y, "abc"), 5)
    assert data.x_train.tolist() == [0, 3, 4, 5, 6] and data.y_train.tolist() == [2, 0, 1, 0, 1]
    assert torch.equal(data.x_test, x)
    with pytest.raises(common.UserError, match="4 images of class 'a'; there are 3"):
        common.subset(data._replace(x_train=x, y_train=y), 10)


def test_a_tensor_on_the_way_to_evaluation_is_scaled_like_a_view():
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    augment = common.Augment(8, scale=(1, 1), flip=0, jitter_p=0, grey_p=0)
    p = augment.draw(4, 8, 8)
    p["box"] = tuple(torch.full((4,), v) for v in (0.0, 0.0, 8.0, 8.0))
    assert torch.allclose(augment.apply(x, **p), common.normalize(x), atol=1e-5)
    assert not F.mse_loss(common.normalize(x), x / 255) < 1e-3
