"""Running the network with other tensors in place of its own: whole, or in pieces for memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only, tree_unflatten
from torch.utils.checkpoint import checkpoint

from lwdna.errors import ScoringError
from lwdna.scoring.probing import bound, is_batched, mixes_samples, samples, uncut
from lwdna.scoring.ranks import Ranks
from lwdna.scoring.synchronise import synchronised_batch_norm

#: ``note(node, value, rows)``: what a node of the graph returned for these samples of the batch
#: -> what the nodes after it are given.
Note = Callable[[Node, Any, slice], Any]


class Model(nn.Module):
    """What loss and step functions call as their model.

    Args:
        network: a captured network, in the mode to run it in. Its code runs, its own parameters
            and buffers do not take part.
        tensors: parameter and buffer name -> tensor that takes its place.
        micro_batch: samples to run at a time; ``None``: all.
        stretches: into how many stretches of nodes the graph is cut instead, where the network
            mixes samples. It must be the same on all ranks, whose batch norms wait for each other
            in the backward pass, too.
        ranks: whose samples batch norms normalise together.
        note: called with the value of every node, where given.
    """

    def __init__(
        self,
        network: nn.Module,
        tensors: Mapping[str, Tensor],
        micro_batch: int | None = None,
        stretches: int = 1,
        ranks: Ranks | None = None,
        note: Note | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._tensors, self._note, self._ranks = dict(tensors), note, ranks or Ranks()
        self._micro_batch, self._stretches = micro_batch, stretches

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of the network; arguments as its own ``forward`` takes them."""
        size = samples((args, kwargs))
        micro_batch = self._micro_batch
        listed = any(isinstance(a, (list, tuple)) for a in args)
        if micro_batch is not None and listed and not isinstance(self.network, GraphModule):
            raise ScoringError("micro_batch cuts tensors, not lists of samples: leave it out")
        if micro_batch is None or (size <= micro_batch and self._stretches == 1):
            return self._run(slice(0, size), *args, **kwargs)
        if mixes_samples(self.network, self._tensors, (args, kwargs)):
            return self._in_stretches(self._stretches, slice(0, size), args, kwargs)
        return self._in_micro_batches(size, micro_batch, args, kwargs)

    def _run(self, rows: slice, *args: Any, **kwargs: Any) -> Any:
        if self._note is not None:
            return self._in_stretches(1, rows, args, kwargs)
        # Copies: what the network does to its inputs must not meet the next run.
        args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
        with synchronised_batch_norm(self._ranks, self.network):
            return functional_call(self.network, self._tensors, args, kwargs)

    def _in_micro_batches(
        self, size: int, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        flat, spec = tree_flatten((args, kwargs))
        outputs = []
        for start in range(0, size, step):
            rows = slice(start, min(start + step, size))
            part = [t[rows] if is_batched(t, size) else t for t in flat]
            some_args, some_kwargs = tree_unflatten(part, spec)
            outputs.append(
                checkpoint(self._run, rows, *some_args, use_reentrant=False, **some_kwargs)
            )
        return tree_map(_joined, *outputs)

    def _in_stretches(
        self, n: int, rows: slice, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The graph in ``n`` stretches of nodes, with only the values between them kept."""
        if not isinstance(self.network, GraphModule):
            raise ScoringError(
                f"micro_batch splits the graph of a captured network; this is a "
                f"{type(self.network).__name__}: pass lwdna.capture(model, inputs)"
            )
        stretch = _Stretch(self.network, self._note, rows)
        tensors = {f"network.{name}": tensor for name, tensor in self._tensors.items()}
        values = bound(self.network, args, kwargs)
        nodes = [node for node in self.network.graph.nodes if node.op != "placeholder"]
        ends = self._ends(len(nodes), n, args, kwargs)
        for start, end in zip([0, *ends], ends, strict=False):
            part, rest = nodes[start:end], nodes[end:]
            needed = {node for later in rest for node in later.all_input_nodes}

            def run(
                values: dict[Node, Any],
                part: Sequence[Node] = part,
                needed: set[Node] = needed,
            ) -> dict[Node, Any]:
                # Here, because it has to hold in the second computation, too.
                with synchronised_batch_norm(self._ranks, self.network):
                    found = functional_call(stretch, tensors, (part, needed, values))
                result: dict[Node, Any] = found
                return result

            # The last stretch would be computed again at once.
            values = checkpoint(run, values, use_reentrant=False) if rest else run(values)
        return values[nodes[-1]]

    def _ends(self, nodes: int, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """Numbers of the nodes after the last one of each of (about) ``n`` stretches."""
        assert isinstance(self.network, GraphModule)
        if n == 1:
            return [nodes]
        whole = uncut(self.network, self._tensors, (args, kwargs))
        size = ceil(nodes / n)
        result = [0]
        while result[-1] < nodes:
            end = result[-1] + size
            while end in whole:
                end += 1
            result.append(min(end, nodes))
        return result[1:]


class _Stretch(nn.Module):
    """Runs some nodes of a graph, as a module whose tensors ``functional_call`` can replace."""

    def __init__(self, network: GraphModule, note: Note | None, rows: slice) -> None:
        super().__init__()
        self.network, self._note, self._rows = network, note, rows

    def forward(
        self, nodes: Sequence[Node], needed: set[Node], values: dict[Node, Any]
    ) -> dict[Node, Any]:
        """The values of ``nodes``, given earlier ones: those that are ``needed``, and the last."""
        interpreter = Interpreter(self.network, garbage_collect_values=False)
        interpreter.env = {  # inputs may change in place, and are needed again
            node: tree_map_only(Tensor, torch.clone, value) if node.op == "placeholder" else value
            for node, value in values.items()
        }
        for node in nodes:
            result = interpreter.run_node(node)
            if self._note is not None:
                result = self._note(node, result, self._rows)
            interpreter.env[node] = result
        return {
            node: v for node, v in interpreter.env.items() if node in needed or node is nodes[-1]
        }


def _joined(*parts: Any) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
