"""Encoders against torchvision's, projectors against definitions, penalties against layers."""

from argparse import Namespace

import pytest
import torch
import torchvision
from torch import nn

import common
import simclr


@pytest.mark.parametrize("arch, dim", [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_an_encoder_is_torchvisions_and_goes_there_and_back(arch, dim):
    torch.manual_seed(0)
    ours, theirs = common.resnet(arch, "imagenet"), getattr(torchvision.models, arch)(weights=None)
    assert ours.dim == dim
    outcome = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert outcome.missing_keys == ["fc.weight", "fc.bias"] and not outcome.unexpected_keys
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    ours.load_state_dict(getattr(torchvision.models, arch)(weights=None).state_dict(), strict=False)
    assert torch.equal(ours.conv1.weight, ours.state_dict()["conv1.weight"])


@pytest.mark.parametrize("arch, width, dim", [("resnet18", 8, 64), ("resnet34", 3, 24), ("resnet50", 4, 128)])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_width_scales_every_channel(arch, width, dim, stem):
    encoder, full = common.resnet(arch, stem, width), common.resnet(arch, stem)
    assert encoder.dim == dim and encoder(torch.randn(2, 3, 32, 32)).shape == (2, dim)
    for (name, narrow), (other, wide) in zip(encoder.state_dict().items(), full.state_dict().items()):
        assert name == other
        expected = [
            n if n == 3 and i == 1 and name == "conv1.weight" else n * width // 64 if i < 2 else n
            for i, n in enumerate(wide.shape)
        ]
        assert list(narrow.shape) == expected, name


def test_the_cifar_stem_keeps_the_resolution_and_the_imagenet_stem_quarters_it():
    x = torch.randn(2, 3, 32, 32)
    for stem, size in (("cifar", 32), ("imagenet", 8)):
        encoder = common.resnet("resnet18", stem, 8)
        assert encoder.maxpool(encoder.conv1(x)).shape == (2, 8, size, size)
    assert encoder.conv1.weight.shape[2:] == (7, 7)


@pytest.mark.parametrize("width", [8, 64])
def test_convolutions_are_initialised_as_torchvisions(width):
    encoder = common.resnet("resnet18", "cifar", width)
    for convolution in (m for m in encoder.modules() if isinstance(m, nn.Conv2d)):
        fan_out = convolution.out_channels * convolution.weight[0, 0].numel()
        if convolution.weight.numel() > 2000:
            assert abs(convolution.weight.std().item() / (2 / fan_out) ** 0.5 - 1) < 0.1


@pytest.mark.parametrize("bad", [{"arch": "resnet101"}, {"stem": "vgg"}, {"width": 0}])
def test_unknown_encoders_are_refused(bad):
    with pytest.raises(common.UserError):
        common.resnet(**bad)


def test_the_same_seed_gives_the_same_encoder_whatever_the_projector():
    weights = []
    for kind in common.PROJECTORS:
        torch.manual_seed(3)
        encoder = common.resnet(width=4)
        common.projector(kind, encoder.dim)
        weights.append(encoder.layer4[1].conv2.weight)
    assert all(torch.equal(weights[0], weight) for weight in weights)


D = 24


def matrix(module):
    """W of a linear map z = h Wᵀ, read off by applying it to the unit vectors."""
    return module(torch.eye(D)).T


def train_a_step(module, steps=5):
    optimizer = torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad], lr=0.1, weight_decay=5e-4
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        h = torch.randn(16, D, generator=generator)
        optimizer.zero_grad()
        module(h).pow(2).sum(1).sqrt().mean().add(module(h)[:, 0].mean()).backward()
        optimizer.step()


def test_mlp_projector_is_linear_batchnorm_relu_linear_without_biases():
    module = common.projector("mlp", D, hidden=10, out=7)
    assert [type(m) for m in module] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert module[0].weight.shape == (10, D) and module[3].weight.shape == (7, 10)
    assert module[0].bias is None and module[3].bias is None
    assert (
        common.projector("mlp", D)[0].weight.shape == (D, D)
        and common.projector("mlp", D)[3].out_features == 128
    )


def test_linear_none_and_diagonal_projectors():
    h = torch.randn(5, D)
    linear, diagonal = common.projector("linear", D, out=9), common.projector("diagonal", D)
    assert torch.allclose(linear(h), h @ linear.weight.T) and linear.bias is None
    assert common.projector("none", D)(h) is h
    assert torch.equal(diagonal(h), h)
    train_a_step(diagonal)
    w = matrix(diagonal)
    assert (w - torch.diag(w.diagonal())).abs().max() == 0 and (w.diagonal() != 1).any()


def test_the_orthogonal_projector_trains_and_stays_orthogonal():
    torch.manual_seed(0)
    module = common.projector("orthogonal", D)
    before = matrix(module).detach()
    train_a_step(module, steps=50)
    after = matrix(module).detach()
    assert (after - before).abs().max() > 1e-3
    assert (after @ after.T - torch.eye(D)).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        w = matrix(module)
    assert w.dtype == torch.float32 and (w @ w.T - torch.eye(D)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["lowrank", "lowrank-diagonal"])
def test_fixed_projectors_have_the_singular_values_asked_for_and_do_not_move(kind):
    torch.manual_seed(0)
    module = common.projector(kind, D, rank=7)
    w = matrix(module)
    assert (torch.linalg.svdvals(w) - (torch.arange(D) < 7).float()).abs().max() < 1e-5
    train_a_step(nn.Sequential(nn.Linear(D, D), module))
    assert torch.equal(matrix(module), w) and not any(p.requires_grad for p in module.parameters())
    if kind == "lowrank-diagonal":
        assert torch.equal(w, torch.diag((torch.arange(D) < 7).float()))
    assert torch.linalg.matrix_rank(matrix(common.projector(kind, D))) == round(D * 360 / 2048)


def test_the_constant_subvector_replaces_the_last_dimensions_and_0_equals_lowrank_diagonal():
    h = torch.randn(6, D, requires_grad=True)
    z = simclr.ConstantSubvector(5, 0.25)(h)
    assert torch.equal(z[:, :-5], h[:, :-5]) and (z[:, -5:] == 0.25).all() and z.shape == h.shape
    z.sum().backward()
    assert (h.grad[:, -5:] == 0).all() and (h.grad[:, :-5] == 1).all()
    gradients = []
    for module in (simclr.ConstantSubvector(5, 0.0), common.projector("lowrank-diagonal", D, rank=D - 5)):
        h.grad = None
        common.info_nce(module(h), module(h.flip(1))).backward()
        gradients.append(h.grad)
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.mark.parametrize(
    "kind, sizes",
    [
        ("resnet", {}),
        ("mlp", {"hidden": 0}),
        ("linear", {"out": 0}),
        ("lowrank", {"rank": 0}),
        ("lowrank", {"rank": D + 1}),
    ],
)
def test_projectors_that_make_no_sense_are_refused(kind, sizes):
    with pytest.raises(common.UserError):
        common.projector(kind, D, **sizes)


def setup(kind="mlp", arch="resnet18", **options):
    torch.manual_seed(0)
    encoder = common.resnet(arch, width=4)
    head = common.projector(kind, encoder.dim)
    args = Namespace(**{"reg": "lastlayer", "reg_weight": None, "reg_on": None, **options})
    return encoder, head, args


def touched(encoder, head, args):
    """The names of the parameters that the penalty's gradient reaches."""
    modules = nn.ModuleDict({"encoder": encoder, "projector": head})
    value = common.regularizer(args, encoder, head)()
    value.backward()
    return {name for name, p in modules.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize(
    "kind, on, expected",
    [
        ("mlp", None, "projector.3.weight"),
        ("linear", None, "projector.weight"),
        ("mlp", "projector", "projector.3.weight"),
        ("mlp", "encoder", "encoder.layer4.1.conv2.weight"),
    ]
    + [
        (kind, None, "encoder.layer4.1.conv2.weight")
        for kind in ("none", "orthogonal", "diagonal", "lowrank", "lowrank-diagonal")
    ],
)
def test_lastlayer_touches_the_last_layer_and_leaves_every_other_gradient_alone(kind, on, expected):
    assert touched(*setup(kind, reg_on=on)) == {expected}


def test_the_last_layer_of_resnet50_is_conv3():
    encoder, head, _ = setup("none", "resnet50")
    assert common.last_layer(encoder, head) is encoder.layer4[-1].conv3


def test_werank_touches_every_linear_and_convolution_weight_and_no_bias_or_batchnorm():
    for kind in ("mlp", "linear", "none", "orthogonal", "lowrank"):
        encoder, head, args = setup(kind, reg="werank")
        expected = {
            f"encoder.{name}.weight" for name, m in encoder.named_modules() if isinstance(m, nn.Conv2d)
        }
        assert len(expected) == 20
        on_head = {"mlp": {"projector.0.weight", "projector.3.weight"}, "linear": {"projector.weight"}}.get(
            kind, set()
        )
        assert touched(encoder, head, args) == expected | on_head
        assert touched(*setup(kind, reg="werank", reg_on="encoder")) == expected
    assert touched(*setup("mlp", reg="werank", reg_on="projector")) == {
        "projector.0.weight",
        "projector.3.weight",
    }


def test_sparsehead_touches_the_projectors_last_layer():
    assert touched(*setup("mlp", reg="sparsehead")) == {"projector.3.weight"}


def test_default_weights_of_the_penalties():
    for reg, weight in (("none", 0), ("lastlayer", 1), ("werank", 0.1), ("sparsehead", 1e-4)):
        encoder, head, args = setup(reg=reg)
        common.regularizer(args, encoder, head)
        assert args.reg_weight == weight


@pytest.mark.parametrize(
    "kind, options",
    [
        ("none", {"reg": "sparsehead"}),
        ("diagonal", {"reg": "sparsehead"}),
        ("mlp", {"reg": "sparsehead", "reg_on": "encoder"}),
        ("none", {"reg_on": "projector"}),
        ("orthogonal", {"reg_on": "projector"}),
        ("none", {"reg": "werank", "reg_on": "projector"}),
        ("mlp", {"reg": "none", "reg_weight": 1.0}),
        ("mlp", {"reg": "none", "reg_on": "encoder"}),
    ],
)
def test_penalties_that_make_no_sense_are_refused(kind, options):
    encoder, head, args = setup(kind, **options)
    with pytest.raises(common.UserError):
        common.regularizer(args, encoder, head)


def test_each_view_has_batchnorm_statistics_of_its_own():
    encoder, head, _ = setup()
    x1, x2 = torch.randn(8, 3, 16, 16), 3 * torch.randn(8, 3, 16, 16)
    z1, z2 = common.embed(encoder, head, x1, x2)
    alone = head(encoder(x1))
    assert torch.allclose(z1, alone, atol=1e-5) and z2.shape == z1.shape
    assert not torch.allclose(head(encoder(torch.cat([x1, x2])))[:8], z1, atol=1e-2)
