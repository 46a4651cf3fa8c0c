"""``lwdna.export_source``: a network as a file of plain PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from lwdna.dna import Dna, versions
from lwdna.errors import UnsupportedModelError
from lwdna.export.check import check_source
from lwdna.export.classes import Classes
from lwdna.export.code import Code, readable
from lwdna.export.functions import Writer
from lwdna.export.literals import Literals, Tables
from lwdna.export.names import Imports
from lwdna.export.scopes import program
from lwdna.export.templates import class_lines
from lwdna.export.tree import tree_of
from lwdna.files import replace_file
from lwdna.fx_passes.interface import attributes
from lwdna.fx_passes.regions import is_captured, meta_of

_LIBRARIES = ("lwdna", "torch", "torchvision", "timm")


def export_source(net: nn.Module, path: str | os.PathLike[str]) -> str:
    """Write a network as a Python file of plain PyTorch, which needs no lwdna.

    The file has one class per kind of module, with widths as numbers, and imports torch, and timm
    or torchvision where a layer of theirs is called. What it builds has the parameters and buffers
    of ``net``, by name; their values come from a state_dict, as for any network:

        net.load_state_dict(torch.load("weights.pt", weights_only=True))

    Tensors that no state_dict holds (tables of positions, masks) are in the file.

    Args:
        net: what :func:`lwdna.capture` or :func:`lwdna.shrink` returns, as one graph. It is not
            changed.
        path: of the file; an existing file is replaced as a whole.

    Returns:
        The name of the network's class in the file.

    Raises:
        TypeError: ``net`` is not captured.
        UnsupportedModelError: a detector, captured in parts; or a module, function or value that
            cannot be written as source. Nothing is written then.

    Source: https://docs.pytorch.org/docs/stable/notes/serialization.html (saving state_dicts).

    >>> export_source(net, "resnet50_small.py")  # doctest: +SKIP
    'ResNet'
    """
    text, name = source_of(net)
    replace_file(Path(path), partial(Path.write_text, data=text, encoding="ascii"))
    return name


def source_of(net: nn.Module) -> tuple[str, str]:
    """The text of the file, and the name of the network's class in it.

    Args:
        net: see :func:`export_source`.
    """
    if not is_captured(net):
        raise TypeError(
            f"net is a {type(net).__name__}: pass what lwdna.capture or lwdna.shrink returns"
        )
    if not isinstance(net, GraphModule):
        raise UnsupportedModelError(
            f"{type(net).__name__} is captured in parts, and the code between them is that of its "
            "own class: export a part (one of net.meta['lwdna_regions'], net.get_submodule(path))"
        )
    imports = Imports()
    tree = tree_of(net)
    found = program(net.graph, tree)
    tables = Tables(imports)
    classes = Classes(found, Writer(net.graph, found, imports), imports, tables)
    classes.make(dict(_attributes(net, imports)))
    tables.add_imports()
    name = classes.written[-1].name
    lines = [*_header(net, name), "", *imports.lines()]
    lines += ["", f'__all__ = ["{name}"]']
    for written in classes.written:
        lines += ["", "", *class_lines(written)]
    text = "\n".join([*lines, *tables.lines()]) + "\n"
    check_source(text, name, net)
    return text, name


def _attributes(net: GraphModule, imports: Imports) -> Iterator[tuple[str, Code]]:
    """The numbers by which the network describes itself (``num_features`` ...)."""
    for name, value in attributes(net):
        if isinstance(value, (int, str)):
            yield name, Literals(imports, f"attribute {name!r}").of(value, name)


def _header(net: nn.Module, name: str) -> Iterator[str]:
    parameters = sum(p.numel() for p in net.parameters())
    dna: Any = meta_of(net).get("lwdna")
    yield f'"""{name} in plain PyTorch, written by lwdna.'
    yield ""
    if isinstance(dna, Dna):
        yield f"Widths: shrunk by the criterion {readable(dna.criterion)}, seed {dna.seed}."
        for metric in ("macs", "params"):
            before, after = getattr(dna.before, metric), getattr(dna.after, metric)
            yield f"{metric}: {after:,} of {before:,} ({after / before:.1%})"
        yield f"DNA: sha256 {dna.digest}"
    else:
        yield f"params: {parameters:,}"
    known = versions()
    used = [f"{name} {known[name]}" for name in _LIBRARIES if known[name] != "not installed"]
    yield f"Written with Python {known['python']}, {', '.join(used)}."
    yield ""
    yield "The values come from a state_dict of the network that was written:"
    yield ""
    yield f"    net = {name}()"
    yield '    net.load_state_dict(torch.load("weights.pt", weights_only=True))'
    yield '"""'
