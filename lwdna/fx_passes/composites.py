"""Composite operators whose decomposition is one call, written out.

``OpOverload.decompose`` comes to the same, by way of torch's dispatcher and of its Python layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload

aten = torch.ops.aten

#: A call of an operator.
OperatorCall = tuple[OpOverload, tuple[Any, ...], Mapping[str, Any]]
#: Spatial dimensions.
_CONVOLUTIONS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}


def primitive(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> OperatorCall:
    """The call that this one consists of; itself where it is none of these.

    Source: torch's native/Convolution.cpp (conv1d ... call convolution; an input without a batch
    is given one, which is left to torch here).
    """
    rank = _CONVOLUTIONS.get(func)
    if rank is None or kwargs or args[0].dim() != rank + 2:
        return func, args, kwargs
    given = (*args, *(a.default_value for a in func._schema.arguments[len(args) :]))
    *options, groups = given
    return aten.convolution.default, (*options, False, [0] * rank, groups), kwargs
