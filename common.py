"""What the experiments share, in the order data flows: data, augmentation, encoder, projectors, losses,
penalties, training, evaluation, results. Copy this file beside a script and the script runs.

Equations and tables are cited by the papers' short names: LL (Can Weight Regularization in the Last Layer
Reduce Dimensional Collapse?), DirectCLR (Jing et al. 2022), WERank (Pasand et al. 2024), SparseHead (Song et
al. 2023).
"""
import argparse
import contextlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.transforms.v2 import functional as vision
from tqdm import tqdm

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# glibc returns freed memory to the system, and has to fault it in again, beyond a limit that it learns from
# the largest block freed so far, 32 MB at most. Freeing 30 MB once makes Augment 1.6 times as fast on a CPU.
torch.empty(7_500_000)


class UserError(ValueError):
    """Bad input. Scripts print it as one line on stderr and exit with code 2."""


# ------------------------------------------------------------------------------------------------------ data

class Dataset(NamedTuple):
    """Images uint8 (N, 3, H, W), labels int64 (N,), -1 of a training image without one (STL-10)."""
    name: str
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple


NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test", "classes")
NAMED = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10"}  # in torchvision.datasets


def load_dataset(name, data_dir="data", image_size=None):
    """A `Dataset` in memory. Raises UserError that names the file and what is wrong with it.

    name: cifar10, cifar100, stl10 (train + unlabelled): <data_dir>/<name>.npz, which a torchvision download
    writes the first time; shapes (drawn, no download); an .npz of x_train (N, H, W, 3) uint8, y_train (N,),
    x_test, y_test, optionally classes; or an image folder train/<class>/*, val/<class>/*, which needs
    image_size. image_size: other images are resized (shorter side, antialiased) and centre-cropped to
    image_size squared.
    """
    path = Path(name)
    if name == "shapes":
        arrays = shapes()
    elif name in NAMED:
        npz = Path(data_dir) / f"{name}.npz"
        arrays = _read_npz(npz) if npz.exists() else _download(name, npz)
    elif path.suffix == ".npz":
        arrays = _read_npz(path)
    elif path.is_dir():
        arrays = _read_folder(path, image_size)
    else:
        raise UserError(f"dataset {name!r} is not shapes, {', '.join(NAMED)}, an .npz or a folder")
    tensors = {}
    for split in ("train", "test"):
        x = torch.from_numpy(arrays.pop(f"x_{split}")).permute(0, 3, 1, 2)
        if len(x) < 2:
            raise UserError(f"{name} needs at least two images to {split}")
        if image_size and x.shape[2:] != (image_size, image_size):
            blocks = (vision.resize(block, image_size) for block in x.split(1000))
            x = torch.cat([vision.center_crop(block, image_size) for block in blocks])
        tensors[f"x_{split}"] = x.contiguous()
        tensors[f"y_{split}"] = torch.from_numpy(arrays[f"y_{split}"].astype(np.int64))
    return Dataset(path.stem, **tensors, classes=tuple(str(c) for c in arrays["classes"]))


def _read_npz(path):
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in NPZ_KEYS if key in file.files}
    except Exception as error:  # noqa: BLE001 - zip, zlib, pickle, system: a bad file has many errors
        raise UserError(f"{path} is not a readable .npz file ({brief(error)})") from None
    if missing := set(NPZ_KEYS) - {"classes"} - set(arrays):
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}")
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if x.dtype != np.uint8 or x.shape[1:] != (*arrays["x_train"].shape[1:3], 3) or 0 in x.shape:
            raise UserError(f"{path}: x_{split} must be uint8 (N, H, W, 3), H and W those of x_train, "
                            f"not {x.dtype} {x.shape}")
        if y.dtype.kind not in "iu" or y.shape != x.shape[:1] or y.min() < (-1 if split == "train" else 0):
            raise UserError(f"{path}: y_{split} must be {len(x)} integers >= 0 (-1 in y_train: no label), "
                            f"not {y.dtype} {y.shape} from {y.min() if y.size else None}")
    labels = 1 + int(max(arrays["y_train"].max(), arrays["y_test"].max()))
    classes = arrays.setdefault("classes", np.arange(labels if labels < 2 ** 16 else 0))
    if arrays["y_train"].max() < 0 or classes.ndim != 1 or len(classes) < labels:
        raise UserError(f"{path}: needs labelled training images, and classes for labels up to {labels - 1}")
    return arrays


def _download(name, npz):
    new, stl, kind = not npz.parent.exists(), name == "stl10", getattr(torchvision.datasets, NAMED[name])
    splits = [{"split": "train+unlabeled"}, {"split": "test"}] if stl else [{"train": True}, {"train": False}]
    try:
        parts = [kind(str(npz.parent), download=True, **split) for split in splits]
    except (OSError, RuntimeError) as error:
        if new and npz.parent.is_dir() and not any(npz.parent.iterdir()):
            npz.parent.rmdir()
        raise UserError(f"no {npz}, and torchvision can't download {name} ({brief(error)})") from None
    arrays = {"classes": np.array(parts[0].classes)}
    for split, part in zip(("train", "test"), parts):
        arrays[f"x_{split}"] = part.data.transpose(0, 2, 3, 1) if stl else part.data
        arrays[f"y_{split}"] = np.array(part.labels if stl else part.targets)
    try:
        with atomic_write(npz) as file:
            np.savez(file, **arrays)
    except OSError as error:  # a read-only folder: slower next time, that is all
        print(f"note: {npz} can't be written ({brief(error)})", file=sys.stderr)
    return arrays


def _read_folder(path, size):
    if size is None:
        raise UserError(f"the image folder {path} needs --image-size")

    def read(sample):
        try:
            return np.asarray(vision.center_crop(vision.resize(train.loader(sample[0]), size), size))
        except Exception as error:  # noqa: BLE001 - Pillow's are many too
            raise UserError(f"{sample[0]} is not a readable image ({brief(error)})") from None

    try:
        train, val = (torchvision.datasets.ImageFolder(str(path / split)) for split in ("train", "val"))
    except OSError as error:
        raise UserError(f"{path} must hold train/<class>/* and val/<class>/* ({brief(error)})") from None
    if unknown := set(val.classes) - set(train.classes):
        raise UserError(f"{path}/val has the class {min(unknown)!r}, which {path}/train does not have")
    arrays = {"classes": train.classes}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, part in (("train", train), ("test", val)):
            images = tqdm(pool.map(read, part.samples), part.root, len(part), disable=None, leave=False)
            arrays[f"x_{split}"] = np.stack(list(images))
            arrays[f"y_{split}"] = np.array([train.class_to_idx[part.classes[y]] for y in part.targets])
    return arrays


def shapes(train=5000, test=1000, seed=0):
    """Drawn images as in an .npz, the same for the same seed: the class is the shape; colours, place, size,
    rotation and the texture behind it are random. Balanced classes."""
    draw = {  # in the shape's own coordinates: u, v and polar r, a
        "disc": lambda u, v, r, a: r < 0.8,
        "ring": lambda u, v, r, a: (r < 0.9) & (r > 0.55),
        "square": lambda u, v, r, a: np.maximum(abs(u), abs(v)) < 0.7,
        "triangle": lambda u, v, r, a: np.maximum(abs(u) * 0.866 + v / 2, -v) < 0.45,
        "star": lambda u, v, r, a: r < 0.6 + 0.35 * np.cos(5 * a),
        "cross": lambda u, v, r, a: (np.minimum(abs(u), abs(v)) < 0.25) & (np.maximum(abs(u), abs(v)) < 0.9),
        "bar": lambda u, v, r, a: (abs(u) < 1) & (abs(v) < 0.3),
        "half disc": lambda u, v, r, a: (r < 1) & (v > 0),
        "crescent": lambda u, v, r, a: (r < 0.9) & ((u - 0.45) ** 2 + v ** 2 > 0.4),
        "pair": lambda u, v, r, a: (abs(u) - 0.6) ** 2 + v ** 2 < 0.14,
    }
    rng, n, size = np.random.default_rng(seed), train + test, 32
    y = np.concatenate([rng.permutation(np.arange(count) % len(draw)) for count in (train, test)])

    def uniform(low, high, *shape):
        return rng.uniform(low, high, (n, *(shape or (1, 1)))).astype(np.float32)

    turn, radius = uniform(-np.pi, np.pi), uniform(0.4, 0.6)
    u0, v0 = uniform(-0.4, 0.4), uniform(-0.4, 0.4)
    axis = np.linspace(-1, 1, 2 * size, dtype=np.float32)
    mask = np.empty((n, size, size, 1), dtype=np.float32)
    for label, inside in enumerate(draw.values()):
        i = y == label
        u, v = (axis - u0[i]) / radius[i], (axis[:, None] - v0[i]) / radius[i]
        u, v = u * np.cos(turn[i]) - v * np.sin(turn[i]), u * np.sin(turn[i]) + v * np.cos(turn[i])
        drawn = inside(u, v, np.hypot(u, v), np.arctan2(v, u))
        mask[i] = drawn.reshape(-1, size, 2, size, 2).mean((2, 4))[..., None]  # antialiased
    # Vivid colours would tell images apart so well that nothing else is learnt: a grey contrast with a tint.
    contrast = uniform(0.15, 0.35, 1, 1, 1) * np.sign(uniform(-1, 1, 1, 1, 1))
    middle = uniform(0.2, 0.8, 1, 1, 1)
    ground, shape = (middle + c + uniform(-0.1, 0.1, 1, 1, 3) for c in (-contrast, contrast))
    axis = axis[::2]
    for _ in range(2):  # two waves as a texture
        wave = np.sin(uniform(-9, 9) * axis + uniform(-9, 9) * axis[:, None] + uniform(0, 6.3))
        ground = ground + 0.05 * wave[..., None]
    x = ground + mask * (shape - ground) + 0.04 * rng.standard_normal(ground.shape, dtype=np.float32)
    x = (x.clip(0, 1) * 255).round().astype(np.uint8)
    split = {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}
    return {**split, "classes": list(draw)}


def subset(data, size):
    """`data` with `size` training images, the first of each class, in numbers that differ by 1 at most."""
    keep = torch.zeros(len(data.y_train), dtype=torch.bool)
    labels = data.y_train[data.y_train >= 0].unique().tolist()
    if size < len(labels):
        raise UserError(f"--train-size {size} is less than the {len(labels)} classes")
    for i, label in enumerate(labels):
        count = size // len(labels) + (i < size % len(labels))
        of_class = (data.y_train == label).nonzero()[:, 0]
        if len(of_class) < count:
            raise UserError(f"--train-size {size} takes {count} images of class {data.classes[label]!r}; "
                            f"there are {len(of_class)}")
        keep[of_class[:count]] = True
    return data._replace(x_train=data.x_train[keep], y_train=data.y_train[keep])


# ---------------------------------------------------------------------------------------------- augmentation
# Images are float (B, 3, H, W) in [0, 1], parameters have one value per image. Every operation is that of the
# same name in torchvision.transforms.v2.functional, on a whole batch.

def _interpolation(start, length, source, size):
    """(B, size, source): antialiased bilinear weights from pixels start … start + length - 1 to size pixels.

    A resize is linear and separable, so crop, resize and flip are one matrix for rows and one for columns. At
    the borders of the crop the weights left are made to sum to 1, as torchvision does.
    """
    scale = (length / size)[:, None]
    centre = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * scale
    pixel = torch.arange(source, device=start.device) + 0.5
    weight = 1 - (pixel - centre[:, :, None]).abs_() / scale.clamp(min=1)[:, :, None]
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])
    weight = weight.clamp_(min=0).mul_(inside[:, None])
    return weight.div_(weight.sum(2, keepdim=True))


def resized_crop(x, top, left, height, width, size, flip):
    """Crops, resizes and (flip (B,) bool) mirrors uint8 or float x (B, 3, H, W) to float (B, 3, size, size).

    In memory the result is (3, B, size, size): whole planes of a colour for the operations that follow.
    """
    rows = _interpolation(top, height, x.shape[2], size)
    columns = _interpolation(left, width, x.shape[3], size)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns).transpose(1, 2)
    narrow = torch.bmm(x.float().reshape(len(x), -1, x.shape[3]), columns).view(len(x), 3, x.shape[2], size)
    return torch.stack([torch.bmm(rows, narrow[:, channel]) for channel in range(3)]).transpose(0, 1)


def grayscale(x):
    """(B, 1, H, W), the luma of torchvision's rgb_to_grayscale."""
    red, green, blue = x.unbind(1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def adjust_brightness(x, factor):
    """x · factor, clamped."""
    return (x * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(x, factor):
    """Blends with the image's mean grey: 0 is that grey, 1 is x."""
    factor = factor[:, None, None, None]
    return (x * factor).add_((1 - factor) * grayscale(x).mean((2, 3), keepdim=True)).clamp_(0, 1)


def adjust_saturation(x, factor):
    """Blends with the grey image: 0 is greyscale, 1 is x."""
    factor = factor[:, None, None, None]
    return (x * factor).add_(grayscale(x).mul_(1 - factor)).clamp_(0, 1)


def adjust_hue(x, shift):
    """Turns the hue by a share of the circle, -0.5 … 0.5; saturation and value of HSV stay.

    Hue without a branch, in sixths of the circle: its distance from red is (max - 2 min + g + b - r) / (max -
    min), to the side of green where g > b.
    """
    red, green, blue = x.unbind(1)
    low, high = (extreme(extreme(red, green), blue) for extreme in (torch.minimum, torch.maximum))
    chroma = high - low
    hue = (green + blue).sub_(red).add_(high).sub_(low, alpha=2).div_(chroma.clamp(min=1e-8))
    hue.copysign_(green - blue).add_(shift[:, None, None], alpha=6)
    hue.sub_((hue / 6).floor_(), alpha=6)
    planes = torch.stack([(hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()])
    return planes.clamp_(0, 1).mul_(chroma).add_(low).transpose(0, 1)


def gaussian_blur(x, sigma, kernel_size):
    """Gaussian blur, sigma in pixels, borders reflected, as a matrix for rows and one for columns."""
    offset = torch.arange(kernel_size, device=x.device) - kernel_size // 2
    kernel = torch.softmax(-0.5 * (offset / sigma[:, None]) ** 2, 1)

    def blur(n):
        pixel = torch.arange(n, device=x.device)
        source = (n - 1) - ((n - 1) - (pixel[:, None] + offset).abs()).abs()  # reflected into 0 … n - 1
        return torch.einsum("bk,ikj->bij", kernel, (source[:, :, None] == pixel).float())[:, None]
    return blur(x.shape[2]) @ x @ blur(x.shape[3]).transpose(2, 3)


def solarize(x, chosen, threshold=128 / 255):
    """Inverts what is at or above the threshold, in the images chosen (B,) bool."""
    return torch.where(chosen[:, None, None, None] & (x >= threshold), 1 - x, x)


def normalize(x, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """(x - mean) / std per channel, float32 (B, 3, H, W), of x in [0, 1] or uint8."""
    x = x / 255 if x.dtype == torch.uint8 else x
    return torch.stack([(x[:, channel] - mean[channel]) / std[channel] for channel in range(3)], 1)


class Augment:
    """A random view of each image: uint8 (B, 3, H, W) to float32 (B, 3, size, size), on x's device.

    Random resized crop, flip, colour jitter, greyscale, Gaussian blur, solarize, normalise (SimCLR's recipe),
    with parameters drawn per image from the distributions of torchvision's RandomResizedCrop and ColorJitter;
    the order of the jitter's operations is drawn once a batch. scale: share of the area that a crop keeps.
    jitter: brightness, contrast, saturation, hue. flip and *_p: probabilities. Blur: a kernel of 10 % of the
    size, sigma 0.1 … 2 pixels. `draw` takes every random number, `apply` none. UserError for values that make
    no sense.
    """

    def __init__(self, size, scale=(0.08, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8,
                 grey_p=0.2, blur_p=0.0, solarize_p=0.0, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        if size < 1 or not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"a crop needs a size >= 1, not {size}, and a scale (--crop-scale) "
                            f"0 < low <= high <= 1, not {scale}")
        if len(jitter) != 4 or not all(0 <= strength < math.inf for strength in jitter) or jitter[3] > 0.5:
            raise UserError(f"jitter (--jitter) is four numbers >= 0, the last (hue) <= 0.5, not {jitter}")
        if not all(0 <= p <= 1 for p in (flip, jitter_p, grey_p, blur_p, solarize_p)):
            raise UserError(f"flip {flip}, jitter_p {jitter_p}, grey_p {grey_p}, blur_p {blur_p}, solarize_p "
                            f"{solarize_p} (--grey-p …) are not all probabilities")
        self.size, self.scale, self.flip, self.jitter, self.jitter_p = size, scale, flip, jitter, jitter_p
        self.grey_p, self.blur_p, self.solarize_p, self.mean, self.std = grey_p, blur_p, solarize_p, mean, std
        self.crop = resized_crop
        self.colour = [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue]

    def compile(self):
        """Compiles the costly operations one by one, so that no order of theirs compiles anything anew."""
        operations = (self.crop, *self.colour)
        self.crop, *self.colour = (torch.compile(operation, dynamic=False) for operation in operations)

    def __call__(self, x, generator=None):
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
            raise UserError(f"Augment takes uint8 (B, 3, H, W), not {x.dtype} {tuple(x.shape)}")
        return self.apply(x, **self.draw(*x.shape[::2], x.shape[3], x.device, generator))

    def draw(self, n, height, width, device="cpu", generator=None):
        """The random parameters of n views of images of height x width, as `apply` takes them."""
        def uniform(low, high, *shape):
            return torch.rand(*shape, n, generator=generator, device=device) * (high - low) + low

        def chosen(p):
            return uniform(0, 1) < p

        area = height * width * uniform(*self.scale, 10)
        ratio = uniform(math.log(3 / 4), math.log(4 / 3), 10).exp_()
        w, h = (area * ratio).sqrt_().round_(), (area / ratio).sqrt_().round_()
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first, found = fits.int().argmax(0, keepdim=True), fits.any(0)
        # where none of the ten attempts fits: the largest central crop with a ratio of 3/4 … 4/3
        w = torch.where(found, w.gather(0, first)[0], min(width, round(height * 4 / 3)))
        h = torch.where(found, h.gather(0, first)[0], min(height, round(width * 4 / 3)))
        room, share = torch.stack([height - h, width - w]), uniform(0, 1, 2)
        top, left = torch.where(found, (share * (room + 1)).minimum(room), room / 2).floor_()
        jittered = chosen(self.jitter_p)
        factors = [torch.where(jittered, uniform(max(0, 1 - j), 1 + j), 1) for j in self.jitter[:3]]
        shift = torch.where(jittered, uniform(-self.jitter[3], self.jitter[3]), 0)
        on_host = generator if generator is not None and generator.device.type == "cpu" else None
        return {"box": (top, left, h, w), "flip": chosen(self.flip), "factors": (*factors, shift),
                "order": torch.randperm(4, generator=on_host).tolist(), "grey": chosen(self.grey_p),
                "sigma": torch.where(chosen(self.blur_p), uniform(0.1, 2), 0.01),  # 0.01 is no blur at all
                "solarized": chosen(self.solarize_p)}

    def apply(self, x, box, flip, factors, order, grey, sigma, solarized):
        """The views of uint8 x that these parameters describe."""
        x = self.crop(x, *box, self.size, flip).div_(255)
        for i in order:
            if self.jitter[i] and self.jitter_p:
                x = self.colour[i](x, factors[i])
        if self.grey_p:
            x = self.colour[2](x, 1 - grey.float())
        if self.blur_p:
            x = gaussian_blur(x, sigma, max(3, int(0.1 * self.size) // 2 * 2 + 1))
        if self.solarize_p:
            x = solarize(x, solarized)
        return normalize(x, self.mean, self.std)


# --------------------------------------------------------------------------------------------------- encoder

def resnet(arch="resnet18", stem="cifar", width=64):
    """torchvision's ResNet-18, -34 or -50 without `fc`: (B, 3, H, W) to h (B, D); D is `.dim`.

    stem: "cifar" has a 3 x 3 stride-1 first convolution and no max-pool, "imagenet" is torchvision's. width:
    channels of the first stage, 64 in the papers; D = 8 · width (ResNet-50: 32 · width). Names and
    initialisation are torchvision's.
    """
    if arch not in ("resnet18", "resnet34", "resnet50") or stem not in ("cifar", "imagenet") or width < 1:
        raise UserError(f"no encoder has arch {arch}, stem {stem}, width {width}")
    encoder = getattr(torchvision.models, arch)(weights=None)
    encoder.dim, encoder.fc = encoder.fc.in_features * width // 64, nn.Identity()
    if width != 64:
        encoder.conv1, encoder.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        encoder.inplanes = width
        for stage in range(4):
            old = getattr(encoder, f"layer{stage + 1}")
            new = encoder._make_layer(type(old[0]), width * 2 ** stage, len(old), stride=min(2, 1 + stage))
            setattr(encoder, f"layer{stage + 1}", new)
    if stem == "cifar":
        encoder.conv1, encoder.maxpool = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.Identity()
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return encoder


def memory_format(encoder):
    """channels_last where it is safe, a quarter faster on a CPU: with torch 2.11 to 2.15 a strided 1 x 1
    convolution (oneDNN's) of fewer than 16 channels overruns its memory on a CPU."""
    weight = encoder.conv1.weight
    return torch.channels_last if weight.is_cuda or len(weight) % 16 == 0 else torch.contiguous_format


def last_convolution(encoder):
    """The convolution and the BatchNorm that end the residual branch of the encoder's last block."""
    block = encoder.layer4[-1]
    return (block.conv3, block.bn3) if hasattr(block, "conv3") else (block.conv2, block.bn2)


# ------------------------------------------------------------------------------------------------ projectors

PROJECTORS = ("mlp", "linear", "none", "orthogonal", "diagonal", "lowrank", "lowrank-diagonal")


class _Product(nn.Module):
    """h Wᵀ, or h ⊙ w where the weight is a vector, exact (not in bfloat16) whatever the autocast."""

    def __init__(self, weight, trained=False):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=trained)

    def forward(self, h):
        with torch.autocast(h.device.type, enabled=False):
            (h,), weight = _full_precision(h), self.weight  # read once: an orthogonal one is computed anew
            return h * weight if weight.ndim == 1 else F.linear(h, weight)


def projector(kind, dim, hidden=None, out=128, rank=None):
    """The map from h (B, dim) to z, a module. UserError for an unknown kind or sizes that do not fit.

    mlp: Linear, BatchNorm, ReLU, Linear, no biases, hidden = dim (SimCLR). linear: to `out` (DirectCLR table
    1). none: h. orthogonal: trained, all singular values 1 (DirectCLR app. F). diagonal: h ⊙ w, trained from
    w = 1 (table 2). lowrank: fixed, `rank` singular values 1, the rest 0 (app. F). lowrank-diagonal: h with
    all but its first `rank` dimensions zeroed (table 2). rank: 360/2048 of dim unless given.
    """
    hidden, rank = dim if hidden is None else hidden, round(dim * 360 / 2048) if rank is None else rank
    if kind not in PROJECTORS:
        raise UserError(f"projector {kind!r} is none of {', '.join(PROJECTORS)}")
    if min(dim, hidden, out) < 1 or not 0 < rank <= dim:
        raise UserError(f"hidden {hidden}, out {out} must be >= 1, rank (--rank) {rank} from 1 to {dim}")
    if kind == "none":
        return nn.Identity()
    if kind == "mlp":
        return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                             nn.Linear(hidden, out, bias=False))
    if kind == "linear":
        return nn.Linear(dim, out, bias=False)
    if kind == "diagonal":
        return _Product(torch.ones(dim), trained=True)
    kept = (torch.arange(dim) < rank).float()
    if kind == "lowrank-diagonal":
        return _Product(kept)
    u, v = (nn.init.orthogonal_(torch.empty(dim, dim)) for _ in range(2))
    if kind == "lowrank":
        return _Product(u * kept @ v.T)
    return nn.utils.parametrizations.orthogonal(_Product(u, trained=True), orthogonal_map="matrix_exp")


def embed(encoder, projector, x1, x2):
    """z1, z2 (B, m) of two views, each passed alone, so that BatchNorm's statistics are those of one view.

    Every method gets its embeddings here: the one place to gather them from several processes.
    """
    return projector(encoder(x1)), projector(encoder(x2))


# ---------------------------------------------------------------------------------------------------- losses

def _full_precision(*tensors):
    return [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]


def info_nce(z1, z2, temperature=0.2, cross_view=False):
    """InfoNCE of the embeddings z1, z2 (B, m) of two views: a scalar, at least float32 whatever the autocast.

    cross_view=False: 2B anchors, the positive is the other view, 2B - 2 negatives (SimCLR; LL eq. 1 with the
    logarithm and the temperature that its typesetting lost; SparseHead eq. 2). cross_view=True: B - 1
    negatives, from the other view only (DirectCLR section 6.2). UserError unless B >= 2 and temperature > 0.
    """
    if z1.ndim != 2 or z1.shape != z2.shape or len(z1) < 2 or not temperature > 0:
        raise UserError(f"info_nce takes (B >= 2, m) twice and a temperature > 0, not {tuple(z1.shape)}, "
                        f"{tuple(z2.shape)}, {temperature}")
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (F.normalize(z, dim=1) for z in _full_precision(z1, z2))
        b = torch.arange(len(z1), device=z1.device)
        if cross_view:
            logits = z1 @ z2.T / temperature
            return (F.cross_entropy(logits, b) + F.cross_entropy(logits.T, b)) / 2
        z = torch.cat([z1, z2])
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = (z @ z.T / temperature).masked_fill(itself, -math.inf)
        return F.cross_entropy(logits, torch.cat([b + len(b), b]))


def info_nce_euclidean(z1, z2):
    """InfoNCE by distance, for z1, z2 (..., B, m), neither normalised nor with a temperature: (...), the mean
    over i of -log[p_i / (p_i + Σ_{j≠i} exp(-|z_i - z_j|²/2))], p_i = exp(-|z_i - z'_i|²/2), z = z1, z' = z2
    (DirectCLR eq. 2, a sum there)."""
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = _full_precision(z1, z2)
        positive = (z1 * z2).sum(-1) - z2.square().sum(-1) / 2  # -|z_i|²/2 is in every term of i: left out
        logits = z1 @ z1.mT - z1.square().sum(-1)[..., None, :] / 2
        logits = logits.diagonal_scatter(positive, dim1=-2, dim2=-1)
        return (logits.logsumexp(-1) - positive).mean(-1)


def barlow_twins(z1, z2, lambd=5e-3):
    """Σ_i (1 - C_ii)² + lambd Σ_{i≠j} C_ij² (Barlow Twins eq. 1), C the cross-correlation of z1, z2 (B >= 2,
    m), each dimension standardised by its biased variance (+ 1e-5, as the authors' BatchNorm)."""
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in _full_precision(z1, z2))
        c = z1.T @ z2 / len(z1)
        on_diagonal = c.diagonal()
        return (1 - on_diagonal).square().sum() + lambd * (c.square().sum() - on_diagonal.square().sum())


def vicreg(z1, z2, invariance=25.0, variance=25.0, covariance=1.0):
    """VICReg (Bardes et al. 2022) of z1, z2 (..., B >= 2, m): (...), invariance · mean (z1 - z2)² +
    variance · mean over views, d of max(0, 1 - √(Var z_d + 1e-4)) + covariance · Σ over views, i ≠ j of
    Cov(z)²_ij / m."""
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = _full_precision(z1, z2)
        loss = invariance * (z1 - z2).square().mean((-2, -1))
        for z in (z1 - z1.mean(-2, keepdim=True), z2 - z2.mean(-2, keepdim=True)):
            cov = z.mT @ z / (z.shape[-2] - 1)
            var = cov.diagonal(dim1=-2, dim2=-1)
            loss = loss + variance / 2 * F.relu(1 - (var + 1e-4).sqrt()).mean(-1)
            loss = loss + covariance / z.shape[-1] * (cov.square().sum((-2, -1)) - var.square().sum(-1))
        return loss


def byol_loss(p, z):
    """2 - 2 cos(p, z), mean over B, of predictions p and targets z (..., B, m), which get no gradient: (...)
    (BYOL eq. 2, one direction of two)."""
    p, z = _full_precision(p, z.detach())
    return (2 - 2 * F.cosine_similarity(p, z, dim=-1)).mean(-1)


# ------------------------------------------------------------------------------------------------- penalties
# A weight is (out, in), or a convolution's (out, in, kh, kw) taken as (out, in · kh · kw).

# LL eq. 11; WERank's toy models (LL gives none); SparseHead section 5.2
REG_WEIGHT = {"none": 0.0, "lastlayer": 1.0, "werank": 0.1, "sparsehead": 1e-4}


def _gram_error(weight):
    """G - I of the smaller Gram matrix G, WWᵀ or WᵀW, in float32."""
    with torch.autocast(weight.device.type, enabled=False):
        weight, = _full_precision(weight.flatten(1))
        gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        return gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def lastlayer_penalty(weight):
    """‖WWᵀ - I‖²_F (LL eq. 11), on the smaller Gram matrix: the larger adds the constant |out - in|."""
    return _gram_error(weight).square().sum()


def werank_penalty(weights):
    """Σ_l ‖W_lᵀW_l - I‖_F of weights W_l, not squared (WERank), on the smaller Gram matrix of each."""
    return sum(torch.linalg.vector_norm(_gram_error(weight)) for weight in weights)


def sparsehead_penalty(weight):
    """‖W‖_{2,1} = Σ_j ‖W_{:,j}‖₂, j the input features (SparseHead eq. 12)."""
    return torch.linalg.vector_norm(*_full_precision(weight.flatten(1)), dim=0).sum()


def _trained_linears(projector):
    return [m for m in projector.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]


def last_layer(encoder, projector, on="auto"):
    """The module whose `weight` makes what the loss sees: on="auto" the projector's last linear layer where
    one trains, else the encoder's last convolution; or that of "encoder" or "projector". UserError for a
    projector without one: none, fixed, orthogonal (held so), diagonal."""
    linears = _trained_linears(projector)
    if on not in ("auto", "encoder", "projector") or on == "projector" and not linears:
        raise UserError("--reg-on projector, --reg sparsehead need a projector with a trained linear layer")
    return linears[-1] if linears and on != "encoder" else last_convolution(encoder)[0]


def regularizer(args, encoder, projector):
    """The penalty --reg on what --reg-on names, a function without arguments; fills in args.reg_weight.

    werank takes every linear and convolution weight of encoder and projector, or of the one named. UserError
    for a combination that makes no sense.
    """
    on = args.reg_on or ("projector" if args.reg == "sparsehead" else "auto")
    if args.reg == "none" and (args.reg_weight is not None or args.reg_on):
        raise UserError("--reg-weight and --reg-on need --reg lastlayer, werank or sparsehead")
    if args.reg == "sparsehead" and on == "encoder":
        raise UserError("--reg sparsehead acts on the projector: --reg-on encoder makes no sense")
    args.reg_weight = REG_WEIGHT[args.reg] if args.reg_weight is None else args.reg_weight
    layer, linears = last_layer(encoder, projector, on), _trained_linears(projector)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    every = {"auto": convolutions + linears, "encoder": convolutions, "projector": linears}[on]
    return {"none": lambda: 0.0, "lastlayer": lambda: lastlayer_penalty(layer.weight),
            "werank": lambda: werank_penalty(m.weight for m in every),
            "sparsehead": lambda: sparsehead_penalty(layer.weight)}[args.reg]


# -------------------------------------------------------------------------------------------------- training

class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def number(kind, low, high=2 ** 20):
    """An argparse type: an int or float (`kind`) from low to high."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low} to {high}")
        return value
    parse.__name__ = kind.__name__
    return parse


def arguments(doc):
    """A parser with the arguments that every method has; `doc` is the script's docstring."""
    parser = Parser(description=doc.replace("%", "%%"), allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="cifar10", help="cifar10, cifar100, stl10, shapes, .npz, folder (cifar10)")
    add("--data-dir", default="data", help="where the named sets are, and are downloaded to (data)")
    add("--train-size", type=number(int, 2), help="size of a class-balanced subset to train on (all)")
    add("--image-size", type=number(int, 8, 4096), help="pixels; an image folder needs it (the images')")
    add = parser.add_argument_group("augmentation (LL and lightly on CIFAR)").add_argument
    add("--crop-scale", type=float, nargs=2, default=(0.08, 1.0), metavar=("LOW", "HIGH"),
        help="share of the area (0.08 1; SparseHead 0.2 1)")
    add("--jitter", type=float, nargs=4, default=(0.4, 0.4, 0.4, 0.1), metavar=("B", "C", "S", "H"),
        help="brightness, contrast, saturation, hue (0.4 0.4 0.4 0.1)")
    add("--grey-p", type=float, default=0.2, help="probability of greyscale (0.2; SparseHead 0.1)")
    add("--blur-p", type=float, default=0.0, help="probability of Gaussian blur (0; ImageNet 0.5)")
    add("--solarize-p", type=float, default=0.0, help="probability of solarization (0)")
    add = parser.add_argument_group("encoder").add_argument
    add("--arch", choices=("resnet18", "resnet34", "resnet50"), default="resnet18", help="(resnet18)")
    add("--width", type=number(int, 1, 4096), default=64, help="channels of the first stage (64)")
    add("--stem", choices=("auto", "cifar", "imagenet"), default="auto", help="auto: cifar to 64 pixels")
    add = parser.add_argument_group("penalty on weights").add_argument
    add("--reg", choices=tuple(REG_WEIGHT), default="none", help="(none; LL eq. 11, WERank, SparseHead)")
    add("--reg-weight", type=number(float, 0), help="(lastlayer 1, werank 0.1, sparsehead 1e-4)")
    add("--reg-on", choices=("auto", "encoder", "projector"), help="auto: the projector if it trains (auto)")
    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=number(int, 1), default=200, help="(200: lightly; LL is silent)")
    add("--batch-size", type=number(int, 2), default=128, help="images, each in two views (128: LL)")
    add("--optimizer", choices=("sgd", "adam"), default="sgd", help="(sgd 0.9: LL; SparseHead adam)")
    add("--lr", type=number(float, 1e-12), help="cosine from it to 0 (sgd 0.06 batch/128, adam 3e-3)")
    add("--weight-decay", type=number(float, 0), help="on every parameter (sgd 5e-4, adam 1e-6)")
    add("--seed", type=number(int, 0, 2 ** 31), default=0, help="of weights, order and views (0)")
    add = parser.add_argument_group("run").add_argument
    add("--device", help="cpu, cuda, cuda:1 … (cuda where there is one)")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile loss and views (on for cuda)")
    add("--precision", choices=("bf16", "float32"), help="of training (bf16 on cuda, float32 on a cpu)")
    add("--eval-every", type=number(int, 0), default=10, help="epochs between kNNs; 0: only at the end (10)")
    add("--out", type=Path, help="the run's folder (runs/<dataset>-<row>-seed<seed>)")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--resume", action="store_true", help="continue the folder's run; start it where there is none")
    add("--overwrite", action="store_true", help="replace the folder's run")
    return parser


def projector_arguments(parser, kinds, method):
    """A group of arguments with --projector, of these kinds, and --no-projector, to add the sizes to."""
    group = parser.add_argument_group("projector, from h to z")
    add = group.add_mutually_exclusive_group().add_argument
    add("--projector", choices=kinds, default="mlp", help=f"(mlp: {method})")
    add("--no-projector", dest="projector", action="store_const", const="none", help="z = h")
    return group


def check_projector(args, uses):
    """UserError for a size that --projector has no use for; uses: {"rank": the kinds that have one, …}."""
    for flag, kinds in uses.items():
        if getattr(args, flag) is not None and args.projector not in kinds:
            raise UserError(f"--{flag} needs --projector {' or '.join(kinds)}, not {args.projector}")


def prepare(args):
    """The data, on the device that it picks; seeds, and fills in the defaults that depend on others."""
    try:
        args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        args.device = str(torch.zeros(1, device=args.device).device).replace("cpu:0", "cpu")
        if args.device != "cpu" and not args.device.startswith("cuda"):
            raise RuntimeError("cpu and cuda are supported")
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"--device {args.device} can't be used ({brief(error)})") from None
    args.compile = args.device != "cpu" if args.compile is None else args.compile
    args.precision = args.precision or ("float32" if args.device == "cpu" else "bf16")
    try:
        if args.compile:  # one that fails should do so before anything is written
            torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(2, device=args.device))
    except Exception as error:  # noqa: BLE001 - whatever a compiler says
        raise UserError(f"--compile can't be used here ({brief(error)}): --no-compile") from None
    sgd = args.optimizer == "sgd"
    args.lr = args.lr or (0.06 * args.batch_size / 128 if sgd else 3e-3)
    args.weight_decay = (5e-4 if sgd else 1e-6) if args.weight_decay is None else args.weight_decay
    data = load_dataset(args.dataset, args.data_dir, args.image_size)
    data = subset(data, args.train_size) if args.train_size else data
    if len(data.x_train) < args.batch_size:
        raise UserError(f"--batch-size {args.batch_size} exceeds the {len(data.x_train)} training images")
    if data.x_train.shape[2] != data.x_train.shape[3]:
        raise UserError(f"images of {tuple(data.x_train.shape[2:])} pixels need an --image-size")
    args.image_size = data.x_train.shape[2]
    args.stem = args.stem if args.stem != "auto" else "cifar" if args.image_size <= 64 else "imagenet"
    torch.backends.cudnn.allow_tf32 = False  # TF32's noise would hide small singular values in evaluation
    torch.manual_seed(args.seed)
    return Dataset(*(value.to(args.device) if torch.is_tensor(value) else value for value in data))


def optimizer(args, parameters):
    """The optimiser that --optimizer names, fused on CUDA."""
    options = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": args.device != "cpu"}
    if args.optimizer == "adam":
        return torch.optim.Adam(parameters, **options)
    return torch.optim.SGD(parameters, momentum=0.9, **options)


@contextlib.contextmanager
def deferred_signals():
    """A list that SIGINT and SIGTERM add their numbers to, instead of interrupting a step half-way."""
    received = []
    before = {n: signal.signal(n, lambda n, _: received.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def training_step(args, encoder, projector, loss, modules=()):
    """(step, model, opt, generator): step(x) takes uint8 images (B, 3, H, W) through two views, loss(x1, x2),
    gradients and the optimiser, and returns the loss, which is still on its device.

    With --compile the loss and the operations of the views are compiled; on CUDA the passes through the
    networks are replayed as CUDA graphs, and nothing in a step waits for the device.
    """
    cuda, layout = args.device != "cpu", memory_format(encoder)
    torch.backends.cudnn.benchmark = True  # the shapes stay, so the fastest convolutions are worth a search
    # Views have a generator of their own: runs of one seed share them, whatever else a method draws.
    generator = torch.Generator(args.device).manual_seed(args.seed)
    augment = Augment(args.image_size, args.crop_scale, jitter=args.jitter, grey_p=args.grey_p,
                      blur_p=args.blur_p, solarize_p=args.solarize_p)
    model = nn.ModuleDict({"encoder": encoder, "projector": projector, "others": nn.ModuleList(modules)})
    model = model.to(args.device, memory_format=layout)
    opt = optimizer(args, [p for p in model.parameters() if p.requires_grad])
    if args.compile:
        augment.compile()
        # the matrix exponential of a parametrisation asks the host, which a CUDA graph can't
        graphs = cuda and not any(map(nn.utils.parametrize.is_parametrized, model.modules()))
        loss = torch.compile(loss, mode="reduce-overhead" if graphs else None, dynamic=False)

    def step(x):
        views = augment(torch.cat([x, x]), generator).chunk(2)
        x1, x2 = (view.contiguous(memory_format=layout) for view in views)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            value = loss(x1, x2)
        value.backward()
        opt.step()
        opt.zero_grad()
        return value.detach()
    return step, model, opt, generator


def fit(args, data, encoder, projector, loss, name, also=None, modules=()):
    """Trains the modules to minimise loss(x1, x2), a scalar of two views, and evaluates them.

    args: of a parser from `arguments`, after `prepare`. name: the row's. also: a function of
    `representations` that gives further results. modules: others to train and to save. Returns what
    result.json holds. The run's folder gets config.json, metrics.jsonl (a line an epoch), checkpoint.pt,
    encoder.pt (torchvision's names) and result.json. Interrupted at any moment and continued with --resume, a
    run ends with the same weights, on a CPU bit for bit.
    """
    device, cuda = data.x_train.device, data.x_train.is_cuda
    train, model, opt, generator = training_step(args, encoder, projector, loss, modules)
    out, config, checkpoint = open_run(args, name)
    if (out / "result.json").exists():
        print(f"{out} is finished")
        return read_json(out / "result.json")
    torch.manual_seed(args.seed)
    step, seconds, epoch_loss, metrics = 0, 0.0, torch.zeros((), device=device), []
    if checkpoint:
        try:
            model.load_state_dict(checkpoint["model"])
            opt.load_state_dict(checkpoint["optimizer"])
            generator.set_state(checkpoint["views"])
            torch.set_rng_state(checkpoint["rng"])
            if cuda:
                torch.cuda.set_rng_state(checkpoint["cuda_rng"], device)
            step, seconds, metrics = (checkpoint[key] for key in ("step", "seconds", "metrics"))
            epoch_loss += checkpoint["epoch_loss"].to(device)
        except Exception as error:  # noqa: BLE001 - whatever the file holds
            raise UserError(f"{out / 'checkpoint.pt'} does not fit ({brief(error)}): --overwrite") from None
    with atomic_write(out / "metrics.jsonl") as file:
        file.write("".join(json.dumps(line) + "\n" for line in metrics).encode())

    def check(finite, what):
        if not finite:
            sys.exit(f"the {what} not finite after step {step}: try a smaller --lr or --reg-weight. "
                     f"{out / 'checkpoint.pt'}, if there, is the last good one")

    order, frozen, per_epoch = None, None, len(data.x_train) // args.batch_size  # without an incomplete batch
    steps, images = args.epochs * per_epoch, per_epoch * args.batch_size
    clock, saved = time.perf_counter(), -math.inf
    model.train()
    bar = tqdm(total=steps, initial=step, unit="img", unit_scale=args.batch_size, disable=None)
    with deferred_signals() as received, bar:
        while step < steps:
            epoch, i = divmod(step, per_epoch)
            if i == 0 or order is None:
                shuffle = torch.Generator(device).manual_seed(args.seed * 100_003 + epoch)
                order = torch.randperm(len(data.x_train), generator=shuffle, device=device)
            for group in opt.param_groups:
                group["lr"] = args.lr * (1 + math.cos(math.pi * step / steps)) / 2
            value = train(data.x_train[order[i * args.batch_size:(i + 1) * args.batch_size]])
            epoch_loss += value
            if not cuda:  # on a GPU, to look is to wait: there once an epoch
                check(value.isfinite(), "loss is")
                bar.set_postfix(loss=f"{epoch_loss.item() / (i + 1):.3f}", refresh=False)
            step += 1
            bar.update()
            now, last, stopping = time.perf_counter(), step % per_epoch == 0, bool(received)
            if not (last or stopping or now - saved > 30):
                continue
            mean_loss = epoch_loss.item() / (i + 1)
            check(math.isfinite(mean_loss), "loss is")
            seconds, clock = seconds + time.perf_counter() - clock, time.perf_counter()
            if last:
                before = metrics[-1]["seconds"] if metrics else 0.0
                line = {"epoch": epoch + 1, "loss": mean_loss, "lr": group["lr"], "seconds": seconds,
                        "images_per_second": images / (seconds - before)}
                if step == steps or args.eval_every and (epoch + 1) % args.eval_every == 0:
                    frozen = representations(encoder, data)
                    line["knn200"] = knn_accuracy(*frozen)
                metrics.append(line)
                epoch_loss.zero_()
                with open(out / "metrics.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")
                bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
                bar.write("  ".join(f"{key} {value:.5g}" for key, value in line.items()))
            if stopping or step == steps or now - saved > 30:
                check(all(torch.isfinite(p).all() for p in model.parameters()), "weights are")
                with atomic_write(out / "checkpoint.pt") as file:
                    torch.save({"model": model.state_dict(), "optimizer": opt.state_dict(), "step": step,
                                "views": generator.get_state(), "rng": torch.get_rng_state(),
                                "cuda_rng": torch.cuda.get_rng_state(device) if cuda else None,
                                "epoch_loss": epoch_loss, "seconds": seconds, "metrics": metrics}, file)
                saved = time.perf_counter()
            clock = time.perf_counter()
            if stopping:
                break
    if received:
        print(f"stopped after step {step} of {steps}; --resume continues", file=sys.stderr)
        sys.exit(128 + received[0])
    with atomic_write(out / "encoder.pt") as file:
        torch.save({key: value.cpu().contiguous() for key, value in encoder.state_dict().items()}, file)
    best = max((line for line in metrics if "knn200" in line), key=lambda line: line["knn200"])
    frozen = frozen or representations(encoder, data)
    result = {"config": config, **evaluate(encoder, projector, data, frozen),
              **(also(*frozen) if also else {}), "best": {"knn200": best["knn200"], "epoch": best["epoch"]},
              "seconds": seconds, "images_per_second": args.epochs * images / seconds}
    write_json(out / "result.json", result)
    print(out, *(f" {key} {result[key]:.2f}" for key in ("knn200", "knn5", "linear_top1", "linear_top5")))
    return result


# ------------------------------------------------------------------------------------------------ evaluation

LAYERS = ("h", "z", "penultimate", "projector_hidden")


@torch.no_grad()
def features(encoder, projector, x, layers=LAYERS):
    """{layer: float32 (N, dim)} of uint8 images x (N, 3, H, W), not augmented; BatchNorm statistics stay.

    penultimate: layer4[-2], pooled; projector_hidden: what the last layer of a projector of several layers
    sees. Layers that a projector, which may be None, does not have are left out.
    """
    modules, training = nn.ModuleList([encoder, projector or nn.Identity()]), encoder.training
    modules.eval()
    pooled, parts = [], []
    hook = encoder.layer4[-2].register_forward_hook(lambda _, __, output: pooled.append(output.mean((2, 3))))
    for block in x.split(256):
        part = {"h": encoder(normalize(block).contiguous(memory_format=memory_format(encoder)))}
        part["penultimate"] = pooled.pop()
        if projector is not None:
            part["z"] = projector(part["h"])
        if isinstance(projector, nn.Sequential) and len(projector) > 1:
            part["projector_hidden"] = projector[:-1](part["h"])
        parts.append({layer: part[layer] for layer in layers if layer in part})
    hook.remove()
    modules.train(training)
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def representations(encoder, data):
    """train_h (N, D), train_y (N,), test_h (M, D), test_y (M,) of the labelled images."""
    labelled = data.y_train >= 0
    train_h, test_h = (features(encoder, None, x, ("h",))["h"] for x in (data.x_train[labelled], data.x_test))
    return train_h, data.y_train[labelled], test_h, data.y_test


def _check_features(train_h, train_y, test_h, test_y):
    if not all(h.isfinite().all() for h in (train_h, test_h)) or min(train_y.min(), test_y.min()) < 0:
        raise UserError("features must be finite, labels 0, 1 …: leave unlabelled images out")


@torch.no_grad()
def knn_accuracy(train_h, train_y, test_h, test_y, k=200, temperature=0.1):
    """Percent of test_h (M, D) whose label (M,) the k (all, if fewer) most cosine-similar of train_h predict.

    Neighbours vote with weight exp(similarity / temperature) (InstDisc, lightly); temperature=None: each has
    one vote, and a tie goes to the class with the nearest neighbour.
    """
    _check_features(train_h, train_y, test_h, test_y)
    train_h, test_h = (F.normalize(h, dim=1) for h in _full_precision(train_h, test_h))
    train_y, test_y = train_y.long(), test_y.long()
    k, classes, correct = min(k, len(train_h)), int(max(train_y.max(), test_y.max())) + 1, 0
    block = train_h.new_empty(min(1024, len(test_h)), len(train_h))  # once: new memory costs a tenth on a CPU
    for h, y in zip(test_h.split(1024), test_y.split(1024)):
        similarity, index = torch.mm(h, train_h.T, out=block[:len(h)]).topk(k)
        labels, weight = train_y[index], torch.ones_like(similarity)
        if temperature is not None:
            weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(h), classes).scatter_add_(1, labels, weight)
        winner = votes.gather(1, labels).argmax(1, keepdim=True)  # of equal votes the nearest neighbour's
        correct += (labels.gather(1, winner)[:, 0] == y).sum()
    return 100 * correct.item() / len(test_y)


def logistic_regression(h, y, classes, l2, start=None, iterations=500):
    """W (classes, D + 1) of least mean cross-entropy + l2/2 ‖W‖², its last column a bias without penalty."""
    weight = (h.new_zeros(classes, h.shape[1] + 1) if start is None else start.clone()).requires_grad_()
    lbfgs = torch.optim.LBFGS([weight], max_iter=iterations, history_size=20, tolerance_grad=1e-6,
                              tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def objective():
        lbfgs.zero_grad()
        value = F.cross_entropy(F.linear(h, weight[:, :-1], weight[:, -1]), y)
        value = value + l2 / 2 * weight[:, :-1].square().sum()
        value.backward()
        return value
    lbfgs.step(objective)
    return weight.detach()


def linear_probe(train_h, train_y, test_h, test_y):
    """(top-1, top-5) percent of multinomial logistic regression on frozen features (N, D), (M, D).

    Deterministic, float64, on standardised features; the L2 penalty is that of 1e-1 … 1e-5 that predicts a
    tenth of the training images best from the others.
    """
    _check_features(train_h, train_y, test_h, test_y)
    train_h, train_y, test_h, test_y = train_h.detach(), train_y.long(), test_h.detach(), test_y.long()
    mean, std = train_h.double().mean(0), train_h.double().std(0, correction=0)
    train_h, test_h = ((h.double() - mean) / std.where(std > 1e-8, 1) for h in (train_h, test_h))
    classes = int(max(train_y.max(), test_y.max())) + 1
    held = torch.randperm(len(train_y), generator=torch.Generator().manual_seed(0)) % 10 == 9
    held = held.to(train_y.device)

    def scores(weight, h):
        return F.linear(h, weight[:, :-1], weight[:, -1])

    best, chosen, weight = -1, (1e-3, None), None
    for l2 in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5) if held.any() else ():
        weight = logistic_regression(train_h[~held], train_y[~held], classes, l2, weight, iterations=100)
        correct = (scores(weight, train_h[held]).argmax(1) == train_y[held]).sum().item()
        if correct > best:
            best, chosen = correct, (l2, weight)
    weight = logistic_regression(train_h, train_y, classes, *chosen)
    hits = scores(weight, test_h).topk(min(5, classes)).indices == test_y[:, None]
    return 100 * hits[:, 0].double().mean().item(), 100 * hits.any(1).double().mean().item()


def covariance(features, normalize=True):
    """Covariance (D, D), float64, of features (N >= 2, D), first L2-normalised (DirectCLR's code) or not."""
    features = features.double()
    features = F.normalize(features, dim=1) if normalize else features
    return torch.cov(features.T).reshape(features.shape[1], -1)


def covariance_spectrum(features, normalize=True):
    """Singular values, float64 (D,), descending, of the `covariance` of features (N, D) (DirectCLR eq. 1)."""
    return torch.linalg.eigvalsh(covariance(features, normalize)).abs().sort(descending=True).values


def rankme(features):
    """RankMe: exp of the entropy of the singular values' shares; features (N, D), not centred nor scaled."""
    s = torch.linalg.svdvals(features.double())
    p = s / s.sum() + 1e-7
    return torch.exp(-(p * p.log()).sum()).item()


def min_max_ratio(z):
    """Mean over anchors of (max - min) / min of the distances to the others of z (N >= 2, D), L2-normalised:
    how well near and far are told apart (SparseHead eq. 9)."""
    z = F.normalize(z.double(), dim=1)
    distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance[~torch.eye(len(z), dtype=torch.bool, device=z.device)].view(len(z), -1)
    nearest, farthest = distance.amin(1), distance.amax(1)
    return ((farthest - nearest) / nearest.clamp(min=1e-12)).mean().item()


def layer_statistics(encoder, projector, x):
    """What the figures need of test images x, by layer (None where there is none), and the weight-row norms.

    min_max_ratio: of 2,000 images. covariance: in units of its mean diagonal, its first 32 x 32 block and, of
    all of it, the mean |off-diagonal|. row_norms (LL prop. 1): per dimension of h ‖W^i‖² of the last
    convolution, bare and folded with the BatchNorm behind it, and var(h_i).
    """
    found = features(encoder, projector, x)

    def by_layer(function):
        return {layer: function(found[layer]) if layer in found else None for layer in LAYERS}

    def heat_map(values):
        c = covariance(values)
        c = c / c.diagonal().mean().clamp(min=1e-30)
        outside = (c.abs().sum() - c.diagonal().sum()) / max(1, c.numel() - len(c))
        return {"block": [[round(value, 3) for value in row] for row in c[:32, :32].tolist()],
                "offdiagonal": outside.item()}

    convolution, norm = last_convolution(encoder)
    bare = convolution.weight.detach().flatten(1).square().sum(1)
    folded = bare * norm.weight.detach().square() / (norm.running_var + norm.eps)
    row_norms = {"bare": bare, "folded": folded, "variance": found["h"].var(0)}
    return {"rankme": by_layer(rankme), "min_max_ratio": by_layer(lambda h: min_max_ratio(h[:2000])),
            "spectra": by_layer(lambda h: rounded(covariance_spectrum(h))),
            "covariance": by_layer(heat_map), "row_norms": {key: rounded(n) for key, n in row_norms.items()}}


def evaluate(encoder, projector, data, frozen=None):
    """kNN-200, kNN-5, linear probe (percent) and `layer_statistics`; frozen: `representations`, if known."""
    frozen = frozen or representations(encoder, data)
    top1, top5 = linear_probe(*frozen)
    return {"knn200": knn_accuracy(*frozen), "knn5": knn_accuracy(*frozen, k=5, temperature=None),
            "linear_top1": top1, "linear_top5": top5, **layer_statistics(encoder, projector, data.x_test)}


# --------------------------------------------------------------------------------------------------- results

@contextlib.contextmanager
def atomic_write(path):
    """A binary file that becomes `path` when it is whole and on the disk, and never otherwise."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content):
    """The one way that a dict is written as JSON: atomically, a line a key, NaN and infinity as null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    with atomic_write(path) as file:
        file.write(f"{{\n{lines}\n}}\n".encode())


def read_json(path):
    """What a JSON file holds; UserError where it is not one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable JSON file ({brief(error)})") from None


def rounded(tensor):
    """A tensor as nested lists of numbers with 6 significant digits."""
    return json.loads(json.dumps(tensor.tolist()), parse_float=lambda text: float(f"{float(text):.6g}"))


RUN_FILES = ("result.json", "encoder.pt", "checkpoint.pt", "metrics.jsonl", "config.json")


def open_run(args, name):
    """(folder, configuration, checkpoint or None) of a run, new or to be continued: a UserError rather than
    touch another run, which is one with another script, row or arguments, folders apart."""
    out = args.out or Path("runs") / f"{Path(args.dataset).stem}-{name}-seed{args.seed}"
    arguments = {k: v for k, v in vars(args).items() if k not in ("out", "resume", "overwrite", "data_dir")}
    config = json.loads(json.dumps({"script": Path(sys.argv[0]).name, "name": name, "arguments": arguments}))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} can't be made ({brief(error)})") from None
    _lock(out)
    entries, config_file, checkpoint = set(out.iterdir()), out / "config.json", out / "checkpoint.pt"
    temporary = {path for file in RUN_FILES for path in out.glob(f"{file}.*.tmp")}  # what a kill cut short
    there = read_json(config_file) if config_file in entries else None
    if there is None and any("config.json" in path.name for path in temporary):
        entries -= {out / file for file in RUN_FILES}  # a kill during --overwrite left these
    if entries - temporary and not (isinstance(there, dict) and isinstance(there.get("arguments"), dict)):
        raise UserError(f"{out} is there and is not a run's folder: choose another with --out")
    if there and not args.overwrite:
        old, new = ({**c["arguments"], **{k: c.get(k) for k in ("script", "name")}} for c in (there, config))
        other = ", ".join(f"{k} is {old.get(k)} there, {new[k]} here" for k in new if old.get(k) != new[k])
        if other or not args.resume:
            what = f"another run, {other}" if other else "this run already"
            raise UserError(f"{out} holds {what}: continue it with --resume and its arguments, choose "
                            "another --out, or replace it with --overwrite")
    if there and not args.overwrite:
        config = there
        try:
            state = torch.load(checkpoint, "cpu", weights_only=True) if checkpoint.exists() else None
        except Exception as error:  # noqa: BLE001 - whatever the file holds
            raise UserError(f"{checkpoint} can't be read ({brief(error)}); --overwrite starts anew") from None
    else:
        state = None
        if there:
            os.replace(config_file, f"{config_file}.0.tmp")
        for file in RUN_FILES:
            (out / file).unlink(missing_ok=True)
        device = torch.cuda.get_device_name(args.device) if args.device != "cpu" else \
            f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
        config |= {"device": device, "git": _git_commit(), "python": platform.python_version(),
                   **{module.__name__: str(module.__version__) for module in (torch, torchvision, np)}}
        write_json(config_file, config)
    for path in {*temporary, *out.glob("config.json.0.tmp")}:
        path.unlink(missing_ok=True)
    return out, config, state


_LOCKS = {}


def _lock(folder):
    if folder.resolve() in _LOCKS:
        return
    try:
        import fcntl
    except ImportError:  # Windows: two processes in one folder are not noticed
        return
    try:
        _LOCKS[folder.resolve()] = descriptor = os.open(folder, os.O_RDONLY)  # open until the process ends
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder} is in use by another process") from None


def _git_commit():
    here = str(Path(__file__).resolve().parent)
    command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def brief(error):
    """The first line of an exception's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run(main):
    """Calls a script's main(): bad input is one line and exit code 2; SIGINT, SIGTERM are 130, 143."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except (UserError, OSError) as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}\n")
        sys.exit(2)
