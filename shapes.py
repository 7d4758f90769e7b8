"""Draws the demo's images, 10 classes of shapes, into an .npz that --dataset takes.

--dataset shapes draws 5,000 and 1,000 of 32 pixels by itself; a file is for other numbers and other programs.

    python shapes.py                          data/shapes.npz, the images of --dataset shapes
    python shapes.py --size 64 -o big.npz     and --dataset big.npz
"""

from pathlib import Path

import common
import numpy as np

# Whether a point is in the shape, by its coordinates: u, v and polar r, a.
SHAPES = {
    "disc": lambda u, v, r, a: r < 0.8,
    "ring": lambda u, v, r, a: (r < 0.9) & (r > 0.55),
    "square": lambda u, v, r, a: np.maximum(abs(u), abs(v)) < 0.7,
    "triangle": lambda u, v, r, a: np.maximum(abs(u) * 0.866 + v / 2, -v) < 0.45,
    "star": lambda u, v, r, a: r < 0.6 + 0.35 * np.cos(5 * a),
    "cross": lambda u, v, r, a: (np.minimum(abs(u), abs(v)) < 0.25) & (np.maximum(abs(u), abs(v)) < 0.9),
    "bar": lambda u, v, r, a: (abs(u) < 1) & (abs(v) < 0.3),
    "half disc": lambda u, v, r, a: (r < 1) & (v > 0),
    "crescent": lambda u, v, r, a: (r < 0.9) & ((u - 0.45) ** 2 + v**2 > 0.4),
    "pair": lambda u, v, r, a: (abs(u) - 0.6) ** 2 + v**2 < 0.14,
}


def shapes(train=5000, test=1000, seed=0, size=32):
    """Drawn images as in an .npz, the same for the same seed: uint8 (N, size, size, 3), 10 balanced classes.

    An image is a pattern of one shape, which is its class, so that every crop shows some of it. Random are
    its size, place and spacing, its turn (18 degrees to either side), the colours, and two waves behind it.
    """
    rng = np.random.default_rng(seed)
    n = train + test
    y = np.concatenate([rng.permutation(np.arange(count) % len(SHAPES)) for count in (train, test)])

    def uniform(low, high, *shape):
        return rng.uniform(low, high, (n, *(shape or (1, 1)))).astype(np.float32)

    radius = uniform(0.2, 0.4)  # half an image is 1
    half = uniform(1.2, 1.6)  # half a tile, in radii
    turn = uniform(-0.1 * np.pi, 0.1 * np.pi)
    place = uniform(-2, 2), uniform(-2, 2)
    axis = np.linspace(-1, 1, 2 * size, dtype=np.float32)
    mask = np.empty((n, size, size, 1), dtype=np.float32)
    for label, inside in enumerate(SHAPES.values()):
        i = y == label
        u, v = axis / radius[i], axis[:, None] / radius[i]
        turned = u * np.cos(turn[i]) - v * np.sin(turn[i]), u * np.sin(turn[i]) + v * np.cos(turn[i])
        u, v = ((w + w0[i]) % (2 * half[i]) - half[i] for w, w0 in zip(turned, place))
        drawn = inside(u, v, np.hypot(u, v), np.arctan2(v, u))
        mask[i] = drawn.reshape(-1, size, 2, size, 2).mean((2, 4))[..., None]  # antialiased
    # Vivid colours would tell images apart so well that nothing else is learnt: a grey contrast with a tint.
    contrast = uniform(0.15, 0.35, 1, 1, 1) * np.sign(uniform(-1, 1, 1, 1, 1))
    middle = uniform(0.3, 0.7, 1, 1, 1)
    ground, shape = (middle + c + uniform(-0.1, 0.1, 1, 1, 3) for c in (-contrast, contrast))
    for _ in range(2):
        phase = uniform(-9, 9) * axis[::2] + uniform(-9, 9) * axis[::2, None] + uniform(0, 6.3)
        ground = ground + 0.05 * np.sin(phase)[..., None]
    x = ground + mask * (shape - ground) + 0.04 * rng.standard_normal(ground.shape, dtype=np.float32)
    x = (x.clip(0, 1) * 255).round().astype(np.uint8)
    split = {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}
    return {**split, "classes": np.array(list(SHAPES))}


def main():
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add("-o", "--out", type=Path, default=Path("data/shapes.npz"), help="(data/shapes.npz)")
    add("--train", type=common.number(int, 10), default=5000, help="images to train on (5000)")
    add("--test", type=common.number(int, 10), default=1000, help="images to test on (1000)")
    add("--size", type=common.number(int, 8, 512), default=32, help="height and width in pixels (32)")
    add("--seed", type=common.number(int, 0, 2**31), default=0, help="of everything random (0)")
    args = parser.parse_args()
    if args.out.suffix != ".npz" or args.out.is_dir():
        raise common.UserError(f"--out {args.out} is not a file's name that ends in .npz")
    if (args.train + args.test) * args.size**2 > 5 * 10**7:
        raise common.UserError("--train, --test, --size: more than 50 million pixels are not drawn at once")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    arrays = shapes(args.train, args.test, args.seed, args.size)
    common.write(args.out, lambda file: np.savez(file, **arrays))


if __name__ == "__main__":
    common.run(main)
