"""Resize: the one primitive for removing and for widening channels."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

import lwdna.fx_passes.literal_rules  # noqa: F401  (registers the repairs)
from lwdna.channels import Ids
from lwdna.copies import Resizing
from lwdna.errors import ResizeError
from lwdna.fx_passes import init_law, interface, modules
from lwdna.fx_passes._base import captured, described, graph_pass, own_state
from lwdna.fx_passes.interpreter import NodeRunner
from lwdna.fx_passes.kernels import MetaMode
from lwdna.fx_passes.literals import (
    Repair,
    check_shapes,
    drop_broken_assertion,
    holds_tensors,
    repair,
)
from lwdna.fx_passes.members import named_modules, named_tensors
from lwdna.fx_passes.mode_reads import set_mode
from lwdna.fx_passes.module import copy_with, meta_twin, reassemble, tree_of
from lwdna.fx_passes.regions import graphs
from lwdna.graph import ChannelGraph, Copies
from lwdna.tensor_channels import TensorChannels
from lwdna.trees import tree_map_only


@graph_pass(requires=(captured, described), ensures=(own_state,))
def resize(gm: nn.Module, graph: ChannelGraph, copies: Copies, *, seed: int = 0) -> nn.Module:
    """Re-index every parameter and repair every literal.

    Args:
        gm: a captured network; it is not changed and shares nothing with the result.
        graph: its channel graph.
        copies: copies of each unit, shape (units,), int64: 0 removes, 1 keeps, 2.. widens. Copies
            stand directly after the original run of entries. Those of products are what
            :meth:`ChannelGraph.completed` works out.
        seed: seeds the entries of the copies, drawn by the law each parameter was initialised
            with, at its new fan; the global random state is not touched. Buffers are copied, and
            tensors on the meta device stay there.

    Returns:
        A new network of the same class with the same node names and state_dict keys.

    Raises:
        ValueError: ``copies`` changes a frozen group or empties one.
        ResizeError: a node's shape disagrees with its prediction.

    Source: torch.fx (https://docs.pytorch.org/docs/stable/fx.html), "direct graph manipulation".
    """
    graph.check(copies)
    resizing = Resizing(copies, graph.factors)
    generator = torch.Generator().manual_seed(seed)
    parameters, buffers = named_tensors(gm)
    new_tensors = {
        id(tensor): _resized(name, tensor, graph, resizing, generator)
        for name, tensor in (*parameters.items(), *buffers.items())
    }

    def replacement(old: Tensor) -> Tensor:
        new = new_tensors.get(id(old))
        return old.detach().clone() if new is None else new

    if isinstance(gm, GraphModule):
        root, code = copy_with(tree_of(gm), replacement), deepcopy(gm.graph)
        _fit(root, code, graph, resizing)
        whole = reassemble(gm, root, code)
        _update_uncalled(whole, graph, resizing)
        interface.update(whole, graph, copies)
        return whole
    new: nn.Module = copy_with(gm, replacement)
    for path, part in graphs(new).items():
        _fit(tree_of(part), part.graph, graph.part(path), resizing)
        part.recompile()
        interface.update(part, graph.part(path), copies)
    _update_uncalled(new, graph, resizing)
    return new


def _resized(
    name: str, tensor: Tensor, graph: ChannelGraph, resizing: Resizing, generator: torch.Generator
) -> Tensor:
    vectors = graph.tensors.get(name)
    new = tensor.detach()
    if vectors is None:
        return new.clone()
    fresh: list[tuple[int, Ids]] = []
    for dim, vector in enumerate(vectors):
        changed = None if vector is None else resizing.entries(vector)
        if changed is None:
            continue
        entries, copy = changed
        new = new.index_select(dim, torch.as_tensor(entries, device=new.device))
        if copy.any():
            fresh.append((dim, copy))
    if new.data_ptr() == tensor.data_ptr():
        new = new.clone()
    elif not tensor.is_contiguous() and _channels_last(tensor):
        new = new.contiguous(memory_format=torch.channels_last)
    if fresh and name not in graph.buffers and not tensor.is_meta:  # no values, no law
        _initialise(name, tensor, new, fresh, graph, generator)
    return new


def _channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _initialise(
    name: str,
    old: Tensor,
    new: Tensor,
    fresh: list[tuple[int, Ids]],
    graph: ChannelGraph,
    generator: torch.Generator,
) -> None:
    """Overwrite the copied entries of ``new`` by draws from the law of ``old``."""
    role = graph.roles.get(name)
    if role is None:  # a bias too: its fan-in tells its family, but scales no term of a sum
        law, ratio = init_law.detect(old, _fan_of_bias(name, graph)), 1.0
    else:
        law = init_law.detect(
            old, old.shape[role.in_dim] * role.kernel, old.shape[role.out_dim] * role.kernel
        )
        dim = {"fan_in": role.in_dim, "fan_out": role.out_dim}.get(law.scale)
        ratio = 1.0 if dim is None else new.shape[dim] / old.shape[dim]
    drawn = init_law.draw(law, new, ratio, generator)
    copied = torch.zeros((1,) * new.dim(), dtype=torch.bool, device=new.device)
    for dim, copy in fresh:
        shape = [1] * new.dim()
        shape[dim] = len(copy)
        copied = copied | torch.as_tensor(copy > 0, device=new.device).reshape(shape)
    torch.where(copied, drawn, new, out=new)


def _fan_of_bias(name: str, graph: ChannelGraph) -> int | None:
    """Fan-in of a bias's weight, as in :func:`lwdna.fx_passes.init_law.fans_of`."""
    weight = f"{name.removesuffix('bias')}weight"
    if not name.endswith("bias") or weight not in graph.roles:
        return None
    inputs = graph.tensors[weight][1]
    return None if inputs is None else len(inputs) * graph.roles[weight].kernel


def _fit(root: nn.Module, code: Graph, graph: ChannelGraph, resizing: Resizing) -> None:
    """Bring what a tree and a graph say in numbers up to date with the new tensors."""
    _update_modules(root, code, graph, resizing)
    _repair_literals(root, code, graph, resizing)


def _update_modules(root: nn.Module, code: Graph, graph: ChannelGraph, resizing: Resizing) -> None:
    submodules = dict(named_modules(root, again=True))
    for node in code.nodes:
        if node.op != "call_module":
            continue
        module = submodules[str(node.target)]
        if modules.has_widths(module):
            value = graph.values[node.name]
            known = isinstance(value, TensorChannels)
            shape = value.resized(resizing).shape if known else ()
            modules.update(module, _counts(graph, node.name, resizing), shape)


def _counts(graph: ChannelGraph, node: str, resizing: Resizing) -> dict[str, int]:
    """The channel counts that an operator is given beside its tensors."""
    facts = graph.facts.get(node, {})
    return {key: resizing.length(v) for key, v in facts.items() if v is not None}


def _update_uncalled(net: nn.Module, graph: ChannelGraph, resizing: Resizing) -> None:
    """Layers have widths, too, where the code takes their tensors and does not call them."""
    for region, part in graphs(net).items():
        for node in part.graph.nodes:
            if node.op != "get_attr":
                continue
            name = f"{region}.{node.target}" if region else str(node.target)
            vectors = graph.tensors.get(name, ())
            if all(v is None or resizing.entries(v) is None for v in vectors):
                continue
            module = net.get_submodule(name.rpartition(".")[0])
            if modules.has_widths(module):
                users = [f"{region}.{n.name}" if region else n.name for n in node.users]
                counts = [_counts(graph, user, resizing) for user in users]
                modules.update(module, {k: n for found in counts for k, n in found.items()}, ())


class _LiteralRepair(NodeRunner):
    """Runs the new graph on meta tensors, repairing each node before it runs."""

    def __init__(
        self, twin: nn.Module, code: Graph, graph: ChannelGraph, resizing: Resizing
    ) -> None:
        super().__init__(twin, code, free=False)
        self.channels, self.resizing = graph, resizing

    def run_nodes(self, *args: Any) -> None:
        """Run and repair; the graph may lose and gain nodes on the way."""
        self.args_iter = iter(args)
        for node in list(self.graph.nodes):
            self._step(node)

    def _step(self, node: Node) -> None:
        if drop_broken_assertion(node, self.env):
            return
        context = Repair(node, self.channels, self.resizing, self.env)
        before = node.prev
        repair(context)
        for added in _between(before, node):
            self.env[added] = self.run_node(added)
        try:
            result = self.run_node(node)
        except Exception as e:
            raise ResizeError(
                f"{node.format_node()} fails after resizing: {type(e).__name__}: {e}. A literal of "
                "this node means a channel count: register its repair with "
                "lwdna.rules.repairs, or freeze the channels it sees."
            ) from e
        self.env[node] = result
        check_shapes(context, result)


def _between(before: Node, node: Node) -> list[Node]:
    added = []
    while node.prev is not before:
        node = node.prev
        added.append(node)
    return added[::-1]


def _inputs(graph: ChannelGraph, resizing: Resizing) -> tuple[Any, ...]:
    """What the resized graph is given: a part of a network takes channels that change."""
    if not graph.calls:
        return graph.inputs
    given: tuple[Any, ...] = graph.calls[""][0]
    return tuple(tree_map_only(TensorChannels, lambda t: t.resized(resizing).empty(), given))


def _repair_literals(root: nn.Module, code: Graph, graph: ChannelGraph, resizing: Resizing) -> None:
    twin = meta_twin(root)
    set_mode(twin, training=False)
    with torch.inference_mode(), torch.device("meta"), MetaMode():
        _LiteralRepair(twin, code, graph, resizing).run(*_inputs(graph, resizing))
    for node in reversed(code.nodes):  # numbers that repairs have made superfluous
        number = node.op == "call_function" and not holds_tensors(graph.values.get(node.name))
        if number and not node.users and not node.is_impure():
            code.erase_node(node)
    code.lint()
