"""The code of docs/tutorial.md, and what it comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents import run_page

pytest.importorskip("matplotlib")


def test_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page("docs/tutorial.md")
    assert set(names["fixed"]) == {"conv1.0.weight[1]", "fc"}
    dna, smaller = names["dna"], names["smaller"]
    assert 0.995 * 0.8 <= dna.after.macs / dna.before.macs <= 0.8
    assert smaller.after.macs <= 0.5 * dna.before.macs < dna.after.macs
    by_hand, net = names["by_hand"], names["net"]
    assert {k: v.shape for k, v in by_hand.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    assert names["losses"][-1] < 0.5 * names["losses"][0] and names["right"] > 0.9
    assert sum(p.numel() for p in names["fresh"].parameters()) == smaller.after.params
    said = capsys.readouterr().out
    assert f"{dna.after.macs:,} MACs" in said and "masked equivalence" in said
    assert names["name"] == "ResNet"
    written = {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "report_group0.png", "widths.svg", "small", "small.py"} <= written
