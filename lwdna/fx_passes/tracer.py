"""A torch.fx tracer whose proxies know a meta-tensor *hint* of their value.

``x.shape`` gives integers that stay symbolic in the graph while Python control flow is resolved
from the hint; factories (``torch.arange`` ...) are recorded even when no proxy reaches them.
"""

from __future__ import annotations

import builtins
import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Node, Proxy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map, tree_map_only

from lwdna.errors import CaptureError, LwdnaError
from lwdna.fx_passes.kernels import MetaMode
from lwdna.fx_passes.proxy import HintedProxy, hint_of, is_proxy, source_line

_FACTORY_NAMES = (
    "arange",
    "bartlett_window",
    "blackman_window",
    "empty",
    "eye",
    "full",
    "hamming_window",
    "hann_window",
    "linspace",
    "logspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
)
_FACTORIES = {getattr(torch, name) for name in _FACTORY_NAMES}
_SIZE_FACTORIES = ("empty", "ones", "rand", "randn", "zeros")


class _Recorder(TorchFunctionMode):
    """Sends every torch function that sees a proxy, and every factory, to the tracer."""

    def __init__(self, tracer: HintedTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.tracer.evaluating:
            return func(*args, **kwargs)
        if func is torch._C._set_grad_enabled:
            raise CaptureError(
                f"forward() switches gradients on or off at {source_line()}, which a graph does "
                "not carry over: use .detach() on the tensors instead"
            )
        if func not in _FACTORIES and not tree_any(is_proxy, (args, kwargs)):
            return func(*args, **kwargs)
        if torch.overrides.is_tensor_method_or_property(func):
            name = func.__name__
            if name == "__get__":  # a property reached through the class
                return getattr(args[0], func.__self__.__name__)
            return self.tracer.create_proxy("call_method", name, args, kwargs)
        return self.tracer.create_proxy("call_function", func, args, kwargs)


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
        self._kernels = kernels
        self._placeholder_hints = hints
        self.leaves = leaves
        self.evaluating = False
        self.entered: set[str] = set()  # paths of the modules that were called
        self._guarded: set[Node] = set()

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """One placeholder per example input; other arguments keep their defaults.

        Defaults that are numbers stay arguments of the graph; other defaults decide its structure.
        """
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
        """torch.nn modules, batch norms with their own forward, and the given leaves."""
        return (
            module_qualified_name in self.leaves
            or isinstance(m, nn.modules.batchnorm._NormBase)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> torch.fx.Graph:
        """Trace with factories patched and recorded; see :class:`torch.fx.Tracer`."""
        named = (*root.named_parameters(), *root.named_buffers())
        self._names = {id(tensor): name for name, tensor in reversed(named)}
        self._tensors = dict(named)
        with _patched(), torch.enable_grad(), _Recorder(self):
            try:
                return super().trace(root, concrete_args)
            except LwdnaError:
                raise
            except Exception as e:
                raise CaptureError(
                    f"{source_line(e)} cannot be traced: {type(e).__name__}: {e}. The network is "
                    "not one static graph; scripted functions, vmap and checkpointing are not "
                    "part of one"
                ) from e

    def proxy(self, node: Node) -> Proxy:
        """A hinted proxy; see :class:`torch.fx.Tracer`."""
        return HintedProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Lower a value to a node argument; parameters and buffers are looked up by identity."""
        if type(a) is HintedProxy:
            return a.node
        if isinstance(a, Tensor) and id(a) in self._names:
            return self.create_node("get_attr", self._names[id(a)], (), {})
        return super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record or trace through a module call; run it while hints are evaluated."""
        if self.evaluating:
            return forward(*args, **kwargs)
        self._forward = forward
        self.entered.add(self.path_of_module(m))
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        """Record a node together with the module whose code it is."""
        node = super().create_node(*args, **kwargs)
        stack = self.module_stack
        node.meta["module"] = next(reversed(stack.values()))[0] if stack else ""
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A proxy for parameters and buffers (one node each), the value for the rest."""
        name = None if self.evaluating else self._names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def guard(self, proxy: HintedProxy) -> None:
        """Assert in the graph that a size which decided the control flow is the one traced.

        The graph would silently compute something else at another size than the model does.
        """
        node, value = proxy.node, proxy.hint
        if self.evaluating or node in self._guarded:
            return
        sizes = [proxy] if not isinstance(value, bool) else _operands(node)
        if not sizes or not all(isinstance(hint_of(s), _SIZES) for s in sizes):
            return  # dtypes, devices and flags are free to change, as in the model
        self._guarded.add(node)
        condition = self.create_proxy("call_function", operator.eq, (proxy, value), {})
        message = f"the control flow was captured for {value!r} at {source_line()}: capture again"
        self.create_proxy("call_function", torch._assert, (condition, message), {})

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

        Functions of the model's own that were marked by ``torch.fx.wrap`` are traced through: an
        opaque function could only freeze the channels it sees.
        """
        if kind == "call_function" and _is_model_code(target):
            return target(*args, **kwargs)
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr)
        node = proxy.node
        node.meta["hint"] = self._evaluate(node, kind, target, args, kwargs)
        assert is_proxy(proxy)
        proxy.hint = node.meta["hint"]  # type: ignore[attr-defined]
        return proxy

    def _evaluate(self, node: Node, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self._hint
        if kind == "get_attr":
            return _to_meta(self._tensors[target])
        args, kwargs = _hints(args), _hints(kwargs)
        self.evaluating = True
        try:
            with torch.inference_mode(), self._kernels:
                return tree_map_only(Tensor, _to_meta, self._run(kind, target, args, kwargs))
        except CaptureError:
            raise
        except Exception as e:
            raise CaptureError(
                f"{node.format_node()} cannot be evaluated on meta tensors at {source_line()}: "
                f"{type(e).__name__}: {e}. If it reads a tensor's values, the network is not one "
                "static graph; otherwise check the example input."
            ) from e
        finally:
            self.evaluating = False

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "call_module":
            return self._forward(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


_SIZES = (int, float, tuple)


def _operands(node: Node) -> list[Any]:
    """What a comparison compares; nothing if the truth value comes from elsewhere."""
    compared = node.target in (
        operator.eq,
        operator.ne,
        operator.lt,
        operator.le,
        operator.gt,
        operator.ge,
    )
    return list(node.args) if compared else []


def _is_model_code(target: Any) -> bool:
    module = getattr(target, "__module__", None) or ""
    return isinstance(target, FunctionType) and module.split(".")[0] not in ("torch", "math")


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor) and value.device.type != "meta":
        return torch.empty_like(value, device="meta")
    return value


def _hints(tree: Any) -> Any:
    def hint(value: Any) -> Any:
        if isinstance(value, slice):
            return slice(*(hint(v) for v in (value.start, value.stop, value.step)))
        if is_proxy(value):
            return value.hint
        return _to_meta(value)

    return tree_map(hint, tree)


@contextmanager
def _patched() -> Iterator[None]:
    """Let builtins and factories take proxies.

    ``isinstance`` answers for the hint (a ``__class__`` that did would have C++ take the proxy for
    a tensor); ``len`` of a batch, ``max`` and ``min`` of sizes stay symbolic; the C++ parser of
    factories would ask proxies for their present value.
    """
    is_instance, length = isinstance, len

    def instance_check(value: Any, types: Any) -> bool:
        if type(value) is HintedProxy and is_instance(value.hint, types):
            return True
        return is_instance(value, types)

    def count(value: Any) -> Any:
        if type(value) is HintedProxy and is_instance(value.hint, Tensor):
            return value.shape[0]
        return length(value)

    def extremum(original: Callable[..., Any]) -> Callable[..., Any]:
        def of(*args: Any, **kwargs: Any) -> Any:
            found = next((a for a in args if is_proxy(a)), None)
            if (
                found is None
                or kwargs
                or not all(isinstance(hint_of(a), (int, float)) for a in args)
            ):
                return original(*args, **kwargs)
            return found.tracer.create_proxy("call_function", original, args, {})

        return of

    def factory(original: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            found = next((v for v in tree_leaves((args, kwargs)) if is_proxy(v)), None)
            if found is None:
                return original(*args, **kwargs)
            if len(args) > 1 and original.__name__ in _SIZE_FACTORIES:
                args = (args,)
            return found.tracer.create_proxy("call_function", original, args, kwargs)

        return make

    replacements = {(torch, name): factory(getattr(torch, name)) for name in _FACTORY_NAMES}
    replacements |= {(builtins, name): extremum(getattr(builtins, name)) for name in ("max", "min")}
    replacements |= {(builtins, "isinstance"): instance_check, (builtins, "len"): count}
    with ExitStack() as stack:
        for (owner, name), replacement in replacements.items():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield
