"""Barlow Twins with and without its projector, with a penalty on the weights in the projector's place.

Reproduces LL figure 1b (spectra without projector) and SparseHead table 1 (Barlow Twins), with the
recipe of SimCLR on CIFAR-10, as in lightly's benchmark.

    python barlow.py                                            with projector, 2048 wide
    python barlow.py --no-projector                             without
    python barlow.py --no-projector --reg lastlayer             ‖WWᵀ - I‖² on the last convolution instead
    python barlow.py --reg sparsehead                           SparseHead
    python barlow.py --dataset shapes --width 8 --epochs 8      a first run: a minute on a CPU, no download
"""

import common
import torch


def barlow_twins(z1, z2, lambd=5e-3):
    """Σ_i (1 - C_ii)² + lambd Σ_{i≠j} C_ij² (Barlow Twins eq. 1), C the cross-correlation of z1, z2 (B >= 2,
    m), each dimension standardised by its biased variance (+ 1e-5, as the authors' BatchNorm)."""
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = common.full_precision(z1, z2)
        z1, z2 = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z1, z2))
        c = z1.T @ z2 / len(z1)
        on_diagonal = c.diagonal()
        off_diagonal = c.square().sum() - on_diagonal.square().sum()
        return (1 - on_diagonal).square().sum() + lambd * off_diagonal


def parser():
    """The command line's arguments."""
    found = common.arguments(__doc__)
    add = common.projector_arguments(found, ("mlp", "linear", "none"), "Barlow Twins").add_argument
    add("--hidden", type=common.size, help="hidden width of mlp (2048)")
    add("--embedding", type=common.size, help="width of z of mlp and linear (2048)")
    add = found.add_argument_group("loss").add_argument
    add("--lambd", type=common.number(float, 0), default=5e-3, help="of the off-diagonal (5e-3)")
    return found


resolve = common.resolve


def run_name(args):
    """What a run's folder is called unless --out says: barlow, barlow-noproj, barlow-sparsehead …"""
    name = {"mlp": "barlow", "none": "barlow-noproj"}.get(args.projector, f"barlow-{args.projector}")
    return name if args.reg == "none" else f"{name}-{args.reg}"


def main():
    args = parser().parse_args()
    common.check_projector(args, {"hidden": ("mlp",), "embedding": ("mlp", "linear")})
    args, data = common.prepare(args, resolve)
    encoder = common.make_encoder(args)
    projector = common.projector(args.projector, encoder.dim, args.hidden or 2048, args.embedding or 2048)
    penalty = common.regularizer(args, encoder, projector)

    def loss(x1, x2):
        z1, z2 = common.embed(encoder, projector, x1, x2)
        return barlow_twins(z1, z2, args.lambd) + penalty()

    common.fit(args, data, encoder, projector, loss, run_name(args))


if __name__ == "__main__":
    common.run(main)
