"""The oracle of removal: the original network with the removed channels' consumers masked.

Each graph runs twice on the same inputs, each time under the channel rules: once to know which
entries of every activation belong to removed units, once with every operator that mixes channels
made to disregard them, as its rule states (``registry.Mixing``). Nothing is resized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.fx
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lwdna.channels import Ids, Products, Slot
from lwdna.choices import resolve
from lwdna.fx_passes.channel_interpreter import ChannelInterpreter
from lwdna.fx_passes.channel_mode import ChannelMode
from lwdna.fx_passes.module import detached_copy
from lwdna.fx_passes.outputs import freed, freeze_outputs
from lwdna.fx_passes.patches import exact_attention
from lwdna.fx_passes.regions import graphs, intercepted, tensors_in
from lwdna.fx_passes.rules import OpCall
from lwdna.graph import ChannelGraph, Copies
from lwdna.tensor_channels import channels_in

aten = torch.ops.aten
_LAYER_NORMS = (aten.layer_norm, aten.rms_norm)
_NEUTRAL = {"zero": 0.0, "one": 1.0, "-inf": float("-inf"), "inf": float("inf")}


class MaskedMode(ChannelMode):
    """A channel mode whose mixing operators disregard the entries that are not ``alive``.

    Args:
        root: the network, with real tensors.
        alive: whether each id (in the order in which the rules open them) is kept.
    """

    def __init__(self, root: torch.nn.Module, alive: NDArray[np.bool_]) -> None:
        super().__init__(root)
        self.alive = alive

    def finish(self, op: OpCall) -> Any:
        """Execute the operator again without the removed entries."""
        if not any(self._dead(m.tensor, m.dim) is not None for m in op.mixing):
            return op.out
        if any(m.how == "kept" for m in op.mixing):
            result = self._on_kept_entries(op)
        else:
            result = self._filled(op)
        for old, new in zip(_tensors(op.out), _tensors(result), strict=True):
            self.set_vectors(new, self.vectors(old))
        return result

    def _dead(self, tensor: Tensor, dim: int) -> Tensor | None:
        """Removed entries of a dimension as a boolean tensor, or None if there are none."""
        vector = self.vectors(tensor)[dim]
        if vector is None or self.alive[vector].all():
            return None
        return torch.as_tensor(~self.alive[vector], device=tensor.device)

    def _filled(self, op: OpCall) -> Any:
        """Removed entries replaced by the neutral element."""
        replaced: dict[int, Tensor] = {}
        for m in op.mixing:
            dead = self._dead(m.tensor, m.dim)
            if dead is not None:
                shape = [1] * m.tensor.dim()
                shape[m.dim] = len(dead)
                present = replaced.get(id(m.tensor), m.tensor)
                replaced[id(m.tensor)] = present.masked_fill(dead.reshape(shape), _NEUTRAL[m.how])
        args, kwargs = tree_map_only(
            Tensor, lambda t: replaced.get(id(t), t), (op.args, dict(op.kwargs))
        )
        return op.func(*args, **kwargs)

    def _on_kept_entries(self, op: OpCall) -> Any:
        """Removed entries cut out, the operator applied, and the results put back in place."""
        args, kwargs = tree_map_only(Tensor, self.cut, (op.args, dict(op.kwargs)))
        args = list(args)
        if op.func.overloadpacket in _LAYER_NORMS:
            args[1] = list(args[0].shape[-len(args[1]) :])
        if op.func.overloadpacket is aten.group_norm:
            vector = self.vectors(op.args[0])[1]
            assert vector is not None
            args[1] = int(self.alive[vector].reshape(args[1], -1).any(axis=1).sum())
        result = op.func(*args, **kwargs)
        pairs = zip(_tensors(op.out), _tensors(result), strict=True)
        spread = [self._spread(old, new) for old, new in pairs]
        return spread[0] if isinstance(result, Tensor) else type(result)(spread)

    def cut(self, tensor: Tensor) -> Tensor:
        """The entries of a tensor that are kept."""
        for dim in range(tensor.dim()):
            dead = self._dead(tensor, dim)
            if dead is not None:
                cut = tensor.index_select(dim, torch.nonzero(~dead)[:, 0])
                rest = [v if d != dim else None for d, v in enumerate(self.vectors(tensor))]
                self._know(cut, tuple(rest))
                tensor = cut
        return tensor

    def _spread(self, old: Tensor, new: Tensor) -> Tensor:
        for dim in range(old.dim()):
            dead = self._dead(old, dim)
            if dead is not None:
                shape = list(new.shape)
                shape[dim] = len(dead)
                full = new.new_zeros(shape)
                full.index_copy_(dim, torch.nonzero(~dead)[:, 0], new)
                new = full
        return new


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def run_parts(network: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """What a captured network returns; if it was captured in parts, what each part returns, too."""
    returned: list[Any] = []

    def region(path: str, forward: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        out = forward(*args)
        returned.extend([out] if path else [])
        return out

    with torch.no_grad(), exact_attention(), intercepted(network, region):
        out = network(*inputs)
    return returned, out


def run_masked(gm: nn.Module, graph: ChannelGraph, copies: Copies, inputs: tuple[Any, ...]) -> Any:
    """:func:`run_parts` of ``gm`` with the units of 0 copies disregarded (evaluation mode).

    Of outputs that are free, the entries that are kept. The code between parts is given the removed
    channels, too, with whatever they hold: it may only hand them on.

    Args:
        gm: the captured network; not changed.
        graph: its channel graph.
        copies: copies of each unit (0 or 1), shape (units,).
        inputs: real inputs, in the precision of the parameters.
    """
    network: nn.Module = detached_copy(gm).eval()
    returned: list[Any] = []

    def region(path: str, _forward: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        full, kept = _run_part(network, path, graph, copies, args)
        returned.extend([kept] if path else [])
        return full if path else kept

    with torch.inference_mode(), intercepted(network, region):
        out = network(*inputs)
    return returned, out


def _run_part(
    network: nn.Module, path: str, graph: ChannelGraph, copies: Copies, inputs: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Result of a part in full, and the kept entries of it."""
    part, prefix = graphs(network)[path], f"{path}." if path else ""
    masked = MaskedMode(network, _entries(network, path, graph, copies, inputs))
    _open_inputs(masked, graph, path, inputs)
    with masked:
        result = ChannelInterpreter(part, part.graph, masked, prefix).run(*inputs)
    return result, tree_map_only(Tensor, masked.cut, result)


def _entries(
    network: nn.Module, path: str, graph: ChannelGraph, copies: Copies, inputs: tuple[Any, ...]
) -> NDArray[np.bool_]:
    """Whether each id that the rules open on real inputs of a part is kept.

    A function of its own, so that what its mode knows is freed before the part runs again.
    """
    part, prefix = graphs(network)[path], f"{path}." if path else ""
    first = ChannelMode(network)
    _open_inputs(first, graph, path, inputs)
    with first:
        interpreter = ChannelInterpreter(part, part.graph, first, prefix)
        interpreter.run(*inputs)
    pairs = list(_pairs(first, interpreter.values if path else {}, graph))
    if path:
        for raw, units in pairs:
            fixed = ~graph.prunable[graph.group_of[units]]
            first.space.freeze(raw[fixed], "fixed in the whole network", path)
    else:
        freeze_outputs(first.space, interpreter.values["output"], freed(graph))
    resolve(first.space, graph.policy)
    return _alive(first, pairs, copies)


def _open_inputs(mode: ChannelMode, graph: ChannelGraph, path: str, inputs: Any) -> None:
    """Ids for the channels that come from other parts."""
    if path:
        for x, known in zip(tensors_in(inputs), channels_in(graph.calls[path][0]), strict=True):
            opened = (
                None if v is None else mode.space.fresh(len(v), Slot(path, d, "input"))
                for d, v in enumerate(known.vectors)
            )
            mode.set_vectors(x, tuple(opened))


def _pairs(
    mode: ChannelMode, values: Mapping[str, Any], graph: ChannelGraph
) -> Iterator[tuple[Ids, Ids]]:
    """Raw ids of the run beside the graph's units, of parameters and of what nodes returned."""
    named = [(vectors, graph.tensors[name]) for name, vectors in mode.tensors.items()]
    for name, value in values.items():  # repairs put in nodes that are only numbers
        known = channels_in(graph.values.get(name))
        named += [(a.vectors, b.vectors) for a, b in zip(channels_in(value), known, strict=False)]
    for ours, theirs in named:
        for raw, units in zip(ours, theirs, strict=True):
            # A dimension that holds the batch, too, has another length here.
            if raw is not None and units is not None and len(raw) == len(units):
                yield raw, units


def _alive(
    mode: ChannelMode, pairs: Iterable[tuple[Ids, Ids]], copies: Copies
) -> NDArray[np.bool_]:
    """Whether each raw id is kept."""
    roots = mode.space.find(np.arange(mode.space.size))
    kept = np.ones(mode.space.size, dtype=bool)
    known = np.zeros(mode.space.size, dtype=bool)
    for raw, units in pairs:
        known[roots[raw]] = True
        kept[roots[raw[copies[units] == 0]]] = False
    _carry_through_products(kept, known, mode.space.products)
    alive: NDArray[np.bool_] = kept[roots]
    return alive


def _carry_through_products(
    kept: NDArray[np.bool_], known: NDArray[np.bool_], products: Products
) -> None:
    """A factor is gone if all of its products are, and a product if one of its factors is.

    As no group is ever emptied, a factor that stays keeps one product at least.
    """
    for column in products.factors.T:
        told = (column >= 0) & known[products.units]
        factors = column[told & ~known[column]]
        stays = column[told & kept[products.units]]
        kept[factors[~np.isin(factors, stays)]] = False
    present = products.factors >= 0
    kept[products.units] &= (kept[products.factors] | ~present).all(axis=1)
