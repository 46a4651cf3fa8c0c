"""Running the network with other tensors in place of its own: whole, or in pieces for memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_flatten, tree_iter, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

from lwdna.errors import ScoringError
from lwdna.scoring.ranks import Ranks
from lwdna.scoring.synchronise import synchronised_batch_norm

#: ``note(node, value, rows)``: what a node of the graph returned for these samples of the batch.
Note = Callable[[Node, Any, slice], None]


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
        size = _samples(args, kwargs)
        if self._micro_batch is None:
            return self._run(slice(0, size), *args, **kwargs)
        if self._mixes_samples(args, kwargs):
            return self._in_stretches(self._stretches, slice(0, size), args, kwargs)
        return self._in_micro_batches(size, self._micro_batch, args, kwargs)

    def _run(self, rows: slice, *args: Any, **kwargs: Any) -> Any:
        if self._note is not None:
            return self._in_stretches(1, rows, args, kwargs)
        with synchronised_batch_norm(self._ranks, self.network):
            return functional_call(self.network, self._tensors, args, kwargs)

    def _in_micro_batches(
        self, size: int, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        flat, spec = tree_flatten((args, kwargs))
        outputs = []
        for start in range(0, size, step):
            rows = slice(start, min(start + step, size))
            part = [t[rows] if _is_batched(t, size) else t for t in flat]
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
        values = _bound(self.network, args, kwargs)
        nodes = [node for node in self.network.graph.nodes if node.op != "placeholder"]
        size = ceil(len(nodes) / n)
        for start in range(0, len(nodes), size):
            part, rest = nodes[start : start + size], nodes[start + size :]
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

    def _mixes_samples(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a sample's outputs depend on the samples beside it."""
        batch_norm = nn.modules.batchnorm._BatchNorm
        if any(isinstance(m, batch_norm) and m.training for m in self.network.modules()):
            return True
        size = _samples(args, kwargs)
        if size == 1:
            return False
        flat, spec = tree_flatten((args, kwargs))
        first = []
        for beside in (1, 0):  # the first sample next to another one, and next to itself
            rows = torch.tensor([0, beside])
            some = [t[rows.to(t.device)] if _is_batched(t, size) else t for t in flat]
            some_args, some_kwargs = tree_unflatten(some, spec)
            devices = {t.device.index for t in flat if isinstance(t, Tensor) and t.is_cuda}
            with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
                out = functional_call(self.network, self._tensors, some_args, some_kwargs)
            first.append([t[0] for t in tree_iter(out) if isinstance(t, Tensor) and t.dim()])
        return not all(torch.allclose(a, b, equal_nan=True) for a, b in zip(*first, strict=True))


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
        interpreter.env = dict(values)
        for node in nodes:
            result = interpreter.env[node] = interpreter.run_node(node)
            if self._note is not None:
                self._note(node, result, self._rows)
        return {
            node: v for node, v in interpreter.env.items() if node in needed or node is nodes[-1]
        }


def _bound(gm: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Node, Any]:
    """The values of the graph's placeholders."""
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    values = dict(zip(placeholders, args, strict=False))
    for node in placeholders[len(args) :]:
        if str(node.target) in kwargs:
            values[node] = kwargs[str(node.target)]
        elif node.args:
            values[node] = node.args[0]
    return values


def _samples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    tensors = (t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor) and t.dim())
    first = next(tensors, None)
    return 1 if first is None else first.shape[0]


def _is_batched(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size


def _joined(*parts: Any) -> Any:
    if not isinstance(parts[0], Tensor):
        return parts[0]
    if not parts[0].dim():
        raise ScoringError(
            "the network returns a scalar, which cannot be put together from micro-batches: score "
            "without micro_batch"
        )
    return torch.cat(parts)
