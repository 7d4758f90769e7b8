"""The training loop against a plain one, and what it must not do."""

import math

import pytest
import torch
from torch import nn

import common

N, B, EPOCHS = 50, 16, 3  # 3 batches an epoch, 2 images left out


class Toy(nn.Module):
    """A stand-in for an encoder: linear in the pixels, with the layers that evaluation asks for."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 8)
        block = nn.Module()
        block.conv2, block.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.layer4 = nn.Sequential(nn.Identity(), nn.Identity())
        self.layer4[-1].conv2, self.layer4[-1].bn2 = block.conv2, block.bn2

    def forward(self, x):
        return self.layer4(self.conv1(x)).flatten(1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """fit() with a loss that records its views: run(augmented=True) -> views, encoder, before."""

    def call(optimizer="sgd", augmented=False, seed=0, out="run"):
        monkeypatch.setattr(common.sys, "argv", ["toy.py"])
        parser = common.arguments("")
        args = parser.parse_args(
            f"--dataset none --batch-size {B} --epochs {EPOCHS} --optimizer {optimizer} --seed {seed} "
            f"--lr 0.05 --weight-decay 0.1 --device cpu --eval-every 0 --out {tmp_path / out}".split()
        )
        if not augmented:
            plain = lambda x, generator: common.normalize(x)
            monkeypatch.setattr(common, "Augment", lambda *a, **k: plain)
        x = torch.randint(0, 256, (N, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        x[:, 0, 0, 0] = torch.arange(N)
        y = torch.arange(N) % 2
        monkeypatch.setattr(
            common, "load_dataset", lambda *_: common.Dataset("toy", x, y, x[:10], y[:10], "ab")
        )
        data = common.prepare(args)
        encoder, views = Toy(), []
        before = {key: value.clone() for key, value in encoder.state_dict().items()}

        def loss(x1, x2):
            views.append((x1.clone(), x2.clone()))
            return encoder(x1).square().mean() - 0.1 * encoder(x2).mean()

        common.fit(args, data, encoder, nn.Identity(), loss, "toy")
        return views, encoder, before

    return call


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_training_equals_a_plain_loop_on_the_same_batches(run, kind):
    views, encoder, before = run(kind)
    plain = Toy()
    plain.load_state_dict(before)
    if kind == "sgd":
        optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    else:
        optimizer = torch.optim.Adam(plain.parameters(), lr=1.0, weight_decay=0.1)
    steps = EPOCHS * (N // B)
    assert len(views) == steps
    for step, (x1, x2) in enumerate(views):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        (plain(x1).square().mean() - 0.1 * plain(x2).mean()).backward()
        optimizer.step()
    for (name, ours), theirs in zip(encoder.named_parameters(), plain.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-6), name
    assert not torch.allclose(encoder.conv1.weight, before["conv1.weight"], atol=1e-3)


def image_numbers(view):
    """Which images a batch of unaugmented views shows: each has its number in its first pixel."""
    value = view[:, 0, 0, 0] * common.IMAGENET_STD[0] + common.IMAGENET_MEAN[0]
    return (value * 255).round().int().tolist()


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own_and_drops_the_rest(run):
    views, _, _ = run()
    epochs = [[n for x1, _ in views[e * 3 : e * 3 + 3] for n in image_numbers(x1)] for e in range(EPOCHS)]
    for order in epochs:
        assert len(order) == 48 and len(set(order)) == 48
    assert len({tuple(order) for order in epochs}) == EPOCHS
    for x1, x2 in views:
        assert torch.equal(x1, x2)


def test_the_two_views_differ_and_so_do_those_of_another_epoch_and_seed(run):
    views, _, _ = run(augmented=True)
    for x1, x2 in views:
        assert x1.shape == (B, 3, 8, 8) and (x1 != x2).any(3).any(2).any(1).float().mean() > 0.9
    others, _, _ = run(augmented=True, seed=1, out="other")
    again, _, _ = run(augmented=True, out="again")
    assert not torch.equal(views[0][0], others[0][0])
    assert all(torch.equal(a, b) for a, b in zip(sum(views, ()), sum(again, ())))


def simclr_step(device, compiled):
    """training_step of a small SimCLR with the same weights and random numbers, whatever its arguments."""
    args = common.arguments("").parse_args(f"--device {device} --width 8 --batch-size 32 --lr 0.1".split())
    args.precision = "float32"  # in bfloat16 roundings alone change gradients of this net by a third
    args.compile, args.image_size, args.weight_decay = compiled, 8, 5e-4
    torch.manual_seed(0)
    encoder = Toy() if device == "cpu" else common.resnet()  # a whole run with a ResNet is in test_runs
    projector = common.projector("mlp", 4 if device == "cpu" else 512)

    def loss(x1, x2):
        z1, z2 = common.embed(encoder, projector, x1, x2)
        return common.info_nce(z1, z2) + common.lastlayer_penalty(projector[-1].weight)

    return common.training_step(args, encoder, projector, loss)


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_the_compiled_step_equals_the_eager_one_and_compiles_once(device):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    batches = torch.randint(0, 256, (30, 32, 3, 8, 8), dtype=torch.uint8, device=device)
    before = simclr_step(device, False)[1].state_dict()
    before = {key: value.clone() for key, value in before.items()}
    losses, changes = [], []
    for compiled in (False, True):
        step, model, _, _ = simclr_step(device, compiled)
        losses.append(step(batches[0]).item())
        changes.append({k: v.double() - before[k].double() for k, v in model.state_dict().items()})
    tolerance = 1e-3
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for key, change in changes[0].items():
        assert (changes[1][key] - change).norm() < tolerance * change.norm() + 1e-5, key
    for batch in batches[1:15]:  # the order of the jitter's operations has 24 kinds: none compiles anything
        step(batch)
    graphs = counters["stats"]["unique_graphs"]
    for batch in batches[15:]:
        step(batch)
    assert counters["stats"]["unique_graphs"] == graphs > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA")
def test_no_step_waits_for_the_gpu():
    step = simclr_step("cuda", True)[0]
    batch = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8, device="cuda")
    for _ in range(10):
        step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
