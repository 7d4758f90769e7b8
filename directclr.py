"""DirectCLR: SimCLR without projector, whose loss sees a part of the representation only.

Reproduces LL table 2 (rows of DirectCLR), DirectCLR table 1, appendix F (random dimensions; the probe on the
subvector alone) and figure 12 (d0). DirectCLR's own recipe has --cross-view --temperature 0.1.

    python directclr.py                                     LL table 2, DirectCLR, kNN-200 85.2 in the paper
    python directclr.py --reg lastlayer                     ‖WWᵀ - I‖² on the last convolution besides
    python directclr.py --subvector random                  other d0 dimensions in every step
    python directclr.py --dim 256                           figure 12
    python directclr.py --dataset shapes --width 8 --epochs 8   a first run: a minute on a CPU, no download
"""

import common
import torch


class Subvector(torch.nn.Module):
    """z: `count` dimensions of h (B, D), the first ones, or in training those of the last `redraw`."""

    def __init__(self, dim, count):
        super().__init__()
        self.dim = dim
        self.register_buffer("chosen", torch.arange(count))

    def redraw(self):
        """Other dimensions, from torch's global generator, for both views of a step."""
        self.chosen.copy_(torch.rand(self.dim, device=self.chosen.device).argsort()[: len(self.chosen)])

    def forward(self, h):
        return h[:, self.chosen] if self.training else h[:, : len(self.chosen)]


def parser():
    """The command line's arguments."""
    found = common.arguments(__doc__)
    add = found.add_argument_group("subvector, from h to z").add_argument
    add("--dim", type=common.size, help="d0, its size (90 of 512, 360 of 2048: DirectCLR)")
    add("--subvector", choices=("fixed", "random"), default="fixed", help="random: redrawn in every step")
    add = found.add_argument_group("loss").add_argument
    add("--temperature", type=common.number(float, 1e-4, 1e6), default=0.2, help="(0.2: LL; DirectCLR 0.1)")
    add("--cross-view", action="store_true", help="negatives from the other view only (DirectCLR)")
    return found


resolve = common.resolve


def run_name(args):
    """What a run's folder is called unless --out says: directclr, directclr-random, directclr-d9 …"""
    name = "directclr" if args.subvector == "fixed" else "directclr-random"
    name = f"{name}-d{args.dim}" if args.dim else name
    return name if args.reg == "none" else f"{name}-{args.reg}"


def main():
    args, data = common.prepare(parser().parse_args(), resolve)
    encoder = common.make_encoder(args)
    count = args.dim or round(encoder.dim * 360 / 2048)
    if not 0 < count <= encoder.dim:
        raise common.UserError(f"--dim {count} is not from 1 to {encoder.dim}, the dimensions of h")
    subvector = Subvector(encoder.dim, count)
    penalty = common.regularizer(args, encoder, subvector)

    def loss(x1, x2):  # LL eq. 1 and 11 on h's first d0 dimensions (DirectCLR section 6.2)
        if args.subvector == "random":
            subvector.redraw()
        z1, z2 = common.embed(encoder, subvector, x1, x2)
        return common.info_nce(z1, z2, args.temperature, args.cross_view) + penalty()

    def probe(train_h, train_y, test_h, test_y):  # DirectCLR appendix F: the probe on z only
        top1, top5 = common.linear_probe(train_h[:, :count], train_y, test_h[:, :count], test_y)
        return {"dim": count, "subvector_linear_top1": top1, "subvector_linear_top5": top5}

    common.fit(args, data, encoder, subvector, loss, run_name(args), probe)


if __name__ == "__main__":
    common.run(main)
