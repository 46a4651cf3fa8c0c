"""Figures in docs/ are those of the JSON files they quote; sources are what a reader can find."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_of_saliencies() -> None:
    results = json.loads((ROOT / "benchmarks/results/saliencies.json").read_text())["results"]
    resnet, regnet = results["resnet50-imagenet"], results["regnetx-4gf-imagenet"]
    lines = [
        f"| saliency | ResNet-50 | distance to {resnet['published_params']} | RegNetX-4.0GF | "
        f"distance to {regnet['published_params']} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in resnet["saliencies"].items():
        cells = [name.replace("|", "\\|")]
        for r in (row, regnet["saliencies"][name]):
            cells += [f"{r['mean']:.3f} ± {r['std']:.3f}", f"{r['distance']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    text = (ROOT / "docs/saliency.md").read_text()
    table = text.partition("<!-- saliencies.json -->\n")[2].partition("\n\n")[0]
    assert table == "\n".join(lines)


def test_sources_are_what_readers_have() -> None:
    """Neither code nor pages cite notes that are not in the repository."""
    notes = re.compile(r"\b(METHOD|DESIGN|STYLE|PEERS)\b")
    files = ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "lwdna").rglob("*.py")
    citing = [path.name for path in files if notes.search(path.read_text(encoding="utf-8"))]
    assert not citing
