"""Follows channel vectors through every operator below autograd.

Composite operators decompose by themselves; each primitive one follows its channel rule
(``rules/``); an operator without a rule freezes what touches it, and the reason is kept.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lwdna.channels import ChannelSpace, Ids, Slot, Vector, Vectors
from lwdna.cost import Term, TermKind
from lwdna.errors import AnalysisError
from lwdna.fx_passes.composites import primitive
from lwdna.fx_passes.kernels import KERNELS
from lwdna.fx_passes.members import named_tensors
from lwdna.fx_passes.rules import OpCall, rule_for
from lwdna.tensor_channels import TensorChannels, WeightRole
from lwdna.trees import tree_leaves


class ChannelMode(TorchDispatchMode):
    """Follows channel vectors through every operator; implements ``rules.registry.Recorder``.

    Args:
        root: the module whose parameters and buffers open slots, on the device the graph runs on.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.space = ChannelSpace()
        self.node = ""
        self.counting = True  # whether what runs now runs in evaluation
        self.terms: list[Term] = []
        self.facts: dict[str, dict[str, Vector]] = {}
        self.roles: dict[str, WeightRole] = {}
        self.tensors: dict[str, Vectors] = {}
        self.made: list[Ids] = []  # channels that weights put out, be they parameters or not
        parameters, buffers = named_tensors(root)
        self._names = {id(t): n for n, t in (*parameters.items(), *buffers.items())}
        self._buffers = set(buffers)
        self._known: dict[int, Vectors] = {}
        self._watched: dict[int, Tensor | weakref.ref[Tensor]] = {}
        # A buffer is "": no activation, but no parameter either.
        self._origins: dict[int, str] = {id(t): "" for t in buffers.values()}
        self._origins.update({id(t): n for n, t in parameters.items()})

    def vectors(self, tensor: Tensor) -> Vectors:
        """Channel vectors of a tensor; those of a parameter are opened when it is first met."""
        found = self._known.get(id(tensor))
        if found is None:
            found = self._know(tensor, self._open(tensor))
        return found

    def _know(self, tensor: Tensor, vectors: Vectors) -> Vectors:
        self._known[id(tensor)] = vectors
        self._watch(tensor)
        return vectors

    def _watch(self, tensor: Tensor) -> None:
        """See to it that what is known by a tensor's id is not taken for another tensor's.

        An id is only unique while its object lives: a tensor on the meta device is kept, one that
        holds memory is forgotten when it ends.
        """
        key = id(tensor)
        if key not in self._watched:
            forget = partial(self._forget, key)
            self._watched[key] = tensor if tensor.is_meta else weakref.ref(tensor, forget)

    def _forget(self, key: int, _: object) -> None:
        for kept in (self._known, self._origins, self._watched):
            kept.pop(key, None)

    def knows(self, tensor: Tensor) -> bool:
        """Whether the tensor has been met already."""
        return id(tensor) in self._known

    def channels(self, tensor: Tensor) -> TensorChannels:
        """Shape, vectors and dtype of a tensor."""
        return TensorChannels(tuple(tensor.shape), self.vectors(tensor), tensor.dtype)

    def _open(self, tensor: Tensor) -> Vectors:
        name = self._names.get(id(tensor))
        if name is None or not (tensor.is_floating_point() or tensor.dtype == torch.bool):
            return (None,) * tensor.dim()  # integers are addresses
        kind: Any = "buffer" if name in self._buffers else "parameter"
        opened = tuple(
            self.space.fresh(n, Slot(name, d, kind)) if n > 1 else None
            for d, n in enumerate(tensor.shape)
        )
        self.tensors[name] = opened
        return opened

    def set_vectors(self, tensor: Tensor, vectors: Vectors) -> None:
        """Set the vectors of an operator's result, checked against its shape."""
        fits = len(vectors) == tensor.dim() and all(
            v is None or len(v) == n for v, n in zip(vectors, tensor.shape, strict=True)
        )
        if not fits:
            lengths = [None if v is None else len(v) for v in vectors]
            raise AnalysisError(
                f"node {self.node!r}: the rule gives vectors of lengths {lengths} for a result of "
                f"shape {tuple(tensor.shape)}; the rule of this operator is wrong"
            )
        self._know(tensor, vectors)

    def origin(self, tensor: Tensor) -> str | None:
        """Name of the parameter a tensor is computed from, if it depends on no activation."""
        return self._origins.get(id(tensor)) or None

    def constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is computed from buffers alone."""
        return self._origins.get(id(tensor)) == ""

    def add_term(self, kind: TermKind, coefficient: int, vectors: Vectors) -> None:
        """Record a cost term of the current node."""
        if not self.counting:
            return
        self.terms.append(
            Term(kind, coefficient, tuple(v for v in vectors if v is not None), self.node)
        )

    def add_fact(self, key: str, vector: Vector) -> None:
        """Record an operator quantity that is the length of a vector."""
        self.facts.setdefault(self.node, {})[key] = vector

    def add_role(self, weight: Tensor, out_dim: int, in_dim: int, kernel: int) -> None:
        """Record which dimensions of the parameter behind ``weight`` are outputs and inputs."""
        name, vectors = self.origin(weight), self.vectors(weight)
        made = vectors[out_dim]
        if made is not None:
            self.made.append(made)
        if name is None:
            return
        own = self.tensors.get(name, ())
        out, into = vectors[out_dim], vectors[in_dim]
        if len(own) == 2 and weight.dim() > 2:  # a matrix that a batched product saw as a batch
            out_dim, in_dim = 0, 1
        elif len(own) != weight.dim():
            return
        for first, second in ((out_dim, in_dim), (in_dim, out_dim)):  # or through a transpose
            matched, other = (out, first) if out is not None else (into, second)
            reached = own[second]
            whole = into is None or (reached is not None and len(into) == len(reached))
            if whole and np.array_equal(matched, own[other]):  # type: ignore[arg-type]
                role = WeightRole(first, second, kernel, node=self.node)
                self.roles.setdefault(name, role)
                return

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        func, args, kwargs = primitive(func, args, kwargs or {})
        rule = rule_for(func)
        if rule is None:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        op = OpCall(func, args, kwargs, KERNELS(func, args, kwargs), self)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if rule is None:
            _freeze_unknown(op, inputs)
        else:
            rule(op, *args, **kwargs)
        self._pass_origin(inputs, op.out)
        return self.finish(op)

    def finish(self, op: OpCall) -> Any:
        """Result of an operator; a masked run replaces it (see ``verify``)."""
        return op.out

    def _pass_origin(self, inputs: list[Tensor], out: Any) -> None:
        names = [self._origins.get(id(t)) for t in inputs]
        if not inputs or any(name is None for name in names):
            return
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self._origins.setdefault(id(t), next((n for n in names if n), ""))
                self._watch(t)


def _freeze_unknown(op: OpCall, inputs: list[Tensor]) -> None:
    for t in inputs:
        op.freeze_all(t, f"operator {op.func} has no channel rule")
    for t in tree_leaves(op.out):
        if isinstance(t, Tensor):
            op.give((None,) * t.dim(), t)
