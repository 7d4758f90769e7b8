"""Every operation against torchvision, image by image, every distribution against torchvision's own draws."""

import math

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

import common

B = 24


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(B, 3, 40, 32, generator=generator)
    x[0], x[1], x[2, :, :20] = (
        0.5,
        1.0,
        0.0,
    )  # grey, white, half black: hue and saturation are undefined there
    x[3] = x[3].round()  # the corners of the colour cube: ties between channels
    return x


def each(operation, x, *parameters):
    return torch.stack([operation(image, *(p[i] for p in parameters)) for i, image in enumerate(x)])


@pytest.mark.parametrize("size", [16, 32, 50])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resized_crop_and_flip_equal_torchvision_borders_included(images, size, dtype):
    generator = torch.Generator().manual_seed(size)
    height, width = (
        torch.randint(1, 41, (B,), generator=generator),
        torch.randint(1, 33, (B,), generator=generator),
    )
    top = (torch.rand(B, generator=generator) * (41 - height)).long()
    left = (torch.rand(B, generator=generator) * (33 - width)).long()
    height[:4], width[:4], top[:4], left[:4] = 40, 32, 0, 0
    flip = torch.arange(B) % 2 == 0
    x = (images * 255).round().to(dtype)
    ours = common.resized_crop(x, *(p.float() for p in (top, left, height, width)), size, flip)

    def one(image, t, left_, h, w, f):
        crop = reference.resized_crop(image.float(), t, left_, h, w, [size, size], antialias=True)
        return reference.horizontal_flip(crop) if f else crop

    theirs = each(one, x, *(p.tolist() for p in (top, left, height, width, flip)))
    assert (ours - theirs).abs().max() < 1e-4 * 255


@pytest.mark.parametrize(
    "name, low, high",
    [("brightness", 0.0, 2.0), ("contrast", 0.0, 2.0), ("saturation", 0.0, 2.0), ("hue", -0.5, 0.5)],
)
def test_jitter_operations_equal_torchvision(images, name, low, high):
    factor = torch.linspace(low, high, B)
    theirs = each(getattr(reference, f"adjust_{name}"), images, factor.tolist())
    assert (getattr(common, f"adjust_{name}")(images, factor) - theirs).abs().max() < 1e-4


def test_greyscale_equals_torchvision(images):
    theirs = reference.rgb_to_grayscale(images, 3)
    assert (common.grayscale(images).expand(-1, 3, -1, -1) - theirs).abs().max() < 1e-5
    assert (common.adjust_saturation(images, torch.zeros(B)) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur_equals_torchvision_reflected_borders_included(images, kernel_size):
    sigma = torch.linspace(0.1, 2, B)
    theirs = each(
        lambda image, s: reference.gaussian_blur(image, [kernel_size] * 2, [s] * 2), images, sigma.tolist()
    )
    assert (common.gaussian_blur(images, sigma, kernel_size) - theirs).abs().max() < 1e-4
    assert torch.equal(common.gaussian_blur(images, torch.full((B,), 0.01), kernel_size), images)


def test_solarize_equals_torchvision(images):
    chosen = torch.arange(B) % 3 > 0
    theirs = each(lambda image, c: reference.solarize(image, 128 / 255) if c else image, images, chosen)
    assert torch.equal(common.solarize(images, chosen), theirs)


def test_normalize_equals_torchvision(images):
    theirs = reference.normalize(images, common.IMAGENET_MEAN, common.IMAGENET_STD)
    assert (common.normalize(images) - theirs).abs().max() < 1e-5
    integers = (images * 255).to(torch.uint8)
    assert (
        common.normalize(integers)
        - reference.normalize(integers / 255, common.IMAGENET_MEAN, common.IMAGENET_STD)
    ).abs().max() < 1e-5


def test_a_whole_view_equals_torchvisions_operations_one_after_the_other(images):
    x = (images * 255).round().to(torch.uint8)
    augment = common.Augment(24, blur_p=0.5, solarize_p=0.5)
    p = augment.draw(B, 40, 32, generator=torch.Generator().manual_seed(1))
    operations = [
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    ]

    def one(image, i):
        top, left, height, width = (int(v[i]) for v in p["box"])
        image = reference.resized_crop(image / 255, top, left, height, width, [24, 24], antialias=True)
        image = reference.horizontal_flip(image) if p["flip"][i] else image
        for k in p["order"]:
            image = operations[k](image, p["factors"][k][i].item())
        image = reference.rgb_to_grayscale(image, 3) if p["grey"][i] else image
        sigma = p["sigma"][i].item()
        image = reference.gaussian_blur(image, [3, 3], [sigma, sigma]) if sigma > 0.05 else image
        # a rounding error at the threshold would invert a pixel: leave those to the test of solarize itself
        return reference.normalize(image, common.IMAGENET_MEAN, common.IMAGENET_STD)

    p["solarized"] = torch.zeros(B, dtype=torch.bool)
    ours = augment.apply(x, **p)
    assert ours.shape == (B, 3, 24, 24) and ours.dtype == torch.float32
    assert (ours - each(one, x, range(B))).abs().max() < 5e-4  # 1e-4 / 0.225


def same_distribution(ours, theirs):
    """Two samples of equal size: the largest gap of their distribution functions (Kolmogorov and Smirnov)."""
    both = torch.cat([ours, theirs]).sort().values
    gap = (
        torch.searchsorted(ours.sort().values, both, right=True)
        - torch.searchsorted(theirs.sort().values, both, right=True)
    ).abs().max() / len(ours)
    return gap < 1.95 * math.sqrt(2 / len(ours))  # 0.1 % level


@pytest.mark.parametrize("height, width", [(32, 32), (20, 60), (60, 20)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_crops_are_distributed_as_torchvisions(height, width, scale):
    n = 4000
    p = common.Augment(32, scale=scale).draw(n, height, width, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    crop, image = v2.RandomResizedCrop(32, scale=scale, antialias=True), torch.empty(3, height, width)
    theirs = [crop.make_params([image]) for _ in range(n)]
    for ours, key in zip(p["box"], ("top", "left", "height", "width")):
        assert same_distribution(ours, torch.tensor([float(t[key]) for t in theirs])), key
    top, left, h, w = p["box"]
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()


def test_jitter_is_distributed_as_torchvisions_and_in_every_order():
    n, generator = 4000, torch.Generator().manual_seed(0)
    augment = common.Augment(32, jitter=(0.4, 1.5, 0.2, 0.1), jitter_p=1.0)
    p = augment.draw(n, 32, 32, generator=generator)
    torch.manual_seed(0)
    jitter = v2.ColorJitter(0.4, 1.5, 0.2, 0.1)
    theirs = [jitter.make_params([]) for _ in range(n)]
    for ours, key in zip(
        p["factors"], ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    ):
        assert same_distribution(ours, torch.tensor([float(t[key]) for t in theirs])), key
    orders = {tuple(augment.draw(1, 32, 32, generator=generator)["order"]) for _ in range(400)}
    assert len(orders) == 24


def test_probabilities_are_those_given():
    n = 20_000
    p = common.Augment(32, flip=0.3, jitter_p=0.8, grey_p=0.2, blur_p=0.6, solarize_p=0.1).draw(
        n, 32, 32, generator=torch.Generator().manual_seed(0)
    )
    identity = (
        (p["factors"][0] == 1) & (p["factors"][1] == 1) & (p["factors"][2] == 1) & (p["factors"][3] == 0)
    )
    measured = [p["flip"], ~identity, p["grey"], p["sigma"] > 0.05, p["solarized"]]
    for share, expected in zip(measured, (0.3, 0.8, 0.2, 0.6, 0.1)):
        assert abs(share.float().mean().item() - expected) < 4 * math.sqrt(0.25 / n)


def test_a_generator_makes_views_repeatable_whatever_the_global_seed():
    x, augment = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), common.Augment(32)
    views = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        views.append(augment(x, torch.Generator().manual_seed(5)))
    assert torch.equal(*views)
    assert not torch.equal(augment(x, torch.Generator().manual_seed(6)), views[0])


def test_off_means_unchanged():
    x = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    augment = common.Augment(32, scale=(1, 1), flip=0, jitter_p=0, grey_p=0, mean=(0, 0, 0), std=(1, 1, 1))
    p = augment.draw(8, 32, 32)
    p["box"] = tuple(torch.full((8,), v) for v in (0.0, 0.0, 32.0, 32.0))
    assert (augment.apply(x, **p) - x / 255).abs().max() < 1e-6


@pytest.mark.parametrize(
    "bad",
    [
        {"size": 0},
        {"scale": (0, 1)},
        {"scale": (0.5, 0.2)},
        {"scale": (0.5, 1.5)},
        {"flip": 1.2},
        {"grey_p": -0.1},
        {"jitter": (0.4, 0.4, 0.4)},
        {"jitter": (0.4, 0.4, 0.4, 0.6)},
        {"jitter": (-1, 0, 0, 0)},
        {"blur_p": float("nan")},
    ],
)
def test_values_that_make_no_sense_are_refused(bad):
    with pytest.raises(common.UserError):
        common.Augment(**{"size": 32, **bad})


@pytest.mark.parametrize("shape, dtype", [((2, 3, 8, 8), torch.float32), ((2, 8, 8, 3), torch.uint8)])
def test_images_that_are_not_uint8_or_have_another_shape_are_refused(shape, dtype):
    with pytest.raises(common.UserError, match="uint8"):
        common.Augment(8)(torch.zeros(shape, dtype=dtype))
