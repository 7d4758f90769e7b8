"""Encoders against torchvision's, projectors against definitions, penalties against layers."""

import common
import pytest
import torch
import torchvision
from torch import nn

import simclr
from simclr import matrix_projector

DIMS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}


def make(flags):
    """(arguments, encoder) that simclr.py makes of flags, without a seed of its own."""
    args = simclr.resolve(simclr.parser().parse_args(["--width", "2", "--image-size", "8", *flags.split()]))
    return args, common.make_encoder(args)


@pytest.mark.parametrize("arch", DIMS)
def test_an_encoder_is_torchvisions_and_goes_there_and_back(arch):
    ours = common.resnet(arch, "imagenet")
    theirs = getattr(torchvision.models, arch)(weights=None)
    outcome = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert outcome.missing_keys == ["fc.weight", "fc.bias"] and not outcome.unexpected_keys
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    assert ours.dim == DIMS[arch] and torch.equal(ours.eval()(x), theirs.eval()(x))
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("arch, width", [("resnet18", 8), ("resnet34", 3), ("resnet50", 4)])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_width_scales_every_channel(arch, width, stem):
    encoder = common.resnet(arch, stem, width)
    with torch.device("meta"):  # shapes alone
        full = common.resnet(arch, stem).state_dict()
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, encoder.dim) == (2, DIMS[arch] * width // 64)
    for (name, narrow), (other, wide) in zip(encoder.state_dict().items(), full.items()):
        expected = [n * width // 64 if i < 2 and n != 3 else n for i, n in enumerate(wide.shape)]
        assert name == other and list(narrow.shape) == expected, name


@pytest.mark.parametrize("stem, size, kernel", [("cifar", 32, 3), ("imagenet", 8, 7)])
def test_the_cifar_stem_keeps_the_resolution_and_the_imagenet_stem_quarters_it(stem, size, kernel):
    encoder = common.resnet("resnet18", stem, 8)
    assert encoder.maxpool(encoder.conv1(torch.randn(2, 3, 32, 32))).shape == (2, 8, size, size)
    assert encoder.conv1.weight.shape[2:] == (kernel, kernel)


@pytest.mark.parametrize("width", [8, 64])
def test_convolutions_are_initialised_as_torchvisions(width):
    for convolution in common.resnet(width=width).modules():
        if isinstance(convolution, nn.Conv2d) and convolution.weight.numel() > 2000:
            fan_out = convolution.out_channels * convolution.weight[0, 0].numel()
            assert abs(convolution.weight.std().item() / (2 / fan_out) ** 0.5 - 1) < 0.1


def test_the_mlp_is_its_three_matrix_products():
    _, encoder = make("--arch mlp")
    x = torch.randn(5, 3, 8, 8)
    w1, w2, w3 = encoder.parameters()
    hidden = ((x.flatten(1) @ w1.T).clamp(min=0) @ w2.T).clamp(min=0)
    assert encoder.dim == 8 and torch.allclose(encoder(x), hidden @ w3.T, atol=1e-6)


@pytest.mark.parametrize("arch, norm", [*zip(DIMS, ("bn2", "bn2", "bn3")), ("mlp", "")])
def test_the_encoder_ends_with_its_last_weight_and_the_batchnorm_behind_it(arch, norm):
    _, encoder = make(f"--arch {arch}")
    weighted = [module for module in encoder.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert common.encoder_end(encoder) == (weighted[-1], getattr(encoder.layer4[-1], norm) if norm else None)


D = 24


def matrix(module):
    """W of a linear map z = h Wᵀ, read off by applying it to the unit vectors."""
    return module(torch.eye(D)).T.detach()


def trained(kind, steps=5, **options):
    """A projector, its W before and after some steps of training, behind a linear layer that trains too."""
    module = matrix_projector(kind, D, **options)
    before = matrix(module)
    model = nn.Sequential(nn.Linear(D, D), module)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=5e-4)
    for h in torch.randn(steps, 16, D, generator=torch.Generator().manual_seed(0)):
        optimizer.zero_grad()
        (model(h).norm(dim=1).mean() + model(h)[:, 0].mean()).backward()
        optimizer.step()
    return module, before, matrix(module)


def test_mlp_projector_is_linear_batchnorm_relu_linear_without_biases():
    module = common.projector("mlp", D, hidden=10, out=7, final_bn=True)
    assert [type(m) for m in module] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [tuple(module[i].weight.shape) for i in (0, 3)] == [(10, D), (7, 10)]
    assert module[0].bias is None and module[3].bias is None
    default = common.projector("mlp", D)
    assert len(default) == 4 and default[0].out_features == D and default[3].out_features == 128


def test_linear_and_no_projector_are_a_matrix_product_and_h():
    h = torch.randn(5, D)
    linear = common.projector("linear", D, out=9)
    assert torch.allclose(linear(h), h @ linear.weight.T, atol=1e-6) and linear.bias is None
    assert common.projector("none", D)(h) is h


def test_the_diagonal_projector_starts_as_h_and_stays_diagonal():
    _, before, after = trained("diagonal")
    assert torch.equal(before, torch.eye(D))
    assert torch.equal(after, torch.diag(after.diagonal())) and (after.diagonal() != 1).any()


def test_the_orthogonal_projector_trains_and_stays_orthogonal():
    module, before, after = trained("orthogonal", steps=50)
    assert (after - before).abs().max() > 1e-3
    assert (after @ after.T - torch.eye(D)).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matrix(module), after)


@pytest.mark.parametrize("kind", ["lowrank", "lowrank-diagonal"])
def test_fixed_projectors_have_the_singular_values_asked_for_and_do_not_move(kind):
    module, before, after = trained(kind, rank=7)
    kept = (torch.arange(D) < 7).float()
    assert (torch.linalg.svdvals(before) - kept).abs().max() < 1e-5
    assert torch.equal(before, torch.diag(kept)) == (kind == "lowrank-diagonal")
    assert torch.equal(after, before) and not any(p.requires_grad for p in module.parameters())
    assert torch.linalg.matrix_rank(matrix(matrix_projector(kind, D))) == round(D * 360 / 2048)


EVERY = [name for name, m in common.resnet(width=1).named_modules() if isinstance(m, nn.Conv2d)]
# flags: the weights that the penalty's gradient reaches; "every": these convolutions of the encoder
REACHED = """
--reg lastlayer: projector.3
--reg lastlayer --projector linear: projector
--reg lastlayer --reg-on encoder: encoder.layer4.1.conv2
--reg lastlayer --no-projector: encoder.layer4.1.conv2
--reg lastlayer --projector orthogonal: encoder.layer4.1.conv2
--reg lastlayer --projector lowrank: encoder.layer4.1.conv2
--reg lastlayer-bn --arch resnet50: encoder.layer4.2.conv3
--reg sparsehead: projector.3
--reg sparsehead --projector linear: projector
--reg werank: every projector.0 projector.3
--reg werank --projector linear: every projector
--reg werank --projector orthogonal: every
--reg werank --no-projector: every
--reg werank --reg-on encoder: every
--reg werank --reg-on projector: projector.0 projector.3
--reg werank --no-projector --arch mlp: encoder.layer1 encoder.layer2 encoder.layer3"""


@pytest.mark.parametrize("line", REACHED.strip().splitlines())
def test_a_penalty_reaches_its_weights_and_no_bias_batchnorm_or_other_weight(line):
    flags, names = line.split(": ")
    args, encoder = make(flags)
    model = nn.ModuleDict({"encoder": encoder, "projector": simclr.make_projector(args, encoder.dim)})
    common.regularizer(args, *model.values())().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    expected = names.replace("every", " ".join(f"encoder.{name}" for name in EVERY)).split()
    assert reached == {f"{name}.weight" for name in expected} and len(EVERY) == 20


def test_the_layer_of_an_encoder_of_ones_own_is_named(capsys):
    args, _ = make("--reg lastlayer --no-projector")
    common.regularizer(args, nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU()), nn.Identity())
    assert "--reg lastlayer acts on 1, the last weight" in capsys.readouterr().err


def test_lastlayer_bn_adds_the_distance_of_scale_and_shift_from_their_start():
    args, encoder = make("--reg lastlayer-bn --reg-weight 3 --no-projector")
    penalty = common.regularizer(args, encoder, nn.Identity())
    bare = penalty().item()
    norm = encoder.layer4[-1].bn2
    with torch.no_grad():
        norm.weight[:2] += torch.tensor([1.0, -2.0])
        norm.bias[0] = 4.0
    assert penalty().item() - bare == pytest.approx(3 * (1 + 4 + 16), rel=1e-3)
    args, mlp = make("--reg lastlayer-bn --arch mlp --no-projector")
    expected = common.lastlayer_penalty(mlp.layer3.weight)
    assert common.regularizer(args, mlp, nn.Identity())().item() == pytest.approx(expected.item())


def test_each_view_has_batchnorm_statistics_of_its_own():
    _, encoder = make("--width 4")
    head = common.projector("mlp", encoder.dim)
    x1, x2 = torch.randn(2, 8, 3, 16, 16) * torch.tensor([1, 3]).view(2, 1, 1, 1, 1)
    z1, z2 = common.embed(encoder, head, x1, x2)
    assert torch.allclose(z1, head(encoder(x1)), atol=1e-5) and z2.shape == z1.shape
    assert not torch.allclose(head(encoder(torch.cat([x1, x2])))[:8], z1, atol=1e-2)
