"""BYOL with and without its projector, with a penalty on weights: no negatives, but a target and a predictor.

Reproduces SparseHead table 1 (BYOL), with the recipe of SimCLR on CIFAR-10, as in lightly's benchmark.

    python byol.py                                              with projector, 1024 and 256 wide
    python byol.py --reg sparsehead                             SparseHead
    python byol.py --no-projector --reg lastlayer               ‖WWᵀ - I‖² on the last convolution instead
    python byol.py --dataset shapes --width 8 --epochs 8        a first run: a minute on a CPU, no download
"""

import copy

import common
import torch


class Target(torch.nn.Module):
    """Encoder and projector whose parameters ξ are a moving average of the trained ones, θ (BYOL eq. 1)."""

    def __init__(self, encoder, projector, momentum):
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.projector = copy.deepcopy(projector)
        self.momentum = momentum
        self.requires_grad_(False)

    @torch.no_grad()
    def update(self, encoder, projector):
        """ξ ← momentum · ξ + (1 - momentum) · θ."""
        slow = [*self.encoder.parameters(), *self.projector.parameters()]
        fast = [*encoder.parameters(), *projector.parameters()]
        torch._foreach_lerp_(slow, fast, 1 - self.momentum)


def parser():
    """The command line's arguments."""
    found = common.arguments(__doc__)
    add = common.projector_arguments(found, ("mlp", "linear", "none"), "BYOL").add_argument
    add("--hidden", type=common.size, help="hidden width of mlp and predictor (1024)")
    add("--embedding", type=common.size, help="width of z of mlp and linear, and of the prediction (256)")
    add = found.add_argument_group("target").add_argument
    add("--momentum", type=common.number(float, 0, 1), default=0.99, help="of the target's average (0.99)")
    return found


resolve = common.resolve


def run_name(args):
    """What a run's folder is called unless --out says: byol, byol-noproj, byol-sparsehead …"""
    name = {"mlp": "byol", "none": "byol-noproj"}.get(args.projector, f"byol-{args.projector}")
    return name if args.reg == "none" else f"{name}-{args.reg}"


def main():
    args = parser().parse_args()
    common.check_projector(args, {"embedding": ("mlp", "linear")})
    args, data = common.prepare(args, resolve)
    encoder = common.make_encoder(args)
    hidden = args.hidden or 1024
    width = encoder.dim if args.projector == "none" else args.embedding or 256
    projector = common.projector(args.projector, encoder.dim, hidden, width)
    predictor = common.projector("mlp", width, hidden, width)
    target = Target(encoder, projector, args.momentum)
    penalty = common.regularizer(args, encoder, projector)

    def loss(x1, x2):
        target.update(encoder, projector)  # after the optimiser's last step; before the first it is no change
        z1, z2 = common.embed(encoder, projector, x1, x2)
        with torch.no_grad():
            t1, t2 = common.embed(target.encoder, target.projector, x1, x2)
        both = common.byol_loss(predictor(z1), t2) + common.byol_loss(predictor(z2), t1)
        return both / 2 + penalty()

    common.fit(args, data, encoder, projector, loss, run_name(args), modules=(predictor, target))


if __name__ == "__main__":
    common.run(main)
