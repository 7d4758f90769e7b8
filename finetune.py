"""Fine-tunes a pretrained encoder with a linear layer on few labels, or trains the layer alone (--freeze).

Reproduces SparseHead table 2, top-1 and top-5 with 1 % and 10 % of the labels, by the protocol of Barlow
Twins' public evaluate.py and README, but for the cosine, which falls every step. The encoder is a run's
encoder.pt or any torchvision-named ResNet-18, -34 or -50. RUN is a run's folder.

    python finetune.py RUN/encoder.pt                           1 % of the labels
    python finetune.py RUN/encoder.pt --scratch                 the baseline: its weights drawn anew
    python finetune.py RUN/encoder.pt --freeze                  a linear layer, all labels, 100 epochs
    python finetune.py resnet50.pth --labels 0.1 --dataset data/imagenet100 --image-size 224
    python finetune.py --table mini                             SparseHead table 2 as make measured it
"""

import argparse
import math
import os
import zlib
from itertools import islice
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from torch import nn

# Barlow Twins' evaluate.py: the README's command for few labels, and the defaults, which are for all of them
FEW = {"labels": 0.01, "epochs": 20, "lr": 0.5, "lr_encoder": 0.002, "weight_decay": 0.0}
FROZEN = {"labels": 1.0, "epochs": 100, "lr": 0.3, "weight_decay": 1e-6}


def choose(y, share, seed):
    """Indices of a share of the labelled images, those of labels y (N,) >= 0, drawn by the seed.

    Classes have numbers that differ by 1 at most, but for classes with fewer images; share 1 is all of them.
    A smaller share of the same seed is a part of a larger one, up to that 1. UserError if a class gets none.
    """
    y = y.cpu()
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    shuffled = shuffled[y[shuffled] >= 0]
    if share == 1:
        return shuffled
    return shuffled[common.balanced(y[shuffled], round(share * len(shuffled)), f"--labels {share:g}")]


class FineTuning(common.Training):
    """Training of encoder and classifier on chosen images, in batches of equal size but for 1.

    chosen: their indices. SGD with momentum 0.9, the classifier's rate and the encoder's each on a cosine.
    Views are crops and flips. A frozen encoder keeps its BatchNorms.
    """

    def __init__(self, args, data, chosen, encoder):
        classifier = nn.Linear(encoder.dim, len(data.classes))
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)
        encoder.requires_grad_(not args.freeze)
        model = nn.ModuleDict({"encoder": encoder, "classifier": classifier}).to(args.device)
        model = model.to(memory_format=common.memory_format(encoder))  # of an encoder on its device
        groups = [{"params": classifier.parameters(), "lr": args.lr}]  # `train_on` sets the first one's rate
        if not args.freeze:
            groups.append({"params": encoder.parameters(), "lr": args.lr_encoder})
        opt = torch.optim.SGD(groups, momentum=0.9, weight_decay=args.weight_decay)
        views = torch.Generator(args.device).manual_seed(args.seed)
        made = (self.step_on, model, opt, views)
        super().__init__(args, data, made, math.ceil(len(chosen) / args.batch_size))
        self.chosen = chosen
        self.epoch_images = len(chosen)
        self.augment = common.Augment(args.image_size, jitter_p=0, grey_p=0)

    def begin(self):
        """Nothing is measured before the first step."""

    def remaining_batches(self):
        """Images and labels of every step to come."""
        x, y = self.data.x_train, self.data.y_train
        for epoch in range(self.step // self.per_epoch, self.args.epochs):
            order = common.epoch_order(self.args.seed, epoch, len(self.chosen), self.args.device)
            picked = self.chosen[order]
            places = picked.to(x.device)  # where x lies in files, on the host: asked for once an epoch
            batches = zip(places.tensor_split(self.per_epoch), picked.tensor_split(self.per_epoch))
            for place, batch in islice(batches, self.step % self.per_epoch, None):
                yield x[place].to(self.device), y[batch]

    def step_on(self, batch):
        """A step; its loss, weighted so that the mean over an epoch's batches is that over its images."""
        encoder, classifier = self.model.values()
        encoder.train(not self.args.freeze)
        first, *others = self.optimizer.param_groups
        for group in others:
            group["lr"] = first["lr"] * self.args.lr_encoder / self.args.lr
        images, labels = batch
        x = self.augment(images, self.views).contiguous(memory_format=common.memory_format(encoder))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.args.precision == "bf16"):
            loss = F.cross_entropy(classifier(encoder(x)), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach() * (len(labels) * self.per_epoch / len(self.chosen))

    def evaluation(self, epoch):
        """Nothing is measured before the end."""
        return {}

    def results(self, out):
        """What result.json holds."""
        top1, top5 = accuracies(*self.model.values(), self.data)
        found = {"top1": top1, "top5": top5, "images": len(self.chosen)}
        return found | {"loss": self.metrics[-1]["loss"], "seconds": self.seconds}


def accuracies(encoder, classifier, data):
    """(top-1, top-5) percent of the test images, not augmented."""
    logits = common.features(encoder, classifier, data.x_test, ("z",))["z"]
    if not logits.isfinite().all():
        common.fail("weights or features are not finite: try a smaller --lr, --lr-encoder", 1)
    hits = logits.topk(min(5, logits.shape[1])).indices == data.y_test[:, None]
    return 100 * hits[:, 0].double().mean().item(), 100 * hits.any(1).double().mean().item()


def run_name(args):
    """What a run's folder is called unless --out says: finetune-0.01, scratch-0.1, linear-1 …"""
    kinds = ["linear"] * args.freeze + ["scratch"] * args.scratch or ["finetune"]
    return "-".join([*kinds, f"{args.labels:g}"])


def parser():
    """The command line's arguments."""
    found = common.Parser(__doc__)
    found.set_defaults(train_size=None, compile=False, warmup_epochs=0)  # for prepare
    number = common.number
    add = found.add_argument_group("encoder").add_argument
    add("checkpoint", nargs="?", help="its weights: encoder.pt of a run, or a ResNet's from elsewhere")
    add("--scratch", action="store_true", help="the same encoder with weights drawn anew")
    add("--freeze", action="store_true", help="train the linear layer only, BatchNorm statistics stay")
    data, run = common.shared_arguments(found)
    data("--labels", type=number(float, 1e-9, 1), help="share of them, class-balanced (0.01; --freeze 1)")
    add = found.add_argument_group("optimisation: SGD, momentum 0.9, cosine to 0 (Barlow Twins)").add_argument
    add("--epochs", type=number(int, 1), help="(20; --freeze 100)")
    add("--batch-size", type=number(int, 4), default=256, help="images at most, no more than there are (256)")
    add("--lr", type=number(float, 1e-12), help="of the linear layer (0.5; --freeze 0.3; --scratch as below)")
    add("--lr-encoder", type=number(float, 1e-12), help="(0.002; --scratch 0.06 batch/128)")
    add("--weight-decay", type=number(float, 0), help="(0; --freeze 1e-6)")
    run("--table", metavar="SCALE", help="print SparseHead table 2 as measured at this scale instead")
    return found


def resolve(args):
    """The arguments with every default filled in."""
    given = {key: value for key, value in vars(args).items() if value is not None}
    defaults = FROZEN if args.freeze else FEW
    if args.scratch and not args.freeze:
        # one rate for all weights, as for training without labels: with 0.5 for some it learns nothing
        rate = 0.06 * args.batch_size / 128
        defaults = defaults | {"lr": rate, "lr_encoder": rate}
    return argparse.Namespace(**{**vars(args), **defaults, **given})


def table(scale):
    """Prints SparseHead table 2 from results-finetune/<scale>, a line a row and data set."""
    import report
    import rows

    if scale not in rows.SCALES:
        raise common.UserError(f"--table {scale} is none of {', '.join(rows.SCALES)}")
    print(f"{'SparseHead table 2, ' + scale:70}{'top-1':>18}{'top-5':>18}  paper, ImageNet")
    for folder in sorted(Path("results-finetune", scale).glob("*")):
        for row in rows.of(rows.FT):
            what = (row.name, scale, folder.name)
            runs = [common.read_json(path) for path in sorted((folder / row.name).glob("seed*.json"))]
            runs = [run for run in runs if isinstance(run, dict)]
            runs = [run for run in runs if not rows.mismatch(run.get("config"), *what)]
            cells = ""
            for metric in ("top1", "top5"):
                values = [run[metric] for run in runs if isinstance(run.get(metric), float)]
                cells += f"{report.mean_std(values):>18}"
            paper = " ".join(map(str, row.paper.values()))
            print(f"{folder.name:12}{row.name:24}{row.label:34}{cells}  {paper}")


def main():
    args = parser().parse_args()
    if args.table:
        try:
            return table(args.table)
        except ImportError as error:
            raise common.UserError(f"--table needs the whole repository ({error})") from None
    if not args.checkpoint:
        raise common.UserError("a checkpoint must be named, such as runs/cifar10-simclr-seed0/encoder.pt")
    if args.freeze and args.lr_encoder:
        raise common.UserError("--lr-encoder makes no sense with --freeze")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise common.UserError("finetune.py runs in one process")
    encoder, found = common.load_encoder(args.checkpoint, args.image_size)
    checkpoint = Path(args.checkpoint)
    out = common.run_folder(args, run_name(resolve(args)))
    if out.resolve() in (checkpoint.parent.resolve(), checkpoint.resolve().parent):
        raise common.UserError(f"--out {out} is the folder of {checkpoint}")
    config = common.run_config(checkpoint.parent) if checkpoint.name == "encoder.pt" else None
    found["pretraining"] = config or f"{zlib.crc32(checkpoint.read_bytes()):08x}"
    args, data = common.prepare(argparse.Namespace(**{**vars(args), **found}), resolve)
    if args.scratch:
        encoder = common.make_encoder(args)
    chosen = choose(data.y_train, args.labels, args.seed).to(args.device)
    if len(chosen) < 2:
        raise common.UserError(f"--labels {args.labels:g} takes {len(chosen)} image; two are the least")
    common.complete(FineTuning(args, data, chosen, encoder), run_name(args))


if __name__ == "__main__":
    common.run(main)
