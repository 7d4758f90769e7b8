"""DirectCLR, Barlow Twins and BYOL: losses and subvectors against independent references, their scripts."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY_RUN

import common
from byol import Target
from directclr import Subvector
from simclr import ConstantSubvector


def test_barlow_twins_is_its_double_loop_with_its_gradient():
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (3 * torch.randn(2, 9, 5, generator=generator, dtype=torch.float64) + 1).requires_grad_()
    value = common.barlow_twins(z1, z2, lambd=0.01).item()
    a, b = ((z - z.mean(0)) / z.std(0) for z in (z1.detach().numpy(), z2.detach().numpy()))
    expected = 0.0
    for i in range(5):
        for j in range(5):
            c = np.mean(a[:, i] * b[:, j])
            expected += (1 - c) ** 2 if i == j else 0.01 * c**2
    assert value == pytest.approx(expected, rel=1e-5)
    pair = torch.stack([z1, z2]).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: common.barlow_twins(z[0], z[1], 0.01), pair)
    assert (
        common.barlow_twins(z1, 2 * z1 + 3, 0.0).item() < 1e-9
    )  # scale and shift of a dimension don't matter


def test_directclr_lowrank_diagonal_and_a_subvector_of_zeros_are_one_loss_with_one_gradient():
    torch.manual_seed(0)
    projectors = (
        Subvector(16, 6),
        common.projector("lowrank-diagonal", 16, rank=6),
        ConstantSubvector(10, 0.0),
    )
    h1, h2 = torch.randn(2, 8, 16)
    values, gradients = [], []
    for projector in projectors:
        h = torch.stack([h1, h2]).requires_grad_()
        loss = common.info_nce(projector(h[0]), projector(h[1]), 0.2)
        loss.backward()
        values.append(loss.item())
        gradients.append(h.grad)
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-5, atol=1e-7)
    assert not gradients[0][:, :, 6:].any()


def test_a_random_subvector_is_redrawn_a_fixed_one_is_not():
    torch.manual_seed(0)
    h, subvector = torch.arange(32.0).expand(2, -1), Subvector(32, 5)
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
    online, projector = torch.nn.Linear(3, 4), common.projector("mlp", 4, 5, 2)
    target = Target(online, projector, 0.9)
    expected = [p.detach().clone() for p in (*online.parameters(), *projector.parameters())]
    target.update(online, projector)
    for step in range(3):
        with torch.no_grad():
            for p in (*online.parameters(), *projector.parameters()):
                p.add_(torch.randn_like(p))
        target.update(online, projector)
        fast = (*online.parameters(), *projector.parameters())
        expected = [0.9 * slow + 0.1 * p.detach() for slow, p in zip(expected, fast)]
        for p, q in zip(target.parameters(), expected):
            torch.testing.assert_close(p, q)
            assert not p.requires_grad


ROWS = {
    "byol.py": "byol",
    "byol.py --hidden 7 --embedding 9 --reg sparsehead": "byol-sparsehead",
    "byol.py --no-projector --momentum 0.5 --reg lastlayer": "byol-noproj-lastlayer",
    "byol.py --projector linear --reg werank": "byol-linear-werank",
    "directclr.py": "directclr",
    "directclr.py --subvector random --cross-view --temperature 0.1": "directclr-random",
    "directclr.py --dim 9 --reg lastlayer": "directclr-d9-lastlayer",
    "directclr.py --reg werank": "directclr-werank",
    "barlow.py": "barlow",
    "barlow.py --hidden 7 --embedding 9 --reg sparsehead": "barlow-sparsehead",
    "barlow.py --no-projector --reg lastlayer": "barlow-noproj-lastlayer",
    "barlow.py --projector linear --lambd 0.1 --reg werank": "barlow-linear-werank",
}


@pytest.mark.parametrize("row", ROWS)
def test_every_kind_of_row_runs_and_has_its_name(row, tiny, script, tmp_path):
    name, *arguments = row.split()
    done = script(name, "--dataset", tiny, *TINY_RUN, "--epochs", 1, "--out", "run", *arguments)
    assert done.returncode == 0, done.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["config"]["name"] == ROWS[row] and result["config"]["script"] == name
    if name == "directclr.py":
        assert result["dim"] == (9 if "--dim" in row else 6) == len(result["spectra"]["z"])
        assert 0 <= result["subvector_linear_top1"] <= 100
    else:
        full = 256 if name == "byol.py" else 2048
        width = 9 if "embedding" in row else 32 if "no-projector" in row else full
        assert len(result["spectra"]["z"]) == width


@pytest.mark.parametrize(
    "line, named",
    [
        ("directclr.py --dim 33", "--dim"),
        ("directclr.py --dim 0", "--dim"),
        ("directclr.py --subvector some", "--subvector"),
        ("directclr.py --reg sparsehead", "--reg sparsehead"),
        ("directclr.py --reg lastlayer --reg-on projector", "--reg-on"),
        ("barlow.py --lambd -1", "--lambd"),
        ("byol.py --momentum 1.5", "--momentum"),
        ("byol.py --no-projector --embedding 8", "--embedding"),
        ("barlow.py --no-projector --hidden 8", "--hidden"),
        ("barlow.py --projector orthogonal", "--projector"),
        ("barlow.py --no-projector --reg sparsehead", "--reg sparsehead"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(line, named, tiny, script, tmp_path):
    name, *arguments = line.split()
    done = script(name, "--dataset", tiny, *TINY_RUN, *arguments)
    assert done.returncode == 2 and len(done.err.splitlines()) == 1 and named in done.err
    assert not list(tmp_path.iterdir())


PAIRED = (
    "simclr.py",
    "simclr.py --no-projector --reg lastlayer",
    "simclr.py --no-projector --fixed-dims 4",
    "simclr.py --projector orthogonal",
    "simclr.py --projector lowrank --reg werank",
    "directclr.py",
    "directclr.py --subvector random",
    "barlow.py --hidden 8 --embedding 8",
    "barlow.py --no-projector",
    "byol.py --hidden 8 --embedding 8 --reg sparsehead",
)


def test_rows_of_one_seed_share_encoder_order_of_images_and_views(tiny, script, monkeypatch):
    step, seen = common.training_step, {}

    def recording(args, encoder, projector, loss, modules=()):
        def spied(x1, x2):
            views.append(torch.stack([x1, x2]))
            return loss(x1, x2)

        first = {key: value.clone() for key, value in encoder.state_dict().items()}
        views = []
        seen[row] = (first, views)
        return step(args, encoder, projector, spied, modules)

    monkeypatch.setattr(common, "training_step", recording)
    for seed in (0, 1):
        for row in PAIRED if seed == 0 else PAIRED[:1]:
            name, *flags = row.split()
            row = f"{row} {seed}"
            done = script(
                name, "--dataset", tiny, *TINY_RUN, "--epochs", 2, "--seed", seed, *flags, "--overwrite"
            )
            assert done.returncode == 0, done.err
    encoder, views = seen[f"{PAIRED[0]} 0"]
    other_encoder, other_views = seen.pop(f"{PAIRED[0]} 1")
    assert len(views) == 6 and len({v.sum().item() for v in views}) == 6
    assert not torch.equal(encoder["conv1.weight"], other_encoder["conv1.weight"])
    assert not torch.equal(views[0], other_views[0])
    for row, (first, drawn) in seen.items():
        assert all(torch.equal(first[key], encoder[key]) for key in encoder), row
        assert len(drawn) == 6 and all(map(torch.equal, drawn, views)), row
