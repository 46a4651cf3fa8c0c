"""The page on training: its Python runs, its commands are understood, its table is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lwdna.training
from lwdna.training import PRESETS, Protocol

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    assert names["shrunk"].cost["macs"] <= 0.9 * names["result"].cost["macs"]


def test_the_presets_of_the_page_are_there() -> None:
    found = re.findall(r"--preset (\S+)", PAGE.read_text())
    assert found and set(found) <= PRESETS.keys()


def row(p: Protocol) -> str:
    task = p.task + (", with a teacher" if p.distillation else "")
    schedule = f"steps {', '.join(map(str, p.milestones))}" if p.milestones else p.schedule
    images = (
        f"{p.images.size}×{p.images.size}, {p.images.crop}"
        if p.images
        else f"patches of {p.patches.size}×{p.patches.size}"  # type: ignore[union-attr]
    )
    optimiser = f"{p.optimizer}, lr {p.lr:f}".rstrip("0")
    cells = [p.name, task, optimiser, p.epochs, schedule, p.batch, images]
    return f"| {' | '.join(map(str, cells))} |"


def test_the_table_of_presets() -> None:
    table = PAGE.read_text().partition("<!-- presets -->\n")[2].partition("<!-- /presets -->")[0]
    assert table.splitlines()[2:] == [row(preset) for preset in PRESETS.values()]


def test_the_public_names_are_there() -> None:
    for name in lwdna.training.__all__:
        assert getattr(lwdna.training, name) is not None
