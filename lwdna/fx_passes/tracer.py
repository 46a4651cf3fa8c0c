"""A torch.fx tracer whose proxies know a meta-tensor *hint* of their value.

``x.shape`` gives integers that stay symbolic in the graph while Python control flow is resolved
from the hint; factories (``torch.arange`` ...) are recorded even when no proxy reaches them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import is_dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Node, Proxy
from torch.overrides import TorchFunctionMode

from lwdna.errors import CaptureError, LwdnaError
from lwdna.fx_passes.gradients import Gradients
from lwdna.fx_passes.hints import Evaluation, to_meta
from lwdna.fx_passes.interface import FEATURES, Call
from lwdna.fx_passes.kernels import MetaMode
from lwdna.fx_passes.members import named_tensors
from lwdna.fx_passes.mode_reads import is_own_layer, watched_mode
from lwdna.fx_passes.modes import CONSTANT
from lwdna.fx_passes.module import FUNCTIONS, CalledFunction
from lwdna.fx_passes.modules import declared
from lwdna.fx_passes.patches import FACTORIES, OPENED, python_for_proxies
from lwdna.fx_passes.proxy import HintedProxy, has_effect, is_proxy, source_line
from lwdna.trees import hides_tensors, opaque, tree_leaves, tree_map

#: Modules of torch.nn that are traced through, down to the layers they are made of.
_OPENED_MODULES = (
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)
#: Values that are node arguments as they are; most arguments are.
_PLAIN = frozenset((bool, int, float, str, type(None), torch.dtype, torch.device))


class _Recorder(TorchFunctionMode):
    """Sends every torch function that sees a proxy, and every factory, to the tracer."""

    def __init__(self, tracer: HintedTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.tracer.evaluation.running:
            return func(*args, **kwargs)
        if func in OPENED:
            return OPENED[func](*args, **kwargs)
        if func not in FACTORIES and not self._concerned(func, tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if torch.overrides.is_tensor_method_or_property(func):
            name = func.__name__
            if name == "__get__":  # a property reached through the class
                return getattr(args[0], func.__self__.__name__)
            return self.tracer.create_proxy("call_method", name, args, kwargs)
        return self.tracer.create_proxy("call_function", func, args, kwargs)

    def _concerned(self, func: Any, values: list[Any]) -> bool:
        """Whether proxies are among the values, or the model's tensors that are no buffers.

        What is computed from those alone would be a constant without values otherwise; properties
        (shape, dtype) are known.
        """
        if any(map(is_proxy, values)):
            return True
        return func.__name__ != "__get__" and any(map(self.tracer.is_attribute, values))


class HintedTracer(torch.fx.Tracer):
    """Traces down to torch.nn, with hints.

    Args:
        hints: one hint per placeholder, in order (meta tensors or plain values).
        leaves: paths of modules outside torch.nn that are not traced through, because their
            behaviour depends on ``training``.
        kernels: evaluates hints; the traces of one network share it.
    """

    proxy_buffer_attributes = True

    def __init__(self, hints: tuple[Any, ...], leaves: frozenset[str], kernels: MetaMode) -> None:
        super().__init__()
        self.evaluation = Evaluation(kernels)
        self._placeholder_hints = hints
        self.leaves = leaves
        self.entered: set[str] = set()  # paths of the modules that were called
        self.asked_mode = False  # whether what was traced asked for ``training``
        self.calls: dict[str, Call] = {}  # last call of each module, and of forward_features

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """One placeholder per example input; other arguments keep their defaults.

        Defaults that are numbers stay arguments of the graph; other defaults decide its structure.
        """
        self._patches.enter_context(python_for_proxies(self))  # here are the first proxies
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        args: list[Any] = [self.root]
        for k, hint in enumerate(self._placeholder_hints):
            p = parameters[min(k, len(parameters) - 1)] if parameters else None
            several = p is not None and p.kind is p.VAR_POSITIONAL
            if p is None or (k >= len(parameters) and not several):
                raise CaptureError(f"forward() does not take {len(self._placeholder_hints)} inputs")
            self._hint = hint
            args.append(
                self.create_proxy("placeholder", f"{p.name}_{k}" if several else p.name, (), {})
            )
        for p in parameters[len(self._placeholder_hints) :]:
            if p.kind is not p.POSITIONAL_OR_KEYWORD:
                break
            if p.default is p.empty:
                raise CaptureError(
                    f"forward() needs an argument {p.name!r} that the example inputs do not give"
                )
            self._hint = p.default
            number = isinstance(p.default, (int, float)) and not isinstance(p.default, bool)
            args.append(
                self.create_proxy("placeholder", p.name, (p.default,), {}) if number else p.default
            )
        return root_fn, args

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """torch.nn's layers, norms with their own forward, scripted, declared and given ones."""
        return (
            module_qualified_name in self.leaves
            or declared(m)
            or isinstance(m, (nn.modules.batchnorm._NormBase, torch.jit.ScriptModule))
            or (
                not isinstance(m, _OPENED_MODULES)
                and super().is_leaf_module(m, module_qualified_name)
            )
        )

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> torch.fx.Graph:
        """Trace with factories patched and recorded; see :class:`torch.fx.Tracer`."""
        parameters, buffers = named_tensors(root)
        self._tensors = {**parameters, **buffers}
        self._names = {id(tensor): name for name, tensor in reversed(self._tensors.items())}
        self.gradients = Gradients(root, self._tensors, self._detach)
        self._watch_features(root)
        watched = watched_mode(self._asked)
        with ExitStack() as self._patches, watched, torch.enable_grad(), _Recorder(self):
            try:
                return super().trace(root, concrete_args)
            except LwdnaError:
                raise
            except Exception as e:
                raise CaptureError(
                    f"{source_line(e)} cannot be traced: {type(e).__name__}: {e}. The network is "
                    "not one static graph; what vmap transforms is not part of one"
                ) from e

    def proxy(self, node: Node) -> Proxy:
        """A hinted proxy; see :class:`torch.fx.Tracer`."""
        return HintedProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Lower a value to a node argument; parameters and buffers are looked up by identity."""
        if type(a) is HintedProxy:
            return a.node
        if type(a) in _PLAIN:
            return a
        if type(a) in (tuple, list):
            return type(a)(map(self.create_arg, a))
        if type(a) is dict and all(type(key) is str for key in a):
            return {key: self.create_arg(value) for key, value in a.items()}
        if isinstance(a, Tensor) and id(a) in self._names:
            return self.create_node("get_attr", self._names[id(a)], (), {})
        if is_dataclass(a) and hides_tensors(a):
            raise CaptureError(f"{type(self.root).__name__} hands on {opaque(a)}")
        try:
            return super().create_arg(a)
        except NotImplementedError as e:
            raise CaptureError(f"{type(self.root).__name__} hands on {opaque(a)}") from e

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record or trace through a module call; run it while hints are evaluated."""
        if self.evaluation.running:
            return forward(*args, **kwargs)
        self._forward = forward
        path = self.path_of_module(m)
        self.entered.add(path)
        result = super().call_module(m, forward, args, kwargs)
        self.calls[path] = Call.of(args, result)
        return result

    def is_attribute(self, value: Any) -> bool:
        """Whether it is a tensor of the model that is neither parameter nor buffer."""
        name = self.tensor_attrs.get(value, CONSTANT) if isinstance(value, Tensor) else CONSTANT
        return not name.startswith(CONSTANT)

    def _asked(self, module: nn.Module) -> None:
        if not (self.evaluation.running and is_own_layer(module)):
            self.asked_mode = True

    def _watch_features(self, root: Any) -> None:
        """Note what ``forward_features`` returns, which is no module's result."""
        method = getattr(type(root), FEATURES, None)
        if method is None:
            return

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = method(root, *args, **kwargs)
            self.calls[FEATURES] = Call.of(args, result)
            return result

        setattr(root, FEATURES, watched)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        """Record a node together with the module whose code it is."""
        node = super().create_node(*args, **kwargs)
        stack = self.module_stack
        node.meta["module"] = next(reversed(stack.values()))[0] if stack else ""
        return node

    def call_function(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        """Record a call of a function that is not traced through, as a module of its own."""
        holder = self.root._modules.setdefault(FUNCTIONS, nn.Module())
        assert holder is not None
        used = [key for key, m in holder._modules.items() if m._function == function]  # type: ignore[union-attr]
        path = used[0] if used else name
        while not used and path in holder._modules:
            path += "_"
        if not used:
            holder.add_module(path, CalledFunction(function))
        self._forward = function
        return self.create_proxy("call_module", f"{FUNCTIONS}.{path}", args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A proxy for parameters and buffers (one node each), the value for the rest."""
        name = None if self.evaluation.running else self._names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
        proxy_factory_fn: Any = None,
    ) -> Any:
        """Record the node, then evaluate it on the hints of its arguments.

        Where the model has switched gradients off, what the node gets and gives is detached:
        neither the result nor what is computed from it has a gradient, as in the model. None is
        returned as None, since the model asks for it by ``is``, which a proxy cannot answer.
        """
        if torch.is_grad_enabled() or kind in ("placeholder", "get_attr"):
            proxy = self._record(kind, target, args, kwargs, name, type_expr)
            return None if proxy.hint is None else proxy
        free_args, free_kwargs = tree_map(self.gradients.detached, (args, kwargs))
        proxy = self._record(kind, target, free_args, free_kwargs, name, type_expr)
        if proxy.hint is None:
            return None
        if kind != "call_module" and args and has_effect(proxy.node):
            return args[0]  # an operator in place returns what it was given
        return self.gradients.detached(proxy)

    def _detach(self, value: HintedProxy) -> Any:
        return self._record("call_method", "detach", (value,), {})

    def _record(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        name: str | None = None,
        type_expr: Any = None,
    ) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr)
        node = proxy.node
        node.meta["hint"] = self._evaluate(node, kind, target, args, kwargs)
        assert is_proxy(proxy)
        proxy.hint = node.meta["hint"]  # type: ignore[attr-defined]
        self.gradients.follow(node)
        return proxy

    def _evaluate(self, node: Node, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self._hint
        if kind == "get_attr":
            return to_meta(self._tensors[target])
        if kind == "call_module":
            return self.evaluation.of(node, self._forward, args, kwargs)
        return self.evaluation.of(node, None if kind == "call_method" else target, args, kwargs)
