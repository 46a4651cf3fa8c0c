"""Tables: what they say is checked, and those that are committed can be run."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lwdna
from benchmarks.compare import networks
from benchmarks.compare.plan import plan
from benchmarks.compare.report import TABLES
from benchmarks.compare.run import Run
from benchmarks.compare.table import Method, read_table
from benchmarks.restoration import edsr
from tests.compare.made_up import TABLE, table

FILES = sorted(path for path in TABLES.glob("*.toml") if path.stem != "methods")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_committed_table_has_all_methods(path: Path) -> None:
    found = read_table(path)
    assert found.name == path.stem
    settings = {m.name: m.settings for m in found.methods}
    assert {s["kind"] for s in settings.values()} == {"baseline", "shrink", "torch-pruning"}
    for criterion in ("latent-grad", "latent-magnitude", "taylor", "snip", "synflow", "magnitude"):
        for widen, name in ((1.0, criterion), (2.0, f"{criterion}, widened")):
            assert settings[name]["criterion"] == criterion and settings[name]["widen"] == widen
            assert settings[name]["weights"] == "fresh"
    control = "uniform, generated weights"
    assert found.references == ("baseline", "uniform", "random", control)
    seeds = [run.seed for run in plan([found], "validation")]
    assert seeds == sorted(seeds) and len(set(seeds)) >= 3


def test_the_default_is_what_shrink_does_by_itself() -> None:
    arguments = Method("default", shrink={"weights": "default"}).arguments
    for name, parameter in inspect.signature(lwdna.shrink).parameters.items():
        if name in arguments and name not in ("scoring", "constraints", "criterion"):
            assert arguments[name] == parameter.default
    assert (
        str(arguments["criterion"])
        == inspect.signature(lwdna.shrink).parameters["criterion"].default
    )
    assert arguments["scoring"] == lwdna.Scoring()
    assert arguments["constraints"] == lwdna.Constraints()


def test_a_method_is_what_it_does_and_not_its_name(tmp_path: Path) -> None:
    plain = Method("a", shrink={"criterion": "taylor", "widen": 2})
    assert replace(plain, name="b", shrink={"criterion": "taylor"}).settings == plain.settings
    others: list[dict[str, Any]] = [
        {"shrink": {"criterion": "taylor", "widen": 1}},
        {"shrink": {"criterion": "taylor", "weights": "default"}},
        {"shrink": {"criterion": "taylor", "allocation": "saliency-per-cost"}},
        {"shrink": {"criterion": "taylor", "scoring": {"batches": 4, "sgd": {"lr": 0.01}}}},
        {"shrink": {"criterion": "taylor", "constraints": {"floors": {"fraction": 0.5}}}},
        {"shrink": {"criterion": "latent-grad"}},
        {"shrink": {"criterion": "latent-grad"}, "options": {"normalize": False}},
        {"batch": 128, "shrink": {"criterion": "taylor"}},
    ]
    settings = [plain.settings, *(replace(plain, **other).settings for other in others)]
    assert all(a != b for k, a in enumerate(settings) for b in settings[:k])


def test_a_changed_setting_is_another_run(tmp_path: Path) -> None:
    pair, method = table(tmp_path).pairs[0], table(tmp_path).methods[1]
    run = Run(pair, method, 0.8, 0, 0, "validation")
    others = [
        Run(pair, method, 0.7, 0, 0, "validation"),
        Run(pair, method, 0.8, 1, 0, "validation"),
        Run(pair, method, 0.8, 0, 1, "validation"),
        Run(pair, method, 0.8, 0, 0, "test"),
        Run(replace(pair, arguments={"width": 9}), method, 0.8, 0, 0, "validation"),
        Run(replace(pair, changes=(*pair.changes, "lr=0.2")), method, 0.8, 0, 0, "validation"),
        Run(replace(pair, data=replace(pair.data, seed=1)), method, 0.8, 0, 0, "validation"),
        Run(replace(pair, test_every=2), method, 0.8, 0, 0, "validation"),
    ]
    assert len({run.hash, *(other.hash for other in others)}) == 1 + len(others)
    renamed = Run(replace(pair, name="x"), replace(method, name="y"), 0.8, 0, 0, "validation")
    assert renamed.hash == run.hash and renamed.name != run.name
    test = Run(pair, method, 0.8, 0, 0, "test")
    assert test.test_every == pair.protocol.epochs  # once, at the end


def test_the_first_seed_is_done_before_the_second_and_a_baseline_once(tmp_path: Path) -> None:
    found = table(tmp_path, TABLE.replace("budgets = [0.8]", "budgets = [0.8, 0.6]"))
    runs = plan([found], "validation")
    assert [run.seed for run in runs] == [seed for seed in (0, 1, 2) for _ in range(9)]
    told = [(run.method.name, run.budget, run.draw) for run in runs[:9]]
    assert told[0] == ("baseline", None, 0)
    assert told[2:4] == [("random", 0.8, 0), ("random", 0.8, 1)]
    assert told[5] == ("uniform", 0.6, 0)
    assert [r.method.name for r in plan([found], "validation", ["uniform"])] == ["uniform"] * 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [0, 1, 2]", "seeds = [0, 1]", "three at least"),
        ("seeds = [0, 1, 2]", "seeds = [0, 1, 1000]", "from 0 to 999"),
        ("seeds = [0, 1, 2]", "", "lacks field 'seeds'"),
        ("preset = ", "colour = 1\npreset = ", r"pairs\[0\] has an unknown field 'colour'"),
        ("cifar-resnet56", "cifar", "preset 'cifar': one of imagenet-resnet50"),
        ('"epochs=2"', '"epoch=2"', "'epoch=2' changes no setting"),
        ('criterion = "uniform"', 'criterion = "unform"', "method 'uniform': criterion 'unform'"),
        ("draws = 2", "drawn = 2", "method 'random': 'drawn' is no setting of a 'shrink'"),
        ('kind = "baseline"', 'kind = "baseline"\nwiden = 2', "'widen' is no setting"),
        ('name = "random"', 'name = "uniform"', "'uniform' stands twice"),
        ('name = "random"', 'name = "chance"', "references: there is no method 'random'"),
        ("weights =", "scoring = {batch = 2}\nweights =", "method 'default': .*'batch'"),
        ("draws = 2", "draws = 0", "draws=0"),
        ("[[pairs]]", "[[pairs]", "table.toml"),
    ],
)  # fmt: skip
def test_a_table_that_makes_no_sense_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in TABLE
    with pytest.raises(ValueError, match=message):
        table(tmp_path, TABLE.replace(old, new, 1))


# --- networks ---


@pytest.mark.parametrize(
    ("depth", "params"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_cifar_resnets_have_the_published_size(depth: int, params: float) -> None:
    """Table 6 of the paper, in millions; the projections are the 2,752 that come on top."""
    own = sum(p.numel() for p in networks.resnet(depth).parameters()) - 2752
    assert own / 1e6 == pytest.approx(params, abs=0.05 if depth == 110 else 0.006)


def test_networks_for_small_images_keep_positions() -> None:
    features = {
        stride: networks.mobilenetv2(stride=stride)
        .eval()
        .forward_features(torch.zeros(1, 3, 32, 32))
        for stride in (8, 16, 32)
    }
    assert {stride: tuple(f.shape[2:]) for stride, f in features.items()} == {
        8: (4, 4), 16: (2, 2), 32: (1, 1)
    }  # fmt: skip
    assert networks.small_cnn()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert edsr(1, 8, scale=2)(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 10, 14)
    with pytest.raises(ValueError, match="6n"):
        networks.resnet(18)
    with pytest.raises(ValueError, match="stride=4"):
        networks.mobilenetv2(stride=4)
    with pytest.raises(ValueError, match="scale=3"):
        edsr(scale=3)
