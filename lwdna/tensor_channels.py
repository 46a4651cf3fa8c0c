"""What the analysis knows of single tensors: the channels of activations, the axes of weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from lwdna.channels import Vectors
from lwdna.copies import Resizing
from lwdna.trees import tree_leaves


@dataclass(frozen=True)
class TensorChannels:
    """Shape, channel vectors and dtype of one activation."""

    shape: tuple[int, ...]
    vectors: Vectors
    dtype: torch.dtype = torch.float32

    def empty(self) -> torch.Tensor:
        """A meta tensor of this shape and dtype."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def resized(self, resizing: Resizing) -> TensorChannels:
        """The same with its new shape, and no vectors."""
        shape = (
            n if v is None else resizing.length(v)
            for n, v in zip(self.shape, self.vectors, strict=True)
        )
        return replace(self, shape=tuple(shape), vectors=(None,) * len(self.shape))


def channels_in(tree: Any) -> list[TensorChannels]:
    """The :class:`TensorChannels` of a pytree, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, TensorChannels)]


@dataclass(frozen=True)
class WeightRole:
    """Which dimensions of a weight are its outputs and inputs (conv, transposed conv, linear).

    Attributes:
        out_dim: dimension of the output channels.
        in_dim: dimension of the input channels (per group; of all groups for a transposed
            convolution).
        kernel: number of kernel positions (1 for linear).
        classifier: True if the outputs are the network's outputs.
        node: the graph node that first uses the weight.
    """

    out_dim: int
    in_dim: int
    kernel: int
    classifier: bool = False
    node: str = ""
