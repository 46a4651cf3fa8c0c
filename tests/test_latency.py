"""Latency as a budget: the fit, the prediction at any widths, and the selection by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import lwdna
from lwdna.budget import cost_range
from lwdna.fx_passes.timing import time_network, time_nodes
from lwdna.fx_passes.verify import random_copies
from lwdna.fx_passes.widen import widen_copies
from lwdna.graph import Copies
from lwdna.latency.fit import fit_operator, predicted_seconds, without_overhead
from lwdna.latency.sizes import amounts, operator_sizes
from lwdna.latency.table import Given, OperatorLatency, Setting
from tests.documents import run_page

LATENCY = OperatorLatency(fixed=2e-8, per_written=3e-10, per_read=1e-10, per_mac=5e-12)
SETTING = Setting("cpu", 1, "float32", ((2, 3, 32, 32),), False, 1, 16, 5, 0, {"torch": "2"})


Measured = tuple[nn.Module, nn.Module, lwdna.ChannelGraph, lwdna.LatencyTable]


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> Measured:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    gm = lwdna.capture(model, images())
    graph = lwdna.analyse(gm, images())
    operators = dict.fromkeys(operator_sizes(gm, graph), LATENCY)
    return model, gm, graph, lwdna.LatencyTable(operators, 1.5, Given(0.5, 0), 0.05, SETTING)


def test_the_fit_finds_the_law_behind_the_seconds() -> None:
    random = np.random.default_rng(0)
    found = [tuple(float(v) for v in row) for row in random.integers(10**3, 10**7, (12, 3))]
    fitted = fit_operator(found, [LATENCY.seconds(*amounts) for amounts in found])
    for name, value in vars(LATENCY).items():
        assert getattr(fitted, name) == pytest.approx(value, rel=1e-6), name


def test_no_part_of_a_fit_is_negative() -> None:
    falling = fit_operator([(float(n), 0.0, 0.0) for n in (1, 2, 3, 4)], [4.0, 3.0, 2.0, 1.0])
    assert min(vars(falling).values()) >= 0 and falling.fixed > 0


def test_the_time_that_timing_takes_is_taken_out() -> None:
    operators = dict.fromkeys("ab", LATENCY)
    found = [dict.fromkeys("ab", (n, n, 100 * n)) for n in (1e3, 1e4, 1e5, 1e6)]
    fixed, totals = 2 * LATENCY.fixed, [predicted_seconds(operators, f) for f in found]
    for left, expected in ((0.25, 0.25), (1.0, 1.0), (1.5, 1.0)):
        fitted = without_overhead(operators, found, [t - (1 - left) * fixed for t in totals])
        for operator in fitted.values():
            assert operator.fixed == pytest.approx(expected * LATENCY.fixed, rel=1e-6)
            assert replace(operator, fixed=LATENCY.fixed) == LATENCY


def test_sizes_are_those_of_the_resized_network(network: Measured) -> None:
    _, gm, graph, _ = network
    copies = random_copies(graph, 0.6, np.random.default_rng(3))
    small = lwdna.resize(gm, graph, copies)
    own = operator_sizes(small, lwdna.analyse(small, images()))
    after = {name: amounts(size, copies) for name, size in operator_sizes(gm, graph).items()}
    alone = lwdna.analyse(small, images()).keep_all()
    assert after == {name: amounts(size, alone) for name, size in own.items()}
    width = small.get_parameter("layer1.0.conv1.weight").shape[0]
    assert after["layer1_0_conv1"][0] % width == 0


@pytest.mark.parametrize("widen", [1.0, 2.0])
def test_predicted_latency_is_the_scaled_sum_over_operators(
    network: Measured, widen: float
) -> None:
    _, gm, graph, table = network
    timed = table.timed(gm, graph).restrict(widen_copies(graph, widen))
    copies = random_copies(timed, 0.5, np.random.default_rng(1))
    wide = graph.restrict(widen_copies(graph, widen))
    sizes = operator_sizes(gm, wide)
    seconds = sum(LATENCY.seconds(*amounts(size, copies)) for size in sizes.values())
    assert timed.cost(copies).latency / 1e12 == pytest.approx(1.5 * seconds, rel=1e-3)
    assert replace(timed.cost(copies), latency=0) == wide.cost(copies)


def test_shrink_meets_a_latency_budget(network: Measured) -> None:
    model, _, _, table = network
    budget = lwdna.Budget(latency=0.7, macs="90%")
    net = lwdna.shrink(
        model, budget, latency=table, criterion="random", example_inputs=images(), widen=1.0
    )
    dna = net.meta["lwdna"]
    assert 0.6 * dna.before.latency < dna.after.latency <= 0.7 * dna.before.latency
    small = lwdna.capture(net.eval(), images())
    again = table.timed(small, lwdna.analyse(small, images()))
    assert again.cost().latency == pytest.approx(dna.after.latency, rel=1e-9)


def test_a_budget_is_a_share_of_what_was_measured(network: Measured) -> None:
    model, gm, graph, table = network
    own, predicted = graph.cost().macs, table.timed(gm, graph).cost().latency
    for macs, before in ((own, round(0.9 * predicted)), (own + 1, predicted)):
        given = Given(0.9 * predicted / 1e12, macs)
        net = lwdna.shrink(
            model,
            lwdna.Budget(latency=0.8),
            latency=replace(table, given=given),
            criterion="random",
            example_inputs=images(),
            widen=1.0,
        )
        dna = net.meta["lwdna"]
        assert dna.before.latency == pytest.approx(before, abs=1)
        assert dna.limits["latency"] == pytest.approx(0.8 * before, abs=1)
        assert 0.7 * before < dna.after.latency <= 0.8 * before


def test_latency_limits_are_read_as_times(network: Measured) -> None:
    _, gm, graph, table = network
    before = table.timed(gm, graph).cost()
    for given, expected in (("12ms", 12 * 10**9), ("0.5s", 5 * 10**11), ("350us", 35 * 10**7)):
        assert lwdna.Budget(latency=given).limits(before) == {"latency": expected}
    half = {"latency": before.latency // 2}
    assert lwdna.Budget(latency="50%").limits(before) == half
    assert lwdna.Budget(latency=0.5).limits(before) == half
    for wrong in ("12G", "12 parsecs", 12, 20.0, "12"):
        with pytest.raises(ValueError, match=r"latency=.*ms"):
            lwdna.Budget(latency=wrong)


def test_latency_is_no_figure_where_nothing_was_measured(network: Measured) -> None:
    model, gm, graph, table = network
    assert "latency" not in lwdna.attainable(model, example_inputs=images(), widen=1.0)
    with pytest.raises(lwdna.LatencyError, match="nothing was measured"):
        lwdna.select(graph, np.ones(graph.units), {"latency": 10**9})
    least, most = cost_range(table.timed(gm, graph))["latency"]
    assert 0 < least < most == table.timed(gm, graph).cost().latency


def test_errors_name_what_is_missing(network: Measured, tmp_path: Path) -> None:
    model, gm, graph, table = network
    with pytest.raises(lwdna.LatencyError, match=r"pass latency=lwdna\.measure_latency"):
        lwdna.shrink(model, lwdna.Budget(latency=0.7), criterion="random", example_inputs=images())
    fewer = replace(
        table, operators={k: v for k, v in table.operators.items() if k != "layer1_0_conv1"}
    )
    with pytest.raises(lwdna.LatencyError, match="table lacks the node 'layer1_0_conv1'"):
        fewer.timed(gm, graph)
    more = replace(table, operators={**table.operators, "conv9": LATENCY})
    with pytest.raises(lwdna.LatencyError, match="network lacks the node 'conv9'"):
        more.timed(gm, graph)
    with pytest.raises(lwdna.LatencyError, match="captured in parts"):
        table.timed(nn.Sequential(gm), graph)
    file = tmp_path / "table.json"
    file.write_text('{"operators": {}}')
    with pytest.raises(lwdna.LatencyError, match="measure again"):
        lwdna.LatencyTable.load(file)
    with pytest.raises(lwdna.LatencyError, match="four or more"):
        lwdna.measure_latency(model, images(), configurations=3)


def test_a_table_survives_its_file(network: Measured, tmp_path: Path) -> None:
    table = network[3]
    table.save(tmp_path / "table.json")
    assert lwdna.LatencyTable.load(tmp_path / "table.json") == table


def test_measuring_covers_every_operator_and_changes_nothing(network: Measured) -> None:
    model, gm, graph, _ = network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    table = lwdna.measure_latency(model, images(), configurations=4, repeats=1, divisor=8)
    assert set(table.operators) == set(operator_sizes(gm, graph))
    assert all(min(vars(o).values()) >= 0 for o in table.operators.values()) and table.scale > 0
    assert table.setting.shapes == ((2, 3, 32, 32),) and table.setting.divisor == 8
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert not model.training and table.timed(gm, graph).cost().latency > 0


def test_a_machine_whose_speed_drifts_gives_the_same_table(
    network: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All seconds follow one law, each configuration at another speed of the machine."""
    model, gm, graph, _ = network
    speeds = iter([1.0, *np.random.default_rng(0).uniform(0.5, 2.0, 5)])
    speed = [1.0]

    def nodes(net: nn.Module, *_: object) -> dict[str, float]:
        speed[0] = next(speeds)
        found = lwdna.analyse(net, images())
        return {name: speed[0] * s for name, s in law(net, found).items()}

    def law(net: nn.Module, found: lwdna.ChannelGraph) -> dict[str, float]:
        every = found.keep_all()
        sizes = operator_sizes(net, found)
        return {name: LATENCY.seconds(*amounts(size, every)) for name, size in sizes.items()}

    def whole(net: nn.Module, *_: object) -> float:
        return speed[0] * sum(law(net, lwdna.analyse(net, images())).values())

    monkeypatch.setattr("lwdna.latency.measure.time_nodes", nodes)
    monkeypatch.setattr("lwdna.latency.measure.time_network", whole)
    table = lwdna.measure_latency(model, images(), configurations=6, divisor=1)
    assert table.error < 1e-6
    sizes = operator_sizes(gm, graph)
    copies = random_copies(graph, 0.5, np.random.default_rng(2))
    seconds = sum(LATENCY.seconds(*amounts(size, copies)) for size in sizes.values())
    given = sum(LATENCY.seconds(*amounts(size, graph.keep_all())) for size in sizes.values())
    predicted = table.timed(gm, graph).cost(copies).latency / 1e12
    assert predicted / table.given.seconds == pytest.approx(seconds / given, rel=1e-3)


def test_configurations_are_near_the_given_widths(
    network: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network[0]
    drawn = []

    def resized(gm: nn.Module, graph: lwdna.ChannelGraph, copies: Copies, **_: object) -> Any:
        drawn.append([int(copies[g.units].sum()) / g.width for g in graph.groups if g.prunable])
        return gm

    said: list[tuple[int, str]] = []

    def bar(widths: list[Copies], *, desc: str, **_: object) -> list[Copies]:
        said.append((len(widths), desc))
        return widths

    monkeypatch.setattr("lwdna.latency.measure.resize", resized)
    monkeypatch.setattr("lwdna.latency.measure.tqdm", bar)  # minutes pass on a real network
    lwdna.measure_latency(model, images(), widen=4.0, configurations=8, repeats=1, divisor=1)
    assert said == [(8, "measuring")]
    assert set(drawn[0]) == {1.0} and len(drawn) == 8
    assert max(drawn[1]) < 0.25
    assert min(map(min, drawn)) > 0.15 and 1.3 < max(map(max, drawn)) <= 1.55


def test_nodes_and_network_are_timed(network: Measured) -> None:
    gm = network[1]
    seconds = time_nodes(gm, (images(),), 2)
    assert set(seconds) == {node.name for node in gm.graph.nodes}
    assert seconds["layer1_0_conv1"] > 0 and time_network(gm, (images(),), 2) > 0


def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("docs/latency.md")
    before, after = map(float, capsys.readouterr().out.split())
    assert 0 < after <= 0.9 * before


def test_the_divisor_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lwdna.preferred_divisor("cuda:1") == lwdna.preferred_divisor(torch.device("cuda")) == 8
    for capability, divisor in (("AVX512", 16), ("AVX2", 8), ("DEFAULT", 4)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert lwdna.preferred_divisor("cpu") == divisor
    monkeypatch.setattr("lwdna.latency.measure.preferred_divisor", lambda device: 6)
    table = lwdna.measure_latency(nn.Conv2d(3, 8, 3), images(), configurations=4, repeats=1)
    assert table.setting.divisor == 6


@pytest.mark.parametrize("constraints", [None, lwdna.Constraints()])
def test_widths_are_multiples_of_the_divisor_that_was_measured(
    network: Measured, constraints: lwdna.Constraints | None
) -> None:
    model, *_, table = network
    net = lwdna.shrink(
        model,
        lwdna.Budget(latency=0.8),
        latency=replace(table, setting=replace(SETTING, divisor=6)),
        constraints=constraints,
        widen=1.0,
        criterion="random",
        example_inputs=images(),
    )
    widths = [(g.width, g.baseline) for g in net.meta["lwdna"].groups if g.prunable]
    aligned = [width % 6 == 0 or width == baseline for width, baseline in widths]
    assert all(aligned) == (constraints is None)
