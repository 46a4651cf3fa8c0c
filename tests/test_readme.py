"""README: its Python blocks run as they stand, and its commands exist."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec

import pytest

from tests.documents import ROOT, run_page


def test_the_code_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_page("README.md", {"224, 224": "64, 64"})
    least_to_most, widths = capsys.readouterr().out.splitlines()
    assert least_to_most.startswith("(")
    ratio = float(widths.split()[0])
    assert 0.4 < ratio <= 0.906


def test_the_commands_of_the_readme_exist() -> None:
    """What the shell is told to do; arguments of ``lwdna`` are tested with the program."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"`make ([a-z-]+)", text)
    modules = re.findall(r"python -m ([\w.]+)", text)
    extras = re.findall(r'pip install "lwdna\[(\w+)\]"', text)
    assert targets and modules and extras
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    assert all(find_spec(module) for module in modules)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*extras} <= {*project["optional-dependencies"]}
