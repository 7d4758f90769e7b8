"""The rows: the papers' recipes, aliases, and which results are a row's."""

from itertools import product

import pytest
from conftest import ROOT, comparable, read

import rows

COUNTS = {"table2": 12, "table1": 9, "barlow": 5, "directclr-tables": 14, "sparsehead-table": 11}
COUNTS |= {"clock": 24}
LL = {"epochs": 200, "batch_size": 128, "optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "width": 64}
LL |= {"crop_scale": [0.08, 1.0], "grey_p": 0.2, "stem": "cifar", "image_size": 32, "train_size": None}
SH = {"epochs": 1000, "batch_size": 512, "optimizer": "adam", "lr": 3e-3, "weight_decay": 1e-6, "width": 64}
SH |= {"crop_scale": [0.2, 1.0], "grey_p": 0.1, "stem": "cifar", "image_size": 32, "train_size": None}
STL = {"epochs": 2000, "lr": 2e-3, "image_size": 96, "stem": "imagenet", "dataset": "stl10"}
TINY = {"lr": 2e-3, "image_size": 64}
BIG = {"arch": "resnet50", "optimizer": "lars", "image_size": 224, "stem": "imagenet"}
BIG |= {"epochs": 100, "lr": 4.8, "weight_decay": 1e-6, "warmup_epochs": 10, "blur_p": [1.0, 0.1]}
BIG |= {"solarize_p": [0.0, 0.2], "jitter": [0.4, 0.4, 0.2, 0.1]}
SMALLER = {"batch_size": 256, "lr": 0.3, "epochs": 200, "jitter": [0.8, 0.8, 0.8, 0.2], "blur_p": 0.5}
SMALLER |= {"warmup_epochs": 0, "weight_decay": 1e-6, "solarize_p": 0.0}


def test_tables_have_the_papers_rows_with_ll_or_sparseheads_recipe():
    assert {table: len(rows.of(table)) for table in COUNTS} == COUNTS
    for row in (row for row in rows.ROWS if row.tables != "clock"):
        name = row.name
        found = rows.arguments(name, "paper", "cifar100")
        recipe, temperature = (SH, 0.5) if row.tables == "sparsehead-table" else (LL, 0.2)
        assert found.items() >= recipe.items() and found.get("temperature", temperature) == temperature
        assert found["arch"] == ("resnet50" if "resnet50" in name else "resnet18")
        weight = {"werank": 0.1, "lastlayer": 1.0, "sparsehead": 1e-4}.get(name.split("-")[-1], 0.0)
        if row.tables != "weights":
            assert (found["reg"], found["reg_weight"]) == (name.split("-")[-1] if weight else "none", weight)


@pytest.mark.parametrize(
    "name, scale, dataset, wanted",
    [  # beside these, the arguments of every committed result, which test_report.py compares with its row's
        ("noproj", "short", "cifar10", LL | {"projector": "none", "epochs": 50, "fixed_dims": None}),
        ("noproj", "paper", "imagenet", BIG | {"temperature": 0.1, "cross_view": True, "batch_size": 4096}),
        ("directclr", "paper", "imagenet", BIG | {"dim": None}),
        ("barlow-werank", "paper", "imagenet", BIG | {"lambd": 5e-3}),
        ("noproj-lastlayer", "paper", "imagenet100", BIG | SMALLER | {"temperature": 0.2, "reg_weight": 1.0}),
        ("cs-werank", "paper", "cifar10", {"fixed_dims": 32, "fixed_value": 0.0, "projector": "none"}),
        ("cs-d200-k1", "paper", "cifar10", {"fixed_dims": 312, "fixed_value": 1.0}),
        ("cs-d400-kinv", "paper", "cifar10", {"fixed_dims": 112, "fixed_value": 512**-0.5}),
        *((f"directclr-d{d}", "paper", "cifar10", {"dim": d}) for d in (8, 32, 128, 256, 512)),
        ("sh-noproj", "paper", "stl10", SH | STL | {"projector": "none", "reg": "none"}),
        ("sh-simclr", "paper", "tiny-imagenet", SH | TINY | {"embedding": 512}),
        ("sh-byol", "paper", "imagenet", {"arch": "resnet50", "optimizer": "adam", "epochs": 1000}),
        ("sh-simclr", "mlp", "tiny-imagenet", {"image_size": 16, "arch": "mlp", "epochs": 1000}),
        ("sh-simclr", "compressed", "cifar10", {"epochs": 10, "width": 32, "weight_decay": 1e-6}),
        ("sh-resnet50", "mlp", "cifar10", {"image_size": 16, "arch": "resnet50"}),
        ("sh-byol", "short", "cifar10", SH | {"epochs": 50}),
        ("sh-byol-sparsehead", "paper", "stl10", SH | STL | {"embedding": None, "momentum": 0.99}),
        ("noproj-lastlayer-0.1", "paper", "cifar10", {"reg": "lastlayer", "reg_weight": 0.1}),
    ],
)
def test_a_rows_script_understands_its_command_as_the_paper_has_it(name, scale, dataset, wanted):
    assert rows.arguments(name, scale, dataset).items() >= wanted.items()


@pytest.mark.parametrize("name, other", [(row.name, row.same_as) for row in rows.ROWS if row.same_as])
def test_an_alias_is_the_same_run_to_the_last_digit(finished, name, other):
    one, two = (rows.arguments(row, "paper", "cifar10") for row in (name, other))
    assert [key for key in one.keys() & two.keys() if one[key] != two[key]] == []
    one, two = (comparable(finished(rows.ROW[row].command))[1] for row in (name, other))
    shared = two.keys() - {"config"}
    assert "weight_spectra" in shared and [key for key in shared if one[key] != two[key]] == []


def test_a_row_that_starts_from_an_encoder_takes_images_of_its_size():
    words = rows.command("ft1-simclr", "mlp", "tiny-imagenet")
    assert words[words.index("--image-size") + 1] == "16"


def test_no_scale_ends_within_a_warmup():
    places = product(rows.ROWS, rows.SCALES, ("cifar10", "imagenet100", "imagenet"))
    each = [rows.arguments(row.name, scale, dataset) for row, scale, dataset in places]
    assert all(args["warmup_epochs"] < args["epochs"] for args in each)


# ------------------------------------------------------------------------------------ is a result its row's?


PLACE = ("noproj-lastlayer", "mini", "cifar10")


def recorded(script="simclr.py", **changes):
    """The configuration of a committed result of PLACE, with changed arguments."""
    config = read(ROOT / "results/mini/cifar10/noproj-lastlayer", "seed0.json")["config"]
    return config | {"script": script, "arguments": config["arguments"] | changes}


def test_a_result_with_another_argument_or_script_or_of_another_place_is_not_the_rows():
    other = {"epochs": 200, "width": 64, "train_size": None, "batch_size": 256, "lr": 0.03, "reg": "werank"}
    other |= {"weight_decay": 1e-6, "reg_weight": 0.1, "reg_on": "projector", "optimizer": "adam"}
    other |= {"projector": "mlp", "temperature": 0.5, "cross_view": True, "crop_scale": [0.2, 1.0]}
    other |= {"arch": "mlp", "stem": "imagenet", "image_size": 64, "dataset": "cifar100", "fixed_dims": 4}
    other |= {"subvector": "random"}
    for key, value in other.items():
        assert rows.mismatch(recorded(**{key: value}), *PLACE).startswith(f"{key} {value}, not ")
    for place in (("noproj", *PLACE[1:]), (PLACE[0], "short", "cifar10"), (*PLACE[:2], "stl10")):
        assert rows.mismatch(recorded(), *place)
    assert rows.mismatch(recorded("barlow.py"), *PLACE) == "made by barlow.py, not simclr.py"
    for config in (None, [], {}, {"script": "simclr.py", "arguments": 1}, recorded(batch_size="8", lr=None)):
        assert "can't be read" in rows.mismatch(config, *PLACE)


def test_what_may_differ_between_runs_of_a_row():
    config = recorded(device="cuda:1", compile=True, precision="bf16", seed=5, eval_every=1)
    del config["arguments"]["cross_view"]  # a result from before that argument
    assert rows.mismatch(config, *PLACE) == ""
    own = ("mine", "mini", "mine")  # a row of one's own has the scale's length and size
    assert rows.mismatch(recorded("mine.py", temperature=9, dataset="mine"), *own) == ""
    assert rows.mismatch(recorded("mine.py", epochs=6), *own) == "epochs 6, not 5"
