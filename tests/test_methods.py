"""Subvectors, BYOL's target, and every kind of row of every script: that it runs, its name, its pairing."""

import common
import pytest
import torch
from conftest import read

import simclr
from byol import Target
from directclr import Subvector


def test_directclr_lowrank_diagonal_and_a_subvector_of_zeros_are_one_loss_with_one_gradient():
    torch.manual_seed(0)
    lowrank = simclr.matrix_projector("lowrank-diagonal", 16, rank=6)
    h = torch.randn(2, 8, 16)
    found = []
    for projector in (Subvector(16, 6), lowrank, simclr.ConstantSubvector(10, 0.0)):
        free = h.clone().requires_grad_()
        loss = common.info_nce(*map(projector, free), 0.2)
        found.append((loss.item(), *torch.autograd.grad(loss, free)))
    (value, gradient), *others = found
    for other, its_gradient in others:
        assert other == pytest.approx(value, rel=1e-6)
        torch.testing.assert_close(its_gradient, gradient, rtol=1e-5, atol=1e-7)
    assert not gradient[:, :, 6:].any()


def test_a_constant_subvector_replaces_the_last_dimensions():
    h = torch.randn(6, 24, requires_grad=True)
    z = simclr.ConstantSubvector(5, 0.25)(h)
    assert torch.equal(z[:, :-5], h[:, :-5]) and (z[:, -5:] == 0.25).all() and z.shape == h.shape
    z.sum().backward()
    assert (h.grad[:, -5:] == 0).all() and (h.grad[:, :-5] == 1).all()
    many = simclr.ConstantSubvector(5, 0.25)(torch.randn(100, 24))
    assert torch.linalg.matrix_rank(torch.cov(many.T)) == 19  # LL eq. 7a


def test_a_random_subvector_is_redrawn_and_a_fixed_one_is_not():
    torch.manual_seed(0)
    h = torch.arange(32.0).expand(2, -1)
    subvector = Subvector(32, 5)
    assert torch.equal(subvector(h), h[:, :5])
    drawn = set()
    for _ in range(20):
        subvector.redraw()
        z = subvector(h)
        assert torch.equal(z, subvector(h)) and len(z[0].unique()) == 5
        drawn.add(tuple(z[0].tolist()))
    assert len(drawn) == 20
    assert torch.equal(subvector.eval()(h), h[:, :5])


def test_the_target_is_an_exact_moving_average_without_a_gradient():
    torch.manual_seed(0)
    modules = (torch.nn.Linear(3, 4), common.projector("mlp", 4, 5, 2))
    target = Target(*modules, 0.9)
    fast = [parameter.data for module in modules for parameter in module.parameters()]
    expected = [weight.clone() for weight in fast]
    target.update(*modules)
    for _ in range(3):
        for weight in fast:
            weight.add_(torch.randn_like(weight))
        target.update(*modules)
        expected = [0.9 * slow + 0.1 * weight for slow, weight in zip(expected, fast)]
        torch.testing.assert_close(list(target.parameters()), expected)
    assert not any(parameter.requires_grad for parameter in target.parameters())


ROWS = {  # name, width of z
    "simclr.py": ("simclr", 128),
    "simclr.py --projector linear --embedding 9": ("simclr-linear", 9),
    "simclr.py --projector orthogonal --reg werank": ("simclr-orthogonal-werank", 32),
    "simclr.py --projector diagonal": ("simclr-diagonal", 32),
    "simclr.py --projector lowrank --reg lastlayer": ("simclr-lowrank-lastlayer", 32),
    "simclr.py --projector lowrank-diagonal --rank 0.5": ("simclr-lowrank-diagonal", 32),
    "simclr.py --projector-bn --hidden 7 --embedding 9 --reg sparsehead": ("simclr-sparsehead", 9),
    "simclr.py --no-projector --fixed-dims 8 --fixed-value 1 --cross-view": ("cs-d24-k1", 32),
    "simclr.py --blur-p 0.5 --solarize-p 0.2 --stem imagenet": ("simclr", 128),
    "simclr.py --arch resnet50 --image-size 16 --train-size 80 --reg werank": ("simclr-werank", 128),
    "simclr.py --optimizer adam --crop-scale 0.2 1 --jitter 0 0 0 0 --grey-p 0": ("simclr", 128),
    "simclr.py --no-projector --arch mlp --reg lastlayer": ("noproj-lastlayer", 16),
    "directclr.py": ("directclr", 6),
    "directclr.py --subvector random --cross-view --temperature 0.1": ("directclr-random", 6),
    "directclr.py --dim 9 --reg lastlayer": ("directclr-d9-lastlayer", 9),
    "directclr.py --arch mlp --reg werank": ("directclr-werank", 3),
    "barlow.py --no-projector --reg lastlayer": ("barlow-noproj-lastlayer", 32),
    "barlow.py --projector linear --embedding 9 --lambd 0.1 --reg werank": ("barlow-linear-werank", 9),
    "barlow.py --arch mlp --hidden 7 --embedding 9 --reg sparsehead": ("barlow-sparsehead", 9),
    "byol.py --no-projector --momentum 0.5 --reg lastlayer": ("byol-noproj-lastlayer", 32),
    "byol.py --projector linear --embedding 9 --reg werank": ("byol-linear-werank", 9),
    "byol.py --arch mlp --hidden 7 --embedding 9 --reg sparsehead": ("byol-sparsehead", 9),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_kind_of_row_runs_and_has_its_name(row, finished):
    name, width = ROWS[row]
    result = read(finished(row if row == "simclr.py" else f"{row} --epochs 1"))
    assert result["config"]["name"] == name and result["config"]["script"] == row.split()[0]
    assert len(result["spectra"]["z"]) == width
    if row.startswith("directclr"):
        assert result["dim"] == width and 0 <= result["subvector_linear_top1"] <= 100
    assert ("gamma" in result["row_norms"]) == ("mlp" not in row)


PAIRED = (
    "simclr.py --no-projector --reg lastlayer",
    "simclr.py --projector orthogonal",
    "directclr.py --subvector random",
    "barlow.py --no-projector",
    "byol.py --hidden 8 --embedding 8 --reg sparsehead",
)
RECORD = """
step = common.training_step
def recording(args, encoder, projector, loss, modules=()):
    def spied(x1, x2):
        print("views", x1.double().sum().item(), x2.double().sum().item())
        return loss(x1, x2)
    print("encoder", [p.double().sum().item() for p in encoder.parameters()])
    return step(args, encoder, projector, spied, modules)
common.training_step = recording
common.evaluate = lambda *_: sys.exit()
"""


def test_rows_of_one_seed_share_encoder_order_of_images_and_views_those_of_another_neither(start):
    def seen(row):  # sums of the encoder's first weights, and of the views of every step, as text
        lines = start(f"{row} --overwrite", RECORD).out.splitlines()
        return [line for line in lines if line.startswith(("encoder", "views"))]

    expected = seen("simclr.py")
    assert len({*expected, *seen("simclr.py --seed 1")}) == 14
    for row in PAIRED:
        assert seen(row) == expected, row


@pytest.mark.parametrize("name", ["simclr", "directclr", "barlow", "byol"])
def test_every_methods_loss_has_the_penalty_times_its_weight(name, method):
    views = torch.rand(2, 8, 3, 12, 12)
    flags = ("--reg none", "--reg werank --reg-weight 1", "--reg werank --reg-weight 3")
    without, once, thrice = (method(f"{name} {flag}").loss(*views).item() for flag in flags)
    assert thrice - without == pytest.approx(3 * (once - without), rel=1e-4) and once > without + 0.1


@pytest.mark.parametrize(
    "name, hidden, out", [("simclr", 32, 128), ("barlow", 2048, 2048), ("byol", 1024, 256)]
)
def test_projectors_are_as_wide_as_the_papers_unless_told(name, hidden, out, method):
    projector = method(f"{name} --arch resnet18").projector
    assert (projector[0].out_features, projector[3].out_features) == (hidden, out)
