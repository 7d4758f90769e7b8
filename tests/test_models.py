"""Encoders, projectors, losses, penalties against torchvision, definitions, loops, finite differences."""

import math
from itertools import product
from types import SimpleNamespace

import common
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import cases, normal
from torch import nn
from torch.autograd import grad, gradcheck

import simclr
from barlow import barlow_twins
from simclr import matrix_projector

DIMS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}
D = 24
EVERY = [name for name, m in common.resnet(width=1).named_modules() if isinstance(m, nn.Conv2d)]
# flags: the weights that the penalty's gradient reaches; "every": these convolutions of the encoder
REACHED = """
    --reg lastlayer: projector.3; --reg lastlayer --projector linear: projector;
    --reg lastlayer --reg-on encoder: encoder.layer4.1.conv2;
    --reg lastlayer --no-projector --arch resnet34: encoder.layer4.2.conv2;
    --reg lastlayer --projector orthogonal: encoder.layer4.1.conv2;
    --reg lastlayer --projector lowrank: encoder.layer4.1.conv2;
    --reg lastlayer-bn --arch resnet50: encoder.layer4.2.conv3; --reg lastlayer-bn --arch mlp: encoder.layer3;
    --reg sparsehead: projector.3; --reg sparsehead --projector linear: projector;
    --reg werank: every projector.0 projector.3; --reg werank --projector linear: every projector;
    --reg werank --projector orthogonal: every; --reg werank --no-projector: every;
    --reg werank --reg-on encoder: every; --reg werank --reg-on projector: projector.0 projector.3;
    --reg werank --no-projector --arch mlp: encoder.layer1 encoder.layer2 encoder.layer3"""
SHAPES = [(6, 10), (10, 6), (8, 8), (4, 3, 3, 3), (40, 2, 3, 3)]
PENALTIES = [common.lastlayer_penalty, lambda weight: common.werank_penalty([weight])]
FUNCTIONS = [*PENALTIES, common.sparsehead_penalty, lambda z: common.info_nce(z, z.flip(0))]


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
@pytest.mark.parametrize("stem, kernel, pixels", [("cifar", 3, 32), ("imagenet", 7, 8)])
def test_width_scales_every_channel_and_the_stem_the_resolution(arch, width, stem, kernel, pixels):
    encoder = common.resnet(arch, stem, width)
    x = torch.randn(2, 3, 32, 32)
    assert encoder.conv1.weight.shape == (width, 3, kernel, kernel)
    assert encoder.maxpool(encoder.conv1(x)).shape == (2, width, pixels, pixels)
    assert encoder(x).shape == (2, encoder.dim) == (2, DIMS[arch] * width // 64)
    with torch.device("meta"):  # shapes alone
        full = common.resnet(arch, stem).state_dict()
    for (name, narrow), (other, wide) in zip(encoder.state_dict().items(), full.items()):
        expected = [n * width // 64 if i < 2 and n != 3 else n for i, n in enumerate(wide.shape)]
        assert name == other and list(narrow.shape) == expected, name


@pytest.mark.parametrize("width", [8, 64])
def test_convolutions_are_initialised_as_torchvisions(width):
    for convolution in common.resnet(width=width).modules():
        if isinstance(convolution, nn.Conv2d) and convolution.weight.numel() > 2000:
            fan_out = convolution.out_channels * convolution.weight[0, 0].numel()
            assert abs(convolution.weight.std().item() / (2 / fan_out) ** 0.5 - 1) < 0.1


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


def test_projectors_are_linear_batchnorm_relu_linear_without_biases_or_a_matrix_product_or_h():
    module = common.projector("mlp", D, hidden=10, out=7, final_bn=True)
    assert [type(m) for m in module] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [tuple(module[i].weight.shape) for i in (0, 3)] == [(10, D), (7, 10)]
    assert module[0].bias is None and module[3].bias is None
    default = common.projector("mlp", D)
    assert len(default) == 4 and default[0].out_features == D and default[3].out_features == 128
    h = torch.randn(5, D)
    linear = common.projector("linear", D, out=9)
    assert torch.allclose(linear(h), h @ linear.weight.T, atol=1e-6) and linear.bias is None
    assert common.projector("none", D)(h) is h


def test_the_diagonal_projector_starts_as_h_and_it_and_the_orthogonal_one_train_and_stay_what_they_are():
    _, before, after = trained("diagonal")
    assert torch.equal(before, torch.eye(D))
    assert torch.equal(after, torch.diag(after.diagonal())) and (after.diagonal() != 1).any()
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


@pytest.mark.parametrize("line", cases(REACHED))
def test_a_penalty_reaches_its_weights_and_no_bias_batchnorm_or_other_weight(line):
    flags, names = line.split(": ")
    args, encoder = make(flags)
    model = nn.ModuleDict({"encoder": encoder, "projector": simclr.make_projector(args, encoder.dim)})
    common.regularizer(args, *model.values())().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    expected = names.replace("every", " ".join(f"encoder.{name}" for name in EVERY)).split()
    assert reached == {f"{name}.weight" for name in expected} and len(EVERY) == 20


def test_a_projector_of_a_kind_of_ones_own_may_be_penalised():
    args = SimpleNamespace(reg="sparsehead", reg_weight=None, reg_on=None, projector="deep")
    common.check_projector(args, {})


def test_the_layer_of_an_encoder_of_ones_own_is_named(capsys):
    args, _ = make("--reg lastlayer --no-projector")
    common.regularizer(args, nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU()), nn.Identity())
    assert "--reg lastlayer acts on 1, the last weight" in capsys.readouterr().err


@pytest.mark.parametrize("arch, norm", [("resnet18", "1.bn2"), ("resnet34", "2.bn2"), ("resnet50", "2.bn3")])
def test_lastlayer_bn_adds_the_distance_of_scale_and_shift_from_their_start(arch, norm):
    args, encoder = make(f"--arch {arch} --reg lastlayer-bn --reg-weight 3 --no-projector")
    penalty = common.regularizer(args, encoder, nn.Identity())
    bare = penalty().item()
    norm = encoder.layer4.get_submodule(norm)
    with torch.no_grad():
        norm.weight[:2] += torch.tensor([1.0, -2.0])
        norm.bias[0] = 4.0
    assert penalty().item() - bare == pytest.approx(3 * (1 + 4 + 16), rel=1e-3)


def test_each_view_has_batchnorm_statistics_of_its_own():
    _, encoder = make("--width 4")
    head = common.projector("mlp", encoder.dim)
    x1, x2 = torch.randn(2, 8, 3, 16, 16) * torch.tensor([1, 3]).view(2, 1, 1, 1, 1)
    z1, z2 = common.embed(encoder, head, x1, x2)
    assert torch.allclose(z1, head(encoder(x1)), atol=1e-5) and z2.shape == z1.shape
    assert not torch.allclose(head(encoder(torch.cat([x1, x2])))[:8], z1, atol=1e-2)


def info_nce_loop(z1, z2, temperature, cross_view):
    """The definition, one pair at a time, in float64."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    b = len(z1)
    total = 0.0
    for i in range(2 * b):
        positive = (i + b) % (2 * b)
        others = [j for j in range(2 * b) if (j // b != i // b if cross_view else j != i)]
        everything = sum(math.exp(z[i] @ z[j] / temperature) for j in others)
        total -= math.log(math.exp(z[i] @ z[positive] / temperature) / everything)
    return total / (2 * b)


@pytest.mark.parametrize("cross_view", [False, True])
@pytest.mark.parametrize("b, m, temperature", [(2, 3, 1.0), (7, 5, 0.2), (16, 33, 0.05)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_info_nce_equals_a_double_loop_and_its_differences(b, m, temperature, cross_view, dtype, tolerance):
    z1, z2 = normal(2, b, m)
    expected = info_nce_loop(z1.numpy(), z2.numpy(), temperature, cross_view)
    ours = common.info_nce(z1.to(dtype), z2.to(dtype), temperature, cross_view)
    assert abs(ours.item() - expected) < tolerance * max(1, expected)
    assert gradcheck(lambda z: common.info_nce(z[0], z[1], 0.5, cross_view), normal(2, 4, 3).requires_grad_())


def test_info_nce_gradient_on_normalised_embeddings_is_ll_equation_8():
    tau, b = 0.3, 5
    z = F.normalize(normal(2 * b, 4), dim=1)
    logits = (z @ z.T / tau).masked_fill(torch.eye(2 * b, dtype=torch.bool), -math.inf)
    p = logits.softmax(1)  # p[i, j]: j is the positive of i
    positive = torch.zeros_like(p).scatter(1, torch.arange(2 * b).roll(b)[:, None], 1.0)
    # eq. 8 for every anchor, and for every pair in which z_i is the other one: -(positive - p)ᵀ counts those
    expected = -((positive - p) + (positive - p).T) @ z / tau / (2 * b)
    expected -= (expected * z).sum(1, keepdim=True) * z  # on the sphere only the tangent part is left
    free = z.clone().requires_grad_()
    assert (grad(common.info_nce(free[:b], free[b:], tau), free)[0] - expected).abs().max() < 1e-12


def test_barlow_twins_is_its_double_loop():
    z = 3 * normal(2, 9, 5) + 1
    a, b = ((view - view.mean(0)) / view.std(0) for view in z.numpy())
    expected = 0.0
    for i, j in product(range(5), repeat=2):
        c = np.mean(a[:, i] * b[:, j])
        expected += (1 - c) ** 2 if i == j else 0.01 * c**2
    assert barlow_twins(*z, lambd=0.01).item() == pytest.approx(expected, rel=1e-5)
    assert barlow_twins(z[0], 2 * z[0] + 3, 0.0).item() < 1e-9  # scale and shift do not matter
    assert gradcheck(lambda z: barlow_twins(z[0], z[1], 0.01), z.requires_grad_())


def test_byols_targets_get_no_gradient():  # its value: test_toy.py
    p, z = normal(2, 6, 4).requires_grad_()
    assert grad(common.byol_loss(p, z), (p, z), allow_unused=True)[1] is None


def larger_gram_error(weight):
    w = weight.flatten(1)
    gram = w.T @ w if w.shape[0] < w.shape[1] else w @ w.T
    return gram - torch.eye(len(gram), dtype=w.dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_penalties_are_those_on_the_larger_gram_matrix_less_a_constant_or_a_length(shape):
    weight = normal(*shape).div(2).requires_grad_()
    squares = np.linalg.svd(weight.detach().flatten(1), compute_uv=False) ** 2
    lastlayer, werank = ours = [penalty(weight) for penalty in PENALTIES]
    assert lastlayer.item() == pytest.approx(((squares - 1) ** 2).sum(), abs=1e-9)
    assert werank.item() == pytest.approx(np.linalg.norm(squares - 1), abs=1e-9)
    theirs = [larger_gram_error(weight).square().sum(), larger_gram_error(weight).norm()]
    out, into = weight.flatten(1).shape
    assert (theirs[0] - lastlayer).item() == pytest.approx(abs(out - into), abs=1e-9)
    equal, parallel = ([grad(value, weight)[0].flatten() for value in pair] for pair in zip(ours, theirs))
    assert (equal[0] - equal[1]).abs().max() < 1e-10
    assert F.cosine_similarity(*parallel, dim=0) > 1 - 1e-10
    assert common.werank_penalty(iter([weight, weight])).item() == pytest.approx(2 * werank.item())


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("weight", [torch.linalg.qr(normal(8, 8)).Q[:5], torch.eye(4)])
def test_penalties_are_0_with_a_finite_gradient_where_the_rows_are_orthonormal(penalty, weight):
    weight = weight.clone().requires_grad_()
    value = penalty(weight)
    assert value.item() < 1e-12 and grad(value, weight)[0].isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_convolution_has_the_layout_of_its_weight(layout):
    weight = torch.randn(4, 3, 3, 3).to(memory_format=layout).requires_grad_()
    (gradient,) = grad(sum(penalty(weight) for penalty in PENALTIES), weight)
    assert gradient.is_contiguous(memory_format=layout)  # of another one, each step would copy it


def test_sparsehead_sums_the_norms_of_the_input_features_with_a_finite_gradient_at_0():
    weight = normal(6, 10)
    weight[:, 3] = 0
    expected = sum(np.linalg.norm(weight.numpy()[:, j]) for j in range(10))
    value = common.sparsehead_penalty(weight.requires_grad_())
    assert abs(value.item() - expected) < 1e-12
    (gradient,) = grad(value, weight)
    assert gradient.isfinite().all() and (gradient[:, 3] == 0).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_losses_and_penalties_are_float32_under_autocast(function):
    for values in (normal(32, 64).float(), normal(32, 64).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            ours = function(values)
        assert ours.dtype == torch.float32 and abs(ours / function(values.double()) - 1) < 1e-5
