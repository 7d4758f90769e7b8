"""Fine-tuning: which labels, what trains at which rate, a step by hand, interruptions, the table."""

import re
from functools import partial
from itertools import islice
from types import SimpleNamespace

import common
import numpy as np
import pytest
import torch
from conftest import ROOT, cases, put, read, sabotage

import finetune
import rows

FLAGS = ("--device", "cpu", "--labels", 0.5, "--batch-size", 20, "--epochs", 3)
ARGS = {"lr": 0.5, "lr_encoder": 0.1, "weight_decay": 0.01, "batch_size": 64, "epochs": 1, "seed": 3}
ARGS |= {"freeze": False, "image_size": 12, "device": "cpu", "precision": "float32"}
ARGS |= {"warmup_epochs": 0, "compile": False}
MEANINGS = """
    : labels=0.01 epochs=20 lr=0.5 lr_encoder=0.002 weight_decay=0.0;
    --freeze: labels=1.0 epochs=100 lr=0.3 lr_encoder=None weight_decay=1e-06;
    --scratch: labels=0.01 lr=0.12 lr_encoder=0.12; --scratch --batch-size 64: lr=0.03 lr_encoder=0.03"""
STOPS = (("epoch_order", 2, 9), ("features", 1, 15), *(("Training.train_on", n, 15) for n in (3, 5)))
STOPS += (("Training.train_on", 4, 9), ("write_tensors", 3, 15), ("write_tensors", 9, 15))


def train(tiny, encoder, **changes):
    """Of an epoch: mean loss, images, optimiser, W and b (4, D + 1) of the classifier before and after."""
    data = common.load_dataset(tiny)
    args = SimpleNamespace(**ARGS | changes)
    run = finetune.FineTuning(args, data, torch.arange(50), encoder)
    classifier = run.model["classifier"]
    classifier.reset_parameters()  # larger, so that the encoder's gradient is
    weights = lambda: torch.cat([classifier.weight, classifier.bias[:, None]], 1).detach().double()
    before = weights()
    rates = common.learning_rates(args, run.steps)
    for batch in islice(run.remaining_batches(), run.per_epoch):
        run.train_on(batch, rates[run.step])
    return run.epoch_loss.item() / run.per_epoch, data, run.optimizer, before, weights()


def test_labels_are_class_balanced_and_a_matter_of_share_and_seed():
    y = torch.arange(900) % 9 - 1  # a ninth without a label
    tenth, again, other = (finetune.choose(y, 0.1, seed) for seed in (5, 5, 6))
    assert torch.equal(tenth, again) and set(tenth.tolist()) != set(other.tolist())
    assert y[tenth].bincount().tolist() == [10] * 8 and len(tenth.unique()) == 80
    assert set(finetune.choose(y, 0.02, 5).tolist()) < set(tenth.tolist())
    assert y[finetune.choose(y, 0.0125, 5)].bincount().tolist() == [2, 2, 1, 1, 1, 1, 1, 1]
    assert set(finetune.choose(y, 1, 5).tolist()) == set((y >= 0).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_encoder_stays_bit_identical_and_another_trains_with_its_batchnorms(tiny, freeze):
    encoder = common.resnet(width=4)
    old = {key: value.clone() for key, value in encoder.state_dict().items()}
    *_, before, after = train(tiny, encoder, freeze=freeze)
    same = {torch.equal(old[key], value) for key, value in encoder.state_dict().items()}
    assert same == {freeze} and not torch.equal(before, after)
    assert {p.requires_grad for p in encoder.parameters()} == {not freeze}


def test_the_loss_of_an_epoch_is_the_mean_over_its_images(tiny):
    encoder = common.MLP(12, 16)
    loss, data, _, c, _ = train(tiny, encoder, freeze=True, lr=1e-12, batch_size=20)
    drawn = torch.Generator().manual_seed(ARGS["seed"])
    total = 0
    for batch in common.epoch_order(ARGS["seed"], 0, 50, "cpu").split([17, 17, 16]):
        views = common.Augment(12, jitter_p=0, grey_p=0)(data.x_train[batch], drawn)
        h = torch.cat([encoder(views), torch.ones(len(batch), 1)], 1).double()
        total += torch.nn.functional.cross_entropy(h @ c.T, data.y_train[batch], reduction="sum").item()
    assert loss == pytest.approx(total / 50, rel=1e-5)


def test_a_step_is_that_of_backpropagation_by_hand_with_two_rates(tiny):
    encoder = common.MLP(12, 16)
    w1, w2, w3 = (p.detach().clone().double() for p in encoder.parameters())
    loss, data, _, c, found = train(tiny, encoder)
    order = common.epoch_order(ARGS["seed"], 0, 50, "cpu")
    drawn = torch.Generator().manual_seed(ARGS["seed"])
    views = common.Augment(12, jitter_p=0, grey_p=0)(data.x_train[order], drawn)
    a1 = (views.flatten(1).double() @ w1.T).clamp(min=0)
    a2 = (a1 @ w2.T).clamp(min=0)
    h = torch.cat([a2 @ w3.T, torch.ones(50, 1)], 1)
    p = (h @ c.T).softmax(1)
    onehot = torch.eye(4).double()[data.y_train[order]]
    assert loss == pytest.approx(-(p.log() * onehot).sum(1).mean().item(), rel=1e-5)
    error = (p - onehot) / 50
    close = partial(torch.testing.assert_close, atol=1e-6, rtol=0)
    close(found, c - 0.5 * (error.T @ h + 0.01 * c))
    of_h = error @ c[:, :-1]
    for layer, w, gradient in ((3, w3, of_h.T @ a2), (2, w2, ((of_h @ w3) * (a2 > 0)).T @ a1)):
        close(getattr(encoder, f"layer{layer}").weight.detach().double(), w - 0.1 * (gradient + 0.01 * w))


@pytest.mark.parametrize("line", cases(MEANINGS))
def test_defaults_are_barlow_twins_and_from_scratch_those_of_training_without_labels(line):
    flags, expected = line.split(": ")
    args = finetune.resolve(finetune.parser().parse_args(["a.pt", *flags.split()]))
    assert not set(expected.split()) - {f"{key}={value}" for key, value in vars(args).items()}


def test_both_rates_fall_as_a_cosine_over_all_batches(tiny):
    _, _, opt, *_ = train(tiny, common.MLP(12, 16), batch_size=16, epochs=3)  # 4 batches: 13 13 12 12
    factor = (1 + np.cos(np.pi * 3 / 12)) / 2
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([0.5 * factor, 0.1 * factor])


def test_top_1_and_top_5_are_shares_of_test_images():
    encoder, classifier = common.MLP(8, 16), torch.nn.Linear(16, 9)
    x = torch.randint(0, 256, (70, 3, 8, 8), dtype=torch.uint8)
    y = torch.arange(70) % 9
    scores = classifier(encoder(common.normalize(x))).tolist()
    places = [sum(value > line[label] for value in line) for line, label in zip(scores, y.tolist())]
    expected = [100 * np.mean([place < k for place in places]) for k in (1, 5)]
    found = finetune.accuracies(encoder, classifier, SimpleNamespace(x_test=x, y_test=y))
    assert found == pytest.approx(expected)


def test_interrupted_and_resumed_is_uninterrupted(tmp_path, tiny, forks):
    def outcome(name):
        result, weights = read(tmp_path / name), torch.load(tmp_path / name / "checkpoint.pt")["model"]
        assert result.pop("seconds")
        del result["config"]["git"]  # of a repository that changes
        return result, {key: value.tolist() for key, value in weights.items()}

    torch.save(common.resnet(width=4).state_dict(), tmp_path / "a.pt")
    run = partial(forks, tmp_path, "finetune.py", "a.pt", "--dataset", tiny, *FLAGS, "--resume", "--out")
    assert run("whole").returncode == 0
    for function, call, number in STOPS:
        name = f"{function}{call}"
        stop = "common.SAVE_EVERY = 0" + sabotage(function, call, f"os.kill(os.getpid(), {number})")
        assert run(name, before=stop).returncode == (143 if number == 15 else -9), name
        if function == "write_tensors":
            # as the first epoch is saved, and the last
            assert len(torch.load(tmp_path / name / "checkpoint.pt")["metrics"]) == call // 3
        assert not (tmp_path / name / "result.json").exists() and run(name).returncode == 0, name
        assert outcome(name) == outcome("whole"), name


def test_the_architecture_is_the_checkpoints_with_its_weights_or_from_scratch(tmp_path, tiny, script):
    weights = common.resnet("resnet50", "imagenet", 4).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "a.pt")
    for flags in ([], ["--scratch"]):
        words = ("--dataset", tiny, *FLAGS, "--epochs", 1, "--overwrite", "--out", "run", *flags)
        words += ("--lr-encoder", 1e-9)
        assert script("finetune.py", "a.pt", *words).returncode == 0
        found = torch.load(tmp_path / "run" / "checkpoint.pt")["model"]["encoder.conv1.weight"]
        assert torch.allclose(found, weights["conv1.weight"], atol=1e-5) == (not flags)
    arguments = read(tmp_path / "run")["config"]["arguments"]
    assert arguments.items() >= {"arch": "resnet50", "stem": "imagenet", "width": 4, "scratch": True}.items()


def test_a_last_step_that_diverges_gives_no_result(tmp_path, tiny, script):
    torch.save(common.resnet(width=4).state_dict(), tmp_path / "a.pt")
    flags = ("--labels", 1, "--epochs", 1, "--batch-size", 96, "--lr-encoder", 1e6, "--out", "run")
    done = script("finetune.py", "a.pt", "--dataset", tiny, *flags)
    assert done.returncode == 1 and "not finite" in done.err and not (tmp_path / "run/result.json").exists()


@pytest.mark.parametrize("name", ["a.pt", "encoder.pt"])
def test_other_weights_under_the_same_name_are_another_run(tiny, tmp_path, script, name):
    put(tmp_path / "config.json", {"lr": 0.1})  # nobody's of ours
    run = partial(script, "finetune.py", name, "--dataset", tiny, *FLAGS, "--out", "run", "--resume")
    for code in (0, 2):
        torch.manual_seed(code)
        torch.save(common.MLP(12, 8).state_dict(), tmp_path / name)
        assert run().returncode == code
    assert "pretraining is" in run().err


def test_the_table_leaves_out_what_is_no_result(tmp_path, script):
    pretraining = read(ROOT / "results/mini/cifar10/sh-simclr", "seed0.json")["config"]
    arguments = rows.arguments("ft1-simclr", "mini", "cifar10") | {"pretraining": pretraining}
    config = {"script": "finetune.py", "arguments": arguments}
    folder = tmp_path / "results-finetune/mini/cifar10/ft1-simclr"
    contents = [{"top1": 30.0, "top5": 70.0}, {"top1": 32.0, "top5": None}, {"top1": "x"}, {}]
    for seed, content in enumerate(contents):
        put(folder / f"seed{seed}.json", {"config": config} | content)
    done = script("finetune.py", "--table", "mini")
    assert re.search(r"ft1-simclr +SimCLR +31.0 ± 1.4 \(2\) +70.0 \(1\)  48.3 75.5\n", done.out), done.out
