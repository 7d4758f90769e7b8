"""What the experiments share, in the order data flows: data, augmentation, encoder, projectors, losses,
penalties, arguments, processes, training, evaluation, results. Copy this file beside a script and the script
runs; drawn images need shapes.py too, image folders pack.py. `Augment`, `lastlayer_penalty` and
`covariance_spectrum` can be imported alone. The import turns TF32 off.

Equations and tables are cited by the papers' short names: LL (Can Weight Regularization in the Last Layer
Reduce Dimensional Collapse?), DirectCLR (Jing et al. 2022), WERank (Pasand et al. 2024), SparseHead (Song et
al. 2023).
"""

import argparse
import contextlib
import copy
import datetime
import io
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

# Importing torch takes seconds: Ctrl-C ends the process there, without a traceback. A thread can't set that.
with contextlib.suppress(ValueError):
    _interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.transforms.v2 import functional as vision
from tqdm import tqdm

with contextlib.suppress(ValueError, NameError, TypeError):
    signal.signal(signal.SIGINT, _interrupt)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# float32 means float32: TF32's noise would hide small singular values, so the advice to use it is silenced.
torch.set_float32_matmul_precision("highest")
torch.backends.cudnn.allow_tf32 = False
warnings.filterwarnings("ignore", message=".*TensorFloat32 tensor cores.*")
# Of files that are refused, which one line says.
warnings.filterwarnings("ignore", message=".*TorchScript archive|Validating sparse tensor invariants")

# glibc keeps freed memory for later up to the size of the largest block freed so far, 32 MB at most. Freeing
# 30 MB once makes Augment 1.6 times as fast on a CPU.
torch.empty(7_500_000)


class UserError(ValueError):
    """Bad input. Scripts print it as one line on stderr and exit with code 2."""


# What may be raised where a file holds something else than it should
ODD = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


# ------------------------------------------------------------------------------------------------------- data


class Dataset(NamedTuple):
    """Images uint8 (N, 3, H, W), labels int64 (N,), -1 of a training image without one (STL-10).

    mapped: the images lie in files, or in memory beside a GPU that is too small, and are read as needed.
    """

    name: str
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple
    mapped: bool = False


NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test", "classes")
NAMED = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10"}  # in torchvision.datasets


def load_dataset(name, data_dir="data", image_size=None, skip_broken=False):
    """A `Dataset` on the CPU. Raises UserError that names the file and what is wrong with it.

    name: cifar10, cifar100, stl10 (train + unlabelled): <data_dir>/<name>.npz, which a torchvision download
    writes the first time; shapes (drawn by shapes.py, no download); an .npz of x_train (N, H, W, 3) uint8,
    y_train (N,) with -1 for no label, x_test, y_test, optionally classes; or an image folder train/<class>/*,
    val/<class>/*, which needs image_size, is packed (pack.py) the first time and mapped. image_size: other
    images are resized (shorter side, antialiased) and centre-cropped to image_size squared. skip_broken:
    leaves unreadable images of a folder out.
    """
    path = Path(name)
    if name == "shapes":
        with refusing("--dataset shapes needs shapes.py beside common.py"):
            import shapes
        arrays = shapes.shapes()
    elif name in NAMED:
        npz = Path(data_dir) / f"{name}.npz"
        arrays = _read_npz(npz) if npz.exists() else _download(name, npz)
    elif path.suffix == ".npz":
        arrays = _read_npz(path)
    elif path.is_dir():
        if image_size is None:
            raise UserError(f"the image folder {path} needs --image-size")
        with refusing("an image folder needs pack.py beside common.py"):
            import pack
        return pack.dataset(path, image_size, skip_broken)
    else:
        raise UserError(f"dataset {name!r} is not shapes, {', '.join(NAMED)}, an .npz or a folder")
    tensors = {}
    for split in ("train", "test"):
        x = torch.from_numpy(arrays.pop(f"x_{split}")).permute(0, 3, 1, 2)
        if image_size and x.shape[2:] != (image_size, image_size):
            blocks = (vision.resize(block, image_size) for block in x.split(1000))
            x = torch.cat([vision.center_crop(block, image_size) for block in blocks])
        tensors[f"x_{split}"] = x.contiguous()
        tensors[f"y_{split}"] = torch.from_numpy(arrays[f"y_{split}"].astype(np.int64))
    require_two(name, tensors["x_train"], tensors["x_test"])
    return Dataset(path.stem, **tensors, classes=tuple(str(c) for c in arrays["classes"]))


def require_two(name, *splits):
    """UserError unless both splits hold at least two images."""
    if min(map(len, splits)) < 2:
        raise UserError(f"{name} needs at least two images to train and two to test")


def _read_npz(path):
    with refusing(f"{path} is not a readable .npz file"), np.load(path) as file:
        arrays = {key: np.asarray(file[key]) for key in NPZ_KEYS if key in file.files}  # or bytes
    if missing := set(NPZ_KEYS) - {"classes"} - set(arrays):
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}")
    for split in ("train", "test"):
        x = arrays[f"x_{split}"]
        y = arrays[f"y_{split}"]
        if x.dtype != np.uint8 or x.shape[1:] != (*arrays["x_train"].shape[1:3], 3) or 0 in x.shape:
            wanted = "uint8 (N, H, W, 3), H and W those of x_train"
            raise UserError(f"{path}: x_{split} must be {wanted}, not {x.dtype} {x.shape}")
        least = -1 if split == "train" else 0
        if y.dtype.kind not in "iu" or y.shape != x.shape[:1] or y.min() < least:
            wanted = f"{len(x)} integers >= 0 (-1 in y_train: no label)"
            found = f"{y.dtype} {y.shape} from {np.unique(y)[:1]}"
            raise UserError(f"{path}: y_{split} must be {wanted}, not {found}")
    labels = 1 + int(max(arrays["y_train"].max(), arrays["y_test"].max()))
    classes = arrays.setdefault("classes", np.arange(labels if labels < 2**16 else 0))
    if arrays["y_train"].max() < 0 or classes.ndim != 1 or len(classes) < labels:
        raise UserError(f"{path}: needs labelled training images, and classes for labels up to {labels - 1}")
    return arrays


def _download(name, npz):
    new = _absent(npz.parent)
    kind = getattr(torchvision.datasets, NAMED[name])
    stl = name == "stl10"
    splits = [{"split": "train+unlabeled"}, {"split": "test"}] if stl else [{"train": True}, {"train": False}]
    try:
        npz.parent.mkdir(parents=True, exist_ok=True)
        lock(npz.parent, wait=True)  # two that download at once would spoil each other's archive
        if npz.exists():
            return _read_npz(npz)
        parts = [kind(str(npz.parent), download=True, **split) for split in splits]
        arrays = {"classes": np.array(parts[0].classes)}
        for split, part in zip(("train", "test"), parts):
            arrays[f"x_{split}"] = part.data.transpose(0, 2, 3, 1) if stl else part.data
            arrays[f"y_{split}"] = np.array(part.labels if stl else part.targets)
        try:
            write(npz, lambda file: np.savez(file, **arrays))
        except OSError as error:  # a read-only folder: slower next time, that is all
            note(f"{npz} can't be written ({brief(error)})")
        return arrays
    except (OSError, RuntimeError, HTTPException) as error:
        _remove(new)
        raise UserError(f"no {npz}, and torchvision can't download {name} ({brief(error)})") from None
    finally:
        unlock(npz.parent)


def balanced(y, size, flag):
    """Indices of `size` images with labels y, the first of each class, in numbers that differ by 1 at most;
    fewer where a class has fewer. flag: what asked for them."""
    labels = y[y >= 0].unique()
    if size < len(labels):
        raise UserError(f"{flag} takes {size} images of {len(labels)} classes")
    counts = [size // len(labels) + (i < size % len(labels)) for i in range(len(labels))]
    return torch.cat([(y == label).nonzero()[:count, 0] for label, count in zip(labels, counts)])


def subset(data, size):
    """`data` with `size` training images, `balanced`, in their order."""
    keep = balanced(data.y_train, size, f"--train-size {size}").sort().values
    if len(keep) < size:
        labels, counts = data.y_train[data.y_train >= 0].unique(return_counts=True)
        least = data.classes[labels[counts.argmin()]]
        raise UserError(f"--train-size {size} takes more than the {counts.min()} images of class {least!r}")
    return data._replace(x_train=data.x_train[keep], y_train=data.y_train[keep])


def batches(data, order, batch, first, device):
    """Batches of the training images, (B, 3, H, W) on the device, in this order (N,), from the first-th on,
    without an incomplete one; of several processes each gets its share. What lies in files is read ahead."""
    parts = order[: len(order) // batch * batch].view(-1, processes(), batch // processes())
    parts = parts[first:, process_index()]
    if not data.mapped:
        yield from (data.x_train[part] for part in parts)
        return

    def read(part):
        images = data.x_train[part]
        return images.pin_memory() if device.type == "cuda" else images

    with ThreadPoolExecutor(1) as pool:
        part, *later = parts.cpu()
        reading = pool.submit(read, part)
        for part in [*later, None]:
            images = reading.result()
            reading = None if part is None else pool.submit(read, part)
            yield images.to(device, non_blocking=True)


# ----------------------------------------------------------------------------------------------- augmentation
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


grayscale = vision.rgb_to_grayscale_image  # the kernel itself: (B, 1, H, W), the luma


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
    low = torch.minimum(torch.minimum(red, green), blue)
    high = torch.maximum(torch.maximum(red, green), blue)
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
        source = source.clamp(min=0)  # a single pixel has no other side
        return torch.einsum("bk,ikj->bij", kernel, (source[:, :, None] == pixel).float())[:, None]

    return blur(x.shape[2]) @ x @ blur(x.shape[3]).transpose(2, 3)


def solarize(x, chosen, threshold=128 / 255):
    """Inverts what is at or above the threshold, in the images chosen (B,) bool."""
    return torch.where(chosen[:, None, None, None] & (x >= threshold), 1 - x, x)


def normalize(x, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """(x - mean) / std per channel, float32 (B, 3, H, W), of x in [0, 1] or uint8."""
    x = x / 255 if x.dtype == torch.uint8 else x
    return torch.stack([(x[:, i] - mean[i]) / std[i] for i in range(3)], 1)


def _pair(value):
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


@dataclass
class Augment:
    """A random view of each image: uint8 (B, 3, H, W) to float32 (B, 3, size, size), on x's device.

    Random resized crop, flip, colour jitter, greyscale, Gaussian blur, solarize, normalise (SimCLR's recipe),
    with parameters drawn per image from the distributions of torchvision's RandomResizedCrop and ColorJitter;
    the order of the jitter's operations is drawn once a batch. scale: share of the area that a crop keeps.
    jitter: brightness, contrast, saturation, hue. flip and *_p: probabilities; a pair of blur_p or solarize_p
    is that of the batch's first and second half. Blur: a kernel of 10 % of the size, sigma 0.1 … 2 pixels.
    `draw` takes every random number, `apply` none; of several processes each draws those of the whole batch
    and keeps its share of either half. UserError for values that make no sense.
    """

    size: int
    scale: tuple = (0.08, 1.0)
    flip: float = 0.5
    jitter: tuple = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float | tuple = 0.0
    solarize_p: float | tuple = 0.0
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD

    def __post_init__(self):
        low, high = self.scale
        if self.size < 1 or not 0 < low <= high <= 1:
            wanted = "a size >= 1 and --crop-scale 0 < low <= high <= 1"
            raise UserError(f"a crop needs {wanted}, not {self.size} and {self.scale}")
        if len(self.jitter) != 4 or not all(0 <= x < math.inf for x in self.jitter) or self.jitter[3] > 0.5:
            raise UserError(f"--jitter {self.jitter} is not four numbers >= 0, the last (hue) <= 0.5")
        for name in ("flip", "jitter_p", "grey_p", "blur_p", "solarize_p"):
            both = _pair(getattr(self, name))
            if len(both) != 2 or not all(0 <= p <= 1 for p in both):
                raise UserError(f"{name} {getattr(self, name)} is no probability, nor two")
        self.colour = [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue]

    def compile(self):
        """Compiles each operation of the jitter, and what comes before and after it, so that no order of them
        compiles anything anew."""
        for name in ("parameters", "crop", "finish"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False))
        self.colour = [torch.compile(operation, dynamic=False) for operation in self.colour]

    def __call__(self, x, generator=None):
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
            raise UserError(f"Augment takes uint8 (B, 3, H, W), not {x.dtype} {tuple(x.shape)}")
        return self.apply(x, **self.draw(*x.shape[::2], x.shape[3], x.device, generator))

    def draw(self, n, height, width, device="cpu", generator=None):
        """The random parameters of n views of images of height x width, as `apply` takes them."""
        uniform = torch.rand(32, n * processes(), generator=generator, device=device)
        if processes() > 1:
            uniform = uniform.view(32, 2, processes(), -1)[:, :, process_index()].flatten(1)
        on_host = generator if generator is not None and generator.device.type == "cpu" else None
        order = torch.randperm(4, generator=on_host).tolist()
        return {**self.parameters(uniform, height, width), "order": order}

    def parameters(self, uniform, height, width):
        """The parameters of views, but for the jitter's order, from numbers (32, n) uniform in [0, 1)."""
        areas, ratios, places, chances, strengths = uniform.split((10, 10, 2, 5, 5))
        for_jitter, for_flip, for_grey, for_blur, for_solarize = chances
        in_first = torch.arange(uniform.shape[1], device=uniform.device) < uniform.shape[1] / 2

        def between(values, low, high):
            return values * (high - low) + low

        def chosen(drawn, probability):
            return drawn < torch.where(in_first, *_pair(probability))

        area = height * width * between(areas, *self.scale)
        ratio = between(ratios, math.log(3 / 4), math.log(4 / 3)).exp()
        w = (area * ratio).sqrt().round()
        h = (area / ratio).sqrt().round()
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.int().argmax(0, keepdim=True)
        found = fits.any(0)
        # where none of the ten attempts fits: the largest central crop with a ratio of 3/4 … 4/3
        w = torch.where(found, w.gather(0, first)[0], min(width, round(height * 4 / 3)))
        h = torch.where(found, h.gather(0, first)[0], min(height, round(width * 4 / 3)))
        room = torch.stack([height - h, width - w])
        top, left = torch.where(found, (places * (room + 1)).minimum(room), room / 2).floor()
        jittered = for_jitter < self.jitter_p
        factors = []
        for drawn, strength, off in zip(strengths, self.jitter, (1, 1, 1, 0)):
            low = max(off - 1, off - strength)  # factors stay above 0; a shift of the hue is below 1 anyway
            factors.append(torch.where(jittered, between(drawn, low, off + strength), off))
        # a sigma of 0.01 pixels blurs nothing
        return {
            "box": (top, left, h, w),
            "flip": for_flip < self.flip,
            "factors": tuple(factors),
            "grey": for_grey < self.grey_p,
            "sigma": torch.where(chosen(for_blur, self.blur_p), between(strengths[4], 0.1, 2), 0.01),
            "solarized": chosen(for_solarize, self.solarize_p),
        }

    def apply(self, x, box, flip, factors, order, grey, sigma, solarized):
        """The views of uint8 x that these parameters describe."""
        x = self.crop(x, box, flip)
        for i in order:
            if self.jitter[i] and self.jitter_p:
                x = self.colour[i](x, factors[i])
        return self.finish(x, grey, sigma, solarized)

    def crop(self, x, box, flip):
        """What comes before the jitter."""
        return resized_crop(x, *box, self.size, flip).div_(255)

    def finish(self, x, grey, sigma, solarized):
        """What comes after it."""
        if self.grey_p:
            x = adjust_saturation(x, 1 - grey.float())
        if any(_pair(self.blur_p)):
            x = gaussian_blur(x, sigma, max(3, int(0.1 * self.size) // 2 * 2 + 1))
        if any(_pair(self.solarize_p)):
            x = solarize(x, solarized)
        return normalize(x, self.mean, self.std)


# ---------------------------------------------------------------------------------------------------- encoder


def encoder_dim(arch, width):
    """D, the dimensions of h: 512 of ResNet-18 and -34 at width 64, 2048 of ResNet-50, 256 of the MLP."""
    return width * {"resnet50": 32, "mlp": 4}.get(arch, 8)


def make_encoder(args):
    """The encoder that --arch, --stem, --width (and for the MLP --image-size) describe."""
    if args.arch == "mlp":
        return MLP(args.image_size, encoder_dim(args.arch, args.width))
    return resnet(args.arch, args.stem, args.width)


def resnet(arch="resnet18", stem="cifar", width=64):
    """torchvision's ResNet-18, -34 or -50 without `fc`: (B, 3, H, W) to h (B, D); D is `.dim`.

    stem: "cifar" has a 3 x 3 stride-1 first convolution and no max-pool, "imagenet" is torchvision's. width:
    channels of the first stage, 64 in the papers; D = 8 · width (ResNet-50: 32 · width). Names and
    initialisation are torchvision's.
    """
    if arch not in ("resnet18", "resnet34", "resnet50") or stem not in ("cifar", "imagenet") or width < 1:
        raise UserError(f"no encoder has arch {arch}, stem {stem}, width {width}")
    encoder = getattr(torchvision.models, arch)(weights=None)
    encoder.dim = encoder_dim(arch, width)
    encoder.fc = nn.Identity()
    if width != 64:
        encoder.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        encoder.bn1 = nn.BatchNorm2d(width)
        encoder.inplanes = width
        for stage in range(4):
            old = getattr(encoder, f"layer{stage + 1}")
            new = encoder._make_layer(type(old[0]), width * 2**stage, len(old), stride=min(2, 1 + stage))
            setattr(encoder, f"layer{stage + 1}", new)
    if stem == "cifar":
        encoder.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        encoder.maxpool = nn.Identity()
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return encoder


class MLP(nn.Module):
    """(B, 3, s, s) to h (B, D): three linear layers with ReLU between them, no biases, no BatchNorm.

    It stands between the theory's linear models and ResNets: h = W x with nothing behind the last weight W.
    """

    def __init__(self, image_size, dim):
        super().__init__()
        self.dim = dim
        self.layer1 = nn.Linear(3 * image_size**2, dim, bias=False)
        self.layer2 = nn.Linear(dim, dim, bias=False)
        self.layer3 = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        x = self.layer1(x.flatten(1)).relu()
        return self.layer3(self.layer2(x).relu())


def _is_batchnorm(module):
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _is_resnet(encoder):
    """Whether it is torchvision's, also where it was changed: a deep stem or a stage that is cut off."""
    if not isinstance(encoder, torchvision.models.ResNet) or not isinstance(encoder.conv1, nn.Conv2d):
        return False
    blocks = torchvision.models.resnet.BasicBlock | torchvision.models.resnet.Bottleneck
    stage = encoder.layer4
    return isinstance(stage, nn.Sequential) and len(stage) > 0 and isinstance(stage[-1], blocks)


def memory_format(encoder):
    """channels_last for ResNets where it is safe, a quarter faster on a CPU: with torch 2.11 to 2.15 a
    strided 1 x 1 convolution (oneDNN's) of fewer than 16 channels overruns its memory on a CPU."""
    if _is_resnet(encoder) and (encoder.conv1.weight.is_cuda or len(encoder.conv1.weight) % 16 == 0):
        return torch.channels_last
    return torch.contiguous_format


def encoder_end(encoder):
    """The last weight layer of the encoder, and the BatchNorm behind it or None: of a ResNet without `fc`
    those that end the residual branch of its last block."""
    if not _is_resnet(encoder) or not isinstance(encoder.fc, nn.Identity):
        layers = [m for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        if not layers:
            raise UserError("the encoder has no convolution and no linear layer")
        return layers[-1], None
    block = encoder.layer4[-1]
    layer, norm = (block.conv3, block.bn3) if hasattr(block, "conv3") else (block.conv2, block.bn2)
    usual = _is_batchnorm(norm) and norm.affine and norm.bias is not None and norm.track_running_stats
    return layer, norm if usual else None


# What may stand before torchvision's names: keys of nested dicts, torch's wrappers, names of the encoder
BEFORE = ("backbone", "model", "state_dict", "module", "encoder", "encoder_q", "base_encoder")


def load_encoder(path, image_size=None):
    """(encoder on the CPU, {arch, stem, width, image_size} of it) of a checkpoint file.

    The file holds the state dict of a torchvision-named ResNet-18, -34 or -50 of either stem and any width,
    or of an MLP, itself or under the keys and prefixes that are in use. image_size: that of the images; an
    MLP has its own. UserError if the file holds neither, or not all of one, or weights that are not finite,
    or an MLP for images of another size.
    """
    weights = _checkpoint_weights(path)
    try:
        if not all(weight.isreal().all() and weight.isfinite().all() for weight in weights.values()):
            raise ValueError("it holds weights that are not finite, or complex")
        found = _architecture(weights)
        encoder = make_encoder(argparse.Namespace(**found))
        encoder.load_state_dict(weights)
    except ODD as error:
        why = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit: {why[:200]}") from None
    if found["stem"] == "cifar" and found["arch"] != "mlp" and not run_config(Path(path).parent):
        note(f"{path}: its first convolution is taken to have stride 1, padding 1 and no max-pool behind it")
    own = found["image_size"]
    if own and image_size not in (None, own):
        raise UserError(f"--image-size {image_size}: {path} takes images of {own} pixels")
    return encoder, found | {"image_size": own or image_size}


def _tensors(content, name=""):
    """{name: tensor} of nested dicts, their keys joined by points, without those of torch.compile."""
    if torch.is_tensor(content):
        return {name.replace("._orig_mod", "").lstrip("."): content}
    inner = content.items() if isinstance(content, dict) else ()
    return {path: tensor for key, x in inner for path, tensor in _tensors(x, f"{name}.{key}").items()}


def _checkpoint_weights(path):
    """{name: tensor} of the encoder in a file, without what stands `BEFORE`, `fc` and what is behind it."""
    safe = torch.serialization.safe_globals([argparse.Namespace])  # official checkpoints carry arguments
    advice = "of a whole model save model.state_dict()"
    with open(path, "rb") as file, refusing(f"{path} is not a checkpoint of tensors: {advice}"), safe:
        state = _tensors(torch.load(file, map_location="cpu", weights_only=True))
    first = re.compile(rf"((({'|'.join(BEFORE)})\.)*)(conv1|layer1)\.weight")
    prefixes = [match[1] for match in map(first.fullmatch, state) if match]
    if not prefixes:
        lacks = f"conv1.weight, itself or after {', '.join(BEFORE)}; it has {min(state, default=None)}"
        raise UserError(f"{path} is no torchvision ResNet: it has no {lacks}")
    prefix = min(prefixes, key=len)
    names = tuple(f"{prefix}{name}" for name in ("conv1.", "bn1.", "layer"))
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(names)}


def _architecture(weights):
    """What `make_encoder` needs for weights of these names and shapes."""
    if "layer1.weight" in weights:
        first = weights["layer1.weight"]
        width = len(first) // 4 or 1  # at least 1, which does not fit a weight of no width or for no pixel
        size = math.isqrt(first[0].numel() // 3) or 1
        return {"arch": "mlp", "stem": "cifar", "width": width, "image_size": size}
    first = weights["conv1.weight"]
    arch = "resnet34" if "layer3.5.conv1.weight" in weights else "resnet18"
    arch = "resnet50" if "layer1.0.conv3.weight" in weights else arch
    stem = "cifar" if first.shape[2:] == (3, 3) else "imagenet"
    return {"arch": arch, "stem": stem, "width": len(first), "image_size": None}


# ------------------------------------------------------------------------------------------------- projectors


def projector(kind, dim, hidden=None, out=128, final_bn=False):
    """The map from h (B, dim) to z, a module. UserError for an unknown kind or sizes that do not fit.

    mlp: Linear, BatchNorm, ReLU, Linear, no biases, hidden = dim (SimCLR). linear: to `out` (DirectCLR table
    1). none: h. final_bn: mlp with a BatchNorm at its end, as in lightly and DirectCLR's public code.
    """
    hidden = dim if hidden is None else hidden
    if kind not in ("mlp", "linear", "none"):
        raise UserError(f"projector {kind!r} is none of mlp, linear, none")
    if min(dim, hidden, out) < 1:
        raise UserError(f"hidden {hidden}, out {out} must be >= 1")
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(dim, out, bias=False)
    layers = [nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    layers.append(nn.Linear(hidden, out, bias=False))
    return nn.Sequential(*layers, *[nn.BatchNorm1d(out)] * final_bn)


def embed(encoder, projector, x1, x2):
    """z1, z2 (B, m) of two views, each passed alone, so that BatchNorm's statistics are those of one view.

    Every method gets its embeddings here: those of the whole batch, from all processes.
    """
    both = projector(encoder(x1)), projector(encoder(x2))
    return tuple(map(gather, both)) if processes() > 1 else both


# ----------------------------------------------------------------------------------------------------- losses


def full_precision(*tensors):
    """The tensors, those of half precision as float32."""
    return [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]


def info_nce(z1, z2, temperature=0.2, cross_view=False):
    """InfoNCE of the embeddings z1, z2 (B, m) of two views: a scalar, at least float32 whatever the autocast.

    cross_view=False: 2B anchors, the positive is the other view, 2B - 2 negatives (SimCLR; LL eq. 1 with the
    logarithm and the temperature that its typesetting lost; SparseHead eq. 2). cross_view=True: B - 1
    negatives, from the other view only (DirectCLR section 6.2). UserError unless B >= 2 and temperature > 0.
    """
    if z1.ndim != 2 or z1.shape != z2.shape or len(z1) < 2 or not temperature > 0:
        found = f"{tuple(z1.shape)}, {tuple(z2.shape)}, {temperature}"
        raise UserError(f"info_nce takes (B >= 2, m) twice and a temperature > 0, not {found}")
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (F.normalize(z, dim=1) for z in full_precision(z1, z2))
        b = torch.arange(len(z1), device=z1.device)
        if cross_view:
            logits = z1 @ z2.T / temperature
            return (F.cross_entropy(logits, b) + F.cross_entropy(logits.T, b)) / 2
        z = torch.cat([z1, z2])
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = (z @ z.T / temperature).masked_fill(itself, -math.inf)
        return F.cross_entropy(logits, torch.cat([b + len(b), b]))


def byol_loss(p, z):
    """2 - 2 cos(p, z), mean over B, of predictions p and targets z (..., B, m), which get no gradient: (...)
    (BYOL eq. 2, one direction of two)."""
    p, z = full_precision(p, z.detach())
    return (2 - 2 * F.cosine_similarity(p, z, dim=-1)).mean(-1)


# -------------------------------------------------------------------------------------------------- penalties
# A weight is (out, in), or a convolution's (out, in, kh, kw) taken as (out, in · kh · kw).

# LL eq. 11; WERank's toy models (LL gives none); SparseHead section 5.2; ours, as lastlayer. A new penalty is
# an entry here and one in `regularizer`.
REG_WEIGHT = {"none": 0.0, "lastlayer": 1.0, "werank": 0.1, "sparsehead": 1e-4, "lastlayer-bn": 1.0}


def _wide(matrix):
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _gram_error(weight):
    """G - I of the smaller Gram matrix G, WWᵀ or WᵀW, in float32, for a symmetric function of it, of which
    the first derivatives are right, not the second."""
    if weight.ndim == 4 and not weight.is_contiguous():
        # channels_last: so the gradient has its layout, and autograd copies none; G's norm knows no order
        weight = weight.permute(0, 2, 3, 1)
    with torch.autocast(weight.device.type, enabled=False):
        matrix = _wide(*full_precision(weight.flatten(1)))
        # both factors of a symmetric G have the same gradient: one is computed and counts twice
        half = matrix @ matrix.detach().T
        return 2 * half - half.detach() - torch.eye(len(half), dtype=half.dtype, device=half.device)


def lastlayer_penalty(weight):
    """‖WWᵀ - I‖²_F (LL eq. 11), on the smaller Gram matrix: the larger adds the constant |out - in|."""
    return _gram_error(weight).square().sum()


def werank_penalty(weights):
    """Σ_l ‖W_lᵀW_l - I‖_F of weights W_l, not squared (WERank), on the smaller Gram matrix of each."""
    return sum(torch.linalg.vector_norm(_gram_error(weight)) for weight in weights)


def sparsehead_penalty(weight):
    """‖W‖_{2,1} = Σ_j ‖W_{:,j}‖₂, j the input features (SparseHead eq. 12)."""
    return torch.linalg.vector_norm(*full_precision(weight.flatten(1)), dim=0).sum()


def batchnorm_penalty(norm):
    """Σ_i (γ_i - 1)² + β_i², how far a BatchNorm's scale and shift are from where they start; 0 for None.

    Ours: with γ = 1 and β = 0 half of the images open a unit, whatever the weights in front are.
    """
    return 0.0 if norm is None else (norm.weight - 1).square().sum() + norm.bias.square().sum()


def trained_linears(projector):
    """The projector's linear layers that train."""
    return [m for m in projector.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]


NO_LINEAR = "--reg-on projector, --reg sparsehead need a projector with a trained linear layer"


def _penalised(args):
    """What --reg acts on: auto, encoder or projector. UserError for a combination that makes no sense."""
    if args.reg == "none" and (args.reg_weight or args.reg_on):
        raise UserError("--reg-weight and --reg-on need --reg lastlayer, werank or sparsehead")
    places = {"sparsehead": ("projector", "auto"), "lastlayer-bn": ("encoder",)}.get(args.reg)
    if places and args.reg_on and args.reg_on not in places:
        raise UserError(f"--reg {args.reg} acts on the {places[0]}: --reg-on {args.reg_on} makes no sense")
    return places[0] if places else args.reg_on or "auto"


def regularizer(args, encoder, projector):
    """The penalty --reg on what --reg-on names, times --reg-weight: a function without arguments.

    lastlayer-bn is lastlayer on the encoder, plus `batchnorm_penalty` of the BatchNorm behind it. werank
    takes every linear and convolution weight of encoder and projector, or of the one named. UserError for a
    combination that makes no sense.
    """
    on = _penalised(args)
    of_projector = trained_linears(projector)
    if on == "projector" and not of_projector:
        raise UserError(NO_LINEAR)
    layer, norm = encoder_end(encoder)
    if of_projector and on != "encoder":
        layer = of_projector[-1]
    elif norm is None and args.reg.startswith("lastlayer") and not isinstance(encoder, MLP):
        names = [name for name, module in encoder.named_modules() if module is layer]
        note(f"--reg {args.reg} acts on {names[0]}, the last weight that the encoder registers")
    of_encoder = [m for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    every = {"auto": of_encoder + of_projector, "encoder": of_encoder, "projector": of_projector}[on]
    penalty = {
        "none": lambda: 0.0,
        "lastlayer": lambda: lastlayer_penalty(layer.weight),
        "werank": lambda: werank_penalty(m.weight for m in every),
        "sparsehead": lambda: sparsehead_penalty(layer.weight),
        "lastlayer-bn": lambda: lastlayer_penalty(layer.weight) + batchnorm_penalty(norm),
    }[args.reg]
    return lambda: args.reg_weight * penalty()


# -------------------------------------------------------------------------------------------------- arguments


class Parser(argparse.ArgumentParser):
    """argparse with the script's docstring as it is, no abbreviations, errors of one line."""

    def __init__(self, doc):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, allow_abbrev=False, formatter_class=raw)

    def error(self, message):
        fail(f"{self.prog}: error: {message}", 2)


def number(kind, low, high=2**20):
    """An argparse type: an int or float (`kind`) from low to high."""

    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low} to {high}")
        return value

    parse.__name__ = kind.__name__
    return parse


def size(text):
    """An argparse type: dimensions, a whole number, or with a point a share of D, for `resolve`."""
    value = float(text) if "." in text else int(text)
    if not (0 < value <= 1 if "." in text else 1 <= value <= 2**20):
        raise argparse.ArgumentTypeError(f"{text} is no whole number >= 1, nor a share of D such as 0.5")
    return value


class OneOrTwo(argparse.Action):
    """Stores a number, or a pair of them."""

    def __call__(self, parser, namespace, values, option=None):
        if len(values) > 2:
            raise argparse.ArgumentError(self, f"one number or two, not {len(values)}")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def shared_arguments(parser):
    """Adds what pretraining and fine-tuning have. Returns what adds others on the data, and on the run."""
    data = parser.add_argument_group("data").add_argument
    data("--dataset", default="cifar10", help="cifar10, cifar100, stl10, shapes, .npz, folder (cifar10)")
    data("--data-dir", type=os.path.expanduser, default="data", help="of named sets, downloaded once (data)")
    data("--image-size", type=number(int, 8, 4096), help="pixels; a folder needs it (the images'; an MLP's)")
    data("--skip-broken", action="store_true", help="leave unreadable images of a folder out")
    run = parser.add_argument_group("run").add_argument
    run("--seed", type=number(int, 0, 2**31), default=0, help="of all that is drawn (0)")
    run("--device", help="cpu, cuda, cuda:1 … (cuda where there is one)")
    run("--precision", choices=("bf16", "float32"), help="(bf16 on cuda from 8.0 on, else float32)")
    run("--out", type=Path, help="the run's folder (runs/<dataset>-<kind>-seed<seed>)")
    kind = parser.add_mutually_exclusive_group().add_argument
    kind("--resume", action="store_true", help="continue the folder's run; start it where there is none")
    kind("--overwrite", action="store_true", help="replace the folder's run")
    return data, run


def arguments(doc):
    """A parser with the arguments that every method has; `doc` is the script's docstring."""
    parser = Parser(doc)
    data, run = shared_arguments(parser)
    data("--train-size", type=number(int, 2, 2**40), help="size of a class-balanced subset to train on (all)")
    run("--compile", action=argparse.BooleanOptionalAction, help="torch.compile loss and views (on for cuda)")
    run("--eval-every", type=number(int, 0), default=25, help="epochs between kNNs; 0: only at the end (25)")
    add = parser.add_argument_group("augmentation (LL and lightly on CIFAR)").add_argument
    shares = {"type": number(float, 1e-9, 1), "nargs": 2, "metavar": ("LOW", "HIGH")}
    add("--crop-scale", default=(0.08, 1.0), **shares, help="share of the area (0.08 1; SparseHead 0.2 1)")
    strengths = {"type": number(float, 0), "nargs": 4, "metavar": ("B", "C", "S", "H")}
    strengths |= {"default": (0.4, 0.4, 0.4, 0.1)}
    add("--jitter", **strengths, help="bright, contrast, saturation, hue (0.4 0.4 0.4 0.1)")
    probability = number(float, 0, 1)
    add("--grey-p", type=probability, default=0.2, help="probability of greyscale (0.2; SparseHead 0.1)")
    odds = {"type": probability, "nargs": "+", "action": OneOrTwo, "metavar": "P", "default": 0.0}
    add("--blur-p", **odds, help="probability of Gaussian blur, or of each view (0; DirectCLR 1.0 0.1)")
    add("--solarize-p", **odds, help="of solarization (0; DirectCLR 0 0.2)")
    add = parser.add_argument_group("encoder").add_argument
    archs = ("resnet18", "resnet34", "resnet50", "mlp")
    add("--arch", choices=archs, default="resnet18", help="mlp: three linear layers, D = 4 widths (resnet18)")
    add("--width", type=number(int, 1, 4096), default=64, help="channels of the first stage (64)")
    add("--stem", choices=("auto", "cifar", "imagenet"), default="auto", help="auto: cifar to 64 pixels")
    add = parser.add_argument_group("penalty on weights").add_argument
    add("--reg", choices=REG_WEIGHT, default="none", help="(none; LL eq. 11, WERank, SparseHead, ours)")
    weights = "(lastlayer, lastlayer-bn 1, werank 0.1, sparsehead 1e-4)"
    add("--reg-weight", type=number(float, 0), help=weights)
    add("--reg-on", choices=("auto", "encoder", "projector"), help="auto: the projector if it trains (auto)")
    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=number(int, 1), default=200, help="(200: lightly; LL is silent)")
    add("--batch-size", type=number(int, 2), default=128, help="images, each in two views (128: LL)")
    names = ("sgd", "adam", "lars")
    add("--optimizer", choices=names, default="sgd", help="(sgd 0.9: LL; SparseHead adam, DirectCLR lars)")
    add("--lr", type=number(float, 1e-12), help="(sgd 0.06 batch/128, adam 3e-3, lars 0.3 batch/256)")
    add("--warmup-epochs", type=number(int, 0), default=0, help="linear to --lr; then cosine to 0 (0)")
    add("--weight-decay", type=number(float, 0), help="on every parameter (sgd 5e-4, adam and lars 1e-6)")
    return parser


def projector_arguments(parser, kinds, method):
    """A group of arguments with --projector, of these kinds, and --no-projector, to add the sizes to."""
    group = parser.add_argument_group("projector, from h to z")
    add = group.add_mutually_exclusive_group().add_argument
    add("--projector", choices=kinds, default="mlp", help=f"(mlp: {method})")
    add("--no-projector", dest="projector", action="store_const", const="none", help="z = h")
    return group


def check_projector(args, uses):
    """UserError for a size that --projector has no use for, or a penalty on layers that it does not have.

    uses: {"rank": the kinds that have one, …}.
    """
    # a kind of one's own may have such a layer: `regularizer` looks
    without = ("none", "orthogonal", "diagonal", "lowrank", "lowrank-diagonal")
    if _penalised(args) == "projector" and args.projector in without:
        raise UserError(NO_LINEAR)
    for flag, kinds in uses.items():
        if getattr(args, flag) and args.projector not in kinds:
            flag = flag.replace("_", "-")
            raise UserError(f"--{flag} needs --projector {' or '.join(kinds)}, not {args.projector}")


def resolve(args):
    """A copy of the arguments: defaults that depend on others filled in, shares of D as dimensions.

    UserError for a penalty or an augmentation that makes no sense.
    """
    _penalised(args)
    Augment(args.image_size, args.crop_scale, jitter=args.jitter)
    rates = {"sgd": 0.06 * args.batch_size / 128, "adam": 3e-3, "lars": 0.3 * args.batch_size / 256}
    decays = {"sgd": 5e-4, "adam": 1e-6, "lars": 1e-6}
    defaults = {"lr": rates[args.optimizer], "weight_decay": decays[args.optimizer]}
    defaults |= {"reg_weight": REG_WEIGHT[args.reg]}
    given = {key: value for key, value in vars(args).items() if value is not None}
    args = argparse.Namespace(**vars(args) | defaults | given)
    if args.stem == "auto":
        args.stem = "cifar" if args.image_size <= 64 else "imagenet"
    dim = encoder_dim(args.arch, args.width)
    for key in ("hidden", "embedding", "rank", "fixed_dims", "dim"):
        if isinstance(getattr(args, key, None), float):
            setattr(args, key, max(1, round(getattr(args, key) * dim)))
    return args


def prepare(args, resolve=resolve):
    """(arguments, with device, precision and every default filled in; data, on the device). Seeds torch.

    resolve: the script's own. UserError for a device, compiler, data or sizes that can't be used.
    """
    join_processes()
    args = _choose_device(args)
    batch = args.batch_size
    if batch % processes() or batch < 2 * processes():
        raise UserError(f"--batch-size {batch} can't be shared by {processes()} processes, 2 images each")
    if args.epochs and args.warmup_epochs >= args.epochs:
        raise UserError(f"--warmup-epochs {args.warmup_epochs} leaves none of --epochs {args.epochs}")
    # what this refuses should not wait for a download or for a folder to be packed: their size is known
    if pixels := args.image_size or {"cifar10": 32, "cifar100": 32, "stl10": 96}.get(args.dataset):
        resolve(argparse.Namespace(**vars(args) | {"image_size": pixels}))
    data = in_turn(lambda: load_dataset(args.dataset, args.data_dir, args.image_size, args.skip_broken))
    data = subset(data, args.train_size) if args.train_size else data
    if len(data.x_train) < batch:
        raise UserError(f"--batch-size {batch} exceeds the {len(data.x_train)} training images")
    if data.x_train.shape[2] != data.x_train.shape[3]:
        raise UserError(f"images of {tuple(data.x_train.shape[2:])} pixels need an --image-size")
    args.image_size = data.x_train.shape[2]
    args = resolve(args)
    torch.manual_seed(args.seed)
    return args, _to_device(data, torch.device(args.device))


def _to_device(data, device):
    """The data on the device, but for images that half its free memory is too little for. Those in files stay
    there on a CPU, which keeps in memory what it has read."""
    found = data._replace(y_train=data.y_train.to(device), y_test=data.y_test.to(device))
    if device.type == "cpu":
        return found
    if data.x_train.nbytes + data.x_test.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return found._replace(mapped=True)
    return found._replace(x_train=data.x_train.to(device), x_test=data.x_test.to(device), mapped=False)


def _choose_device(args):
    """The arguments with device, precision and compile filled in, each tried."""
    args = argparse.Namespace(**vars(args))
    asked = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    count = processes()
    if count > 1 and asked.startswith("cuda:"):
        raise UserError(f"--device {asked} is one GPU for {count} processes: --device cuda is one for each")
    if count > 1 and asked == "cuda" and torch.cuda.is_available():
        here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        if here > torch.cuda.device_count():
            raise UserError(f"{here} processes need as many GPUs; there are {torch.cuda.device_count()}")
        asked = f"cuda:{os.environ.get('LOCAL_RANK', process_index())}"
        torch.cuda.set_device(asked)
    with refusing(f"--device {asked} can't be used"):
        device = torch.zeros(1, device=asked).device
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("cpu and cuda are supported")
        torch.ones(1, device=device).add_(1).item()  # PyTorch may have no kernels for so old a GPU
    cuda = device.type == "cuda"
    args.device = str(device) if cuda else "cpu"  # cpu:0 too
    # below 8.0 bf16 is emulated, or crashes: is_bf16_supported() says yes to the first
    has_bf16 = not cuda or torch.cuda.get_device_capability(device) >= (8, 0)
    if args.precision == "bf16" and not has_bf16:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"--precision bf16 needs compute capability 8.0; {name} has less")
    args.precision = args.precision or ("bf16" if cuda and has_bf16 else "float32")
    wanted = args.compile
    args.compile = cuda if wanted is None else wanted
    try:
        if args.compile:  # one that fails should do so before anything is written
            torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a compiler says
        if wanted:
            raise UserError(f"--compile can't be used here ({brief(error)}): --no-compile") from None
        note(f"torch.compile can't be used here ({brief(error)}): training eagerly")
        args.compile = False
    return args


# -------------------------------------------------------------------------------------------------- processes
# Started by torchrun, every process has a device, a share of each batch, and the same weights. All embeddings
# meet in `embed`, so every process computes the loss of the whole batch. Process 0 evaluates, writes, prints.


def processes():
    """How many torchrun has started, once they have met; 1 before and without it."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index():
    """This process's number."""
    return dist.get_rank() if processes() > 1 else 0


_STORE = []  # what all processes see


def join_processes():
    """Meets the processes that torchrun's environment speaks of, if there are others."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or processes() > 1:
        return
    to_come = datetime.timedelta(minutes=5)
    to_answer = datetime.timedelta(days=1)  # others wait while the first packs images or evaluates
    # Numbers on the host are exchanged too, which NCCL can't; with no backend named there may be NCCL alone.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    # it waits in C++, where no handler is called
    with refusing("WORLD_SIZE is set, and the processes can't meet"), on_signals(signal.SIG_DFL):
        store, number, count = next(dist.rendezvous("env://", timeout=to_come))
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=to_answer)
        store.set_timeout(to_answer)  # NCCL meets through it, at the first exchange
    _STORE.append(store)
    if process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, it stays open


def leave_processes():
    """Ends the exchange; from here on every process is alone."""
    if processes() > 1:
        dist.destroy_process_group()


def first_process(function):
    """What function() returns or what UserError or OSError it raises in process 0, in every process."""
    found = [in_turn(lambda: None if process_index() else function())]
    if processes() > 1:
        dist.broadcast_object_list(found)
    return found[0]


def in_turn(function):
    """function() in process 0, then in the others, which find the files that it made. A UserError or OSError
    of one is a UserError of all."""
    found = error = None
    for mine in (process_index() == 0, process_index() > 0):
        try:
            found = function() if mine else found
        except (UserError, OSError) as raised:
            error = str(raised)
        errors = [error] * processes()
        if processes() > 1:
            dist.all_gather_object(errors, error)
        if said := [text for text in errors if text is not None]:
            raise UserError(said[0])
    return found


def max_over_processes(number):
    """The largest of all processes' numbers, whole ones. Hosts wait for each other here, devices do not."""
    if processes() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.item()


def gather(z):
    """z (B, m) of the whole batch from each process's own (B / processes, m).

    Every process computes the same loss. `average_gradients` divides by their number, so each one's own rows
    of the gradient are multiplied by it.
    """
    own = z.contiguous().view_as(z)  # a tensor of its own: z may have other uses
    if own.requires_grad:
        own.register_hook(lambda gradient: processes() * gradient)
    parts = [torch.empty_like(own) for _ in range(processes())]
    dist.all_gather(parts, own.detach())
    parts[process_index()] = own
    return torch.cat(parts)


def average_gradients(parameters):
    """Makes their gradients the mean over all processes, in one exchange."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes()
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients)])


# --------------------------------------------------------------------------------------------------- training


def optimizer(args, parameters):
    """The optimiser that --optimizer names, fused on CUDA."""
    options = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": args.device != "cpu"}
    if args.optimizer == "adam":
        return torch.optim.Adam(parameters, **options)
    kind = {"sgd": torch.optim.SGD, "lars": LARS}[args.optimizer]
    return kind(parameters, momentum=0.9, **options)


class LARS(torch.optim.SGD):
    """SGD whose update g + wd · w of each weight is scaled to 1e-3 · ‖w‖ / ‖g + wd · w‖ before the momentum
    (You et al. 2017, eq. 6, as DirectCLR's public code has it); biases and BatchNorms (1-d) keep g."""

    def __init__(self, parameters, weight_decay, **options):
        super().__init__(parameters, **options)
        self.decay = weight_decay  # SGD itself has none

    @torch.no_grad()
    def step(self):
        """One update of every parameter with a gradient; nothing waits for the device."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None and p.ndim > 1):
                p.grad.add_(p, alpha=self.decay)
                size = torch.linalg.vector_norm(p)
                ratio = 1e-3 * size / torch.linalg.vector_norm(p.grad)
                p.grad.mul_(torch.where((size > 0) & ratio.isfinite(), ratio, 1))
        super().step()


def learning_rates(args, steps):
    """That of every step of a run: linear to --lr in --warmup-epochs, then a cosine to 0."""
    warmup = args.warmup_epochs * steps // args.epochs
    turns = (math.pi * step / (steps - warmup) for step in range(steps - warmup))
    rising = [args.lr * (step + 1) / warmup for step in range(warmup)]
    return rising + [args.lr * (1 + math.cos(turn)) / 2 for turn in turns]


def decay_horizon(args, steps):
    """H = weight decay · Σ lr / (1 - momentum): a weight without a gradient shrinks by e^(-H). None but for
    SGD: Adam's decay passes through its moments, LARS scales it."""
    if args.optimizer != "sgd":
        return None
    return args.weight_decay * sum(learning_rates(args, steps)) / (1 - 0.9)


def epoch_order(seed, epoch, n, device):
    """The order of n images in an epoch (N,), the same for every method."""
    generator = torch.Generator(device).manual_seed(seed * 100_003 + epoch)
    return torch.randperm(n, generator=generator, device=device)


@contextlib.contextmanager
def on_signals(action):
    """Meanwhile SIGINT and SIGTERM call action(number, frame), or what signal.signal takes."""
    before = {}
    try:
        with contextlib.suppress(ValueError):  # only the main thread can
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, action)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def training_step(args, encoder, projector, loss, modules=()):
    """(step, model, opt, generator): step(x) takes uint8 images (B, 3, H, W) through two views, loss(x1, x2),
    gradients and the optimiser, and returns the loss, which is still on its device. Of several processes each
    takes its share of the images.

    With --compile the operations of the views are compiled, and in a single process the loss too; on CUDA the
    passes through the networks are then replayed as CUDA graphs, and nothing in a step waits for the device.
    What else this process has compiled is dropped, and compiled again where it is called.
    """
    cuda = args.device != "cpu"
    torch.backends.cudnn.benchmark = True  # the shapes stay, so the fastest convolutions are worth a search
    # Views have a generator of their own: runs of one seed share them, whatever else a method draws on the
    # device. On CUDA the order of the jitter is drawn on the host, from torch's own generator.
    generator = torch.Generator(args.device).manual_seed(args.seed)
    odds = {"grey_p": args.grey_p, "blur_p": args.blur_p, "solarize_p": args.solarize_p}
    augment = Augment(args.image_size, args.crop_scale, jitter=args.jitter, **odds)
    model = nn.ModuleDict({"encoder": encoder, "projector": projector, "others": nn.ModuleList(modules)})
    if processes() > 1 and cuda:
        if any(map(_is_batchnorm, (encoder, projector, *modules))):  # it would be replaced in the model alone
            raise UserError("several processes need a BatchNorm inside another module, as nn.Sequential is")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif processes() > 1 and any(map(_is_batchnorm, model.modules())):
        note(f"on a CPU each of the {processes()} processes has BatchNorm statistics of its own")
    model = model.to(args.device)
    layout = memory_format(encoder)  # of an encoder on its device
    model = model.to(memory_format=layout)
    if processes() > 1:  # weights may have been drawn before `prepare` seeded torch
        for value in filter(torch.is_tensor, model.state_dict().values()):
            dist.broadcast(value, 0)
    trained = [p for p in model.parameters() if p.requires_grad]
    opt = optimizer(args, trained)

    def loss_of(views):
        return loss(*(view.contiguous(memory_format=layout) for view in views.chunk(2)))

    if args.compile:
        torch.compiler.reset()  # it keeps 8 versions of a function: a ninth that differs would run eagerly
        augment.compile()
    if args.compile and processes() == 1:  # exchange between processes breaks graphs
        # the matrix exponential of a parametrisation asks the host, which a CUDA graph can't
        graphs = cuda and not any(map(nn.utils.parametrize.is_parametrized, model.modules()))
        how = {"mode": "reduce-overhead"} if graphs else {"options": {"layout_optimization": cuda}}
        loss_of = torch.compile(loss_of, dynamic=False, **how)  # on a CPU memory_format chose the layout

    def step(x):
        views = augment(torch.cat([x, x]), generator)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            value = loss_of(views)
        if not torch.is_tensor(value) or value.ndim:
            raise UserError("the loss of two views must be a tensor without dimensions")
        value.backward()
        if processes() > 1:
            average_gradients(trained)
        opt.step()
        opt.zero_grad()
        return value.detach()

    return step, model, opt, generator


SAVE_EVERY = 30  # seconds: what a kill can cost
PROGRESS = ("step", "seconds", "metrics", "start")  # attributes of a Training that its checkpoint holds


class Training:
    """A run in progress: networks, optimiser, generators, step, and what has been measured so far."""

    def __init__(self, args, data, made, per_epoch, probe=None):
        """made: what `training_step` returns. per_epoch: steps an epoch. probe: that of `fit`."""
        if data.x_train.shape[2:] != (args.image_size, args.image_size):
            raise UserError(f"images {tuple(data.x_train.shape)} are not of --image-size {args.image_size}")
        self.train_step, self.model, self.optimizer, self.views = made
        self.args = args
        self.data = data
        self.probe = probe
        self.per_epoch = per_epoch
        self.epoch_images = per_epoch * args.batch_size
        self.steps = args.epochs * per_epoch
        self.cuda = args.device != "cpu"
        self.compiling = args.compile  # until the first step is done
        self.device = torch.device(args.device)
        self.step = 0
        self.seconds = 0.0  # of training: neither evaluating nor saving
        self.since = None  # when its clock was last started
        # The first step is saved too: a full disk shows at once, not after an epoch.
        self.last_save = -math.inf
        self.epoch_loss = torch.zeros((), device=self.device)
        self.metrics = []  # the lines of metrics.jsonl
        self.start = None  # statistics before the first step
        self.frozen = None  # `representations` after the last step

    def begin(self):
        """Says how long the run is, and measures its networks before the first step."""
        horizon = decay_horizon(self.args, self.steps)
        text = f"none, for {self.args.optimizer}" if horizon is None else f"{horizon:.3g}"
        encoder, projector, _ = self.model.values()
        print(f"{self.steps} steps, D = {encoder.dim}, decay horizon H = {text}")
        self.start = self.start or start_statistics(encoder, projector, self.data)

    def remaining_batches(self):
        """The images of every step to come, in the order that the seed gives each epoch."""
        for epoch in range(self.step // self.per_epoch, self.args.epochs):
            order = epoch_order(self.args.seed, epoch, len(self.data.x_train), self.device)
            done = self.step % self.per_epoch
            yield from batches(self.data, order, self.args.batch_size, done, self.device)

    def train_on(self, images, lr):
        """One step. A CPU checks the loss at once; a GPU would have to wait for it, so once an epoch."""
        self.optimizer.param_groups[0]["lr"] = lr
        # The step that compiles takes a minute and has nothing to lose: a signal ends the process at once.
        with on_signals(signal.SIG_DFL) if self.compiling else contextlib.nullcontext():
            value = self.train_step(images)
        self.compiling = False
        if not self.cuda:
            self.require_finite(value)
        self.epoch_loss += value
        self.step += 1

    @contextlib.contextmanager
    def paused(self):
        """What happens meanwhile does not count as training."""
        self.epoch_loss.item()  # waits for the device
        self.seconds += time.perf_counter() - self.since
        yield
        self.since = time.perf_counter()

    def require_finite(self, *tensors):
        """Ends the program with exit code 1 unless all values are finite. It waits for the device."""
        if not all(torch.isfinite(tensor).all() for tensor in tensors):
            why = f"loss, weights or features are not finite after step {self.step}"
            advice = "try a smaller learning rate or penalty. checkpoint.pt, if there, is the last good one"
            fail(f"{why}: {advice}", 1)

    def end_epoch(self, path):
        """The epoch's line, which metrics.jsonl gets."""
        self.require_finite(self.epoch_loss)
        before = self.metrics[-1]["seconds"] if self.metrics else 0.0
        line = {
            "epoch": self.step // self.per_epoch,
            "loss": self.epoch_loss.item() / self.per_epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": self.seconds,
            "images_per_second": self.epoch_images / (self.seconds - before),
        }
        self.metrics.append(line | self.evaluation(line["epoch"]))
        self.epoch_loss.zero_()
        if process_index() == 0:
            write_lines(path, self.metrics)
        return self.metrics[-1]

    def evaluation(self, epoch):
        """kNN and ranks, every --eval-every epochs and after the last, in the first process."""
        due = self.args.eval_every and epoch % self.args.eval_every == 0
        if process_index() or not (due or self.step == self.steps):
            return {}
        self.require_finite(*self.model.parameters())
        frozen = representations(self.model["encoder"], self.data)
        self.require_finite(frozen[0], frozen[2])
        self.frozen = frozen if self.step == self.steps else None  # gigabytes of ImageNet
        return {"knn200": knn_accuracy(*frozen), **rank_statistics(frozen[2])}

    def results(self, out):
        """Evaluates a run that is trained: what result.json holds of it. Writes encoder.pt."""
        encoder, projector, _ = self.model.values()
        weights = {key: value.cpu().contiguous() for key, value in encoder.state_dict().items()}
        write_tensors(out / "encoder.pt", weights)
        frozen = self.frozen or representations(encoder, self.data)
        try:
            found = evaluate(encoder, projector, self.data, frozen)
            found |= self.probe(*frozen) if self.probe else {}
        except UserError as error:  # no bad input: embeddings have overflowed
            fail(f"the run can't be evaluated: {error}", 1)
        history = [line for line in self.metrics if "knn200" in line]
        best = max(history, key=lambda line: line["knn200"])
        return found | {
            "best": {"knn200": best["knn200"], "epoch": best["epoch"]},
            "seconds": self.seconds,
            "images_per_second": self.steps * self.args.batch_size / self.seconds,
            "decay_horizon": decay_horizon(self.args, self.steps),
            "start": self.start,
            "history": history,
        }

    def save(self, path):
        """Writes the checkpoint; of several processes the first does. Weights that are not finite end it all.

        It holds all that a run needs to be continued to the same weights.
        """
        if process_index():
            return
        with self.paused():
            self.require_finite(self.epoch_loss, *self.model.parameters())
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "views": self.views.get_state(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(self.device) if self.cuda else None,
                "epoch_loss": self.epoch_loss,
                **{key: getattr(self, key) for key in PROGRESS},
            }
            write_tensors(path, state)
            self.last_save = time.perf_counter()

    def load(self, state):
        """Continues from what `save` wrote."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.views.set_state(state["views"])
        torch.set_rng_state(state["rng"])
        if self.cuda:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.epoch_loss += state["epoch_loss"].to(self.device)
        for key in PROGRESS:
            setattr(self, key, state[key])
        if len(self.metrics) != self.step // self.per_epoch:
            raise ValueError(f"step {self.step}, {len(self.metrics)} epochs")


def fit(args, data, encoder, projector, loss, name, probe=None, modules=()):
    """Trains the modules to minimise loss(x1, x2), a scalar of two views, and evaluates them.

    args: those that `prepare` returned. name: the row's. probe: a function of `representations` that gives
    further results. modules: others to train and to save, such as a loss with parameters. On CUDA the loss of
    a single process is compiled: no .item() in it. Returns what result.json holds, but None in all processes
    but the first. The run's folder gets config.json, metrics.jsonl (a line an epoch), checkpoint.pt,
    encoder.pt (torchvision's names) and result.json. Interrupted at any moment and continued with --resume, a
    run ends with the same weights, on a CPU bit for bit, if the loss keeps what it needs in modules and draws
    from torch's own generators.
    """
    encoder_end(encoder)  # which it has, or is refused
    made = training_step(args, encoder, projector, loss, modules)
    run = Training(args, data, made, len(data.x_train) // args.batch_size, probe)
    features(encoder, None, data.x_test[:2], ("h",))  # an h, or it is refused
    return complete(run, name)


def complete(run, name):
    """Carries out a Training in its folder, from its start or from where it was. Returns what `fit` does."""
    first = process_index() == 0  # the process that writes, prints and evaluates
    out, config, checkpoint, result = first_process(lambda: open_run(run.args, name, run.data))
    if result:
        leave_processes()
        return result if first else None
    torch.manual_seed(run.args.seed)
    if checkpoint is not None:
        with refusing(f"{out / 'checkpoint.pt'} does not fit, --overwrite starts anew"):
            run.load(checkpoint)
    if first:
        write_lines(out / "metrics.jsonl", run.metrics)
    run.begin()
    run.model.train()
    rates = learning_rates(run.args, run.steps)
    quiet = None if first else True  # None: unless it is a terminal
    bar = tqdm(total=run.steps, initial=run.step, unit="img", unit_scale=run.args.batch_size, disable=quiet)
    stop = 0
    signals = [0]  # and those that come, also in the midst of a step
    with on_signals(lambda number, _: signals.append(number)), bar:
        run.since = time.perf_counter()
        for images in run.remaining_batches():
            run.train_on(images, rates[run.step])
            bar.update()
            if run.step % run.per_epoch == 0:
                with run.paused():
                    line = run.end_epoch(out / "metrics.jsonl")
                bar.write("  ".join(f"{key} {x:.5g}" for key, x in line.items() if not isinstance(x, list)))
            stop = max_over_processes(signals[-1])
            if stop or run.step == run.steps or time.perf_counter() - run.last_save > SAVE_EVERY:
                run.save(out / "checkpoint.pt")
            if stop:
                break
    leave_processes()
    stop = stop or (first and signals[-1])  # the last save may have met one
    if stop:
        fail(f"stopped after step {run.step} of {run.steps}; --resume continues", 128 + stop)
    if not first:
        return None
    result = {"config": config, **run.results(out)}
    write_json(out / "result.json", result)
    kinds = ("knn200", "knn5", "linear_top1", "linear_top5", "top1", "top5")
    print(out, *(f" {key} {result[key]:.2f}" for key in kinds if key in result))
    return result


# ------------------------------------------------------------------------------------------------- evaluation

LAYERS = ("h", "z", "penultimate", "layer3", "projector_hidden")


def inputs(encoder, x):
    """uint8 images x (B, 3, H, W), normalised, on the encoder's device and in its memory format."""
    x = normalize(x.to(next(encoder.parameters()).device))
    return x.contiguous(memory_format=memory_format(encoder))


def at_once(x):
    """How many of the images x are evaluated at once: 256, fewer of those beyond 256 x 256 pixels."""
    return max(2, min(256, 2**24 // (x.shape[2] * x.shape[3])))


@torch.no_grad()
def features(encoder, projector, x, layers=LAYERS):
    """{layer: float32 (N, dim)} of uint8 images x (N, 3, H, W), not augmented; BatchNorm statistics stay.

    penultimate: what a ResNet's last block sees, or the MLP's last layer; layer3: what a ResNet's last stage
    sees, both pooled; projector_hidden: what the last linear layer of several in the projector sees. Layers
    that the networks do not have are left out; projector may be None.
    """
    modules = nn.ModuleList([encoder, projector or nn.Identity()])
    training = encoder.training
    modules.eval()
    seen_by = {"penultimate": encoder.layer3} if isinstance(encoder, MLP) else {}
    if _is_resnet(encoder):
        seen_by = {"penultimate": encoder.layer4[-1], "layer3": encoder.layer4}
    linears = [m for m in modules[1].modules() if isinstance(m, nn.Linear)]
    if linears[1:]:
        seen_by["projector_hidden"] = linears[-1]
    found = {}

    def keep(layer, _, inputs):
        found[layer] = inputs[0].flatten(2).mean(2) if inputs[0].ndim == 4 else inputs[0]

    hooks = [module.register_forward_pre_hook(partial(keep, layer)) for layer, module in seen_by.items()]
    parts = []
    for block in x.split(at_once(x)):
        h = found["h"] = encoder(inputs(encoder, block))
        if not torch.is_tensor(h) or h.ndim != 2:
            what = tuple(h.shape) if torch.is_tensor(h) else type(h).__name__
            raise UserError(f"the encoder must give h (B, D), not {what}")
        if projector is not None:
            found["z"] = projector(found["h"])
        parts.append({layer: found[layer] for layer in layers if layer in found})
    for hook in hooks:
        hook.remove()
    modules.train(training)
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def representations(encoder, data):
    """train_h (N, D), train_y (N,), test_h (M, D), test_y (M,) of the labelled images."""
    labelled = data.y_train >= 0
    whole = labelled.all()  # to index would copy every image
    x_train = data.x_train if whole else data.x_train[labelled.to(data.x_train.device)]
    train_h, test_h = (features(encoder, None, x, ("h",))["h"] for x in (x_train, data.x_test))
    return train_h, data.y_train[labelled], test_h, data.y_test


@torch.no_grad()
def embeddings(projector, train_h, train_y, test_h, test_y):
    """The same of z, from `representations`."""
    training = projector.training
    projector.eval()
    train_z, test_z = (torch.cat([projector(block) for block in h.split(1024)]) for h in (train_h, test_h))
    projector.train(training)
    return train_z, train_y, test_z, test_y


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
    train_h, test_h = (F.normalize(h, dim=1) for h in full_precision(train_h, test_h))
    known, labels = torch.cat([train_y, test_y]).unique(return_inverse=True)
    train_y, test_y = labels.split([len(train_y), len(test_y)])
    k = min(k, len(train_h))
    correct = 0
    block = train_h.new_empty(min(1024, len(test_h)), len(train_h))  # once: new memory costs a tenth on a CPU
    for h, y in zip(test_h.split(1024), test_y.split(1024)):
        similarity, index = torch.mm(h, train_h.T, out=block[: len(h)]).topk(k)
        labels = train_y[index]
        weight = torch.ones_like(similarity)
        if temperature is not None:
            weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(h), len(known)).scatter_add_(1, labels, weight)
        winner = votes.gather(1, labels).argmax(1, keepdim=True)  # of equal votes the nearest neighbour's
        correct += (labels.gather(1, winner)[:, 0] == y).sum()
    return 100 * correct.item() / len(test_y)


PROBE_LOGITS = 2**27  # that are in memory at once: 1 GB


def logistic_regression(h, y, classes, l2, start=None, iterations=500):
    """W (classes, D + 1) of least mean cross-entropy + l2/2 ‖W‖², its last column a bias without penalty.

    The logits of ImageNet's 1.28 million images take 10 GB: they are made in blocks.
    """
    blocks = list(zip(*(x.split(max(1, PROBE_LOGITS // classes)) for x in (h, y))))
    weight = (h.new_zeros(classes, h.shape[1] + 1) if start is None else start.clone()).requires_grad_()
    options = {"history_size": 20, "tolerance_grad": 1e-6, "tolerance_change": 1e-12}
    lbfgs = torch.optim.LBFGS([weight], max_iter=iterations, line_search_fn="strong_wolfe", **options)

    def objective():
        lbfgs.zero_grad()
        total = l2 / 2 * weight[:, :-1].square().sum()
        total.backward()
        for of_block, labels in blocks:
            share = len(labels) / len(y)
            value = share * F.cross_entropy(F.linear(of_block, weight[:, :-1], weight[:, -1]), labels)
            value.backward()
            total = total.detach() + value.detach()
        return total

    lbfgs.step(objective)
    return weight.detach()


def linear_probe(train_h, train_y, test_h, test_y):
    """(top-1, top-5) percent of multinomial logistic regression on frozen features (N, D), (M, D).

    Deterministic, float64, on standardised features; the L2 penalty is that of 1e-1 … 1e-5 that predicts a
    tenth of the training images best from the others.
    """
    _check_features(train_h, train_y, test_h, test_y)
    known, train_y = train_y.unique(return_inverse=True)  # a logit for each label that is there
    mean = train_h.detach().double().mean(0)
    std = train_h.detach().double().std(0, correction=0)
    train_h, test_h = ((h.detach().double() - mean) / std.where(std > 1e-8, 1) for h in (train_h, test_h))
    classes = len(known)
    held = torch.randperm(len(train_y), generator=torch.Generator().manual_seed(0)) % 10 == 9
    held = held.to(train_y.device)

    def scores(weight, h):
        return F.linear(h, weight[:, :-1], weight[:, -1])

    tried = []
    weight = None
    for l2 in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5) if held.any() else ():
        weight = logistic_regression(train_h[~held], train_y[~held], classes, l2, weight, iterations=100)
        correct = (scores(weight, train_h[held]).argmax(1) == train_y[held]).sum().item()
        tried.append((correct, l2, weight))
    _, l2, weight = max(tried, key=lambda one: one[0], default=(0, 1e-3, None))  # of equal ones the first
    weight = logistic_regression(train_h, train_y, classes, l2, weight)
    hits = known[scores(weight, test_h).topk(min(5, classes)).indices] == test_y[:, None]
    return 100 * hits[:, 0].double().mean().item(), 100 * hits.any(1).double().mean().item()


def covariance(features, normalize=True):
    """Covariance (D, D), float64, of features (N >= 2, D), first L2-normalised (DirectCLR's code) or not."""
    features = features.double()
    features = F.normalize(features, dim=1) if normalize else features
    return torch.cov(features.T).reshape(features.shape[1], -1)


def eigenvalues(matrix):
    """|Eigenvalues| (D,), descending, of a symmetric matrix, on the CPU: solvers of GPUs may fail."""
    if not matrix.isfinite().all():
        raise UserError("features or weights are not finite")
    return torch.linalg.eigvalsh(matrix.cpu()).abs().sort(descending=True).values


def singular_values(matrix):
    """Singular values, descending, of a float64 matrix, from the smaller one of its Gram matrices."""
    return eigenvalues(_wide(matrix) @ _wide(matrix).T).sqrt()


def covariance_spectrum(features, normalize=True):
    """Singular values, float64 (D,), descending, of the `covariance` of features (N, D) (DirectCLR eq. 1)."""
    return eigenvalues(covariance(features, normalize))


def rankme(features):
    """RankMe: exp of the entropy of the singular values' shares; features (N, D), not centred nor scaled."""
    s = singular_values(features.double())
    p = s / s.sum().clamp(min=1e-30) + 1e-7
    return torch.exp(-(p * p.log()).sum()).item()


def ranks(spectrum):
    """Ranks by a covariance's spectrum (D,), descending: how many σ_k are above 1e-2, 1e-3 and 1e-5 of σ₁,
    and exp of the entropy of their shares. Left out as rounding errors: σ_k below 1e-12 σ₁, and below 1e-15,
    which h of length 1 has in float32 where it is constant."""
    kept = spectrum[spectrum > max(1e-12 * spectrum[0], 1e-15)]
    share = kept / kept.sum()
    counts = {f"rank_{x}": int((kept > float(x) * spectrum[0]).sum()) for x in ("1e-2", "1e-3", "1e-5")}
    entropy = -(share * share.log()).sum()
    return {**counts, "entropy_rank": entropy.exp().item() if len(kept) else 0.0}


def dead(variance):
    """Mask of the coordinates with less than 1 % of the mean variance: the median may be a dead one's."""
    return variance <= 0.01 * variance.mean()


def rank_statistics(h):
    """What a run follows over time, of test features h (N, D): `ranks`, RankMe, the dead coordinates."""
    coordinates = dead(h.double().var(0)).nonzero()[:, 0].tolist()
    return {**ranks(covariance_spectrum(h)), "rankme": rankme(h), "dead": coordinates}


def min_max_ratio(z):
    """Mean over anchors of (max - min) / min of the distances to the others of z (N >= 2, D), L2-normalised:
    how well near and far are told apart (SparseHead eq. 9). Anchors with a duplicate are left out."""
    z = F.normalize(z.double(), dim=1)
    distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    farthest = distance.amax(1)
    nearest = distance.fill_diagonal_(math.inf).amin(1)
    alone = nearest > 1e-6
    return ((farthest - nearest) / nearest)[alone].sum().item() / max(1, alone.sum().item())


def heat_map(c):
    """Of a covariance c (D, D) over its mean diagonal: the first 32 x 32, and the mean |off-diagonal|."""
    c = c / c.diagonal().mean().clamp(min=1e-30)
    outside = (c.abs().sum() - c.diagonal().sum()) / max(1, c.numel() - len(c))
    return {"block": c[:32, :32].round(decimals=3).tolist(), "offdiagonal": outside.item()}


def row_norms(encoder, found):
    """Per dimension i of h, from the test images' `features`: ‖W^i‖² of the encoder's last layer (LL prop.
    1), bare and folded with the BatchNorm behind it, whose γ_i and β_i; var(h_i) and the share of images with
    h_i > 0, and both of the last block's input, penultimate, which the residual branch is added to."""
    end, norm = encoder_end(encoder)
    bare = end.weight.detach().flatten(1).square().sum(1)
    norms = {"bare": bare, "folded": bare}
    for prefix, layer in (("", "h"), ("penultimate_", "penultimate")):
        if layer in found:
            norms[f"{prefix}variance"] = found[layer].double().var(0)
            norms[f"{prefix}open"] = (found[layer] > 0).double().mean(0)
    if norm is not None:
        norms["folded"] = bare * norm.weight.detach().square() / (norm.running_var + norm.eps)
        norms |= {"gamma": norm.weight.detach(), "beta": norm.bias.detach()}
    return {key: rounded(values) for key, values in norms.items()}


def weight_spectra(encoder, projector):
    """{name: singular values} of weights: a ResNet's last block, else the whole encoder; the projector."""
    place = f"layer4.{len(encoder.layer4) - 1}" if _is_resnet(encoder) else ""
    block = encoder.get_submodule(place)
    layers = {k: m for k, m in block.named_modules(prefix=place) if isinstance(m, nn.Conv2d | nn.Linear)}
    projector = projector or nn.Identity()
    linears = trained_linears(projector)
    layers |= {k: m for k, m in projector.named_modules(prefix="projector") if m in linears}
    weights = {name: module.weight.detach().double().flatten(1) for name, module in layers.items()}
    return {name: rounded(singular_values(weight)) for name, weight in weights.items()}


def layer_statistics(encoder, projector, x, y=None):
    """What figures and claims need of test images x, by layer (None where there is none).

    spectra and bare_spectra: of the covariance, normalised and not. min_max_ratio: of 2,000 images, the first
    or, where their labels y are sorted, of all. Beside these `row_norms`, `weight_spectra` and a `heat_map`
    of every normalised covariance.
    """
    found = features(encoder, projector, x)
    by_class = y is not None and (y.diff() >= 0).all()  # as those of an image folder
    few = torch.linspace(0, len(x) - 1, min(2000, len(x))).long() if by_class else slice(2000)
    covariances = {layer: covariance(values) for layer, values in found.items()}

    def by_layer(function, source=found):
        return {layer: function(source[layer]) if layer in found else None for layer in LAYERS}

    return {
        "rankme": by_layer(rankme),
        "min_max_ratio": by_layer(lambda values: min_max_ratio(values[few])),
        "spectra": by_layer(lambda c: rounded(eigenvalues(c)), covariances),
        "bare_spectra": by_layer(lambda values: rounded(covariance_spectrum(values, normalize=False))),
        "covariance": by_layer(heat_map, covariances),
        "row_norms": row_norms(encoder, found),
        "weight_spectra": weight_spectra(encoder, projector),
    }


def start_statistics(encoder, projector, data):
    """`layer_statistics` and kNN-200 before the first step, on copies whose BatchNorms have the statistics of
    up to 2,048 training images: those that they start with, 0 and 1, are no one's. None but in process 0."""
    modules = copy.deepcopy(nn.Sequential(encoder, projector))
    drawn = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(0))  # of all classes
    blocks = drawn[:2048].split(at_once(data.x_train))
    blocks = (block for block in blocks if len(block) > 1)  # the variance of one is none
    torch.optim.swa_utils.update_bn((inputs(encoder, data.x_train[block]) for block in blocks), modules)
    if process_index():
        return None
    found = layer_statistics(*modules, data.x_test, data.y_test)
    for layer in filter(None, found["covariance"].values()):
        del layer["block"]  # heat maps are large, and norms of random weights say nothing
    found["row_norms"] = {"variance": found["row_norms"]["variance"]}
    return {"knn200": knn_accuracy(*representations(modules[0], data)), **found}


def evaluate(encoder, projector, data, frozen=None):
    """kNN-200 of h and z, kNN-5, linear probe, in percent, and `layer_statistics`.

    frozen: `representations` of the data, if known.
    """
    frozen = frozen or representations(encoder, data)
    top1, top5 = linear_probe(*frozen)
    return {
        "knn200": knn_accuracy(*frozen),
        "knn5": knn_accuracy(*frozen, k=5, temperature=None),
        "knn200_z": knn_accuracy(*embeddings(projector, *frozen)),
        "linear_top1": top1,
        "linear_top5": top5,
        **layer_statistics(encoder, projector, data.x_test, data.y_test),
    }


# ---------------------------------------------------------------------------------------------------- results


def write(path, content):
    """Writes a file that becomes `path` when it is whole and on the disk, never otherwise. content: bytes,
    or a function that writes them into the file that it is given."""
    path = Path(os.path.realpath(path))  # a link stays one
    temporary = path.with_name(f"{path.name}.tmp")  # one that a kill left is written anew
    put = content if callable(content) else lambda file: file.write(content)
    try:
        with open(temporary, "wb") as file:
            put(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path, content):
    """torch.save, atomically. By way of memory: into a file it makes a full disk a RuntimeError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getbuffer())


def write_figure(path, figure):
    """A matplotlib figure in the format of the path's suffix, atomically."""
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], dpi=150, bbox_inches="tight")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, image.getbuffer())


def write_json(path, content):
    """The one way that a dict is written as JSON: atomically, a line a key, NaN and infinity as null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    write(path, f"{{\n{lines}\n}}\n".encode())


def write_lines(path, contents):
    """A line of JSON for each of the contents, atomically."""
    write(path, "".join(json.dumps(content) + "\n" for content in contents).encode())


def read_json(path):
    """What a JSON file holds; UserError where it is not one."""
    with refusing(f"{path} is not a readable JSON file"):
        return json.loads(path.read_text())


def rounded(tensor):
    """A tensor as nested lists of numbers with 6 significant digits."""
    return json.loads(json.dumps(tensor.tolist()), parse_float=lambda text: float(f"{float(text):.6g}"))


NOT_OF_A_RUN = ("out", "resume", "overwrite", "data_dir")  # arguments that do not make it another run


def run_config(folder):
    """What config.json holds of the run in a folder; None where there is no run."""
    with contextlib.suppress(UserError):
        config = read_json(folder / "config.json")
        if isinstance(config, dict) and isinstance(config.get("arguments"), dict):
            return config
    return None


def run_folder(args, name):
    """--out, or what a run's folder is called without it."""
    return Path(args.out or f"runs/{Path(args.dataset).absolute().stem}-{name}-seed{args.seed}")


def open_run(args, name, data):
    """(folder, configuration, checkpoint or None, result or None) of a run, new or to be continued.

    UserError for a folder that is not a run's; for one whose script, row, arguments or data differ, unless
    --overwrite.
    """
    out = run_folder(args, name)
    new = _configuration(args, name) | {"data": _checksum(args, data)}
    there = _claim(out)
    config = there
    if there and not args.overwrite:
        _require_same_run(out, there, new, args.resume)
    else:
        config = new
        for file in ("result.json", "encoder.pt", "checkpoint.pt", "metrics.jsonl"):
            (out / file).unlink(missing_ok=True)  # a kill leaves config.json, by which the folder is a run's
    if (out / "result.json").exists():
        result = read_json(out / "result.json")
        if not (isinstance(result, dict) and "config" in result):
            raise UserError(f"{out / 'result.json'} is no result: without it --resume evaluates again")
        print(f"{out} is finished")
        return out, config, None, result
    checkpoint = None
    if (out / "checkpoint.pt").exists():
        with refusing(f"{out / 'checkpoint.pt'} can't be read, --overwrite starts anew"):
            checkpoint = dict(torch.load(out / "checkpoint.pt", "cpu", weights_only=True))
    elif config is not new:
        note(f"{out} has no checkpoint.pt: its run begins anew")
        config = new
    if config["arguments"].get("compile") != new["arguments"].get("compile"):
        note(f"{out} was begun with another --compile: from here on its weights will differ in rounding")
    if config.get("device") != new["device"]:
        note(f"{out} was begun on {config.get('device')}: here its weights will differ in rounding")
    for key, what in (("code", f"{new['script']} or common.py"), ("torch", "torch")):
        if str(config.get(key) or new[key]).split()[-1] != new[key]:
            note(f"{out} was begun with another version of {what}")
            config = config | {key: f"{config[key]} {new[key]}"}
    if config is not there:  # else its date says when the run was begun
        write_json(out / "config.json", config)
    return out, config, checkpoint, None


def _configuration(args, name):
    script = Path(sys.argv[0])
    files = [file for file in (script, Path(__file__)) if file.is_file()]  # git knows no script of one's own
    code = f"{zlib.crc32(b''.join(file.read_bytes() for file in files)):08x}"
    arguments = {key: value for key, value in vars(args).items() if key not in NOT_OF_A_RUN}
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if args.device != "cpu":
        device = torch.cuda.get_device_name(args.device)
    if processes() > 1:
        device = f"{processes()} × {device}"
    run = {"script": script.name, "code": code, "name": name, "arguments": arguments, "device": device}
    run |= {module.__name__: str(module.__version__) for module in (torch, torchvision, np)}
    command = "git describe --always --dirty --abbrev=40 --exclude='*'"
    place = {"cwd": Path(__file__).resolve().parent, "shell": True}
    git = subprocess.run(command, **place, capture_output=True, text=True, check=False).stdout.strip()
    run |= {"git": git or None, "python": platform.python_version()}
    # a path as text, and infinity, of which a file would make null
    return json.loads(json.dumps(run, default=str), parse_constant=str)


def _checksum(args, data):
    """Of labels and images; of a folder's images names and sizes, as pack.py noted them, and 256 of val."""
    packed = () if args.dataset in NAMED else Path(args.dataset).glob(f"packed-{args.image_size}/*.json")
    names = "".join(file.read_text() for file in sorted(packed))
    images = (data.x_test[:256],) if names else (data.x_train, data.x_test)
    found = zlib.crc32(names.encode())
    for part in (data.y_train, data.y_test, *images):
        found = zlib.crc32(part.cpu().contiguous().numpy(), found)
    return f"{len(data.x_train)} + {len(data.x_test)} images, {found:08x}"


def _absent(folder):
    """A folder and its parents, as far as they are not there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _remove(folders):
    for folder in folders:
        with contextlib.suppress(OSError):  # never made, or another process's by now
            folder.rmdir()


def _claim(out):
    """Makes and locks the folder. The configuration of the run in it, None of one with nothing to lose."""
    new = _absent(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove(new)
        raise UserError(f"--out {out} can't be made ({brief(error)})") from None
    lock(out)
    entries = {path.name for path in out.iterdir()}
    there = run_config(out)
    if entries - {"config.json.tmp"} and not there:
        raise UserError(f"{out} is there and holds no run's config.json: choose another folder with --out")
    return there if entries & {"checkpoint.pt", "result.json", "encoder.pt"} else None


def _require_same_run(out, there, config, resume):
    def plain(run):
        given = run["arguments"]
        # cuda:0 and cuda:1 are one kind of device, and a compiler may come or go
        found = given | {"device": str(given.get("device")).split(":")[0], "compile": None}
        # "data" tells what lies at a path, as "pretraining" does
        found["dataset"] = Path(str(given.get("dataset"))).absolute().stem
        return found | ({"checkpoint": None} if "pretraining" in given else {})

    old, new = plain(there), plain(config)
    facts = [(key, there.get(key, config[key]), config[key]) for key in ("script", "name", "data")]
    facts += [(key, old.get(key), value) for key, value in new.items()]
    other = ", ".join(f"{key} is {was} there, {now} here"[:200] for key, was, now in facts if was != now)
    if other or not resume:
        what = f"another run, {other}" if other else "this run already"
        advice = "continue it with --resume and its arguments, choose another --out"
        raise UserError(f"{out} holds {what}: {advice}, or --overwrite replaces it")


_LOCKS = {}  # {folder: a descriptor, open until the process ends}


def lock(folder, wait=False):
    """Keeps other processes out of a folder until this one ends or calls `unlock`. While another one does,
    UserError, or (wait) a note and patience."""
    if folder.resolve() in _LOCKS or sys.platform == "win32":  # there two in one folder are not noticed
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            os.close(descriptor)
            raise UserError(f"{folder} is in use by another process") from None
        note(f"{folder} is in use by another process: waiting")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:  # some file systems know no locks: as on Windows
        note(f"{folder} can't be locked ({brief(error)}): see that no other process uses it")
    _LOCKS[folder.resolve()] = descriptor


def unlock(folder):
    """Ends what `lock` began."""
    if folder.resolve() in _LOCKS:
        os.close(_LOCKS.pop(folder.resolve()))


def note(text):
    """Says on stderr, once, what a user should know."""
    if process_index() == 0:
        complain(f"note: {text}")


def complain(line):
    """A line on stderr; that it is full, or that nobody reads it, changes nothing."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def brief(error):
    """The first line of an exception's text."""
    text = f"lacks {error}" if isinstance(error, KeyError) else str(error)
    text = "" if "weights_only" in text else text  # torch's advice is to run what is there
    return (text.strip().splitlines() or [type(error).__name__])[0]


def fail(text, code):
    """Ends the program. Of several processes that fail alike one says why, in a line."""
    first = os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"
    line = " ".join(text.split())
    if processes() > 1:
        with contextlib.suppress(RuntimeError):  # the process that has the store may be gone
            first = _STORE[0].add(line, 1) == 1
    if first:
        complain(line)
    sys.exit(code)


@contextlib.contextmanager
def refusing(what, errors=Exception):
    """Makes an error, of which bad files and devices have many, a UserError of one line, what and why. A lack
    of memory stays one."""
    try:
        yield
    except errors as error:
        kind = MemoryError if no_memory(error) else UserError
        raise kind(f"{what} ({brief(error)})") from None


def no_memory(error):
    """Whether an exception says that a GPU, the CPU, cuBLAS or cuDNN has no memory left."""
    told = re.search(r"out of memory|can't allocate memory|ALLOC(ATION)?_FAILED", str(error))
    return bool(told) or isinstance(error, MemoryError)


def run(main):
    """Calls a script's main(). Exit codes: 2 bad input, in one line; 1 no memory left; 130, 143 signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    # None: closed by the shell
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, it stays open
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")
    script = Path(sys.argv[0]).name
    try:
        main()
        sys.stdout.flush()  # where a full disk is an error like others
    except (UserError, OSError) as error:
        fail(f"{script}: error: {error}", 2)
    except (RuntimeError, MemoryError) as error:
        network = "gloo|nccl|connection (closed|reset|refused)|socket|tcpstore|timed out"
        lost = re.search(network, str(error), re.IGNORECASE)
        if lost and processes() > 1:
            what = brief(error).split(". ")[0]
            why = f"process {process_index()} has lost another one ({what}): --resume continues"
            complain(f"{script}: error: {why}")
            os._exit(1)  # what waits for the other would hang
        if not no_memory(error):
            raise
        advice = "a smaller --batch-size or --width, or fewer or smaller images, need less"
        what = brief(error).split(" GPU ")[0]  # PyTorch adds five lines of advice
        fail(f"{script}: error: out of memory ({what}): {advice}", 1)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # Python would try again at its end, say so in two lines and change the exit code
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
