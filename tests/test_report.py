"""Reports: one page that needs nothing else, figures that say what the DNA says."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lwdna
from lwdna.cost import Cost
from lwdna.findings import LayerCost
from lwdna.reporting.dependencies import dependencies_in
from lwdna.reporting.figures import FIGURES, by_block
from lwdna.reporting.style import inline_svg, shortened
from lwdna.tables import html_table
from tests.documents import run_page
from tests.report_pages import HOSTILE, Net, Page, X, read
from tests.toy_detector import batch, detector, step

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return lwdna.shrink(Net(), 0.7, criterion="magnitude", example_inputs=X, progress=False)


@pytest.fixture(scope="module")
def dna(net: Any) -> lwdna.Dna:
    return net.meta["lwdna"]


# --- the page ---


def test_the_page_is_whole_and_has_every_name_escaped(net: Any, tmp_path: Path) -> None:
    path = lwdna.report(net, tmp_path / "r.html", groups="*")
    page, dna = read(path), net.meta["lwdna"]
    said = set(page.text)
    for group in dna.groups:
        assert group.name in said
    assert any(HOSTILE in group.name for group in dna.groups)
    for layer in dna.findings.layers:
        assert layer.path in said
    for reasons in dna.findings.frozen.values():
        assert all(reason in said for reason, _ in reasons)
    for cost in (dna.before, dna.after):
        assert {f"{cost.macs:,}", f"{cost.params:,}"} <= said
    assert page.tags.count("svg") == len(FIGURES) + len(dna.groups)
    assert path.stat().st_size < 40_000 * page.tags.count("svg")


def test_the_same_network_gives_the_same_page(net: Any, tmp_path: Path) -> None:
    pages = [lwdna.report(net, tmp_path / f"{k}.html", groups="stem") for k in range(2)]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_dna_alone_gives_all_but_dependency_graphs(dna: lwdna.Dna, tmp_path: Path) -> None:
    again = lwdna.Dna.from_json(dna.to_json())
    page = read(lwdna.report(again, tmp_path / "r.html"))
    assert page.tags.count("svg") == len(FIGURES)
    with pytest.raises(ValueError, match="pass the network"):
        lwdna.report(again, tmp_path / "none.html", groups="stem")
    assert not (tmp_path / "none.html").exists()


def test_without_findings_the_page_says_what_is_missing(dna: lwdna.Dna, tmp_path: Path) -> None:
    page = read(lwdna.report(replace(dna, findings=None), tmp_path / "r.html"))
    assert page.tags.count("svg") == 1
    assert sum("has no findings" in text for text in page.text) == 2
    with pytest.raises(ValueError, match="'costs': This DNA has no findings"):
        replace(dna, findings=None).plot("costs")


def test_figures_go_to_files_on_request(dna: lwdna.Dna, tmp_path: Path) -> None:
    lwdna.report(dna, tmp_path / "r.html", images="svg")
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["r.html", "r_costs.svg", "r_saliency.svg", "r_widths.svg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "r50"}, r"ends in \.html"),
        ({"path": "nowhere/r.html"}, "there is no folder 'nowhere'"),
        ({"groups": "layer9.*"}, "'layer9.*' matches no channel group"),
        ({"images": "jpeg"}, "images='jpeg': one of 'png', 'svg'"),
        ({"subject": nn.Linear(2, 2)}, "this Linear has no DNA"),
    ],
)
def test_wrong_arguments_are_refused(net: Any, arguments: Any, message: str) -> None:
    given = {"subject": net, "path": "r.html", **arguments}
    with pytest.raises(ValueError, match=message):
        lwdna.report(given.pop("subject"), given.pop("path"), **given)
    assert not Path("r.html").exists()


def test_a_report_of_nothing_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="a report of a str"):
        lwdna.report("r50", "r.html")  # type: ignore[arg-type]


def test_without_matplotlib_the_remedy_is_named(
    dna: lwdna.Dna, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"need matplotlib: pip install 'lwdna\[report\]'"):
        dna.plot()


# --- the figures ---


def heights(axes: Any) -> list[float]:
    return [patch.get_height() for patch in axes.patches if hasattr(patch, "get_height")]


def test_the_bars_are_the_widths(dna: lwdna.Dna) -> None:
    absolute, relative = dna.plot("widths").axes
    groups = [group for group in dna.groups if group.prunable]
    assert heights(absolute) == [group.width for group in groups]
    assert heights(relative) == pytest.approx([g.width / g.baseline for g in groups])
    (before,) = [p for p in absolute.patches if not hasattr(p, "get_height")]
    assert list(before.get_data().values) == [group.baseline for group in groups]


def test_layers_and_blocks_add_up_to_the_costs(dna: lwdna.Dna) -> None:
    assert dna.findings is not None
    for most in (1, 3, 100):
        blocks = by_block(dna.findings.layers, most)
        for when, cost in enumerate((dna.before, dna.after)):
            assert sum(block.macs[when] for block in blocks) == cost.macs
            assert sum(block.params[when] for block in blocks) == cost.params


def test_a_block_that_has_most_is_opened() -> None:
    tail = [LayerCost(f"tail.{k}.conv", (1, 1), (1, 1)) for k in range(10)]
    body = [LayerCost(f"body.features.{k}.conv", (9, 8), (9, 8)) for k in range(5)]
    opened = [block.path for block in by_block([*body, *tail], 6)]
    assert opened == [*(f"body.features.{k}" for k in range(5)), "tail"]
    assert [block.path for block in by_block([*body, *tail], 5)] == ["body.features", "tail"]
    assert by_block([]) == []


def test_the_bars_are_the_costs(dna: lwdna.Dna) -> None:
    assert dna.findings is not None
    blocks = by_block(dna.findings.layers)
    units = {"MACs, k": 1000, "params, k": 1000}
    for axes, metric in zip(dna.plot("costs").axes, ("macs", "params"), strict=True):
        drawn = [patch.get_width() * units[axes.get_xlabel()] for patch in axes.patches]
        both = [getattr(block, metric)[when] for when in (0, 1) for block in blocks]
        assert drawn == pytest.approx(both)
        assert sum(drawn) == pytest.approx(dna.before[metric] + dna.after[metric])


def test_a_layer_costs_what_it_computes(net: Any, dna: lwdna.Dna) -> None:
    """Against the definition: 9 multiplications per pixel, input and output of a convolution."""
    assert dna.findings is not None
    layers = {layer.path: layer for layer in dna.findings.layers}
    for when, network in enumerate((Net(), net)):
        for path in ("stem", "back", "fc", f"body.{HOSTILE}"):
            module = network.get_submodule(path)
            pixels = 1 if path == "fc" else 12 * 12
            assert layers[path].macs[when] == module.weight.numel() * pixels
            assert layers[path].params[when] == sum(p.numel() for p in module.parameters())


def test_the_histogram_and_the_quantiles_are_those_of_the_channels(dna: lwdna.Dna) -> None:
    found = dna.findings
    assert found is not None and found.histogram is not None
    changing = [group for group in dna.groups if group.prunable]
    assert sum(found.histogram.kept) == sum(group.width for group in changing)
    total = sum(found.histogram.kept) + sum(found.histogram.removed)
    assert total == sum(group.widened for group in changing)
    assert list(found.saliency) == [group.name for group in changing]
    assert found.histogram.least == pytest.approx(min(q[0] for q in found.saliency.values()), 1e-3)
    assert found.histogram.most == pytest.approx(max(q[-1] for q in found.saliency.values()), 1e-3)
    assert found.threshold is not None
    above = np.array(found.histogram.edges[:-1]) > found.threshold
    assert not np.array(found.histogram.removed)[above].any()  # one threshold for all
    over_all, by_group = dna.plot("saliency").axes
    stacked, kept = (patch.get_data().values for patch in over_all.patches)
    assert list(kept) == list(found.histogram.kept)
    assert list(stacked - kept) == list(found.histogram.removed)
    medians = by_group.lines[0].get_ydata()
    assert list(medians) == [q[2] for q in found.saliency.values()]


def test_many_long_names_do_not_lose_their_numbers() -> None:
    names = [f"features.stages.3.blocks.{k}.attention.projection.conv" for k in range(30)]
    assert len({shortened(name) for name in names}) == 30
    assert max(map(len, map(shortened, [*names, "x" * 500]))) <= 36
    assert shortened("layer1.0.conv1") == "layer1.0.conv1" and shortened("") == ""


def test_line_breaks_in_names_are_replaced() -> None:
    assert shortened("a\nb\x00") == "a\ufffdb\ufffd"
    assert "<p>a\ufffdb</p>" in html_table(("x",), [], "a\nb")


def test_mathematics_in_names_is_text(dna: lwdna.Dna) -> None:
    assert dna.plot().axes[1].get_xticklabels()[1].get_text() == shortened(f"body.{HOSTILE}")
    svg = inline_svg(dna.plot(), "w", "widths")
    assert "$x$" in svg and "<script" not in svg


# --- dependency graphs ---


def test_a_dependency_graph_names_what_ties_its_group(net: Any, tmp_path: Path) -> None:
    page = read(lwdna.report(net, tmp_path / "r.html", groups=["stem"]))
    said = set(page.text)
    assert {"stem", "bn", "back", f"body.{HOSTILE}", "fc"} <= said
    assert {"convolution", "add"} <= said


class Grouped(nn.Module):
    """Eight groups of 16 channels: what ``"auto"`` prunes within groups, until fewer are left."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 128, 1), nn.Conv2d(128, 10, 1)
        self.grouped = nn.Conv2d(128, 128, 3, padding=1, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.grouped(self.before(x)).relu()).mean((2, 3))


def test_groups_that_the_inputs_do_not_give_are_refused(net: Any, dna: lwdna.Dna) -> None:
    stem = next(group for group in dna.groups if group.name == "stem")
    fewer = replace(stem, width=stem.width - 1, kept=stem.kept[1:])
    groups = tuple(fewer if group is stem else group for group in dna.groups)
    other = replace(dna, groups=groups, findings=None)
    with pytest.raises(ValueError, match=rf"no group 'stem' of {fewer.width} channels: pass exam"):
        dependencies_in(net, other, "stem", None)


def test_a_network_in_half_precision_has_dependency_graphs(net: Any, dna: lwdna.Dna) -> None:
    half = copy.deepcopy(net).half()
    assert dependencies_in(half, dna, "*", None) == dependencies_in(net, dna, "*", None)


def test_choices_are_made_again_as_they_were() -> None:
    torch.manual_seed(0)
    net = lwdna.shrink(
        Grouped(), 0.2, criterion="random", widen=1.0, example_inputs=X, progress=False
    )
    dna = net.meta["lwdna"]
    widths = {group.name: group.width for group in dna.groups if group.prunable}
    assert min(widths.values()) < 8  # "auto" would now take the groups, of which there are more
    found = dependencies_in(net, dna, list(widths), None)
    assert {d.group: d.width for d in found} == widths


def test_a_network_captured_in_parts_has_a_report(tmp_path: Path) -> None:
    data = batch()
    net = lwdna.shrink(detector(), 0.8, data=[data], step_fn=step, widen=1.0, progress=False)
    dna = net.meta["lwdna"]
    page = read(lwdna.report(net, tmp_path / "r.html", groups="stem.0", example_inputs=data))
    assert page.tags.count("svg") == len(FIGURES) + 1
    lwdna.report(net, tmp_path / "noise.html", groups="stem.0")  # the DNA's inputs, made again
    assert (tmp_path / "noise.html").read_bytes() == (tmp_path / "r.html").read_bytes()
    assert sum(layer.macs[1] for layer in dna.findings.layers) == dna.after.macs
    assert "head.tower.0" in {layer.path for layer in dna.findings.layers}


# --- notebooks ---


def test_objects_show_themselves_in_notebooks(net: Any, dna: lwdna.Dna) -> None:
    graph = lwdna.analyse(net, X)
    other = replace(dna, seed=1, groups=(), findings=None)
    checked = lwdna.Verification({"identity": "<b>equal</b>"})
    shown = [dna, graph, lwdna.explain(net, X), lwdna.diff(dna, other), checked]
    for value in shown:
        page = Page(value._repr_html_())  # type: ignore[attr-defined]
        assert "table" in page.tags and not {"script", "b"} & set(page.tags)
    for value in shown[:4]:
        said = Page(value._repr_html_()).text  # type: ignore[attr-defined]
        assert any(HOSTILE in text for text in said)


def test_a_long_table_is_cut_and_says_so() -> None:
    page = Page(html_table(("a", "b"), [(f"row {k}", k) for k in range(200)], "A <line>."))
    assert page.tags.count("tr") == 61
    said = set(map(str.strip, page.text))
    assert {"A <line>.", "The first 60 of 200 rows:", "row 59"} <= said
    assert "row 60" not in said
    assert Page(html_table(("a",), [])).tags.count("tr") == 1


# --- the documentation ---


def test_the_code_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run_page("docs/reports.md")
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html",
        "report_costs.png",
        "report_group0.png",
        "report_saliency.png",
        "report_widths.png",
        "widths.svg",
    }


def test_a_cost_without_macs_has_no_ratio(dna: lwdna.Dna) -> None:
    bare = replace(dna, before=Cost(0, 0, 1, 0), after=Cost(0, 0, 1, 0), findings=None)
    assert "-" in map(str.strip, Page(bare._repr_html_()).text)
