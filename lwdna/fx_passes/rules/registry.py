"""The registry of channel rules, and what a rule sees of one operator call."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket

from lwdna.channels import ChannelSpace, Ids, Slot, Vector, Vectors
from lwdna.cost import TermKind


class Recorder(Protocol):
    """What the analysis offers to a rule; see ``analyse.ChannelMode`` for the meanings."""

    space: ChannelSpace
    node: str

    def vectors(self, tensor: Tensor) -> Vectors:
        """Channel vectors of a tensor."""

    def set_vectors(self, tensor: Tensor, vectors: Vectors) -> None:
        """Set the vectors of a result."""

    def origin(self, tensor: Tensor) -> str | None:
        """Parameter that a tensor is computed from, without activations."""

    def constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is computed from buffers alone."""

    def add_term(self, kind: TermKind, coefficient: int, vectors: Vectors) -> None:
        """Record a cost term."""

    def add_fact(self, key: str, vector: Vector) -> None:
        """Record a quantity that is a vector's length."""

    def add_role(self, weight: Tensor, out_dim: int, in_dim: int, kernel: int) -> None:
        """Record which dimensions of a weight are outputs and inputs."""


@dataclass
class Mixing:
    """An operator that mixes channels: what removing some of them means for it.

    ``how`` is the neutral element that the removed entries become: ``"zero"`` (of sums), ``"one"``
    (of products), ``"-inf"`` (they lose every maximum and get no softmax weight), ``"inf"`` (they
    lose every minimum); or ``"kept"`` (the operator sees the kept entries only).
    """

    tensor: Tensor
    dim: int
    how: str


@dataclass
class OpCall:
    """One call of an operator, or of a leaf module, during the analysis.

    Attributes:
        func: the operator overload, or the module.
        args: positional arguments.
        kwargs: keyword arguments.
        out: what it returned (tensors on the meta device, or real ones in a masked run).
        mixing: filled by the rule: where channels are mixed with one another.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    recorder: Recorder
    mixing: list[Mixing] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Operator name without overload, e.g. ``"convolution"``; the type of a module."""
        if isinstance(self.func, nn.Module):
            return type(self.func).__name__
        name: str = self.func._schema.name.split("::")[-1]
        return name

    @property
    def space(self) -> ChannelSpace:
        """The ids and their couplings."""
        return self.recorder.space

    @property
    def node(self) -> str:
        """Name of the graph node that the call belongs to."""
        return self.recorder.node

    def argument(self, name: str) -> Any:
        """An argument by its name in the operator's schema; its default if it was not given.

        None if this overload has no such argument.
        """
        for position, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                if position < len(self.args) and not argument.kwarg_only:
                    return self.args[position]
                return self.kwargs.get(name, argument.default_value)
        return None

    def vec(self, tensor: Tensor) -> Vectors:
        """Channel vectors of a tensor, one per dimension."""
        return self.recorder.vectors(tensor)

    def give(self, vectors: Vectors, tensor: Tensor | None = None) -> None:
        """Set the vectors of the output (or of ``tensor``)."""
        self.recorder.set_vectors(self.out if tensor is None else tensor, tuple(vectors))

    def couple(self, a: Vector, b: Vector) -> None:
        """These two dimensions live and die together."""
        self.space.couple(a, b, self.node, self.name)

    def freeze(self, vector: Vector, reason: str) -> None:
        """This dimension cannot change."""
        self.space.freeze(vector, reason, self.node)

    def freeze_all(self, tensor: Tensor, reason: str) -> None:
        """No dimension of this tensor can change."""
        for vector in self.vec(tensor):
            self.freeze(vector, reason)

    def freeze_addresses(self, vector: Vector, factors: Sequence[Tensor]) -> None:
        """A sum over a parameter's entries that constants weight looks up positions in it."""
        constants = [t for t in factors if self.recorder.constant(t)]
        parameters = [t for t in factors if self.recorder.origin(t) is not None]
        if constants and parameters and len(constants) + len(parameters) == len(factors):
            self.freeze(vector, "its entries are addressed by a constant")

    def free(self, n: int, dim: int = 0) -> Ids:
        """New ids for a dimension whose content does not depend on the index."""
        return self.space.fresh(n, Slot(self.node, dim, "free"))

    def mix(self, tensor: Tensor, dim: int, how: str) -> None:
        """Declare that the operator mixes the entries of ``dim`` of ``tensor``."""
        if self.vec(tensor)[dim] is not None:
            self.mixing.append(Mixing(tensor, dim % tensor.dim(), how))


Rule = Callable[..., None]
#: By qualified name, which an operator has before the library that defines it is imported.
_RULES: dict[str, Rule] = {}
_QUALIFIED = re.compile(r"\w+::\w+")


def rule(*operators: OpOverloadPacket | str) -> Callable[[Rule], Rule]:
    """Register a channel rule for operators.

    The rule is called as ``rule(op, *args, **kwargs)`` with the operator's own arguments; it says
    what ties their channels (:meth:`OpCall.couple`, :meth:`OpCall.freeze`, :meth:`OpCall.mix`) and
    which channels the result has (:meth:`OpCall.give`).

    Args:
        operators: each as ``torch.ops.library.name``, or as ``"library::name"``, for which the
            library need not be imported; all overloads.

    Raises:
        TypeError: not an operator packet, and no name.
        ValueError: a name of another form, or the operator has a rule already.
    """
    names = [_qualified(operator) for operator in operators]

    def register(function: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"{name} already has a rule: {_RULES[name].__qualname__}")
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _qualified(operator: OpOverloadPacket | str) -> str:
    if isinstance(operator, str):
        if not _QUALIFIED.fullmatch(operator):
            raise ValueError(
                f"{operator!r} is no operator's name: write 'library::name', without an overload"
            )
        return operator
    if not isinstance(operator, OpOverloadPacket):
        raise TypeError(
            f"{operator!r} is a {type(operator).__name__}: a rule is for torch.ops.library.name "
            "or 'library::name', without an overload"
        )
    return operator._qualified_op_name


def registered() -> dict[str, Rule]:
    """All rules by the qualified name of the operator, ``"aten::add"``."""
    return dict(_RULES)


def rule_for(func: OpOverload) -> Rule | None:
    """The rule of an operator: its own, or the shared pointwise rule by tag."""
    found = _RULES.get(func.overloadpacket._qualified_op_name)
    if found is None and torch.Tag.pointwise in func.tags:
        found = _RULES["aten::add"]
    return found


def dim_of(dim: int, rank: int) -> int:
    """Non-negative dimension."""
    return dim % rank if rank else 0


def dims_of(dims: Any, rank: int) -> set[int]:
    """Non-negative dimensions of a ``dim`` argument: one, several, or (None, empty) all."""
    if dims is None or dims == []:
        return set(range(rank))
    return {dim_of(d, rank) for d in (dims if isinstance(dims, (list, tuple)) else [dims])}
