"""Generated code of captured graphs, with the blocks that a list of nodes cannot say.

What one mode alone needs stands under an ``if``; a region of mixed precision in a ``try``, which
leaves it whatever is raised inside, as the ``with`` of the model does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from keyword import iskeyword
from textwrap import indent

from torch.fx import Graph, Node

from lwdna.fx_passes.autocast import SWITCHES, enter_autocast
from lwdna.fx_passes.conditional import Condition, conditions, under

_MARKER = re.compile(r"# COUNTER: (\d+)\n")
_Steps = list[tuple[Node, str]]  # nodes with their code


def in_blocks(graph: Graph, body: Iterable[str]) -> list[str]:
    """The body of a graph's ``forward``, with its blocks, and without words of Python as names.

    Args:
        graph: the graph that the code is of.
        body: as torch.fx generates it: a marker before each node.
    """
    found, nodes = conditions(graph), list(graph.nodes)
    code = _without_keywords(nodes, list(body))
    if not found and not any(node.target in SWITCHES for node in nodes):
        return code
    head, *rest = _MARKER.split("".join(code))
    steps = [
        (nodes[int(index)], f"# COUNTER: {index}\n{code}")
        for index, code in zip(rest[::2], rest[1::2], strict=True)
    ]
    return [head, *_written(steps, found)]


def _without_keywords(nodes: Iterable[Node], body: list[str]) -> list[str]:
    """torch.fx writes ``self.in``, which is no Python, for a module or tensor of that name."""
    targets = {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}
    for target in sorted(t for t in targets if any(map(iskeyword, t.split(".")))):
        wrong = re.compile(f"= {re.escape(_path(target, str.isidentifier))}(?=[(;\\n]|$)")
        right = "= " + _path(target, lambda name: name.isidentifier() and not iskeyword(name))
        body = [wrong.sub(right, code, count=1) for code in body]
    return body


def _path(target: str, is_plain: Callable[[str], bool]) -> str:
    code = "self"
    for name in target.split("."):
        code = f"{code}.{name}" if is_plain(name) else f'getattr({code}, "{name}")'
    return code


def _written(steps: _Steps, found: Mapping[Node, Condition]) -> Iterator[str]:
    region = _first_region(steps)
    if region is None:
        yield from _chosen(steps, found)
        return
    enter, leave = region
    yield from _chosen(steps[: enter + 1], found)
    inner = "".join(_written(steps[enter + 1 : leave], found))
    yield "try:\n" + indent(inner or "pass\n", "    ")
    yield "finally:\n" + indent(steps[leave][1], "    ")
    yield from _written(steps[leave + 1 :], found)


def _first_region(steps: _Steps) -> tuple[int, int] | None:
    """Where the first region is entered and left that is both in these steps."""
    at = {node: k for k, (node, _) in enumerate(steps)}
    for k, (node, _) in enumerate(steps):
        if node.target is enter_autocast:
            left = [at[user] for user in node.users if user in at]
            if left:
                return k, left[0]
    return None


def _chosen(steps: _Steps, found: Mapping[Node, Condition]) -> Iterator[str]:
    for condition, group in groupby(steps, lambda step: found.get(step[0])):
        nodes, code = zip(*group, strict=True)
        yield from under(condition, nodes, "".join(code))
