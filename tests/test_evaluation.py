"""Evaluation against numpy loops, numpy.linalg, optimality conditions, and cases of a known answer."""

import copy
import math

import common
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import normal
from torch import nn


def clusters(n, m, dim=6, classes=4):
    y = torch.tensor(np.random.default_rng(0).integers(0, classes, n + m))
    h = normal(classes, dim)[y] + 1.2 * normal(n + m, dim, seed=1)
    return h[:n], y[:n], h[n:], y[n:]


def knn_loop(train_h, train_y, test_h, test_y, k, temperature):
    train, test = (h.numpy() / np.linalg.norm(h.numpy(), axis=1, keepdims=True) for h in (train_h, test_h))
    correct = 0
    for h, y in zip(test, test_y):
        similarity = train @ h
        nearest = np.argsort(-similarity)[:k]
        labels = train_y[nearest].tolist()
        weights = np.exp(similarity[nearest] / temperature) if temperature else np.ones(len(nearest))
        votes = np.bincount(labels, weights)
        correct += max(labels, key=votes.item) == y  # of equal votes the nearest neighbour's
    return 100 * correct / len(test)


class OwnEncoder(nn.Sequential):
    dim = 6


def changed(name, part, dim=32):
    """A ResNet-18 of width 4 with another part of this name."""
    encoder = common.resnet(width=4)
    encoder.set_submodule(name, part)
    encoder.dim = dim
    return encoder


KNN = [(1, 0.1), (20, 0.1), (20, 1.0), (5, None), (8, None), (200, None), (1000, 0.1), (20, 0.005)]
SIX = F.pad(normal(500, 6), (0, 10))
KNOWN = {  # features, their rank, dead coordinates
    "six dimensions": (SIX, 6, range(6, 16)),
    "six dimensions and a large mean": (SIX + 1000 * normal(16, seed=3), 6, range(6, 16)),
    "a weight of low rank": (normal(500, 20, seed=2) @ (normal(20, 5) @ normal(5, 32, seed=1)), 5, ()),
    "more dead than alive": (normal(500, 16) * torch.tensor([1, 2, 3, 1] + [1e-3] * 12), 4, range(4, 16)),
    "no variance at all": (torch.zeros(10, 3), 0, range(3)),
    "a constant with float32's rounding errors": (1 + 6e-8 * normal(300, 64), 0, ()),
}
CONVOLUTIONS = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
STEM = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
KINDS = {  # an encoder that is none of make_encoder's, and its last weight layer
    "convolutions": (OwnEncoder(*CONVOLUTIONS), "2"),
    "a deep stem": (changed("conv1", STEM), "layer4.1.conv2"),
    "a ResNet without its last stage": (changed("layer4", nn.Sequential(), 16), "layer3.1.conv2"),
    "a ResNet with fc": (changed("fc", nn.Linear(32, 6), 6), "fc"),
    "GroupNorm at the end": (changed("layer4.1.bn2", nn.GroupNorm(4, 32)), "layer4.1.conv2"),
}


@pytest.mark.parametrize("k, temperature", KNN)
def test_knn_equals_a_loop(k, temperature):
    data = clusters(250, 1100)  # two blocks of test images
    ours = common.knn_accuracy(*data, k=k, temperature=temperature)
    assert ours == pytest.approx(knn_loop(*data, k, temperature))
    h, y, test_h, test_y = data
    spread = (h, y * 10**12, test_h, test_y * 10**12)  # memory is for the labels that are there
    assert common.knn_accuracy(*spread, k=k, temperature=temperature) == ours


def test_large_images_are_evaluated_few_at_once_which_does_not_change_features(model, monkeypatch):
    for pixels, few in ((32, 256), (256, 256), (1024, 16), (4096, 2)):
        assert common.at_once(torch.empty(1, 3, pixels, pixels, device="meta")) == few
    encoder, _, data = model
    whole = common.features(encoder, None, data.x_test)["h"]
    sizes = []
    encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr(common, "at_once", lambda _: 100)
    torch.testing.assert_close(common.features(encoder, None, data.x_test)["h"], whole, rtol=1e-4, atol=1e-5)
    assert sizes == [100, 100, 60]


def test_linear_probe_meets_its_optimality_condition_in_blocks_too(monkeypatch):
    h, y, _, _ = clusters(400, 1)
    whole = common.logistic_regression(h, y, 4, 1e-3)
    monkeypatch.setattr(common, "PROBE_LOGITS", 4 * 7)  # 7 images at once
    weight = common.logistic_regression(h, y, 4, 1e-3)
    torch.testing.assert_close(weight, whole, rtol=0, atol=1e-6)
    p = F.softmax(h @ weight[:, :-1].T + weight[:, -1], 1) - F.one_hot(y, 4)
    gradient = torch.cat([p.T @ h / len(h) + 1e-3 * weight[:, :-1], p.mean(0)[:, None]], 1)
    assert gradient.abs().max() < 1e-5


def test_linear_probe_is_deterministic_and_as_good_as_a_long_adam_run():
    train_h, train_y, test_h, test_y = data = clusters(600, 2000, dim=20, classes=8)
    top1, top5 = common.linear_probe(*data)
    assert (top1, top5) == common.linear_probe(*data) and top5 > top1
    std, mean = torch.std_mean(train_h, 0)
    model = torch.nn.Linear(20, 8).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(1000):
        optimizer.zero_grad()
        loss = F.cross_entropy(model((train_h - mean) / std), train_y)
        (loss + 5e-4 * model.weight.square().sum()).backward()
        optimizer.step()
    adam = 100 * (model((test_h - mean) / std).argmax(1) == test_y).double().mean().item()
    assert abs(top1 - adam) < 1.5


def test_linear_probe_does_not_depend_on_the_order_of_the_images():
    h, y, test_h, test_y = clusters(1000, 1000, dim=40, classes=10)
    rank = F.one_hot(y).cumsum(0).gather(1, y[:, None])[:, 0]  # 1 of the first of each class
    orders = (y.argsort(), (10 * rank + y).argsort())  # 0 0 … 9 9, and 0 1 … 9 0 1 …
    scores = [common.linear_probe(h[i], y[i], test_h, test_y)[0] for i in orders]
    assert abs(scores[0] - scores[1]) < 3


def test_linear_probe_chooses_the_penalty_that_predicts_best():
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(4200, 100, generator=generator)
    signal, noise = torch.randn(2, 4200, 1, generator=generator)
    noisy = (h + signal / 2, (signal + noise > 0).long()[:, 0])
    h = normal(3000, 60)
    mixed = h @ torch.diag(torch.exp(-0.15 * torch.arange(60))).double() @ normal(60, 60, seed=1)
    little = (mixed, (h[:, 25:].sum(1) > 0).long())  # of variance have the dimensions that tell the class
    for h, y, n, right, wrong in ((*noisy, 300, 1e-1, 1e-5), (*little, 1500, 1e-5, 1e-1)):
        z = ((h - h[:n].mean(0)) / h[:n].std(0, correction=0)).double()
        weights = [common.logistic_regression(z[:n], y[:n], 2, l2) for l2 in (right, wrong)]
        scores = [z[n:] @ weight[:, :-1].T + weight[:, -1] for weight in weights]
        best, worst = (100 * (each.argmax(1) == y[n:]).double().mean().item() for each in scores)
        chosen = common.linear_probe(h[:n], y[:n], h[n:], y[n:])[0]
        assert best > worst + 5 and chosen > best - 2, right


def test_linear_probe_takes_any_numbers_as_labels_and_never_predicts_one_that_it_has_not_seen():
    h, y, test_h, test_y = clusters(200, 100)
    expected = common.linear_probe(h, y, test_h, test_y)
    assert common.linear_probe(h, 20_000 * y + 7, test_h, 20_000 * test_y + 7) == expected
    other = test_y.where(torch.arange(100) < 50, 4)  # the first half keeps its labels
    first = common.linear_probe(h, y, test_h[:50], test_y[:50])
    assert common.linear_probe(h, y, test_h, other) == pytest.approx([half / 2 for half in first])


def test_linear_probe_takes_few_classes_few_images_and_dead_dimensions():
    h = torch.randn(12, 5)
    y = torch.arange(12) % 2
    h[:, 0], h[:, 2] = y * 4.0, 0
    for n in (12, 4):
        assert common.linear_probe(h[:n], y[:n], h[:n], y[:n]) == (100, 100)


@pytest.mark.parametrize("n", [100, 6])
def test_rankme_equals_its_definition(n):
    h = normal(n, 8) * torch.tensor([5, 4, 3, 2, 1, 0.5, 0.4, 0.3]) + 0.5
    s = np.linalg.svd(h.numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert common.rankme(h) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_ranks_count_what_stands_before_a_cliff():
    spectrum = np.array([1.0] * 5 + [5e-3] * 2 + [5e-4] * 3 + [5e-6] * 4 + [1e-14] * 6)
    found = common.ranks(torch.tensor(3 * spectrum))
    p = spectrum[:14] / spectrum[:14].sum()
    assert found.pop("entropy_rank") == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-12)
    assert found == {"rank_1e-2": 5, "rank_1e-3": 7, "rank_1e-5": 10}


@pytest.mark.parametrize("case", KNOWN)
def test_ranks_and_dead_coordinates_are_those_of_the_construction(case):
    h, rank, dead = KNOWN[case]
    found = common.rank_statistics(h)
    assert found["rank_1e-3"] == rank and found["dead"] == list(dead)


def test_min_max_ratio_is_its_double_loop():
    z = normal(12, 4).numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    ratios = []
    for i in range(12):
        distances = [np.linalg.norm(z[i] - z[j]) for j in range(12) if j != i]
        ratios.append((max(distances) - min(distances)) / min(distances))
    assert common.min_max_ratio(3 * torch.tensor(z)) == pytest.approx(np.mean(ratios), rel=1e-10)
    near, far = sorted(np.linalg.norm(z[0] - z[i]) / np.linalg.norm(z[1] - z[2]) for i in (1, 2))
    ratios = [max(x, 1 / x) - 1 for x in (near, far)]  # of 1 and 2: an anchor with a duplicate does not count
    z = torch.tensor(np.stack([z[0], z[0] + 1e-9, z[1], z[2]]))
    assert common.min_max_ratio(z) == pytest.approx(np.mean(ratios))
    assert common.min_max_ratio(torch.ones(5, 1)) == 0  # all at one place


def test_min_max_ratios_are_of_the_first_images_or_of_all_classes_if_these_are_sorted():
    encoder = OwnEncoder(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6))
    x = torch.randint(0, 256, (2500, 3, 2, 2), dtype=torch.uint8)
    h = common.features(encoder, None, x)["h"]
    by_class, mixed = torch.arange(2500) // 500, torch.arange(2500) % 5
    for y, chosen in ((by_class, np.linspace(0, 2499, 2000).astype(int)), (mixed, np.arange(2000))):
        found = common.layer_statistics(encoder, None, x, y)["min_max_ratio"]["h"]
        assert found == pytest.approx(common.min_max_ratio(h[chosen]))


@pytest.fixture(params=["resnet18", "mlp"])
def model(request):
    """Encoder, projector, images as a data set; BatchNorms are not those of a new network."""
    torch.manual_seed(0)
    flags = ["--arch", request.param, "--width", "4", "--image-size", "12", "--stem", "cifar"]
    encoder = common.make_encoder(common.arguments("").parse_args(flags))
    head = nn.Sequential(*common.projector("mlp", encoder.dim, out=7), nn.Tanh(), nn.Linear(7, 6))
    head(encoder(torch.randn(8, 3, 12, 12)))
    for norm in (layer for layer in encoder.modules() if hasattr(layer, "running_var")):
        torch.nn.init.normal_(norm.weight, 1, 0.1)
        torch.nn.init.normal_(norm.bias)
    x = torch.randint(0, 256, (260, 3, 12, 12), dtype=torch.uint8)
    y = torch.arange(260) % 3
    return encoder, head, common.Dataset("x", x[:200], y[:200], x, y, "abc")


@torch.no_grad()
def test_features_are_the_layers_outputs(model):
    encoder, head, data = model
    found = common.features(encoder, head, data.x_test)
    assert encoder.training and head.training
    encoder.eval(), head.eval()
    images = common.normalize(data.x_test)
    h = encoder(images)
    expected = {"h": h, "z": head(h), "projector_hidden": head[:-1](h)}  # what its last linear layer sees
    if isinstance(encoder, common.MLP):
        expected["penultimate"] = encoder.layer2(encoder.layer1(images.flatten(1)).relu()).relu()
    else:
        stage = encoder.relu(encoder.bn1(encoder.conv1(images)))
        stage = encoder.layer3(encoder.layer2(encoder.layer1(stage)))
        expected |= {"layer3": stage.mean((2, 3)), "penultimate": encoder.layer4[0](stage).mean((2, 3))}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_of_ones_own_is_measured_and_its_last_layer_penalised(model, kind):
    data = model[2]
    encoder, end = KINDS[kind]
    last = encoder.get_submodule(end)
    head = common.projector("mlp", encoder.dim)
    assert common.encoder_end(encoder) == (last, None)
    found = common.start_statistics(encoder, head, data) | common.evaluate(encoder, head, data)
    norms = last.weight.detach().flatten(1).square().sum(1)
    np.testing.assert_allclose(found["row_norms"]["bare"], norms, rtol=1e-4)
    assert len(norms) == len(found["row_norms"]["variance"]) == len(found["spectra"]["h"]) == encoder.dim


def test_layers_that_are_not_there_are_null(model):
    encoder, _, data = model
    linear = common.projector("linear", encoder.dim)
    spectra = common.layer_statistics(encoder, linear, data.x_test)["spectra"]
    absent = {layer for layer, values in spectra.items() if values is None}
    assert absent == {"projector_hidden", *["layer3"] * isinstance(encoder, common.MLP)}
    assert common.layer_statistics(encoder, None, data.x_test)["spectra"]["z"] is None


@pytest.mark.parametrize("function", [common.evaluate, common.start_statistics])
def test_evaluation_leaves_weights_and_batchnorm_statistics_alone(model, function):
    modules = torch.nn.ModuleList(model[:2])
    before = copy.deepcopy(modules.state_dict())
    function(*model)
    assert modules[0].training and modules[1].training
    torch.testing.assert_close(modules.state_dict(), before, rtol=0, atol=0)


def test_start_statistics_are_those_of_batchnorms_that_saw_the_training_images(model, monkeypatch):
    encoder, head, data = model
    start = common.start_statistics(*model)
    for norm in (layer for layer in nn.Sequential(encoder, head).modules() if hasattr(layer, "running_var")):
        norm.momentum = 1.0  # one batch, and its statistics replace what was there
    head(encoder(common.normalize(data.x_train)))
    found = common.layer_statistics(encoder, head, data.x_test)
    for key in ("spectra", "bare_spectra", "weight_spectra"):
        for layer, values in found[key].items():
            assert (values is None) == (start[key][layer] is None)
            np.testing.assert_allclose(start[key][layer] or 0, values or 0, rtol=2e-3, atol=1e-7)
    assert start["knn200"] == pytest.approx(common.knn_accuracy(*common.representations(encoder, data)))
    monkeypatch.setattr(common, "process_index", lambda: 1)  # others than the first compute none
    assert common.start_statistics(*model) is None


def test_start_statistics_see_all_classes_of_images_that_are_sorted_by_class():
    x = torch.randint(0, 40, (5000, 3, 8, 8), dtype=torch.uint8)
    x[3000:] += 200
    data = common.Dataset("", x, torch.arange(5000) // 3000, x[::50], torch.arange(100) // 60, ("0", "1"))
    encoder = OwnEncoder(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 6))
    start = common.start_statistics(encoder, nn.Identity(), data)["bare_spectra"]["h"]
    encoder[2].momentum = 1.0
    encoder(common.normalize(x))
    expected = common.layer_statistics(encoder, None, data.x_test)["bare_spectra"]["h"]
    assert start[0] == pytest.approx(expected[0], rel=0.05)


def test_layer_statistics_hold_numpys_spectra_and_heat_maps_of_every_layer(model):
    encoder, head, data = model
    statistics = common.layer_statistics(encoder, head, data.x_test)
    for layer, values in common.features(encoder, head, data.x_test).items():
        c = np.cov(F.normalize(values.double(), dim=1).numpy().T)
        bare = np.cov(values.double().numpy().T)
        for key, normalize, matrix in (("spectra", True, c), ("bare_spectra", False, bare)):
            sigma = np.linalg.svd(matrix, compute_uv=False)
            np.testing.assert_allclose(statistics[key][layer], sigma, rtol=1e-4, atol=1e-12 * sigma[0])
            ours = common.covariance_spectrum(values, normalize)  # float64 of float32, not rounded
            np.testing.assert_allclose(ours, sigma, rtol=1e-9, atol=1e-13 * sigma[0])
        c /= np.diag(c).mean()
        off = np.abs(c[~np.eye(len(c), dtype=bool)]).mean()
        assert statistics["covariance"][layer]["offdiagonal"] == pytest.approx(off)
        np.testing.assert_allclose(statistics["covariance"][layer]["block"], c[:32, :32], atol=6e-4)


def test_row_norms_and_weight_spectra_equal_numpys(model):
    encoder, head, data = model
    layers = {key: h.numpy() for key, h in common.features(encoder, head, data.x_test).items()}
    end, norm = common.encoder_end(encoder)
    bare = (end.weight.detach().flatten(1).numpy() ** 2).sum(1)
    expected = {"bare": bare, "folded": bare}
    for prefix, h in (("", layers["h"]), ("penultimate_", layers["penultimate"])):
        expected |= {f"{prefix}variance": h.var(0, ddof=1), f"{prefix}open": (h > 0).mean(0)}
    if norm:
        gamma, beta = (p.detach().numpy() for p in norm.parameters())
        folded = gamma**2 / (norm.running_var.numpy() + norm.eps) * bare
        expected |= {"gamma": gamma, "beta": beta, "folded": folded}
    found = common.layer_statistics(encoder, head, data.x_test)["row_norms"]
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-4, atol=1e-10)
    mlp = isinstance(encoder, common.MLP)
    names = ("layer1", "layer2", "layer3") if mlp else ("layer4.1.conv1", "layer4.1.conv2")
    expected = {name: encoder.get_submodule(name) for name in names}
    expected |= {f"projector.{i}": head[i] for i in (0, 3, 5)}
    found = common.weight_spectra(encoder, head)
    assert found.keys() == expected.keys()
    for name, module in expected.items():
        sigma = np.linalg.svd(module.weight.detach().flatten(1).double().numpy(), compute_uv=False)
        np.testing.assert_allclose(found[name], sigma, rtol=1e-4)
