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

import common
import torch
import torch.nn.functional as F
from torch import nn

PROJECTORS = ("mlp", "linear", "none", "orthogonal", "diagonal", "lowrank", "lowrank-diagonal")


class Product(nn.Module):
    """z: h Wᵀ, or h ⊙ w where the weight is a vector, exact (not in bfloat16) whatever the autocast."""

    def __init__(self, weight, trained=False):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=trained)

    def forward(self, h):
        with torch.autocast(h.device.type, enabled=False):
            (h,) = common.full_precision(h)
            weight = self.weight  # read once: an orthogonal one is computed anew
            return h * weight if weight.ndim == 1 else F.linear(h, weight)


class ConstantSubvector(nn.Module):
    """z: h (B, D) with its last `count` dimensions replaced by the constant `value` (LL table 1)."""

    def __init__(self, count, value):
        super().__init__()
        self.count = count
        self.value = value

    def forward(self, h):
        return F.pad(h[:, : -self.count], (0, self.count), value=self.value)


def matrix_projector(kind, dim, rank=None):
    """DirectCLR's projectors from h (B, dim) to z (B, dim), a module. UserError unless 0 < rank <= dim.

    orthogonal: trained, all singular values 1 (app. F). diagonal: h ⊙ w, trained from w = 1 (table 2).
    lowrank: fixed, `rank` singular values 1, the rest 0 (app. F). lowrank-diagonal: h with all but its first
    `rank` dimensions zeroed (table 2). rank: 360/2048 of dim unless given.
    """
    rank = round(dim * 360 / 2048) if rank is None else rank
    if not 0 < rank <= dim:
        raise common.UserError(f"rank (--rank) {rank} must be from 1 to {dim}")
    if kind == "diagonal":
        return Product(torch.ones(dim), trained=True)
    kept = (torch.arange(dim) < rank).float()
    if kind == "lowrank-diagonal":
        return Product(kept)
    u, v = (nn.init.orthogonal_(torch.empty(dim, dim)) for _ in range(2))
    if kind == "lowrank":
        return Product(u * kept @ v.T)
    if kind != "orthogonal":
        raise common.UserError(f"projector {kind!r} is none of {', '.join(PROJECTORS)}")
    return nn.utils.parametrizations.orthogonal(Product(u, trained=True), orthogonal_map="matrix_exp")


def fixed_value(text):
    """An argparse type: a number, or inv for 1/√D."""
    return text if text == "inv" else common.number(float, -1e6, 1e6)(text)


def parser():
    """The command line's arguments."""
    found = common.arguments(__doc__)
    add = common.projector_arguments(found, PROJECTORS, "SimCLR; others: DirectCLR").add_argument
    add("--hidden", type=common.size, help="hidden width of mlp (D)")
    add("--embedding", type=common.size, help="width of z of mlp and linear (128: SimCLR)")
    add("--projector-bn", action="store_true", help="mlp: BatchNorm at its end (lightly, DirectCLR's code)")
    add("--rank", type=common.size, help="d0 of the low-rank kinds (D 360/2048: DirectCLR)")
    add("--fixed-dims", type=common.size, metavar="N", help="no projector: the last N of D are constant in z")
    add("--fixed-value", type=fixed_value, metavar="K", help="their value, inv: 1/√D (0)")
    add = found.add_argument_group("loss").add_argument
    add("--temperature", type=common.number(float, 1e-4, 1e6), default=0.2, help="(0.2: LL)")
    add("--cross-view", action="store_true", help="negatives from the other view only (DirectCLR)")
    return found


def resolve(args):
    """The arguments with every default filled in."""
    args = common.resolve(args)
    if args.fixed_value == "inv":
        args.fixed_value = common.encoder_dim(args.arch, args.width) ** -0.5
    if args.fixed_dims:
        args.fixed_value = args.fixed_value or 0.0
    return args


def check(args):
    """Refuses arguments that make no sense together."""
    low_rank = ("lowrank", "lowrank-diagonal")
    uses = {"hidden": ("mlp",), "embedding": ("mlp", "linear"), "projector_bn": ("mlp",), "rank": low_rank}
    common.check_projector(args, uses)
    if args.fixed_dims and args.projector != "none":
        raise common.UserError(f"--fixed-dims needs --no-projector, not --projector {args.projector}")
    if args.fixed_value is not None and not args.fixed_dims:
        raise common.UserError("--fixed-value needs --fixed-dims")


def run_name(args, dim):
    """What a run's folder is called unless --out says: simclr, noproj-lastlayer, cs-d480-k0 …"""
    name = {"mlp": "simclr", "none": "noproj"}.get(args.projector, f"simclr-{args.projector}")
    if args.fixed_dims:
        name = f"cs-d{dim - args.fixed_dims}-k{args.fixed_value:g}"
    return name if args.reg == "none" else f"{name}-{args.reg}"


def make_projector(args, dim):
    """The map from h (B, dim) to z that the arguments describe."""
    if args.fixed_dims:
        if args.fixed_dims >= dim:
            raise common.UserError(f"--fixed-dims {args.fixed_dims} leaves none of h's {dim} dimensions")
        return ConstantSubvector(args.fixed_dims, args.fixed_value)
    if args.projector in ("mlp", "linear", "none"):
        return common.projector(args.projector, dim, args.hidden, args.embedding or 128, args.projector_bn)
    return matrix_projector(args.projector, dim, args.rank)


def main():
    args = parser().parse_args()
    check(args)
    args, data = common.prepare(args, resolve)
    encoder = common.make_encoder(args)
    projector = make_projector(args, encoder.dim)
    penalty = common.regularizer(args, encoder, projector)

    def loss(x1, x2):  # LL eq. 1 and 11
        with nn.utils.parametrize.cached():  # an orthogonal weight is computed once, not once a view
            z1, z2 = common.embed(encoder, projector, x1, x2)
        return common.info_nce(z1, z2, args.temperature, args.cross_view) + penalty()

    common.fit(args, data, encoder, projector, loss, run_name(args, encoder.dim))


if __name__ == "__main__":
    common.run(main)
