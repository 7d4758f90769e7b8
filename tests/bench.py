"""Times what the README claims: make bench prints one table and writes results/bench-<device>.json.

    python tests/bench.py                                  on CIFAR-10 in data/, else on random images
    python tests/bench.py --only augment,knn --rounds 15   some of it, more often

What is compared is measured by turns in one process on the same number of threads; numbers are medians. Peers
(lightly) are timed where they are installed, else a loop written as theirs is. Rows that need a CUDA device
say so where there is none.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2 as vision
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
EPOCH_TFLOP, PEAK_TFLOPS = 334, 790  # ResNet-18, 50,000 images, two views; H100, H200, bfloat16 matmul
CROP = (vision.RandomResizedCrop(32), vision.RandomHorizontalFlip())
COLOUR = (vision.RandomApply([vision.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), vision.RandomGrayscale(0.2))
SCALE = (
    vision.ToDtype(torch.float32, scale=True),
    vision.Normalize(common.IMAGENET_MEAN, common.IMAGENET_STD),
)
PIL_PIPELINE = vision.Compose([*CROP, *COLOUR, vision.ToImage(), *SCALE])  # as lightly and dkobak compose it
TENSOR_PIPELINE = vision.Compose([*CROP, *COLOUR, *SCALE])


def seconds(function, repeat=1):
    """Of one call, on average over `repeat` calls, the device's work included."""
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        function()
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeat


def by_turns(functions, rounds, warm=2, repeat=1):
    """Median seconds of each of {name: function}, called by turns."""
    for function in functions.values():
        for _ in range(warm):
            function()
    times = [{name: seconds(function, repeat) for name, function in functions.items()} for _ in range(rounds)]
    return {name: statistics.median(t[name] for t in times) for name in functions}


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def images(args, count):
    """uint8 (count, 3, 32, 32): CIFAR-10's where it is, else random."""
    file = Path(args.data) / "cifar10.npz"
    if file.exists():
        return common.load_dataset("cifar10", args.data).x_train[:count]
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)


def simclr(x, width, batch, reg="none", compiled=None):
    """common's training step of SimCLR without projector, as simclr.py makes it: (step, encoder)."""
    line = f"--device {x.device} --width {width} --batch-size {batch} --reg {reg} --lr 0.01"
    args = common.arguments("").parse_args(line.split())
    args.compile, args.image_size, args.weight_decay = x.is_cuda if compiled is None else compiled, 32, 5e-4
    args.precision = "bf16" if x.is_cuda else "float32"
    encoder, projector = common.resnet(width=width), common.projector("none", 8 * width)
    penalty = common.regularizer(args, encoder, projector)

    def loss(x1, x2):
        z1, z2 = common.embed(encoder, projector, x1, x2)
        return common.info_nce(z1, z2) + args.reg_weight * penalty()

    step = common.training_step(args, encoder, projector, loss)[0]
    order = itertools.cycle(torch.randperm(len(x), device=x.device).split(batch)[: len(x) // batch])
    return lambda: step(x[next(order)])


def plain(width, views):
    """An eager step as it is usually written; views() gives two batches (B, 3, 32, 32)."""
    encoder = common.resnet(width=width).to(views()[0].device)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step():
        x1, x2 = views()
        optimizer.zero_grad()
        common.info_nce(encoder(x1), encoder(x2)).backward()
        optimizer.step()

    return step


def bench_augment(args):
    """Augment against torchvision v2 and lightly, both image by image from PIL, on one thread."""
    x = images(args, 256)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in x]
    eager, compiled = common.Augment(32), common.Augment(32)
    compiled.compile()
    functions = {
        "pil": lambda: torch.stack([PIL_PIPELINE(picture) for picture in pictures]),
        "eager": lambda: eager(x),
        "compiled": lambda: compiled(x),
    }
    with contextlib.suppress(ImportError):
        from lightly.transforms import SimCLRTransform

        recipe = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)  # two views of each
        functions["lightly"] = lambda: [recipe(picture) for picture in pictures[:128]]
    with threads(1):
        took = by_turns(functions, args.rounds, warm=30)
    for name, goal in (("eager", 8), ("compiled", 12), ("lightly", None)):
        if name in took:
            yield (
                f"views a second, {name}: times torchvision's per image",
                took["pil"] / took[name],
                "x",
                goal,
            )
    yield "views a second, eager, one thread", 256 / took["eager"], "images/s", None


def bench_step(args):
    """A step on the CPU against the same network without augmentation, and with torchvision's on tensors."""
    x = images(args, 1024)
    ready = [torch.randn(128, 3, 32, 32) for _ in range(2)]
    transformed = lambda: [torch.stack([TENSOR_PIPELINE(i) for i in x[:128]]) for _ in range(2)]
    ours = {"ours": simclr(x, 16, 128), "network": plain(16, lambda: ready), "usual": plain(16, transformed)}
    ours["compiled"] = simclr(x, 16, 128, compiled=True)
    took = by_turns(ours, max(3, args.rounds // 2))
    yield "step (width 16, batch 128)", took["ours"], "s", None
    yield "step / plain eager step without augmentation", took["ours"] / took["network"], "x", -1.1
    yield "step / plain eager step, torchvision v2 on tensors", took["ours"] / took["usual"], "x", -0.667
    yield "step, --compile / eager", took["compiled"] / took["ours"], "x", None


def bench_penalties(args):
    """What the penalties cost: C19."""
    x, width, batch = images(args, 4096).to(DEVICE), 64 if CUDA else 16, 512 if CUDA else 128
    steps = {reg: simclr(x, width, batch, reg) for reg in ("none", "lastlayer", "werank")}
    took = by_turns(steps, args.rounds, warm=5 if CUDA else 1, repeat=20 if CUDA else 1)
    for reg, value in took.items():
        yield f"step with penalty {reg}, width {width}, batch {batch}", value, "s", None
    for reg, goal in (("lastlayer", -1.0), ("werank", -10.0)):
        share = 100 * (took[reg] - took["none"]) / took["none"]
        yield f"{reg}, more of the step (width {width}, batch {batch})", share, "%", goal if CUDA else None
    widths, alone = (32, 64, 128), {}
    for width in widths:
        encoder = common.resnet(width=width).to(DEVICE)
        last, every = (
            common.last_convolution(encoder)[0].weight,
            [p for p in encoder.parameters() if p.ndim == 4],
        )
        alone["lastlayer", width] = lambda last=last: common.lastlayer_penalty(last).backward()
        alone["werank", width] = lambda every=every: common.werank_penalty(every).backward()
    took = by_turns(alone, args.rounds)
    for reg in ("lastlayer", "werank"):
        yield f"{reg} with its gradient, alone, width 64", 1e3 * took[reg, 64], "ms", None
        power = np.polyfit(np.log(widths), np.log([took[reg, width] for width in widths]), 1)[0]
        yield f"{reg} alone, power of the width", power, "", None


def lightly_knn(h, bank, labels, k=200, temperature=0.1):
    """Predictions as lightly 1.6 makes them (lightly.utils.benchmarking.knn), written anew."""
    with contextlib.suppress(ImportError):
        from lightly.utils.benchmarking.knn import knn_predict

        return knn_predict(h, bank, labels, 10, k, temperature)[:, 0]
    weight, index = (h @ bank).topk(k)
    votes = torch.zeros(len(h) * k, 10, device=h.device).scatter(1, labels[index].view(-1, 1), 1.0)
    return ((weight / temperature).exp()[..., None] * votes.view(len(h), k, 10)).sum(1).argmax(1)


def bench_evaluation(args):
    """kNN, linear probe and spectra on 50,000 and 10,000 features of 512 dimensions."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    y, test_y = (torch.randint(0, 10, (n,), generator=generator, device=DEVICE) for n in (50_000, 10_000))
    centres = torch.randn(10, 512, generator=generator, device=DEVICE)
    h, test_h = (
        (centres[labels] / 4 + torch.randn(len(labels), 512, generator=generator, device=DEVICE)).relu()
        for labels in (y, test_y)
    )

    def lightly():
        bank = torch.nn.functional.normalize(h, dim=1).T.contiguous()
        for block in torch.nn.functional.normalize(test_h, dim=1).split(256):
            lightly_knn(block, bank, y)

    knn = {"ours": lambda: common.knn_accuracy(h, y, test_h, test_y), "lightly": lightly}
    took = by_turns(knn, 5, warm=1)
    yield "kNN-200, 50,000 x 10,000 x 512", took["ours"], "s", -1.0 if CUDA else None
    yield "kNN-200 / lightly's knn_predict", took["ours"] / took["lightly"], "x", -1.0
    probe = seconds(lambda: common.linear_probe(h, y, test_h, test_y))
    yield "linear probe, 50,000 x 512", probe, "s", -5.0 if CUDA else None
    spectra = lambda: [(common.covariance_spectrum(test_h), common.rankme(test_h)) for _ in range(4)]
    yield "spectra and RankMe of four layers", seconds(spectra), "s", -2.0 if CUDA else None


MEMORY = """
import sys; sys.path[:0] = [{root!r}, {tests!r}]
import resource, torch, bench, common
torch.manual_seed(0)
data = common.Dataset("x", torch.full((50_000, 3, 32, 32), 7, dtype=torch.uint8), torch.arange(50_000) % 10,
                      torch.full((10_000, 3, 32, 32), 7, dtype=torch.uint8), torch.arange(10_000) % 10, ())
if {part!r} != "evaluation":
    step = bench.simclr(data.x_train, 64, 128, compiled=False)
    step(), step()
    del step
if {part!r} != "step":
    h, test_h = torch.randn(50_000, 512), torch.randn(10_000, 512)
    frozen = h, data.y_train, test_h, data.y_test
    common.linear_probe(*frozen), common.knn_accuracy(*frozen), common.rankme(test_h)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
"""


def bench_memory(args):
    """Peak memory of the process where a CIFAR-10 run at full width needs most: a step, the evaluation."""
    for part, goal in (("step", None), ("evaluation", None), ("step and evaluation", -2.5)):
        code = MEMORY.format(root=str(ROOT), tests=str(ROOT / "tests"), part=part)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        yield f"peak memory, {part} at full width, CPU", float(done.stdout.split()[-1]), "GB", goal


def bench_epoch(args):
    """Epochs of the paper's recipe, against a loop in the manner of lightly and dkobak/simclr-cifar10."""
    x, ours = images(args, 50_000).to(DEVICE), {}
    for batch, goal in ((512, -1.2), (128, -1.6)):
        step = simclr(x, 64, batch)
        ours[batch] = by_turns({"step": step}, args.rounds, warm=30, repeat=50)["step"] * (50_000 // batch)
        share = 100 * EPOCH_TFLOP / ours[batch] / PEAK_TFLOPS
        yield f"epoch of CIFAR-10, batch {batch}", ours[batch], "s", goal
        yield f"share of {PEAK_TFLOPS} TFLOP/s, batch {batch}", share, "%", None
        augment, part = common.Augment(32), x[: 2 * batch]
        augment.compile()
        views = by_turns({"views": partial(augment, part)}, args.rounds, 30, 50)["views"]
        share = 100 * views * (50_000 // batch) / ours[batch]
        yield f"views, share of the step, batch {batch}", share, "%", -5.0
    pictures = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in x[:12_800]]
    cores = len(os.sched_getaffinity(0))
    loader = torch.utils.data.DataLoader(
        Pairs(pictures),
        batch_size=128,
        shuffle=True,
        num_workers=cores,
        drop_last=True,
        pin_memory=True,
    )
    batches = iter(loader)
    step = plain(64, lambda: [view.to(DEVICE, non_blocking=True) for view in next(batches)])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    for _ in range(20):
        step()
    theirs = seconds(step, 60) * (50_000 // 128)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield f"epoch, PIL, DataLoader ({cores} cores), TF32, eager, batch 128", theirs, "s", None
    yield "times faster than that, batch 128", theirs / ours[128], "x", 8


class Pairs(torch.utils.data.Dataset):
    """Two PIL-made views of each picture."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return PIL_PIPELINE(self.pictures[i]), PIL_PIPELINE(self.pictures[i])


def bench_start(args):
    """From the start of simclr.py to its first step, with a cold and a warm compile cache, and its end."""
    with tempfile.TemporaryDirectory() as folder:
        rng, arrays = np.random.default_rng(0), {}
        for split, count in (("train", 50_000), ("test", 10_000)):
            arrays[f"x_{split}"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            arrays[f"y_{split}"] = np.arange(count) % 10
        np.savez(f"{folder}/random.npz", **arrays)
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}
        for cache, goal in (("cold", -90), ("warm", -15)):
            command = [sys.executable, str(ROOT / "simclr.py"), "--dataset", f"{folder}/random.npz"]
            command += ["--epochs", "2", "--out", f"{folder}/{cache}"]
            start = time.time()
            done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
            if done.returncode:
                raise common.UserError(f"simclr.py failed: {done.stderr.strip().splitlines()[-1]}")
            config, metrics, result = (
                Path(folder) / cache / name for name in ("config.json", "metrics.jsonl", "result.json")
            )
            first, second = (json.loads(line)["seconds"] for line in metrics.read_text().splitlines())
            begin = config.stat().st_mtime - start + first - (second - first)
            yield f"start to first step, {cache} cache", begin, "s", goal
        end = result.stat().st_mtime - config.stat().st_mtime - second
        yield "end of training to result.json", end, "s", -15


BENCHES = {
    "augment": (bench_augment, False),
    "step": (bench_step, False),
    "penalties": (bench_penalties, False),
    "evaluation": (bench_evaluation, False),
    "memory": (bench_memory, False),
    "epoch": (bench_epoch, True),
    "start": (bench_start, True),
}


def main():
    parser = common.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder with cifar10.npz (data)")
    parser.add_argument("--rounds", type=common.number(int, 1), default=9, help="of each median (9)")
    parser.add_argument("--only", help=f"some of {','.join(BENCHES)}")
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else list(BENCHES)
    if unknown := set(chosen) - set(BENCHES):
        raise common.UserError(f"--only {min(unknown)} is none of {', '.join(BENCHES)}")
    device = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}, torch {torch.__version__}, {datetime.date.today()}")
    rows, failed = [], []
    for name in chosen:
        function, needs_cuda = BENCHES[name]
        if needs_cuda and not CUDA:
            print(f"{name}: {function.__doc__.splitlines()[0]}: needs CUDA")
            continue
        torch._dynamo.reset()
        try:
            for what, value, unit, goal in function(args):  # a goal below 0 is an upper limit
                met = None if goal is None else value >= goal if goal > 0 else value <= -goal
                limit = "" if goal is None else f"goal {'>=' if goal > 0 else '<='} {abs(goal):g}"
                print(f"{what:64} {value:9.3g} {unit:9} {limit:13} {'MISSED' * (met is False)}", flush=True)
                row = {"what": what, "value": float(f"{value:.4g}"), "unit": unit, "goal": limit, "met": met}
                rows.append(row)
        except Exception as error:  # noqa: BLE001 - the other figures are worth having
            failed.append(name)
            print(f"{name} failed: {type(error).__name__}: {common.brief(error)}", flush=True)
    if not args.only:
        name = "cpu" if not CUDA else device.lower().replace(" ", "-")
        file = ROOT / "results" / f"bench-{name}.json"
        file.parent.mkdir(exist_ok=True)
        content = {"device": device, "torch": torch.__version__, "date": str(datetime.date.today())}
        common.write_json(file, {**content, "rounds": args.rounds, "rows": rows})
        print(file.relative_to(ROOT))
    if failed:
        raise common.UserError(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    common.run(main)
