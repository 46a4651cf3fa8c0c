"""Where in the model's own module tree the nodes of a graph come from."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from lwdna.fx_passes.module import CalledFunction
from lwdna.fx_passes.regions import graphs


def places(network: nn.Module) -> dict[str, str]:
    """Node -> path of the module that it calls or whose code it is; of a part, ``"path.node"``.

    Args:
        network: a captured network.
    """
    return {
        _joined(path, node.name): _joined(path, _place(gm, node))
        for path, gm in graphs(network).items()
        for node in gm.graph.nodes
    }


def _place(gm: GraphModule, node: Node) -> str:
    target = str(node.target)
    if node.op == "call_module" and not isinstance(gm.get_submodule(target), CalledFunction):
        return target
    place: str = node.meta.get("module", "")
    return place


def _joined(path: str, name: str) -> str:
    return ".".join(filter(None, (path, name)))
