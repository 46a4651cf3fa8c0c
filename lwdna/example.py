"""Example inputs in JSON's types: what a network was analysed on, to be analysed on it again.

Of tensors without values, shape and dtype are all there is. A network that was captured in parts
runs on real tensors: small ones are kept as they are, of large ones (images) only the range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite, prod
from typing import Any

import torch
from torch import Tensor

from lwdna.errors import DnaError

#: Boxes and labels have fewer entries, images have more.
_KEPT = 256
#: Entries of a tensor that is made: 256 MiB of float32.
_MOST_ENTRIES = 2**26
_ATOMS = (bool, int, float, str, type(None))
_OTHER = "other"
#: What reading a wrong description raises; RecursionError is a RuntimeError.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError)


def described(value: Any) -> Any:
    """Example inputs (a pytree with tensors) in JSON's types, to be given to :func:`remade`.

    Values of other types are noted by name only, and cannot be made again.
    """
    if isinstance(value, Tensor):
        return _described_tensor(value)
    if type(value) in (list, tuple):
        return {type(value).__name__: [described(entry) for entry in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: described(entry) for key, entry in value.items()}}
    if type(value) in _ATOMS and (type(value) is not float or isfinite(value)):
        return value
    return {_OTHER: type(value).__name__}


def _described_tensor(t: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {"tensor": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
    if t.is_meta:
        return found
    if t.is_complex() or not bool(t.isfinite().all()):
        return {_OTHER: "Tensor with complex or infinite entries"}
    if t.numel() <= _KEPT:
        return {**found, "values": t.flatten().tolist()}
    return {**found, "range": [t.min().item(), t.max().item()]}


def remade(description: Any) -> Any:
    """The inputs that were described; those of which only the range was kept are drawn from it.

    The draws are uniform, from a seed of their own: the global random state is not touched.

    Raises:
        DnaError: no description, or one of a type that cannot be made again.
    """
    try:
        return _remade(description)
    except _UNREADABLE as e:
        raise DnaError(
            f"the DNA's example inputs cannot be made again ({type(e).__name__}: {e}): pass "
            "example_inputs=..., inputs like those that the network was shrunk on"
        ) from e


def _remade(d: Any) -> Any:
    if type(d) in _ATOMS:
        return d
    if "tensor" in d:
        return _remade_tensor(**d)
    (kind,) = d
    if kind == "dict":
        return {key: _remade(entry) for key, entry in d[kind].items()}
    makers: dict[str, Callable[..., Any]] = {"list": list, "tuple": tuple}
    if kind not in makers:
        raise ValueError(f"they hold a {d[kind] if kind == _OTHER else kind}"[:80])
    return makers[kind](_remade(entry) for entry in d[kind])


def _remade_tensor(
    tensor: list[int],
    dtype: str,
    values: list[float] | None = None,
    range: list[float] | None = None,
) -> Tensor:
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype) or not all(type(n) is int and n >= 0 for n in tensor):
        raise ValueError(f"a tensor of shape {tensor} and dtype {dtype}")
    if values is None and range is None:
        return torch.empty(tensor, dtype=kind, device="meta")
    if prod(tensor) > _MOST_ENTRIES:
        raise ValueError(f"a tensor of shape {tensor} is larger than any example")
    if values is not None:
        return torch.tensor(values, dtype=kind).reshape(tensor)
    assert range is not None
    least, most = range
    generator = torch.Generator().manual_seed(0)
    if kind.is_floating_point:
        return (torch.rand(tensor, generator=generator) * (most - least) + least).to(kind)
    drawn = torch.randint(int(least), int(most) + 1, tensor, generator=generator)
    return drawn.to(kind)


def shapes_in(description: Any) -> list[tuple[int, ...]]:
    """Shapes of all tensors in a description, in order.

    Raises:
        DnaError: no description.
    """
    try:
        return list(_shapes(description))
    except _UNREADABLE as e:
        raise DnaError(f"no example inputs: {type(e).__name__}: {e}") from e


def _shapes(d: Any) -> Iterator[tuple[int, ...]]:
    if type(d) in _ATOMS:
        return
    if "tensor" in d:
        yield tuple(d["tensor"])
        return
    ((kind, inner),) = d.items()
    if kind != _OTHER:
        for entry in inner.values() if kind == "dict" else inner:
            yield from _shapes(entry)
