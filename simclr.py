"""SimCLR with and without its projector, with a penalty on the weights in the projector's place.

Reproduces LL tables 1 and 2 (rows of SimCLR), DirectCLR tables 1 and 2 and appendix F (kinds of projector),
and SparseHead table 1 (SimCLR). Without arguments it is LL's baseline on CIFAR-10, kNN-200 86.1 in the paper.

    python simclr.py                                            LL table 2, SimCLR
    python simclr.py --no-projector                             without projector
    python simclr.py --no-projector --reg lastlayer             ‖WWᵀ - I‖² on the last convolution instead
    python simclr.py --no-projector --fixed-dims 32             constant subvector (LL table 1: 480, k = 0)
    python simclr.py --projector orthogonal --cross-view        DirectCLR appendix F
    python simclr.py --dataset shapes --width 8 --epochs 8      a first run: a minute on a CPU, no download
"""
import torch
import torch.nn.functional as F

import common


class ConstantSubvector(torch.nn.Module):
    """z: h (B, D) with its last `count` dimensions replaced by the constant `value` (LL table 1)."""

    def __init__(self, count, value):
        super().__init__()
        self.count, self.value = count, value

    def forward(self, h):
        return F.pad(h[:, :-self.count], (0, self.count), value=self.value)


def parse():
    """The command line's arguments."""
    parser = common.arguments(__doc__)
    count, real = common.number(int, 1), common.number(float, -1e6, 1e6)
    add = common.projector_arguments(parser, common.PROJECTORS, "SimCLR; others: DirectCLR").add_argument
    add("--hidden", type=count, help="hidden width of mlp (D)")
    add("--embedding", type=count, help="width of z of mlp and linear (128: SimCLR)")
    add("--rank", type=count, help="d0 of the low-rank kinds (D 360/2048: DirectCLR)")
    add("--fixed-dims", type=count, metavar="N", help="without projector: the last N of D are constant in z")
    add("--fixed-value", type=real, metavar="K", help="their value (0)")
    add = parser.add_argument_group("loss").add_argument
    add("--temperature", type=common.number(float, 1e-4, 1e6), default=0.2, help="(0.2: LL)")
    add("--cross-view", action="store_true", help="negatives from the other view only (DirectCLR)")
    return parser.parse_args()


def check(args):
    """Refuses arguments that make no sense together."""
    common.check_projector(args, {"hidden": ("mlp",), "embedding": ("mlp", "linear"),
                                  "rank": ("lowrank", "lowrank-diagonal")})
    if args.fixed_dims and args.projector != "none":
        raise common.UserError(f"--fixed-dims needs --no-projector, not --projector {args.projector}")
    if args.fixed_value is not None and not args.fixed_dims:
        raise common.UserError("--fixed-value needs --fixed-dims")


def row_name(args, dim):
    """The row of the papers' tables that these arguments are: simclr, noproj-lastlayer, cs-d480-k0 …"""
    name = {"mlp": "simclr", "none": "noproj"}.get(args.projector, f"simclr-{args.projector}")
    name = f"cs-d{dim - args.fixed_dims}-k{args.fixed_value or 0:g}" if args.fixed_dims else name
    return name if args.reg == "none" else f"{name}-{args.reg}"


def main():
    args = parse()
    check(args)
    data = common.prepare(args)
    encoder = common.resnet(args.arch, args.stem, args.width)
    if args.fixed_dims and args.fixed_dims >= encoder.dim:
        raise common.UserError(f"--fixed-dims {args.fixed_dims} leaves none of h's {encoder.dim} dimensions")
    projector = common.projector(args.projector, encoder.dim, args.hidden, args.embedding or 128, args.rank)
    if args.fixed_dims:
        projector = ConstantSubvector(args.fixed_dims, args.fixed_value or 0.0)
    penalty = common.regularizer(args, encoder, projector)

    def loss(x1, x2):  # LL eq. 1 and 11
        z1, z2 = common.embed(encoder, projector, x1, x2)
        return common.info_nce(z1, z2, args.temperature, args.cross_view) + args.reg_weight * penalty()

    common.fit(args, data, encoder, projector, loss, row_name(args, encoder.dim))


if __name__ == "__main__":
    common.run(main)
