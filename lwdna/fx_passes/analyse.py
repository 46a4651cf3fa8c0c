"""Analyse: GraphModule -> ChannelGraph, by running the graph once on meta tensors.

A dispatch mode sees every ATen operator below autograd. Composite operators decompose by
themselves; each primitive one follows its channel rule (``rules/``); an operator without a rule
freezes what touches it, and the reason is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lwdna.channels import ChannelSpace, Policy, Slot, Vector, Vectors
from lwdna.choices import resolve
from lwdna.cost import Term, TermKind
from lwdna.errors import AnalysisError, LwdnaError
from lwdna.fx_passes import modules
from lwdna.fx_passes._base import captured, graph_pass
from lwdna.fx_passes.kernels import MetaKernels
from lwdna.fx_passes.modes import alternatives
from lwdna.fx_passes.module import meta_twin, tree_of
from lwdna.fx_passes.outputs import REASON, Outputs, check_outputs, freeze_outputs
from lwdna.fx_passes.regions import tensors_in
from lwdna.fx_passes.rules import OpCall, rule_for
from lwdna.fx_passes.trees import tree_leaves, tree_map
from lwdna.graph import ChannelGraph, TensorChannels, WeightRole
from lwdna.graph_builder import build_graph
from lwdna.inputs import as_arguments

#: The activations that the paper's counter sees: objects of these classes (METHOD §4 names the
#: first; the authors' released counter has all five).
_COUNTED = (nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, nn.ELU)


class ChannelMode(TorchDispatchMode):
    """Follows channel vectors through every operator; implements ``rules.registry.Recorder``.

    Args:
        root: the module whose parameters and buffers open slots, on the device the graph runs on.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.space = ChannelSpace()
        self.node = ""
        self.terms: list[Term] = []
        self.facts: dict[str, dict[str, Vector]] = {}
        self.roles: dict[str, WeightRole] = {}
        self.tensors: dict[str, Vectors] = {}
        self._run = MetaKernels()
        self._names = {id(t): n for n, t in (*root.named_parameters(), *root.named_buffers())}
        self._buffers = {name for name, _ in root.named_buffers()}
        # The tensor is kept with its vectors: an id is only unique while its object lives.
        self._known: dict[int, tuple[Tensor, Vectors]] = {}
        # A buffer is "": no activation, but no parameter either.
        self._origins: dict[int, str] = {id(t): "" for t in root.buffers()}
        self._origins.update({id(t): n for n, t in root.named_parameters()})

    def vectors(self, tensor: Tensor) -> Vectors:
        """Channel vectors of a tensor; those of a parameter are opened when it is first met."""
        found = self._known.get(id(tensor))
        if found is None:
            found = (tensor, self._open(tensor))
            self._known[id(tensor)] = found
        return found[1]

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
        self._known[id(tensor)] = (tensor, vectors)

    def origin(self, tensor: Tensor) -> str | None:
        """Name of the parameter a tensor is computed from, if it depends on no activation."""
        return self._origins.get(id(tensor)) or None

    def add_term(self, kind: TermKind, coefficient: int, vectors: Vectors) -> None:
        """Record a cost term of the current node."""
        self.terms.append(
            Term(kind, coefficient, tuple(v for v in vectors if v is not None), self.node)
        )

    def add_fact(self, key: str, vector: Vector) -> None:
        """Record an operator quantity that is the length of a vector."""
        self.facts.setdefault(self.node, {})[key] = vector

    def add_role(self, weight: Tensor, out_dim: int, in_dim: int, kernel: int) -> None:
        """Record which dimensions of the parameter behind ``weight`` are outputs and inputs."""
        name = self.origin(weight)
        if name is None:
            return
        vectors, own = self.vectors(weight), self.tensors.get(name, ())
        out, into = vectors[out_dim], vectors[in_dim]
        if len(own) == 2 and weight.dim() > 2:  # a matrix that a batched product saw as a batch
            out_dim, in_dim = 0, 1
        elif len(own) != weight.dim():
            return
        for first, second in ((out_dim, in_dim), (in_dim, out_dim)):  # or through a transpose
            matched, other = (out, first) if out is not None else (into, second)
            if np.array_equal(matched, own[other]):  # type: ignore[arg-type]
                role = WeightRole(first, second, kernel, node=self.node)
                self.roles.setdefault(name, role)
                return

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = rule_for(func)
        if rule is None:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        op = OpCall(func, args, kwargs, self._run(func, args, kwargs), self)
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


def _freeze_unknown(op: OpCall, inputs: list[Tensor]) -> None:
    for t in inputs:
        op.freeze_all(t, f"operator {op.func} has no channel rule")
    for t in tree_leaves(op.out):
        if isinstance(t, Tensor):
            op.give((None,) * t.dim(), t)


class ChannelInterpreter(torch.fx.Interpreter):
    """Runs a graph under a :class:`ChannelMode` and notes what every node returns.

    Args:
        root: the module tree that the graph's targets name.
        graph: the graph of a captured network.
        mode: follows the channels; made for ``root`` or for a network that it is a part of.
        prefix: of the nodes' names, where the graph is a part of a network.
    """

    def __init__(self, root: nn.Module, graph: Graph, mode: ChannelMode, prefix: str = "") -> None:
        super().__init__(root, graph=graph)
        self.mode, self.prefix = mode, prefix
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node and record shapes and vectors of its result."""
        self.mode.node = self.prefix + n.name
        result = super().run_node(n)
        if n.op == "placeholder":
            for x in tensors_in(result):
                self._open_input(x)
        if n.op == "call_module":
            self._module_constraints(n, result)
        pair = alternatives(n)
        if pair is not None:
            self._unite_modes(n, *map_arg(pair, self.env.__getitem__))
        self.values[self.mode.node] = tree_map(self._channels, result)
        return result

    def args_of(self, n: Node) -> Any:
        """Evaluated arguments of a node."""
        return self.fetch_args_kwargs_from_env(n)

    def _open_input(self, x: Tensor) -> None:
        """Channels that come from nowhere are the image's; of a part, they may come with ids."""
        if x.dim() > 1 and x.shape[1] > 1 and not self.mode.knows(x):
            ids = self.mode.space.fresh(x.shape[1], Slot(self.mode.node, 1, "input"))
            self.mode.space.freeze(ids, "network input", self.mode.node)
            self.mode.set_vectors(x, (None, ids, *(None,) * (x.dim() - 2)))

    def _module_constraints(self, n: Node, result: Any) -> None:
        module = self.fetch_attr(str(n.target))
        args, kwargs = self.args_of(n)
        modules.couple(module, OpCall(module, args, kwargs, result, self.mode))
        reason = modules.unsupported(module)
        if reason is not None:
            self._freeze(
                (args, kwargs, result, list(module.parameters()), list(module.buffers())), reason
            )

    def _unite_modes(self, n: Node, evaluated: Any, trained: Any) -> None:
        """What is chosen by mode has the same channels in both modes, or fixed ones."""
        trees = tree_flatten(evaluated), tree_flatten(trained)
        pairs = list(zip(trees[0][0], trees[1][0], strict=False))
        if trees[0][1] != trees[1][1] or any(_shape(a) != _shape(b) for a, b in pairs):
            if all(user.op == "output" for user in n.users):
                self._freeze(trained, REASON)  # those of evaluation mode are on their way there
            else:
                self._freeze((evaluated, trained), "its shape depends on the mode")
            return
        for a, b in pairs:
            if isinstance(a, Tensor):
                for v, w in zip(self.mode.vectors(a), self.mode.vectors(b), strict=True):
                    self.mode.space.couple(v, w, self.mode.node, "chosen by mode")

    def _freeze(self, tree: Any, reason: str) -> None:
        for t in tree_leaves(tree):
            if isinstance(t, Tensor):
                for v in self.mode.vectors(t):
                    self.mode.space.freeze(v, reason, self.mode.node)

    def _channels(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.mode.channels(value)
        return value


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else None


def single_batch(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first sample of every argument of ``forward``, on the meta device."""

    def first(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty_like(value[:1] if value.dim() else value, device="meta")
        return value

    return tuple(tree_map(first, value) for value in arguments)


@graph_pass(requires=(captured,))
def analyse(
    gm: nn.Module, example_inputs: Any, *, policy: Policy = "auto", outputs: Outputs = "fixed"
) -> ChannelGraph:
    """Find the channel units, groups, couplings and costs of a captured network.

    Args:
        gm: a captured network (see :func:`lwdna.capture`); it is not changed.
        example_inputs: ``forward``'s arguments, see :func:`lwdna.inputs.as_arguments`. Only shapes
            and dtypes matter; costs are for batch size 1 at this resolution. A network that was
            captured in parts runs on them: see :func:`lwdna.fx_passes.region_follow.follow`.
        policy: which axis of a choice point may change; see
            :func:`lwdna.choices.choose_axis`.
        outputs: ``"fixed"``: outputs keep their shapes. ``"free"``: the channels of outputs that
            are feature maps or token sequences (three dimensions or more) may change, as those of
            a backbone whose user adapts to them; see :mod:`lwdna.fx_passes.outputs` for which
            dimension that is. Or a mapping from output-name pattern (``fnmatch``; ``"0"``,
            ``"layer4"``, ``"output"`` for a lone one) to one of these; what matches nothing is
            fixed.

    Returns:
        The channel graph.

    Raises:
        ValueError: ``policy`` or ``outputs`` is none, or frees what is no feature map.
        AnalysisError: an operator's result contradicts its rule, or the network does not run on
            a batch of one.

    Source: DESIGN "Analyse"; torch.utils._python_dispatch.
    """
    check_outputs(outputs)
    if not isinstance(gm, GraphModule):
        from lwdna.fx_passes.region_probe import analyse_parts  # it builds on this module

        return analyse_parts(gm, as_arguments(gm, example_inputs), policy=policy, outputs=outputs)
    twin = meta_twin(tree_of(gm)).eval()
    mode = ChannelMode(twin)
    interpreter = ChannelInterpreter(twin, gm.graph, mode)
    relus = watch_relus(twin, mode)
    inputs = single_batch(as_arguments(gm, example_inputs))
    with torch.inference_mode(), torch.device("meta"), mode:
        try:
            interpreter.run(*inputs)
        except LwdnaError:
            raise
        except Exception as e:
            raise AnalysisError(
                f"node {mode.node!r} fails on a batch of one sample on the meta device, on which "
                f"channels are analysed: {type(e).__name__}: {e}"
            ) from e
    freeze_outputs(mode.space, interpreter.values["output"], outputs)
    return close_graph(mode, twin, interpreter.values, inputs, relus, policy)


def close_graph(
    mode: ChannelMode,
    twin: nn.Module,
    values: Mapping[str, Any],
    inputs: tuple[Any, ...],
    relus: Mapping[int, TensorChannels],
    policy: Policy,
    calls: Mapping[str, tuple[tuple[Any, ...], ...]] | None = None,
) -> ChannelGraph:
    """The channel graph of a network that has run under ``mode``.

    Args:
        mode: with its outputs frozen.
        twin: the network that ran.
        values: node name -> pytree of :class:`TensorChannels`.
        inputs: what it ran on.
        relus: see :func:`watch_relus`.
        policy: decides the choice points.
        calls: see :class:`lwdna.graph.ChannelGraph`.
    """
    for out in relus.values():
        fixed = prod(n for n, v in zip(out.shape, out.vectors, strict=True) if v is None)
        mode.node = ""
        mode.add_term("relu", fixed, out.vectors)
    resolve(mode.space, policy)
    _close_kernels(mode)
    _param_terms(mode, twin)
    return build_graph(
        mode.space,
        mode.tensors,
        mode._buffers,
        mode.terms,
        values,
        mode.facts,
        _with_classifiers(mode),
        inputs,
        calls,
    )


def watch_relus(root: nn.Module, mode: ChannelMode) -> dict[int, TensorChannels]:
    """The last output of every object of a counted activation, for the paper's counter."""
    last: dict[int, TensorChannels] = {}

    def hook(module: nn.Module) -> Callable[..., None]:
        def note(_m: nn.Module, _args: Any, out: Tensor) -> None:
            last[id(module)] = mode.channels(out)

        return note

    for module in root.modules():
        if isinstance(module, _COUNTED):
            module.register_forward_hook(hook(module))
    return last


def _close_kernels(mode: ChannelMode) -> None:
    """Kernel positions are no channels: the dimensions of a weight that its role leaves out."""
    for name, role in mode.roles.items():
        mode.tensors[name] = tuple(
            v if d in (role.out_dim, role.in_dim) else None
            for d, v in enumerate(mode.tensors[name])
        )


def _param_terms(mode: ChannelMode, root: nn.Module) -> None:
    for name, p in root.named_parameters():
        vectors = mode.tensors.get(name, (None,) * p.dim())
        mode.node = name
        fixed = prod(n for n, v in zip(p.shape, vectors, strict=True) if v is None)
        mode.add_term("params", fixed, vectors)


def _with_classifiers(mode: ChannelMode) -> dict[str, WeightRole]:
    is_output = np.zeros(mode.space.size, dtype=bool)  # by representative
    for freeze in mode.space.freezes:
        if freeze.reason == REASON:
            is_output[mode.space.find(freeze.ids)] = True
    result = {}
    for name, role in mode.roles.items():
        out = mode.tensors[name][role.out_dim]
        final = out is not None and bool(is_output[mode.space.find(out)].all())
        result[name] = replace(role, classifier=final)
    return result
