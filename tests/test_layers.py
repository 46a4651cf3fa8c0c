"""Imports point one way: by reading every import statement of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lwdna

ROOT = Path(lwdna.__file__).parent
FILES = {
    ".".join(("lwdna", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in sorted(ROOT.rglob("*.py"))
}

#: module (or package) -> what it must not import, directly
FORBIDDEN = {
    "lwdna.errors": ("lwdna",),
    "lwdna.channels": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph", "lwdna.cost"),
    "lwdna.products": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph", "lwdna.choices"),
    "lwdna.choices": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph", "lwdna.cost"),
    "lwdna.copies": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph", "lwdna.cost"),
    "lwdna.cost": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph"),
    "lwdna.graph": ("lwdna.fx_passes", "lwdna.scoring"),
    "lwdna.constraints": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph"),
    "lwdna.width_rules": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.budget"),
    "lwdna.budget": ("lwdna.fx_passes", "lwdna.scoring"),
    "lwdna.pricing": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph", "lwdna.budget"),
    "lwdna.blocks": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.budget"),
    "lwdna.allocation": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph", "lwdna.budget"),
    "lwdna.selection": ("lwdna.fx_passes", "lwdna.scoring"),
    "lwdna.strict_json": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph", "lwdna.dna"),
    "lwdna.example": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph", "lwdna.dna"),
    "lwdna.group_width": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.dna"),
    "lwdna.dna": ("lwdna.fx_passes", "lwdna.scoring"),
    "lwdna.rebuilding": ("lwdna.scoring", "lwdna.api", "lwdna.files"),
    "lwdna.findings": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.dna"),
    "lwdna.tensor_channels": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph"),
    "lwdna.tables": ("lwdna.fx_passes", "lwdna.scoring", "lwdna.graph"),
    "lwdna.fx_passes": (
        "lwdna.scoring",
        "lwdna.api",
        "lwdna.budget",
        "lwdna.explanation",
        "lwdna.dna",
        "lwdna.source",
        "lwdna.files",
        "lwdna.reporting",
        "lwdna.export",
    ),
    "lwdna.export": ("lwdna.scoring", "lwdna.api", "lwdna.budget", "lwdna.explanation"),
    "lwdna.fx_passes.rules": (
        "lwdna.fx_passes.capture",
        "lwdna.fx_passes.analyse",
        "lwdna.fx_passes.channel_interpreter",
        "lwdna.fx_passes.channel_mode",
        "lwdna.fx_passes.resize",
        "lwdna.fx_passes.literals",
    ),
    "lwdna.scoring": (
        "lwdna.fx_passes",
        "lwdna.api",
        "lwdna.explanation",
        "lwdna.dna",
        "lwdna.export",
        "lwdna.reporting",
    ),
    "lwdna.reporting": ("lwdna.scoring", "lwdna.api"),
}


#: Built on the public names -> what of the package imports it: its program, and that's commands.
APPLICATIONS = {"lwdna.cli": {"lwdna.__main__"}, "lwdna.training": {"lwdna.cli.training"}}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imports(source: str, module: str) -> set[str]:
    """Every module that ``source`` imports, also inside functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def violations(module: str, source: str) -> set[str]:
    return {
        f"{module} imports {name}"
        for package, banned in FORBIDDEN.items()
        if within(module, package)
        for name in imports(source, module)
        for b in banned
        if within(name, b)
    }


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module: str) -> None:
    assert not violations(module, FILES[module].read_text())


@pytest.mark.parametrize("application", APPLICATIONS)
def test_nothing_builds_on_an_application(application: str) -> None:
    others = {m: p for m, p in FILES.items() if not within(m, application)}
    users = {
        module
        for module, path in others.items()
        for name in imports(path.read_text(), module)
        if within(name, application)
    }
    assert len(others) < len(FILES) and users == APPLICATIONS[application]


def test_every_layer_exists() -> None:
    for package in (*FORBIDDEN, *APPLICATIONS):
        assert any(within(module, package) for module in FILES), package


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("lwdna.errors", "from lwdna.channels import Ids"),
        ("lwdna.fx_passes.resize", "import lwdna.scoring.criteria"),
        ("lwdna.fx_passes.resize", "from lwdna import scoring"),
        ("lwdna.scoring.loss", "def f():\n    from lwdna.fx_passes.module import meta_twin"),
        ("lwdna.scoring.loss", "from ..fx_passes import verify"),
        ("lwdna.graph", "from .fx_passes.rules import registry"),
    ],
)
def test_a_forbidden_import_is_found(module: str, line: str) -> None:
    assert violations(module, line)


def test_importing_lwdna_imports_nothing_that_few_need() -> None:
    """The zoos take as long as torch; only measured latencies are fitted by scipy."""
    code = (
        "import sys, lwdna; assert 'torch' not in sys.modules; lwdna.shrink; "
        "unwanted = {'timm', 'torchvision', 'scipy.optimize', 'matplotlib', 'click'}; "
        "assert not unwanted & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_public_names() -> None:
    """They are imported when they are asked for, and are then like any other."""
    from lwdna import _public

    names = {name for name in vars(_public) if not name.startswith("_")}
    assert names - {"annotations"} == set(_public.__all__) == set(lwdna.__all__)
    assert sorted(_public.__all__) == sorted(set(_public.__all__))
    for name in _public.__all__:
        assert getattr(lwdna, name) is getattr(_public, name), name
        assert name in dir(lwdna)
    with pytest.raises(AttributeError, match="'lwdna' has no attribute 'shrinkk'"):
        lwdna.shrinkk  # noqa: B018


@pytest.mark.parametrize("first", ["lwdna.files", "lwdna.choices"])
def test_any_module_may_be_imported_first(first: str) -> None:
    code = f"import {first}, lwdna; from lwdna import *; lwdna.weights, lwdna.copies; save, rules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
