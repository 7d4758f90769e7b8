"""Times what docs/performance.md claims: make bench prints one table and writes results/bench-<device>.json.

    python tests/bench.py                                   on CIFAR-10 in data/, else on random images
    python tests/bench.py --only augment step --rounds 15   some of it, more often

What is compared is measured by turns in one process on the same number of threads; numbers are medians. Rows
that need a CUDA device, or none, say so where it is otherwise.
"""

import datetime
import itertools
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as vision
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
EPOCH_TFLOP = 334  # ResNet-18, 50,000 images, two views
PEAK_TFLOPS = 790  # H100, H200, bfloat16 matmul
VIEW = [vision.RandomResizedCrop(32), vision.RandomHorizontalFlip()]
VIEW += [vision.RandomApply([vision.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), vision.RandomGrayscale(0.2)]
SCALE = [vision.ToDtype(torch.float32, True), vision.Normalize(common.IMAGENET_MEAN, common.IMAGENET_STD)]
PIL_PIPELINE = vision.Compose([*VIEW, vision.ToImage(), *SCALE])  # as lightly and dkobak compose it
TENSOR_PIPELINE = vision.Compose([*VIEW, *SCALE])
PENALTIES = {"lastlayer": common.lastlayer_penalty, "werank": common.werank_penalty}


def seconds(function, repeat=1):
    """Of one call, on average over `repeat` calls, the device's work included."""
    wait = torch.cuda.synchronize if CUDA else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(repeat):
        function()
    wait()
    return (time.perf_counter() - start) / repeat


def by_turns(functions, rounds, warm=2, repeat=1):
    """Median seconds of each of {name: function}, called by turns."""
    for function in functions.values():
        seconds(function, warm)
    times = [{name: seconds(function, repeat) for name, function in functions.items()} for _ in range(rounds)]
    return {name: statistics.median(each[name] for each in times) for name in functions}


def images(args, count):
    """uint8 (count, 3, 32, 32): CIFAR-10's where it is, else random."""
    if (Path(args.data) / "cifar10.npz").exists():
        return common.load_dataset("cifar10", args.data).x_train[:count]
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)


def two_views(pipeline, batch):
    """The two views of a batch that a pipeline makes image by image."""
    return [torch.stack([pipeline(image) for image in batch]) for _ in range(2)]


def simclr(x, width, batch, reg="none", arch="resnet18", compiled=CUDA):
    """A function: common's training step of SimCLR without projector, on the next images of x."""
    line = f"--device {DEVICE} --arch {arch} --width {width} --batch-size {batch} --reg {reg} --image-size 32"
    line += f" --precision {'bf16' if CUDA else 'float32'} {'--compile' if compiled else '--no-compile'}"
    args = common.resolve(common.arguments("").parse_args(line.split()))
    encoder = common.make_encoder(args)
    projector = common.projector("none", encoder.dim)
    penalty = common.regularizer(args, encoder, projector)
    loss = lambda x1, x2: common.info_nce(*common.embed(encoder, projector, x1, x2)) + penalty()
    step = common.training_step(args, encoder, projector, loss)[0]
    order = itertools.cycle(torch.randperm(len(x), device=x.device).split(batch)[: len(x) // batch])
    return lambda: step(x[next(order)])


def plain(width, views):
    """An eager step as it is usually written; views() gives two batches (B, 3, 32, 32)."""
    encoder = common.resnet(width=width).to(DEVICE)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step():
        x1, x2 = views()
        optimizer.zero_grad()
        common.info_nce(encoder(x1), encoder(x2)).backward()
        optimizer.step()

    return step


def bench_augment(args):
    """Augment against torchvision v2, image by image from PIL, on one thread."""
    x = images(args, 256)
    eager, compiled = common.Augment(32), common.Augment(32)
    compiled.compile()
    pictures = [Image.fromarray(image) for image in x[:128].permute(0, 2, 3, 1).numpy()]
    ways = {"pil": partial(two_views, PIL_PIPELINE, pictures), "eager": partial(eager, x)}
    ways["compiled"] = partial(compiled, x)
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    took = by_turns(ways, args.rounds, warm=30)
    torch.set_num_threads(count)
    for name, goal in (("eager", 8), ("compiled", 12)):
        what = f"views a second, {name}: times torchvision's per image"
        yield f"views-{name}-ratio", what, took["pil"] / took[name], "x", goal
    yield "views-eager-per-second", "views a second, eager, one thread", 256 / took["eager"], "images/s", None


def bench_step(args):
    """A step on the CPU against the same network without augmentation, and with torchvision's on tensors."""
    x = images(args, 1024)
    ready = torch.randn(2, 128, 3, 32, 32)
    usual = plain(16, partial(two_views, TENSOR_PIPELINE, x[:128]))
    ways = {"ours": simclr(x, 16, 128), "network": plain(16, lambda: ready), "usual": usual}
    ways["compiled"] = simclr(x, 16, 128, compiled=True)
    took = by_turns(ways, max(3, args.rounds // 2))
    ours = took["ours"]
    yield "step-seconds", "step (width 16, batch 128)", ours, "s", None
    yield "step-ratio-plain", "step / plain eager one without augmentation", ours / took["network"], "x", -1.1
    yield "step-ratio-torchvision", "step / plain one, torchvision's views", ours / took["usual"], "x", -0.667
    yield "step-ratio-compiled", "step, --compile / eager", took["compiled"] / ours, "x", None


def bench_penalties(args):
    """What the penalties cost (C19): of a step; alone, over the encoder's depth L and its width n."""
    archs, widths = ("resnet18", "resnet34", "resnet50"), (32, 64, 128)
    width = 64 if CUDA else 16
    x = images(args, 4096).to(DEVICE)
    often = {"warm": 5, "repeat": 20} if CUDA else {"warm": 1}
    for arch in archs:
        steps = {reg: simclr(x, width, 8 * width, reg, arch) for reg in ("none", *PENALTIES)}
        took = by_turns(steps, args.rounds, **often)
        where = f"{arch}, width {width}, batch {8 * width}"
        end = "" if arch == "resnet18" else f"-{arch}"
        for reg, value in took.items():
            yield f"step-{reg}-seconds{end}", f"step with penalty {reg} ({where})", value, "s", None
        for reg, goal in (("lastlayer", -1.0), ("werank", -10.0)):
            share = 100 * (took[reg] / took["none"] - 1)
            goal = goal if CUDA and not end else None
            yield f"penalty-{reg}-share{end}", f"{reg}, more of the step ({where})", share, "%", goal
    alone = {}
    for arch, width in [*((arch, 64) for arch in archs), *(("resnet18", width) for width in widths)]:
        encoder = common.resnet(arch, width=width).to(DEVICE)
        every = [parameter for parameter in encoder.parameters() if parameter.ndim == 4]
        for reg, weight in (("lastlayer", common.encoder_end(encoder)[0].weight), ("werank", every)):
            alone[reg, arch, width] = lambda reg=reg, weight=weight: PENALTIES[reg](weight).backward()
    took = by_turns(alone, args.rounds)
    for reg in PENALTIES:
        for arch in archs:
            what = f"{reg} with its gradient, alone, {arch}, width 64"
            yield f"penalty-{reg}-{arch}", what, 1e3 * took[reg, arch, 64], "ms", None
        times = [took[reg, "resnet18", width] for width in widths]
        power = np.polyfit(np.log(widths), np.log(times), 1)[0]
        yield f"penalty-{reg}-width-power", f"{reg} alone, power of the width", power, "", None


def lightly_knn(train_h, train_y, test_h, k=200, temperature=0.1):
    """Yields predictions as lightly 1.6 makes them (lightly.utils.benchmarking.knn), written anew."""
    bank = F.normalize(train_h, dim=1).T.contiguous()
    for h in F.normalize(test_h, dim=1).split(256):
        weight, index = (h @ bank).topk(k)
        votes = torch.zeros(len(h) * k, 10, device=h.device).scatter(1, train_y[index].view(-1, 1), 1.0)
        yield ((weight / temperature).exp()[..., None] * votes.view(len(h), k, 10)).sum(1).argmax(1)


def features():
    """50,000 and 10,000 h of 512 dimensions and their labels, as encoders give them: correlated dimensions
    behind a ReLU, classes that overlap."""
    random = partial(torch.randn, generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE)
    y = torch.arange(60_000, device=DEVICE) % 10
    scale = torch.arange(1, 513, device=DEVICE) ** -0.8
    h = (((random(10, 512)[y] + 3 * random(60_000, 512)) * scale) @ random(512, 512) + 0.5).relu()
    return h[:50_000], y[:50_000], h[50_000:], y[50_000:]


def bench_evaluation(args):
    """kNN, linear probe and spectra on 50,000 and 10,000 features of 512 dimensions."""
    frozen = features()
    ways = {"ours": lambda: common.knn_accuracy(*frozen), "lightly": lambda: list(lightly_knn(*frozen[:3]))}
    took = by_turns(ways, 5, warm=1)
    probe = seconds(lambda: common.linear_probe(*frozen))
    spectra = 4 * seconds(lambda: (common.covariance_spectrum(frozen[2]), common.rankme(frozen[2])), 4)
    yield "knn-seconds", "kNN-200, 50,000 x 10,000 x 512", took["ours"], "s", -1.0 if CUDA else None
    yield "knn-ratio-lightly", "kNN-200 / lightly's knn_predict", took["ours"] / took["lightly"], "x", -1.0
    yield "probe-seconds", "linear probe, 50,000 x 512", probe, "s", -5.0 if CUDA else None
    yield "spectra-seconds", "spectra and RankMe of four layers", spectra, "s", -2.0 if CUDA else None


MEMORY = """
import sys, torch, bench, common
torch.manual_seed(0)
if sys.argv[1] != "evaluation":
    bench.seconds(bench.simclr(torch.full((50_000, 3, 32, 32), 7, dtype=torch.uint8), 64, 128), 2)
if sys.argv[1] != "step":
    frozen = bench.features()
    common.linear_probe(*frozen), common.knn_accuracy(*frozen), common.rankme(frozen[2])
peak, = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 / 1e9)  # ru_maxrss would be the parent's, where that needed more
"""


def bench_memory(args):
    """Peak memory of the process where a CIFAR-10 run at full width needs most: a step, the evaluation."""
    where = {"cwd": ROOT / "tests", "env": {**os.environ, "CUDA_VISIBLE_DEVICES": ""}}
    for part, goal in (("step", None), ("evaluation", None), ("both", -2.5)):
        command = [sys.executable, "-c", MEMORY, part]
        done = subprocess.run(command, **where, capture_output=True, text=True, check=True)
        yield f"memory-{part}", f"peak memory, {part} at full width, CPU", float(done.stdout), "GB", goal


def bench_epoch(args):
    """Epochs of the paper's recipe, against a loop in the manner of lightly and dkobak/simclr-cifar10."""
    x = images(args, 50_000).to(DEVICE)
    for batch, goal in ((512, -1.2), (128, -1.6)):
        augment = common.Augment(32)
        augment.compile()
        ways = {"step": simclr(x, 64, batch), "views": partial(augment, x[: 2 * batch])}
        took = by_turns(ways, args.rounds, warm=30, repeat=50)
        ours = took["step"] * (50_000 // batch)
        peak = 100 * EPOCH_TFLOP / ours / PEAK_TFLOPS
        views = 100 * took["views"] / took["step"]
        yield f"epoch-seconds-{batch}", f"epoch of CIFAR-10, batch {batch}", ours, "s", goal
        yield f"epoch-peak-share-{batch}", f"share of {PEAK_TFLOPS} TFLOP/s, batch {batch}", peak, "%", None
        yield f"epoch-views-share-{batch}", f"views, share of the step, batch {batch}", views, "%", -5.0
    options = {"batch_size": 128, "shuffle": True, "drop_last": True, "pin_memory": True}
    options |= {"num_workers": len(os.sched_getaffinity(0)), "collate_fn": partial(two_views, PIL_PIPELINE)}
    pictures = [Image.fromarray(image) for image in x[:12_800].permute(0, 2, 3, 1).cpu().numpy()]
    batches = iter(torch.utils.data.DataLoader(pictures, **options))
    step = plain(64, lambda: [view.to(DEVICE, non_blocking=True) for view in next(batches)])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    seconds(step, 20)
    theirs = seconds(step, 60) * (50_000 // 128)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield "epoch-seconds-usual", "epoch, PIL, DataLoader, TF32, eager, batch 128", theirs, "s", None
    yield "epoch-ratio-usual", "times faster than that, batch 128", theirs / ours, "x", 8


BENCHES = {"augment": bench_augment, "step": bench_step, "penalties": bench_penalties}
BENCHES |= {"evaluation": bench_evaluation, "memory": bench_memory, "epoch": bench_epoch}


def main():
    parser = common.Parser(__doc__)
    parser.add_argument("--data", default="data", help="folder with cifar10.npz (data)")
    parser.add_argument("--rounds", type=common.number(int, 1), default=9, help="of each median (9)")
    parser.add_argument("--only", choices=BENCHES, nargs="+", help="some of it (all)")
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    origin = {"device": device, "torch": torch.__version__, "date": str(datetime.date.today())}
    print(*origin.values(), sep=", ")
    rows, failed = [], []
    for name in args.only or BENCHES:
        if name == ("step" if CUDA else "epoch"):
            where = "without CUDA" if CUDA else "with CUDA"
            print(f"{name}: {BENCHES[name].__doc__}: runs {where} only")
            continue
        try:
            for key, what, value, unit, goal in BENCHES[name](args):  # a goal below 0 is an upper limit
                limit = f"goal {'>=' if goal > 0 else '<='} {abs(goal):g}" if goal else ""
                met = (value if goal > 0 else -value) >= goal if goal else None
                print(f"{what:64} {value:9.3g} {unit:9} {limit:13} {'MISSED' * (met is False)}", flush=True)
                row = {"key": key, "what": what, "value": float(f"{value:.4g}"), "unit": unit}
                rows.append({**row, "goal": limit, "met": met})
        except Exception as error:  # the other figures are worth having
            failed.append(name)
            print(f"{name} failed: {type(error).__name__}: {common.brief(error)}", flush=True)
    if not args.only:
        name = device.lower().replace(" ", "-") if CUDA else "cpu"
        file = ROOT / "results" / f"bench-{name}.json"
        common.write_json(file, {**origin, "rounds": args.rounds, "rows": rows})
        print(file.relative_to(ROOT))
    if failed:
        raise common.UserError(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    common.run(main)
