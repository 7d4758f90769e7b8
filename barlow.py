"""Barlow Twins with and without its projector, with a penalty on the weights in the projector's place.

Reproduces LL figure 1b (spectra with and without projector) and SparseHead table 1 (Barlow Twins), with the
recipe of SimCLR on CIFAR-10, as in lightly's benchmark.

    python barlow.py                                            with projector, 2048 wide
    python barlow.py --no-projector                             without
    python barlow.py --no-projector --reg lastlayer             ‖WWᵀ - I‖² on the last convolution instead
    python barlow.py --reg sparsehead                           SparseHead
    python barlow.py --dataset shapes --width 8 --epochs 8      a first run: a minute on a CPU, no download
"""
import common


def parse():
    """The command line's arguments."""
    parser = common.arguments(__doc__)
    count = common.number(int, 1)
    add = common.projector_arguments(parser, ("mlp", "linear", "none"), "Barlow Twins").add_argument
    add("--hidden", type=count, help="hidden width of mlp (2048)")
    add("--embedding", type=count, help="width of z of mlp and linear (2048)")
    add = parser.add_argument_group("loss").add_argument
    add("--lambd", type=common.number(float, 0), default=5e-3, help="of the off-diagonal (5e-3)")
    return parser.parse_args()


def row_name(args):
    """The row of the papers' tables that these arguments are: barlow, barlow-noproj, barlow-sparsehead …"""
    name = {"mlp": "barlow", "none": "barlow-noproj"}.get(args.projector, f"barlow-{args.projector}")
    return name if args.reg == "none" else f"{name}-{args.reg}"


def main():
    args = parse()
    common.check_projector(args, {"hidden": ("mlp",), "embedding": ("mlp", "linear")})
    data = common.prepare(args)
    encoder = common.resnet(args.arch, args.stem, args.width)
    projector = common.projector(args.projector, encoder.dim, args.hidden or 2048, args.embedding or 2048)
    penalty = common.regularizer(args, encoder, projector)

    def loss(x1, x2):
        z1, z2 = common.embed(encoder, projector, x1, x2)
        return common.barlow_twins(z1, z2, args.lambd) + args.reg_weight * penalty()

    common.fit(args, data, encoder, projector, loss, row_name(args))


if __name__ == "__main__":
    common.run(main)
