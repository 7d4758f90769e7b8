"""Every operation against torchvision, image by image, every distribution against torchvision's own draws."""

import math

import common
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

B = 24
MEAN_STD = (common.IMAGENET_MEAN, common.IMAGENET_STD)
JITTER = ("brightness", "contrast", "saturation", "hue")
COLOURS = torch.rand(B, 3, 40, 32, generator=torch.Generator().manual_seed(0))
COLOURS[0] = 0.5  # hue and saturation of greys are undefined
COLOURS[1, :, :20] = 0.0
COLOURS[2] = COLOURS[2].round()  # the corners of the colour cube: ties between channels
IMAGES = (COLOURS * 255).round().to(torch.uint8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def each(operation, x, *parameters):
    """The operation's results image by image, with every image's own parameters."""
    return torch.stack([operation(*values) for values in zip(x, *(p.tolist() for p in parameters))])


@pytest.mark.parametrize("size", [16, 32, 50])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resized_crop_and_flip_equal_torchvision_borders_included(size, dtype):
    pixels = torch.tensor([[40], [32]])
    sides = 1 + (torch.rand(2, B, generator=seeded(1)) * pixels).long()
    corner = (torch.rand(2, B, generator=seeded(2)) * (pixels + 1 - sides)).long()
    box = torch.cat([corner, sides])
    box[:, :4] = torch.tensor([[0], [0], [40], [32]])
    flip = torch.arange(B) % 2 == 0

    def one(x, *place):
        crop = reference.resized_crop(x.float(), *place[:4], [size, size], antialias=True)
        return reference.horizontal_flip(crop) if place[4] else crop

    ours = common.resized_crop(IMAGES.to(dtype), *box.float(), size, flip)
    assert (ours - each(one, IMAGES, *box, flip)).abs().max() < 1e-4 * 255


@pytest.mark.parametrize("name", JITTER)
def test_jitter_operations_equal_torchvision(name):
    factor = torch.linspace(-0.5, 0.5, B) if name == "hue" else torch.linspace(0, 2, B)
    theirs = each(getattr(reference, f"adjust_{name}"), IMAGES / 255, factor)
    assert (getattr(common, f"adjust_{name}")(IMAGES / 255, factor) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur_equals_torchvision_reflected_borders_included(kernel_size):
    sigma = torch.linspace(0.1, 2, B)
    theirs = each(lambda x, s: reference.gaussian_blur(x, [kernel_size] * 2, [s] * 2), IMAGES / 255, sigma)
    assert (common.gaussian_blur(IMAGES / 255, sigma, kernel_size) - theirs).abs().max() < 1e-4
    pixel = IMAGES[:, :, :1, :1] / 255
    torch.testing.assert_close(common.gaussian_blur(pixel, sigma, kernel_size), pixel)


def test_solarize_equals_torchvision():
    chosen = torch.arange(B) % 3 > 0
    theirs = each(lambda x, c: reference.solarize(x, 128 / 255) if c else x, IMAGES / 255, chosen)
    assert torch.equal(common.solarize(IMAGES / 255, chosen), theirs)


def test_a_whole_view_equals_torchvisions_operations_one_after_the_other():
    augment = common.Augment(24, blur_p=0.5, solarize_p=0.5)
    p = augment.draw(B, 40, 32, generator=seeded(1))
    # a rounding error at the threshold would invert a pixel: leave those to the test of solarize itself
    p["solarized"] = torch.zeros(B, dtype=torch.bool)

    def one(x, i):
        box = [int(values[i]) for values in p["box"]]
        x = reference.resized_crop(x / 255, *box, [24, 24], antialias=True)
        x = reference.horizontal_flip(x) if p["flip"][i] else x
        for k in p["order"]:
            x = getattr(reference, f"adjust_{JITTER[k]}")(x, p["factors"][k][i].item())
        x = reference.rgb_to_grayscale(x, 3) if p["grey"][i] else x
        sigma = p["sigma"][i].item()
        x = reference.gaussian_blur(x, [3, 3], [sigma, sigma]) if sigma > 0.05 else x
        return reference.normalize(x, *MEAN_STD)

    ours = augment.apply(IMAGES, **p)
    assert ours.shape == (B, 3, 24, 24) and ours.dtype == torch.float32
    assert (ours - each(one, IMAGES, torch.arange(B))).abs().max() < 5e-4  # 1e-4 / 0.225


def test_off_is_torchvisions_normalize_alone():
    x = IMAGES[:, :, :32]
    off = common.Augment(32, (1, 1), flip=0, jitter_p=0, grey_p=0)
    for ours in (off(x), common.normalize(x), common.normalize(x / 255)):
        assert (ours - reference.normalize(x / 255, *MEAN_STD)).abs().max() < 1e-5


def same_distribution(ours, drawn, key):
    """Our values and those under a key of torchvision's draws, as many: the largest gap of their distribution
    functions (Kolmogorov and Smirnov)."""
    theirs = torch.tensor([float(one[key]) for one in drawn])
    both = torch.cat([ours, theirs]).sort().values
    below = [torch.searchsorted(sample.sort().values, both, right=True) for sample in (ours, theirs)]
    return (below[0] - below[1]).abs().max() / len(ours) < 1.95 * math.sqrt(2 / len(ours))  # 0.1 % level


@pytest.mark.parametrize("height, width", [(32, 32), (20, 60), (60, 20)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_crops_are_distributed_as_torchvisions_and_lie_inside(height, width, scale):
    top, left, h, w = box = common.Augment(32, scale).draw(4000, height, width, generator=seeded())["box"]
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(32, scale=scale, antialias=True)
    drawn = [crop.make_params([torch.empty(3, height, width)]) for _ in range(4000)]
    for ours, key in zip(box, ("top", "left", "height", "width")):
        assert same_distribution(ours, drawn, key), key
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()


def test_jitter_is_distributed_as_torchvisions_and_in_every_order():
    strengths = (0.4, 1.5, 0.2, 0.1)
    augment = common.Augment(32, jitter=strengths, jitter_p=1.0)
    torch.manual_seed(0)
    drawn = [v2.ColorJitter(*strengths).make_params([]) for _ in range(4000)]
    for ours, name in zip(augment.draw(4000, 32, 32, generator=seeded())["factors"], JITTER):
        assert same_distribution(ours, drawn, f"{name}_factor"), name
    assert len({tuple(augment.draw(1, 32, 32)["order"]) for _ in range(400)}) == 24


@pytest.mark.parametrize("blur, solarize", [(0.6, (0.1, 0.3)), ((0.9, 0.4), 0.1)])
def test_probabilities_are_those_given_for_either_view_and_independent(blur, solarize):
    n = 20_000
    augment = common.Augment(32, flip=0.3, jitter_p=0.8, grey_p=0.2, blur_p=blur, solarize_p=solarize)
    p = augment.draw(2 * n, 32, 32, generator=seeded())
    still = torch.stack([*p["factors"][:3], p["factors"][3] + 1]).eq(1).all(0)
    drawn = torch.stack([p["flip"], ~still, p["grey"], p["sigma"] > 0.05, p["solarized"]]).double()
    for i, view in enumerate(drawn.chunk(2, 1)):
        given = [odds[i] if isinstance(odds, tuple) else odds for odds in (blur, solarize)]
        assert (view.mean(1) - torch.tensor([0.3, 0.8, 0.2, *given])).abs().max() < 4 * math.sqrt(0.25 / n)
        assert (torch.corrcoef(view) - torch.eye(5)).abs().max() < 4 / math.sqrt(n)
