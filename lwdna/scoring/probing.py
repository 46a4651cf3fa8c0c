"""What two samples tell about a network: whether it mixes them, and where its graph can be cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_iter, tree_map_only

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def mixes_samples(network: nn.Module, tensors: Mapping[str, Tensor], inputs: Inputs) -> bool:
    """Whether a sample's outputs depend on the samples beside it, or belong to no sample.

    Args:
        network: in the mode that is asked about; batch norms in training mode mix by definition.
        tensors: parameter and buffer name -> tensor that takes its place.
        inputs: positional and keyword arguments, of at least two samples.
    """
    batch_norm = nn.modules.batchnorm._BatchNorm
    if any(isinstance(m, batch_norm) and m.training for m in network.modules()):
        return True
    # The first sample beside another one, beside itself, and alone.
    beside, doubled, alone = (
        _outputs(network, tensors, _rows(inputs, rows)) for rows in ([0, 1], [0, 0], [0])
    )
    for a, b, c in zip(beside, doubled, alone, strict=True):
        if not a.dim() or a.dim() != c.dim() or len(a) != 2 * len(c):
            return True  # not one entry per sample: it cannot be put together from pieces
        if not torch.allclose(a[0], b[0], equal_nan=True):
            return True
    return False


def uncut(network: GraphModule, tensors: Mapping[str, Tensor], inputs: Inputs) -> set[int]:
    """Where the graph must not be cut: between a value and the last change of it in place.

    A stretch that starts there would be computed a second time from a value that has changed.

    Args:
        network: a captured network.
        tensors: parameter and buffer name -> tensor that takes its place.
        inputs: positional and keyword arguments, of at least two samples.

    Returns:
        Numbers of nodes, not counting placeholders, before which no stretch may start.
    """
    values = bound(network, *_rows(inputs, [0, 1]))
    named = {f"network.{name}": tensor for name, tensor in tensors.items()}
    with torch.no_grad(), _forked(inputs):
        result: set[int] = functional_call(_Watched(network), named, (values,))
    return result


class _Watched(nn.Module):
    """Runs a graph and watches which values change in place; a module for ``functional_call``."""

    def __init__(self, network: GraphModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: dict[Node, Any]) -> set[int]:
        interpreter = Interpreter(self.network, garbage_collect_values=False)
        env = interpreter.env = dict(values)
        opened = {_storage(t): -1 for t in _tensors(values)}  # by which node; views share it
        nodes = (node for node in self.network.graph.nodes if node.op != "placeholder")
        result: set[int] = set()
        for number, node in enumerate(nodes):
            inputs = list(_tensors([env[other] for other in node.all_input_nodes]))
            versions = [t._version for t in inputs]
            env[node] = interpreter.run_node(node)
            for t in _tensors(env[node]):
                opened.setdefault(_storage(t), number)
            for t, version in zip(inputs, versions, strict=True):
                if t._version != version:
                    result.update(range(opened[_storage(t)] + 1, number + 1))
        return result


def bound(network: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Node, Any]:
    """The values of the graph's placeholders."""
    placeholders = [node for node in network.graph.nodes if node.op == "placeholder"]
    values = dict(zip(placeholders, args, strict=False))
    for node in placeholders[len(args) :]:
        if str(node.target) in kwargs:
            values[node] = kwargs[str(node.target)]
        elif node.args:
            values[node] = node.args[0]
    return values


def samples(inputs: Any) -> int:
    """Number of samples: the size of the first tensor's first dimension."""
    first = next((t for t in _tensors(inputs) if t.dim()), None)
    return 1 if first is None else first.shape[0]


def is_batched(value: Any, size: int) -> bool:
    """Whether ``value`` is a tensor of ``size`` samples."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size


def _outputs(network: nn.Module, tensors: Mapping[str, Tensor], inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), _forked(inputs):
        return list(_tensors(functional_call(network, dict(tensors), *inputs)))


def _rows(inputs: Inputs, rows: list[int]) -> Inputs:
    """Copies of the inputs with these samples only."""
    size = samples(inputs)

    def pick(t: Tensor) -> Tensor:
        return t[torch.tensor(rows, device=t.device)] if is_batched(t, size) else t.clone()

    result: Inputs = tree_map_only(Tensor, pick, inputs)
    return result


def _forked(inputs: Inputs) -> Any:
    """Random numbers drawn inside are drawn again outside."""
    devices = {t.device.index for t in _tensors(inputs) if t.is_cuda}
    return torch.random.fork_rng(devices=list(devices))


def _tensors(value: Any) -> Iterator[Tensor]:
    return (t for t in tree_iter(value) if isinstance(t, Tensor))


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()
