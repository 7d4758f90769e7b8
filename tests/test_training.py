"""The training loop against a plain one, arguments and their defaults, the decay horizon, a compiled step."""

import importlib
import math
from concurrent.futures import ThreadPoolExecutor

import common
import pytest
import torch
from conftest import read
from torch import nn

import simclr

B = 28  # 3 batches an epoch of 96 images, 12 are left out


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


def test_fit_runs_in_any_thread(run):
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(run).result()[0]) == 9


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own_and_drops_the_rest(run, tiny):
    views, _, _ = run()
    assert all(torch.equal(x1, x2) for x1, x2 in views)
    images = common.normalize(common.load_dataset(tiny).x_train)
    shown = [(images == image).flatten(1).all(1).nonzero().item() for x1, _ in views for image in x1]
    epochs = torch.tensor(shown).view(3, 3 * B).tolist()
    assert [len(set(order)) for order in epochs] == [3 * B] * 3
    assert len({tuple(order) for order in epochs}) == 3


def test_the_two_views_differ(run):
    for x1, x2 in run(augmented=True)[0]:
        assert x1.shape == (B, 3, 12, 12) and (x1 != x2).any(3).any(2).any(1).float().mean() > 0.9


SIZES = {
    "simclr": "--no-projector --fixed-dims 0.25 --fixed-value inv",
    "directclr": "--dim 0.5",
    "barlow": "--hidden 0.5 --embedding 0.25",
    "byol": "--hidden 0.5 --embedding 0.25",
}
OTHERS = ["", "--width 8 --reg lastlayer", "--arch mlp --optimizer adam --batch-size 64"]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("flags", OTHERS)
def test_resolve_is_pure_and_idempotent(name, flags):
    script = importlib.import_module(name)
    args = script.parser().parse_args([*flags.split(), *SIZES[name].split(), "--image-size", "16"])
    before = dict(vars(args))
    once = script.resolve(args)
    assert vars(args) == before and vars(script.resolve(once)) == vars(once) != before


# flags of simclr.py: what they mean
MEANINGS = """
: lr=0.06 weight_decay=0.0005 reg_weight=0.0 stem=cifar fixed_value=None eval_every=25
--batch-size 512: lr=0.24
--optimizer adam --batch-size 512: lr=0.003 weight_decay=1e-06
--optimizer lars --batch-size 4096: lr=4.8 weight_decay=1e-06
--optimizer adam --lr 1 --weight-decay 0: lr=1.0 weight_decay=0.0
--reg lastlayer: reg_weight=1.0
--reg werank: reg_weight=0.1
--reg sparsehead: reg_weight=0.0001
--reg werank --reg-weight 0: reg_weight=0.0
--image-size 96: stem=imagenet
--hidden 0.5 --embedding 0.25: hidden=256 embedding=128
--hidden 1.0 --embedding 1 --arch mlp: hidden=256 embedding=1
--hidden 0.001: hidden=1
--rank 0.5 --arch resnet50 --width 8: rank=128
--fixed-dims 0.0625: fixed_dims=32 fixed_value=0.0
--fixed-dims 32 --fixed-value inv --width 8: fixed_dims=32 fixed_value=0.125
--fixed-dims 0.5 --fixed-value -1: fixed_dims=256 fixed_value=-1.0"""


@pytest.mark.parametrize("line", MEANINGS.strip().splitlines())
def test_defaults_follow_from_other_arguments_and_sizes_with_a_point_are_shares_of_d(line):
    flags, expected = line.split(": ")
    args = simclr.resolve(simclr.parser().parse_args(["--image-size", "32", *flags.split()]))
    found = {f"{key}={value}" for key, value in vars(args).items()}
    assert not set(expected.split()) - found


def test_a_weight_without_a_gradient_shrinks_by_the_decay_horizon():
    args = arguments("--lr 0.06 --weight-decay 0.002")
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = common.optimizer(args, [weight])
    weight.grad = torch.zeros_like(weight)
    for step in range(2000):
        optimizer.param_groups[0]["lr"] = common.cosine(args.lr, step, 2000)
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


MLP = "simclr.py --arch mlp --reg lastlayer --jitter 0.4 0 0 0"  # few functions: compiling takes long


def test_a_compiled_run_equals_the_eager_one_within_rounding(finished):
    both = (finished(MLP), finished(f"{MLP} --compile"))
    losses = [[line["loss"] for line in read(folder, "metrics.jsonl")] for folder in both]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
