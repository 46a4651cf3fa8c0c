"""The values of a trace on meta tensors: what its proxies answer Python with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lwdna.errors import CaptureError
from lwdna.fx_passes.kernels import MetaMode
from lwdna.fx_passes.layouts import meta_like
from lwdna.fx_passes.proxy import is_proxy, source_line
from lwdna.trees import tree_map, tree_map_only


class Evaluation:
    """Runs nodes on the hints of their arguments.

    Args:
        kernels: evaluates operators; the traces of one network share it.

    Attributes:
        running: whether a node is being run, so that what is called now is not recorded.
    """

    def __init__(self, kernels: MetaMode) -> None:
        self._kernels = kernels
        self.running = False

    def of(self, node: Node, function: Callable[..., Any] | None, args: Any, kwargs: Any) -> Any:
        """What a node that calls something returns.

        Args:
            node: the node.
            function: what it calls; None for a method.
            args: its positional arguments, with proxies.
            kwargs: its named arguments, with proxies.

        Raises:
            CaptureError: it does not run on meta tensors.
        """
        args, kwargs = _hints(args), _hints(kwargs)
        if function is None:
            function, args = getattr(args[0], str(node.target)), args[1:]
        self.running = True
        try:
            with torch.inference_mode(), self._kernels:
                return tree_map_only(Tensor, to_meta, function(*args, **kwargs))
        except CaptureError:
            raise
        except Exception as e:
            raise CaptureError(
                f"{node.format_node()} cannot be evaluated on meta tensors at {source_line()}: "
                f"{type(e).__name__}: {e}. If it reads a tensor's values, the network is not one "
                "static graph; otherwise check the example input."
            ) from e
        finally:
            self.running = False


def to_meta(value: Any) -> Any:
    """A tensor like this one on the meta device; any other value as it is."""
    if isinstance(value, Tensor) and value.device.type != "meta":
        return meta_like(value)
    return value


def _hints(tree: Any) -> Any:
    def hint(value: Any) -> Any:
        if isinstance(value, slice):
            return slice(*(hint(v) for v in (value.start, value.stop, value.step)))
        if is_proxy(value):
            return value.hint
        return to_meta(value)

    return tree_map(hint, tree)
