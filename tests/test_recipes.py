"""Recipes: published figures, networks and budgets, against a counter of their own."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from copy import deepcopy
from dataclasses import FrozenInstanceError, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lwdna
from benchmarks import recipe_costs
from lwdna import recipes
from lwdna.fx_passes.widen import widen_copies
from lwdna.graph import ChannelGraph
from lwdna.recipes import Complexity, Recipe
from lwdna.scoring import ScoringContext
from lwdna.width_rules import resolve
from tests.documents import run_page

NAMES = recipes.names()
#: The activations that are counted.
COUNTED = (nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6)
#: The recipe whose published FLOPs need the authors' counter: it has transposed convolutions.
OTHERWISE_COUNTED = "unet-denoising"
PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"


@cache
def model_of(name: str) -> nn.Module:
    return recipes.get(name).build()


@cache
def graph_of(name: str) -> ChannelGraph:
    x = recipes.get(name).example_inputs()
    return lwdna.analyse(lwdna.capture(model_of(name), x), x)


@cache
def widened(name: str) -> ChannelGraph:
    graph = graph_of(name)
    return graph.restrict(widen_copies(graph, recipes.get(name).widen))


@cache
def count(name: str, *, transposed_at: str) -> Counter[str]:
    """FLOPs by kind of module, from forward hooks: no part of lwdna is involved.

    The authors count a transposed convolution's kernel once per *output* position, stride² times
    what it computes; one activation object counts once, at its last call.
    """
    model = deepcopy(model_of(name)).to("meta").eval()
    flops: Counter[str] = Counter()
    last: dict[int, int] = {}

    def hook(m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(m, nn.ConvTranspose2d):
            at = out if transposed_at == "output" else args[0]
            flops["transposed"] += m.weight.numel() * at.shape[2:].numel()
        elif isinstance(m, nn.Conv2d):
            flops["conv"] += m.weight.numel() * out.shape[2:].numel()
        elif isinstance(m, nn.Linear):
            flops["linear"] += m.weight.numel()
        elif isinstance(m, nn.BatchNorm2d):
            flops["norm"] += 2 * out.numel()
        elif isinstance(m, COUNTED):
            last[id(m)] = out.numel()

    for module in model.modules():  # timm's batch norms have their ReLU inside
        module.register_forward_hook(hook)
    model(torch.empty(1, *recipes.get(name).input_shape, device="meta"))
    flops["activation"] = sum(last.values())
    return flops


def printed(figure: float, like: float) -> str:
    """``figure`` with the decimals that the published one has at least (2)."""
    decimals = max(len(str(like).partition(".")[2]), 2)
    return f"{figure:.{decimals}f}"


# --- the data -----------------------------------------------------------------------------------


def test_every_row_of_the_paper_is_there() -> None:
    assert NAMES == (
        "resnet50-imagenet",
        "regnetx-4gf-imagenet",
        "mobilenetv3-small-imagenet",
        "mobilenetv1-tinyimagenet",
        "mobilenetv2-tinyimagenet",
        "srresnet-x4",
        "edsr-x4",
        "dimp-resnet50",
        "dncnn-denoising",
        "unet-denoising",
    )
    assert [recipes.get(name).name for name in NAMES] == list(NAMES)
    with pytest.raises(ValueError, match=r"recipe 'resnet18': one of resnet50-imagenet, .*unet-d"):
        recipes.get("resnet18")


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_data(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe == recipes.get(name)
    with pytest.raises(FrozenInstanceError):
        recipe.widen = 1.0  # type: ignore[misc]
    assert recipe.criterion in lwdna.criteria()
    assert recipe.counter in {field.name for field in fields(lwdna.Budget)}
    assert recipe.budget.limits(graph_of(name).cost()).keys() == {recipe.counter}
    assert recipe.example_inputs().shape[1:] == recipe.input_shape


@pytest.mark.parametrize("name", NAMES)
def test_published_ratios_are_those_of_the_published_figures(name: str) -> None:
    published = recipes.get(name).published
    pairs = []
    if published.baseline and published.lwdna:
        baseline, lwdna_ = published.baseline, published.lwdna
        pairs.append((baseline.flops, lwdna_.flops, published.flops_ratio))
        if baseline.params and lwdna_.params:
            pairs.append((baseline.params, lwdna_.params, published.params_ratio))
    else:
        assert published.lwdna is published.flops_ratio is published.params_ratio is None
    for before, after, ratio in pairs:
        assert ratio is not None
        half = 0.5 * 10.0 ** -max(len(str(before).partition(".")[2]), 2)  # of the last digit
        least, most = (after - half) / (before + half), (after + half) / (before - half)
        assert least - 5e-5 <= ratio <= most + 5e-5


def test_the_networks_need_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.restoration", None)
    with pytest.raises(ModuleNotFoundError, match=r"'edsr-x4' builds .*root of a checkout"):
        recipes.get("edsr-x4").build()
    recipes.get("mobilenetv1-tinyimagenet").build()


def test_a_module_that_benchmarks_lack_is_named_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.restoration", raising=False)
    monkeypatch.setitem(sys.modules, "itertools", None)
    with pytest.raises(ModuleNotFoundError, match="itertools"):
        recipes.get("edsr-x4").build()


# --- the networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_fixes_the_weights_and_nothing_else(name: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (recipes.get(name).build(seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = [*zip(first.parameters(), again.parameters(), strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(
        torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )
    assert first.training and all(p.device.type == "cpu" for p in first.parameters())


@pytest.mark.parametrize(
    ("name", "size", "outputs"),
    [
        ("resnet50-imagenet", (3, 32, 32), [(1000,)]),
        ("regnetx-4gf-imagenet", (3, 32, 32), [(1000,)]),
        ("mobilenetv3-small-imagenet", (3, 32, 32), [(1000,)]),
        ("mobilenetv1-tinyimagenet", (3, 64, 64), [(200,)]),
        ("mobilenetv2-tinyimagenet", (3, 64, 64), [(200,)]),
        ("srresnet-x4", (3, 6, 5), [(3, 24, 20)]),
        ("edsr-x4", (3, 6, 5), [(3, 24, 20)]),
        ("dimp-resnet50", (3, 64, 64), [(512, 8, 8), (1024, 4, 4)]),
        ("dncnn-denoising", (1, 7, 9), [(1, 7, 9)]),
        ("unet-denoising", (1, 32, 16), [(1, 32, 16)]),
    ],
)
def test_the_networks_train(name: str, size: tuple[int, ...], outputs: list[object]) -> None:
    recipe = recipes.get(name)
    model = recipe.build()
    out = model(torch.randn(2, *size, generator=torch.Generator().manual_seed(0)))
    leaves = tree_leaves(out)
    assert [tuple(leaf.shape[1:]) for leaf in leaves] == outputs
    sum(leaf.square().mean() for leaf in leaves).backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), parameter
        if not recipe.source.startswith("timm"):  # whose residual branches start at 0
            assert p.grad.any(), parameter


def test_restoration_networks_start_from_their_input() -> None:
    x = torch.rand(1, 3, 4, 4) * 255
    model = recipes.get("edsr-x4").build()
    nn.init.zeros_(model.tail.weight)
    nn.init.zeros_(model.tail.bias)
    torch.testing.assert_close(model(x), model.mean.expand(1, 3, 16, 16))
    grey = torch.rand(1, 1, 8, 8)
    model = recipes.get("dncnn-denoising").build()
    nn.init.zeros_(model.layers[-1].weight)
    nn.init.zeros_(model.layers[-1].bias)
    assert torch.equal(model(grey), grey)


# --- the published costs ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in NAMES if recipes.get(n).published.baseline])
def test_the_authors_rules_give_what_is_published(name: str) -> None:
    baseline = recipes.get(name).published.baseline
    assert baseline is not None
    flops = count(name, transposed_at="output").total() / 1e9
    assert printed(flops, baseline.flops) == printed(baseline.flops, baseline.flops)
    params = sum(p.numel() for p in model_of(name).parameters())
    if baseline.params is not None:
        assert printed(params / 1e6, baseline.params) == printed(baseline.params, baseline.params)


@pytest.mark.parametrize(
    ("name", "giga", "mega"),
    [
        ("resnet50-imagenet", "4.1177", "25.557"),
        ("regnetx-4gf-imagenet", "4.0005", "22.118"),
        ("mobilenetv3-small-imagenet", "0.0612", None),
        ("mobilenetv1-tinyimagenet", "0.0478", None),
        ("mobilenetv2-tinyimagenet", "0.0930", None),
        ("srresnet-x4", "32.81", "1.53"),
        ("edsr-x4", "90.37", "3.70"),
    ],
)
def test_lwdna_counts_what_the_paper_prints(name: str, giga: str, mega: str | None) -> None:
    cost = graph_of(name).cost()
    for figure, text in ((cost.flops_paper / 1e9, giga), (cost.params / 1e6, mega)):
        if text is not None:
            assert f"{figure:.{len(text.partition('.')[2])}f}" == text


@pytest.mark.parametrize("name", NAMES)
def test_lwdna_counts_what_hooks_count(name: str) -> None:
    reference = count(name, transposed_at="input")
    cost = graph_of(name).cost()
    assert cost.flops_paper == reference.total()
    assert cost.macs == reference["conv"] + reference["linear"] + reference["transposed"]
    assert cost.params == sum(p.numel() for p in model_of(name).parameters())
    alike = reference == count(name, transposed_at="output")
    assert alike == (name != OTHERWISE_COUNTED)


def test_the_table_of_baselines_says_what_is_counted() -> None:
    rows = re.findall(r"^\| (\S+) \| \d×\d+×\d+ \|(.*)\|$", PAGE.read_text(), flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(NAMES)
    for name, cells in rows:
        published, authors, ours, published_params, params = map(str.strip, cells.split("|"))
        cost = graph_of(name).cost()
        for text, figure in (
            (authors, count(name, transposed_at="output").total() / 1e9),
            (ours, cost.flops_paper / 1e9),
            (params, cost.params / 1e6),
        ):
            assert text == f"{figure:.{len(text.partition('.')[2])}f}", name
        baseline = recipes.get(name).published.baseline or Complexity(0.0)
        for text, like in ((published, baseline.flops), (published_params, baseline.params)):
            assert (float(text) == like) if like else (text == "–"), name


def test_edsr_by_hand() -> None:
    position = 128 * 128
    body = 17 * 128 * 128 * 9 * position
    upsampling = 128 * 512 * 9 * (1 + 4) * position
    ends = 3 * 128 * 9 * (1 + 16) * position
    cost = graph_of("edsr-x4").cost()
    assert cost.macs == body + upsampling + ends
    assert cost.flops_paper == cost.macs + 8 * 128 * position  # one ReLU a block


# --- the budgets --------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["random", "uniform"])
@pytest.mark.parametrize("name", NAMES)
def test_every_budget_can_be_met(name: str, criterion: str) -> None:
    recipe, graph, wide = recipes.get(name), graph_of(name), widened(name)
    saliency = lwdna.score(ScoringContext(model_of(name), wide), criterion)
    before = graph.cost()
    limits = recipe.budget.limits(before)
    selection = lwdna.select(wide, saliency, limits, constraints=lwdna.Constraints(recipe.floors))
    assert 0.995 <= selection.used[recipe.counter] <= 1, selection.note
    published = recipe.published
    ratio = selection.cost[recipe.counter] / before[recipe.counter]
    assert ratio <= (published.flops_ratio or 0.9)
    if published.lwdna and name != OTHERWISE_COUNTED:
        assert selection.cost.flops_paper <= published.lwdna.flops * 1e9
    floors = resolve(wide, lwdna.Constraints(recipe.floors)).least
    assert (wide.widths_of(selection.copies) >= floors).all()
    recorded = recorded_costs()["results"][name]["selections"]["threshold"][criterion]
    assert recorded["params_m"][0] == round(selection.cost.params / 1e6, 4)  # of seed 0


@cache
def recorded_costs() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(recipe_costs.OUTPUT.read_text())
    return record


def test_the_recorded_costs_are_within_the_budgets() -> None:
    assert list(recorded_costs()["results"]) == list(NAMES)
    for name, result in recorded_costs()["results"].items():
        recipe, cost = recipes.get(name), graph_of(name).cost()
        assert result["published_params_ratio"] == recipe.published.params_ratio
        assert result["budget"] == round(
            recipe.budget.limits(cost)["flops_paper"] / cost.flops_paper, 5
        )
        for by_criterion in result["selections"].values():
            assert list(by_criterion) == list(recipe_costs.CRITERIA)
            for figures in by_criterion.values():
                rows = zip(*figures.values(), strict=True)
                assert len(figures["used"]) == recorded_costs()["setting"]["seeds"]
                for flops_ratio, params_m, params_ratio, used in rows:
                    assert flops_ratio == pytest.approx(used * result["budget"], abs=2e-5)
                    assert params_m == pytest.approx(params_ratio * cost.params / 1e6, rel=1e-4)
                    assert 0.99 <= used <= 1


@pytest.mark.parametrize("allocation", recipe_costs.ALLOCATIONS)
def test_the_page_quotes_the_recorded_costs(allocation: lwdna.selection.Allocation) -> None:
    assert recipe_costs.table(recorded_costs(), allocation) in PAGE.read_text()


def test_the_table_of_costs_by_hand() -> None:
    figures = {"used": [0.999, 0.9975], "params_ratio": [0.8, 0.82]}
    constant = {"used": [1.0, 1.0], "params_ratio": [1.25, 1.25]}
    chosen = dict.fromkeys(recipe_costs.CRITERIA, constant) | {"random": figures}
    result = {"budget": 0.906, "published_params_ratio": None, "selections": {"threshold": chosen}}
    header, _, row = recipe_costs.table({"results": {"net": result}}, "threshold").splitlines()
    assert header.split("|")[1].strip() == "recipe"
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["net", "90.60", "99.75", "–", "125.0", "81.0 ± 1.4", "125.0", "125.0", "125.0"]


def test_resnet_floors_are_those_of_the_published_command() -> None:
    graph, wide = graph_of("resnet50-imagenet"), widened("resnet50-imagenet")
    floors = recipes.get("resnet50-imagenet").floors
    least = resolve(wide, lwdna.Constraints(floors)).least
    for group in graph.groups:
        if group.prunable:
            part = 0.9 if group.feeds_classifier else 0.8  # of the baseline, at twice its width
            assert least[group.index] == int(round(part * group.width * 100) / 100)


def test_the_tracker_keeps_the_widths_it_reads() -> None:
    frozen = {g.name: g.width for g in graph_of("dimp-resnet50").groups if not g.prunable}
    assert {512, 1024} <= set(frozen.values())


def shrunk(recipe: Recipe, size: tuple[int, ...], **changes: object) -> torch.fx.GraphModule:
    """The recipe's network in its LW-DNA form, scored on noise of the given size."""
    model = recipe.build()
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(2, dtype=torch.long)
    if recipe.loss == "l1":
        with torch.no_grad():
            targets = torch.zeros_like(model_of(recipe.name).eval()(x))
    settings = {**recipe.settings(), **changes}
    return lwdna.shrink(model, data=(x, targets), progress=False, **settings)


def check_shrunk(recipe: Recipe, net: torch.fx.GraphModule, size: tuple[int, ...]) -> None:
    dna = net.meta["lwdna"]
    assert 0.995 <= dna.used[recipe.counter] <= 1, dna.note
    assert dna.after.params == sum(p.numel() for p in net.parameters())
    assert dna.before == graph_of(recipe.name).cost()
    sum(leaf.square().mean() for leaf in tree_leaves(net(torch.randn(2, *size)))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_recipe_shrinks_its_network() -> None:
    recipe = recipes.get("dncnn-denoising")
    net = shrunk(recipe, (1, 16, 16))
    assert net.meta["lwdna"].criterion == "latent-grad"
    check_shrunk(recipe, net, (1, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["magnitude", "latent-grad"])
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_shrinks_its_network(name: str, criterion: str) -> None:
    recipe = recipes.get(name)
    size = (recipe.input_shape[0], 64, 64)
    changes: dict[str, object] = {"criterion": criterion}
    if recipe.loss is None:  # the tracker's own loss: any scalar of both outputs will do
        changes["loss_fn"] = lambda outputs, _targets: sum(out.square().mean() for out in outputs)
    check_shrunk(recipe, shrunk(recipe, size, **changes), size)


def test_the_code_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_page("docs/recipes.md", {"recipes.names()": "recipes.names()[-2:]"})
    assert "{'flops_paper': 0.8999, 'params': 0.9028}" in capsys.readouterr().out
