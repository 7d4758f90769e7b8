"""Evaluation against numpy loops, numpy.linalg, and the optimality condition of what is minimised."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import common


def clusters(n, m, dim=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, dim))
    y = rng.integers(0, classes, n + m)
    h = centres[y] + 1.2 * rng.standard_normal((n + m, dim))
    return [torch.tensor(a) for a in (h[:n], y[:n], h[n:], y[n:])]


def knn_loop(train_h, train_y, test_h, test_y, k, temperature):
    train, test = (h.numpy() / np.linalg.norm(h.numpy(), axis=1, keepdims=True) for h in (train_h, test_h))
    correct = 0
    for h, y in zip(test, test_y.tolist()):
        similarity = train @ h
        nearest = np.argsort(-similarity)[:k]
        votes = {}
        for rank, i in enumerate(nearest):
            label = train_y[i].item()
            count, first = votes.get(label, (0, -rank))
            votes[label] = (
                count + (1 if temperature is None else math.exp(similarity[i] / temperature)),
                first,
            )
        correct += max(votes, key=votes.get) == y  # more votes, then the nearer first neighbour
    return 100 * correct / len(test)


@pytest.mark.parametrize(
    "k, temperature",
    [(1, 0.1), (20, 0.1), (20, 1.0), (5, None), (8, None), (200, None), (1000, 0.1), (20, 0.005)],
)
def test_knn_equals_a_loop(k, temperature):
    data = clusters(300, 600)
    assert common.knn_accuracy(*data, k=k, temperature=temperature) == pytest.approx(
        knn_loop(*data, k, temperature)
    )


def test_knn_ties_go_to_the_class_of_the_nearest_neighbour():
    angle = torch.tensor([0.1, 0.2, 0.3, 0.4])
    train = torch.stack([angle.cos(), angle.sin()], 1)
    test = torch.tensor([[1.0, 0.0]])
    for labels in ([1, 0, 0, 1], [0, 1, 1, 0], [2, 1, 2, 1]):
        y = torch.tensor(labels)
        assert common.knn_accuracy(train, y, test, y[:1], k=4, temperature=None) == 100


def test_linear_probe_meets_its_optimality_condition():
    h, y, _, _ = clusters(400, 1)
    weight = common.logistic_regression(h, y, 4, 1e-3)
    p = F.softmax(h @ weight[:, :-1].T + weight[:, -1], 1) - F.one_hot(y, 4)
    gradient = torch.cat([p.T @ h / len(h) + 1e-3 * weight[:, :-1], p.mean(0)[:, None]], 1)
    assert gradient.abs().max() < 1e-5


def test_linear_probe_is_deterministic_and_as_good_as_a_long_adam_run():
    data = clusters(600, 2000, dim=20, classes=8)
    top1, top5 = common.linear_probe(*data)
    assert (top1, top5) == common.linear_probe(*data) and top5 > top1
    train_h, train_y, test_h, test_y = data
    mean, std = train_h.mean(0), train_h.std(0)
    model = torch.nn.Linear(20, 8).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        (
            F.cross_entropy(model((train_h - mean) / std), train_y) + 5e-4 * model.weight.square().sum()
        ).backward()
        optimizer.step()
    adam = 100 * (model((test_h - mean) / std).argmax(1) == test_y).double().mean().item()
    assert abs(top1 - adam) < 1.5


def test_linear_probe_does_not_depend_on_the_order_of_the_images():
    train_h, train_y, test_h, test_y = clusters(1000, 1000, dim=60, classes=10)
    by_class = torch.argsort(train_y * 1000 + torch.arange(1000) % 97)
    counts = torch.bincount(train_y).min()
    periodic = torch.stack([(train_y == label).nonzero()[:counts, 0] for label in range(10)], 1).flatten()
    scores = [common.linear_probe(train_h[i], train_y[i], test_h, test_y)[0] for i in (by_class, periodic)]
    assert abs(scores[0] - scores[1]) < 3


def test_linear_probe_chooses_the_penalty_that_predicts_best():
    # Noisy labels need a strong penalty, a class that hides in dimensions of little variance a weak one.
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(4200, 100, generator=generator)
    signal, noise = torch.randn(2, 4200, 1, generator=generator)
    mixed = h @ torch.diag(torch.exp(-0.1 * torch.arange(100))) @ torch.randn(100, 100, generator=generator)
    cases = (
        (h + signal / 2, (signal + noise > 0).long()[:, 0], 300),
        (mixed, (h[:, 40:].sum(1) > 0).long(), 2000),
    )
    for (features, labels, n), (right, wrong) in zip(cases, ((1e-1, 1e-5), (1e-5, 1e-1))):
        std, mean = torch.std_mean(features[:n].double(), 0, correction=0)
        z, accuracy = (features.double() - mean) / std, {}
        for l2 in (right, wrong):
            weight = common.logistic_regression(z[:n], labels[:n], 2, l2)
            scores = z[n:] @ weight[:, :-1].T + weight[:, -1]
            accuracy[l2] = 100 * (scores.argmax(1) == labels[n:]).double().mean().item()
        chosen = common.linear_probe(features[:n], labels[:n], features[n:], labels[n:])[0]
        assert accuracy[right] > accuracy[wrong] + 5 and chosen > accuracy[right] - 2


def test_min_max_ratio_is_its_double_loop():
    z = np.random.default_rng(0).normal(size=(12, 4))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    ratios = []
    for i in range(12):
        distances = [np.linalg.norm(z[i] - z[j]) for j in range(12) if j != i]
        ratios.append((max(distances) - min(distances)) / min(distances))
    assert common.min_max_ratio(3 * torch.tensor(z)) == pytest.approx(np.mean(ratios), rel=1e-10)
    assert common.min_max_ratio(torch.ones(5, 1)) == 0  # all at one place


def test_features_that_are_not_finite_and_labels_below_0_are_refused():
    h, y = torch.randn(20, 4), torch.arange(20) % 2
    for method in (common.knn_accuracy, common.linear_probe):
        for bad_h, bad_y in ((h * math.nan, y), (h / 0, y), (h, y - 1)):
            for arguments in ((bad_h, bad_y, h, y), (h, y, bad_h, bad_y)):
                with pytest.raises(common.UserError, match="finite"):
                    method(*arguments)
        graph = h.clone().requires_grad_()
        assert method(graph, y.int(), h, y.byte()) == method(h, y, h, y)


def test_linear_probe_takes_few_classes_few_images_and_dead_dimensions():
    h = torch.randn(12, 5)
    h[:, 2] = 0
    y = torch.arange(12) % 2
    h[:, 0] = y * 4.0
    assert common.linear_probe(h, y, h, y) == (100, 100)
    assert common.linear_probe(h[:4], y[:4], h, y)[1] == 100


@pytest.mark.parametrize("normalize", [True, False])
def test_spectrum_equals_numpys_svd_of_the_covariance(normalize):
    features = np.random.default_rng(0).standard_normal((200, 12)) * np.logspace(0, -4, 12) + 1
    x = features / np.linalg.norm(features, axis=1, keepdims=True) if normalize else features
    expected = np.linalg.svd(np.cov(x.T), compute_uv=False)
    ours = common.covariance_spectrum(torch.tensor(features), normalize)
    assert ours.dtype == torch.float64 and ours.shape == (12,)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6, atol=1e-16)
    assert common.covariance_spectrum(torch.tensor(features).float()).dtype == torch.float64


def test_rankme_equals_its_definition():
    features = np.random.default_rng(0).standard_normal((100, 8)) @ np.diag([5, 4, 3, 2, 1, 1e-3, 0, 0]) + 0.5
    s = np.linalg.svd(features, compute_uv=False)
    p = s / s.sum() + 1e-7
    assert common.rankme(torch.tensor(features)) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)
    assert common.rankme(torch.eye(16)) == pytest.approx(16, rel=1e-4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = common.resnet(width=4)
    head = common.projector("mlp", encoder.dim, out=6)
    encoder(torch.randn(8, 3, 16, 16))  # BatchNorm statistics that are not the initial ones
    return encoder, head, torch.randint(0, 256, (300, 3, 16, 16), dtype=torch.uint8)


def test_features_are_the_layers_outputs(model):
    encoder, head, x = model
    found = common.features(encoder, head, x)
    images = common.normalize(x)
    encoder.eval(), head.eval()
    with torch.no_grad():
        h = encoder(images)
        block = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(images))))
        block = encoder.layer4[0](encoder.layer3(encoder.layer2(encoder.layer1(block))))
        expected = {
            "h": h,
            "penultimate": block.mean((2, 3)),
            "z": head(h),
            "projector_hidden": head[2](head[1](head[0](h))),
        }
    assert found.keys() == expected.keys()
    for layer, value in expected.items():
        assert torch.allclose(found[layer], value, atol=1e-5), layer
    encoder.train(), head.train()
    assert "projector_hidden" not in common.features(encoder, common.projector("linear", 32), x)


def test_evaluation_leaves_weights_and_batchnorm_statistics_alone(model):
    encoder, head, x = model
    before = copy.deepcopy([encoder.state_dict(), head.state_dict()])
    y = torch.arange(300) % 3
    common.evaluate(encoder, head, common.Dataset("x", x, y, x[:60], y[:60], "abc"))
    for was, module in zip(before, (encoder, head)):
        assert module.training
        for name, value in module.state_dict().items():
            assert torch.equal(value, was[name]), name


def test_layer_statistics_hold_what_the_figures_need(model):
    encoder, head, x = model
    found, statistics = common.features(encoder, head, x), common.layer_statistics(encoder, head, x)
    for layer, values in found.items():
        np.testing.assert_allclose(
            statistics["spectra"][layer], common.covariance_spectrum(values), rtol=1e-5
        )
        c = np.cov(F.normalize(values.double(), dim=1).numpy().T)
        c /= np.diag(c).mean()
        off = np.abs(c[~np.eye(len(c), dtype=bool)]).mean()
        assert statistics["covariance"][layer]["offdiagonal"] == pytest.approx(off)
        np.testing.assert_allclose(statistics["covariance"][layer]["block"], c[:32, :32], atol=6e-4)
    convolution, norm = encoder.layer4[1].conv2, encoder.layer4[1].bn2
    bare = [row.square().sum().item() for row in convolution.weight]
    np.testing.assert_allclose(statistics["row_norms"]["bare"], bare, rtol=1e-5)
    gamma, variance = norm.weight.detach().numpy(), norm.running_var.numpy()
    np.testing.assert_allclose(
        statistics["row_norms"]["folded"], gamma**2 / (variance + norm.eps) * bare, rtol=1e-5
    )
    np.testing.assert_allclose(
        statistics["row_norms"]["variance"], found["h"].numpy().var(0, ddof=1), rtol=1e-4
    )
    assert common.layer_statistics(encoder, None, x)["spectra"]["z"] is None
