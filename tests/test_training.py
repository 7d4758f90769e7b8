"""The training loop against a plain one, what arguments mean, methods, every kind of row of every script."""

import math
import re
from concurrent.futures import ThreadPoolExecutor

import common
import pytest
import torch
from conftest import cases, read
from torch import nn

import simclr
from byol import Target
from directclr import Subvector

B = 28  # 3 batches an epoch of 96 images, 12 are left out
MLP = "simclr.py --arch mlp --reg lastlayer --jitter 0.4 0 0 0"  # few functions: compiling takes long
# flags of simclr.py: what they mean
MEANINGS = """
    : lr=0.06 weight_decay=0.0005 reg_weight=0.0 stem=cifar fixed_value=None eval_every=25;
    --batch-size 512: lr=0.24; --optimizer adam --batch-size 512: lr=0.003 weight_decay=1e-06;
    --optimizer lars --batch-size 4096: lr=4.8 weight_decay=1e-06;
    --optimizer adam --lr 1 --weight-decay 0: lr=1.0 weight_decay=0.0; --reg lastlayer: reg_weight=1.0;
    --reg werank: reg_weight=0.1; --reg sparsehead: reg_weight=0.0001;
    --reg werank --reg-weight 0: reg_weight=0.0; --image-size 96: stem=imagenet;
    --hidden 0.5 --embedding 0.25: hidden=256 embedding=128;
    --hidden 1.0 --embedding 1 --arch mlp: hidden=256 embedding=1; --hidden 0.001: hidden=1;
    --rank 0.5 --arch resnet50 --width 8: rank=128; --fixed-dims 0.0625: fixed_dims=32 fixed_value=0.0;
    --fixed-dims 32 --fixed-value inv --width 8: fixed_dims=32 fixed_value=0.125;
    --fixed-dims 0.5 --fixed-value -1: fixed_dims=256 fixed_value=-1.0"""
# flags: a row's name, width of z
ROWS = """
    simclr.py: simclr 128; simclr.py --projector linear --embedding 9: simclr-linear 9;
    simclr.py --projector orthogonal --reg werank: simclr-orthogonal-werank 32;
    simclr.py --projector diagonal: simclr-diagonal 32;
    simclr.py --projector lowrank --reg lastlayer: simclr-lowrank-lastlayer 32;
    simclr.py --projector lowrank-diagonal --rank 0.5: simclr-lowrank-diagonal 32;
    simclr.py --projector-bn --hidden 7 --embedding 9 --reg sparsehead: simclr-sparsehead 9;
    simclr.py --no-projector --fixed-dims 8 --fixed-value 1 --cross-view: cs-d24-k1 32;
    simclr.py --blur-p 0.5 --solarize-p 0.2 --stem imagenet: simclr 128;
    simclr.py --arch resnet50 --image-size 16 --train-size 80 --reg werank: simclr-werank 128;
    simclr.py --optimizer adam --crop-scale 0.2 1 --jitter 0 0 0 0 --grey-p 0: simclr 128;
    simclr.py --no-projector --arch mlp --reg lastlayer: noproj-lastlayer 16; directclr.py: directclr 6;
    directclr.py --subvector random --cross-view --temperature 0.1: directclr-random 6;
    directclr.py --dim 9 --reg lastlayer: directclr-d9-lastlayer 9;
    directclr.py --arch mlp --reg werank: directclr-werank 3;
    barlow.py --no-projector --reg lastlayer: barlow-noproj-lastlayer 32;
    barlow.py --projector linear --embedding 9 --lambd 0.1 --reg werank: barlow-linear-werank 9;
    barlow.py --arch mlp --hidden 7 --embedding 9 --reg sparsehead: barlow-sparsehead 9;
    byol.py --no-projector --momentum 0.5 --reg lastlayer: byol-noproj-lastlayer 32;
    byol.py --projector linear --embedding 9 --reg werank: byol-linear-werank 9;
    byol.py --arch mlp --hidden 7 --embedding 9 --reg sparsehead: byol-sparsehead 9"""
PAIRED = """
    simclr.py --no-projector --reg lastlayer; simclr.py --projector orthogonal;
    directclr.py --subvector random; barlow.py --no-projector;
    byol.py --hidden 8 --embedding 8 --reg sparsehead"""
# a method: a flag that changes its loss
LOSSES = """
    simclr: --temperature 0.5; simclr: --cross-view; simclr: --projector-bn; simclr: --projector linear;
    simclr --no-projector: --fixed-dims 4; simclr --no-projector --fixed-dims 4: --fixed-value 1;
    simclr --projector lowrank: --rank 5; directclr: --temperature 0.5; directclr: --cross-view;
    directclr: --dim 5; barlow: --lambd 0.5; byol: --no-projector"""
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


VIEWS = torch.rand(2, 8, 3, 12, 12)


def arguments(flags):
    return common.arguments("").parse_args(["--device", "cpu", *flags.split()])


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """run("sgd") -> views that fit() gives the loss, the images themselves unless augmented; the encoder; its
    first weights."""

    def call(optimizer="sgd", augmented=False):
        if not augmented:
            monkeypatch.setattr(common, "Augment", lambda *_, **__: lambda x, _: common.normalize(x))
        flags = f"--dataset {tiny} --batch-size {B} --epochs 3 --width 2 --eval-every 0 --out {tmp_path}/run"
        flags += f" --optimizer {optimizer} --lr 0.05 --weight-decay 0.1"
        args, data = common.prepare(arguments(flags))
        encoder = common.make_encoder(args)
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        views = []

        def loss(x1, x2):
            views.append((x1.clone(), x2.clone()))
            return encoder(x1).square().mean() - 0.1 * encoder(x2).mean()

        common.fit(args, data, encoder, nn.Identity(), loss, "toy")
        return views, encoder, before

    return call


@pytest.mark.parametrize("kind, options", [("sgd", {"momentum": 0.9}), ("adam", {})])
def test_training_equals_a_plain_loop_on_the_same_batches(run, kind, options):
    views, encoder, before = run(kind)
    plain = common.resnet(width=2)
    plain.load_state_dict(before)
    make = torch.optim.SGD if kind == "sgd" else torch.optim.Adam
    optimizer = make(plain.parameters(), lr=1.0, weight_decay=0.1, **options)
    assert len(views) == 9
    for step, (x1, x2) in enumerate(views):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 9))
        optimizer.zero_grad()
        (plain(x1).square().mean() - 0.1 * plain(x2).mean()).backward()
        optimizer.step()
    for (name, ours), theirs in zip(encoder.named_parameters(), plain.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-6), name
    assert not torch.allclose(encoder.conv1.weight, before["conv1.weight"], atol=1e-3)


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own_and_drops_the_rest(run, tiny):
    with ThreadPoolExecutor(1) as pool:
        views, _, _ = pool.submit(run).result()  # fit runs in any thread
    assert all(torch.equal(x1, x2) for x1, x2 in views)
    images = common.normalize(common.load_dataset(tiny).x_train)
    shown = [(images == image).flatten(1).all(1).nonzero().item() for x1, _ in views for image in x1]
    epochs = torch.tensor(shown).view(3, 3 * B).tolist()
    assert [len(set(order)) for order in epochs] == [3 * B] * 3
    assert len({tuple(order) for order in epochs}) == 3


def test_the_two_views_differ(run):
    for x1, x2 in run(augmented=True)[0]:
        assert x1.shape == (B, 3, 12, 12) and (x1 != x2).any(3).any(2).any(1).float().mean() > 0.9


@pytest.mark.parametrize("line", cases(MEANINGS))
def test_defaults_follow_from_other_arguments_and_sizes_with_a_point_are_shares_of_d(line):
    flags, expected = line.split(": ")
    given = simclr.parser().parse_args(["--image-size", "32", *flags.split()])
    before = dict(vars(given))
    args = simclr.resolve(given)
    assert not set(expected.split()) - {f"{key}={value}" for key, value in vars(args).items()}
    assert vars(given) == before and simclr.resolve(args) == args  # pure, and done once and for all


@pytest.mark.parametrize("dataset, size", [("stl10", 96), ("", 12)])
def test_a_scripts_own_resolve_is_given_no_size_but_the_images(dataset, size, tiny, monkeypatch):
    data = common.load_dataset(tiny)
    data = data._replace(x_train=torch.zeros(40, 3, size, size, dtype=torch.uint8))
    monkeypatch.setattr(common, "load_dataset", lambda *_: data)
    sizes = set()

    def resolve(args):
        sizes.add(args.image_size)
        return common.resolve(args)

    common.prepare(arguments(f"--dataset {dataset or tiny} --batch-size 8"), resolve)
    assert sizes == {size}


def test_a_weight_without_a_gradient_shrinks_by_the_decay_horizon():
    args = arguments("--lr 0.06 --weight-decay 0.002")
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = common.optimizer(args, [weight])
    weight.grad = torch.zeros_like(weight)
    for rate in common.learning_rates(args, 2000):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    assert -math.log(weight.item()) == pytest.approx(common.decay_horizon(args, 2000), rel=0.01)
    papers = common.decay_horizon(common.resolve(arguments("--image-size 32")), 78_000)
    assert papers == pytest.approx(5e-4 / (1 - 0.9) * 0.06 * (78_000 + 1) / 2, rel=1e-12)  # LL's: 11.7
    assert common.decay_horizon(arguments("--optimizer adam"), 78_000) is None


def test_lars_is_its_float64_loop():
    torch.manual_seed(0)
    shapes = [(3, 4, 2, 2), (5, 3), (5,), (2, 2)]
    ours = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    ours[-1].data.zero_()  # a weight of zeros moves by its gradient
    theirs = [p.detach().numpy().copy() for p in ours]
    velocity = [0 * w for w in theirs]
    optimizer = common.optimizer(arguments("--optimizer lars --lr 0.5 --weight-decay 0.1"), ours)
    for _ in range(5):
        for i, p in enumerate(ours):
            p.grad = torch.randn_like(p)
            g = p.grad.numpy().copy()
            if p.ndim > 1:
                g += 0.1 * theirs[i]
                norm = (theirs[i] ** 2).sum() ** 0.5
                g *= 1e-3 * norm / (g**2).sum() ** 0.5 if norm else 1
            velocity[i] = 0.9 * velocity[i] + g
            theirs[i] = theirs[i] - 0.5 * velocity[i]
        optimizer.step()
    assert all(torch.allclose(p, torch.from_numpy(w), rtol=1e-12) for p, w in zip(ours, theirs))


def test_the_rate_rises_for_the_warmup_and_falls_to_zero_with_the_cosine():
    args = arguments("--lr 2 --epochs 10 --warmup-epochs 2")
    rates = common.learning_rates(args, 50)
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * step / 40) for step in range(40)])


def test_a_compiled_run_equals_the_eager_one_within_rounding(finished):
    both = (finished(MLP), finished(f"{MLP} --compile"))
    losses = [[line["loss"] for line in read(folder, "metrics.jsonl")] for folder in both]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


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


def test_a_random_subvector_is_redrawn_in_every_step_of_training_and_a_fixed_one_is_not(method):
    h = torch.arange(32.0).expand(2, -1)
    subvector = Subvector(32, 5)
    drawn = {(0.0, 1.0, 2.0, 3.0, 4.0)}
    assert torch.equal(subvector(h), h[:, :5])
    for _ in range(20):
        subvector.redraw()
        z = subvector(h)
        assert torch.equal(z, subvector(h)) and len(z[0].unique()) == 5  # the same for both views
        drawn.add(tuple(z[0].tolist()))
    assert len(drawn) == 21 and torch.equal(subvector.eval()(h), h[:, :5])
    for kind, fixed in (("random", False), ("fixed", True)):
        loss = method(f"directclr --subvector {kind}").loss
        assert (loss(*VIEWS) == loss(*VIEWS)) == fixed


def test_the_target_is_an_exact_moving_average_without_a_gradient(method):
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
    byol = method("byol --momentum 0.75")  # whose loss moves it once a step
    slow = byol.modules[1].projector[0].weight
    before = slow.clone()
    byol.projector[0].weight.data.add_(1)
    byol.loss(*VIEWS)
    torch.testing.assert_close(slow, before + 0.25)


@pytest.mark.parametrize("case", cases(ROWS))
def test_every_kind_of_row_runs_and_has_its_name(case, finished):
    row, name, width = re.fullmatch("(.*): (.*) (.*)", case).groups()
    result = read(finished(row if row == "simclr.py" else f"{row} --epochs 1"))
    assert result["config"]["name"] == name and result["config"]["script"] == row.split()[0]
    assert len(result["spectra"]["z"]) == int(width)
    if row.startswith("directclr"):
        assert result["dim"] == int(width) and 0 <= result["subvector_linear_top1"] <= 100
    assert ("gamma" in result["row_norms"]) == ("mlp" not in row)


def test_rows_of_one_seed_share_encoder_order_of_images_and_views_those_of_another_neither(start):
    def seen(row):  # sums of the encoder's first weights, and of the views of every step, as text
        lines = start(f"{row} --overwrite", RECORD).out.splitlines()
        return [line for line in lines if line.startswith(("encoder", "views"))]

    expected = seen("simclr.py")
    assert len({*expected, *seen("simclr.py --seed 1")}) == 14
    for row in cases(PAIRED):
        assert seen(row) == expected, row


@pytest.mark.parametrize("name", ["simclr", "directclr", "barlow", "byol"])
def test_every_methods_loss_has_the_penalty_times_its_weight(name, method):
    flags = ("--reg none", "--reg werank --reg-weight 1", "--reg werank --reg-weight 3")
    without, once, thrice = (method(f"{name} {flag}").loss(*VIEWS).item() for flag in flags)
    assert thrice - without == pytest.approx(3 * (once - without), rel=1e-4) and once > without + 0.1


@pytest.mark.parametrize("case", cases(LOSSES))
def test_a_methods_own_flags_reach_its_loss(case, method):
    base, flag = case.split(": ")
    first, again, other = (method(line).loss(*VIEWS).item() for line in (base, base, f"{base} {flag}"))
    assert first == again != other


def test_flags_of_augmentation_reach_it(monkeypatch):
    flags = "--image-size 12 --crop-scale 0.3 0.9 --jitter 0.1 0.2 0.3 0.4 --grey-p 0.5 --blur-p 0.6 0.7"
    args = common.resolve(arguments(f"{flags} --solarize-p 0.9"))
    made = []
    expected = common.Augment(12, [0.3, 0.9], 0.5, [0.1, 0.2, 0.3, 0.4], 0.8, 0.5, [0.6, 0.7], 0.9)
    augment = common.Augment
    monkeypatch.setattr(common, "Augment", lambda *args, **options: made.append(augment(*args, **options)))
    common.training_step(args, common.resnet(width=2), nn.Identity(), lambda *_: 0)
    assert made == [expected]


def test_projectors_are_as_wide_as_the_papers_unless_told(method):
    for name, widths in {"simclr": [32, 128], "barlow": [2048, 2048], "byol": [1024, 256]}.items():
        projector = method(f"{name} --arch resnet18").projector
        assert [projector[i].out_features for i in (0, 3)] == widths, name


@pytest.mark.parametrize("line", ["simclr", "directclr", "barlow", "byol"])
def test_a_step_trains_every_weight_of_a_method_and_no_other(line, method):
    caught = method(line)
    every = torch.nn.ModuleList([caught.encoder, caught.projector, *caught.modules])
    before = [p.detach().clone() for p in every.parameters()]
    parts = (caught.args, caught.encoder, caught.projector, caught.loss, caught.modules)
    step, *_ = common.training_step(*parts)
    step(torch.randint(256, (8, 3, 12, 12), dtype=torch.uint8))
    changed = [not torch.equal(p, old) for p, old in zip(every.parameters(), before)]
    assert changed == [p.requires_grad for p in every.parameters()]
