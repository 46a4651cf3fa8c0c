"""Leaf modules as code: the call of their constructor that makes the same module again.

Nothing is known of most types. Each argument is looked up in the attribute of its name, a second
module is built from what was found, and compared with the first: what differs is either set
afterwards, or named in an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lwdna.errors import UnsupportedModelError
from lwdna.export.code import Code, call
from lwdna.export.literals import Literals
from lwdna.export.names import Imports, is_identifier

#: Arguments of constructors that only say how tensors are made, or their first values.
_NOT_KEPT = frozenset(("device", "init", "_weight", "_freeze", "_random_samples"))
#: Given by a subclass of the one whose signature it is.
_MODE = "mode"
_SAME = ("kernel_size", "stride", "padding", "dilation", "output_padding")
_BOOKKEEPING = frozenset(vars(nn.Module())) | {
    "_flat_weights",
    "_flat_weight_refs",
    "_flat_weights_names",
}
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Leaf:
    """How a leaf module is made.

    Attributes:
        constructor: the call.
        later: (path below the module, value) of what is set afterwards.
    """

    constructor: Code
    later: tuple[tuple[str, Code], ...] = ()


def leaf(module: nn.Module, path: str, hint: str, imports: Imports) -> Leaf:
    """The code that makes a module anew, with the same attributes and uninitialised values.

    Args:
        module: any module whose arguments can be read off its attributes.
        path: its name in the network, for messages.
        hint: what numbers in the code are called after.
        imports: collects what the code needs.

    Raises:
        UnsupportedModelError: its class cannot be imported, or it cannot be made again.
    """
    where = f"module {path!r} ({type(module).__name__})"
    _check_plain(module, where)
    name = imports.name_of(type(module), where)
    found = _arguments(module, where)
    again = _built(module, found, where)
    literals = Literals(imports, where)
    constructor = call(
        name,
        *(
            (*(() if required else (f"{key}=",)), *literals.of(value, f"{hint}_{key}"))
            for key, required, value in found
        ),
    )
    return Leaf(constructor, tuple(_later(module, again, "", path, imports, where)))


def _check_plain(module: nn.Module, where: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{where} is scripted, and has no Python code that could be called again: build the "
            "network with the module that was scripted"
        )
    if hasattr(module, "parametrizations"):
        raise UnsupportedModelError(
            f"{where} has a parametrization: remove it first "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )


_Found = list[tuple[str, bool, Any]]  # name, whether it goes by position, value


def _arguments(module: nn.Module, where: str) -> _Found:
    """The arguments that are not the default."""
    found: _Found = []
    for p in _signature(type(module)):
        if p.name in _NOT_KEPT or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if p.name == "dtype":
            dtype = _dtype(module)
            if dtype not in (None, torch.float32):
                found.append((p.name, False, dtype))
            continue
        try:
            value = _value(module, p)
        except AttributeError as e:
            if p.default is not p.empty:
                continue
            raise UnsupportedModelError(
                f"{where} does not keep the argument {p.name!r} of its constructor: keep it in "
                f"an attribute self.{p.name}"
            ) from e
        required = p.default is p.empty and p.kind is not p.KEYWORD_ONLY
        if required or not _equal(value, p.default):
            found.append((p.name, required, value))
    return found


def _signature(kind: type[nn.Module]) -> Iterator[inspect.Parameter]:
    """Of the first class that names its arguments; LSTM hands all of them on to RNNBase."""
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        if base is nn.Module:
            return
        if parameters and all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            continue
        own = base is kind
        yield from (p for p in parameters if own or p.name != _MODE)
        return


def _value(module: nn.Module, p: inspect.Parameter) -> Any:
    """What an argument was, by the attribute that keeps it."""
    if isinstance(p.default, bool) and p.name in module._parameters:
        affine = getattr(module, "affine", getattr(module, "elementwise_affine", True))
        return module._parameters[p.name] is not None if affine else p.default
    kind, _, layer = p.name.rpartition("_")
    if layer == "layer" and kind in module._modules:  # act_layer of timm's norms with activations
        found = type(module._modules[kind])
        return None if found is nn.Identity and p.default is None else found
    value = getattr(module, p.name)
    if isinstance(module, nn.modules.conv._ConvNd) and p.name in _SAME:
        alike = isinstance(value, tuple) and len(set(value)) == 1
        return value[0] if alike else value
    return value


def _dtype(module: nn.Module) -> torch.dtype | None:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return next((t.dtype for t in tensors if t.is_floating_point()), None)


def _built(module: nn.Module, found: _Found, where: str) -> nn.Module:
    """A second module from the arguments, on the meta device where values do not matter."""
    positional = [value for _, required, value in found if required]
    named = {key: value for key, required, value in found if not required}
    values = any(True for _ in _unsaved(module))
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu" if values else "meta"):
            return type(module)(*positional, **named)
    except Exception as e:
        arguments = ", ".join(key for key, _, _ in found)
        raise UnsupportedModelError(
            f"{where} cannot be made again from its attributes ({arguments}): "
            f"{type(e).__name__}: {e}"
        ) from e


def _unsaved(module: nn.Module) -> Iterator[Tensor]:
    """Tensors whose values no state_dict holds."""
    for child in module.modules():
        for name, value in (*vars(child).items(), *child._buffers.items()):
            saved = name in child._buffers and name not in child._non_persistent_buffers_set
            if isinstance(value, Tensor) and not saved:
                yield value


def _later(
    old: nn.Module, new: nn.Module, below: str, path: str, imports: Imports, where: str
) -> Iterator[tuple[str, Code]]:
    """What has to be set on the second module to make it the first.

    Args:
        old: the module of the network.
        new: what its constructor made.
        below: where the two stand in the leaf; "" for the leaf itself.
        path: name of the leaf in the network.
        imports: collects what the code needs.
        where: the leaf, for messages.
    """
    _check_tensors(old, new, below, where)
    dot = f"{below}." if below else ""
    for name in sorted(_attributes(old) | _attributes(new)):
        a, b = vars(old).get(name, _Absent), vars(new).get(name, _Absent)
        if _equal(a, b) or (a is _Absent and _is_torch(old)) or (b is _Absent and _is_torch(old)):
            continue
        if not _settable(a) or not is_identifier(name):
            raise UnsupportedModelError(
                f"{where} differs from what its constructor makes: {dot}{name} is {a!r}, and "
                f"would be {b!r}. Keep what it is made from in attributes of the arguments' names"
            )
        yield f"{dot}{name}", Literals(imports, where).of(a, name)
    if list(old._modules) != list(new._modules):
        raise UnsupportedModelError(
            f"{where} has the children {list(old._modules)}, and its constructor would make "
            f"{list(new._modules)}"
        )
    for name, child in old._modules.items():
        other = new._modules[name]
        if child is None or other is None or type(child) is not type(other):
            if not is_identifier(name):
                raise UnsupportedModelError(f"{where} has another child {name!r} than when made")
            inner = (
                Leaf(("None",)) if child is None else leaf(child, f"{path}.{name}", name, imports)
            )
            yield f"{dot}{name}", inner.constructor
            yield from ((f"{dot}{name}.{rest}", code) for rest, code in inner.later)
        else:
            yield from _later(child, other, f"{dot}{name}", path, imports, where)


class _Absent:
    """Stands for an attribute that is not there."""


def _attributes(module: nn.Module) -> set[str]:
    return {n for n, v in vars(module).items() if n not in _BOOKKEEPING and not _is_tensor(v)}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_torch(module: nn.Module) -> bool:
    """Whether an attribute more or less means nothing: no layer of torch reads foreign ones."""
    return type(module).__module__.startswith("torch.nn.")


def _settable(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_settable, value))
    return isinstance(value, _PLAIN)


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    try:
        return bool(a == b)
    except Exception:  # arrays, for one, have no truth
        return False


def _check_tensors(old: nn.Module, new: nn.Module, below: str, where: str) -> None:
    """Parameters and buffers agree; so do the values of those that no state_dict holds."""
    for kind in ("_parameters", "_buffers"):
        mine, other = getattr(old, kind), getattr(new, kind)
        facts = [
            {n: None if t is None else (tuple(t.shape), t.dtype) for n, t in side.items()}
            for side in (mine, other)
        ]
        if facts[0] != facts[1]:
            raise UnsupportedModelError(
                f"{where} would have the tensors {facts[1]} when made again, and has {facts[0]}"
                + (f" at {below}" if below else "")
            )
    if old._non_persistent_buffers_set != new._non_persistent_buffers_set:
        raise UnsupportedModelError(f"{where} keeps other buffers in the state_dict than when made")
    plain = {n: v for n, v in vars(old).items() if isinstance(v, Tensor)}
    unsaved = {n: old._buffers[n] for n in old._non_persistent_buffers_set}
    for name, tensor in {**plain, **unsaved}.items():
        made = getattr(new, name, None)
        if tensor is None or made is None:
            same = tensor is made
        else:
            same = not tensor.is_meta and torch.equal(tensor.detach().cpu(), made.detach().cpu())
        if not same:
            raise UnsupportedModelError(
                f"{where} has a tensor {name!r} that no state_dict holds, and its constructor "
                "makes another: register it as a persistent buffer"
            )
